"""The Linux calls that Python's standard library lacks: renameat2, statx mount ids, inotify, syncfs.

Every wrapper raises `OSError` with the kernel's errno. Constants are from the kernel's uapi headers
(`linux/fs.h`, `linux/stat.h`, `linux/inotify.h`).
"""

from __future__ import annotations

import ctypes
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
CLOCK_REALTIME_COARSE = 5
RENAME_EXCHANGE = 2

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EMPTY_PATH = 0x1000
_STATX_MNT_ID = 0x1000
_STATX_BTIME = 0x800
_STATX_SIZE = 256
_STX_MNT_ID_OFFSET = 0x90
_STX_BTIME_OFFSET = 0x50

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_DELETE_SELF = 0x400
IN_MOVE_SELF = 0x800
IN_UNMOUNT = 0x2000
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000
IN_DONT_FOLLOW = 0x2000000
IN_EXCL_UNLINK = 0x4000000
IN_ISDIR = 0x40000000

_INOTIFY_HEADER = struct.Struct("=iIII")


def make_directories(path: str, mode: int = 0o700) -> None:
    """Make the directory *path* and those above it that are missing, all of them with *mode*, where `os.makedirs`
    gives it to the last alone: with the daemon's umask of 0 the others would be everybody's."""
    if os.path.isdir(path):
        return
    above = os.path.dirname(path.rstrip("/"))
    if above and above != path:
        make_directories(above, mode)
    try:
        os.mkdir(path, mode)
    except FileExistsError:
        if not os.path.isdir(path):
            raise


def _check(result: int, path: bytes | None = None) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), path)
    return result


_renameat2 = _libc.renameat2
_renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]


def rename_at(src_dir_fd: int, src: bytes, dst_dir_fd: int, dst: bytes, flags: int = 0) -> None:
    """renameat2(2): rename *src* to *dst*, with RENAME_NOREPLACE or RENAME_EXCHANGE in *flags*."""
    if not flags:
        os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)
        return
    _check(_renameat2(src_dir_fd, src, dst_dir_fd, dst, flags), src)


_statx = _libc.statx
_statx.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_void_p]


def mount_id(fd: int) -> int:
    """The id, as in /proc/self/mountinfo, of the mount that the open file *fd* (O_PATH will do) lies in."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _check(_statx(fd, b"", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, _STATX_MNT_ID, buffer))
    (value,) = struct.unpack_from("=Q", buffer, _STX_MNT_ID_OFFSET)
    return int(value)


def birth_ns(fd: int) -> int | None:
    """When the file behind *fd* (O_PATH will do) was made, in nanoseconds since the epoch; None where its
    filesystem does not say."""
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    _check(_statx(fd, b"", AT_EMPTY_PATH | AT_SYMLINK_NOFOLLOW, _STATX_BTIME, buffer))
    (known,) = struct.unpack_from("=I", buffer)
    if not known & _STATX_BTIME:
        return None
    seconds, nanoseconds = struct.unpack_from("=qI", buffer, _STX_BTIME_OFFSET)
    return int(seconds * 1_000_000_000 + nanoseconds)


_syncfs = _libc.syncfs
_syncfs.argtypes = [ctypes.c_int]


def sync_fs(fd: int) -> None:
    """syncfs(2): write the whole filesystem of *fd* to disk."""
    _check(_syncfs(fd))


_inotify_init1 = _libc.inotify_init1
_inotify_init1.argtypes = [ctypes.c_int]
_inotify_add_watch = _libc.inotify_add_watch
_inotify_add_watch.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32]
_inotify_rm_watch = _libc.inotify_rm_watch
_inotify_rm_watch.argtypes = [ctypes.c_int, ctypes.c_int]


def inotify_open() -> int:
    """A new non-blocking, close-on-exec inotify descriptor."""
    return _check(_inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))


def inotify_add(fd: int, path: bytes, mask: int) -> int:
    """Watch *path*; the watch descriptor. Raises OSError(ENOSPC) when the user's watches ran out."""
    return _check(_inotify_add_watch(fd, path, mask), path)


def inotify_remove(fd: int, watch: int) -> None:
    """End a watch."""
    _check(_inotify_rm_watch(fd, watch))


def inotify_parse(data: bytes) -> list[tuple[int, int, int, bytes]]:
    """The events of one read of an inotify descriptor: (watch, mask, cookie, name)."""
    events: list[tuple[int, int, int, bytes]] = []
    offset = 0
    while offset < len(data):
        watch, mask, cookie, length = _INOTIFY_HEADER.unpack_from(data, offset)
        offset += _INOTIFY_HEADER.size
        name = data[offset : offset + length].rstrip(b"\0")
        offset += length
        events.append((watch, mask, cookie, name))
    return events
