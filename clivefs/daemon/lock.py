"""Who serves what: one daemon a mountpoint, one live view a workspace, held by flock(2).

The locks are on files of the store. As there may be several stores, a live view also has one on the workspace's own
directory: it needs no file there, does not go when an editor puts another Clive.toml in the place of the old one, and
can be had of a directory that may only be read. A lock goes with the process that holds it, however that ends, so a
lock file left behind means nothing.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import stat
from contextlib import suppress
from typing import Any

from clivefs.base.errors import ClivefsError

log = logging.getLogger(__name__)


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
        self._fds = [fd]

    def hold_directory(self, path: str) -> None:
        """Lock the directory *path* itself too, until `release`, where its filesystem has such locks (NFS does not have
        them for directories). Raises `Held` with what is known of the holder, maybe nothing. OSError."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:  # it may be entered, but not read
            log.info("%s cannot be locked: %s", path, error.strerror)
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            try:
                raise Held(_holder(os.fstat(fd))) from None
            finally:
                os.close(fd)
        except OSError as error:
            log.info("%s cannot be locked: %s", path, error.strerror)
            os.close(fd)
            return
        self._fds.append(fd)

    def release(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def workspace_lock(store: str, workspace_id: str, facts: dict[str, Any]) -> Lock:
    """The lock of a workspace in the store at *store*: whoever has it may show it, or say what it is. Raises `Held`."""
    return Lock(os.path.join(store, "run", f"workspace-{workspace_id}.lock"), facts)


def mounted_already(root: str, held: Held, store: str) -> ClivefsError:
    """The error of whoever wanted to mount the workspace at *root* with the store at *store*."""
    mountpoint, other = (held.holder.get(each) for each in ("mountpoint", "store"))
    pid = held.holder.get("pid")
    if mountpoint is None:
        return ClivefsError(
            f"{f'process {pid}' if pid is not None else 'a process that cannot be seen from here'} has locked this "
            "directory: it may be a clivefs of another user or container",
            place=root,
            remedy="unmount it there, or end that process, first",
        )
    elsewhere = other is not None and other != store
    return ClivefsError(
        f"the workspace is mounted already, at {mountpoint}{f' with the store {other}' if elsewhere else ''} "
        f"(process {pid if pid is not None else 'unknown'})",
        place=root,
        remedy=f"use it there, or `clivefs unmount {mountpoint}{f' --store {other}' if elsewhere else ''}` first",
    )


def _holder(locked: os.stat_result) -> dict[str, Any]:
    """What is known of the process that has locked a directory: its `pid`, if it can be seen from here, and if it is a
    daemon that this user may look at, what it wrote into the lock of its mountpoint."""
    device = f"{os.major(locked.st_dev):02x}:{os.minor(locked.st_dev):02x}"
    pids: list[str] = []
    with open("/proc/locks") as file:
        for fields in map(str.split, file):  # 7: FLOCK  ADVISORY  WRITE 4711 fe:01:1048577 0 EOF
            if len(fields) < 6 or fields[1] != "FLOCK" or fields[5].rpartition(":")[2] != str(locked.st_ino):
                continue
            # Some filesystems tell stat(2) another device than the one that is listed here.
            pids.insert(0 if fields[5].startswith(f"{device}:") else len(pids), fields[4])
    for pid in pids:
        if int(pid) <= 0:  # of another pid namespace
            continue
        with suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                facts = _written(f"/proc/{pid}/fd/{fd}")
                if str(facts.get("pid")) == pid:
                    return facts
        return {"pid": int(pid)}
    return {}


def _written(link: str) -> dict[str, Any]:
    """What a lock file says that a process has open; nothing where *link* leads to something else."""
    try:
        if not os.readlink(link).endswith(".lock"):
            return {}
        fd = os.open(link, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return {}
    try:
        return _parse(os.pread(fd, 65536, 0)) if stat.S_ISREG(os.fstat(fd).st_mode) else {}
    finally:
        os.close(fd)


def _parse(data: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(data or b"{}")
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
