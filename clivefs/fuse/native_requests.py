"""The kernel's requests as messages: each is decoded, asked of `Operations`, and its answer encoded.

Nothing here reads or writes the device (`fuse/native.py` does) and nothing waits.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import trio

from clivefs.fuse import native_protocol as wire
from clivefs.fuse.listing import DOTS
from clivefs.fuse.operations import Entry, Opened, Operations
from clivefs.fuse.waiting import Writes
from clivefs.mounts.tree import Owner

log = logging.getLogger(__name__)

_BACKGROUND = 128
"""Read-aheads under way at once: those of a dead network must not keep out the others."""
_WANTED = (
    wire.ASYNC_READ
    | wire.ATOMIC_O_TRUNC
    | wire.BIG_WRITES
    | wire.AUTO_INVAL_DATA
    | wire.DO_READDIRPLUS
    | wire.READDIRPLUS_AUTO
    | wire.PARALLEL_DIROPS
    | wire.MAX_PAGES_FLAG
    | wire.HANDLE_KILLPRIV_V2
)
_XATTR_CREATE = 1
_XATTR_REPLACE = 2


class Later(NamedTuple):
    """An answer that a thread has to make."""

    call: Callable[[], Any]
    answer: Callable[[Any], bytes]
    limiter: trio.CapacityLimiter | None = None


Handler = Callable[[int, bytes, int, int], bytes | Later | None]
"""(nodeid, body, uid, gid) to the body of the reply; None for a message that wants none."""

FOR_THE_APPLIER = (
    wire.LOOKUP,
    wire.MKNOD,
    wire.MKDIR,
    wire.SYMLINK,
    wire.LINK,
    wire.UNLINK,
    wire.RMDIR,
    wire.RENAME,
    wire.RENAME2,
    wire.SETATTR,
    wire.CREATE,
    wire.OPEN,
)
"""What `fuse.applied` answers."""


class Requests:
    """What answers each opcode. A handler raises OSError, or Blocked as `Operations` does, to be called again."""

    def __init__(self, operations: Operations) -> None:
        self._ops = operations
        self._writes = Writes()
        self.handlers: dict[int, Handler] = {
            wire.LOOKUP: self._lookup,
            wire.FORGET: self._forget,
            wire.BATCH_FORGET: self._batch_forget,
            wire.GETATTR: self._getattr,
            wire.SETATTR: self._setattr,
            wire.READLINK: self._readlink,
            wire.SYMLINK: self._symlink,
            wire.MKNOD: self._mknod,
            wire.MKDIR: self._mkdir,
            wire.UNLINK: self._unlink,
            wire.RMDIR: self._rmdir,
            wire.RENAME: self._rename,
            wire.RENAME2: self._rename2,
            wire.LINK: self._link,
            wire.OPEN: self._open,
            wire.CREATE: self._create,
            wire.READ: self._read,
            wire.WRITE: self._write,
            wire.STATFS: self._statfs,
            wire.RELEASE: self._release,
            wire.FLUSH: self._flush,
            wire.FSYNC: self._fsync,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.SETXATTR: self._setxattr,
            wire.REMOVEXATTR: self._removexattr,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.READDIRPLUS: self._readdirplus,
            wire.RELEASEDIR: self._releasedir,
            wire.FSYNCDIR: self._fsyncdir,
            wire.INIT: self._init,
            wire.DESTROY: self._nothing,
        }

    # The session

    def _init(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        major, minor, max_readahead, flags = wire.INIT_IN.unpack_from(body)
        if major != wire.MAJOR or minor < wire.MINOR_MIN:
            log.error("the kernel speaks FUSE protocol %d.%d, which we do not", major, minor)
            raise OSError(errno.EPROTO, os.strerror(errno.EPROTO))
        return wire.INIT_OUT.pack(
            wire.MAJOR,
            wire.MINOR,
            max_readahead,
            flags & _WANTED,
            _BACKGROUND,
            _BACKGROUND * 3 // 4,
            wire.MAX_WRITE if flags & wire.MAX_PAGES_FLAG else 32 * 4096,
            1,
            wire.MAX_PAGES,
            0,
            0,
        )

    def _nothing(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return b""

    def _statfs(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return wire.statfs_out(self._ops.statfs())

    # Names

    def _lookup(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return wire.entry_out(self._ops.lookup(nodeid, body[:-1]))

    def _forget(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        self._ops.forget(nodeid, wire.U64.unpack_from(body)[0])

    def _batch_forget(self, nodeid: int, body: bytes, uid: int, gid: int) -> None:
        (count,) = wire.BATCH_FORGET_IN.unpack_from(body)
        start = wire.BATCH_FORGET_IN.size
        for each, lookups in wire.FORGET_ONE.iter_unpack(body[start : start + count * wire.FORGET_ONE.size]):
            try:
                self._ops.forget(each, lookups)
            except Exception:
                log.exception("forgetting inode %d failed", each)

    def _mknod(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        mode, rdev, _, _ = wire.MKNOD_IN.unpack_from(body)
        name = body[wire.MKNOD_IN.size : -1]
        return wire.entry_out(self._ops.mknod(nodeid, name, mode, rdev, Owner(uid, gid)))

    def _mkdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        mode, _ = wire.MKDIR_IN.unpack_from(body)
        return wire.entry_out(self._ops.mkdir(nodeid, body[wire.MKDIR_IN.size : -1], mode, Owner(uid, gid)))

    def _symlink(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        name, target, _ = body.split(b"\0")
        return wire.entry_out(self._ops.symlink(nodeid, name, target, Owner(uid, gid)))

    def _link(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        (old,) = wire.U64.unpack_from(body)
        return wire.entry_out(self._ops.link(old, nodeid, body[wire.U64.size : -1]))

    def _unlink(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.unlink(nodeid, body[:-1])
        return b""

    def _rmdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.rmdir(nodeid, body[:-1])
        return b""

    def _rename(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        (new_parent,) = wire.U64.unpack_from(body)
        name, new_name, _ = body[wire.U64.size :].split(b"\0")
        self._ops.rename(nodeid, name, new_parent, new_name, 0)
        return b""

    def _rename2(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        new_parent, flags = wire.RENAME2_IN.unpack_from(body)
        name, new_name, _ = body[wire.RENAME2_IN.size :].split(b"\0")
        self._ops.rename(nodeid, name, new_parent, new_name, flags)
        return b""

    def _readlink(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return self._ops.readlink(nodeid)

    # Attributes

    def _getattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        return wire.attr_out(self._ops.getattr(nodeid))

    def _setattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        change, handle, drop = wire.set_attr(body)
        return wire.attr_out(self._ops.setattr(nodeid, change, handle, drop_privileges=drop))

    def _getxattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        (size, _) = wire.XATTR_IN.unpack_from(body)
        return _fitting(self._ops.getxattr(nodeid, body[wire.XATTR_IN.size : -1]), size)

    def _listxattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        (size, _) = wire.XATTR_IN.unpack_from(body)
        return _fitting(b"".join(name + b"\0" for name in self._ops.listxattr(nodeid)), size)

    def _setxattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        size, flags = wire.XATTR_IN.unpack_from(body)
        end = body.index(b"\0", wire.XATTR_IN.size)
        name = body[wire.XATTR_IN.size : end]
        if flags & (_XATTR_CREATE | _XATTR_REPLACE):
            self._check_xattr(nodeid, name, flags)
        self._ops.setxattr(nodeid, name, body[end + 1 : end + 1 + size])
        return b""

    def _check_xattr(self, nodeid: int, name: bytes, flags: int) -> None:
        try:
            self._ops.getxattr(nodeid, name)
        except OSError as error:
            if error.errno != errno.ENODATA or flags & _XATTR_REPLACE:
                raise
        else:
            if flags & _XATTR_CREATE:
                raise OSError(errno.EEXIST, os.strerror(errno.EEXIST))

    def _removexattr(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.removexattr(nodeid, body[:-1])
        return b""

    # Files

    def _open(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        flags, more = wire.OPEN_IN.unpack_from(body)
        return _open_out(self._ops.open(nodeid, flags, drop_privileges=bool(more & wire.OPEN_KILL_SUIDGID)))

    def _create(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        flags, mode, _, _ = wire.CREATE_IN.unpack_from(body)
        name = body[wire.CREATE_IN.size : -1]
        opened, entry = self._ops.create(nodeid, name, mode, flags, Owner(uid, gid))
        return wire.entry_out(entry) + _open_out(opened)

    def _read(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes | Later:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        data = self._ops.read_at_once(handle, offset, size)
        return data if data is not None else Later(partial(self._ops.read, handle, offset, size), bytes)

    def _write(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes | Later:
        handle, offset, size, flags, _ = wire.WRITE_IN.unpack_from(body)
        data = body[wire.WRITE_IN.size : wire.WRITE_IN.size + size]
        drop = flags & wire.WRITE_KILL_SUIDGID != 0
        if self._writes.in_thread():
            call = partial(self._ops.write, handle, offset, bytes(data), drop_privileges=drop)
            return Later(call, wire.SIZE_OUT.pack, self._writes.limiter)
        written = self._writes.at_once(partial(self._ops.write, handle, offset, data, drop_privileges=drop))
        return wire.SIZE_OUT.pack(written)

    def _flush(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.flush(wire.U64.unpack_from(body)[0])
        return b""

    def _release(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.release(wire.U64.unpack_from(body)[0])
        return b""

    def _fsync(self, nodeid: int, body: bytes, uid: int, gid: int) -> Later:
        handle, flags = wire.FSYNC_IN.unpack_from(body)
        return Later(self._ops.fsync(handle, bool(flags & wire.FSYNC_FDATASYNC)), _empty)

    # Directories

    def _opendir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        handle, kept, trusted = self._ops.opendir_kept(nodeid)
        flags = (wire.FOPEN_CACHE_DIR if kept else 0) | (wire.FOPEN_KEEP_CACHE if trusted else 0)
        return wire.OPEN_OUT.pack(handle, flags)

    def _readdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        parts: list[bytes] = []

        def add(name: bytes, number: int, mode: int, position: int) -> bool:
            nonlocal size
            size -= wire.dirent_size(name)
            if size < 0:
                return False
            parts.append(wire.dirent(name, number, mode, position))
            return True

        self._ops.readdir_names(handle, offset, add)
        return b"".join(parts)

    def _readdirplus(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        parts: list[bytes] = []

        def add(name: bytes, entry: Entry, position: int) -> bool:
            nonlocal size
            size -= wire.ENTRY_SIZE + wire.dirent_size(name)
            if size < 0:
                return False
            parts.append(wire.NO_ENTRY if name in DOTS or not entry.nodeid else wire.entry_out(entry))
            mode = entry.attr.mode if entry.attr is not None else 0
            parts.append(wire.dirent(name, entry.nodeid, mode, position))
            return True

        self._ops.readdir(handle, offset, add)
        return b"".join(parts)

    def _releasedir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.releasedir(wire.U64.unpack_from(body)[0])
        return b""

    def _fsyncdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> Later:
        return Later(self._ops.fsyncdir(wire.U64.unpack_from(body)[0]), _empty)


def _empty(_: object) -> bytes:
    return b""


def _open_out(opened: Opened) -> bytes:
    flags = wire.FOPEN_KEEP_CACHE if opened.keep_cache else 0
    return wire.OPEN_OUT.pack(opened.handle, flags | wire.FOPEN_DIRECT_IO if opened.direct_io else flags)


def _fitting(value: bytes, size: int) -> bytes:
    """The value of extended attributes for a caller with room for *size* bytes; its length for one that asks for it."""
    if size == 0:
        return wire.SIZE_OUT.pack(len(value))
    if size < len(value):
        raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
    return value
