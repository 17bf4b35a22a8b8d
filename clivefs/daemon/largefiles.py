"""Reading large files aside: whoever records does not wait for them, and a barrier can."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from clivefs.base.errors import ClivefsError
from clivefs.mounts.assembly.recorded import LivePart
from clivefs.mounts.recording.parts import Dirty, Part
from clivefs.mounts.recording.recorder import Recorder

log = logging.getLogger(__name__)

_READERS = 2
"""Large files of a workspace that are read at a time."""
_IDLE_S = 0.2
"""Without a change for so long, they are read."""
_BUSY_S = 5.0
"""Where there is always a change, they are read after this."""


class LargeFiles:
    """The large files of one workspace that are being read. For the loop's thread."""

    def __init__(
        self, failed: Callable[[Exception], None], last_s: Callable[[], float], is_hurried: Callable[[], bool]
    ) -> None:
        """*last_s*: when something changed last, by the monotonic clock. *is_hurried*: whether somebody waits."""
        self._failed = failed
        self._last_s = last_s
        self._pending: set[Dirty] = set()
        self._readers = trio.CapacityLimiter(_READERS)
        self._read = trio.Event()
        """Set when one of them has been; then there is another event for the next."""
        self._is_hurried = is_hurried

    def pending(self) -> frozenset[Dirty]:
        """Those that have not been read yet."""
        return frozenset(self._pending)

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
        self._pending.add(dirty)
        live_part.hold()

        async def read() -> None:
            try:
                await self._wait_for_idle()
                await trio.to_thread.run_sync(recorder.prepare, part, dirty.path, limiter=self._readers)
            except (OSError, ClivefsError) as error:
                self._failed(error)
            except Exception:
                log.exception("reading %r aside failed", dirty.path)
            finally:  # also when cancelled: no await in here
                live_part.release()
                self._pending.discard(dirty)
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

    async def wait_for(self, wanted: set[Dirty]) -> None:
        """Until all of *wanted* have been read."""
        while wanted & self._pending:
            await self._read.wait()
