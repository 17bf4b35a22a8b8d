"""From what people write for a moment of the past to a point.

    -5m  -2h30m  -1d12h             so long ago: w, d, h, m, s
    14:00  14:00:30                 when it was last that time
    today  yesterday  yesterday 14:00
    2026-11-21  2026-11-21T03:15  2026-11-21 03:15:20.5+01:00
    2026-11-21T03:22:31.123Z        a point's name
    3f2a91c                         a point's id, or as many of its digits (4 at least) as tell it from others
    #123  @123                      a point's number (the shell takes #123 for a comment where a word begins)
    start  latest  now              the first and the newest point of the session that goes on
    SESSION  SESSION/latest  SESSION/start
    PATH:REVISION                   of a git mount entry, as `lib/requests:main~3`: a tree of its repository

A time means the newest point at that moment or before. A date without a time is its first moment. A time that names a
second and no part of it means the whole of that second, so that a time copied from `git log` finds its point.

In a path `/` is written `:`, so `work:latest` and `lib:requests:main~3`; and times without a zone are UTC.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.names import MS_MAX, is_session_name, milliseconds, parse_point_name, point_name, utc
from clivefs.objects.encode import OID_BYTES

FORMS = (
    "-5m, -2h30m, 14:00, `yesterday 14:00`, a time such as 2026-11-21T03:15, a point's id or number (@123), "
    "`start`, `latest`, SESSION, or SESSION/start"
)
"""What can be written, for people; below `.clive/at` also PATH:REVISION."""

_UNITS_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000}
_AGO = re.compile(r"-(?:\d{1,9}[wdhms])+", re.ASCII)
_PART = re.compile(r"(\d+)([wdhms])", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(\.\d{1,6})?)?", re.ASCII)
_DAY = re.compile(r"(today|yesterday)(?:[ T](.*))?")
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ Tt](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?))?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)
_SEQ = re.compile(r"[#@](\d{1,19})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{4,40}")


class GitRevision(NamedTuple):
    """A revision of the repository of a git mount entry."""

    path: str
    """The mount entry's."""
    revision: str


class Unknown(ClivefsError):
    """The text does not even look like a time, a point or a session."""


class _Unreadable(Exception):
    """The text is a time, but none that there is."""


def find(
    points: Points,
    text: str,
    *,
    now_ms: int,
    zone: tzinfo | None = UTC,
    in_path: bool = False,
    entries: Collection[str] = (),
) -> IndexedPoint | GitRevision:
    """What *text* means, *in_path* as a name in `.clive/at`. *zone*: of times without one; None is the machine's own.
    *entries* are the paths of the git mount entries. ClivefsError that says what would have been right.

    A few reads of the index; but for a point's id all of it is read (`Points.by_id`), see `needs_a_search`.
    """
    found = _special(points, text, in_path)
    if found is not None:
        return found
    try:
        ms = _moment(text, now_ms, zone)
    except (_Unreadable, ValueError, OverflowError) as error:
        raise ClivefsError(f"{text!r} is no time that there is ({error})", remedy=f"Write {FORMS}.") from error
    if ms is not None:
        return _at(points, text, ms)
    if _ID.fullmatch(text):
        return _by_id(points, text)
    revision = _git_revision(text, in_path, entries)
    if revision is not None:
        return revision
    raise _unknown(points, text, entries)


def needs_a_search(points: Points, text: str) -> bool:
    """Whether *text* is the beginning of a point's id: `find` then takes longer than the loop may."""
    return _ID.fullmatch(text) is not None and len(text) < 2 * OID_BYTES and not _is_session(points, text)


def _special(points: Points, text: str, in_path: bool) -> IndexedPoint | None:
    """The point that a session or a number stands for; None for any other text."""
    number = _SEQ.fullmatch(text)
    if number is not None:
        return _by_seq(points, int(number[1]))
    head, _, word = text.partition(":" if in_path else "/")
    if word in ("start", "latest") and _is_session(points, head):
        return _of_session(points, head, word)
    if text in ("start", "latest", "now"):
        newest = points.head()
        if newest is None:
            raise _nothing_recorded()
        return _of_session(points, newest.session, "start") if text == "start" else newest
    return _of_session(points, text, "latest") if _is_session(points, text) else None


def _is_session(points: Points, text: str) -> bool:
    return is_session_name(text) and points.session(text) is not None


def _of_session(points: Points, name: str, word: str) -> IndexedPoint:
    found = points.first_of(name) if word == "start" else points.latest_of(name)
    if found is None:
        raise ClivefsError(f"the session {name!r} has no point", remedy="`clivefs session list` shows which have.")
    return found


