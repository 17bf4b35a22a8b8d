"""A plain directory of the host, driven by paths: what a `TreeDriver` is compared with."""

from __future__ import annotations

import errno
import os
import stat

from clivefs.base.syscalls import rename_at
from tests.contract.driver import Driver, Facts, File, facts


class PlainFile(File):
    """An open file of it."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)

    def write(self, offset: int, data: bytes) -> int:
        return os.pwrite(self.fd, data, offset)

    def stat(self) -> Facts:
        return facts(os.fstat(self.fd))

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def fsync(self) -> None:
        os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)


class PlainDriver(Driver):
    """Each method is a system call."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fsencode(root)

    def _path(self, path: bytes) -> bytes:
        """The host's path. As with the tree's driver, components are walked one by one, and no symlink is followed."""
        place = self.root
        for name in path.split(b"/")[:-1]:
            place += b"/" + name
            mode = os.lstat(place).st_mode
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, "the driver follows no symlink")
            if not stat.S_ISDIR(mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return self.root + b"/" + path if path else self.root

    def stat(self, path: bytes, *, times: bool = False) -> Facts:
        return facts(os.lstat(self._path(path)), times=times)

    def listdir(self, path: bytes) -> list[tuple[bytes, int]]:
        place = self._path(path)
        if os.path.islink(place):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return sorted((name, stat.S_IFMT(os.lstat(place + b"/" + name).st_mode)) for name in os.listdir(place))

    def inode(self, path: bytes) -> int:
        return os.lstat(self._path(path)).st_ino

    def readlink(self, path: bytes) -> bytes:
        return os.readlink(self._path(path))

    def _open(self, path: bytes, flags: int, mode: int = 0) -> PlainFile:
        return PlainFile(os.open(self._path(path), flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode))

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> PlainFile:
        mode = os.lstat(self._path(path)).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise OSError(errno.EOPNOTSUPP, "the driver opens regular files only")
        return self._open(path, flags)

    def create(self, path: bytes, mode: int = 0o644, flags: int = os.O_RDWR) -> PlainFile:
        return self._open(path, flags | os.O_CREAT | os.O_EXCL, mode)

    def append(self, path: bytes, data: bytes) -> int:
        file = self.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            return file.write(0, data)
        finally:
            file.close()

    def truncate(self, path: bytes, size: int) -> None:
        place = self._path(path)
        if os.path.islink(place):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        os.truncate(place, size)

    def mkdir(self, path: bytes, mode: int = 0o755) -> None:
        os.mkdir(self._path(path), mode)

    def mknod(self, path: bytes, mode: int, rdev: int = 0) -> None:
        os.mknod(self._path(path), mode, rdev)

    def symlink(self, target: bytes, path: bytes) -> None:
        os.symlink(target, self._path(path))

    def link(self, old: bytes, new: bytes) -> None:
        source = self._path(old)
        os.lstat(source)
        os.link(source, self._path(new), follow_symlinks=False)

    def unlink(self, path: bytes) -> None:
        os.unlink(self._path(path))

    def rmdir(self, path: bytes) -> None:
        os.rmdir(self._path(path))

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        rename_at(-100, self._path(old), -100, self._path(new), flags)

    def chmod(self, path: bytes, mode: int) -> None:
        place = self._path(path)
        if os.path.islink(place):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        os.chmod(place, mode)

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        os.chown(self._path(path), uid, gid, follow_symlinks=False)

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._path(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return os.getxattr(self._path(path), name, follow_symlinks=False)

    def listxattr(self, path: bytes) -> list[bytes]:
        return sorted(os.fsencode(name) for name in os.listxattr(self._path(path), follow_symlinks=False))

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        os.setxattr(self._path(path), name, value, follow_symlinks=False)

    def removexattr(self, path: bytes, name: bytes) -> None:
        os.removexattr(self._path(path), name, follow_symlinks=False)

    def fsync_dir(self, path: bytes) -> None:
        fd = os.open(self._path(path), os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
