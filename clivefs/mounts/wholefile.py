"""Files in directories of the user that get their content whole or not at all, and leave nothing beside them.

A new file has no name until it is on disk (O_TMPFILE, where the filesystem has that). Only to take another file's place
it needs one for a moment, as link(2) replaces nothing. That name, and the one that it has from the start elsewhere, is
recognised (`is_temporary`): nothing of that name is recorded, and what a killed process has left of them goes at the
next mount (`sweep`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import RENAME_NOREPLACE, rename_at
from clivefs.mounts.host.calls import proc_path
from clivefs.mounts.steps import STAGING

_ENDING = b".new"
_NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL)
"""What open(2) says where there is no O_TMPFILE: by the filesystem, or by an old kernel."""


def temporary_beside(path: bytes) -> bytes:
    """The name under which a file is written before it gets the name *path*: one that can be found again after a crash,
    is not too long whatever *path* is, and is found by no pattern of `patches`."""
    head, slash, name = path.rpartition(b"/")
    return head + slash + STAGING + sha256(name).hexdigest()[:16].encode() + _ENDING


def one_of_many_beside(name: bytes) -> bytes:
    """The same for a file that several may write at once."""
    return temporary_beside(name).removesuffix(_ENDING) + b"-" + os.urandom(6).hex().encode() + _ENDING


def is_temporary(name: bytes) -> bool:
    """Whether *name* is one that the functions above give."""
    return name.startswith(STAGING) and name.endswith(_ENDING)


def sweep(dir_fd: int) -> None:
    """Remove what killed processes have left in a directory (not O_PATH). OSError."""
    for name in map(os.fsencode, os.listdir(dir_fd)):
        if is_temporary(name):
            with suppress(FileNotFoundError, IsADirectoryError):
                os.unlink(name, dir_fd=dir_fd)


class NewFile:
    """A file that is on disk and is to get the name *name* in the open directory *dir_fd*."""

    def __init__(self, dir_fd: int, name: bytes, mode: int) -> None:
        self._dir_fd = dir_fd
        self._name = name
        self._temporary: bytes | None = None
        try:
            self.fd = os.open(".", os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, mode, dir_fd=dir_fd)
        except OSError as error:
            if error.errno not in _NO_UNNAMED:
                raise
            temporary = one_of_many_beside(name)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self.fd = os.open(temporary, flags, mode, dir_fd=dir_fd)
            self._temporary = temporary

    def replace(self) -> None:
        """Take the place of whatever has the name."""
        temporary = self._temporary
        if temporary is None:
            temporary = one_of_many_beside(self._name)
            self._link(temporary)
            self._temporary = temporary
            FAULTS.hit("wholefile.named")
        os.rename(temporary, self._name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        self._temporary = None

    def appear(self) -> None:
        """Get the name. FileExistsError where something has it."""
        temporary = self._temporary
        if temporary is None:
            self._link(self._name)
            return
        try:
            rename_at(self._dir_fd, temporary, self._dir_fd, self._name, RENAME_NOREPLACE)
            self._temporary = None
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOSYS):
                raise
            # A filesystem without NOREPLACE. The other name goes with `close`.
            os.link(temporary, self._name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)

    def _link(self, name: bytes) -> None:
        os.link(os.fsencode(proc_path(self.fd)), name, dst_dir_fd=self._dir_fd, follow_symlinks=True)

    def close(self) -> None:
        os.close(self.fd)
        if self._temporary is not None:
            with suppress(FileNotFoundError):
                os.unlink(self._temporary, dir_fd=self._dir_fd)


@contextmanager
def new_file(
    dir_fd: int, name: bytes, content: bytes, *, like: os.stat_result | None = None, mode: int = 0o666
) -> Iterator[NewFile]:
    """A file with *content*, on disk, that has no name yet, with permissions and owner of *like* as far as permitted,
    else with *mode* less the umask. In the block it may be given its name; otherwise it is gone after it."""
    made = NewFile(dir_fd, name, mode if like is None else 0o600)
    try:
        with open(made.fd, "wb", closefd=False) as file:
            file.write(content)
        if like is not None:
            _take_after(made.fd, like)
        os.fsync(made.fd)
        yield made
    finally:
        made.close()


def _take_after(fd: int, like: os.stat_result) -> None:
    made = os.fstat(fd)
    if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
        with suppress(PermissionError):  # somebody else's file in a directory of ours becomes ours, as in any editor
            os.chown(fd, like.st_uid, like.st_gid)
    os.chmod(fd, stat.S_IMODE(like.st_mode) & 0o777)
