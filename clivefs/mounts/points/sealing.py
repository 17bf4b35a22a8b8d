"""Which points are sealed, and what goes into a pack with them.

Points that are older than an hour, where there are enough of them. Their objects go with what they are versions of: the
same path, in the tree or in the metadata. What lies in a source's repository stays there.

Where there are many packs, or much in them was thinned, they are made anew as one. Then all that is sealed and
still led to goes along, whoever leads to it: a fork, a newer point. The old packs go behind the gate, if nothing
was written meanwhile that needs more of them.

    records `sealed`    name of the pack -> JSON: points, how many were sealed with it
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.roots import StoreRoots, workspaces_with_points
from clivefs.objects import gc, sealing
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE, decode_tree
from clivefs.objects.errors import ObjectMissing, ObjectTooLarge
from clivefs.objects.store import Store

AGE_MS = 3_600_000
POINTS_MIN = 500
"""Fewer are not worth a pack."""
_NAMESPACE = "sealed"
_GARBAGE_MAX = 0.25
"""The part of the sealed points that may have been thinned before the packs are made anew."""
_TREES_MAX = 256
RECORDED = b"\xff"
"""The metadata of a path has another hint than the path."""

Say = Callable[[str], None]


class Plan(NamedTuple):
    """What is worth doing."""

    new: int
    """Points that would be sealed."""
    kept: int
    """Points that are, and are still there."""
    packs: tuple[str, ...]
    anew: bool
    """The packs are to be made anew, as one."""


def plan(store: Store, now_ms: int, *, points_min: int = POINTS_MIN) -> Plan:
    """What is worth doing now."""
    new = kept = 0
    for workspace in workspaces_with_points(store):
        for each in Points(store, workspace).between(0, MS_MAX):
            if store.is_sealed(each.oid):
                kept += 1
            elif each.ms <= now_ms - AGE_MS:
                new += 1
    new = new if new >= points_min else 0
    packs = tuple(store.sealed.pack_names())
    once = sum(json.loads(value)["points"] for key, value in store.meta_items(_NAMESPACE) if key.decode() in packs)
    many = len(packs) + bool(new) > sealing.PACKS_MAX
    thinned = once - kept
    return Plan(new, kept, packs, bool(packs) and (many or thinned > max(points_min, _GARBAGE_MAX * once)))


def seal(
    store: Store,
    now_ms: int,
    progress: Say = lambda text: None,
    *,
    points_min: int = POINTS_MIN,
    anew: bool = False,
) -> sealing.SealedNow:
    """Do what `plan` says; with *anew* also make the packs that there are anew. Only in a collection
    (`gc.one_at_a_time`). RepositoryError, OSError, gc.Busy."""
    sealing.sweep_unfinished(store)
    before = store.sealed.count()[2]
    todo = plan(store, now_ms, points_min=points_min)
    if anew and todo.packs:
        todo = todo._replace(anew=True)
    if todo.new or todo.anew:
        _make(store, now_ms, todo, progress)
    count, size = sealing.drop_copies(store)
    return sealing.SealedNow(count, size, store.sealed.count()[2] - before)


def _make(store: Store, now_ms: int, todo: Plan, progress: Say) -> None:
    gathered = Gathered(store, also_sealed=todo.anew)
    for workspace in workspaces_with_points(store):
        gathered.add(Points(store, workspace), now_ms - AGE_MS)
        progress(f"{len(gathered.objects)} objects to seal")
    roots = StoreRoots(store, store.path)
    if todo.anew:
        gathered.add_sealed(roots.fresh(), roots)
    packed = dict(gathered.objects)
    name = None
    if packed:
        # As git's packs have them: the newest first.
        newest_first = {oid: hint for oid, hint in reversed(packed.items()) if not hint.startswith(RECORDED)}
        strand = {oid: hint for oid, hint in packed.items() if hint.startswith(RECORDED)}
        beside = sorted(gathered.beside)
        name = sealing.make_pack(store, newest_first, beside, progress, strand=strand, reuse=todo.anew)
        with store.batch() as batch:
            batch.meta_put(_NAMESPACE, name.encode(), json.dumps({"points": gathered.points}).encode())
    if todo.anew:
        with gc.alone(store):
            gathered.add_sealed(roots.fresh(), roots)
            if len(gathered.objects) == len(packed):  # else the next collection does it
                sealing.remove_packs(store, [each for each in todo.packs if each != name])


class Gathered:
    """The objects of points, each with what it is a version of."""

    def __init__(self, store: Store, *, also_sealed: bool) -> None:
        """*also_sealed*: also those that are in a pack already."""
        self._store = store
        self._also_sealed = also_sealed
        self.objects: dict[bytes, bytes] = {}
        """Name -> hint, the oldest first."""
        self.beside: set[bytes] = set()
        """Large blobs that they lead to."""
        self.points = 0
        self._elsewhere: set[bytes] = set()
        self._new: list[tuple[bytes, bytes, bool]] | None = None
        self._trees: OrderedDict[bytes, dict[bytes, tuple[int, bytes]]] = OrderedDict()

    def add(self, points: Points, end_ms: int) -> None:
        """The points up to *end_ms*."""
        sealed: IndexedPoint | None = None
        before: Point | None = None
        for each in points.between(0, end_ms):
            if not self._also_sealed and self._store.is_sealed(each.oid):
                sealed, before = each, None
                continue
            if sealed is not None:
                before, sealed = points.load(sealed.oid), None
            point = points.load(each.oid)
            self.add_point(point, before)
            before = point

    def add_point(self, point: Point, before: Point | None) -> None:
        """One point; *before* was added earlier, or is sealed."""
        self.points += 1
        self.objects[point.oid] = b""
        self._add_tree(point.tree, before.tree if before is not None else None, b"")
        if point.meta is not None:
            self._add_tree(point.meta, before.meta if before is not None else None, RECORDED)

    def added(self, point: Point, before: Point | None) -> list[tuple[bytes, bytes, bool]]:
        """As `add_point`: the names that are new by it, each with its hint, and whether it is a file's content."""
        self._new = []
        self.add_point(point, before)
        new, self._new = self._new, None
        return [(point.oid, b"", False), *new]

    def _add_tree(self, tree: bytes, before: bytes | None, hint: bytes) -> None:
        """What *tree* has that is neither in *before* nor gathered yet."""
        waiting = [(tree, before, hint)]
        while waiting:
            oid, other, path = waiting.pop()
            if oid == other or not self._take(oid, path, is_file=False):
                continue
            old = self._entries(other) if other is not None else {}
            for name, (mode, child) in self._entries(oid).items():
                beside = old.get(name)
                if mode == MODE_GITLINK or (beside is not None and beside[1] == child):
                    continue
                if mode == MODE_TREE:
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
            is_large = self._store.is_large(oid)
        except ObjectMissing:  # a repository has it
            self._elsewhere.add(oid)
            return False
        if is_large:
            self.beside.add(oid)
        else:
            self.objects[oid] = hint
        if self._new is not None:
            self._new.append((oid, hint, is_file))
        return not is_large

    def _entries(self, tree: bytes) -> dict[bytes, tuple[int, bytes]]:
        """(mode, object) by name. What was asked for last is kept: the next point differs from it in little."""
        known = self._trees.get(tree)
        if known is None:
            kind, payload = self._store.read(tree)
            known = {entry.name: (entry.mode, entry.oid) for entry in decode_tree(payload)} if kind == "tree" else {}
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
