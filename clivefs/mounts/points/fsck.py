"""Whether the recorded past is whole: beside `objects.fsck`, which knows objects and refs, but not what points are.

Of every point: its record, its commit, that both say the same, its tree, and its metadata down to the last record. Of
every session: that its record can be read, and that its ref is at its newest point. That what trees name is there is
for `objects.fsck` to find, to which points are roots; it is led through them in their order.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator, Sequence

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.points.index import SESSION_REFS, IndexedPoint, Points, record_of
from clivefs.mounts.points.metadata import RECORDS, decode_records, same_but_times, split_meta
from clivefs.mounts.points.point import Point, read_point
from clivefs.objects.encode import EMPTY_TREE, decode_commit, decode_tree
from clivefs.objects.errors import CorruptObject, ObjectTooLarge
from clivefs.objects.fsck import Elsewhere, Problem, Progress, StoreCheck
from clivefs.objects.interface import ObjectStore
from clivefs.objects.versions import Versions

_ID_BYTES = 16
_KNOWN_MAX = 2_000_000
_TREE = b"40000 "
"""How the mode of a directory is stored."""
_LOOKS_MAX = 5
"""How often a session is looked at before its parts are said not to agree: points may be made meanwhile."""


def problems(
    store: ObjectStore, reader: JoinedObjects, *, extra: Sequence[Elsewhere] = (), roots: Iterable[bytes] = ()
) -> Iterator[Problem | Progress]:
    """All that is wrong with *store*: objects, refs, points and sessions, and how far the check is. *reader* has the
    objects of points; *extra* and *roots* as for `objects.fsck.fsck`."""
    check = StoreCheck(store, extra=extra, read=reader.read)
    yield from check.start()
    yield from _point_problems(store, _Metadata(reader, check.versions), check)
    yield from check.rest(roots)


def point_problems(store: ObjectStore, reader: JoinedObjects) -> Iterator[Problem]:
    """What is wrong with the points and sessions of *store* alone; *reader* has their objects."""
    for step in _point_problems(store, _Metadata(reader, Versions(reader.read)), None):
        if isinstance(step, Problem):
            yield step


def _point_problems(store: ObjectStore, metadata: _Metadata, check: StoreCheck | None) -> Iterator[Problem | Progress]:
    """With *check* the objects of points are looked at too, each point's before its metadata: so what both read is read
    once."""
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
        last: Point | None = None
        for key, value in store.meta_range("points", workspace, workspace + b"\xff"):
            try:
                each = record_of(key[_ID_BYTES:], value)
                _check_order(before, each)
                if each.session not in sessions:
                    raise CorruptObject(f"there is no session {each.session!r}")
                point = metadata.load(each)
                if check is not None:
                    yield from _look(check, point, last)
                metadata.check(point, last)
                last = point
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


def _look(check: StoreCheck, point: Point, before: Point | None) -> Iterator[Problem | Progress]:
    """Look at the objects of a point; *before*: one that was looked at."""
    if point.tree != EMPTY_TREE:  # which is nowhere, and need not be
        yield from check.look(point.tree, "tree", before.tree if before is not None else None)
    if point.meta is not None:
        yield from check.look(point.meta, "tree", before.meta if before is not None else None)
    yield from check.look(point.oid, "commit")


_Pair = tuple[bytes, bytes]
"""A tree and its metadata tree."""


class _Metadata:
    """Whether points are whole, down to the last record. What has not changed since the point before is not looked at
    again, and records of which only times have are not decoded."""

    def __init__(self, reader: JoinedObjects, versions: Versions) -> None:
        self._reader = reader
        self._versions = versions
        self._whole: set[_Pair] = set()
        """What was found whole, with all below."""

    def load(self, each: IndexedPoint) -> Point:
        """The point that the index tells of. CorruptObject, ObjectMissing."""
        kind, payload = self._versions.read(each.oid)
        if kind != "commit":
            raise CorruptObject(f"it is a {kind}, not a commit", oid=each.oid)
        point = read_point(each.oid, decode_commit(payload))
        if (point.ms, point.seq, point.session) != (each.ms, each.seq, each.session):
            raise CorruptObject("its commit is of another point", oid=each.oid)
        return point

    def check(self, point: Point, before: Point | None) -> None:
        """CorruptObject, ObjectMissing unless the point's tree is there and its metadata goes with it."""
        if point.tree != EMPTY_TREE and not self._versions.has(point.tree):
            self._reader.header(point.tree)
        if point.meta is None:
            return
        found: list[_Pair] = []
        old = (before.tree, before.meta) if before is not None and before.meta is not None else None
        waiting: list[tuple[_Pair, _Pair | None]] = [((point.tree, point.meta), old)]
        while waiting:
            pair, old = waiting.pop()
            if pair in self._whole:
                continue
            names = self._changed(pair, old) if old in self._whole else None
            if names is None:
                names = self._decode(*pair)
            waiting += (
                (self._below(pair, name), self._below(old, name) if old is not None else None) for name in names
            )
            found.append(pair)
        if len(self._whole) > _KNOWN_MAX:
            self._whole.clear()
        self._whole.update(found)

    def _decode(self, tree: bytes, meta: bytes) -> set[bytes]:
        """Look at all of a directory's records; which of its directories have metadata."""
        entries = [] if tree == EMPTY_TREE else decode_tree(self._versions.tree(tree).payload)
        records, below = split_meta(decode_tree(self._versions.tree(meta).payload))
        if records is not None:
            decode_records(self._content(records), entries)
        return set(below)

    def _changed(self, pair: _Pair, old: _Pair) -> set[bytes] | None:
        """Where only times and what lies below differ from *old*, which is whole: the directories whose metadata is to
        be looked at. None: all of it is."""
        if pair[0] != old[0] and EMPTY_TREE in (pair[0], old[0]):
            return None
        was, tree = self._versions.differing(old[0], pair[0]) if pair[0] != old[0] else (frozenset(), frozenset())
        gone, meta = self._versions.differing(old[1], pair[1])
        if _heads(was) != _heads(tree) or _heads(gone) != _heads(meta):
            return None
        records = {name: oid for _, name, oid in meta}.get(RECORDS)
        if records is not None:
            before = {name: oid for _, name, oid in gone}[RECORDS]
            if not same_but_times(self._content(records), self._content(before)):
                return None
        names = {name[1:] for _, name, _ in meta if name != RECORDS}
        has = self._versions.tree(pair[1]).find
        names.update(name for _, name, _ in tree if has(_TREE + b"=" + name + b"\0") is not None)
        return names

    def _below(self, pair: _Pair, name: bytes) -> _Pair:
        """The same of a directory of *pair*, which has metadata; empty trees for one that is not there."""
        tree, meta = pair
        below = self._entry(tree, name) if tree != EMPTY_TREE else None
        inner = self._entry(meta, b"=" + name) if meta != EMPTY_TREE else None
        return below or EMPTY_TREE, inner or EMPTY_TREE

    def _entry(self, tree: bytes, name: bytes) -> bytes | None:
        """The directory *name* of a tree."""
        found = self._versions.tree(tree)
        oid = found.find(_TREE + name + b"\0")
        if oid is None:  # it is none of ours, which can spell modes otherwise, or has no such directory
            others = (oid for mode, other, oid in found.entries() if other == name and stat.S_ISDIR(int(mode, 8)))
            oid = next(others, None)
        return oid

    def _content(self, oid: bytes) -> bytes:
        try:
            return self._versions.read(oid)[1]
        except ObjectTooLarge:
            return blob_content(self._reader, oid)


def _heads(entries: Iterable[tuple[bytes, bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    return sorted((mode, name) for mode, name, _ in entries)
