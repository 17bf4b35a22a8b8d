"""The content and the facts of one host file, read so that they are of one moment.

Everything that decides whether what was read is whole lives in this file: a file is read between two stats that
must agree, and read twice when its times are so late that a write could hide behind them. What cannot be read
like that is `Unsettled`: its turn is at the next quiet moment, and until then the version before stays.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from hashlib import blake2b
from typing import TypeVar

from clivefs.base.ports import FAULTS, Clock
from clivefs.mounts.host.calls import xattr_path
from clivefs.mounts.points.metadata import Facts
from clivefs.mounts.recording.recordedtree import Version
from clivefs.mounts.recording.statcache import Row, is_settled
from clivefs.objects.encode import MODE_EXECUTABLE, MODE_FILE, MODE_SYMLINK, object_hasher
from clivefs.objects.errors import ContentChanged
from clivefs.objects.interface import Batch, ObjectStore
from clivefs.objects.values import LARGE_BYTES

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOATIME
_ATTEMPTS_MAX = 3
_CHUNK_BYTES = 1 << 20
_COPY_BYTES_MAX = 16 << 20
"""Up to this size a large file that changes while it is stored is copied to memory."""
_PAUSE_S = 0.01
"""Whoever has not written for so long pauses."""
_NO_PAUSE_S = 0.25
"""How long a pause is waited for: other files wait meanwhile."""
_NO_XATTRS = (errno.EOPNOTSUPP, errno.ENODATA, errno.EBADF)


class Unsettled(Exception):
    """The file is being written to: it has no one content at this moment."""


class Unreadable(Exception):
    """The file cannot be read, for a reason of its own."""


class Deferred(Exception):
    """The file is so large that it should be read aside: see `Recorder.prepare`."""


Seen = Callable[[int, int], None]
"""Told how many bytes of how many of a file have been read."""
Recorded = tuple[Version | None, Facts, Row | None]
"""git's part (None: git cannot hold it), the facts, and the row for the stat cache (None: not to be trusted)."""


class Contents:
    """Reads files into *batch*. *defer_bytes*: what is larger and not known yet is `Deferred`. *give_way* is called
    before each. *shown*: the row of a file that we have just made ourselves (`StatCache.shown`). *seen* is told how far
    the reading of a large one is."""

    def __init__(
        self,
        store: ObjectStore,
        batch: Batch,
        clock: Clock,
        defer_bytes: int | None,
        give_way: Callable[[], None] = lambda: None,
        shown: Callable[[os.stat_result], Row | None] = lambda st: None,
        seen: Seen = lambda count, size: None,
    ) -> None:
        self._store = store
        self._batch = batch
        self._clock = clock
        self._defer_bytes = defer_bytes
        self._give_way = give_way
        self._shown = shown
        self._seen = seen

    def file(self, dir_fd: int, name: bytes, st: os.stat_result, row: Row | None, group: bytes | None) -> Recorded:
        """What is at *name*, which is no directory; *st* is a fresh stat of it. *group* tells its hard links from those
        of other parts; None: its names are files of their own. FileNotFoundError, Unreadable, Unsettled, Deferred; any
        other OSError is the store's."""
        self._give_way()
        mode = st.st_mode
        link = _link(group, st.st_ino) if st.st_nlink > 1 and group is not None else 0
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFREG:
            known = row if row is not None and row.tells_of(st) else None
            shown = self._shown(st) if known is None else None
            if known is not None and self._store.has(known.oid):
                oid = known.oid
                xattrs = _of_file(lambda: read_xattrs(xattr_path(dir_fd, name))) if known.has_xattrs else ()
            elif shown is not None and self._store.has(shown.oid):
                oid = shown.oid
                xattrs = _of_file(lambda: read_xattrs(xattr_path(dir_fd, name)))
                settled = is_settled(st, self._clock.now_ns())
                row = shown._replace(has_xattrs=1 if xattrs else 0) if settled else None
            else:
                st, oid, xattrs, row = self._content(dir_fd, name, st, row)
                mode = st.st_mode
            version = Version(MODE_EXECUTABLE if mode & 0o100 else MODE_FILE, oid)
            return version, Facts(mode, st.st_mtime_ns, st.st_uid, st.st_gid, xattrs, 0, link), row
        if kind == stat.S_IFLNK:
            oid = self._batch.blob(_of_file(lambda: os.readlink(name, dir_fd=dir_fd)))
            return Version(MODE_SYMLINK, oid), Facts(mode, st.st_mtime_ns, st.st_uid, st.st_gid, (), 0, link), None
        rdev = st.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return None, Facts(mode, st.st_mtime_ns, st.st_uid, st.st_gid, (), rdev, link), None

    def _content(
        self, dir_fd: int, name: bytes, st: os.stat_result, row: Row | None
    ) -> tuple[os.stat_result, bytes, tuple[tuple[bytes, bytes], ...], Row | None]:
        if self._defer_bytes is not None and st.st_size > self._defer_bytes:
            raise Deferred
        read_at_ns = self._clock.now_ns()
        before = st
        fd = _of_file(lambda: _open(dir_fd, name))
        try:
            if st.st_size > LARGE_BYTES:
                try:
                    oid = self._large(fd, st, row, read_at_ns)
                except Unsettled:
                    if st.st_size > _COPY_BYTES_MAX:
                        raise
                    # Storing takes longer than the pauses of whoever writes to it; a copy in memory may not.
                    st, data = _of_file(lambda: _read_whole(fd, _at_pause(fd), read_at_ns, _COPY_BYTES_MAX))
                    oid = self._batch.blob(data)
            else:
                st, data = _of_file(lambda: _read_whole(fd, before, read_at_ns, LARGE_BYTES))
                oid = self._batch.blob(data)
            xattrs = _of_file(lambda: read_xattrs(fd))
        finally:
            os.close(fd)
        if not is_settled(st, read_at_ns):
            return st, oid, xattrs, None
        made = Row(st.st_ino, st.st_ctime_ns, st.st_mtime_ns, st.st_size, st.st_mode, 1 if xattrs else 0, oid)
        return st, oid, xattrs, made

    def _large(self, fd: int, st: os.stat_result, row: Row | None, read_at_ns: int) -> bytes:
        """Read and store a large file; only read it where its content is probably here (a chmod, a rename)."""
        if not _same(st, os.fstat(fd)):
            raise Unsettled
        oid = None

        def seen(count: int) -> None:
            self._seen(count, st.st_size)

        seen(0)
        if row is not None and row.ino == st.st_ino and row.size == st.st_size:
            oid = _of_file(lambda: _hash(fd, st.st_size, seen))
            if not self._store.has(oid):
                oid = None
        if oid is None:
            try:
                oid = self._batch.blob_file(fd, seen)
            except ContentChanged:
                raise Unsettled from None
        if not _same(st, os.fstat(fd)):
            raise Unsettled
        if not is_settled(st, read_at_ns) and (_hash(fd, st.st_size, seen) != oid or not _same(st, os.fstat(fd))):
            raise Unsettled
        return oid


