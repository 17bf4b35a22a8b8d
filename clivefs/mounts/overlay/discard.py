"""What an upper does not need any more: deleted in a thread, since that takes as long as there are files.

A reset moves whole trees from `tree/` to `work/`, which is one rename each, and gives them here. From then on nobody
reaches them by name. The inode numbers of deleted files may be given to new ones at once, while what was known of the
old ones is forgotten only later, by the loop. So the thread says of each number that it is free *before* it is, and
who makes a file in the upper takes its number back (`reborn`).
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable

from clivefs.base.ports import FAULTS
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, chmod_at, stat_at

_AT_ONCE_BYTES_MAX = 1 << 20
"""A larger file takes the filesystem some time to free."""


class Discard:
    """The files on their way out of one upper. The loop's but for the jobs of `take`."""

    def __init__(self, new_name: Callable[[], bytes]) -> None:
        """*new_name* gives names in `work/` that nothing has, in any thread."""
        self._new_name = new_name
        self._waiting: list[bytes] = []
        self._freed: set[int] = set()

    def add(self, work_fd: int, name: bytes, *, at_once: bool = True) -> None:
        """*name* of `work/` is to be deleted: now if it is a small file and *at_once*, else by the next job."""
        if not at_once:
            self._waiting.append(name)
            return
        found = stat_at(work_fd, name)
        if stat.S_ISDIR(found.st_mode) or found.st_size > _AT_ONCE_BYTES_MAX:
            self._waiting.append(name)
        else:
            destroy(work_fd, name, self._freed.add, self._new_name)

    def take(self, work_fd: int) -> Callable[[], None] | None:
        """What deletes everything that waits: to be called in a thread, once or more often. None: nothing waits."""
        if not self._waiting:
            return None
        names, self._waiting = self._waiting, []
        # Its own descriptor: the upper may be closed before the job runs, or while it does.
        holder = _Holder(os.dup(work_fd))

        def job() -> None:
            with holder.lock:
                while names:
                    destroy(holder.fd, names[-1], self._freed.add, self._new_name)
                    names.pop()

        return job

    def reborn(self, inode: int) -> None:
        """A new file has this number now."""
        self._freed.discard(inode)

    def freed(self, count: int) -> list[int]:
        """At most *count* numbers that no file has any more, or is about to have; each is told once."""
        found: list[int] = []
        while self._freed and len(found) < count:
            found.append(self._freed.pop())
        return found


class _Holder:
    """A descriptor that is closed when nobody can use it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lock = threading.Lock()

    def __del__(self) -> None:
        os.close(self.fd)


def destroy(work_fd: int, name: bytes, free: Callable[[int], object], new_name: Callable[[], bytes]) -> None:
    """Delete *name* of `work/` with everything below it. *free* is told of each inode number just before it is free.

    Others may be deleting the same: what is not there any more is no error.
    """
    # Flatten: every directory met is moved up into `work/` itself, so that depth costs no descriptors.
    waiting = [name]
    while waiting:
        top = waiting.pop()
        try:
            found = stat_at(work_fd, top)
            if stat.S_ISDIR(found.st_mode):
                waiting += _empty(work_fd, top, free, new_name)
                free(found.st_ino)
                os.rmdir(top, dir_fd=work_fd)
            else:
                _unlink(work_fd, top, found, free)
        except FileNotFoundError:
            continue


def _empty(work_fd: int, top: bytes, free: Callable[[int], object], new_name: Callable[[], bytes]) -> list[bytes]:
    """Delete the files in the directory *top*; the new names of its directories, which are in `work/` then."""
    chmod_at(work_fd, top, 0o700)
    moved: list[bytes] = []
    fd = os.open(top, DIRECTORY_FLAGS, dir_fd=work_fd)
    try:
        with os.scandir(fd) as listing:
            names = [os.fsencode(entry.name) for entry in listing]
        for each in names:
            try:
                st = stat_at(fd, each)
                if stat.S_ISDIR(st.st_mode):
                    chmod_at(fd, each, 0o700)
                    new = new_name()
                    os.rename(each, new, src_dir_fd=fd, dst_dir_fd=work_fd)
                    moved.append(new)
                else:
                    _unlink(fd, each, st, free)
            except FileNotFoundError:
                continue
    finally:
        os.close(fd)
    return moved


def _unlink(dir_fd: int, name: bytes, found: os.stat_result, free: Callable[[int], object]) -> None:
    if found.st_nlink == 1:
        free(found.st_ino)
    FAULTS.hit("overlay.discard")
    os.unlink(name, dir_fd=dir_fd)
