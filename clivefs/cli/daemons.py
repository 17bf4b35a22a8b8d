"""The daemons of a store, as their command line sees them: which there are, and how one is asked.

A daemon leaves `STORE/run/HASH.json` (`pid`, `mountpoint`, `version`, `roots`, `names`) beside `STORE/run/HASH.sock`;
HASH is the first 16 hex digits of the SHA-256 of its mountpoint. The conversation is specified in
`clivefs.daemon.control`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import socket
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from clivefs.base.errors import ClivefsError, UsageError

ANSWER_BYTES_MAX = 256 << 20
ANSWER_S = {"status": 15.0, "unmount": 60.0, "leave": 60.0}
"""How long a daemon may take for what needs neither network nor much reading; other requests may take long.
Every command asks for the status first, so none waits for ever for a daemon that is stuck."""
ENDING_S_MAX = 10.0
"""How long the kernel may take to take a killed daemon apart."""


class DaemonGone(ClivefsError):
    """Nobody listens at the socket of a daemon."""


class Left(KeyboardInterrupt):
    """Ctrl-C, and what became of what was asked for: its result, or why it has none; neither where nobody said it."""

    def __init__(self, result: Any = None, error: ClivefsError | None = None) -> None:
        super().__init__()
        self.result = result
        self.error = error


class Daemon(NamedTuple):
    """A daemon that says, or said, it serves a mountpoint."""

    run: str
    """The directory of its socket."""
    mountpoint: str
    pid: int
    roots: tuple[str, ...] = ()
    """The directories of the workspaces that it serves, or served."""
    names: tuple[str, ...] = ()
    """Their names, in the same order."""

    def ask(
        self, command: str, progress: Callable[[str], None] | None = None, *, leave_s: float = 0, **args: Any
    ) -> Any:
        """The result of *command*. Raises what the daemon answers as ClivefsError or UsageError, and
        `DaemonGone` where it does not run any more. With *leave_s* Ctrl-C tells it that nobody wants this any more, and
        waits that long for what became of it: `Left`."""
        with contextlib.closing(self._connect()) as connection, connection.makefile("rb") as stream:
            connection.settimeout(ANSWER_S.get(command))
            try:
                connection.sendall(json.dumps({"command": command, "args": args}).encode() + b"\n")
                return _result(stream, progress)
            except KeyboardInterrupt:
                if not leave_s:
                    raise
                raise _left(connection, stream, leave_s) from None
            except TimeoutError:
                raise ClivefsError(
                    f"its daemon (process {self.pid}) does not answer",
                    place=self.mountpoint,
                    remedy=f"see {log_path(os.path.dirname(self.run), self.mountpoint)}; "
                    f"`kill -9 {self.pid}` and `clivefs mount` start another, with everything that was saved",
                ) from None
            except (ConnectionError, ValueError) as error:
                raise self._gone(f"broke off: {error}") from None
            except EOFError:
                raise self._gone("ended before it answered") from None

    def alive(self) -> bool:
        """Somebody listens at its socket."""
        try:
            self._connect().close()
        except DaemonGone:
            return False
        return True

    def serves(self) -> bool:
        """It answers, as one that is alive does. One that is being killed still takes connections and never answers:
        then this waits until it has ended, so that another can take its place. Raises ClivefsError where it is stuck.
        """
        if not self.alive():
            return False
        try:
            self.ask("status")
        except DaemonGone:
            self._wait_for_end()
            return False
        return True

    def pidfd(self) -> int | None:
        """A descriptor of its process, the caller's to close; None where it has ended, or cannot be seen from here."""
        try:
            return os.pidfd_open(self.pid)
        except OSError:
            return None

    def _wait_for_end(self) -> None:
        pidfd = self.pidfd()
        if pidfd is None:
            return
        try:
            ended = select.poll()
            ended.register(pidfd, select.POLLIN)
            ended.poll(ENDING_S_MAX * 1000)
        finally:
            os.close(pidfd)

    def _connect(self) -> socket.socket:
        # A socket's path may have 107 bytes only; through the directory's descriptor any path is short enough.
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            dir_fd = os.open(self.run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                connection.connect(f"/proc/self/fd/{dir_fd}/{socket_name(self.mountpoint)}")
            finally:
                os.close(dir_fd)
        except (FileNotFoundError, ConnectionRefusedError):
            connection.close()
            raise self._gone("does not run any more") from None
        except PermissionError:
            connection.close()
            raise ClivefsError("the daemon of this mountpoint belongs to another user", place=self.mountpoint) from None
        return connection

    def _gone(self, what: str) -> DaemonGone:
        return DaemonGone(
            f"its daemon (process {self.pid}) {what}",
            place=self.mountpoint,
            remedy=f"`clivefs mount --at {self.mountpoint}` brings it back with everything that was saved; "
            f"`clivefs unmount {self.mountpoint}` clears it away",
        )


def failure(answer: dict[str, Any]) -> ClivefsError:
    """The error that a daemon's answer or start-up line tells of."""
    kind = UsageError if answer.get("exit_code") == 2 else ClivefsError
    return kind(
        str(answer.get("message", "it failed")),
        place=answer.get("place"),
        remedy=answer.get("remedy"),
        also=answer.get("also") or (),
    )


def _result(stream: Any, progress: Callable[[str], None] | None) -> Any:
    """The result that is answered; EOFError where there is none, and what `Daemon.ask` raises."""
    for answer in _answers(stream):
        if "progress" in answer:
            if progress is not None:
                progress(str(answer["progress"]))
        elif answer.get("ok"):
            return answer.get("result")
        else:
            raise failure(answer)
    raise EOFError


def _left(connection: socket.socket, stream: Any, leave_s: float) -> Left:
    connection.settimeout(leave_s)
    try:
        connection.shutdown(socket.SHUT_WR)
        return Left(result=_result(stream, None))
    except ClivefsError as error:
        return Left(error=error)
    except (OSError, ValueError, EOFError):
        return Left()


def _answers(stream: Any) -> Iterator[dict[str, Any]]:
    while line := stream.readline(ANSWER_BYTES_MAX):
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError("not an answer")
        yield answer


def run_directory(store: str) -> str:
    """Where the store's daemons keep sockets and logs."""
    return os.path.join(store, "run")


def key_of(mountpoint: str) -> str:
    """The name, without suffix, of what the daemon of *mountpoint* (absolute, without links) leaves."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


def socket_name(mountpoint: str) -> str:
    return f"{key_of(mountpoint)}.sock"


def log_path(store: str, mountpoint: str) -> str:
    return os.path.join(run_directory(store), f"{key_of(mountpoint)}.log")


def daemon_at(store: str, mountpoint: str) -> Daemon | None:
    """The daemon of *mountpoint* according to the store, alive or not."""
    run = run_directory(store)
    try:
        with open(os.path.join(run, f"{key_of(mountpoint)}.json"), "rb") as file:
            facts = json.loads(file.read(65536))
        roots, names = (tuple(map(str, facts.get(each, ()))) for each in ("roots", "names"))
        return Daemon(run, mountpoint, int(facts["pid"]), roots, names)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, KeyError, TypeError):
        return Daemon(run, mountpoint, 0)


def daemons(store: str) -> list[Daemon]:
    """All daemons that the store knows of, alive or not, by mountpoint."""
    run = run_directory(store)
    found = []
    try:
        names = os.listdir(run)
    except (FileNotFoundError, NotADirectoryError):
        return []
    for name in names:
        if not name.endswith(".json"):
            continue
        try:
            with open(os.path.join(run, name), "rb") as file:
                mountpoint = json.loads(file.read(65536))["mountpoint"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # being written, or not a daemon's
        if isinstance(mountpoint, str) and f"{key_of(mountpoint)}.json" == name:
            daemon = daemon_at(store, mountpoint)
            if daemon is not None:
                found.append(daemon)
    return sorted(found, key=lambda daemon: daemon.mountpoint)


def live_run_directories() -> set[str]:
    """Where the daemons that run now have their sockets: this user's, of whatever store; for root everybody's."""
    found = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # it has ended, or is somebody else's
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                if b"clivefs.daemon" not in file.read(4096).split(b"\0"):
                    continue
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    path = os.readlink(f"/proc/{pid}/fd/{fd}")
                    if path.endswith(".lock") and os.path.exists(path.removesuffix("lock") + "sock"):
                        found.add(os.path.dirname(path))
    return found


def forget(store: str, mountpoint: str) -> None:
    """Remove what a dead daemon left in the run directory."""
    for suffix in (".json", ".sock"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(run_directory(store), key_of(mountpoint) + suffix))
