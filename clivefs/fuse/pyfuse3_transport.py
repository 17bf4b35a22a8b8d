"""The portable transport: requests over pyfuse3, and so over libfuse.

pyfuse3 keeps one session per process in module globals, so a process serves one mountpoint. Its loop
waits for the device before every request through the module-level name `trio`, which pyfuse3 itself
replaces for asyncio; `_Waiting` takes that place and looks first whether a request is there already, which
halves the cost of a request under load.
"""

from __future__ import annotations

import errno
import logging
import select
import time
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from clivefs.base.errors import ClivefsError
from clivefs.fuse.operations import Entry, Opened, Operations
from clivefs.mounts.tree import Blocked, Owner, SetAttr

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_WORKERS = 128
"""Requests under way at once; those that wait for the network or the disk each hold one."""
_WORKERS_MAX = 2048
"""As many there may be while all of them wait: a reader of a dead network must not keep out the others."""
_slow: trio.CapacityLimiter | None = None
_RETRIES_MAX = 16
_SLOW_S = 0.005
_SLOW_WRITES = 64
_BURST_S = 0.004
"""For how long requests are answered before other tasks of the daemon get their turn."""
_LINGER_S = 0.0002
"""How long the next request is waited for before the loop turns."""
_SELECT_FDS_MAX = 1024
"""select(2) takes no higher descriptor."""


class _Gate:
    """A lock that costs nothing while free, for the one worker that reads the device.

    A released gate wakes at most one waiter per turn of the scheduler: the worker that released it is
    usually back before the waiter runs.
    """

    def __init__(self) -> None:
        self._held = False
        self._waking = False
        self._lot = trio.lowlevel.ParkingLot()

    async def __aenter__(self) -> None:
        while self._held:
            try:
                await self._lot.park()
            finally:
                self._waking = False
        self._held = True

    async def __aexit__(self, *_: object) -> None:
        self._held = False
        if self._lot and not self._waking:
            self._waking = True
            self._lot.unpark()


class _LowLevel:
    """What pyfuse3 takes from `trio.lowlevel`."""

    current_task = staticmethod(trio.lowlevel.current_task)
    current_trio_token = staticmethod(trio.lowlevel.current_trio_token)
    notify_closing = staticmethod(trio.lowlevel.notify_closing)

    def __init__(self) -> None:
        self._since_checkpoint = 0.0

    async def wait_readable(self, fd: int) -> None:
        """Return when a request is there.

        Whoever asks one thing mostly asks the next as soon as he has his answer: looking for that a moment
        longer is cheaper than a turn of the loop, which costs as much as answering. The loop's other tasks
        get their turn when nobody asks, and every few milliseconds at the latest.
        """
        now = time.perf_counter()
        if now - self._since_checkpoint < _BURST_S:
            if fd < _SELECT_FDS_MAX and select.select((fd,), (), (), _LINGER_S)[0]:
                return
        else:
            await trio.lowlevel.checkpoint()
            self._since_checkpoint = time.perf_counter()
            if fd < _SELECT_FDS_MAX and select.select((fd,), (), (), 0)[0]:
                return
        await trio.lowlevel.wait_readable(fd)
        self._since_checkpoint = time.perf_counter()


class _Waiting:
    """Stands for the module `trio` inside pyfuse3."""

    Lock = _Gate
    ClosedResourceError = trio.ClosedResourceError
    open_nursery = staticmethod(trio.open_nursery)
    lowlevel = _LowLevel


