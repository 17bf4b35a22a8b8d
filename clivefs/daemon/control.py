"""The control socket: one JSON object a line, for the command line of the same user.

A request is `{"command": NAME, "args": {...}}`; the answers are any number of `{"progress": TEXT}` and then
`{"ok": true, "result": ...}` or `{"ok": false, "message", "place", "remedy", "also", "exit_code"}`. Some commands end
where who asked goes away, or says with an end of file that he asks no more and wants to know what became of it: see
`serve`. The socket lies in a directory that only its owner may enter and is 0600 itself; the peer's uid is checked as
well.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from clivefs.base.errors import ClivefsError

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 4 << 20
Progress = Callable[[str], Awaitable[None]]
Command = Callable[[dict[str, Any], Progress], Awaitable[Any]]


def failure(error: ClivefsError) -> dict[str, Any]:
    """A failure as the protocol tells of it."""
    return {
        "ok": False,
        "message": error.message,
        "place": error.place,
        "remedy": error.remedy,
        "also": error.also,
        "exit_code": error.exit_code,
    }


def bind(directory: str, name: str) -> socket.socket:
    """A listening socket *name* in *directory*, replacing one that a dead daemon left.

    The caller holds the lock of the mountpoint, so nobody can be listening there.
    """
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        path = f"/proc/self/fd/{dir_fd}/{name}"  # a socket's path may have 107 bytes only
        try:
            os.unlink(name, dir_fd=dir_fd)
        except FileNotFoundError:
            log.debug("no socket was left behind")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        old_umask = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(old_umask)
        listener.listen(64)
        return listener
    finally:
        os.close(dir_fd)


async def serve(
    listener: socket.socket,
    commands: dict[str, Command],
    log_place: str = "what the daemon logged",
    stoppable: Collection[str] = (),
) -> None:
    """Answer requests until cancelled; each connection carries any number of them, one after another.

    *log_place* is where a person finds what was logged of an error that we did not expect. *stoppable*: commands that
    are cancelled when nobody asks any more; one that is must have changed nothing. It shields what must not be.
    """
    async_listener = trio.SocketListener(trio.socket.from_stdlib_socket(listener))

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            if _peer_uid(stream.socket) not in (os.geteuid(), 0):
                log.warning("refused a control connection of another user")
                return
            try:
                await _converse(stream, commands, log_place, stoppable)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                log.debug("a control client went away")
            except Exception:  # the mount goes on, whatever one client makes of his connection
                log.exception("a control connection failed")

    await trio.serve_listeners(handle, [async_listener])


def _peer_uid(sock: trio.socket.SocketType) -> int:
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


async def _converse(
    stream: trio.SocketStream, commands: dict[str, Command], log_place: str, stoppable: Collection[str]
) -> None:
    sending = trio.Lock()
    answering = False

    async def send(answer: dict[str, Any]) -> None:
        await stream.send_all(json.dumps(answer).encode() + b"\n")

    async def progress(text: str) -> None:
        try:
            async with sending:
                if answering:  # not after the answer, though what was begun may go on
                    await send({"progress": text})
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("who asked went away; what was begun is finished")

    buffer = bytearray()
    while True:
        line, found, rest = bytes(buffer).partition(b"\n")
        if not found:
            if len(buffer) > REQUEST_BYTES_MAX:
                await send(failure(ClivefsError("a control request is too long")))
                return
            chunk = await stream.receive_some(65536)
            if not chunk:
                return
            buffer += chunk
            continue
        buffer = bytearray(rest)
        answering = True
        answering_it = partial(_answer, line, commands, progress, log_place)
        if _command(line) in stoppable:
            answer = await _while_asked(stream, buffer, answering_it)
        else:
            answer = await answering_it()
        async with sending:
            answering = False
            await send(answer)


def _command(line: bytes) -> str:
    """The name of the command that a request is for; empty for what is no request."""
    try:
        return str(json.loads(line)["command"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


async def _while_asked(
    stream: trio.SocketStream, buffer: bytearray, answering: Callable[[], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """What *answering* gives, which is cancelled at the end of *stream*; what comes until then goes to *buffer*."""
    answer = failure(ClivefsError("stopped; nothing was changed"))

    async def listen(asked: trio.CancelScope) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while chunk := await stream.receive_some(65536):
                buffer.extend(chunk)
                if len(buffer) > REQUEST_BYTES_MAX:
                    return
        asked.cancel()

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as asked:
            nursery.start_soon(listen, asked)
            answer = await answering()
        nursery.cancel_scope.cancel()
    return answer


async def _answer(line: bytes, commands: dict[str, Command], progress: Progress, log_place: str) -> dict[str, Any]:
    try:
        request = json.loads(line)
        command = commands[request["command"]]
        args = dict(request.get("args") or {})
    except (ValueError, KeyError, TypeError, RecursionError):
        return failure(
            ClivefsError(
                "the daemon does not know this request",
                remedy="it may be of another version: `clivefs unmount` and `clivefs mount` again",
            )
        )
    try:
        return {"ok": True, "result": await command(args, progress)}
    except ClivefsError as error:
        return failure(error)
    except OSError as error:
        log.warning("command %s failed: %s", request["command"], error)
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
        return failure(ClivefsError(error.strerror or str(error), place=place))
    except Exception as error:
        log.exception("command %s failed", request["command"])
        return failure(ClivefsError(f"internal error: {error!r}", remedy=f"see {log_place}"))
