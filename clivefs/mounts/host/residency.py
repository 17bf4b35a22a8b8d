"""Reading what is in memory, and nothing else: the loop must not wait for a disk.

`RWF_NOWAIT` says it best, but not every filesystem knows it (overlayfs and tmpfs do not, and no network filesystem).
There mincore(2) tells which pages are in memory, where that is worth something: on a filesystem of this machine, which
asks nobody before it answers from memory, and for a file of ours, since of others' mincore says that all is there.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os

_RWF_NOWAIT = getattr(os, "RWF_NOWAIT", 8)
_PAGE = mmap.PAGESIZE
_MAP_FAILED = ctypes.c_void_p(-1).value
_STATFS_BYTES = 256
_LOCAL = frozenset(
    {
        0x01021994,  # tmpfs
        0x858458F6,  # ramfs
        0x794C7630,  # overlayfs
        0xEF53,  # ext2, ext3, ext4
        0x58465342,  # xfs
        0x9123683E,  # btrfs
        0xF2F52010,  # f2fs
        0xCA451A4E,  # bcachefs
        0x73717368,  # squashfs
        0xE0F5E1E2,  # erofs
        0x9660,  # iso9660
        0x15013346,  # udf
        0x4D44,  # vfat
        0x2011BAB0,  # exfat
        0x7366746E,  # ntfs3
        0x482B,  # hfsplus
    }
)
"""`f_type` of filesystems whose reads of pages in memory wait for nothing: `linux/magic.h`."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]


class CannotTell(Exception):
    """The filesystem does not know RWF_NOWAIT."""


def read_nowait(fd: int, offset: int, size: int) -> bytes | None:
    """What pread(2) would give, if it is in memory; None if the disk would have to be waited for. CannotTell."""
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, _RWF_NOWAIT)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            raise CannotTell from None
        raise
    if count == size:
        return bytes(buffer)
    # Short: the end of the file, or the rest is not in memory.
    return None if count and offset + count < os.fstat(fd).st_size else bytes(buffer[:count])


def is_answerable(fd: int) -> bool:
    """Whether `is_resident` of this open file can be believed."""
    st = os.fstat(fd)
    if st.st_uid != os.geteuid() and os.geteuid() != 0:
        return False
    buffer = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, buffer) != 0:
        return False
    kind = ctypes.c_ulong.from_buffer(buffer).value & 0xFFFFFFFF
    return kind in _LOCAL


def is_resident(fd: int, offset: int, size: int) -> bool:
    """Whether all of these bytes that the file has are in memory."""
    end = min(offset + size, os.fstat(fd).st_size)
    if end <= offset:
        return True
    start = offset - offset % _PAGE
    length = end - start
    address = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, start)
    if address == _MAP_FAILED:
        return False
    pages = (length + _PAGE - 1) // _PAGE
    there = ctypes.create_string_buffer(pages)
    try:
        return _libc.mincore(address, length, there) == 0 and 0 not in there.raw
    finally:
        _libc.munmap(address, length)
