"""Everything that points lead to, each object once, with what it is a version of: the same path, in the tree or in the
metadata. What lies in a source's repository is left out, and so is what two points share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from operator import itemgetter
from typing import NamedTuple

from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE, decode_tree, stored_entries
from clivefs.objects.errors import ObjectMissing, ObjectTooLarge
from clivefs.objects.store import Store

RECORDED = b"\xff"
"""The metadata of a path has another hint than the path."""
_OBJECT_BYTES = 8_000
"""More payload than this counts as more objects."""
_TREES_MAX = 256
_NONE: frozenset[tuple[bytes, bytes, bytes]] = frozenset()


class Added(NamedTuple):
    """An object that a point added."""

    oid: bytes
    hint: bytes
    is_file: bool
    """Whether it is a file's content."""
    weight: int
    """Its share of a slice: 1, or more if it is large."""


class Gathered:
    """The objects of points, each with what it is a version of."""

    def __init__(self, store: Store, *, also_sealed: bool = False, only_sealed: bool = False) -> None:
        """*also_sealed*: also those that are in a pack already. *only_sealed*: only those."""
        self._store = store
        self._also_sealed = also_sealed or only_sealed
        self._only_sealed = only_sealed
        self.objects: dict[bytes, bytes] = {}
        """Name -> hint, the oldest first."""
        self.beside: set[bytes] = set()
        """Large blobs that they lead to."""
        self.points = 0
        self.weight = 0
        """The weights of the objects."""
        self._elsewhere: set[bytes] = set()
        self._new: list[Added] | None = None
        self._trees: OrderedDict[bytes, frozenset[tuple[bytes, bytes, bytes]]] = OrderedDict()

    def add(self, points: Points) -> None:
        """All points; with *only_sealed* those that are sealed."""
        before: Point | None = None
        for each in points.between(0, MS_MAX):
            if not self._only_sealed or self._store.is_sealed(each.oid):
                point = points.load(each.oid)
                self.add_point(point, before)
                before = point

    def add_point(self, point: Point, before: Point | None) -> None:
        """One point; *before* was added earlier, or is sealed."""
        self.points += 1
        self._take(point.oid, b"", is_file=False)
        self._add_tree(point.tree, before.tree if before is not None else None, b"")
        if point.meta is not None:
            self._add_tree(point.meta, before.meta if before is not None else None, RECORDED)

    def added(self, point: Point, before: Point | None) -> list[Added]:
        """As `add_point`: what is new by it."""
        self._new = []
        self.add_point(point, before)
        new, self._new = self._new, None
        return new

    def leave(self, oid: bytes) -> None:
        """Take back what was added; without what leads to it."""
        self.objects.pop(oid, None)
        self.beside.discard(oid)

    def _add_tree(self, tree: bytes, before: bytes | None, hint: bytes) -> None:
        """What *tree* has that is neither in *before* nor gathered yet."""
        waiting = [(tree, before, hint)]
        while waiting:
            oid, other, path = waiting.pop()
            if oid == other or not self._take(oid, path, is_file=False):
                continue
            new, old = self._entries(oid), self._entries(other) if other is not None else _NONE
            were = {name: (int(mode, 8), child) for mode, name, child in old - new}
            for mode, name, child in sorted(new - old, key=itemgetter(1)):
                number = int(mode, 8)
                beside = were.get(name)
                if number == MODE_GITLINK or (beside is not None and beside[1] == child):
                    continue
                if number == MODE_TREE:
                    above = beside[1] if beside is not None and beside[0] == MODE_TREE else None
                    waiting.append((child, above, path + b"/" + name))
                else:
                    self._take(child, path + b"/" + name, is_file=True)

    def _take(self, oid: bytes, hint: bytes, *, is_file: bool) -> bool:
        """Whether *oid* is to be sealed, and is new here."""
        if oid in self.objects or oid in self._elsewhere or oid in self.beside:
            return False
        if not self._also_sealed and self._store.is_sealed(oid):
            return False
        try:
            size, is_large = self._store.measure(oid)
        except ObjectMissing:  # a repository has it
            self._elsewhere.add(oid)
            return False
        if self._only_sealed and not self._store.is_sealed(oid) and not is_large:
            self._elsewhere.add(oid)  # what it leads to and is sealed, `add_sealed` finds
            return False
        if is_large:
            self.beside.add(oid)
        else:
            self.objects[oid] = hint
        weight = 0 if is_large else 1 + size // _OBJECT_BYTES
        self.weight += weight
        if self._new is not None:
            self._new.append(Added(oid, hint, is_file, weight))
        return not is_large

    def _entries(self, tree: bytes) -> frozenset[tuple[bytes, bytes, bytes]]:
        """(mode, name, object) as they are stored. What was asked for last is kept: the next point differs from it in
        little."""
        known = self._trees.get(tree)
        if known is None:
            kind, payload = self._store.read(tree)
            known = frozenset(stored_entries(payload)) if kind == "tree" else _NONE
            self._trees[tree] = known
            if len(self._trees) > _TREES_MAX:
                self._trees.popitem(last=False)
        else:
            self._trees.move_to_end(tree)
        return known

    def add_sealed(self, oids: Iterable[bytes], roots: StoreRoots) -> None:
        """What *oids* lead to and is sealed now."""
        seen: set[bytes] = set()
        for start in oids:
            waiting = [(start, b"")]
            while waiting:
                oid, hint = waiting.pop()
                if oid in seen or oid in self.objects:
                    continue
                seen.add(oid)
                sealed = self._store.is_sealed(oid)
                try:
                    kind, payload = self._store.read(oid)
                except ObjectTooLarge:
                    self.beside.add(oid)
                    continue
                except ObjectMissing:
                    continue
                if kind == "commit":
                    hint = b""
                if sealed:
                    self.objects[oid] = hint
                if kind == "tree":
                    waiting += [
                        (entry.oid, hint + b"/" + entry.name)
                        for entry in decode_tree(payload)
                        if entry.mode != MODE_GITLINK
                    ]
                elif kind == "commit":
                    tree, *others = roots.of_commit(oid, payload)
                    waiting += [(tree, b""), *((child, RECORDED) for child in others)]
