"""What is mounted where, and clearing away a mount whose daemon has died.

Everything is read from /proc/self/mountinfo: a stat of a dead or hanging mount fails or never returns.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.resolve import FS_TYPE

_ESCAPE = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo (proc(5))."""

    mount_id: int
    device_minor: int
    mountpoint: str
    fs_type: str


def mounts() -> list[Mount]:
    """All mounts of this mount namespace, in the order in which they were made."""
    found = []
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.rstrip(b"\n").partition(b" - ")
            fields = before.split(b" ")
            path = _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), fields[4])
            minor = int(fields[2].split(b":")[1])
            found.append(Mount(int(fields[0]), minor, os.fsdecode(path), after.split(b" ")[0].decode()))
    return found


def mounted_at(path: str) -> Mount | None:
    """The uppermost mount whose mountpoint is *path* (absolute, without links), if there is one."""
    found = None
    for mount in mounts():
        if mount.mountpoint == path:
            found = mount
    return found


def clive_mount_over(path: str) -> Mount | None:
    """The clivefs mount that *path* (absolute, without links) is, or lies in."""
    best: Mount | None = None
    for mount in mounts():
        inside = path == mount.mountpoint or path.startswith(mount.mountpoint.rstrip("/") + "/")
        if inside and (best is None or len(mount.mountpoint) >= len(best.mountpoint)):
            best = mount
    return best if best is not None and best.fs_type == FS_TYPE else None


def clear_dead_mount(mount: Mount) -> None:
    """Take away a mount whose daemon no longer lives.

    The connection is aborted first: a lazy unmount alone leaves processes waiting for an answer that
    never comes. Raises ClivefsError when the mount is still there afterwards.
    """
    control = f"/sys/fs/fuse/connections/{mount.device_minor}/abort"
    try:
        with open(control, "w") as file:
            file.write("1")
    except OSError:
        _umount(["umount", "-f", mount.mountpoint])
    for command in (["umount", mount.mountpoint], ["fusermount3", "-u", "-z", mount.mountpoint]):
        if mounted_at(mount.mountpoint) is None:
            return
        _umount(command)
    left = mounted_at(mount.mountpoint)
    if left is not None and left.mount_id == mount.mount_id:
        raise ClivefsError(
            "a dead mount is still there",
            place=mount.mountpoint,
            remedy=f"clear it by hand: fusermount3 -uz {mount.mountpoint}",
        )


def _umount(command: list[str]) -> None:
    """Run an unmount command; whether it worked is seen in mountinfo."""
    if shutil.which(command[0]) is not None:
        subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=False)


def detach(mountpoint: str) -> None:
    """Take a living mount out of the tree: nobody new enters, who is inside is still answered."""
    # A user's umount(8) may take a FUSE mount of his own away too, and needs no /etc/mtab for it, as fusermount3 does.
    commands = [["fusermount3", "-u", "-z", mountpoint], ["umount", "-l", mountpoint]]
    for command in reversed(commands) if os.geteuid() == 0 else commands:
        if mounted_at(mountpoint) is None:
            return
        _umount(command)


def users_of(mountpoint: str) -> list[dict[str, int | str]]:
    """The processes that work in a mount: with a file of it open, or their directory or program there.

    Reads links of /proc only, which lead into the mount without touching it.
    """
    inside = (mountpoint, mountpoint.rstrip("/") + "/")
    found: list[dict[str, int | str]] = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            links = [f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"]
            links += [f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd")]
            if any(_leads_to(link, inside) for link in links):
                with open(f"/proc/{pid}/comm") as file:
                    found.append({"pid": int(pid), "command": file.read().strip()})
        except OSError:
            continue  # it ended, or is another user's
    return found


def _leads_to(link: str, inside: tuple[str, str]) -> bool:
    try:
        target = os.readlink(link)
    except OSError:
        return False
    return target == inside[0] or target.startswith(inside[1])
