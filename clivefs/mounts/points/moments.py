"""Reading the times that people write for a moment of the past; `expressions` has what can be written.

Nothing here looks at the points, so that who only asks a daemon needs neither the store nor what reads it.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from typing import NamedTuple

from clivefs.mounts.points.names import MS_MAX, milliseconds, parse_point_name, utc

_UNITS_MS = {"w": 604_800_000, "d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000}
_AGO = re.compile(r"-(?:\d{1,9}[wdhms])+", re.ASCII)
_PART = re.compile(r"(\d+)([wdhms])", re.ASCII)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)(?::(\d\d)(\.\d{1,6})?)?", re.ASCII)
_DAY = re.compile(r"(today|yesterday)(?:[ T](.*))?")
_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ Tt](\d\d:\d\d(?::\d\d(?:\.\d{1,6})?)?))?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)


class Moment(NamedTuple):
    """What somebody wrote for a moment, and what time he means by it."""

    text: str
    ms: int | None
    """The last millisecond that it means, if it is a time."""
    unreadable: str = ""
    """Why it is none though it looks like one."""


class _Unreadable(Exception):
    """The text is a time, but none that there is."""


def read_moment(text: str, now_ms: int, zone: tzinfo | None) -> Moment:
    """What *text* means at the time *now_ms*. *zone*: of times without one; None is the machine's own."""
    try:
        return Moment(text, _ms(text, now_ms, zone))
    except (_Unreadable, ValueError, OverflowError) as error:
        return Moment(text, None, str(error) or "it is out of range")


def _ms(text: str, now_ms: int, zone: tzinfo | None) -> int | None:
    """The last millisecond that *text* means; None where it is no time."""
    if _AGO.fullmatch(text):
        return now_ms - sum(int(number) * _UNITS_MS[unit] for number, unit in _PART.findall(text))
    exact = parse_point_name(text)
    if exact is not None:
        return exact
    today = _local(now_ms, zone).date()
    if _CLOCK.fullmatch(text):
        ms = _clock(today, text, zone, now_ms)
        return ms if ms <= now_ms else _clock(today - timedelta(days=1), text, zone, now_ms)
    day = _DAY.fullmatch(text)
    if day is not None:
        return _clock(today - timedelta(days=day[1] == "yesterday"), day[2] or "00:00", zone, now_ms)
    iso = _ISO.fullmatch(text)
    if iso is None:
        return None
    if iso[3]:
        zone = UTC if iso[3] in "Zz" else _offset(iso[3])
    return _clock(date.fromisoformat(iso[1]), iso[2] or "00:00", zone, now_ms)


def _clock(day: date, text: str, zone: tzinfo | None, now_ms: int) -> int:
    """The last millisecond of *day* that the time of day *text* means. Where clocks are put back a time comes twice:
    the last that has been is meant."""
    match = _CLOCK.fullmatch(text)
    if match is None:
        raise _Unreadable(f"{text!r} is no time of day")
    hour, minute, second, part = match.groups()
    microsecond = round(float(part or "0") * 1_000_000)
    moment = datetime.combine(day, time(int(hour), int(minute), int(second or 0), microsecond), zone)
    rest_ms = 999 if second is not None and part is None else 0
    twice = (moment.replace(fold=fold).astimezone(UTC) for fold in (0, 1))
    first, last = sorted(min(milliseconds(each) + rest_ms, MS_MAX) for each in twice)
    return last if last <= now_ms else first


def _local(ms: int, zone: tzinfo | None) -> datetime:
    return utc(ms).astimezone(zone)


def _offset(text: str) -> tzinfo:
    offset = datetime.strptime(text, "%z").tzinfo
    assert offset is not None
    return offset
