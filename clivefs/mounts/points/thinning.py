"""Thinning: which points are kept as they grow old, and how the others go.

A point that goes leaves a gap: its record is removed, and with it (by the next sweep) its commit and whatever no other
point has. The points that stay keep their ids, and so the parent that they name may be gone; who follows parents takes
one that is missing for thinned. Writing the chain anew instead would give every later point another id, at every
thinning, under the feet of whoever has noted one.

What is kept: for `all` every point; up to `hourly` the last one of each hour, up to `daily` of each day, up to `yearly`
of each year, in UTC. The last of a year is the last of its day and hour as well, so what is kept for a year was never
missing before. The newest point of all is kept whatever its age, and that of a session that goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from clivefs.base.ports import FAULTS
from clivefs.mounts.config.config import Keep
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.names import MS_MAX, utc
from clivefs.objects.errors import Conflict
from clivefs.objects.gc import Patience, alone
from clivefs.objects.store import Store

_CHUNK = 200
_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS


class Thinned(NamedTuple):
    """What thinning did in one workspace, or would do."""

    workspace: str
    dropped: int
    kept: int
    ids: frozenset[bytes] = frozenset()
    """The points that would be dropped, where it was only asked."""


def to_drop(
    points: Sequence[IndexedPoint], keep: Keep, now_ms: int, keeps: Container[bytes] = ()
) -> list[IndexedPoint]:
    """The points, of all of a workspace in order of time, that *keep* has no place for. *keeps*: ids that stay."""
    dropped: list[IndexedPoint] = []
    last_hour = last_day = last_year = -1
    for point in reversed(points):
        hour, day, year = point.ms // _HOUR_MS, point.ms // _DAY_MS, utc(point.ms).year
        age_s = (now_ms - point.ms) / 1000
        if keep.all is None or age_s <= keep.all or point is points[-1]:
            stays = True
        elif keep.hourly is None or age_s <= keep.hourly:
            stays = hour != last_hour
        elif keep.daily is None or age_s <= keep.daily:
            stays = day != last_day
        else:
            stays = (keep.yearly is None or age_s <= keep.yearly) and year != last_year
        last_hour, last_day, last_year = hour, day, year
        if not stays and point.oid not in keeps:
            dropped.append(point)
    return dropped[::-1]


def thin(
    store: Store,
    workspace: str,
    keep: Keep,
    *,
    now_ms: int,
    keeps: Container[bytes] = (),
    dry_run: bool = False,
    is_over: Callable[[], bool] = lambda: False,
    progress: Callable[[str], None] = lambda text: None,
) -> Thinned:
    """Drop the points of *workspace* that *keep* has no place for. *keeps*: ids of points that stay. *is_over*:
    see `gc.sweep`. Busy."""
    points = Points(store, workspace)
    all_of_them = points.between(0, MS_MAX)
    going_on = {each.last_ms for each in points.sessions() if not each.end_ms}
    dropped = [each for each in to_drop(all_of_them, keep, now_ms, keeps) if each.ms not in going_on]
    if dry_run:
        ids = frozenset(each.oid for each in dropped)
        return Thinned(workspace, len(dropped), len(all_of_them) - len(dropped), ids)
    patience = Patience(is_over, progress)
    done = 0
    while done < len(dropped) and not is_over():
        chunk = dropped[done : done + _CHUNK]
        done += len(chunk)
        with alone(store, patience), contextlib.suppress(Conflict):  # another daemon has published: the next time, then
            points.forget(chunk)
        FAULTS.hit("gc.thinned")
        progress(f"{done} of {len(dropped)} points thinned")
    return Thinned(workspace, done, len(all_of_them) - done)
