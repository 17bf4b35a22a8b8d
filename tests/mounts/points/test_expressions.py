"""What people write for a moment of the past."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, timedelta, timezone, tzinfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.expressions import GitRevision, find
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.moments import read_moment
from clivefs.mounts.points.names import milliseconds, parse_point_name, point_name, utc
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.memory import MemoryStore
from tests.mounts.points.pointworlds import WORKSPACE, History

ENTRIES = ("lib/requests", "lib/requests/vendor", "data")


def at_ms(name: str) -> int:
    ms = parse_point_name(name)
    assert ms is not None
    return ms


NOW = at_ms("2026-11-21T12:00:00.000Z")
TIMES = [
    "2026-11-19T08:00:00.500Z",
    "2026-11-20T13:59:59.999Z",
    "2026-11-20T14:00:00.000Z",
    "2026-11-20T23:30:00.000Z",
    "2026-11-21T00:30:00.000Z",
    "2026-11-21T11:00:00.000Z",
    "2026-11-21T11:54:59.000Z",
    "2026-11-21T11:55:00.001Z",
    "2026-11-21T11:59:59.250Z",
]


@pytest.fixture
def points() -> Iterator[Points]:
    with MemoryStore() as store:
        history = History(store, "early", at_ms(TIMES[0]) - 1000)
        for name in TIMES:
            if name == TIMES[4]:
                history.begin("late")
            with store.batch() as batch:
                history.publish(batch, batch.tree([]), None, after_ms=at_ms(name) - history.ms)
        yield history.points


def found(points: Points, text: str, *, zone: tzinfo = UTC, in_path: bool = False) -> str:
    result = find(points, text, now_ms=NOW, zone=zone, in_path=in_path, entries=ENTRIES)
    assert isinstance(result, IndexedPoint)
    return result.name


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("-0s", 8),
        ("-5m", 6),  # 11:55:00.000: a millisecond before the next
        ("-4m59s", 7),
        ("-1h", 5),
        ("-1d", 0),
        ("-22h", 2),
        ("-21h59m", 2),
        ("-0d12h", 3),
        ("11:00", 5),
        ("10:59", 4),
        ("14:00", 2),  # not yet today: yesterday's
        ("14:00:00", 2),
        ("13:59:59", 1),  # the whole second
        ("13:59:59.998", 0),
        ("today", 3),
        ("today 11:00", 5),
        ("yesterday 14:00", 2),
        ("yesterday 23:30:00", 3),
        ("yesterdayT14:00", 2),
        ("2026-11-20", 0),
        ("2026-11-20T14:00", 2),
        ("2026-11-20 14:00", 2),
        ("2026-11-20t14:00z", 2),
        ("2026-11-20T15:00+01:00", 2),
        ("2026-11-20T15:00+0100", 2),
        ("2026-11-21T11:59:59", 8),
        ("2026-11-21T11:59:59.249", 7),
        ("9999-12-31T23:59:59", 8),
        (TIMES[3], 3),
        ("latest", 8),
        ("now", 8),
        ("start", 4),
        ("early", 3),
        ("early/latest", 3),
        ("early/start", 0),
        ("late/start", 4),
        ("#1", 0),
        ("@9", 8),
    ],
)
def test_what_it_means(points: Points, text: str, index: int) -> None:
    assert found(points, text) == TIMES[index]


def test_times_are_of_the_zone_given(points: Points) -> None:
    berlin = timezone(timedelta(hours=1))
    assert found(points, "yesterday 15:00", zone=berlin) == TIMES[2]
    assert found(points, "today", zone=berlin) == TIMES[2]
    assert found(points, "2026-11-21T00:30", zone=berlin) == TIMES[3]
    assert found(points, "2026-11-20T14:00Z", zone=berlin) == TIMES[2]
    west = timezone(timedelta(hours=-13))  # there it is still the 20th
    assert found(points, "today 11:30", zone=west) == TIMES[4]


def test_the_machines_own_zone(points: Points) -> None:
    local = utc(at_ms(TIMES[5])).astimezone()
    result = find(points, f"{local:%Y-%m-%d %H:%M}", now_ms=NOW, zone=None)
    assert isinstance(result, IndexedPoint)
    assert result.name == TIMES[5]


@pytest.fixture
def central_europe(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The machine's zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "now", "means"),
    [
        ("02:30", "2026-10-25T01:45:00.000Z", "2026-10-25T01:30:00.000Z"),  # twice today, and the second has been
        ("02:30", "2026-10-25T01:15:00.000Z", "2026-10-25T00:30:00.000Z"),  # only the first has been
        ("02:30", "2026-10-25T00:15:00.000Z", "2026-10-24T00:30:00.000Z"),  # neither
        ("yesterday 02:30", "2026-10-26T10:00:00.000Z", "2026-10-25T01:30:00.000Z"),
        ("2026-10-25T02:30", "2026-10-26T10:00:00.000Z", "2026-10-25T01:30:00.000Z"),
        ("2026-10-25T03:30", "2026-10-26T10:00:00.000Z", "2026-10-25T02:30:00.000Z"),
        ("02:30", "2026-03-29T10:00:00.000Z", "2026-03-29T01:30:00.000Z"),  # skipped: as if clocks had gone on
        ("yesterday", "2026-10-26T10:00:00.000Z", "2026-10-24T22:00:00.000Z"),
    ],
)
@pytest.mark.usefixtures("central_europe")
def test_clocks_that_are_put_forward_and_back(text: str, now: str, means: str) -> None:
    ms = read_moment(text, at_ms(now), None).ms
    assert ms is not None
    assert point_name(ms) == means


def test_in_a_path_a_slash_is_a_colon(points: Points) -> None:
    assert found(points, "early:start", in_path=True) == TIMES[0]
    assert found(points, "14:00", in_path=True) == TIMES[2]
    for text, in_path in (("lib:requests:main~3", True), ("lib/requests:main~3", False)):
        assert find(points, text, now_ms=NOW, in_path=in_path, entries=ENTRIES) == GitRevision("lib/requests", "main~3")
    deeper = find(points, "lib:requests:vendor:origin:main", now_ms=NOW, in_path=True, entries=ENTRIES)
    assert deeper == GitRevision("lib/requests/vendor", "origin/main")
    with pytest.raises(ClivefsError):
        find(points, "lib:requests:main", now_ms=NOW, entries=ENTRIES)


def test_ids_may_be_cut_short_while_they_tell_one_point(points: Points) -> None:
    head = points.head()
    assert head is not None
    digits = head.oid.hex()
    assert found(points, digits) == found(points, digits[:12]) == TIMES[8]
    for wrong in (digits[:3], "0" * 40, digits + "0"):
        with pytest.raises(ClivefsError):
            found(points, wrong)


def test_a_session_goes_before_an_id(points: Points) -> None:
    points.start_session(NOW, mountpoint="/m", machine="desk", name="beef")
    with pytest.raises(ClivefsError, match="'beef' has no point"):
        found(points, "beef")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("-3y", "neither a time"),
        ("", "neither a time"),
        ("erly", "early"),
        ("yesteday", "yesterday"),
        ("lib/request:main", "lib/requests"),
        ("25:00", "is no time that there is"),
        ("2026-02-30", "is no time that there is"),
        ("2026-11-21T03:15+99:00", "is no time that there is"),
        ("yesterday noon", "is no time that there is"),
        ("-9d", "before the first point"),
        ("-999999999w", "before the first point"),
        ("0001-01-01", "before the first point"),
        ("@10", "numbers 1 to 9"),
        ("#0", "numbers 1 to 9"),
        ("dead", "no point has the id"),
        ("what", "Sessions: late, early"),
    ],
)
def test_a_wrong_one_says_what_would_have_been_right(points: Points, text: str, says: str) -> None:
    with pytest.raises(ClivefsError) as caught:
        found(points, text)
    assert says in str(caught.value)
    assert caught.value.remedy


def test_before_anything_was_recorded() -> None:
    with MemoryStore() as store:
        for text in ("latest", "start", "-5m", "@1", "2026-11-21"):
            with pytest.raises(ClivefsError, match="nothing has been recorded"):
                find(Points(store, WORKSPACE), text, now_ms=NOW)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30) | st.from_regex(r"\A[-0-9:TZ+. wdhms]{1,25}\Z"), st.booleans())
def test_nothing_else_comes_of_any_text(text: str, in_path: bool) -> None:
    with MemoryStore() as store:
        history = History(store)
        with store.batch() as batch:
            history.publish(batch, batch.tree([]), None)
        assert store.has(EMPTY_TREE)
        try:
            find(history.points, text, now_ms=NOW, zone=UTC, in_path=in_path, entries=ENTRIES)
        except ClivefsError as error:
            assert error.remedy  # noqa: PT017


def test_every_name_of_a_point_finds_it(points: Points) -> None:
    for each in points.between(0, NOW):
        assert found(points, each.name) == each.name == point_name(milliseconds(utc(each.ms)))
