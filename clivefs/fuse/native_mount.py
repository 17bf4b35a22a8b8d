"""Mounting without libfuse: mount(2) where we may, else through the set-user-ID program fusermount3."""

from __future__ import annotations

import array
import contextlib
import ctypes
import errno
import os
import select
import socket
import stat
import subprocess

_DEVICE = "/dev/fuse"
_TYPE = "fuse.clivefs"
_SOURCE = "clivefs"
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_NOATIME = 1024
_MNT_DETACH = 2
_UMOUNT_S = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]


def mount(mountpoint: str, *, allow_other: bool) -> int:
    """Mount at *mountpoint*; the non-blocking descriptor that requests are read from. RuntimeError says why not."""
    if os.geteuid() == 0:
        fd = _mount_directly(mountpoint, allow_other)
        if fd is not None:
            return fd
    return _mount_by_program(mountpoint, allow_other)


def _mount_directly(mountpoint: str, allow_other: bool) -> int | None:
    """As `mount`; None where we lack the right to."""
    try:
        root_mode = stat.S_IFMT(os.stat(mountpoint).st_mode)
        fd = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise RuntimeError(f"{error.filename}: {error.strerror}") from None
    options = f"fd={fd},rootmode={root_mode:o},user_id={os.geteuid()},group_id={os.getegid()},default_permissions"
    if allow_other:
        options += ",allow_other"
    flags = _MS_NOSUID | _MS_NODEV | _MS_NOATIME
    words = (_SOURCE.encode(), os.fsencode(mountpoint), _TYPE.encode())
    if _libc.mount(*words, flags, options.encode()) == 0:
        return fd
    code = ctypes.get_errno()
    os.close(fd)
    if code == errno.EPERM:
        return None
    raise RuntimeError(f"mount: {os.strerror(code)}")


def _mount_by_program(mountpoint: str, allow_other: bool) -> int:
    """As `mount`, by fusermount3, which sends the descriptor through a socket named in its environment."""
    options = f"fsname={_SOURCE},subtype=clivefs,default_permissions,nosuid,nodev,noatime"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            try:
                done = subprocess.run(
                    ["fusermount3", "-o", options, "--", mountpoint],
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    check=False,
                )
            except OSError as error:
                raise RuntimeError(f"fusermount3: {error.strerror}") from None
        if done.returncode != 0:
            said = done.stderr.decode(errors="replace").strip()
            raise RuntimeError(said or f"fusermount3 exited with {done.returncode}")
        fd = _received(ours)
    os.set_blocking(fd, False)
    return fd


def _received(ours: socket.socket) -> int:
    fds = array.array("i")
    _, ancillary, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(fds.itemsize), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(data[: fds.itemsize])
            return fds[0]
    raise RuntimeError("fusermount3 sent no descriptor")


def unmount(mountpoint: str, fd: int) -> None:
    """Close *fd*, and take the mount that it serves away if it is still there."""
    poll = select.poll()
    poll.register(fd, 0)
    gone = any(event & select.POLLERR for _, event in poll.poll(0))
    os.close(fd)  # first: what waits for an answer gets an error instead
    if not gone:
        take_away(mountpoint)


def take_away(mountpoint: str) -> None:
    """Take the mount away, if it is still there: it may be detached, and kept alive by who is in it."""
    if os.geteuid() == 0 and _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH) == 0:
        return
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            ["fusermount3", "-u", "-q", "-z", "--", mountpoint],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_UMOUNT_S,
            check=False,
        )