def _by_seq(points: Points, seq: int) -> IndexedPoint:
    found = points.by_seq(seq)
    if found is not None:
        return found
    first, last = points.first(), points.head()
    if first is None or last is None:
        raise _nothing_recorded()
    if first.seq < seq < last.seq:
        raise ClivefsError(f"point {seq} was thinned away", remedy="`clivefs log` shows which are left.")
    raise ClivefsError(f"there is no point {seq}", remedy=f"Points have the numbers {first.seq} to {last.seq}.")


def _by_id(points: Points, digits: str) -> IndexedPoint:
    found = points.by_oid(bytes.fromhex(digits)) if len(digits) == 2 * OID_BYTES else points.by_id(digits, limit=6)
    if len(found) == 1:
        return found[0]
    if not found:
        raise ClivefsError(f"no point has the id {digits}", remedy="`clivefs log` shows the points and their ids.")
    some = ", ".join(f"{each.oid.hex()[:12]} ({each.name})" for each in found[:5])
    raise ClivefsError(
        f"the id {digits} is that of several points: {some}{', ...' if len(found) > 5 else ''}",
        remedy="Write more of its digits.",
    )


def _at(points: Points, text: str, ms: int) -> IndexedPoint:
    found = points.at(ms) if ms >= 0 else None
    if found is not None:
        return found
    first = points.first()
    if first is None:
        raise _nothing_recorded()
    raise ClivefsError(
        f"{text!r} is before the first point",
        remedy=f"The first one is {first.name}" + (f", and that was {point_name(ms)}." if ms >= 0 else "."),
    )


def _nothing_recorded() -> ClivefsError:
    return ClivefsError("nothing has been recorded yet", remedy="Mount the workspace; its first point comes at once.")


# Times


def _moment(text: str, now_ms: int, zone: tzinfo | None) -> int | None:
    """The last millisecond that *text* means; None where it is no time."""
    if _AGO.fullmatch(text):
        return now_ms - sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(text))
    exact = parse_point_name(text)
    if exact is not None:
        return exact
    today = _local(now_ms, zone).date()
    if _CLOCK.fullmatch(text):
        ms = _clock(today, text, zone)
        return ms if ms <= now_ms else _clock(today - timedelta(days=1), text, zone)
    day = _DAY.fullmatch(text)
    if day is not None:
        return _clock(today - timedelta(days=day[1] == "yesterday"), day[2] or "00:00", zone)
    iso = _ISO.fullmatch(text)
    if iso is None:
        return None
    if iso[3]:
        zone = UTC if iso[3] in "Zz" else _offset(iso[3])
    return _clock(date.fromisoformat(iso[1]), iso[2] or "00:00", zone)


def _clock(day: date, text: str, zone: tzinfo | None) -> int:
    """The last millisecond of *day* that the time of day *text* means."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise _Unreadable(f"{text!r} is no time of day")
    hour, minute, second, part = match.groups()
    microsecond = round(float(part or "0") * 1_000_000)
    moment = datetime.combine(day, time(int(hour), int(minute), int(second or 0), microsecond), zone)
    whole_second = second is not None and part is None
    ms = milliseconds(moment if zone is not None else moment.astimezone(UTC))
    return min(ms + (999 if whole_second else 0), MS_MAX)


def _local(ms: int, zone: tzinfo | None) -> datetime:
    return utc(ms).astimezone(zone)


def _offset(text: str) -> tzinfo:
    offset = datetime.strptime(text, "%z").tzinfo
    assert offset is not None
    return offset


# The rest


def _git_revision(text: str, in_path: bool, entries: Collection[str]) -> GitRevision | None:
    """The git mount entry with the longest path that *text* begins with, and what follows."""
    for entry in sorted(entries, key=len, reverse=True):
        prefix = (entry.replace("/", ":") if in_path else entry) + ":"
        revision = text.removeprefix(prefix)
        if revision and revision != text:
            return GitRevision(entry, revision.replace(":", "/") if in_path else revision)
    return None


def _unknown(points: Points, text: str, entries: Collection[str]) -> Unknown:
    sessions = [each.name for each in points.sessions()]
    words = ["today", "yesterday", "start", "latest", *sessions]
    head, colon, _ = text.rpartition(":")
    near = difflib.get_close_matches(text, words, n=3) or (
        difflib.get_close_matches(head, entries, n=2) if colon else []
    )
    remedy = f"Write {FORMS}."
    if near:
        remedy = f"Did you mean {' or '.join(near)}? {remedy}"
    elif sessions:
        shown = ", ".join(sessions[-5:][::-1])
        remedy += f" Sessions: {shown}{', ...' if len(sessions) > 5 else ''}."
    return Unknown(f"{text!r} is neither a time nor a point nor a session", remedy=remedy)
