"""What recorded history costs: by tier, by session and by path.

A point costs what it has that the points before it have not: its commit, changed trees and metadata, new content. A
version of a file is counted for the path and the session where it first was. Bytes are those that it takes where it is
kept: compressed in the database, as a delta in a pack, raw where it is large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from clivefs.mounts.points.gathering import RECORDED, PointWalk
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.objects.store import Store

_TELL = 1000


class Tiers(NamedTuple):
    """What the whole store takes, in bytes."""

    database: int
    database_used: int
    objects: int
    """In the database."""
    large: int
    large_files: int
    sealed: int
    sealed_objects: int
    packs: int


class SessionCost(NamedTuple):
    """What one session added."""

    name: str
    points: int
    bytes: int


class PathCost(NamedTuple):
    """What one path's versions take."""

    path: bytes
    versions: int
    bytes: int


class Stats(NamedTuple):
    """What a workspace's history costs."""

    points: int
    bytes: int
    history_bytes: int
    """Of these, what was added after the first point."""
    structure_bytes: int
    """Of these, commits, trees and metadata."""
    sessions: tuple[SessionCost, ...]
    """In the order of time."""
    paths: tuple[PathCost, ...]
    """Those that take most, first."""


def tiers(store: Store) -> Tiers:
    """What the store takes on disk."""
    size, used = store.usage()
    files, large = store.large_bytes()
    packs, sealed_objects, sealed = store.sealed.count()
    return Tiers(size, used, store.counts()["objects"], large, files, sealed, sealed_objects, packs)


def stats(store: Store, workspace: str, *, top: int = 20, progress: Callable[[str], None] = lambda text: None) -> Stats:
    """What the history of *workspace* costs, with the *top* paths. Looks at every point. CorruptObject."""
    points = Points(store, workspace)
    counted = _Counted(store)
    walk = PointWalk(store, counted.take)
    sessions: dict[str, list[int]] = {}
    first = 0
    before: Point | None = None
    for number, each in enumerate(points.between(0, MS_MAX)):
        point = points.load(each.oid)
        total = counted.bytes
        walk.add(point, before)
        before = point
        session = sessions.setdefault(each.session, [0, 0])
        session[0] += 1
        session[1] += counted.bytes - total
        if not number:
            first = counted.bytes
        if number % _TELL == 0:
            progress(f"{number} points looked at")
    return Stats(
        sum(count for count, _ in sessions.values()),
        counted.bytes,
        counted.bytes - first,
        counted.structure,
        tuple(SessionCost(name, count, size) for name, (count, size) in sessions.items()),
        tuple(PathCost(path, counted.versions[path], size) for path, size in counted.paths.most_common(top)),
    )


class _Counted:
    """What each object takes, counted once."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen: set[bytes] = set()
        self.bytes = 0
        self.structure = 0
        self.paths: Counter[bytes] = Counter()
        self.versions: Counter[bytes] = Counter()

    def take(self, oid: bytes, hint: bytes, is_file: bool) -> bool:
        if oid in self._seen:
            return False
        self._seen.add(oid)
        size = self._store.kept_bytes(oid)
        if not size:
            return False  # a repository has it
        self.bytes += size
        if is_file and not hint.startswith(RECORDED):
            self.paths[hint[1:]] += size
            self.versions[hint[1:]] += 1
        else:
            self.structure += size
        return True
