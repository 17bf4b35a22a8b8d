"""Whether the recorded past is whole: beside `objects.fsck`, which knows objects and refs, but not what points are.

Of every point: its record, its commit, that both say the same, its tree, and its metadata down to the last record. Of
every session: that its record can be read, and that its ref is at its newest point. That what trees name is there is
for `objects.fsck` to find, to which points are roots.
"""

from __future__ import annotations

from collections.abc import Iterator

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.points.index import SESSION_REFS, IndexedPoint, Points, record_of
from clivefs.mounts.points.metadata import decode_records, split_meta
from clivefs.mounts.points.point import Point
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.errors import CorruptObject
from clivefs.objects.fsck import Problem
from clivefs.objects.interface import ObjectStore

_ID_BYTES = 16
_KNOWN_MAX = 2_000_000
_LOOKS_MAX = 5
"""How often a session is looked at before its parts are said not to agree: points may be made meanwhile."""


def point_problems(store: ObjectStore, reader: JoinedObjects) -> Iterator[Problem]:
    """What is wrong with the points and sessions of *store*; *reader* has their objects."""
    seen: set[tuple[bytes, bytes]] = set()
    """Trees with their metadata that were found whole."""
    for workspace in sorted({key[:_ID_BYTES] for name in ("points", "sessions") for key, _ in store.meta_items(name)}):
        name = workspace.decode("ascii", "backslashreplace")
        points = Points(store, name)
        try:
            sessions = {each.name: each for each in points.sessions()}
        except CorruptObject as error:
            yield Problem("session", name, error.message)
            continue
        newest: dict[str, IndexedPoint] = {}
        before: IndexedPoint | None = None
        for key, value in store.meta_range("points", workspace, workspace + b"\xff"):
            try:
                each = record_of(key[_ID_BYTES:], value)
                _check_order(before, each)
                if each.session not in sessions:
                    raise CorruptObject(f"there is no session {each.session!r}")
                _check(reader, points, each, seen)
            except ClivefsError as error:
                yield Problem("point", f"{name}/{key[_ID_BYTES:].hex()}", error.message)
                continue
            before = newest[each.session] = each
        for session in sessions:
            if not any(_is_sound(store, points, name, session, newest.get(session)) for _ in range(_LOOKS_MAX)):
                yield Problem("session", f"{name}/{session}", "its record, its ref and its newest point do not agree")


def _is_sound(store: ObjectStore, points: Points, workspace: str, name: str, seen: IndexedPoint | None) -> bool:
    """Whether a session's record and ref are at its newest point. It may be recorded into meanwhile."""
    session = points.session(name)
    if session is None:
        return True  # thinned away
    if not session.last_ms:
        return seen is None
    last = points.get(session.last_ms)
    ref = store.get_ref(f"{SESSION_REFS}{workspace}/{name}")
    return last is not None and last.session == name and ref == last.oid and (seen is None or seen.ms <= last.ms)


def _check_order(before: IndexedPoint | None, each: IndexedPoint) -> None:
    if before is not None and each.seq <= before.seq:
        raise CorruptObject(f"its number {each.seq} is not above {before.seq} of the point before")


def _check(reader: JoinedObjects, points: Points, each: IndexedPoint, seen: set[tuple[bytes, bytes]]) -> None:
    """CorruptObject, ObjectMissing unless the point is whole."""
    point: Point = points.load(each.oid)
    if (point.ms, point.seq, point.session) != (each.ms, each.seq, each.session):
        raise CorruptObject("its commit is of another point", oid=each.oid)
    if point.tree != EMPTY_TREE:
        reader.header(point.tree)
    if point.meta is None:
        return
    waiting = [(point.tree, point.meta)]
    while waiting:
        pair = waiting.pop()
        if pair in seen:
            continue
        tree, meta = pair
        entries = [] if tree == EMPTY_TREE else reader.read_tree(tree)
        records, below = split_meta(reader.read_tree(meta))
        if records is not None:
            decode_records(blob_content(reader, records), entries)
        trees = {entry.name: entry.oid for entry in entries if entry.is_tree}
        waiting += [(trees.get(name, EMPTY_TREE), inner) for name, inner in below.items()]
        if len(seen) < _KNOWN_MAX:
            seen.add(pair)
