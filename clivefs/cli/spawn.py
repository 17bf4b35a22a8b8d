"""Starting the daemon of a mountpoint, and hearing whether it came up.

It gets its configuration as JSON through one descriptor and says through another, in lines of JSON, how far
it is, and at last that it has mounted or why not (`clivefs.daemon.__main__`). Nothing else passes: it reads
no environment of its own accord and no terminal.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.cli import daemons
from clivefs.cli.output import Output

LOG_TAIL_BYTES = 4096
LINE_BYTES_MAX = 1 << 20


def _command(config_fd: int, ready_fd: int) -> list[str]:
    # -P: the current directory must not decide what is imported.
    return [
        sys.executable,
        "-P",
        "-m",
        "clivefs.daemon",
        "--config-fd",
        str(config_fd),
        "--ready-fd",
        str(ready_fd),
    ]


def _config_fd(config: dict[str, Any]) -> int:
    """A descriptor from which *config* is read, however long it is."""
    fd = os.memfd_create("clivefs-config", 0)
    data = json.dumps(config).encode()
    while data:
        data = data[os.write(fd, data) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def in_background(config: dict[str, Any], log: str, progress: Callable[[str], None]) -> dict[str, Any]:
    """Start the daemon in a session of its own, its output going to *log*; what it says once it has mounted.

    Raises ClivefsError with its reason where it does not come up.
    """
    ready, ready_write = os.pipe()
    config_fd = _config_fd(config)
    log_fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        process = subprocess.Popen(
            _command(config_fd, ready_write),
            stdin=subprocess.DEVNULL,
            stdout=log_fd,
            stderr=log_fd,
            cwd="/",
            start_new_session=True,
            pass_fds=(config_fd, ready_write),
        )
    finally:
        os.close(log_fd)
        os.close(config_fd)
        os.close(ready_write)
    try:
        said = _hear(ready, progress)
    except KeyboardInterrupt:
        # In a session of its own, it does not hear the terminal.
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if said is None:
        code = process.wait()
        raise ClivefsError(
            f"the daemon ended with code {code} before it had mounted{_tail(log)}",
            place=log,
            remedy="`clivefs doctor` tells what this machine lacks",
        )
    if not said.get("ok"):
        process.wait()
        raise daemons.failure(said)
    process.returncode = 0  # it lives on: not our child to wait for
    return said


def in_foreground(config: dict[str, Any], out: Output) -> int:
    """Become the daemon. Another process stays until it has said whether it came up, and passes that on."""
    ready, ready_write = os.pipe()
    config_fd = _config_fd(config)
    os.set_inheritable(config_fd, True)
    os.set_inheritable(ready_write, True)
    out.flush()
    child = os.fork()
    if child == 0:
        # Forked twice, so that it is nobody's zombie: the daemon is not its parent.
        if os.fork() == 0:
            os.close(ready_write)
            _tell(ready, out)
        os._exit(0)
    os.waitpid(child, 0)
    os.close(ready)
    os.chdir("/")
    command = _command(config_fd, ready_write)
    os.execv(command[0], command)


def _tell(ready: int, out: Output) -> None:
    said = _hear(ready, out.progress)
    if said is not None and said.get("ok"):
        out.line(f"mounted {', '.join(said.get('workspaces', []))} at {said.get('mountpoint')}")
        out.json(said)
    elif said is not None:
        out.error(daemons.failure(said))
    out.flush()


def _hear(ready: int, progress: Callable[[str], None]) -> dict[str, Any] | None:
    """What the daemon says last on its ready pipe; None if it ended without a word."""
    with open(ready, "rb") as stream:
        while line := stream.readline(LINE_BYTES_MAX):
            try:
                said = json.loads(line)
            except ValueError:
                return None
            if not isinstance(said, dict):
                return None
            if "progress" not in said:
                return said
            progress(str(said["progress"]))
    return None


def _tail(log: str) -> str:
    """The last line of the log, which most likely says why."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_TAIL_BYTES))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return f": {lines[-1]}" if lines else ""
