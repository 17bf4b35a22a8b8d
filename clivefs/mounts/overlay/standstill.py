"""A tree that is changed in many steps, of which nobody may see only some: who asks meanwhile waits.

Between `begin` and `end` everything that is asked of the tree through its mount is `Blocked`, writes to open files
included. Its owner works in spans of the loop's thread (`at_work`), and others have the loop between them. What is in
the kernel's caches, attributes, and reads from files that are open go on: they show what was before. Writes that a
thread had begun before are done when `wait_for_writes` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from clivefs.mounts.tree import Blocked

_WAIT_S = 600.0
"""Longer than any change takes; and with a limit, so that who waits is told in the end."""


class _Over:
    """The end of one standstill. For the loop's thread, but for `wait`."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._told: list[Callable[[], object]] = []

    def wait(self, timeout_s: float | None = None) -> None:
        self._event.wait(timeout_s)

    def tell(self, callback: Callable[[], object]) -> None:
        """Call *callback* when it is over."""
        if self._event.is_set():
            callback()
        else:
            self._told.append(callback)

    def set(self) -> None:
        self._event.set()
        for callback in self._told:
            callback()


class Standstill:
    """Of one tree. For the loop's thread, but for `check`, `wait_for_writes` and what belongs to a write."""

    __slots__ = ("_at_work", "_over", "_quiet", "_thread", "_writes")

    def __init__(self) -> None:
        self._over: _Over | None = None
        self._thread = 0
        self._at_work = False
        self._quiet = threading.Condition()
        """Guards what writes in threads look at and change."""
        self._writes = 0

    def begin(self) -> None:
        """From now on others wait."""
        assert self._over is None
        self._thread = threading.get_ident()
        with self._quiet:
            self._over = _Over()

    def end(self) -> None:
        """They go on. Harmless where there is none."""
        if self._over is not None:
            over, self._over = self._over, None
            over.set()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within this span the tree is its owner's."""
        self._at_work = True
        try:
            yield
        finally:
            self._at_work = False

    def check(self) -> None:
        """Wait in a thread; `Blocked` on the loop's, but for the owner."""
        over = self._over
        if over is None:
            return
        if threading.get_ident() != self._thread:
            over.wait(_WAIT_S)
        elif not self._at_work:
            raise _blocked(over)

    # Writes to open files

    def begin_write(self) -> None:
        """A write is about to be made, in whatever thread; `end_write` when it is. `Blocked` in threads too: many may
        want to write, and a thread that waited would be missing elsewhere."""
        with self._quiet:
            over = self._over
            if over is not None and not (self._at_work and threading.get_ident() == self._thread):
                raise _blocked(over)
            self._writes += 1

    def end_write(self) -> None:
        with self._quiet:
            self._writes -= 1
            if not self._writes:
                self._quiet.notify_all()

    @property
    def writing(self) -> bool:
        """Whether a write is being made."""
        return self._writes > 0

    def wait_for_writes(self) -> None:
        """Return when none is being made; after `begin` there are no new ones. For threads."""
        with self._quiet:
            self._quiet.wait_for(lambda: not self._writes)


def _blocked(over: _Over) -> Blocked:
    return Blocked(over.wait, "a change of many files", timeout_s=_WAIT_S, until=over.tell)
