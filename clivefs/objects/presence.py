"""Which processes have a directory of files open that is now and then replaced by another: by flock(2) beside it.

PATH.open   shared by every process that has it open; exclusive for who replaces it
PATH.turn   exclusive for who tries to
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager


class Presence:
    """Who has an environment open: a lock beside its directory, shared; alone with it, exclusive."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(f"{path}.open", flags, 0o600)
        # An exclusive lock that is not had loses the shared one for a moment: nobody else may try just then.
        self._turn = os.open(f"{path}.turn", flags, 0o600)
        fcntl.flock(self._fd, fcntl.LOCK_SH)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether no other process has it open; if so, none opens it until the block ends."""
        try:
            fcntl.flock(self._turn, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                fcntl.flock(self._fd, fcntl.LOCK_SH)
                yield False
                return
            try:
                yield True
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_SH)
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._turn)
