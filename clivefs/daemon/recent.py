"""Which paths were dirty lately, and in which order: what git's fsmonitor asks for.

Points cannot tell it: a file that was changed and changed back between two points, or by `undo`, is the same in both,
and git, which looked at it in between, has to look again.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable

PATHS_MAX = 100_000


class Recent:
    """The paths of one live view by the turn in which they were last taken to be recorded. For one thread."""

    def __init__(self, paths_max: int = PATHS_MAX) -> None:
        self.instance = os.urandom(8).hex()
        """Turns are counted anew whenever the workspace is mounted."""
        self.turn = 0
        self._turns: dict[bytes, int] = {}
        """In the order of the turns."""
        self._known_from = 0
        """What was dirty in this turn or an earlier one is not known any more."""
        self._paths_max = paths_max

    def add(self, paths: Iterable[bytes]) -> None:
        """These are dirty, and have their turn. A directory stands for all that is in it."""
        self.turn += 1
        for path in paths:
            self._turns.pop(path, None)
            self._turns[path] = self.turn
        while len(self._turns) > self._paths_max:
            oldest = next(iter(self._turns))
            self._known_from = self._turns.pop(oldest)

    def add_everything(self) -> None:
        """Anything may be."""
        self.turn += 1
        self._known_from = self.turn
        self._turns.clear()

    def since(self, turn: int) -> set[bytes] | None:
        """The paths of later turns than that; None where they are not known."""
        if not self._known_from <= turn <= self.turn:
            return None
        later = itertools.takewhile(lambda item: item[1] > turn, reversed(self._turns.items()))
        return {path for path, _ in later}
