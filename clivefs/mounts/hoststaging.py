"""New files in a staging directory that is a directory of the host: made in threads, with the fewest calls.

Nobody knows a node of them yet, so nothing of a tree is touched. The directory is ours alone (mode 0700), and whatever
has its names was made here or came here by an exchange.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from clivefs.mounts.attributes import change_owner, shown_mode
from clivefs.mounts.host.calls import IS_ROOT, proc_path
from clivefs.mounts.tree import Owner

_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHILD_FILES_MIN = 64
_CHILD_FILES_MAX = 4096
"""Names for one command line."""


class Made(NamedTuple):
    """A new file."""

    st: os.stat_result
    """But for times and permissions that were asked for."""
    owned: bool
    """It has the owner that was asked for."""


class HostStaging:
    """The directory behind *fd*, which is owned from now on; its files belong to *owner* unless said otherwise."""

    def __init__(self, fd: int, owner: Owner) -> None:
        self._fd = fd
        self._owner = owner
        self._hands_on_group = bool(os.fstat(fd).st_mode & stat.S_ISGID)

    def make(
        self,
        name: bytes,
        mode: int,
        write: Callable[[int], None],
        *,
        owner: tuple[int, int] | None = None,
        xattrs: tuple[tuple[bytes, bytes], ...] = (),
        mtime_ns: int | None = None,
    ) -> Made:
        """Make a regular file, which *write* fills by its descriptor. *mode*: permission bits. *owner*: user and group,
        where they are to be others. OSError."""
        fd = os.open(name, _FLAGS, mode & 0o777 | 0o200, dir_fd=self._fd)  # attributes are set by who may write
        try:
            write(fd)
            st = os.fstat(fd)
            now = (st.st_uid, st.st_gid)
            owned = change_owner(lambda uid, gid: os.chown(fd, uid, gid), now, owner or self._usual(st))
            mode = shown_mode(mode, owned=owned)
            for attribute, value in xattrs:
                os.setxattr(fd, attribute, value)
            if stat.S_IMODE(st.st_mode) != mode or mode & 0o6000:  # an ACL, or what chown(2) takes away
                os.chmod(fd, mode)
            if mtime_ns is not None:
                os.utime(fd, ns=(st.st_atime_ns, mtime_ns))
            return Made(st, owned)
        finally:
            os.close(fd)

    def link(self, name: bytes, new: bytes) -> int:
        """Make *new* another name of the file *name*; its inode number. OSError."""
        os.link(name, new, src_dir_fd=self._fd, dst_dir_fd=self._fd, follow_symlinks=False)
        return self.inode(new)

    def _usual(self, st: os.stat_result) -> tuple[int, int]:
        """User and group of a file of which nothing else is said."""
        if not IS_ROOT:
            return st.st_uid, st.st_gid
        return self._owner.uid, st.st_gid if self._hands_on_group else self._owner.gid

    def inode(self, name: bytes) -> int:
        """The inode number behind *name*; 0 where there is none."""
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False).st_ino
        except FileNotFoundError:
            return 0

    def rescue(self) -> list[bytes]:
        """Move directories, which are nothing of ours, out to where this one is; their names there. For a thread."""
        own = os.open(proc_path(self._fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        kept: list[bytes] = []
        try:
            with os.scandir(own) as listing:
                names = [os.fsencode(entry.name) for entry in listing if entry.is_dir(follow_symlinks=False)]
            if names:
                parent = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=own)
                try:
                    for name in names:
                        kept.append(b"clive-kept-" + os.urandom(6).hex().encode())
                        os.rename(name, kept[-1], src_dir_fd=own, dst_dir_fd=parent)
                finally:
                    os.close(parent)
        finally:
            os.close(own)
        return kept

    def give(self, names: Sequence[bytes], take: Callable[[int, bytes], bool]) -> bool:
        """Give the directory away, which has one of *names*, with all that is in it; whether *take* took it (told the
        descriptor of the directory that it is in, and its name). For a thread. OSError."""
        parent = os.open(b"..", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            own = os.fstat(self._fd)
            for name in names:
                try:
                    found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if os.path.samestat(found, own):
                    return take(parent, name)
            return False
        finally:
            os.close(parent)

    def sweep(self, but: Container[bytes]) -> None:
        """Remove all files but those; for a thread. OSError.

        Many of them by rm(1): a thread that makes a system call for each waits as often for the interpreter's lock,
        which the loop's thread has while it hears of all that has been renamed."""
        own = os.open(proc_path(self._fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names = [name for name in map(os.fsencode, os.listdir(own)) if name not in but]
            if len(names) >= _CHILD_FILES_MIN:
                for at in range(0, len(names), _CHILD_FILES_MAX):
                    if not _removed_by_child(own, names[at : at + _CHILD_FILES_MAX]):
                        break
                names = [name for name in map(os.fsencode, os.listdir(own)) if name not in but]
            for name in names:
                os.unlink(name, dir_fd=own)
        finally:
            os.close(own)

    def close(self) -> None:
        """Let go of the directory."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _removed_by_child(directory: int, names: Sequence[bytes]) -> bool:
    try:
        done = subprocess.run(
            [b"rm", b"-f", b"--", *names],
            cwd=proc_path(directory),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
    except OSError:  # there is no rm
        return False
    return done.returncode == 0
