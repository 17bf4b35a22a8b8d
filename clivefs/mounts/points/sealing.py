"""Which points are sealed, and what goes into a pack with them.

Points that are older than an hour, where there are enough of them, in slices of some seconds' work, the oldest first:
each is durable and useful by itself, so a collection that is ended loses one slice at most, and the next one goes on.
Of a point that is more than a slice the files come first, as they lead to nothing; its trees follow.

Small packs are merged into larger ones: cheap, as what is in them is not looked at. Where much in them was thinned,
they are made anew as one. Then all that is sealed and still led to goes along, whoever leads to it: a fork, a newer
point. The old packs go behind the gate, if nothing was written meanwhile that needs more of them.

    records `sealed`    name of the pack -> JSON: points, how many were sealed with it; dropped, whether the database
                        has no copies of it any more
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clivefs.base.ports import FAULTS
from clivefs.mounts.points.gathering import RECORDED, Added, Gathered
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.roots import StoreRoots, workspaces_with_points
from clivefs.objects import gc, sealing
from clivefs.objects.store import Store

AGE_MS = 3_600_000
POINTS_MIN = 500
"""Fewer are not worth a pack."""
PACKS_MAX = 8
"""Beyond it, small packs are merged: each costs every look-up a little."""
SLICE_S = 15.0
"""What a slice is to take, about."""
SLICE_OBJECTS = 4_000
"""Of the first slice; the next ones are larger or smaller, by what it took."""
_SLICE_OBJECTS_MIN, _SLICE_OBJECTS_MAX = 250, 100_000
_NAMESPACE = "sealed"
_GARBAGE_MAX = 0.25
"""The part of the sealed points that may have been thinned before the packs are made anew."""
_APART_MAX = 0.125
"""The part of all that is sealed that may lie in other packs than the largest, when there is nothing else to do."""

Say = Callable[[str], None]


class Sealed(NamedTuple):
    """What was sealed: objects, the bytes that they took in the database, and what the packs take more."""

    objects: int
    bytes_before: int
    bytes_now: int
    unfinished: bool
    """Whether there is more to do."""


def is_much_thinned(store: Store, points_min: int = POINTS_MIN) -> bool:
    """Whether so many of the sealed points were thinned that the packs are better made anew."""
    packs = store.sealed.pack_names()
    once = sum(record["points"] for name, record in _records(store).items() if name in packs)
    if not once:
        return False
    kept = sum(
        store.is_sealed(each.oid)
        for workspace in workspaces_with_points(store)
        for each in Points(store, workspace).between(0, MS_MAX)
    )
    return once - kept > max(points_min, _GARBAGE_MAX * once)


def seal(
    store: Store,
    now_ms: int,
    progress: Say = lambda text: None,
    *,
    points_min: int = POINTS_MIN,
    slice_objects: int = SLICE_OBJECTS,
    is_over: Callable[[], bool] = lambda: False,
) -> Sealed:
    """Seal what is worth it, and put packs in order. *is_over*: see `gc.sweep`. Only in a collection
    (`gc.one_at_a_time`). RepositoryError, OSError, gc.Busy."""
    sealing.sweep_unfinished(store)
    before = store.sealed.count()[2]
    objects, size = _drop_leftovers(store)
    backlog = Backlog(store, now_ms - AGE_MS)
    limit = slice_objects
    unfinished = False
    if backlog.points >= points_min:
        while backlog.points:
            unfinished = is_over()
            if unfinished:
                break
            begin = time.monotonic()
            progress(f"{backlog.points} points to seal")
            gathered = backlog.take(limit)
            if gathered.objects:
                dropped = _seal_slice(store, gathered, progress)
                objects, size = objects + dropped[0], size + dropped[1]
            if len(store.sealed.pack_names()) > PACKS_MAX:
                _merge(store, progress)
            limit = _next_limit(limit, time.monotonic() - begin)
    if not unfinished and not is_over():
        if is_much_thinned(store, points_min):
            make_anew(store, progress, gc.Patience(is_over, progress))
        else:
            _merge(store, progress, at_leisure=True)
    return Sealed(objects, size, store.sealed.count()[2] - before, unfinished)


def _next_limit(limit: int, taken_s: float) -> int:
    """How many objects the next slice is to have, where one of *limit* has taken that long."""
    pace = min(max(SLICE_S / max(0.1, taken_s), 0.5), 2.0)
    return min(max(round(limit * pace), min(limit, _SLICE_OBJECTS_MIN)), _SLICE_OBJECTS_MAX)


def _seal_slice(store: Store, gathered: Gathered, progress: Say) -> tuple[int, int]:
    """Make a pack of what was gathered, and drop the copies: (objects, their bytes)."""
    name = _pack(store, gathered, progress, reuse=False)
    dropped = sealing.drop_copies(store, gathered.objects)
    _note(store, name, gathered.points, dropped=True)
    return dropped


def _pack(store: Store, gathered: Gathered, progress: Say, *, reuse: bool) -> str:
    # As git's packs have them: the newest first.
    newest_first = {oid: hint for oid, hint in reversed(gathered.objects.items()) if not hint.startswith(RECORDED)}
    strand = {oid: hint for oid, hint in gathered.objects.items() if hint.startswith(RECORDED)}
    beside = sorted(gathered.beside)
    name = sealing.make_pack(store, newest_first, beside, progress, strand=strand, reuse=reuse)
    _note(store, name, gathered.points, dropped=reuse)
    return name


def _drop_leftovers(store: Store) -> tuple[int, int]:
    """Drop the copies that a killed collection has left in the database."""
    records = _records(store)
    packs = store.sealed.pack_names()
    if all(name in records and records[name].get("dropped") for name in packs):
        return 0, 0
    dropped = sealing.drop_copies(store, store.hot_names())
    for name in packs:
        _note(store, name, records[name]["points"] if name in records else 0, dropped=True)
    return dropped


def make_anew(store: Store, progress: Say = lambda text: None, patience: gc.Patience | None = None) -> None:
    """Make one pack of all that is sealed and still led to. Only in a collection. RepositoryError, OSError, gc.Busy."""
    old = store.sealed.pack_names()
    if not old:
        return
    gathered = Gathered(store, only_sealed=True)
    for workspace in workspaces_with_points(store):
        gathered.add(Points(store, workspace))
        progress(f"{len(gathered.objects)} sealed objects")
    roots = StoreRoots(store, store.path)
    gathered.add_sealed(roots.fresh(), roots)
    count = len(gathered.objects)
    name = _pack(store, gathered, progress, reuse=True) if count else None
    with gc.alone(store, patience):
        gathered.add_sealed(roots.fresh(), roots)
        if len(gathered.objects) == count:  # else the next collection does it
            sealing.remove_packs(store, [each for each in old if each != name])
    _forget_gone(store)


# Merging


def _merge(store: Store, progress: Say, *, at_leisure: bool = False) -> None:
    """Merge small packs, if there are many; *at_leisure* also if they are few, and a good part of all."""
    sizes = {name: _disk(store, name) for name in store.sealed.pack_names()}
    chosen = to_merge(sizes, at_leisure=at_leisure)
    if len(chosen) > 1:
        progress(f"{len(chosen)} packs are made one")
        records = _records(store)
        name = sealing.merge_packs(store, chosen, progress)
        _note(store, name, sum(records[each]["points"] for each in chosen if each in records), dropped=True)
        _forget_gone(store)


def to_merge(sizes: dict[str, int], *, at_leisure: bool) -> list[str]:
    """Which packs, of these sizes in bytes, are to be merged: so that each that stays is twice as large as all that are
    smaller, and an object is packed again no more often than the sizes can be doubled."""
    names = sorted(sizes, key=lambda name: (sizes[name], name))
    apart = sum(sizes[name] for name in names[:-1])
    if at_leisure and names and apart > _APART_MAX * sizes[names[-1]]:
        return names
    if len(names) <= PACKS_MAX:
        return []
    end = 2
    while end < len(names) and sizes[names[end]] < 2 * sum(sizes[name] for name in names[:end]):
        end += 1
    return names[:end]


def _disk(store: Store, name: str) -> int:
    return os.path.getsize(os.path.join(store.sealed.packs, name + ".pack"))


# Records


def _records(store: Store) -> dict[str, dict[str, int]]:
    return {key.decode(): json.loads(value) for key, value in store.meta_items(_NAMESPACE)}


def _note(store: Store, name: str, points: int, *, dropped: bool) -> None:
    with store.batch() as batch:
        batch.meta_put(_NAMESPACE, name.encode(), json.dumps({"points": points, "dropped": dropped}).encode())


def _forget_gone(store: Store) -> None:
    packs = store.sealed.pack_names()
    with store.batch() as batch:
        for name in _records(store):
            if name not in packs:
                batch.meta_put(_NAMESPACE, name.encode(), None)


class Backlog:
    """The points that are to be sealed, the oldest of each workspace first."""

    def __init__(self, store: Store, end_ms: int) -> None:
        """Those up to *end_ms*."""
        self._store = store
        self._waiting: deque[tuple[Points, IndexedPoint, IndexedPoint | None]] = deque()
        for workspace in workspaces_with_points(store):
            points = Points(store, workspace)
            before: IndexedPoint | None = None
            for each in points.between(0, end_ms):
                if not store.is_sealed(each.oid):
                    self._waiting.append((points, each, before))
                before = each

    @property
    def points(self) -> int:
        """How many are left."""
        return len(self._waiting)

    def take(self, limit: int) -> Gathered:
        """A slice of about *limit* objects: whole points, or files of one that is larger by itself."""
        gathered = Gathered(self._store)
        last: tuple[bytes, Point] | None = None
        while self._waiting and gathered.weight < limit:
            points, each, older = self._waiting[0]
            point = points.load(each.oid)
            before = None
            if older is not None:
                before = last[1] if last is not None and last[0] == older.oid else points.load(older.oid)
            weight = gathered.weight
            new = gathered.added(point, before)
            if gathered.weight - weight > limit and self._cut(gathered, new, limit):
                break
            self._waiting.popleft()
            last = each.oid, point
        FAULTS.hit("seal.gathered")
        return gathered

    def _cut(self, gathered: Gathered, new: Sequence[Added], limit: int) -> bool:
        """Leave of the newest point, which added *new*, no more than files, to about *limit*; whether that is less."""
        files = [each for each in new if each.is_file and each.oid in gathered.objects]
        files = [each for each in files if not each.hint.startswith(RECORDED)]
        if not files or len(files) + 1 >= len(new):
            return False
        room = limit
        for each in new:
            is_taken = each in files and room > 0
            if not is_taken:
                gathered.leave(each.oid)
            else:
                room -= each.weight
        gathered.points -= 1
        return True
