"""How fast a long recording goes: whoever uses the mount goes first.

Whoever records computes in a thread, and Python lets one thread run at a time. Beside a thread that never rests each
request waits for half a millisecond, which is twenty times what answering it takes: the first `git status` in a
checkout of 100,000 files took 31 s while all of it was recorded for the first time. So a recording that is not
over soon works for a moment and rests while requests come, for as long as `_REST_S`: it then has less than a tenth of
the time, and all of it once nobody asks any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_SOON_S = 0.05
"""A recording that is over so soon does not rest: a save waits for it."""
_WORK_S = 0.002
_REST_S = 0.025
_LOOK_S = 0.005
"""How often a resting one looks whether requests still come."""


class Pace:
    """The pace of one recorder. `begin` and `give_way` are for the thread that records, `hurried` for any."""

    def __init__(
        self,
        asked_s: Callable[[], float],
        sleep: Callable[[float], None] = time.sleep,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        """*asked_s*: when somebody last asked the mount something, by *clock_s*."""
        self._asked_s = asked_s
        self._sleep = sleep
        self._clock_s = clock_s
        self._works_until_s = 0.0
        self._hurried = 0

    def begin(self) -> None:
        """A recording begins."""
        self._works_until_s = self._clock_s() + _SOON_S

    def give_way(self) -> None:
        """Rest, if it is time to and requests come. To be called often."""
        now = self._clock_s()
        if now < self._works_until_s:
            return
        rested_s = now + _REST_S
        while now < rested_s and now - self._asked_s() < _LOOK_S and not self._hurried:
            self._sleep(_LOOK_S)
            now = self._clock_s()
        self._works_until_s = now + _WORK_S

    @property
    def is_hurried(self) -> bool:
        """Somebody waits."""
        return self._hurried > 0

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Somebody waits for the recording: it does not rest meanwhile."""
        self._hurried += 1
        try:
            yield
        finally:
            self._hurried -= 1
