"""What must hold before a daemon is started: paths are taken apart without touching a dead mount, and the
machine can mount at all. What the daemon itself refuses (a mountpoint in use, say) is not checked twice."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence

from clivefs.base.errors import ClivefsError
from clivefs.cli import locate

FUSE_DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"
FILESYSTEMS = "/proc/filesystems"


def check_not_mounted(path: str) -> None:
    """*path* (absolute) does not lie in a mount of ours, where a workspace, store or mountpoint cannot be."""
    mount = locate.mount_over(path)
    if mount is not None:
        raise ClivefsError(
            f"this lies in a clivefs mount ({mount.mountpoint})",
            place=path,
            remedy="name the real directory, outside the mount; `clivefs status` shows that of each workspace",
        )


def resolve(path: str) -> str:
    """A mountpoint as the kernel names it: links resolved, except that what is mounted there is not touched."""
    if locate.is_mountpoint(path):
        return path
    parent, name = os.path.split(path)
    check_not_mounted(parent)
    real = os.path.join(os.path.realpath(parent), name)
    if locate.is_mountpoint(real):
        return real
    resolved = os.path.realpath(real)
    check_not_mounted(os.path.dirname(resolved))
    return resolved


def workspace_root(path: str) -> str:
    """The real path of a workspace's directory, which must have a `Clive.toml`."""
    check_not_mounted(path)
    root = os.path.realpath(path)
    check_not_mounted(root)
    if not os.path.lexists(root):
        raise ClivefsError("there is no such directory", place=path)
    if not os.path.isdir(root):
        raise ClivefsError("this is not a directory", place=path, remedy="name the directory of a workspace")
    if not os.path.lexists(os.path.join(root, locate.CONFIG_NAME)):
        raise ClivefsError(
            f"there is no {locate.CONFIG_NAME} here", place=path, remedy=f"make one: clivefs init {path}"
        )
    return root


def check_store(store: str, roots: Sequence[str]) -> None:
    """The store is neither in a mount of ours nor in a workspace, which would show and record itself.

    Checked here because the daemon's log lies in the store.
    """
    mount = locate.mount_over(store)
    if mount is not None:
        raise ClivefsError(
            f"the store lies in a clivefs mount ({mount.mountpoint})", place=store, remedy="choose another with --store"
        )
    for root in roots:
        if store == root or store.startswith(root.rstrip("/") + "/"):
            raise ClivefsError(
                f"the store lies in the workspace {root}", place=store, remedy="choose another with --store"
            )


def check_not_alive(mountpoint: str) -> None:
    """If a clivefs is mounted there, its daemon has died. It may be one of another store, which we cannot ask."""
    if locate.is_mountpoint(mountpoint) and locate.answers(mountpoint):
        raise ClivefsError(
            "a clivefs of another store or user is mounted there",
            place=mountpoint,
            remedy="choose another mountpoint with --at, or name its store with --store",
        )


def privileged(command: str) -> str:
    """*command* as this user can type it. Root needs no `sudo`, and a bare machine has none."""
    return command if os.geteuid() == 0 else f"sudo {command}"


def check_machine(*, allow_other: bool) -> None:
    """This user can mount FUSE filesystems here."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise _no_device(error) from None
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise ClivefsError("fusermount3 is not installed", remedy="sudo apt-get install fuse3")
    if allow_other and not others_allowed():
        raise ClivefsError(
            "--allow-other is not permitted to users on this machine",
            place=FUSE_CONF,
            remedy=f"echo user_allow_other | sudo tee -a {FUSE_CONF}",
        )


def _no_device(error: OSError) -> ClivefsError:
    if error.errno not in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        message = f"the device cannot be opened: {error.strerror}"
        # No mode keeps root out: then it is a container's rule.
        remedy = None if os.geteuid() == 0 else f"let users open it: sudo chmod 666 {FUSE_DEVICE}"
    elif _kernel_knows_fuse():
        message = "there is no such device, though the kernel has FUSE"
        remedy = f"make it: {privileged(f'mknod -m 666 {FUSE_DEVICE} c 10 229')}"
    else:
        message = "there is no such device"
        remedy = f"load the kernel module: {privileged('modprobe fuse')}"
    container = "a container needs: --device /dev/fuse --cap-add SYS_ADMIN"
    remedy = container if remedy is None else f"{remedy} ({container})"
    return ClivefsError(message, place=FUSE_DEVICE, remedy=remedy)


def _kernel_knows_fuse() -> bool:
    try:
        with open(FILESYSTEMS, encoding="ascii", errors="replace") as file:
            return any(line.split()[-1:] == ["fuse"] for line in file)
    except OSError:
        return False


def others_allowed() -> bool:
    """/etc/fuse.conf lets users mount for others."""
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False
