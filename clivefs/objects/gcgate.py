"""The gate between whoever relies on objects that nothing leads to yet, and the collection that removes such objects.

`STORE/gc.lock`, by flock(2): so it holds among processes, and a killed one leaves nothing behind.

    shared      for as long as a batch lasts, from its first object until its refs are durable; and for whoever reads
                much of the past at once (`ObjectStore.reading`)
    exclusive   for the few milliseconds in which unreachable objects are removed

So when objects are removed no batch is under way: whatever one has relied on is reachable by then, or is not needed.
The collection never waits in line: it tries, and tries again.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress

NAME = b"gc.lock"


class Gate:
    """The gate of one open store. Any thread may come in, any number of times."""

    def __init__(self, store_fd: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(NAME, flags, 0o600, dir_fd=store_fd)
        # A lock of its own: a shared one that is turned into an exclusive one is lost where that fails.
        self._own_fd = os.open(NAME, flags, 0o600, dir_fd=store_fd)
        self._mutex = threading.Lock()
        self._pid = os.getpid()
        self._inside = 0

    def enter(self) -> None:
        """Come in: nothing is removed until `leave`. Waits while something is, some milliseconds."""
        with self._mutex:
            if not self._inside:
                fcntl.flock(self._fd, fcntl.LOCK_SH)
            self._inside += 1

    def leave(self) -> None:
        with self._mutex:
            self._inside -= 1
            if not self._inside and self._fd >= 0:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether nobody is inside; if so, nobody comes in until the block ends. For one thread at a time."""
        try:
            fcntl.flock(self._own_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            fcntl.flock(self._own_fd, fcntl.LOCK_UN)

    def holders(self) -> list[int]:
        """The processes that are inside, as far as /proc/locks tells of them."""
        st = os.fstat(self._fd)
        file = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
        found: set[int] = set()
        with suppress(OSError), open("/proc/locks", encoding="ascii", errors="replace") as locks:
            for line in locks:
                words = line.split()
                if len(words) > 5 and words[1] == "FLOCK" and words[5] == file and words[4].isdigit():
                    found.add(int(words[4]))
        return sorted(found)

    def close(self) -> None:
        # In a forked child some thread of the parent's may hold the mutex for ever; the child has no other threads.
        with self._mutex if os.getpid() == self._pid else nullcontext():
            for fd in (self._fd, self._own_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._own_fd = -1
