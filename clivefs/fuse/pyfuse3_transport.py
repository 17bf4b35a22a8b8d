"""The portable transport: requests over pyfuse3, and so over libfuse.

pyfuse3 keeps one session per process in module globals, so a process serves one mountpoint. Its loop
waits for the device before every request through the module-level name `trio`, which pyfuse3 itself
replaces for asyncio; `_Waiting` takes that place and looks first whether a request is there already, which
halves the cost of a request under load.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from clivefs.fuse import native_mount
from clivefs.fuse.applied import AppliedOperations
from clivefs.fuse.native_protocol import UNKNOWN_INO
from clivefs.fuse.operations import Entry, Opened, Operations
from clivefs.fuse.waiting import WORKERS, Jobs, Turns, Writes
from clivefs.mounts.tree import Blocked, Owner, SetAttr

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

_WORKERS_MAX = 2048
"""As many requests there may be under way while all of them wait: a reader of a dead network must not keep out the
others."""


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

    def __init__(self, turns: Turns | None = None) -> None:
        self._turns = turns or Turns()

    async def wait_readable(self, fd: int) -> None:
        """Return when a request is there."""
        if self._turns.is_due:
            await self._turns.give()
        await self._turns.wait(fd)


class _Waiting:
    """Stands for the module `trio` inside pyfuse3."""

    Lock = _Gate
    ClosedResourceError = trio.ClosedResourceError
    open_nursery = staticmethod(trio.open_nursery)
    lowlevel = _LowLevel


def _refused(error: OSError) -> pyfuse3.FUSEError:
    return pyfuse3.FUSEError(error.errno or errno.EIO)


def _name(call: Callable[..., object]) -> str:
    return f"request {getattr(call, '__name__', call)}"


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


def _nothing_known() -> pyfuse3.EntryAttributes:
    """Of a name in a listing. pyfuse3 has one number for node and d_ino, and who lists leaves a name with d_ino 0 out.
    The kernel refuses a node without a kind, and sends a FORGET for it, which finds nothing."""
    reply = pyfuse3.EntryAttributes()
    reply.st_ino = pyfuse3.InodeT(UNKNOWN_INO)
    reply.st_mode = pyfuse3.ModeT(0)
    reply.entry_timeout = reply.attr_timeout = 0.0
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
        self.applied: AppliedOperations | None = None
        self.applier_pid = -1
        self._jobs = Jobs()
        self._writes = Writes()

    def _for(self, ctx: pyfuse3.RequestContext) -> Operations:
        """Who answers: there is another one for the applier (see `fuse.applied`)."""
        return self.applied if self.applied is not None and ctx.pid == self.applier_pid else self._ops

    async def _finish(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call until it no longer has to wait; every failure becomes the FUSEError that the caller gets."""
        try:
            return call(*args, **kwargs)
        except Blocked as blocked:
            first = blocked
        except OSError as error:
            raise _refused(error) from None
        except Exception:
            log.exception("%s failed", _name(call))
            raise pyfuse3.FUSEError(errno.EIO) from None
        try:
            return await self._jobs.settle(lambda: call(*args, **kwargs), first, _name(call))
        except OSError as error:
            raise _refused(error) from None

    async def _in_thread(self, call: Callable[[], R], what: str, limiter: trio.CapacityLimiter | None = None) -> R:
        try:
            return await self._jobs.in_thread(call, what, limiter)
        except OSError as error:
            raise _refused(error) from None

    async def _entry(self, call: Callable[P, Entry], *args: P.args, **kwargs: P.kwargs) -> pyfuse3.EntryAttributes:
        return _attributes(await self._finish(call, *args, **kwargs))

    async def lookup(self, parent_inode: Any, name: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._for(ctx).lookup, parent_inode, name)

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
        return await self._entry(self._for(ctx).setattr, inode, change, fh)

    async def readlink(self, inode: Any, ctx: Any) -> Any:
        return await self._finish(self._ops.readlink, inode)

    async def mknod(self, parent_inode: Any, name: Any, mode: Any, rdev: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._for(ctx).mknod, parent_inode, name, mode, rdev, _owner(ctx))

    async def mkdir(self, parent_inode: Any, name: Any, mode: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._for(ctx).mkdir, parent_inode, name, mode, _owner(ctx))

    async def unlink(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        await self._finish(self._for(ctx).unlink, parent_inode, name)

    async def rmdir(self, parent_inode: Any, name: Any, ctx: Any) -> None:
        await self._finish(self._for(ctx).rmdir, parent_inode, name)

    async def symlink(self, parent_inode: Any, name: Any, target: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._for(ctx).symlink, parent_inode, name, target, _owner(ctx))

    async def rename(
        self, parent_inode_old: Any, name_old: Any, parent_inode_new: Any, name_new: Any, flags: Any, ctx: Any
    ) -> None:
        await self._finish(self._for(ctx).rename, parent_inode_old, name_old, parent_inode_new, name_new, flags)

    async def link(self, inode: Any, new_parent_inode: Any, new_name: Any, ctx: Any) -> pyfuse3.EntryAttributes:
        return await self._entry(self._for(ctx).link, inode, new_parent_inode, new_name)

    async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
        return _file_info(await self._finish(self._for(ctx).open, inode, flags))

    async def create(
        self, parent_inode: Any, name: Any, mode: Any, flags: Any, ctx: Any
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        opened, entry = await self._finish(self._for(ctx).create, parent_inode, name, mode, flags, _owner(ctx))
        return _file_info(opened), _attributes(entry)

    async def read(self, fh: Any, off: int, size: int) -> bytes:
        data = await self._finish(self._ops.read_at_once, fh, off, size)
        if data is not None:
            return data
        return await self._in_thread(lambda: self._ops.read(fh, off, size), "read")

    async def write(self, fh: Any, off: int, buf: bytes) -> int:
        if self._writes.in_thread():
            return await self._in_thread(lambda: self._ops.write(fh, off, buf), "write", self._writes.limiter)
        return await self._finish(self._writes.at_once, lambda: self._ops.write(fh, off, buf))

    async def flush(self, fh: Any) -> None:
        await self._finish(self._ops.flush, fh)

    async def fsync(self, fh: Any, datasync: bool) -> None:
        await self._in_thread(self._ops.fsync(fh, datasync), "fsync")

    async def release(self, fh: Any) -> None:
        await self._finish(self._ops.release, fh)

    async def opendir(self, inode: Any, ctx: Any) -> Any:
        return await self._finish(self._ops.opendir, inode)

    async def readdir(self, fh: Any, start_id: int, token: Any) -> None:
        def add(name: bytes, entry: Entry, next_id: int) -> bool:
            shown = _attributes(entry) if entry.nodeid else _nothing_known()
            return pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), shown, next_id)

        await self._finish(self._ops.readdir, fh, start_id, add)

    async def releasedir(self, fh: Any) -> None:
        await self._finish(self._ops.releasedir, fh)

    async def fsyncdir(self, fh: Any, datasync: bool) -> None:
        await self._in_thread(await self._finish(self._ops.fsyncdir, fh), "fsyncdir")

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        space = await self._finish(self._ops.statfs)
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
        return await self._finish(self._ops.getxattr, inode, name)

    async def listxattr(self, inode: Any, ctx: Any) -> Any:
        return await self._finish(self._ops.listxattr, inode)

    async def setxattr(self, inode: Any, name: Any, value: bytes, ctx: Any) -> None:
        await self._finish(self._ops.setxattr, inode, name, value)

    async def removexattr(self, inode: Any, name: Any, ctx: Any) -> None:
        await self._finish(self._ops.removexattr, inode, name)


