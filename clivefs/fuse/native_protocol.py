"""The messages of the `/dev/fuse` protocol that we speak: numbers, layouts, and replies as bytes.

Names, numbers and layouts are those of the kernel's `linux/fuse.h` at protocol 7.34 (Linux 5.15). All of it is in the
byte order of the machine.
"""

from __future__ import annotations

import stat
from struct import Struct

from clivefs.fuse.operations import Entry, Statfs
from clivefs.mounts.tree import Attr, SetAttr

MAJOR = 7
MINOR = 34
MINOR_MIN = 23
"""From here on the reply to INIT has the length that we send."""
MAX_WRITE = 1 << 20
MAX_PAGES = 256

LOOKUP = 1
FORGET = 2
GETATTR = 3
SETATTR = 4
READLINK = 5
SYMLINK = 6
MKNOD = 8
MKDIR = 9
UNLINK = 10
RMDIR = 11
RENAME = 12
LINK = 13
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
SETXATTR = 21
GETXATTR = 22
LISTXATTR = 23
REMOVEXATTR = 24
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
FSYNCDIR = 30
CREATE = 35
INTERRUPT = 36
DESTROY = 38
BATCH_FORGET = 42
READDIRPLUS = 44
RENAME2 = 45

ASYNC_READ = 1 << 0
ATOMIC_O_TRUNC = 1 << 3
BIG_WRITES = 1 << 5
AUTO_INVAL_DATA = 1 << 12
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
PARALLEL_DIROPS = 1 << 18
MAX_PAGES_FLAG = 1 << 22
HANDLE_KILLPRIV_V2 = 1 << 28
"""We take set-user-ID, set-group-ID and capabilities off files that are written, cut or given away, when told to. The
kernel then need not ask for `security.capability` before each WRITE."""

FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3

FATTR_MODE = 1 << 0
FATTR_UID = 1 << 1
FATTR_GID = 1 << 2
FATTR_SIZE = 1 << 3
FATTR_ATIME = 1 << 4
FATTR_MTIME = 1 << 5
FATTR_FH = 1 << 6
FATTR_KILL_SUIDGID = 1 << 11

OPEN_KILL_SUIDGID = 1 << 0
WRITE_KILL_SUIDGID = 1 << 2

FSYNC_FDATASYNC = 1

NOTIFY_INVAL_INODE = 2
NOTIFY_INVAL_ENTRY = 3

