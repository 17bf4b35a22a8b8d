"""Waiting for large files that are read aside."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from clivefs.daemon import largefiles
from clivefs.daemon.largefiles import LargeFiles
from clivefs.mounts.recording.parts import Dirty


def test_one_that_is_done_when_it_is_time_to_tell_of_it() -> None:
    told: list[str] = []

    async def tell(text: str) -> None:
        told.append(text)

    async def main() -> None:
        large = LargeFiles(lambda error: None, lambda: 0.0, lambda: True)
        file = Dirty(b"", b"big")
        for _ in range(100):
            large._pending[file] = largefiles._Reading()

            async def end() -> None:
                await trio.sleep_until(trio.current_time() + largefiles._TELL_S)
                large._pending.clear()
                large._read.set()
                large._read = trio.Event()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(end)
                assert await large.wait_for({file}, tell=tell)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert set(told) <= {"waiting for big to be recorded"}
