"""A tree that is changed in many steps, of which nobody may see only some: who asks meanwhile waits.

Between `begin` and `end` everything that is asked of the tree through its mount is `Blocked`, writes to open files
included. Its owner works in spans of the loop's thread (`at_work`), and others have the loop between them. What is in
the kernel's caches, attributes, and reads from files that are open go on: they show what was before.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from clivefs.mounts.tree import Blocked

_WAIT_S = 600.0
"""Longer than any change takes; and with a limit, so that it is waited for where the network is."""


class Standstill:
    """Of one tree. For the loop's thread, but for `check`."""

    __slots__ = ("_at_work", "_over", "_thread")

    def __init__(self) -> None:
        self._over: threading.Event | None = None
        self._thread = 0
        self._at_work = False

    def begin(self) -> None:
        """From now on others wait."""
        assert self._over is None
        self._thread = threading.get_ident()
        self._over = threading.Event()

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
            raise Blocked(lambda: _wait(over), "a change of many files", timeout_s=_WAIT_S)


def _wait(over: threading.Event) -> None:
    over.wait()
