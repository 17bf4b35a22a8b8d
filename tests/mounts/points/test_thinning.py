"""Which points stay as they grow old, and that exactly what they need stays with them."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.base.ports import FAULTS
from clivefs.mounts.config.config import Keep
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points import collection
from clivefs.mounts.points.export import session_refs, update
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.names import MS_MAX, milliseconds
from clivefs.mounts.points.pins import Pins
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.roots import StoreRoots
from clivefs.mounts.points.thinning import thin, to_drop
from clivefs.mounts.points.undo import Position, note_position
from clivefs.objects import gc
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.points.pointworlds import START_MS, WORKSPACE, File, History, directory, regular

SECOND, MINUTE, HOUR, DAY = 1000, 60_000, 3_600_000, 86_400_000
YEAR = 366 * DAY
NOTHING = Keep(all=0, hourly=0, daily=0, yearly=0)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        FAULTS.clear()
        assert fsck(opened, roots=StoreRoots(opened).fresh()) == []


def indexed(*times: int) -> list[IndexedPoint]:
    return [IndexedPoint(ms, b"%020d" % seq, seq, "work") for seq, ms in enumerate(times, 1)]


def stays(times: list[int], now_ms: int, keep: Keep | None = None) -> list[int]:
    points = indexed(*times)
    gone = to_drop(points, keep or Keep(), now_ms)
    return [each.ms for each in points if each not in gone]


def state(text: bytes) -> File:
    return directory({b"a": regular(text), b"d": directory({b"same": regular(b"same")})})


# Which


def test_everything_of_a_day_stays() -> None:
    times = [START_MS + each * SECOND for each in range(100)]
    assert stays(times, START_MS + 23 * HOUR) == times


def test_then_the_last_of_each_hour() -> None:
    hour = START_MS - START_MS % HOUR
    times = [hour, hour + MINUTE, hour + 59 * MINUTE, hour + HOUR, hour + 2 * HOUR + 1, hour + 2 * HOUR + 2]
    assert stays(times, hour + 5 * DAY) == [hour + 59 * MINUTE, hour + HOUR, hour + 2 * HOUR + 2]


def test_then_of_each_day_and_at_last_of_each_year() -> None:
    day = START_MS - START_MS % DAY
    times = [day + HOUR, day + 20 * HOUR, day + DAY + HOUR, day + 2 * DAY]
    assert stays(times, day + 60 * DAY) == times[1:]
    assert stays(times, day + 3 * YEAR) == [times[3]]
    assert stays([*times, day + 2 * YEAR], day + 6 * YEAR) == [times[3], day + 2 * YEAR]


def test_the_newest_point_stays_whatever_its_age() -> None:
    assert stays([1, 2, 3], START_MS, NOTHING) == [3]


def test_an_hour_at_the_border_is_not_left_without_its_last_point() -> None:
    hour = START_MS - START_MS % HOUR
    times = [hour + MINUTE, hour + 30 * MINUTE, hour + 59 * MINUTE]
    now = hour + DAY + 31 * MINUTE
    # The first two are older than a day, the third is not, and it is the last of the hour.
    assert stays(times, now) == [times[2]]


@given(st.lists(st.integers(0, 40 * 366 * 24 * 60), min_size=1, max_size=60, unique=True), st.data())
@settings(max_examples=150)
def test_to_thin_again_and_again_comes_to_the_same_as_once(minutes: list[int], data: st.DataObject) -> None:
    times = sorted(each * MINUTE for each in minutes)
    moments = sorted(data.draw(st.lists(st.integers(0, 50 * 366 * 24 * 60), min_size=1, max_size=5)))
    left = times
    for moment in moments:
        now = times[-1] + moment * MINUTE
        before, left = left, stays(left, now)
        assert left == stays(left, now)
        assert set(left) <= set(before)
    assert left == stays(times, times[-1] + moments[-1] * MINUTE)


_BORDERS = [
    datetime(year, month, day, hour, tzinfo=UTC)
    for year, month, day, hour in (
        (2023, 1, 1, 0),  # of years
        (2024, 1, 1, 0),
        (2025, 1, 1, 0),
        (2024, 2, 29, 0),  # of months, one with a leap day
        (2024, 3, 1, 0),
        (2024, 3, 31, 1),  # where clocks go forward in Europe, and back
        (2024, 10, 27, 1),
        (2024, 12, 31, 23),
        (2024, 6, 15, 12),
    )
]
_AROUND_BORDERS = st.builds(
    lambda border, steps, off: milliseconds(border) + steps * HOUR + off,
    st.sampled_from(_BORDERS),
    st.integers(-2, 2),
    st.sampled_from([-MINUTE, -1, 0, 1, MINUTE, 59 * MINUTE]),
)
_SPANS = st.sampled_from([None, 0, 3600, 86_400, 30 * 86_400, 366 * 86_400])


@given(
    st.lists(_AROUND_BORDERS, min_size=1, max_size=40, unique=True),
    st.tuples(_SPANS, _SPANS, _SPANS, _SPANS),
    st.sampled_from([0, 1, HOUR, DAY, 30 * DAY, YEAR, 3 * YEAR]) | st.integers(0, 4 * YEAR),
    st.sampled_from(["UTC", "Europe/Berlin", "Pacific/Apia"]),
)
@settings(max_examples=300)
def test_borders_are_those_of_utc_wherever_one_is(
    times: list[int], spans: tuple[int | None, ...], age_ms: int, zone: str
) -> None:
    """By the calendar, and by nothing that the module goes by: a point stays while it is young enough for a rule of
    which it is the last, of all or of its hour, day or year."""
    times = sorted(times)
    now = times[-1] + age_ms
    keep = Keep(all=spans[0], hourly=spans[1], daily=spans[2], yearly=spans[3])
    formats = ("%f", "%Y-%m-%d %H", "%Y-%m-%d", "%Y")
    wanted = []
    for number, ms in enumerate(times):
        age_s = (now - ms) / 1000
        rule = next((at for at, span in enumerate(spans) if span is None or age_s <= span), None)
        after = times[number + 1] if number + 1 < len(times) else None
        is_last = after is None or rule == 0
        if not is_last and after is not None and rule is not None:
            is_last = _shown(ms, formats[rule]) != _shown(after, formats[rule])
        if after is None or (rule is not None and is_last):
            wanted.append(ms)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        try:
            assert stays(times, now, keep) == wanted
        finally:
            patch.undo()
            time.tzset()


def _shown(ms: int, how: str) -> str:
    return datetime.fromtimestamp(ms // 1000, UTC).strftime(how)


# What goes with them


def collect(store: Store, now_ms: int) -> collection.Collected:
    return collection.collect(store, now_ms=now_ms)


def record(store: Store, count: int, apart_ms: int) -> list[Point]:
    history = History(store)
    return [history.record(state(b"version %d" % number), after_ms=apart_ms) for number in range(count)]


def test_thinned_points_go_with_what_only_they_had(store: Store) -> None:
    points = record(store, 10, MINUTE)
    done = collect(store, points[-1].ms + 40 * DAY)
    index = Points(store, WORKSPACE)
    left = index.between(0, MS_MAX)
    assert [each.oid for each in left] == [points[-1].oid]
    assert (done.thinned[0].dropped, done.thinned[0].kept) == (9, 1)
    for gone in points[:-1]:
        assert not store.has(gone.oid)
        assert not store.has(gone.tree)
    point = index.load(left[0].oid)
    assert point == points[-1]
    assert [entry.name for entry in store.read_tree(point.tree)] == [b"a", b"d"]
    session = index.session("work")
    assert session is not None
    assert (session.points, session.first_seq, session.last_ms) == (1, 10, point.ms)


def test_a_dry_run_tells_the_same_and_changes_nothing(store: Store) -> None:
    points = record(store, 10, MINUTE)
    now = points[-1].ms + 40 * DAY
    names = list(store.names())
    told = collection.collect(store, now_ms=now, dry_run=True)
    assert list(store.names()) == names
    assert len(Points(store, WORKSPACE).between(0, MS_MAX)) == 10
    done = collect(store, now)
    assert told.thinned[0][:3] == done.thinned[0][:3]
    assert told.swept == done.swept


def test_a_session_that_is_over_goes_with_its_last_point(store: Store) -> None:
    history = History(store, "first")
    history.record(state(b"1"))
    history.points.end_session("first", history.ms)
    history.ms += 2 * MINUTE
    history.begin("second")
    last = history.record(state(b"2"))
    collect(store, last.ms + 3 * YEAR)
    assert [each.name for each in history.points.sessions()] == ["second"]
    assert store.refs() == {f"refs/clive/sessions/{WORKSPACE}/second": last.oid}


def test_what_undo_a_fork_or_a_daemon_names_stays(store: Store) -> None:
    points = record(store, 8, MINUTE)
    note_position(store, WORKSPACE, Position(points[-1].oid, points[1].oid, (points[2].oid,)))
    fork = {"start": points[3].oid.hex(), "base": points[4].oid.hex(), "name": "try"}
    with store.batch() as batch:
        batch.meta_put("forks", WORKSPACE.encode() + b"try", json.dumps(fork).encode())
        batch.set_ref(f"refs/clive/forks/{WORKSPACE}/try", points[4].oid)
    pins = Pins(store.directory("run") + "/0123.pins")
    pins.pin(points[5].oid)
    pins.pin(points[6].oid)
    pins.unpin(points[6].oid)
    now = points[-1].ms + 40 * DAY
    collect(store, now)
    left = [each.oid for each in Points(store, WORKSPACE).between(0, MS_MAX)]
    assert left == [points[number].oid for number in (1, 2, 3, 4, 5, 7)]
    pins.close()
    collect(store, now)
    assert not store.has(points[5].oid)


def test_pins_of_a_dead_daemon_count_for_nothing(store: Store) -> None:
    points = record(store, 3, MINUTE)
    path = store.directory("run") + "/0123.pins"
    with open(path, "wb") as file:
        file.write(b"+%b\n" % points[0].oid.hex().encode())
    collect(store, points[-1].ms + 40 * DAY)
    assert not store.has(points[0].oid)


def test_a_patched_tree_goes_one_collection_after_its_record(store: Store) -> None:
    with store.batch() as batch:
        tree = batch.tree([])
        batch.meta_put("patched", b"k" * 32, tree + bytes(12))
    collect(store, START_MS)
    assert store.meta_get("patched", b"k" * 32) is None
    assert store.has(tree)
    collect(store, START_MS)
    assert not store.has(tree)


def test_a_point_that_is_published_meanwhile_is_whole(store: Store) -> None:
    history = History(store)
    for number in range(10):
        history.record(state(b"version %d" % number), after_ms=MINUTE)
    new: list[Point] = []

    def publish() -> None:
        if not new:
            # Content that a thinned point had, and so is not written again.
            new.append(history.record(state(b"version 3"), after_ms=MINUTE))

    FAULTS.plant("gc.looked", publish)
    collect(store, history.ms + 40 * DAY)
    assert store.read(store.read_tree(new[0].tree)[0].oid) == ("blob", b"version 3")


def test_after_a_crash_in_any_step_the_store_is_sound(store: Store) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    points = record(store, 30, MINUTE)
    now = points[-1].ms + 40 * DAY
    for fault in ("gc.thinned", "gc.all-thinned", "gc.looked", "store.removed", "gc.removed", "gc.swept"):
        with store.batch() as batch:
            batch.blob(b"lost to " + fault.encode())
        FAULTS.plant(fault, die)
        with pytest.raises(Killed):
            collect(store, now)
        FAULTS.clear()
        assert fsck(store, roots=StoreRoots(store).fresh()) == []
    collect(store, now)
    assert [each.oid for each in Points(store, WORKSPACE).between(0, MS_MAX)] == [points[-1].oid]


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_exactly_what_is_reachable_stays(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Random histories and random points that are named: afterwards the store has what a walk from them finds."""
    with Store.open(tmp_path_factory.mktemp("model") / "store") as store:
        history = History(store)
        texts = st.sampled_from([b"one", b"two", b"three", b"four"])
        points: list[Point] = []
        for _ in range(data.draw(st.integers(1, 12))):
            files = {b"a": regular(data.draw(texts)), b"d": directory({b"b": regular(data.draw(texts))})}
            points.append(history.record(directory(files), after_ms=data.draw(st.sampled_from([MINUTE, HOUR, DAY]))))
        for number, point in enumerate(data.draw(st.lists(st.sampled_from(points), max_size=3))):
            with store.batch() as batch:
                batch.set_ref(f"refs/clive/forks/{WORKSPACE}/f{number}", point.oid)
        if data.draw(st.booleans()):
            with store.batch() as batch:
                batch.blob(b"nothing leads here")
        now = history.ms + data.draw(st.sampled_from([0, 2 * DAY, 40 * DAY, 800 * DAY]))
        expected_points = {each.oid for each in Points(store, WORKSPACE).between(0, MS_MAX)} - {
            each.oid for each in to_drop(Points(store, WORKSPACE).between(0, MS_MAX), Keep(), now)
        }
        collect(store, now)
        left = {each.oid for each in Points(store, WORKSPACE).between(0, MS_MAX)}
        assert left == expected_points
        reachable: set[bytes] = set()
        waiting = [*left, *store.refs().values()]
        while waiting:
            oid = waiting.pop()
            if oid in reachable:
                continue
            kind, payload = store.read(oid)
            reachable.add(oid)
            if kind == "commit":
                waiting += StoreRoots(store).of_commit(oid, payload)
            elif kind == "tree":
                waiting += [entry.oid for entry in store.read_tree(oid)]
        assert set(store.names()) == reachable


