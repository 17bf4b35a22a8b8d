"""Directories of the store that somebody uses: repositories and private gitdirs. A collection removes none of them.

Who uses one holds it by a shared flock(2) until its `InUse` is closed or forgotten; the kernel lets go of it when the
process dies. A collection takes an exclusive one, renames the directory, and lets go: so whoever has come to hold it
makes sure that it still is what has the name.
"""

from __future__ import annotations

import fcntl
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class InUse:
    """Somebody uses the directory *path* as long as this lives and is not closed."""

    def __init__(self, path: str) -> None:
        """FileNotFoundError where there is none (any more). Waits while one is being removed, some milliseconds."""
        fd = os.open(path, _FLAGS)
        self.close = weakref.finalize(self, os.close, fd)
        """Let go of it; once is enough."""
        fcntl.flock(fd, fcntl.LOCK_SH)
        if not os.path.samestat(os.fstat(fd), os.stat(path, follow_symlinks=False)):
            raise FileNotFoundError(path)


@contextmanager
def unused(path: str) -> Iterator[bool]:
    """Whether nobody uses the directory *path*; if so, nobody comes to before the block ends."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        yield False
        return
    with locked_alone(fd) as alone:
        yield alone


@contextmanager
def locked_alone(fd: int) -> Iterator[bool]:
    """Whether nobody else has locked the file behind *fd*, which is owned from now on; if so, nobody comes to before
    the block ends."""
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(fd)
