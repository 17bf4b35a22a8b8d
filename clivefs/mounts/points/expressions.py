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
from datetime import UTC, tzinfo
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.moments import Moment, read_moment
from clivefs.mounts.points.names import is_session_name, point_name
from clivefs.objects.encode import OID_BYTES

FORMS = (
    "-5m, -2h30m, 14:00, `yesterday 14:00`, a time such as 2026-11-21T03:15, a point's id or number (@123), "
    "`start`, `latest`, SESSION, or SESSION/start"
)
"""What can be written, for people; below `.clive/at` also PATH:REVISION."""

_SEQ = re.compile(r"[#@](\d{1,19})", re.ASCII)
_ID = re.compile(r"[0-9a-f]{4,40}")


class GitRevision(NamedTuple):
    """A revision of the repository of a git mount entry."""

    path: str
    """The mount entry's."""
    revision: str


class BeforeTheFirst(ClivefsError):
    """A time at which nothing had been recorded yet."""


class Unknown(ClivefsError):
    """The text does not even look like a time, a point or a session."""


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
    return find_moment(points, read_moment(text, now_ms, zone), in_path=in_path, entries=entries)


def find_moment(
    points: Points, moment: Moment, *, in_path: bool = False, entries: Collection[str] = ()
) -> IndexedPoint | GitRevision:
    """The same for what somebody has read already, whose clock and zone may be others."""
    text = moment.text
    found = _special(points, text, in_path)
    if found is not None:
        return found
    if moment.unreadable:
        raise ClivefsError(f"{text!r} is no time that there is ({moment.unreadable})", remedy=f"Write {FORMS}.")
    if moment.ms is not None:
        return _at(points, text, moment.ms)
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
    raise BeforeTheFirst(
        f"{text!r} is before the first point",
        remedy=f"The first one is {first.name}" + (f", and that was {point_name(ms)}." if ms >= 0 else "."),
    )


def _nothing_recorded() -> ClivefsError:
    return ClivefsError("nothing has been recorded yet", remedy="Mount the workspace; its first point comes at once.")


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