def test_thinning_leaves_a_workspace_alone_whose_table_is_broken(store: Store, tmp_path: Path) -> None:
    points = record(store, 3, MINUTE)
    root = tmp_path / "shop"
    root.mkdir()
    (root / "Clive.toml").write_text("[sessions\n")
    with store.batch() as batch:
        batch.meta_put("workspaces", b"id/" + WORKSPACE.encode(), json.dumps({"path": str(root)}).encode())
    done = collect(store, points[-1].ms + 40 * DAY)
    assert done.thinned == ()
    assert "not thinned" in done.notes[0]
    (root / "Clive.toml").write_text('[workspace]\nname = "shop"\n[sessions]\nkeep = { all = "forever" }\n')
    assert collect(store, points[-1].ms + 40 * DAY).thinned[0].dropped == 0


@pytest.mark.parametrize("edit", ["kept apart", "removed", "none"])
def test_the_rule_is_that_of_the_edited_table(store: Store, tmp_path: Path, edit: str) -> None:
    """Where edits of a workspace's own files are kept apart, its directory has what was in force long ago."""
    points = record(store, 3, MINUTE)
    root = tmp_path / "shop"
    root.mkdir()
    own = '[workspace]\nname = "shop"\nwrite = "overlay"\n'
    (root / "Clive.toml").write_text(own)
    upper = Path(store.directory(f"uppers/{WORKSPACE}/root"))
    (upper / "tree").mkdir()
    if edit == "kept apart":
        (upper / "tree/Clive.toml").write_text(own + '[sessions]\nkeep = { all = "forever" }\n')
    elif edit == "removed":
        (upper / "marks").write_bytes(b"...Clive.toml...")
    with store.batch() as batch:
        batch.meta_put("workspaces", b"id/" + WORKSPACE.encode(), json.dumps({"path": str(root)}).encode())
    done = collect(store, points[-1].ms + 40 * DAY)
    if edit == "removed":
        assert done.thinned == ()
        assert "not thinned" in done.notes[0]
    else:
        assert done.thinned[0].dropped == (0 if edit == "kept apart" else 2)


