"""What recorded history costs: by tier, by session and by path.

A point costs what it has that the points before it have not: its commit, changed trees and metadata, new content. A
version of a file is counted for the path and the session where it first was. Bytes are those that it takes where it is
kept: compressed in the database, as a delta in a pack, raw where it is large.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from clivefs.mounts.points.gathering import RECORDED, Gathered
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
    gathered = Gathered(store, also_sealed=True)
    sessions: dict[str, list[int]] = {}
    paths: Counter[bytes] = Counter()
    versions: Counter[bytes] = Counter()
    total = first = structure = 0
    before: Point | None = None
    for number, each in enumerate(points.between(0, MS_MAX)):
        point = points.load(each.oid)
        added = gathered.added(point, before)
        before = point
        session = sessions.setdefault(each.session, [0, 0])
        session[0] += 1
        for oid, hint, is_file, _ in added:
            size = store.kept_bytes(oid)
            session[1] += size
            total += size
            if not number:
                first += size
            if is_file and not hint.startswith(RECORDED):
                paths[hint[1:]] += size
                versions[hint[1:]] += 1
            else:
                structure += size
        if number % _TELL == 0:
            progress(f"{number} points looked at")
    return Stats(
        sum(count for count, _ in sessions.values()),
        total,
        total - first,
        structure,
        tuple(SessionCost(name, count, size) for name, (count, size) in sessions.items()),
        tuple(PathCost(path, versions[path], size) for path, size in paths.most_common(top)),
    )
