"""Everything that points lead to, each object once, with what it is a version of: the same path, in the tree or in the
metadata. What lies in a source's repository is left out, and so is what two points share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import NamedTuple

from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE, decode_tree
from clivefs.objects.errors import ObjectMissing, ObjectTooLarge
from clivefs.objects.store import Store
from clivefs.objects.versions import Versions

RECORDED = b"\xff"
"""The metadata of a path has another hint than the path."""
_OBJECT_BYTES = 8_000
"""More payload than this counts as more objects."""


class Added(NamedTuple):
    """An object that a point added."""

    oid: bytes
    hint: bytes
    is_file: bool
    """Whether it is a file's content."""
    weight: int
    """Its share of a slice: 1, or more if it is large."""


Take = Callable[[bytes, bytes, bool], bool]
"""(an object, what it is a version of, whether it is a file's content): whether to look at what a tree leads to."""


class PointWalk:
    """Goes through points in their order, and only where one differs from the one before."""

    def __init__(self, store: Store, take: Take) -> None:
        """*take*: is told of every object that there is to look at; of one that more than one leads to, each time."""
        self._take = take
        self._versions = Versions(store.read)

    def add(self, point: Point, before: Point | None) -> None:
        """Go through *point*, but for what *before* has."""
        self._take(point.oid, b"", False)
        self._add_tree(point.tree, before.tree if before is not None else None, b"")
        if point.meta is not None:
            self._add_tree(point.meta, before.meta if before is not None else None, RECORDED)

    def _add_tree(self, tree: bytes, before: bytes | None, hint: bytes) -> None:
        take = self._take
        waiting = [(tree, before, hint)]
        while waiting:
            oid, other, path = waiting.pop()
            if oid == other or not take(oid, path, False):
                continue
            gone, new = self._versions.differing(other, oid)
            were = {name: (mode, child) for mode, name, child in gone}
            for mode, name, child in sorted(new, key=itemgetter(1)):
                number = int(mode, 8)
                beside = were.get(name)
                if number == MODE_GITLINK or (beside is not None and beside[1] == child):
                    continue
                if number == MODE_TREE:
                    above = beside[1] if beside is not None and int(beside[0], 8) == MODE_TREE else None
                    waiting.append((child, above, path + b"/" + name))
                else:
                    take(child, path + b"/" + name, True)


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
        self._walk = PointWalk(store, self._take)

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
        self._walk.add(point, before)

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

    def _take(self, oid: bytes, hint: bytes, is_file: bool) -> bool:
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
