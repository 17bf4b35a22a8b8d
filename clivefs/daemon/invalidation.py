"""Telling the kernel what it must forget, from threads of its own.

An invalidation may block until a request about the same directory or page is answered, and answering is the
loop's work: so it is never sent from the loop, and no handler ever waits for these threads. A name also waits for
everybody who is at work in its directory. So a few threads take turns, and one directory has one thread at a time:
where much is going on, invalidations queue up, and those of other directories and files pass them.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from itertools import islice
from typing import NamedTuple, Protocol

log = logging.getLogger(__name__)

_THREADS = 4
_NAMES_A_TURN = 32
_CLOSE_S = 1.0
_AGAIN_S = (0.05, 0.5)
"""When an inode that the kernel did not know is told of again: it may be that it had not taken the answer in yet that
tells it of the inode, with what is now out of date."""

_HARMLESS = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST)


class Notifier(Protocol):
    """What a transport offers for it."""

    def invalidate_inode(self, nodeid: int, attributes_only: bool) -> None: ...

    def invalidate_entry(self, parent: int, name: bytes) -> None: ...


class _Inode(NamedTuple):
    """An inode to be told of; `asked` is a place in the order of asking."""

    attributes_only: bool
    asked: int
    repeats: int = 0


class _Turn(NamedTuple):
    """What one thread sends in one go: an inode, or names of one directory."""

    nodeid: int
    inode: _Inode | None
    names: list[bytes]
    asked: int
    """The place of the first of them."""


class Invalidator:
    """Coalescing queues in front of a `Notifier`: what is asked twice before it is sent goes out once, so they are
    never longer than the number of names and inodes that the kernel knows."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._asked = 0
        self._inodes: dict[int, _Inode] = {}
        self._names: dict[int, dict[bytes, int]] = {}
        """By directory, in the order of their turns; with the place of each name in the order of asking."""
        self._again: tuple[deque[tuple[float, int, _Inode]], ...] = tuple(deque() for _ in _AGAIN_S)
        """(when, number, inode) for each repeat."""
        self._sending: dict[int, _Turn] = {}
        """By thread."""
        self._names_next = False
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._sent = threading.Condition(self._lock)
        self._closed = False
        self._threads = [
            threading.Thread(target=self._run, name=f"invalidate {number}", daemon=True) for number in range(_THREADS)
        ]

    def start(self) -> None:
        """Begin to send: the mount is there now, and the kernel knows nothing of what came before."""
        with self._lock:
            self._forget()
        for thread in self._threads:
            thread.start()

    def _forget(self) -> None:
        self._inodes.clear()
        self._names.clear()
        for queue in self._again:
            queue.clear()

    def inode(self, nodeid: int, *, attributes_only: bool = False) -> None:
        """Forget the attributes, and unless *attributes_only* the pages, of an inode."""
        with self._lock:
            self._asked += 1
            waiting = self._inodes.get(nodeid)
            asked = waiting.asked if waiting is not None else self._asked
            self._inodes[nodeid] = _Inode(attributes_only and (waiting is None or waiting.attributes_only), asked)
            self._wake.notify()

    def entry(self, parent: int, name: bytes) -> None:
        """Forget what *name* leads to in the directory *parent*, or that it does not exist."""
        self.entries(parent, (name,))

    def entries(self, parent: int, names: Sequence[bytes]) -> None:
        """As `entry`, for many names, at least one: whoever sends them is woken once."""
        with self._lock:
            waiting = self._names.setdefault(parent, {})
            for name in names:
                self._asked += 1
                waiting.setdefault(name, self._asked)
            self._wake.notify()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything asked so far was sent; false when that took too long. Not from the loop."""
        with self._lock:
            until = self._asked
            return self._sent.wait_for(lambda: self._closed or self._oldest() > until, timeout_s)

    def _oldest(self) -> int:
        """The place of the oldest wish that was not sent."""
        firsts = [next(iter(names.values())) for names in self._names.values()]
        firsts += [turn.asked for turn in self._sending.values()]
        firsts += [inode.asked for inode in self._inodes.values()]
        return min(firsts, default=self._asked + 1)

    def close(self) -> None:
        """Send nothing any more; to be called before the mount is taken away."""
        with self._lock:
            self._closed = True
            self._forget()
            self._wake.notify_all()
            self._sent.notify_all()
        until = time.monotonic() + _CLOSE_S
        for thread in self._threads:
            if thread.is_alive():  # one that is sending may wait for an answer that never comes
                thread.join(max(0.0, until - time.monotonic()))

    # In the threads

    def _run(self) -> None:
        me = threading.get_ident()
        while True:
            with self._lock:
                self._sending.pop(me, None)
                self._sent.notify_all()
                self._wake.notify()  # the directory that was busy may have more
                turn = self._take()
                while turn is None and not self._closed:
                    self._wake.wait(self._until_again())
                    turn = self._take()
                if turn is None or self._closed:
                    return
                self._sending[me] = turn
            if turn.inode is not None:
                self._send_inode(turn.nodeid, turn.inode)
            for name in turn.names:
                if self._closed:
                    return
                self._send_name(turn.nodeid, name)

    def _take(self) -> _Turn | None:
        """What to send next: inodes and directories by turns."""
        self._renew()
        self._names_next = not self._names_next
        if self._names_next:
            return self._take_names() or self._take_inode()
        return self._take_inode() or self._take_names()

    def _take_inode(self) -> _Turn | None:
        for nodeid, inode in self._inodes.items():
            del self._inodes[nodeid]
            return _Turn(nodeid, inode, [], inode.asked)
        return None

    def _take_names(self) -> _Turn | None:
        busy = {turn.nodeid for turn in self._sending.values() if turn.names}
        for parent, names in self._names.items():
            if parent in busy:
                continue
            del self._names[parent]
            taken = list(islice(names, _NAMES_A_TURN))
            asked = next(iter(names.values()))
            for name in taken:
                del names[name]
            if names:
                self._names[parent] = names  # behind the others
            return _Turn(parent, None, taken, asked)
        return None

    def _send_name(self, parent: int, name: bytes) -> None:
        try:
            self._notifier.invalidate_entry(parent, name)
        except OSError as error:
            self._complain(error)

    def _send_inode(self, nodeid: int, inode: _Inode) -> None:
        try:
            self._notifier.invalidate_inode(nodeid, inode.attributes_only)
        except OSError as error:
            if error.errno == errno.ENOENT and inode.repeats < len(_AGAIN_S):
                due_s = time.monotonic() + _AGAIN_S[inode.repeats]
                with self._lock:
                    if not self._closed:
                        self._again[inode.repeats].append((due_s, nodeid, inode._replace(repeats=inode.repeats + 1)))
            self._complain(error)

    def _complain(self, error: OSError) -> None:
        if error.errno not in _HARMLESS and not self._closed:
            log.warning("the kernel refused an invalidation: %s", error)

    # Inodes that the kernel did not know

    def _renew(self) -> None:
        """Queue those whose time has come."""
        now = time.monotonic()
        for queue in self._again:
            while queue and queue[0][0] <= now:
                _, nodeid, inode = queue.popleft()
                if nodeid not in self._inodes:
                    self._asked += 1
                    self._inodes[nodeid] = inode._replace(asked=self._asked)

    def _until_again(self) -> float | None:
        dues_s = [queue[0][0] for queue in self._again if queue]
        return max(0.0, min(dues_s) - time.monotonic()) if dues_s else None
