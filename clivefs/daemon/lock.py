"""Who serves what: one daemon a mountpoint, one live view a workspace, held by flock(2) in the store.

A lock goes with the process that holds it, however that ends, so a lock file left behind means nothing.
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any


class Held(Exception):
    """Somebody else holds the lock; `holder` is what he wrote into it (`pid`, `mountpoint`)."""

    def __init__(self, holder: dict[str, Any]) -> None:
        super().__init__(f"held by process {holder.get('pid', 'unknown')}")
        self.holder = holder


class Lock:
    """An exclusive lock on a file of the store's run directory, held until `release` or the process ends."""

    def __init__(self, path: str, facts: dict[str, Any]) -> None:
        """Take the lock and write *facts* about the holder into it. Raises `Held`."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                raise Held(_parse(os.pread(fd, 65536, 0))) from None
            finally:
                os.close(fd)
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps(facts).encode(), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def workspace_lock(store: str, workspace_id: str, facts: dict[str, Any]) -> Lock:
    """The lock of a workspace in the store at *store*: whoever has it may show it, or say what it is. Raises `Held`."""
    return Lock(os.path.join(store, "run", f"workspace-{workspace_id}.lock"), facts)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data or b"{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
