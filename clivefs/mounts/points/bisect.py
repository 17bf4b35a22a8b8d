"""The search for the first bad of a row of points, of which some cannot be judged. Pure: who asks runs the test."""

from __future__ import annotations

from enum import Enum


class Verdict(Enum):
    """What a test says of a point."""

    GOOD = "good"
    BAD = "bad"
    SKIP = "skip"


class Bisection:
    """Of points 0 to *count* - 1, the first good and the last bad. Ask `next`, and `note` what the test says of it."""

    def __init__(self, count: int) -> None:
        self._good = 0
        self._bad = count - 1
        self._skipped: set[int] = set()

    @property
    def first_bad(self) -> int:
        """The first bad point as far as is known."""
        return self._bad

    @property
    def suspects(self) -> range:
        """The points of which one is the first bad one."""
        return range(self._good + 1, self._bad + 1)

    def next(self) -> int | None:
        """The point to be tested: as near the middle as those that were skipped leave; None when nothing is left."""
        low, high = self._good + 1, self._bad - 1
        middle = (low + high) // 2
        for distance in range(high - low + 1):
            for each in (middle - distance, middle + distance):
                if low <= each <= high and each not in self._skipped:
                    return each
        return None

    def note(self, point: int, verdict: Verdict) -> None:
        """Take up what was said of *point*, which `next` gave."""
        if verdict is Verdict.GOOD:
            self._good = point
        elif verdict is Verdict.BAD:
            self._bad = point
        else:
            self._skipped.add(point)