def test_an_edit_that_is_not_in_force_any_more_says_nothing(store: Store, tmp_path: Path) -> None:
    points = record(store, 3, MINUTE)
    (tmp_path / "Clive.toml").write_text('[workspace]\nname = "shop"\n')
    tree = Path(store.directory(f"uppers/{WORKSPACE}/root/tree"))
    (tree / "Clive.toml").write_text('[workspace]\nname = "shop"\n[sessions]\nkeep = { all = "forever" }\n')
    with store.batch() as batch:
        batch.meta_put("workspaces", b"id/" + WORKSPACE.encode(), json.dumps({"path": str(tmp_path)}).encode())
    assert collect(store, points[-1].ms + 40 * DAY).thinned[0].dropped == 2


def test_a_thinned_parent_is_missing_and_said_so(store: Store) -> None:
    points = record(store, 2, MINUTE)
    thin(store, WORKSPACE, NOTHING, now_ms=points[-1].ms + YEAR)
    collect(store, points[-1].ms)
    parent = Points(store, WORKSPACE).load(points[1].oid).parent
    assert parent == points[0].oid
    with pytest.raises(ObjectMissing):
        Points(store, WORKSPACE).load(parent)


# Exports


def git(directory: Path, *arguments: str) -> str:
    done = subprocess.run(["git", f"--git-dir={directory}", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def export(store: Store, directory: Path) -> int:
    points = Points(store, WORKSPACE)
    source = JoinedObjects((store,), str(directory.parent))
    return update(str(directory), session_refs(store, WORKSPACE), source, head="work", points=points)


def test_an_export_over_gaps_is_whole_for_stock_git(store: Store, tmp_path: Path) -> None:
    history = History(store)
    points = [history.record(state(b"version %d" % number), after_ms=MINUTE) for number in range(8)]
    whole = tmp_path / "whole.git"
    assert export(store, whole) == 8
    with gc.alone(store):
        index = Points(store, WORKSPACE)
        index.forget([each for each in index.between(0, MS_MAX) if each.seq in (1, 4, 5)])
    collect(store, history.ms)
    fresh = tmp_path / "fresh.git"
    for place in (whole, fresh):
        assert export(store, place) == 5
        git(place, "fsck", "--strict")
        left = [point for point in points if store.has(point.oid)]
        told = git(place, "log", "--format=%(trailers:key=Clive-Seq,valueonly,separator=) %T", "latest")
        assert told.split("\n")[:-1] == [f"{point.seq} {point.tree.hex()}" for point in reversed(left)]
        originals = git(place, "log", "-1", "--format=%(trailers:key=Clive-Point,valueonly,separator=)", "latest")
        assert originals.strip() == points[-1].oid.hex()
        assert export(store, place) == 0
    newest = history.record(state(b"and on"), after_ms=MINUTE)
    for place in (whole, fresh):
        assert export(store, place) == 1
        git(place, "gc", "--quiet", "--prune=now")
        git(place, "fsck", "--strict")
        assert git(place, "show", "latest:a") == "and on"
        assert len(git(place, "rev-list", "latest").split()) == 6
        assert newest.tree.hex() == git(place, "rev-parse", "latest^{tree}").strip()
