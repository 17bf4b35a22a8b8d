"""Which files of a workspace have not been recorded as they are now for a while, being written to all the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable

from clivefs.mounts.recording.parts import Dirty, join, within

_LOOKS = 2
"""A file that could not be recorded at so many looks is being written to."""
_BEHIND_S = 5.0
_FILES_MAX = 1000


class Behind:
    """What recordings could not record yet. For the loop's thread."""

    def __init__(self, clock_s: Callable[[], float] = time.time) -> None:
        """*clock_s*: the time of day."""
        self._clock_s = clock_s
        self._files: dict[bytes, tuple[float, int]] = {}
        """Since when, and at how many looks, by path in the workspace."""

    def looked(self, at: Iterable[Dirty] | None, not_yet: Collection[Dirty]) -> None:
        """There was a recording that looked *at* these, at everything when None; *not_yet* could not be recorded."""
        before = self._files
        if before:
            looked_at = [b""] if at is None else [join(each.prefix, each.path) for each in at]
            self._files = {path: known for path, known in before.items() if not within(looked_at, path)}
        for each in not_yet:
            path = join(each.prefix, each.path)
            since_s, looks = before.get(path, (self._clock_s(), 0))
            if path in before or len(self._files) < _FILES_MAX:
                self._files[path] = since_s, looks + 1

    def files(self) -> list[tuple[bytes, int]]:
        """Those that are behind, and since when in ms."""
        latest_s = self._clock_s() - _BEHIND_S
        return [
            (path, int(since_s * 1000))
            for path, (since_s, looks) in sorted(self._files.items())
            if looks >= _LOOKS and since_s <= latest_s
        ]
