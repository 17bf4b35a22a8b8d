"""`python -m clivefs.daemon --config-fd N --ready-fd M`: how the command line starts a daemon.

N is read to its end: the `Settings` as JSON. On M one JSON line a step is written, `{"progress": TEXT}`, and at
last `{"ok": true, "pid", "mountpoint", "workspaces"}` or a failure as on the control socket; then M is closed.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import socket
import sys
from typing import Any

import msgspec
import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import control
from clivefs.daemon.server import Daemon
from clivefs.daemon.settings import Settings

log = logging.getLogger("clivefs.daemon")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m clivefs.daemon")
    parser.add_argument("--config-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int, required=True)
    args = parser.parse_args()
    with open(args.config_fd, "rb") as file:
        settings = msgspec.json.decode(file.read(), type=Settings)
    _log_to(settings.log)
    os.set_inheritable(args.ready_fd, False)

    ready_fd = [args.ready_fd]
    """Empty once it is closed: a source goes on telling its progress, and the number may be a user's file then."""

    def say(message: dict[str, Any]) -> None:
        try:
            for fd in ready_fd:
                os.write(fd, json.dumps(message).encode() + b"\n")
        except BrokenPipeError:
            log.debug("who started the daemon did not wait for it")

    # A thread that computes must not hold up the loop's every return from a system call for 5 ms.
    sys.setswitchinterval(0.0005)
    daemon = Daemon(settings)
    try:
        names = daemon.start(lambda text: say({"progress": text}))
    except ClivefsError as error:
        log.error("could not start: %s", error)
        say(control.failure(error))
        return error.exit_code
    except OSError as error:
        log.exception("could not start")
        place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else settings.store
        say(control.failure(ClivefsError(f"the daemon could not start: {error.strerror or error}", place=place)))
        return 1
    except Exception as error:
        log.exception("could not start")
        remedy = f"see {settings.log_place}"
        say(control.failure(ClivefsError(f"the daemon could not start: {error!r}", remedy=remedy)))
        return 1
    say({"ok": True, "pid": os.getpid(), "mountpoint": settings.mountpoint, "workspaces": names})
    os.close(ready_fd.pop())
    # A mount makes objects by the hundred thousand and few cycles: with Python's own thresholds a collection stopped
    # the loop for 80 ms at 100,000 known files; with these, for 6 ms.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    if settings.notify_socket:
        try:
            _notify(settings.notify_socket, b"READY=1")
        except OSError as error:
            log.warning("nobody hears at the notification socket %s: %s", settings.notify_socket, error.strerror)
    log.info("serving %s: %s", settings.mountpoint, ", ".join(names))
    try:
        trio.run(daemon.serve, strict_exception_groups=True)
    except Exception:
        log.exception("the daemon ended by an error")
        return 1
    log.info("ended")
    return 0


def _log_to(path: str | None) -> None:
    handler: logging.Handler
    if path is None:
        handler = logging.StreamHandler(sys.stderr)
    else:
        handler = logging.FileHandler(path, delay=False)
        os.chmod(path, 0o600)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(logging.INFO)
    logging.captureWarnings(True)


def _notify(address: str, message: bytes) -> None:
    """Tell systemd (sd_notify(3))."""
    path = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(message, path)


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    # All is closed. To take the interpreter apart as well would cost 0.1 s, a quarter of what starting it does.
    os._exit(code)
