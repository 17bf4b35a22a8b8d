"""The time of points: UTC milliseconds that only ever go forward, also when the machine's clock is set back."""

from __future__ import annotations


class HybridClock:
    """A clock for one workspace. *last_ms* is the time of its newest point (0: it has none)."""

    def __init__(self, last_ms: int = 0) -> None:
        self.last_ms = last_ms

    def tick(self, now_ms: int) -> int:
        """The time of a new point: *now_ms*, or a millisecond after the last one if that is later."""
        self.last_ms = max(now_ms, self.last_ms + 1)
        return self.last_ms