class Pyfuse3Transport:
    """One mount. `mount`, then `serve` in a trio task, `invalidate_*` from any thread but the loop's."""

    def __init__(self, operations: Operations) -> None:
        self._handlers = _Handlers(operations)
        self._turns = Turns()
        self._mountpoint: str | None = None

    @property
    def asked_s(self) -> float:
        """When there last was a request, by the monotonic clock."""
        return self._turns.asked_s

    @property
    def applier_pid(self) -> int:
        """Whose requests are answered by what `answer_applier` was given; 0 is the kernel itself."""
        return self._handlers.applier_pid

    @applier_pid.setter
    def applier_pid(self, pid: int) -> None:
        self._handlers.applier_pid = pid

    def answer_applier(self, applied: AppliedOperations) -> None:
        """Answer what the process `applier_pid` asks by *applied*."""
        self._handlers.applied = applied

    def mount(self, mountpoint: str, *, allow_other: bool) -> None:
        """Mount at *mountpoint*. Raises RuntimeError when libfuse refuses; it has then said why on stderr."""
        options = {"fsname=clivefs", "subtype=clivefs", "default_permissions", "nosuid", "nodev", "noatime"}
        if allow_other:
            options.add("allow_other")
        waiting = _Waiting()
        waiting.lowlevel = _LowLevel(self._turns)  # type: ignore[assignment]
        pyfuse3.trio = waiting  # type: ignore[attr-defined]
        pyfuse3.init(self._handlers, mountpoint, options)
        self._mountpoint = mountpoint

    async def serve(self) -> None:
        """Answer requests until the mount ends, from outside or by `stop`."""
        await pyfuse3.main(min_tasks=WORKERS, max_tasks=_WORKERS_MAX)

    def stop(self) -> None:
        """Let `serve` return; from the loop's thread."""
        pyfuse3.terminate()

    def unmount(self) -> None:
        """Take the mount away, if it is still there."""
        if self._mountpoint is not None:
            mountpoint, self._mountpoint = self._mountpoint, None
            pyfuse3.close(unmount=False)  # libfuse would complain where it was detached and somebody is in it still
            native_mount.take_away(mountpoint)

    @staticmethod
    def invalidate_inode(nodeid: int, attributes_only: bool) -> None:
        """Let the kernel forget attributes and pages of an inode. May block; never from the loop."""
        pyfuse3.invalidate_inode(pyfuse3.InodeT(nodeid), attributes_only)

    @staticmethod
    def invalidate_entry(parent: int, name: bytes) -> None:
        """Let the kernel forget a name. May block; never from the loop."""
        pyfuse3.invalidate_entry(pyfuse3.InodeT(parent), pyfuse3.FileNameT(name))
