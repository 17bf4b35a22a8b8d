"""How content gets from a lower layer into the upper: shared blocks where the filesystem can, holes kept.

A copy is made in the upper's `work/` under a name that nothing else has, with owner, mode, times and user
attributes already right, and only then renamed to its place by the overlay. Copies over `INLINE_BYTES_MAX`
are made in a thread: `Staging.prepare` raises `Blocked`, and finds the finished copy when it is called
again; several who want the same file wait for the same copy. A copy that nobody came back for is thrown away.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import threading
from collections import OrderedDict
from typing import NamedTuple

from clivefs.base.ports import FAULTS
from clivefs.mounts.host.calls import IS_ROOT, chmod_at, set_xattr
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.upper import Upper, unlink_work
from clivefs.mounts.tree import Attr, Blocked, OpenFile, refuse

INLINE_BYTES_MAX = 256 << 10
_CHUNK_BYTES = 1 << 20
_ZEROS = bytes(64 << 10)
_STAGED_MAX = 256
"""Finished copies that nobody has come back for yet."""
_ATTEMPTS_MAX = 3
_FICLONE = 0x40049409
_SYNC_FILE_RANGE_WRITE = 2
_CANNOT_SHARE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTTY, errno.EBADF, errno.EPERM)

_sync_file_range = ctypes.CDLL(None, use_errno=True).sync_file_range
_sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]


class Copy(NamedTuple):
    """A finished file in `work/`."""

    name: bytes
    inode: int
    mode: int


def copy_content(source: OpenFile, target_fd: int, size: int) -> None:
    """Write the first *size* bytes of *source* to the empty file *target_fd*; holes stay holes."""
    os.ftruncate(target_fd, size)
    source_fd = source.fileno()
    if source_fd is None:
        _copy_bytes(source, target_fd, 0, size)
        return
    if os.fstat(source_fd).st_size == size and _clone(source_fd, target_fd):
        return
    at = 0
    while at < size:
        start, end = _next_data(source_fd, at, size)
        if start >= size:
            return
        _copy_range(source, source_fd, target_fd, start, min(end, size))
        at = end


def _clone(source_fd: int, target_fd: int) -> bool:
    """Share all blocks (btrfs, xfs). False where that cannot be."""
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _CANNOT_SHARE:
            return False
        raise
    return True


def _next_data(fd: int, at: int, size: int) -> tuple[int, int]:
    """Start and end of the next stretch of data from *at*; (size, size) when only a hole is left."""
    try:
        start = os.lseek(fd, at, os.SEEK_DATA)
        return start, os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size, size
        if error.errno in _CANNOT_SHARE:
            return at, size
        raise


def _copy_range(source: OpenFile, source_fd: int, target_fd: int, start: int, end: int) -> None:
    at = start
    while at < end:
        try:
            done = os.copy_file_range(source_fd, target_fd, end - at, at, at)
        except OSError as error:
            if error.errno not in _CANNOT_SHARE:
                raise
            _copy_bytes(source, target_fd, at, end)
            return
        if not done:  # the source became shorter, or its filesystem (proc, sys) says nothing of its size
            return
        at += done


def _copy_bytes(source: OpenFile, target_fd: int, start: int, end: int) -> None:
    at = start
    while at < end:
        data = source.read(at, min(_CHUNK_BYTES, end - at))
        if not data:
            return
        _write_sparse(target_fd, data, at)
        at += len(data)


def _write_sparse(fd: int, data: bytes, at: int) -> None:
    """Write *data*, but for blocks of zeros, which the file has already."""
    view = memoryview(data)
    for offset in range(0, len(data), len(_ZEROS)):
        part = view[offset : offset + len(_ZEROS)]
        if part == _ZEROS[: len(part)]:
            continue
        done = 0
        while done < len(part):
            done += os.pwrite(fd, part[done:], at + offset + done)


def dress(work_fd: int, name: bytes, attr: Attr, xattrs: dict[bytes, bytes], extra_mode: int = 0) -> None:
    """Give the file *name* the owner, user attributes, mode (with *extra_mode*) and times of *attr*."""
    link = stat.S_ISLNK(attr.mode)
    if IS_ROOT and (attr.uid != os.geteuid() or attr.gid != os.getegid()):
        os.chown(name, attr.uid, attr.gid, dir_fd=work_fd, follow_symlinks=False)
    if not link:
        for attribute, value in xattrs.items():
            set_xattr(work_fd, name, attribute, value)
        chmod_at(work_fd, name, (attr.mode & 0o7777) | extra_mode)  # after chown, which clears set-user-ID
    os.utime(name, ns=(attr.atime_ns, attr.mtime_ns), dir_fd=work_fd, follow_symlinks=False)


def directory_extra_mode(mode: int) -> int:
    """Bits that a directory needs while it is moved into place by a daemon that is not root."""
    return 0 if IS_ROOT or mode & 0o700 == 0o700 else 0o700


class _Inputs(NamedTuple):
    """What it takes to make a copy. Whoever takes it closes it."""

    source: OpenFile
    work_fd: int
    """A descriptor of `work/` for the thread alone: the tree may be closed meanwhile."""

    def close(self) -> None:
        self.source.close()
        os.close(self.work_fd)


class _Staged:
    """One copy that a thread makes or has made."""

    __slots__ = ("_inputs", "attempts", "attr", "copy", "dropped", "ended", "limit", "making", "name", "ref", "xattrs")

    def __init__(
        self, ref: LowerRef, attr: Attr, limit: int, inputs: _Inputs, name: bytes, xattrs: dict[bytes, bytes]
    ) -> None:
        self.ref = ref
        self.attr = attr
        self.limit = limit
        self._inputs = [inputs]
        self.name = name
        self.xattrs = xattrs
        self.copy: Copy | None = None
        self.attempts = 1
        self.making = threading.Lock()
        self.ended = False
        """The copy is made, or could not be."""
        self.dropped = False
        """Nobody wants it any more: who makes it removes it."""

    def take(self) -> _Inputs | None:
        """The inputs, for the one who asks first, in whatever thread."""
        try:
            return self._inputs.pop()
        except IndexError:
            return None

    def serves(self, ref: LowerRef, attr: Attr, limit: int) -> bool:
        return self.ref == ref and self.limit == limit and _unchanged(self.attr, attr)


class Staging:
    """Makes copies in `work/`. Everything but the jobs runs in the tree's own thread."""

    def __init__(self, upper: Upper) -> None:
        self._upper = upper
        self._staged: OrderedDict[int, _Staged] = OrderedDict()

    def prepare(self, key: int, lower: Lower, ref: LowerRef, size_max: int | None, what: str) -> Copy:
        """A copy of a lower file that is not a directory; of its first *size_max* bytes, if given.

        `Blocked` while content must be fetched or much must be copied; *key* (an inode number) finds the copy again.
        """
        attr = lower.attr(ref, fetch=True)
        kind = stat.S_IFMT(attr.mode)
        if kind != stat.S_IFREG:
            return self._make_special(lower, ref, attr)
        limit = attr.size if size_max is None else min(size_max, attr.size)
        if limit <= INLINE_BYTES_MAX:
            return self._make_file(lower, ref, attr, limit)
        return self._prepare_large(key, lower, ref, attr, limit, what)

    def _prepare_large(self, key: int, lower: Lower, ref: LowerRef, attr: Attr, limit: int, what: str) -> Copy:
        attempts = 0
        what = f"copying {what} to its overlay"
        staged = self._staged.get(key)
        if staged is not None:
            same = staged.serves(ref, attr, limit)
            if same and not staged.ended:
                raise Blocked(lambda: self._job(staged), what)
            del self._staged[key]
            if same and staged.copy is not None:
                return staged.copy
            if staged.copy is not None:
                attempts = staged.attempts
            self._throw_away(staged)
        if attempts >= _ATTEMPTS_MAX:
            raise refuse(errno.EBUSY)  # the lower file changes all the time
        xattrs = lower.xattrs(ref)
        inputs = _Inputs(lower.open(ref), os.dup(self._upper.work_fd))
        fresh = _Staged(ref, attr, limit, inputs, self._upper.work_name(), xattrs)
        fresh.attempts = attempts + 1
        self._staged[key] = fresh
        ended = [each for each, staged in self._staged.items() if staged.ended]
        for each in ended[:-_STAGED_MAX]:
            self._throw_away(self._staged.pop(each))
        raise Blocked(lambda: self._job(fresh), what)

    def _job(self, staged: _Staged) -> None:
        """Runs in threads, of which the first makes the copy: touches nothing but a private file."""
        with staged.making:
            inputs = staged.take()
            if inputs is None:
                return  # done by another
            try:
                copy = _fill(
                    inputs.source, inputs.work_fd, staged.name, staged.attr, staged.limit, staged.xattrs, durable=True
                )
                staged.copy = copy
                if staged.dropped:
                    unlink_work(inputs.work_fd, copy.name)
            finally:
                staged.ended = True
                inputs.close()

    def _throw_away(self, staged: _Staged) -> None:
        staged.dropped = True
        if staged.copy is not None:
            self._upper.unlink_work(staged.copy.name)
        inputs = staged.take()
        if inputs is not None:
            inputs.close()

    def discard(self, copy: Copy) -> None:
        """A prepared copy that is not needed."""
        self._upper.unlink_work(copy.name)

    def forget(self, key: int) -> None:
        """Nobody will ask for the copy of *key* any more."""
        staged = self._staged.pop(key, None)
        if staged is not None:
            self._throw_away(staged)

    def close(self) -> None:
        while self._staged:
            self._throw_away(self._staged.popitem()[1])

    # Making them

    def _make_file(self, lower: Lower, ref: LowerRef, attr: Attr, limit: int) -> Copy:
        xattrs = lower.xattrs(ref)
        source = lower.open(ref) if limit else None
        try:
            return _fill(source, self._upper.work_fd, self._upper.work_name(), attr, limit, xattrs, durable=False)
        finally:
            if source is not None:
                source.close()

    def _make_special(self, lower: Lower, ref: LowerRef, attr: Attr) -> Copy:
        work_fd, name = self._upper.work_fd, self._upper.work_name()
        if stat.S_ISLNK(attr.mode):
            os.symlink(lower.readlink(ref), name, dir_fd=work_fd)
        else:
            os.mknod(name, stat.S_IFMT(attr.mode) | 0o600, attr.rdev, dir_fd=work_fd)
        return self._dressed(name, attr, lower.xattrs(ref))

    def make_directory(self, attr: Attr, xattrs: dict[bytes, bytes]) -> Copy:
        """An empty directory with the attributes of a lower one."""
        work_fd, name = self._upper.work_fd, self._upper.work_name()
        os.mkdir(name, 0o700, dir_fd=work_fd)
        return self._dressed(name, attr, xattrs, directory_extra_mode(attr.mode))

    def _dressed(self, name: bytes, attr: Attr, xattrs: dict[bytes, bytes], extra_mode: int = 0) -> Copy:
        work_fd = self._upper.work_fd
        try:
            dress(work_fd, name, attr, xattrs, extra_mode)
            inode = os.stat(name, dir_fd=work_fd, follow_symlinks=False).st_ino
        except BaseException:
            self._upper.unlink_work(name)
            raise
        return Copy(name, inode, attr.mode)


def _fill(
    source: OpenFile | None,
    work_fd: int,
    name: bytes,
    attr: Attr,
    limit: int,
    xattrs: dict[bytes, bytes],
    *,
    durable: bool,
) -> Copy:
    """Make the file *name* in `work/` with the first *limit* bytes of *source*. Nothing is left of it if that fails."""
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=work_fd)
    try:
        FAULTS.hit("overlay.copyup.content")
        if source is not None:
            copy_content(source, fd, limit)
            if durable:
                os.fsync(fd)
            else:
                start_writing(fd)
        dress(work_fd, name, attr, xattrs)
        return Copy(name, os.fstat(fd).st_ino, attr.mode)
    except BaseException:
        unlink_work(work_fd, name)
        raise
    finally:
        os.close(fd)


def start_writing(fd: int) -> None:
    """Have the filesystem give the file's data its blocks now; nobody waits for the disk. So a power loss after a
    rename does not find an empty file in place of one that nobody wrote to (ext4's delayed allocation)."""
    _sync_file_range(fd, 0, 0, _SYNC_FILE_RANGE_WRITE)


def _unchanged(before: Attr, after: Attr) -> bool:
    return (before.size, before.mtime_ns, before.mode) == (after.size, after.mtime_ns, after.mode)