async def _finish(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Call until it no longer has to wait; every failure becomes the FUSEError that the caller gets."""
    for _ in range(_RETRIES_MAX):
        try:
            return call(*args, **kwargs)
        except Blocked as blocked:
            await _run(blocked)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("request %s failed", getattr(call, "__name__", call))
            raise pyfuse3.FUSEError(errno.EIO) from None
    log.error("request %s still has to wait after %d turns", getattr(call, "__name__", call), _RETRIES_MAX)
    raise pyfuse3.FUSEError(errno.EIO)


async def _run(blocked: Blocked) -> None:
    """Run the job of *blocked* in a thread, for at most as long as it says."""
    try:
        with trio.fail_after(blocked.timeout_s if blocked.timeout_s is not None else float("inf")):
            limiter = _slow_jobs() if blocked.timeout_s is not None else None
            await trio.to_thread.run_sync(blocked.job, abandon_on_cancel=True, limiter=limiter)
    except trio.TooSlowError:
        log.warning("gave up waiting: %s", blocked.what)
        raise pyfuse3.FUSEError(errno.EIO) from None
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
    except ClivefsError as error:
        log.warning("%s failed: %s", blocked.what, error)
        raise pyfuse3.FUSEError(errno.EIO) from None
    except Exception:
        log.exception("%s failed", blocked.what)
        raise pyfuse3.FUSEError(errno.EIO) from None


def _slow_jobs() -> trio.CapacityLimiter:
    """The limit of jobs that wait for others (the network): they must not take the threads of fsync and read."""
    global _slow
    if _slow is None:
        _slow = trio.CapacityLimiter(_WORKERS)
    return _slow


def _attributes(entry: Entry) -> pyfuse3.EntryAttributes:
    attr = entry.attr
    kept = attr.reply if attr is not None else None
    if (
        isinstance(kept, pyfuse3.EntryAttributes)
        and kept.st_ino == entry.nodeid
        and kept.attr_timeout == entry.attr_timeout_s
        and kept.entry_timeout == entry.entry_timeout_s
    ):
        return kept
    reply = pyfuse3.EntryAttributes()
    reply.entry_timeout = entry.entry_timeout_s
    if attr is None:
        return reply  # number 0: the name does not exist, and that may be remembered
    attr.reply = reply
    reply.st_ino = pyfuse3.InodeT(entry.nodeid)
    reply.attr_timeout = entry.attr_timeout_s
    reply.st_mode = pyfuse3.ModeT(attr.mode)
    reply.st_nlink = attr.nlink
    reply.st_uid = attr.uid
    reply.st_gid = attr.gid
    reply.st_rdev = attr.rdev
    reply.st_size = attr.size
    reply.st_blocks = attr.blocks
    reply.st_atime_ns = attr.atime_ns
    reply.st_mtime_ns = attr.mtime_ns
    reply.st_ctime_ns = attr.ctime_ns
    return reply


def _file_info(opened: Opened) -> pyfuse3.FileInfo:
    return pyfuse3.FileInfo(
        fh=pyfuse3.FileHandleT(opened.handle), keep_cache=opened.keep_cache, direct_io=opened.direct_io
    )


def _owner(ctx: pyfuse3.RequestContext) -> Owner:
    return Owner(ctx.uid, ctx.gid)


class _Handlers(pyfuse3.Operations):
    """pyfuse3's names for the requests. Nothing is decided here."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = False

    def __init__(self, operations: Operations) -> None:
        super().__init__()
        self._ops = operations
        self._slow_writes = 0

    async def _entry(self, call: Callable[P, Entry], *args: P.args, **kwargs: P.kwargs) -> pyfuse3.EntryAttributes:
        try:
            return _attributes(call(*args, **kwargs))
        except (Blocked, OSError):
            return _attributes(await _finish(call, *args, **kwargs))
        except Exception:
            log.exception("request %s failed", call.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    async def lookup(self, parent_inode: Any, name: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._ops.lookup, parent_inode, name)

    async def forget(self, inode_list: Sequence[tuple[Any, int]]) -> None:
        for nodeid, count in inode_list:
            try:
                self._ops.forget(nodeid, count)
            except Exception:
                log.exception("forgetting inode %d failed", nodeid)

    async def getattr(self, inode: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._ops.getattr, inode)

    async def setattr(self, inode: Any, attr: Any, fields: Any, fh: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        change = SetAttr(
            mode=attr.st_mode & 0o7777 if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return await self._entry(self._ops.setattr, inode, change, fh)

    async def readlink(self, inode: Any, ctx: Any) -> Any:
        return await _finish(self._ops.readlink, inode)

    async def mknod(self, parent_inode: Any, name: Any, mode: Any, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._ops.mknod, parent_inode, name, mode, rdev, _owner(ctx))

    async def mkdir(self, parent_inode: Any, name: Any, mode: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._ops.mkdir, parent_inode, name, mode, _owner(ctx))

    async def unlink(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        await _finish(self._ops.unlink, parent_inode, name)

    async def rmdir(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        await _finish(self._ops.rmdir, parent_inode, name)

    async def symlink(self, parent_inode: Any, name: Any, target: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._ops.symlink, parent_inode, name, target, _owner(ctx))

    async def rename(
        self, parent_inode_old: Any, name_old: Any, parent_inode_new: Any, name_new: Any, flags: Any, ctx: Any
    ) -> None:
        await _finish(self._ops.rename, parent_inode_old, name_old, parent_inode_new, name_new, flags)

    async def link(self, inode: Any, new_parent_inode: Any, new_name: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._ops.link, inode, new_parent_inode, new_name)

    async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
        return _file_info(await _finish(self._ops.open, inode, flags))

    async def create(
        self, parent_inode: Any, name: Any, mode: Any, flags: Any, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        opened, entry = await _finish(self._ops.create, parent_inode, name, mode, flags, _owner(ctx))
        return _file_info(opened), _attributes(entry)

    async def read(self, fh: Any, off: int, size: int) -> bytes:
        data = await _finish(self._ops.read_at_once, fh, off, size)
        if data is not None:
            return data
        return await _in_thread(self._ops.read, fh, off, size)

    async def write(self, fh: Any, off: int, buf: bytes) -> int:
        # A write goes to the page cache in microseconds, until the disk is behind and the host makes writers
        # wait: then they wait in threads, not on the loop.
        if self._slow_writes:
            self._slow_writes -= 1
            return await _in_thread(self._ops.write, fh, off, buf)
        began = time.monotonic()
        written = await _finish(self._ops.write, fh, off, buf)
        if time.monotonic() - began > _SLOW_S:
            self._slow_writes = _SLOW_WRITES
        return written

    async def flush(self, fh: Any) -> None:
        await _finish(self._ops.flush, fh)

    async def fsync(self, fh: Any, datasync: bool) -> None:
        await _in_thread(self._ops.fsync(fh, datasync))

    async def release(self, fh: Any) -> None:
        await _finish(self._ops.release, fh)

    async def opendir(self, inode: Any, ctx: Any) -> Any:
        return await _finish(self._ops.opendir, inode)

    async def readdir(self, fh: Any, start_id: int, token: Any) -> None:
        def add(name: bytes, entry: Entry, next_id: int) -> bool:
            return pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), _attributes(entry), next_id)

        await _finish(self._ops.readdir, fh, start_id, add)

    async def releasedir(self, fh: Any) -> None:
        await _finish(self._ops.releasedir, fh)

    async def fsyncdir(self, fh: Any, datasync: bool) -> None:
        await _in_thread(await _finish(self._ops.fsyncdir, fh))

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        space = await _finish(self._ops.statfs)
        reply = pyfuse3.StatvfsData()
        reply.f_bsize = space.block_bytes
        reply.f_frsize = space.fragment_bytes
        reply.f_blocks = space.blocks
        reply.f_bfree = space.blocks_free
        reply.f_bavail = space.blocks_available
        reply.f_files = space.files
        reply.f_ffree = reply.f_favail = space.files_free
        reply.f_namemax = 255
        return reply

    async def getxattr(self, inode: Any, name: Any, ctx: Any) -> bytes:
        return await _finish(self._ops.getxattr, inode, name)

    async def listxattr(self, inode: Any, ctx: Any) -> Any:
        return await _finish(self._ops.listxattr, inode)

    async def setxattr(self, inode: Any, name: Any, value: bytes, ctx: Any) -> None:
        await _finish(self._ops.setxattr, inode, name, value)

    async def removexattr(self, inode: Any, name: Any, ctx: Any) -> None:
        await _finish(self._ops.removexattr, inode, name)


async def _in_thread(call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Run one request in a thread, and to its end: what it acknowledges must have happened."""
    try:
        return await trio.to_thread.run_sync(lambda: call(*args, **kwargs))
    except OSError as error:
        raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
    except Exception:
        log.exception("request %s failed", getattr(call, "__name__", call))
        raise pyfuse3.FUSEError(errno.EIO) from None


class Pyfuse3Transport:
    """One mount. `mount`, then `serve` in a trio task, `invalidate_*` from any thread but the loop's."""

    def __init__(self, operations: Operations) -> None:
        self._operations = operations
        self._mounted = False

    def mount(self, mountpoint: str, *, allow_other: bool) -> None:
        """Mount at *mountpoint*. Raises RuntimeError when libfuse refuses; it has then said why on stderr."""
        options = {"fsname=clivefs", "subtype=clivefs", "default_permissions", "nosuid", "nodev", "noatime"}
        if allow_other:
            options.add("allow_other")
        waiting = _Waiting()
        waiting.lowlevel = _LowLevel()  # type: ignore[assignment]
        pyfuse3.trio = waiting  # type: ignore[attr-defined]
        pyfuse3.init(_Handlers(self._operations), mountpoint, options)
        self._mounted = True

    async def serve(self) -> None:
        """Answer requests until the mount ends, from outside or by `stop`."""
        await pyfuse3.main(min_tasks=_WORKERS, max_tasks=_WORKERS_MAX)

    def stop(self) -> None:
        """Let `serve` return; from the loop's thread."""
        pyfuse3.terminate()

    def unmount(self) -> None:
        """Take the mount away, if it is still there."""
        if self._mounted:
            self._mounted = False
            pyfuse3.close(unmount=True)

    @staticmethod
    def invalidate_inode(nodeid: int, attributes_only: bool) -> None:
        """Let the kernel forget attributes and pages of an inode. May block; never from the loop."""
        pyfuse3.invalidate_inode(pyfuse3.InodeT(nodeid), attributes_only)

    @staticmethod
    def invalidate_entry(parent: int, name: bytes) -> None:
        """Let the kernel forget a name. May block; never from the loop."""
        pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
