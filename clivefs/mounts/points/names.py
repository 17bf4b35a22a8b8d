"""The names of points and sessions.

A point's name is its time in UTC, `2026-11-21T03:22:31.123Z`: the order of names is the order of points. A session
has a name of its user's, or is called by its start, `2026-11-21t03-22-31z`.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Container
from datetime import UTC, datetime, timedelta

from clivefs.base.errors import ClivefsError
from clivefs.objects.refnames import check_ref_name

MS_MAX = 253_402_300_799_999
"""The last millisecond of the year 9999."""
RESERVED = ("latest", "now", "start", "today", "yesterday")
"""Words of expressions: no session has such a name."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_POINT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
_SESSION = re.compile(r"[a-z0-9._-]{1,64}")
_MOMENT = re.compile(r"-.*|\d{4}-\d\d-\d\d", re.ASCII)
"""What means a moment: a session of that name would hide it."""


def utc(ms: int) -> datetime:
    """The time *ms* milliseconds after the epoch."""
    return _EPOCH + timedelta(milliseconds=ms)


def milliseconds(time: datetime) -> int:
    """Milliseconds since the epoch, rounded down. *time* has a zone."""
    return (time - _EPOCH) // _MILLISECOND


def point_name(ms: int) -> str:
    """The name of a point. *ms*: 0 to `MS_MAX`."""
    minute, rest = divmod(ms, 60_000)
    second, part = divmod(rest, 1000)
    return f"{_minute(minute)}:{second:02d}.{part:03d}Z"


@functools.lru_cache(maxsize=1024)
def _minute(minute: int) -> str:
    """The beginning of the names of one minute: a listing has many points of each."""
    return utc(minute * 60_000).isoformat()[:16]


def parse_point_name(name: str) -> int | None:
    """The time in ms that is a point's name, or None for what is no such name."""
    if _POINT.fullmatch(name) is None:
        return None
    start = _minute_ms(name[:16])
    second = int(name[17:19])
    return start + second * 1000 + int(name[20:23]) if start is not None and second < 60 else None


@functools.lru_cache(maxsize=1024)
def _minute_ms(minute: str) -> int | None:
    """The inverse of `_minute`; None for what no clock shows, or before 1970."""
    try:
        ms = milliseconds(datetime.fromisoformat(minute + "+00:00"))
    except ValueError:
        return None
    return ms if ms >= 0 else None


def is_session_name(name: str) -> bool:
    """Whether a session may be called so."""
    return (
        _SESSION.fullmatch(name) is not None
        and name not in RESERVED
        and check_ref_name("refs/clive/sessions/" + name) is None
    )


def check_session_name(name: str) -> None:
    """ClivefsError unless a new session may be called so."""
    if _MOMENT.fullmatch(name) is not None:
        raise ClivefsError(
            f"a session cannot be called {name!r}: that would be taken for a moment", remedy="Begin with a letter."
        )
    if not is_session_name(name):
        raise ClivefsError(
            f"a session cannot be called {name!r}",
            remedy="Use 1 to 64 of a-z, 0-9, `.`, `_` and `-`, no dot at either end, not two in a row, "
            f"no `.lock` at the end, and none of {', '.join(RESERVED)}.",
        )


def automatic_session_name(start_ms: int, taken: Container[str] = ()) -> str:
    """The name of a session that nobody named; with a number where that of its second is *taken*."""
    name = utc(start_ms).strftime("%Y-%m-%dt%H-%M-%Sz")
    number = 1
    found = name
    while found in taken:
        number += 1
        found = f"{name}-{number}"
    return found
