"""The journal of a workspace: what changed from each point to the next, a path at a time.

It is not kept but read from the points, which are: so it goes back as far as they do, and a reader may take as long as
he likes. Where points between two were thinned out, that is said, and what changed over them is told at once.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from typing import Literal, NamedTuple

from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import NOTHING, Differs, State, compare
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point

Kind = Literal["create", "modify", "attributes", "delete", "rename", "overflow"]

_PAGE = 64


class Change(NamedTuple):
    """One change of one path, or (`overflow`) that changes before this are not known one by one."""

    kind: Kind
    path: bytes
    old_path: bytes | None
    """Where it was, of what was renamed."""
    point: Point


def changes_after(
    points: Points, reader: JoinedObjects, seq: int, paths: Iterable[bytes] = (), *, last: int | None = None
) -> Iterator[Change]:
    """What changed after the point with the number *seq* (0: from the beginning), at or below *paths* (none: all), up
    to the point with the number *last* (None: the newest, also of those that come meanwhile).

    All changes of a point have its number. `overflow` comes first where a number was thinned out or there is none such.
    ObjectMissing, CorruptObject.
    """
    wanted = tuple(paths)
    before, missed = _before(points, seq)
    last_seq = before.seq if before is not None else 0
    state = _state(points.load(before.oid)) if before is not None else NOTHING
    start = before.ms + 1 if before is not None else 0
    if before is not None and before.seq < seq and not points.between(start, MS_MAX, limit=1):
        yield Change("overflow", b"", None, points.load(before.oid))  # a number that is yet to be, or was never
        return
    while page := points.between(start, MS_MAX, limit=_PAGE):
        for each in page:
            if last is not None and each.seq > last:
                return
            point = points.load(each.oid)
            if missed or (each.seq != last_seq + 1):
                yield Change("overflow", b"", None, point)
                missed = False
            now = _state(point)
            for change in _between(reader, state, now, point):
                if _is_wanted(change, wanted):
                    yield change
            state, last_seq, start = now, each.seq, each.ms + 1


def _before(points: Points, seq: int) -> tuple[IndexedPoint | None, bool]:
    """The point that *seq* means, or the last before it that is left; and whether something was missed for it."""
    head = points.head()
    if seq <= 0 or head is None:
        return None, False
    if seq >= head.seq:
        return head, seq > head.seq
    found = points.by_seq(seq)
    if found is not None:
        return found, False
    return _last_before(points, seq), True


def _last_before(points: Points, seq: int) -> IndexedPoint | None:
    """The newest point with a lower number."""
    first, last = points.first(), points.head()
    if first is None or last is None or first.seq >= seq:
        return None
    low, high = first.ms, last.ms
    while low < high:  # numbers are in the order of times
        middle = (low + high + 1) // 2
        found = points.at(middle)
        if found is not None and found.seq < seq:
            low = middle
        else:
            high = middle - 1
    return points.at(low)


def _state(point: Point) -> State:
    return State(point.tree, point.meta)


def _between(reader: JoinedObjects, before: State, after: State, point: Point) -> Iterator[Change]:
    differing = list(compare(reader, before, after))
    moved = _renames(differing)
    sources = set(moved.values())
    for each in differing:
        if each.path in moved:
            yield Change("rename", each.path, moved[each.path], point)
        elif each.path not in sources:
            yield Change(_kind(each), each.path, None, point)


def _kind(differs: Differs) -> Kind:
    if differs.before is None:
        return "create"
    if differs.after is None:
        return "delete"
    same = differs.before.oid == differs.after.oid and stat.S_IFMT(differs.before.mode) == stat.S_IFMT(
        differs.after.mode
    )
    return "attributes" if same else "modify"


def _renames(differing: list[Differs]) -> dict[bytes, bytes]:
    """New path to the old one, of files that went and came with equal content; the same name first."""
    gone: dict[tuple[bytes, int], list[bytes]] = {}
    for each in differing:
        if each.after is None and each.before is not None and each.before.oid is not None:
            gone.setdefault((each.before.oid, stat.S_IFMT(each.before.mode)), []).append(each.path)
    moved: dict[bytes, bytes] = {}
    come = [each for each in differing if each.before is None and each.after is not None and each.after.oid is not None]
    for same_name in (True, False):
        for each in come:
            assert each.after is not None
            assert each.after.oid is not None
            candidates = gone.get((each.after.oid, stat.S_IFMT(each.after.mode)), [])
            if same_name:
                candidates = [path for path in candidates if _name(path) == _name(each.path)]
            if each.path not in moved and candidates:
                moved[each.path] = candidates[0]
                gone[(each.after.oid, stat.S_IFMT(each.after.mode))].remove(candidates[0])
    return moved


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _is_wanted(change: Change, paths: tuple[bytes, ...]) -> bool:
    mine = [path for path in (change.path, change.old_path) if path is not None]
    return not paths or any(not top or path == top or path.startswith(top + b"/") for top in paths for path in mine)
