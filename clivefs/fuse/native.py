"""Our own driver of the `/dev/fuse` protocol: a request is read, answered and written in one span.

One task reads the device and answers at once what is in memory; only what has to wait (the network, the disk)
becomes a task of its own. Against libfuse it saves system calls and a task switch a request, and it can ask for
what pyfuse3 cannot: that the kernel keeps listings (FOPEN_CACHE_DIR).

A kept listing is dropped by the kernel when a name is made or removed through the mount, when `invalidate_inode`
tells it to, and when the directory's mtime is another (AUTO_INVAL_DATA). It holds names and inode numbers only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import cast

import trio

from clivefs.fuse import native_mount
from clivefs.fuse import native_protocol as wire
from clivefs.fuse.applied import AppliedOperations
from clivefs.fuse.native_requests import FOR_THE_APPLIER, Handler, Later, Requests
from clivefs.fuse.operations import Operations
from clivefs.fuse.waiting import Jobs, Turns
from clivefs.mounts.tree import Blocked

log = logging.getLogger(__name__)

_ERRNO_MAX = 511
"""The kernel takes a higher number for a malformed reply."""
_BUFFER = wire.MAX_WRITE + 8192
_KILLED_LOOK_S = 0.2
_SIGKILL_BIT = 1 << 8
_GIVES_NODE = (wire.LOOKUP, wire.MKNOD, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.CREATE)


class NativeTransport:
    """One mount. `mount`, then `serve` in a trio task, `invalidate_*` from any thread but the loop's."""

    def __init__(self, operations: Operations) -> None:
        self._ops = operations
        self._fd = -1
        self._mountpoint: str | None = None
        self._reading = trio.CancelScope()
        self._jobs = Jobs()
        self._waiting: dict[int, tuple[trio.CancelScope, int]] = {}
        """Requests that may be given up, by their number, and the threads that made them."""
        self._nursery: trio.Nursery | None = None
        self._turns = Turns()
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._handlers = Requests(operations).handlers
        self._applied: dict[int, Handler] = {}
        self.applier_pid = -1
        """Whose requests are answered by what `answer_applier` was given; 0 is the kernel itself."""

    # The mount

    def mount(self, mountpoint: str, *, allow_other: bool) -> None:
        """Mount at *mountpoint*. Raises RuntimeError when that is refused."""
        self.attach(native_mount.mount(mountpoint, allow_other=allow_other))
        self._mountpoint = mountpoint

    def attach(self, fd: int) -> None:
        """Speak through *fd*, which must not block, instead of mounting."""
        self._fd = fd

    @property
    def asked_s(self) -> float:
        """When there last was a request, by the monotonic clock."""
        return self._turns.asked_s

    def answer_applier(self, applied: AppliedOperations) -> None:
        """Answer what the process `applier_pid` asks by *applied*."""
        handlers = Requests(applied).handlers
        self._applied = {opcode: handlers[opcode] for opcode in FOR_THE_APPLIER}

    def unmount(self) -> None:
        """Take the mount away, if it is still there."""
        if self._mountpoint is not None:
            mountpoint, self._mountpoint = self._mountpoint, None
            fd, self._fd = self._fd, -1
            native_mount.unmount(mountpoint, fd)

    def stop(self) -> None:
        """Let `serve` return when what is under way has been answered; from the loop's thread."""
        self._reading.cancel()

    async def serve(self) -> None:
        """Answer requests until the mount ends, from outside or by `stop`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            with self._reading:
                await self._answer_all()
                nursery.cancel_scope.cancel()  # the mount is gone: nobody waits any more

    async def _answer_all(self) -> None:
        """Read and answer until the mount is gone."""
        fd, buffers, turns = self._fd, [self._buffer], self._turns
        while True:
            if turns.is_due:
                await turns.give()
            try:
                count = os.readv(fd, buffers)
            except BlockingIOError:
                await turns.wait(fd)
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was taken back
                raise
            self._answer(count)

    # One request

    def _answer(self, count: int) -> None:
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = wire.IN_HEADER.unpack_from(self._buffer)
        received = self._view[wire.IN_HEADER.size : count]
        # What is to be written goes on from where it was received; who keeps it for later makes a copy.
        body = received.tobytes() if opcode != wire.WRITE else cast(bytes, received)
        handler = self._handlers.get(opcode)
        if pid == self.applier_pid:
            handler = self._applied.get(opcode, handler)
        if handler is None:
            if opcode == wire.INTERRUPT:
                self._interrupt(body)
            else:
                self._refuse(unique, errno.ENOSYS)
            return
        try:
            answer = handler(nodeid, body, uid, gid)
        except Blocked as blocked:
            assert self._nursery is not None
            scope = trio.CancelScope()
            self._waiting[unique] = scope, pid
            again = partial(handler, nodeid, bytes(body), uid, gid)
            self._nursery.start_soon(self._finish, opcode, unique, scope, again, blocked)
        except OSError as error:
            self._refuse(unique, error.errno)
        except Exception:
            log.exception("request %d failed", opcode)
            self._refuse(unique, errno.EIO)
        else:
            if type(answer) is bytes:
                self._reply(opcode, unique, answer)
            elif answer is not None:
                assert self._nursery is not None
                assert isinstance(answer, Later)
                self._nursery.start_soon(self._in_thread, opcode, unique, answer)

    async def _finish(
        self,
        opcode: int,
        unique: int,
        scope: trio.CancelScope,
        call: Callable[[], bytes | Later | None],
        blocked: Blocked,
    ) -> None:
        """Wait and call again until it no longer has to wait; then reply."""
        answer: bytes | Later | None = None
        try:
            with scope:
                answer = await self._jobs.settle(call, blocked, f"request {opcode}")
        except OSError as error:
            self._refuse(unique, error.errno)
            return
        finally:
            del self._waiting[unique]
        if scope.cancelled_caught:
            self._refuse(unique, errno.EINTR)
        elif isinstance(answer, Later):
            await self._in_thread(opcode, unique, answer)
        elif answer is not None:
            self._reply(opcode, unique, answer)

    async def _in_thread(self, opcode: int, unique: int, later: Later) -> None:
        try:
            answer = later.answer(await self._jobs.in_thread(later.call, f"request {opcode}", later.limiter))
        except OSError as error:
            self._refuse(unique, error.errno)
        else:
            self._reply(opcode, unique, answer)

    def _reply(self, opcode: int, unique: int, answer: bytes) -> None:
        try:
            os.writev(self._fd, (wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(answer), 0, unique), answer))
        except OSError as error:
            if error.errno == errno.EINVAL:
                log.error("the kernel did not understand the answer to request %d", opcode)
            self._undo(opcode, answer)

    def _refuse(self, unique: int, code: int | None) -> None:
        if code is None or not 0 < code <= _ERRNO_MAX:
            code = errno.EIO
        with contextlib.suppress(OSError):  # the asker, or the mount, is gone
            os.write(self._fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -code, unique))

    def _undo(self, opcode: int, answer: bytes) -> None:
        """Take back the reference and the handle of an answer that nobody took."""
        try:
            if opcode in _GIVES_NODE:
                (nodeid,) = wire.U64.unpack_from(answer)
                self._ops.forget(nodeid, 1)
            if opcode in (wire.OPEN, wire.CREATE):
                self._ops.release(wire.U64.unpack_from(answer, wire.ENTRY_SIZE if opcode == wire.CREATE else 0)[0])
            elif opcode == wire.OPENDIR:
                self._ops.releasedir(wire.U64.unpack_from(answer)[0])
        except Exception:
            log.exception("taking back the answer to request %d failed", opcode)

    def _interrupt(self, body: bytes) -> None:
        """The one who asked has got a signal.

        Only a fatal one ends the waiting, as on a network filesystem: programs do not expect EINTR from open(2) or
        stat(2), and the kernel tells of the first signal alone.
        """
        (unique,) = wire.U64.unpack_from(body)
        waiting = self._waiting.get(unique)
        if waiting is not None and waiting[1] and self._nursery is not None:
            self._nursery.start_soon(self._give_up_when_killed, unique, *waiting)

    async def _give_up_when_killed(self, unique: int, scope: trio.CancelScope, pid: int) -> None:
        while self._waiting.get(unique) == (scope, pid):
            if _is_killed(pid):
                scope.cancel()
                return
            await trio.sleep(_KILLED_LOOK_S)

    # Notifications

    def invalidate_inode(self, nodeid: int, attributes_only: bool) -> None:
        """Let the kernel forget attributes and pages of an inode. May block; never from the loop."""
        self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, -1 if attributes_only else 0, 0))

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Let the kernel forget a name. May block; never from the loop."""
        self._notify(wire.NOTIFY_INVAL_ENTRY, wire.INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")

    def _notify(self, code: int, body: bytes) -> None:
        os.writev(self._fd, (wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), code, 0), body))


def _is_killed(pid: int) -> bool:
    """Whether the thread *pid* is about to end by a signal (a fatal one becomes SIGKILL for each thread), or has."""
    try:
        with open(f"/proc/{pid}/status") as file:
            pending = [line.split()[1] for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except OSError:
        return True
    return any(int(each, 16) & _SIGKILL_BIT for each in pending)
