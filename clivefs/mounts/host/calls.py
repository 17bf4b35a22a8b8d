"""Files of the host, reached without ever following a link or a long path.

Everything is named by (descriptor of the directory, single name), so that PATH_MAX does not matter, a
symlink that somebody plants leads nowhere, and no call can walk into a mount of ours. Owned here: the
bounded cache of directory descriptors, and how attributes are changed without following a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from typing import Generic, TypeVar

from clivefs.mounts.host import residency
from clivefs.mounts.tree import Attr, DirEntry, OpenFile, SetAttr, refuse

K = TypeVar("K", bound=Hashable)

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
PATH_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
IS_ROOT = os.geteuid() == 0


class DirFds(Generic[K]):
    """At most *limit* open directory descriptors, the least recently used closed first.

    A descriptor that `get` or `put` returned is good until *limit* others were asked for; what keeps
    one longer, or gives it to a thread, must `os.dup` it.
    """

    def __init__(self, limit: int = 1024) -> None:
        self._limit = limit
        self._fds: OrderedDict[K, int] = OrderedDict()

    def get(self, key: K) -> int | None:
        fd = self._fds.get(key)
        if fd is not None:
            self._fds.move_to_end(key)
        return fd

    def put(self, key: K, fd: int) -> int:
        old = self._fds.pop(key, None)
        if old is not None:
            os.close(old)
        self._fds[key] = fd
        if len(self._fds) > self._limit:
            _, evicted = self._fds.popitem(last=False)
            os.close(evicted)
        return fd

    def drop(self, key: K) -> None:
        fd = self._fds.pop(key, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        while self._fds:
            _, fd = self._fds.popitem()
            os.close(fd)


def open_directory(dir_fd: int, name: bytes) -> int:
    """A descriptor for the directory *name*; falls back to O_PATH where it may be searched but not read."""
    try:
        return os.open(name, DIRECTORY_FLAGS, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, PATH_FLAGS | os.O_DIRECTORY, dir_fd=dir_fd)


def stat_at(dir_fd: int, name: bytes) -> os.stat_result:
    """lstat(2) of *name* in the directory *dir_fd*."""
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def proc_path(fd: int) -> str:
    """A path that leads to the file behind *fd* for the calls that take no descriptor."""
    return f"/proc/self/fd/{fd}"


def scan_kinds(dir_fd: int, hidden: Callable[[bytes], bool]) -> list[DirEntry]:
    """The names of a directory with their kinds, sorted. A *hidden* one counts as a directory and is not touched.

    EACCES where the directory may be searched but not read.
    """
    found: list[DirEntry] = []
    try:
        with os.scandir(dir_fd) as listing:
            for entry in listing:
                name = os.fsencode(entry.name)
                try:
                    found.append(DirEntry(name, stat.S_IFDIR if hidden(name) else _kind(entry)))
                except FileNotFoundError:
                    continue
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        with readable_again(dir_fd) as own:
            return scan_kinds(own, hidden)
    found.sort()
    return found


def scan_names(dir_fd: int) -> list[bytes]:
    """The names of a directory, sorted. EACCES as `scan_kinds`."""
    try:
        names = os.listdir(dir_fd)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        with readable_again(dir_fd) as own:
            names = os.listdir(own)
    return sorted(map(os.fsencode, names))


@contextlib.contextmanager
def readable_again(dir_fd: int) -> Iterator[int]:
    """Of a directory that could not be read when it was opened, and so was with O_PATH: a descriptor for reading it,
    if that is permitted by now. EACCES."""
    fd = os.open(proc_path(dir_fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _kind(entry: os.DirEntry[str]) -> int:
    """The file type bits of a name: what the directory itself says, else what stat says."""
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_symlink():
        return stat.S_IFLNK
    return stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)


def _by_reading(fd: int, offset: int, size: int) -> bool:
    """Stands for `residency.read_nowait`, which says it by doing it."""
    return False


def _never(fd: int, offset: int, size: int) -> bool:
    """Nothing is known to be in memory."""
    return False


class HostFile(OpenFile):
    """An open file of the host."""

    __slots__ = ("_known", "fd", "keep_cache")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.keep_cache = False
        self._known = _by_reading
        """What tells of the bytes that are in memory."""

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def read_at_once(self, offset: int, size: int) -> bytes | None:
        if self._known is _by_reading:
            try:
                return residency.read_nowait(self.fd, offset, size)
            except residency.CannotTell:
                self._known = residency.is_resident if residency.is_answerable(self.fd) else _never
        return os.pread(self.fd, size, offset) if self._known(self.fd, offset, size) else None

    def write(self, offset: int, data: bytes) -> int:
        written = os.pwrite(self.fd, data, offset)
        while written < len(data):  # a signal or a nearly full disk may cut a write short
            written += os.pwrite(self.fd, memoryview(data)[written:], offset + written)
        return written

    def fileno(self) -> int | None:
        return self.fd

    def fsync(self, data_only: bool) -> None:
        if data_only:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def close(self) -> None:
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def host_flags(flags: int) -> int:
    """open(2) flags of a request, as we hand them to the host: no creation, no link followed, no O_DIRECT.

    The kernel reads pages of a file that was opened for writing only, to fill a page that a write covers
    in part through a shared mapping: so O_WRONLY becomes O_RDWR where the caller can fall back.
    """
    keep = os.O_ACCMODE | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_SYNC | os.O_DSYNC
    return (flags & keep) | os.O_NOFOLLOW | os.O_CLOEXEC


def change_at(dir_fd: int, name: bytes, change: SetAttr, fd: int | None = None) -> Attr:
    """Apply *change* to the file *name* (through *fd* when it is open, also when no name leads there any
    more) without following a link; the new attributes."""
    if fd is not None:
        _change_open(fd, change)
        return Attr.of(os.fstat(fd))
    if change.size is not None:
        target = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
        try:
            os.ftruncate(target, change.size)
        finally:
            os.close(target)
    if change.uid is not None or change.gid is not None:
        os.chown(name, _or_keep(change.uid), _or_keep(change.gid), dir_fd=dir_fd, follow_symlinks=False)
    if change.mode is not None:
        chmod_at(dir_fd, name, change.mode)
    if change.atime_ns is not None or change.mtime_ns is not None:
        st = stat_at(dir_fd, name)
        os.utime(name, ns=_times(st, change), dir_fd=dir_fd, follow_symlinks=False)
    return Attr.of(stat_at(dir_fd, name))


def chmod_at(dir_fd: int, name: bytes, mode: int) -> None:
    """fchmodat(2) with AT_SYMLINK_NOFOLLOW, which the C library lacks. EOPNOTSUPP on a symlink."""
    path_fd = os.open(name, PATH_FLAGS, dir_fd=dir_fd)
    try:
        if stat.S_ISLNK(os.fstat(path_fd).st_mode):
            raise refuse(errno.EOPNOTSUPP, name)
        os.chmod(proc_path(path_fd), mode & 0o7777)
    finally:
        os.close(path_fd)


def _change_open(fd: int, change: SetAttr) -> None:
    if change.size is not None:
        try:
            os.ftruncate(fd, change.size)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            os.truncate(proc_path(fd), change.size)  # opened for reading only
    if change.uid is not None or change.gid is not None:
        os.chown(fd, _or_keep(change.uid), _or_keep(change.gid))
    if change.mode is not None:
        os.chmod(fd, change.mode & 0o7777)
    if change.atime_ns is not None or change.mtime_ns is not None:
        os.utime(fd, ns=_times(os.fstat(fd), change))


def _or_keep(number: int | None) -> int:
    return -1 if number is None else number


def _times(st: os.stat_result, change: SetAttr) -> tuple[int, int]:
    return (
        st.st_atime_ns if change.atime_ns is None else change.atime_ns,
        st.st_mtime_ns if change.mtime_ns is None else change.mtime_ns,
    )


# Extended attributes. There is no *at call for them before Linux 6.13: the way goes through /proc/self/fd,
# whose first component is a directory of ours and whose second is the name itself, not followed.


def xattr_path(dir_fd: int, name: bytes) -> bytes:
    """A path to *name* for the xattr calls, to be used with follow_symlinks=False."""
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


def get_xattr(dir_fd: int, name: bytes, attribute: bytes) -> bytes:
    return os.getxattr(xattr_path(dir_fd, name), attribute, follow_symlinks=False)


def list_xattrs(dir_fd: int, name: bytes) -> list[bytes]:
    return [os.fsencode(each) for each in os.listxattr(xattr_path(dir_fd, name), follow_symlinks=False)]


def set_xattr(dir_fd: int, name: bytes, attribute: bytes, value: bytes) -> None:
    os.setxattr(xattr_path(dir_fd, name), attribute, value, follow_symlinks=False)


def remove_xattr(dir_fd: int, name: bytes, attribute: bytes) -> None:
    os.removexattr(xattr_path(dir_fd, name), attribute, follow_symlinks=False)
