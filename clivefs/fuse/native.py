"""Our own driver of the `/dev/fuse` protocol: a request is read, answered and written in one span.

One task reads the device and answers at once what is in memory; only what has to wait (the network, the disk)
becomes a task of its own. Against libfuse it saves system calls and a task switch a request, and it can ask for
what pyfuse3 cannot: that the kernel keeps listings (FOPEN_CACHE_DIR).

A kept listing is dropped by the kernel when a name is made or removed through the mount, when `invalidate_inode`
tells it to, and when the directory's mtime is another (AUTO_INVAL_DATA). It holds names and inode numbers only.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import trio

from clivefs.base.errors import ClivefsError
from clivefs.fuse import native_mount
from clivefs.fuse import native_protocol as wire
from clivefs.fuse.operations import Entry, Opened, Operations
from clivefs.mounts.tree import Blocked, Owner

log = logging.getLogger(__name__)

_WORKERS = 128
"""Jobs under way at once that wait for the network."""
_RETRIES_MAX = 16
_SLOW_S = 0.005
_SLOW_WRITES = 64
_BURST_S = 0.004
"""For how long requests are answered before other tasks of the daemon get their turn."""
_LINGER_S = 0.0002
"""How long the next request is waited for before the loop turns."""
_SELECT_FDS_MAX = 1024
"""select(2) takes no higher descriptor."""
_ERRNO_MAX = 511
"""The kernel takes a higher number for a malformed reply."""
_BUFFER = wire.MAX_WRITE + 8192
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
)
_KILLED_LOOK_S = 0.2
_SIGKILL_BIT = 1 << 8
_XATTR_CREATE = 1
_XATTR_REPLACE = 2


class _Later(NamedTuple):
    """An answer that a thread has to make."""

    call: Callable[[], Any]
    answer: Callable[[Any], bytes]


Handler = Callable[[int, bytes, int, int], bytes | _Later | None]
"""(nodeid, body, uid, gid) to the body of the reply; None for a message that wants none."""


class NativeTransport:
    """One mount. `mount`, then `serve` in a trio task, `invalidate_*` from any thread but the loop's."""

    def __init__(self, operations: Operations) -> None:
        self._ops = operations
        self._fd = -1
        self._mountpoint: str | None = None
        self._reading = trio.CancelScope()
        self._slow_jobs = trio.CapacityLimiter(_WORKERS)
        self._slow_writes = 0
        self._waiting: dict[int, tuple[trio.CancelScope, int]] = {}
        """Requests that may be given up, by their number, and the threads that made them."""
        self._nursery: trio.Nursery | None = None
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._handlers: dict[int, Handler] = {
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

    # The mount

    def mount(self, mountpoint: str, *, allow_other: bool) -> None:
        """Mount at *mountpoint*. Raises RuntimeError when that is refused."""
        self._fd = native_mount.mount(mountpoint, allow_other=allow_other)
        self._mountpoint = mountpoint

    def unmount(self) -> None:
        """Take the mount away, if it is still there."""
        if self._mountpoint is not None:
            mountpoint, self._mountpoint = self._mountpoint, None
            fd, self._fd = self._fd, -1
            native_mount.unmount(mountpoint, fd)

    def stop(self) -> None:
        """Let `serve` return when what is under way has been answered; from the loop's thread."""
        self._reading.cancel()

    async def serve(self) -> None:
        """Answer requests until the mount ends, from outside or by `stop`."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            with self._reading:
                await self._answer_all()
                nursery.cancel_scope.cancel()  # the mount is gone: nobody waits any more

    async def _answer_all(self) -> None:
        """Read and answer until the mount is gone.

        Whoever asks one thing mostly asks the next as soon as he has his answer: looking for that a moment
        longer is cheaper than a turn of the loop, which costs as much as answering. The loop's other tasks
        get their turn when nobody asks, and every few milliseconds at the latest.
        """
        fd, buffers, clock = self._fd, [self._buffer], time.perf_counter
        linger = _LINGER_S if fd < _SELECT_FDS_MAX else None
        turned = clock()
        while True:
            if clock() - turned > _BURST_S:
                await trio.lowlevel.checkpoint()
                turned = clock()
            try:
                count = os.readv(fd, buffers)
            except BlockingIOError:
                if linger is None or not select.select((fd,), (), (), linger)[0]:
                    await trio.lowlevel.wait_readable(fd)
                    turned = clock()
                continue
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.ENOENT, errno.EINTR):
                    continue  # the request was taken back
                raise
            self._answer(count)

    # One request

    def _answer(self, count: int) -> None:
        _, opcode, unique, nodeid, uid, gid, pid, _, _ = wire.IN_HEADER.unpack_from(self._buffer)
        body = self._view[wire.IN_HEADER.size : count].tobytes()
        handler = self._handlers.get(opcode)
        if handler is None:
            if opcode == wire.INTERRUPT:
                self._interrupt(body)
            else:
                self._refuse(unique, errno.ENOSYS)
            return
        try:
            answer = handler(nodeid, body, uid, gid)
        except Blocked as blocked:
            assert self._nursery is not None
            self._nursery.start_soon(
                self._finish, opcode, unique, pid, partial(handler, nodeid, body, uid, gid), blocked
            )
        except OSError as error:
            self._refuse(unique, error.errno)
        except Exception:
            log.exception("request %d failed", opcode)
            self._refuse(unique, errno.EIO)
        else:
            if type(answer) is bytes:
                self._reply(opcode, unique, answer)
            elif answer is not None:
                assert self._nursery is not None
                assert isinstance(answer, _Later)
                self._nursery.start_soon(self._in_thread, opcode, unique, answer)

    async def _finish(
        self, opcode: int, unique: int, pid: int, call: Callable[[], bytes | _Later | None], blocked: Blocked
    ) -> None:
        """Wait and call again until it no longer has to wait; then reply."""
        scope = trio.CancelScope()
        self._waiting[unique] = scope, pid
        code: int | None = errno.EIO
        answer: bytes | _Later | None = None
        try:
            with scope:
                for _ in range(_RETRIES_MAX):
                    code = await self._run(blocked)
                    if code is not None:
                        break
                    code = errno.EIO
                    try:
                        answer = call()
                        code = None
                        break
                    except Blocked as again:
                        blocked = again
                    except OSError as error:
                        code = error.errno
                        break
                    except Exception:
                        log.exception("request %d failed", opcode)
                        break
                else:
                    log.error("request %d still has to wait after %d turns", opcode, _RETRIES_MAX)
        finally:
            del self._waiting[unique]
        if scope.cancelled_caught:
            self._refuse(unique, errno.EINTR)
        elif code is not None or answer is None:
            self._refuse(unique, code)
        elif isinstance(answer, _Later):
            await self._in_thread(opcode, unique, answer)
        else:
            self._reply(opcode, unique, answer)

    async def _run(self, blocked: Blocked) -> int | None:
        """Run the job of *blocked* in a thread, for at most as long as it says; None, or the errno of its failure."""
        try:
            with trio.fail_after(blocked.timeout_s if blocked.timeout_s is not None else float("inf")):
                limiter = self._slow_jobs if blocked.timeout_s is not None else None
                await trio.to_thread.run_sync(blocked.job, abandon_on_cancel=True, limiter=limiter)
        except trio.TooSlowError:
            log.warning("gave up waiting: %s", blocked.what)
        except OSError as error:
            return error.errno or errno.EIO
        except ClivefsError as error:
            log.warning("%s failed: %s", blocked.what, error)
        except Exception:
            log.exception("%s failed", blocked.what)
        else:
            return None
        return errno.EIO

    async def _in_thread(self, opcode: int, unique: int, later: _Later) -> None:
        """Run one request in a thread, and to its end: what it acknowledges must have happened."""
        try:
            answer = later.answer(await trio.to_thread.run_sync(later.call))
        except OSError as error:
            self._refuse(unique, error.errno)
        except Exception:
            log.exception("request %d failed", opcode)
            self._refuse(unique, errno.EIO)
        else:
            self._reply(opcode, unique, answer)

    def _reply(self, opcode: int, unique: int, answer: bytes) -> None:
        try:
            os.writev(self._fd, (wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(answer), 0, unique), answer))
        except OSError as error:
            if error.errno == errno.EINVAL:
                log.error("the kernel did not understand the answer to request %d", opcode)
            self._undo(opcode, answer)

    def _refuse(self, unique: int, code: int | None) -> None:
        if code is None or not 0 < code <= _ERRNO_MAX:
            code = errno.EIO
        with contextlib.suppress(OSError):  # the asker, or the mount, is gone
            os.write(self._fd, wire.OUT_HEADER.pack(wire.OUT_HEADER.size, -code, unique))

    def _undo(self, opcode: int, answer: bytes) -> None:
        """Take back the reference and the handle of an answer that nobody took."""
        try:
            if opcode in _GIVES_NODE:
                (nodeid,) = wire.U64.unpack_from(answer)
                self._ops.forget(nodeid, 1)
            if opcode in (wire.OPEN, wire.CREATE):
                self._ops.release(wire.U64.unpack_from(answer, wire.ENTRY_SIZE if opcode == wire.CREATE else 0)[0])
            elif opcode == wire.OPENDIR:
                self._ops.releasedir(wire.U64.unpack_from(answer)[0])
        except Exception:
            log.exception("taking back the answer to request %d failed", opcode)

    def _interrupt(self, body: bytes) -> None:
        """The one who asked has got a signal.

        Only a fatal one ends the waiting, as on a network filesystem: programs do not expect EINTR from open(2) or
        stat(2), and the kernel tells of the first signal alone.
        """
        (unique,) = wire.U64.unpack_from(body)
        waiting = self._waiting.get(unique)
        if waiting is not None and waiting[1] and self._nursery is not None:
            self._nursery.start_soon(self._give_up_when_killed, unique, *waiting)

    async def _give_up_when_killed(self, unique: int, scope: trio.CancelScope, pid: int) -> None:
        while self._waiting.get(unique) == (scope, pid):
            if _is_killed(pid):
                scope.cancel()
                return
            await trio.sleep(_KILLED_LOOK_S)

    # Notifications

    def invalidate_inode(self, nodeid: int, attributes_only: bool) -> None:
        """Let the kernel forget attributes and pages of an inode. May block; never from the loop."""
        self._notify(wire.NOTIFY_INVAL_INODE, wire.INVAL_INODE_OUT.pack(nodeid, -1 if attributes_only else 0, 0))

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        """Let the kernel forget a name. May block; never from the loop."""
        self._notify(wire.NOTIFY_INVAL_ENTRY, wire.INVAL_ENTRY_OUT.pack(parent, len(name), 0) + name + b"\0")

    def _notify(self, code: int, body: bytes) -> None:
        os.writev(self._fd, (wire.OUT_HEADER.pack(wire.OUT_HEADER.size + len(body), code, 0), body))

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
        change, handle = wire.set_attr(body)
        return wire.attr_out(self._ops.setattr(nodeid, change, handle))

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
        flags, _ = wire.XATTR_IN.unpack_from(body)
        return _open_out(self._ops.open(nodeid, flags))

    def _create(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        flags, mode, _, _ = wire.CREATE_IN.unpack_from(body)
        name = body[wire.CREATE_IN.size : -1]
        opened, entry = self._ops.create(nodeid, name, mode, flags, Owner(uid, gid))
        return wire.entry_out(entry) + _open_out(opened)

    def _read(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes | _Later:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        data = self._ops.read_at_once(handle, offset, size)
        return data if data is not None else _Later(partial(self._ops.read, handle, offset, size), bytes)

    def _write(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes | _Later:
        # A write goes to the page cache in microseconds, until the disk is behind and the host makes writers
        # wait: then they wait in threads, not on the loop.
        handle, offset, size, _, _ = wire.WRITE_IN.unpack_from(body)
        data = body[wire.WRITE_IN.size : wire.WRITE_IN.size + size]
        if self._slow_writes:
            self._slow_writes -= 1
            return _Later(partial(self._ops.write, handle, offset, data), wire.SIZE_OUT.pack)
        began = time.monotonic()
        written = self._ops.write(handle, offset, data)
        if time.monotonic() - began > _SLOW_S:
            self._slow_writes = _SLOW_WRITES
        return wire.SIZE_OUT.pack(written)

    def _flush(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.flush(wire.U64.unpack_from(body)[0])
        return b""

    def _release(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.release(wire.U64.unpack_from(body)[0])
        return b""

    def _fsync(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Later:
        handle, flags = wire.FSYNC_IN.unpack_from(body)
        return _Later(partial(self._ops.fsync, handle, bool(flags & wire.FSYNC_FDATASYNC)), _empty)

    # Directories

    def _opendir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        handle = self._ops.opendir(nodeid)
        return wire.OPEN_OUT.pack(handle, self._listing_flags(nodeid))

    def _listing_flags(self, nodeid: int) -> int:
        """Whether the kernel may keep the listing that it reads now, and use the one that it has."""
        view = self._ops.view
        node = view.table.find(nodeid)
        if node is None or node.tree.degraded or node.tree is view.synthetic:
            return 0  # what a directory of our own shows may come from a layer that is degraded
        if not node.tree.told_of(node):
            return wire.FOPEN_CACHE_DIR  # not watched until it is listed: what was kept is not to be trusted
        return wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE

    def _readdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        parts: list[bytes] = []
        listed: list[int] = []

        def add(name: bytes, entry: Entry, position: int) -> bool:
            nonlocal size
            size -= wire.dirent_size(name)
            if size < 0:
                return False
            parts.append(wire.dirent(name, entry, position))
            if name not in _DOTS:
                listed.append(entry.nodeid)
            return True

        self._ops.readdir(handle, offset, add)
        for each in listed:
            self._ops.forget(each, 1)  # names alone give the kernel no references
        return b"".join(parts)

    def _readdirplus(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        handle, offset, size = wire.READ_IN.unpack_from(body)
        parts: list[bytes] = []

        def add(name: bytes, entry: Entry, position: int) -> bool:
            nonlocal size
            size -= wire.ENTRY_SIZE + wire.dirent_size(name)
            if size < 0:
                return False
            parts.append(wire.NO_ENTRY if name in _DOTS else wire.entry_out(entry))
            parts.append(wire.dirent(name, entry, position))
            return True

        self._ops.readdir(handle, offset, add)
        return b"".join(parts)

    def _releasedir(self, nodeid: int, body: bytes, uid: int, gid: int) -> bytes:
        self._ops.releasedir(wire.U64.unpack_from(body)[0])
        return b""

    def _fsyncdir(self, nodeid: int, body: bytes, uid: int, gid: int) -> _Later:
        return _Later(self._ops.fsyncdir(wire.U64.unpack_from(body)[0]), _empty)


_DOTS = (b".", b"..")
_GIVES_NODE = (wire.LOOKUP, wire.MKNOD, wire.MKDIR, wire.SYMLINK, wire.LINK, wire.CREATE)


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


def _is_killed(pid: int) -> bool:
    """Whether the thread *pid* is about to end by a signal (a fatal one becomes SIGKILL for each thread), or has."""
    try:
        with open(f"/proc/{pid}/status") as file:
            pending = [line.split()[1] for line in file if line.startswith(("SigPnd:", "ShdPnd:"))]
    except OSError:
        return True
    return any(int(each, 16) & _SIGKILL_BIT for each in pending)
