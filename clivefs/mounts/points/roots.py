"""What keeps objects of a store: the roots of a collection. Everything that may be shown again must be found here.

    refs                    of sessions, forks, published modules, rebases
    records `points`        every point: its commit, tree and metadata tree. A point's parent is not kept by it: points
                            that were thinned go, and leave a gap (see `thinning`)
    records `forks`, `undo` the points that they name
    run/HASH.pins           what the daemons that run show at the moment (see `pins`)

The record of a patch that was applied (`patched`) is a cache: it keeps its tree only in the collection that finds
nothing else doing so, and removes the record; the next one takes the objects. So whoever has just found the
record may still use it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator

import msgspec

from clivefs.mounts.points.index import record_of
from clivefs.mounts.points.pins import pinned
from clivefs.mounts.points.point import read_point
from clivefs.objects.encode import decode_commit
from clivefs.objects.errors import CorruptObject
from clivefs.objects.interface import ObjectStore

_POINTS = "points"
_ID_BYTES = 16
_PAGE = 4096


class StoreRoots:
    """The roots of a store. Used by one thread."""

    def __init__(
        self, store: ObjectStore, store_path: str | None = None, *, without: frozenset[bytes] = frozenset()
    ) -> None:
        """*store_path*: where the pins of its daemons are. *without*: points that are taken for gone."""
        self._store = store
        self._path = store_path
        self._without = without
        self._after: dict[bytes, bytes] = {}
        """By workspace, the key of the newest point that was handed out."""

    def fresh(self) -> Iterator[bytes]:
        """All roots; of the points only those that are newer than at the call before."""
        yield from (oid for oid in self._store.refs("").values() if oid not in self._without)
        yield from (oid for oid in self._new_points() if oid not in self._without)
        yield from self.named()

    def named(self) -> Iterator[bytes]:
        """What is kept beside refs and points: points among it are not to be thinned."""
        for _, value in self._store.meta_items("undo"):
            record = json.loads(value)
            for text in (record["after"], record["at"], *record["redo"]):
                yield bytes.fromhex(text)
        for _, value in self._store.meta_items("forks"):
            fork = msgspec.json.decode(value)
            yield bytes.fromhex(fork["start"])
            yield bytes.fromhex(fork["base"])
        if self._path is not None:
            yield from pinned(os.path.join(self._path, "run"))

    def _new_points(self) -> Iterator[bytes]:
        for workspace in self.workspaces():
            prefix = workspace.encode()
            start = self._after.get(prefix, prefix)
            while page := self._store.meta_range(_POINTS, start, prefix + b"\xff" * 9, limit=_PAGE):
                for key, value in page:
                    yield record_of(key[_ID_BYTES:], value).oid
                start = self._after[prefix] = page[-1][0] + b"\0"

    def workspaces(self) -> list[str]:
        """The ids of the workspaces that have points."""
        return workspaces_with_points(self._store)

    def of_commit(self, oid: bytes, payload: bytes) -> Iterable[bytes]:
        """What a commit keeps: a point, its tree and metadata; another, also its parents."""
        commit = decode_commit(payload)
        try:
            point = read_point(oid, commit)
        except CorruptObject:
            return (commit.tree, *commit.parents)
        return (point.tree, point.meta) if point.meta is not None else (point.tree,)


def workspaces_with_points(store: ObjectStore) -> list[str]:
    """The ids of the workspaces that have points, in order."""
    found: list[str] = []
    start = b""
    while record := store.meta_range(_POINTS, start, None, limit=1):
        prefix = record[0][0][:_ID_BYTES]
        found.append(prefix.decode("ascii", "replace"))
        start = prefix + b"\xff" * 9
    return found