IN_HEADER = Struct("=IIQQIIIHH")
"""len, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding"""
OUT_HEADER = Struct("=IiQ")
"""len, error, unique"""
INIT_IN = Struct("=IIII")
"""major, minor, max_readahead, flags"""
INIT_OUT = Struct("=IIIIHHIIHHI28x")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran, max_pages, ..."""
SETATTR_IN = Struct("=I4xQQ8xqqqIIIII2I4x")
"""valid, fh, size, atime, mtime, ctime, their nanoseconds, mode, unused, uid, gid"""
MKNOD_IN = Struct("=IIII")
"""mode, rdev, umask, padding"""
MKDIR_IN = Struct("=II")
"""mode, umask"""
CREATE_IN = Struct("=IIII")
"""flags, mode, umask, open_flags"""
RENAME2_IN = Struct("=QI4x")
"""newdir, flags"""
READ_IN = Struct("=QQI")
"""fh, offset, size, and more that we do not need"""
WRITE_IN = Struct("=QQII8xI4x")
"""fh, offset, size, write_flags, flags"""
FSYNC_IN = Struct("=QI4x")
"""fh, fsync_flags"""
OPEN_IN = Struct("=II")
"""flags, open_flags"""
XATTR_IN = Struct("=II")
"""size, flags"""
BATCH_FORGET_IN = Struct("=I4x")
FORGET_ONE = Struct("=QQ")
"""nodeid, nlookup"""
U64 = Struct("=Q")
OPEN_OUT = Struct("=QI4x")
"""fh, open_flags"""
SIZE_OUT = Struct("=I4x")
"""The reply to WRITE, and to a question for the size of extended attributes."""
DIRENT = Struct("=QQII")
"""ino, off, namelen, type; then the name, padded to 8 bytes"""
INVAL_INODE_OUT = Struct("=Qqq")
"""ino, off, len"""
INVAL_ENTRY_OUT = Struct("=QII")
"""parent, namelen, flags; then the name and a NUL"""

_ENTRY_OUT = Struct("=QQQQII" + "QQQqqq" + "IIIIIIIIII")
"""nodeid, generation, entry_valid, attr_valid, their nanoseconds; then `struct fuse_attr`"""
_STATFS_OUT = Struct("=QQQQQIII28x")
ENTRY_SIZE = _ENTRY_OUT.size
NO_ENTRY = bytes(ENTRY_SIZE)
"""Of `.` and `..` in a READDIRPLUS nothing is told, nor of a name whose attributes cannot be had."""
UNKNOWN_INO = 0xFFFFFFFF
"""The d_ino of a name whose file is not known, as in libfuse: to many programs 0 says that it was removed."""
_ATTR_OFFSET = 40
_BLOCK_BYTES = 4096
_NS = 1_000_000_000
_U32 = 0xFFFFFFFF


def entry_out(entry: Entry) -> bytes:
    """`struct fuse_entry_out`. Kept with the attributes: those of an unchanged file are the same object."""
    nodeid, attr, entry_s, attr_s = entry
    if attr is None:
        return _entry_bytes(nodeid, Attr(0, 0, 0, uid=0, gid=0, nlink=0), entry_s, attr_s)
    kept = attr.reply
    if type(kept) is tuple and kept[0] == nodeid and kept[1] == entry_s and kept[2] == attr_s:
        data: bytes = kept[3]
        return data
    data = _entry_bytes(nodeid, attr, entry_s, attr_s)
    attr.reply = (nodeid, entry_s, attr_s, data)
    return data


def _entry_bytes(nodeid: int, attr: Attr, entry_s: float, attr_s: float) -> bytes:
    atime, atime_ns = divmod(attr.atime_ns, _NS)
    mtime, mtime_ns = divmod(attr.mtime_ns, _NS)
    ctime, ctime_ns = divmod(attr.ctime_ns, _NS)
    return _ENTRY_OUT.pack(
        nodeid,
        0,
        int(entry_s),
        int(attr_s),
        int(entry_s % 1 * _NS),
        int(attr_s % 1 * _NS),
        nodeid,
        attr.size,
        attr.blocks,
        atime,
        mtime,
        ctime,
        atime_ns,
        mtime_ns,
        ctime_ns,
        attr.mode,
        attr.nlink,
        attr.uid & _U32,
        attr.gid & _U32,
        attr.rdev & _U32,
        _BLOCK_BYTES,
        0,
    )


def attr_out(entry: Entry) -> bytes:
    """`struct fuse_attr_out`: attr_valid, its nanoseconds, padding, `struct fuse_attr`."""
    data = entry_out(entry)
    return data[24:32] + data[36:40] + b"\0\0\0\0" + data[_ATTR_OFFSET:]


def dirent(name: bytes, number: int, mode: int, position: int) -> bytes:
    """`struct fuse_dirent` with its name and padding. Number and mode are 0 where they are not known."""
    length = len(name)
    header = DIRENT.pack(number or UNKNOWN_INO, position, length, stat.S_IFMT(mode) >> 12)
    return header + name + b"\0" * (-length & 7)


def dirent_size(name: bytes) -> int:
    return (DIRENT.size + len(name) + 7) & ~7


def set_attr(body: bytes) -> tuple[SetAttr, int | None, bool]:
    """What a SETATTR asks for, the open file that it goes through, and whether the file's set-user-ID must go. A time
    "now" is what the kernel says it is."""
    valid, handle, size, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid = SETATTR_IN.unpack_from(body)
    change = SetAttr(
        mode=mode & 0o7777 if valid & FATTR_MODE else None,
        uid=uid if valid & FATTR_UID else None,
        gid=gid if valid & FATTR_GID else None,
        size=size if valid & FATTR_SIZE else None,
        atime_ns=atime * _NS + atime_ns if valid & FATTR_ATIME else None,
        mtime_ns=mtime * _NS + mtime_ns if valid & FATTR_MTIME else None,
    )
    return change, handle if valid & FATTR_FH else None, bool(valid & FATTR_KILL_SUIDGID)


def statfs_out(space: Statfs) -> bytes:
    return _STATFS_OUT.pack(
        space.blocks,
        space.blocks_free,
        space.blocks_available,
        space.files,
        space.files_free,
        space.block_bytes,
        255,
        space.fragment_bytes,
    )
