"""A daemon collects by itself, by a child that begins nothing more once something is recorded."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from clivefs.daemon import collecting
from clivefs.daemon.collecting import Collecting, note_done
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.objects.store import Store
from tests.mounts.points.pointworlds import WORKSPACE, History, directory, regular

DAY_MS = 86_400_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


def old_points(store: Store, count: int) -> None:
    """Points of one day, forty days ago: a collection leaves one of them."""
    day = (time.time_ns() // 1_000_000 - 40 * DAY_MS) // DAY_MS * DAY_MS
    history = History(store, start_ms=day)
    for number in range(count):
        history.record(directory({b"a": regular(b"%d" % number)}), after_ms=60_000)


def test_a_collection_thins_and_gives_disk_back(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    old_points(store, 20)
    with store.batch() as batch:
        for _ in range(300):
            batch.blob(os.urandom(50_000))
    before = store.usage()[0]
    with caplog.at_level(logging.INFO):
        trio.run(Collecting(store, lambda: None, lambda: True).collect)
    assert len(Points(store, WORKSPACE).between(0, MS_MAX)) == 1
    assert store.usage()[0] < before - 10_000_000
    assert "19 points thinned" in caplog.text
    assert not Collecting(store, lambda: None, lambda: True).is_due()


def test_where_something_was_recorded_it_goes_on_later(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    old_points(store, 20)
    heads = iter(range(1_000_000))
    decides = Collecting(store, lambda: next(heads), lambda: True)
    with caplog.at_level(logging.INFO):
        trio.run(decides.collect)
    assert "19 points thinned" in caplog.text
    assert store.meta_get("gc", b"last") is None
    assert decides.is_due()


def test_what_is_unfinished_goes_on_soon(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    old_points(store, 20)
    decides = Collecting(store, lambda: None, lambda: True)
    monkeypatch.setattr(collecting, "WORK_S_MAX", 0)
    trio.run(decides.collect)
    assert len(Points(store, WORKSPACE).between(0, MS_MAX)) == 20
    assert decides.is_due()
    monkeypatch.undo()
    trio.run(decides.collect)
    assert len(Points(store, WORKSPACE).between(0, MS_MAX)) == 1
    assert not decides.is_due()


def test_one_is_due_when_there_is_enough_or_it_is_long_ago(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    decides = Collecting(store, lambda: None, lambda: True)
    assert decides.is_due()  # there never was one
    note_done(store)
    assert not decides.is_due()
    monkeypatch.setattr(collecting, "OBJECTS_MIN", 5)
    with store.batch() as batch:
        for number in range(5):
            batch.blob(b"%d" % number)
    assert decides.is_due()
    note_done(store)
    assert not decides.is_due()
    record = json.loads(store.meta_get("gc", b"last") or b"")
    with store.batch() as batch:
        batch.meta_put("gc", b"last", json.dumps({**record, "time": record["time"] - 25 * 3600}).encode())
    assert decides.is_due()


def test_it_waits_for_quiet_and_for_leave(
    store: Store, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    done: list[float] = []
    allowed = False
    head = 0
    decides = Collecting(store, lambda: head, lambda: allowed)

    async def collect() -> None:
        done.append(trio.current_time())

    monkeypatch.setattr(decides, "collect", collect)

    async def main() -> None:
        nonlocal allowed, head
        async with trio.open_nursery() as nursery:
            nursery.start_soon(decides.run)
            await trio.sleep(300)
            assert done == []
            allowed = True
            for _ in range(20):
                head += 1
                await trio.sleep(20)
            assert done == []
            await trio.sleep(collecting.QUIET_S + 2 * collecting.LOOK_S)
            assert done != []
            nursery.cancel_scope.cancel()

    trio.run(main, clock=autojump_clock)
