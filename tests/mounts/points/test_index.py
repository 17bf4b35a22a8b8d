"""Points and sessions: found by time, number, name and id; published whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import point_name
from clivefs.mounts.points.point import Point, make_point
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.errors import Conflict, CorruptObject
from clivefs.objects.fsck import fsck
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.points.pointworlds import START_MS, WORKSPACE, History, directory, regular


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    with Store.open(tmp_path / "store") if request.param == "disk" else MemoryStore() as opened:
        yield opened
        assert fsck(opened) == []


def three(store: ObjectStore) -> tuple[History, list[Point]]:
    history = History(store)
    return history, [history.record(directory({b"a": regular(b"%d" % number)})) for number in range(3)]


def test_points_are_found_by_time(store: ObjectStore) -> None:
    history, made = three(store)
    points = history.points
    times = [point.ms for point in made]
    assert [each.oid for each in points.between(0, 1 << 62)] == [point.oid for point in made]
    assert [each.ms for each in points.between(times[1], times[2], reverse=True)] == [times[2], times[1]]
    assert [each.ms for each in points.between(times[0] + 1, times[2] - 1)] == [times[1]]
    assert [each.ms for each in points.between(0, 1 << 62, limit=2)] == times[:2]
    assert points.between(5, 4) == []
    for ms, found in ((times[0] - 1, None), (times[0], 0), (times[1] - 1, 0), (times[1] + 500, 1), (1 << 70, 2)):
        at = points.at(ms)
        assert (at and at.oid) == (made[found].oid if found is not None else None)
    exact = points.get(times[1])
    assert exact is not None
    assert (exact.oid, exact.seq, exact.session, exact.name) == (made[1].oid, 2, "work", made[1].name)
    assert points.get(times[1] + 1) is points.get(-1) is points.get(1 << 70) is None
    head, first = points.head(), points.first()
    assert head is not None
    assert first is not None
    assert (head.ms, first.ms) == (times[2], times[0])
    assert points.load(made[1].oid) == made[1]


def test_points_are_found_by_number_and_id(store: ObjectStore) -> None:
    history = History(store)
    made = [history.record(directory({}), after_ms=1 + number**3) for number in range(20)]
    for point in made:
        found = history.points.by_seq(point.seq)
        assert found is not None
        assert found.oid == point.oid
        hexadecimal = point.oid.hex()
        for length in (7, 8, 40):
            assert point.oid in [each.oid for each in history.points.by_id(hexadecimal[:length])]
    assert history.points.by_seq(0) is history.points.by_seq(21) is None
    assert len(history.points.by_id("", limit=5)) == 5
    with store.batch() as batch:  # one that was thinned away
        batch.meta_put("points", WORKSPACE.encode() + made[7].ms.to_bytes(8, "big"), None)
    assert history.points.by_seq(8) is None
    assert history.points.by_seq(9) is not None


def test_workspaces_do_not_see_each_other(store: ObjectStore) -> None:
    _, _ = three(store)
    for neighbour in ("0123456789abcdee", "0123456789abcdf0"):
        other = Points(store, neighbour)
        assert other.head() is other.first() is other.by_seq(1) is None
        assert other.sessions() == other.between(0, 1 << 62) == other.names("work") == []


def test_sessions(store: ObjectStore) -> None:
    history, made = three(store)
    history.begin("more")
    made.append(history.record(directory({b"a": regular(b"more")})))
    points = history.points
    work, more = points.sessions()
    assert (work.name, work.points, work.first_seq, work.last_ms, work.end_ms) == ("work", 3, 1, made[2].ms, 0)
    assert (more.name, more.points, more.first_seq, more.machine) == ("more", 1, 4, "desk")
    assert points.names("work") == [point.name for point in made[:3]]
    assert points.names("more") == [made[3].name]
    assert points.names("none") == []
    first, latest = points.first_of("work"), points.latest_of("work")
    assert first is not None
    assert latest is not None
    assert (first.oid, latest.oid) == (made[0].oid, made[2].oid)
    assert points.first_of("none") is points.latest_of("none") is None
    prefix = f"refs/clive/sessions/{WORKSPACE}/"
    assert store.refs(prefix) == {prefix + "more": made[3].oid, prefix + "work": made[2].oid}
    points.end_session("work", 5)
    ended = points.session("work")
    assert ended is not None
    assert ended.end_ms == made[2].ms  # the clock was set back
    points.end_session("work", made[2].ms + 9)
    assert points.session("work") == ended
    with pytest.raises(ClivefsError, match="no session"):
        points.end_session("none", 5)


def test_a_session_without_points_is_listed(store: ObjectStore) -> None:
    points = Points(store, WORKSPACE)
    one = points.start_session(START_MS, mountpoint="/m\udcff", machine="desk")
    two = points.start_session(START_MS + 1, mountpoint="/m", machine="desk")
    assert [one.name, two.name] == ["2026-11-21t03-22-31z", "2026-11-21t03-22-31z-2"]
    assert points.sessions() == [one, two]
    assert points.first_of(one.name) is points.latest_of(one.name) is None
    with pytest.raises(ClivefsError, match="already"):
        points.start_session(START_MS, mountpoint="/m", machine="desk", name=one.name)
    with pytest.raises(ClivefsError, match="cannot be called"):
        points.start_session(START_MS, mountpoint="/m", machine="desk", name="today")


def _next(history: History, **changes: object) -> Point:
    assert history.last is not None
    values: dict[str, object] = {
        "ms": history.last.ms + 1,
        "seq": history.last.seq + 1,
        "session": history.session,
        "machine": "desk",
        "origin": "mount",
        "tree": EMPTY_TREE,
        "meta": None,
        "parent": history.last.oid,
    }
    return make_point(**{**values, **changes})  # type: ignore[arg-type]


def test_only_what_is_newer_is_published(store: ObjectStore) -> None:
    history, made = three(store)
    for changes in ({"ms": made[2].ms}, {"seq": made[2].seq}, {"session": "none"}):
        with pytest.raises(ValueError), store.batch() as batch:
            history.points.publish(batch, _next(history, **changes))
    head = history.points.head()
    assert head is not None
    assert head.oid == made[2].oid


def test_of_two_who_publish_one_is_refused_and_nothing_of_it_is_there(store: ObjectStore) -> None:
    history, made = three(store)
    mine, yours = _next(history), _next(history, ms=made[2].ms + 5, machine="laptop")
    with pytest.raises(Conflict), store.batch() as batch:  # noqa: PT012
        batch.tree([])
        history.points.publish(batch, mine)
        with store.batch() as other:
            other.tree([])
            Points(store, WORKSPACE).publish(other, yours)
    head = history.points.head()
    assert head is not None
    assert head.oid == yours.oid
    assert not store.has(mine.oid)
    assert history.points.names("work")[-1] == point_name(yours.ms)
    session = history.points.session("work")
    assert session is not None
    assert session.points == 4


def test_damaged_records_are_refused(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        history, made = three(store)
        with store.batch() as batch:
            batch.meta_put("points", WORKSPACE.encode() + made[1].ms.to_bytes(8, "big"), b"short")
            batch.meta_put("sessions", WORKSPACE.encode() + b"work", b'{"start_ms": 1}')
        with pytest.raises(CorruptObject):
            history.points.get(made[1].ms)
        with pytest.raises(CorruptObject):
            history.points.session("work")
