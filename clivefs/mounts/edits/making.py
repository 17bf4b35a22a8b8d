"""The files that a rebase writes, made before anybody has to wait for them: complete, in the upper's `work/`.

What takes time (content, attributes, blocks of the disk) is done here, in a thread, while others go on. To show one is
one rename then (`OverlayTree.put`), and that is done only if the file that is replaced is the one that was looked at.
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple

from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.edits.diff import git_mode
from clivefs.mounts.host.calls import IS_ROOT, get_xattr, list_xattrs
from clivefs.mounts.overlay.copyup import Copy, start_writing
from clivefs.mounts.overlay.upper import PathFds, Upper, stat_for_us, unlink_work
from clivefs.mounts.tree import Owner

_USER = b"user."
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Made(NamedTuple):
    """A finished file for one place."""

    copy: Copy
    replaces: int
    """The inode number of the upper's file that it takes the place of; 0: of nothing."""


class Maker:
    """Makes files for *upper*, those that replace nothing for *owner*. For one thread at a time."""

    def __init__(self, upper: Upper, owner: Owner) -> None:
        self._upper = upper
        self._owner = owner
        self._work_fd = os.dup(upper.work_fd)
        self._fds = PathFds(upper.tree_fd)
        self._made: dict[bytes, Made] = {}

    def make(self, path: bytes, file: FileVersion) -> Made | None:
        """What is to be put at *path*, to show *file*, for `take`; None for what takes more than a rename: a symlink,
        the place of a directory, a directory that is not in the upper yet. OSError."""
        if not stat.S_ISREG(file.mode):
            return None
        head, _, name = path.rpartition(b"/")
        try:
            directory = self._fds.open(head)
        except (FileNotFoundError, NotADirectoryError):
            return None
        try:
            found: os.stat_result | None = stat_for_us(directory, name)
        except FileNotFoundError:
            found = None
        if found is not None and not stat.S_ISREG(found.st_mode):
            return None
        new = self._upper.work_name()
        fd = os.open(new, _FLAGS, file.mode & 0o777, dir_fd=self._work_fd)
        try:
            _write(fd, file.content)
            start_writing(fd)
            if found is not None:
                self._dress_as(fd, directory, name, found, file.mode)
            else:
                self._dress_new(fd, directory, file.mode)
            copy = Copy(new, os.fstat(fd).st_ino, file.mode)
        except BaseException:
            unlink_work(self._work_fd, new)
            raise
        finally:
            os.close(fd)
        made = self._made[path] = Made(copy, found.st_ino if found is not None else 0)
        return made

    def _dress_as(self, fd: int, directory: int, name: bytes, found: os.stat_result, mode: int) -> None:
        """The owner, the attributes and, if it is as executable, the permissions of the file that it replaces."""
        _chown(fd, found.st_uid, found.st_gid)
        for attribute in list_xattrs(directory, name):
            if attribute.startswith(_USER):
                os.setxattr(fd, attribute, get_xattr(directory, name, attribute))
        os.fchmod(fd, stat.S_IMODE(found.st_mode) if git_mode(found.st_mode) == mode else mode & 0o777)

    def _dress_new(self, fd: int, directory: int, mode: int) -> None:
        parent = os.fstat(directory)
        _chown(fd, self._owner.uid, parent.st_gid if parent.st_mode & stat.S_ISGID else self._owner.gid)
        os.fchmod(fd, mode & 0o777)

    def take(self, path: bytes) -> Made | None:
        """What was made for *path*, for whoever asks first: it is his. For any thread, when all is made."""
        return self._made.pop(path, None)

    def close(self) -> None:
        """Remove what nobody has taken."""
        self._fds.close()
        fd, self._work_fd = self._work_fd, -1
        if fd >= 0:
            for made in self._made.values():
                unlink_work(fd, made.copy.name)
            os.close(fd)


def _chown(fd: int, uid: int, gid: int) -> None:
    if IS_ROOT:
        found = os.fstat(fd)
        if (found.st_uid, found.st_gid) != (uid, gid):
            os.chown(fd, uid, gid)


def _write(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