T = TypeVar("T")


def _of_file(read: Callable[[], T]) -> T:
    """What *read* says; its failure is the file's and not the store's."""
    try:
        return read()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from error


def _open(dir_fd: int, name: bytes) -> int:
    try:
        return os.open(name, _READ_FLAGS, dir_fd=dir_fd)
    except PermissionError:  # O_NOATIME is for the file's owner alone
        return os.open(name, _READ_FLAGS & ~os.O_NOATIME, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a symlink or a socket took its place
            raise Unsettled from None
        raise


def _read_whole(fd: int, st: os.stat_result, read_at_ns: int, bytes_max: int) -> tuple[os.stat_result, bytes]:
    """The stat and the content of *fd* at one moment; *st* is what was believed of it. Unsettled; also where it is
    larger than *bytes_max*."""
    for _ in range(_ATTEMPTS_MAX):
        if not stat.S_ISREG(st.st_mode) or st.st_size > bytes_max:
            break
        data = _read(fd, st.st_size)
        FAULTS.hit("record.read")
        after = os.fstat(fd)
        if len(data) == st.st_size and _same(st, after):
            if is_settled(st, read_at_ns):
                return st, data
            # A write between two of our pages would have left the same times. Then the second reading differs:
            # it has all of that write.
            again = _read(fd, st.st_size)
            after = os.fstat(fd)
            if again == data and _same(st, after):
                return st, data
        st = after
    raise Unsettled


def _at_pause(fd: int) -> os.stat_result:
    """A stat of *fd* as soon as whoever writes to it pauses. Unsettled."""
    latest_s = time.monotonic() + _NO_PAUSE_S
    st = os.fstat(fd)
    while time.monotonic() < latest_s:
        time.sleep(_PAUSE_S)
        before, st = st, os.fstat(fd)
        if _same(before, st):
            return st
    raise Unsettled


def _read(fd: int, size: int) -> bytes:
    """At most *size* + 1 bytes: one more than it should have shows that it has grown."""
    data = os.pread(fd, size + 1, 0)
    while 0 < len(data) < size:
        more = os.pread(fd, size + 1 - len(data), len(data))
        if not more:
            break
        data += more
    return data


def _hash(fd: int, size: int, seen: Callable[[int], None]) -> bytes:
    hasher = object_hasher("blob", size)
    at = 0
    while data := os.pread(fd, _CHUNK_BYTES, at):
        hasher.update(data)
        at += len(data)
        seen(at)
    return hasher.digest()


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (
        one.st_ctime_ns == other.st_ctime_ns
        and one.st_mtime_ns == other.st_mtime_ns
        and one.st_size == other.st_size
        and one.st_ino == other.st_ino
        and one.st_mode == other.st_mode
    )


def _link(group: bytes, inode: int) -> int:
    """The number of a hard-link group: the same at every look, and never 0."""
    return int.from_bytes(blake2b(b"%s\0%d" % (group, inode), digest_size=8).digest(), "little") | 1


def read_xattrs(target: int | bytes) -> tuple[tuple[bytes, bytes], ...]:
    """The user attributes of an open file, or of a path whose last component is not followed, as `Facts` has them."""
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target) if follow else os.listxattr(target, follow_symlinks=False)
        found = [
            (os.fsencode(name), os.getxattr(target, name, follow_symlinks=follow))
            for name in names
            if name.startswith("user.")
        ]
    except OSError as error:
        if error.errno in _NO_XATTRS:  # none, or an O_PATH descriptor
            return ()
        raise
    return tuple(sorted(found))


def directory_facts(fd: int, st: os.stat_result) -> Facts:
    """The facts of the open directory *fd*."""
    return Facts(st.st_mode, st.st_mtime_ns, st.st_uid, st.st_gid, read_xattrs(fd))
