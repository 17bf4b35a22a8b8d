"""The outside world as parameters: clock, randomness and named fault points.

Code takes these as arguments, so that a test owns them. The defaults are the real ones.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time in nanoseconds."""

    def now_ns(self) -> int:
        """Wall-clock time since the epoch, in nanoseconds."""
        ...

    def monotonic_ns(self) -> int:
        """Time that never goes back, in nanoseconds, from an unspecified start."""
        ...


class SystemClock:
    """The machine's own clock."""

    def now_ns(self) -> int:
        return time.time_ns()

    def monotonic_ns(self) -> int:
        return time.monotonic_ns()


class Rng(Protocol):
    """Randomness."""

    def token(self, size: int) -> bytes:
        """*size* random bytes."""
        ...


class SystemRng:
    """The kernel's randomness."""

    def token(self, size: int) -> bytes:
        return os.urandom(size)


class Faults:
    """Named fault points: `hit(name)` runs what a test planted there and costs one dict look-up when off.

    A planted action may raise (a failing disk) or end the process (a crash between two steps).
    """

    def __init__(self) -> None:
        self._planted: dict[str, Callable[[], None]] = {}

    def plant(self, name: str, action: Callable[[], None]) -> None:
        self._planted[name] = action

    def clear(self) -> None:
        self._planted.clear()

    def hit(self, name: str) -> None:
        if self._planted:
            action = self._planted.get(name)
            if action is not None:
                action()


FAULTS = Faults()
"""The process's fault points. Production code only ever calls `FAULTS.hit`."""
