"""Who waits, and with what: many who may not write yet take no thread from others."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import trio
import trio.testing

from clivefs.fuse.waiting import Jobs, Writes
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.node import OverlayFile, OverlayNode
from clivefs.mounts.overlay.standstill import Standstill
from clivefs.mounts.synthetic import SyntheticTree
from clivefs.mounts.tree import Blocked, OpenFile, Owner

WRITERS = 60
LIMIT_S = 20.0


class Paper(OpenFile):
    """Notes what is written to it, after *may_write*."""

    def __init__(self) -> None:
        self.written: list[int] = []
        self.writing = threading.Semaphore(0)
        self.may_write = threading.Event()

    def read(self, offset: int, size: int) -> bytes:
        return b""

    def write(self, offset: int, data: bytes) -> int:
        self.writing.release()
        assert self.may_write.wait(LIMIT_S)
        self.written.append(offset)
        return len(data)


@pytest.fixture
def paper() -> Paper:
    return Paper()


@pytest.fixture
def standstill() -> Standstill:
    return Standstill()


@pytest.fixture
def file(paper: Paper, standstill: Standstill) -> OverlayFile:
    tree = SyntheticTree(NodeTable(), Owner(0, 0), 0)
    node = OverlayNode(tree, None, b"file", 0o100000)
    return OverlayFile(lambda _: None, standstill, node, paper, keep_cache=False)


async def others_get_on() -> None:
    """The daemon's other work in threads."""
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(trio.to_thread.run_sync, lambda: None)


async def test_writers_wait_for_a_standstill_without_threads(
    file: OverlayFile, paper: Paper, standstill: Standstill
) -> None:
    jobs, writes = Jobs(), Writes()
    paper.may_write.set()
    standstill.begin()
    threads = threading.active_count()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(WRITERS):
                nursery.start_soon(jobs.in_thread, partial(file.write, number, b"x"), "write", writes.limiter)
            await trio.testing.wait_all_tasks_blocked()
            while writes.limiter.borrowed_tokens:
                await trio.sleep(0.001)
            await others_get_on()
            assert paper.written == []
            assert trio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
            assert threading.active_count() - threads <= writes.limiter.total_tokens + 10  # idle ones, at most
            standstill.end()
    assert sorted(paper.written) == list(range(WRITERS))


async def test_the_loop_waits_for_it_as_well(file: OverlayFile, paper: Paper, standstill: Standstill) -> None:
    paper.may_write.set()
    standstill.begin()
    with pytest.raises(Blocked) as refused:
        file.write(0, b"x")
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Jobs().settle, partial(file.write, 0, b"x"), refused.value, "write")
            await others_get_on()
            assert paper.written == []
            with standstill.at_work():
                file.write(1, b"mine")
            standstill.end()
    assert paper.written == [1, 0]


async def test_writers_that_the_disk_holds_up_have_threads_of_their_own(file: OverlayFile, paper: Paper) -> None:
    jobs, writes = Jobs(), Writes()
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            for number in range(WRITERS):
                nursery.start_soon(jobs.in_thread, partial(file.write, number, b"x"), "write", writes.limiter)
            await trio.to_thread.run_sync(paper.writing.acquire)
            await others_get_on()
            paper.may_write.set()
    assert sorted(paper.written) == list(range(WRITERS))


async def test_a_standstill_has_the_writes_that_began_before(
    file: OverlayFile, paper: Paper, standstill: Standstill
) -> None:
    """What a thread was writing when the tree came to a stand must not come after what is decided then."""
    jobs, seen = Jobs(), []
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(jobs.in_thread, partial(file.write, 0, b"x"), "write")
            await trio.to_thread.run_sync(paper.writing.acquire)
            assert standstill.writing
            standstill.begin()
            nursery.start_soon(jobs.in_thread, partial(file.write, 1, b"x"), "write")

            async def decide() -> None:
                await trio.to_thread.run_sync(standstill.wait_for_writes)
                seen.append(list(paper.written))
                standstill.end()

            nursery.start_soon(decide)
            await others_get_on()
            assert seen == []
            paper.may_write.set()
    assert seen == [[0]]
    assert paper.written == [0, 1]
