"""Reading large files aside: whoever records does not wait for them, and a barrier can."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.mounts.assembly.recorded import LivePart
from clivefs.mounts.recording.parts import Dirty, Part, join
from clivefs.mounts.recording.recorder import Recorder

log = logging.getLogger(__name__)

_READERS = 2
"""Large files of a workspace that are read at a time."""
_IDLE_S = 0.2
"""Without a change for so long, they are read."""
_BUSY_S = 5.0
"""Where there is always a change, they are read after this."""
_TELL_S = 1.0
"""How often who waits is told how far they are."""

Tell = Callable[[str], Awaitable[None]]


class _Reading:
    """One that is being read."""

    def __init__(self) -> None:
        self.since_s = time.monotonic()
        self.count = 0
        self.size = 0
        """In bytes; 0 until it is its turn."""

    def seen(self, count: int, size: int) -> None:
        """From the thread that reads."""
        self.count, self.size = count, size


class LargeFiles:
    """The large files of one workspace that are being read. For the loop's thread."""

    def __init__(
        self, failed: Callable[[Exception], None], last_s: Callable[[], float], is_hurried: Callable[[], bool]
    ) -> None:
        """*last_s*: when something changed last, by the monotonic clock. *is_hurried*: whether somebody waits."""
        self._failed = failed
        self._last_s = last_s
        self._pending: dict[Dirty, _Reading] = {}
        self._readers = trio.CapacityLimiter(_READERS)
        self._read = trio.Event()
        """Set when one of them has been; then there is another event for the next."""
        self._is_hurried = is_hurried

    def pending(self) -> frozenset[Dirty]:
        """Those that have not been read yet."""
        return frozenset(self._pending)

    def since_s(self, dirty: Dirty) -> float:
        """Since when one of them is being read, by the monotonic clock."""
        return self._pending[dirty].since_s

    def described(self, wanted: Collection[Dirty]) -> list[dict[str, Any]]:
        """How far those of *wanted* are that are being read: `path`, and of its `size` in bytes those `read`. A size of
        0: its turn is to come."""
        found = [(join(each.prefix, each.path), self._pending[each]) for each in wanted if each in self._pending]
        return [
            {"path": os.fsdecode(path), "read": reading.count, "size": reading.size} for path, reading in sorted(found)
        ]

    def start(
        self,
        nursery: trio.Nursery,
        recorder: Recorder,
        dirty: Dirty,
        live_part: LivePart,
        part: Part,
        done: Callable[[], None],
    ) -> None:
        """Read the file *dirty* of *part*; *done* is called when it has been, and is to be recorded."""
        if dirty in self._pending:
            return
        reading = self._pending[dirty] = _Reading()
        live_part.hold()

        async def read() -> None:
            try:
                await self._wait_for_idle()
                await trio.to_thread.run_sync(recorder.prepare, part, dirty.path, reading.seen, limiter=self._readers)
            except (OSError, ClivefsError) as error:
                self._failed(error)
            except Exception:
                log.exception("reading %r aside failed", dirty.path)
            finally:  # also when cancelled: no await in here
                live_part.release()
                del self._pending[dirty]
                done()
                self._read.set()
                self._read = trio.Event()

        nursery.start_soon(read)

    async def _wait_for_idle(self) -> None:
        """While much is being written, reading a large file would slow that down. Nobody waits long for it."""
        latest_s = time.monotonic() + _BUSY_S
        while not self._is_hurried():
            now = time.monotonic()
            if now >= min(latest_s, self._last_s() + _IDLE_S):
                return
            await trio.sleep(_IDLE_S / 4)

    async def wait_for(self, wanted: set[Dirty], until_s: float = math.inf, tell: Tell | None = None) -> bool:
        """Until all of *wanted* have been read, but no longer than *until_s* by the monotonic clock; whether they have
        been. *tell* is told how far they are."""
        while left := wanted & self._pending.keys():
            rest_s = until_s - time.monotonic()
            if rest_s <= 0:
                return False
            with trio.move_on_after(min(rest_s, _TELL_S)):
                await self._read.wait()
                continue
            described = self.described(left)  # the last may have been read in this very moment
            if tell is not None and rest_s > _TELL_S and described:
                await tell(_told(described))
        return True


def _told(described: list[dict[str, Any]]) -> str:
    """The one that is the furthest from its end, for people."""
    last = max(described, key=lambda each: int(each["size"]) - int(each["read"]))
    more = f" and {len(described) - 1} more" if described[1:] else ""
    done = f": {last['read'] / last['size']:.0%} read" if last["size"] else ""
    return f"waiting for {last['path']}{more} to be recorded{done}"
