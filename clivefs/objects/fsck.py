"""Is everything there and what it says it is? Reads a whole store, and changes nothing.

Every object is read once: first what `look` is asked to look at, in the order of history, so that a tree is taken
apart only where it differs from the one before; then all that nobody has led to. An object is marked with its kind when
it has been read, and what it names is compared with that: so neither is anything asked for twice, nor is more held than
21 bytes an object. Only when something is missing is all walked from the roots, to tell damage from a leftover that
nothing leads to (the first half of a batch whose process died).

May run beside writers: an object is committed after, or together with, what it names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

from clivefs.base.errors import ClivefsError
from clivefs.objects.encode import (
    KINDS,
    MODE_GITLINK,
    OID_BYTES,
    decode_commit,
    decode_tag,
    hash_object,
    object_hasher,
    stored_entries,
)
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge
from clivefs.objects.gcmarks import Marks
from clivefs.objects.interface import ObjectStore
from clivefs.objects.large import CHUNK_BYTES
from clivefs.objects.refnames import check_ref_name
from clivefs.objects.versions import Versions

_PROGRESS_OBJECTS = 1000
_SUSPECTS_MAX = 100_000
_MARKS = {kind: number for number, kind in enumerate(KINDS, 1)}
_UNKNOWN = len(KINDS) + 1
"""The mark of an object that was looked at, and whose kind cannot be told."""
_POINT = b"\nClive-Seq: "
"""A commit with this trailer is a point of a session: the one before may have been thinned, and is then not missing."""


class Elsewhere(Protocol):
    """A repository that may hold what the store's objects name."""

    def has(self, oid: bytes) -> bool: ...

    def promised(self) -> Collection[bytes]:
        """Objects that a remote of it holds; asked for only when something is missing."""
        ...


class Problem(NamedTuple):
    """One thing that is wrong. `kind` is `ref`, `missing`, `corrupt`, `tier`, `point` or `session`; `name` a ref, an
    object's hexadecimal name, a path in the store, or a workspace's id with a point's time or a session's name."""

    kind: str
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}: {self.message}"


class Progress(NamedTuple):
    """How many objects and refs have been checked so far."""

    objects: int
    refs: int


class _Suspect(NamedTuple):
    parent: bytes
    child: bytes
    kind: str


def fsck(store: ObjectStore, *, extra: Sequence[Elsewhere] = (), roots: Iterable[bytes] = ()) -> list[Problem]:
    """Everything that is wrong with a store; *extra* are repositories that may hold objects it names, *roots* lead to
    objects that must be there as refs do."""
    return [step for step in fsck_steps(store, extra=extra, roots=roots) if isinstance(step, Problem)]


def fsck_steps(
    store: ObjectStore, *, extra: Sequence[Elsewhere] = (), roots: Iterable[bytes] = ()
) -> Iterator[Problem | Progress]:
    """`fsck` in steps: problems as they are found, and progress about every thousand objects. *roots* are asked for
    only when something is missing."""
    check = StoreCheck(store, extra=extra)
    yield from check.start()
    yield from check.rest(roots)


class _Waiting(NamedTuple):
    """An object to look at."""

    oid: bytes
    kind: str
    """What it is said to be."""
    parent: bytes | None
    """Who says so."""
    like: bytes | None
    """For a tree: one that was looked at before, and has most in common with it."""


class StoreCheck:
    """One check of a store: `start`, then `look` as often as wanted, then `rest`. Used by one thread."""

    def __init__(
        self,
        store: ObjectStore,
        *,
        extra: Sequence[Elsewhere] = (),
        read: Callable[[bytes], tuple[str, bytes]] | None = None,
    ) -> None:
        """*extra*: as for `fsck`. *read*: how to read the store's objects, and maybe others."""
        self._store = store
        self._extra = extra
        self.versions = Versions(read or store.read)
        """What was read lately."""
        self._marks = Marks(())
        self._refs: dict[str, bytes] = {}
        self._strange: list[bytes] = []
        self._suspects: list[_Suspect] = []
        self._count = 0

    def start(self) -> Iterator[Problem]:
        """What is wrong with tiers and refs."""
        for where, message in self._store.tier_problems():
            yield Problem("tier", where, message)
        self._refs = self._store.refs("")
        for name, oid in self._refs.items():
            yield from _check_ref(self._store, name, oid, self._extra)
        self._marks = Marks(self._names())

    def look(self, oid: bytes, kind: str, like: bytes | None = None) -> Iterator[Problem | Progress]:
        """What is wrong with an object of the store that should be a *kind*, and with all that it leads to, as far as
        that was not looked at before. *like*: a tree that was, and has most in common with it."""
        marks = self._marks
        waiting = [_Waiting(oid, kind, None, like)]
        while waiting:
            each = waiting.pop()
            position = marks.position(each.oid)
            if position < 0:
                yield from self._not_there(each)
                continue
            if not marks.at(position):
                try:
                    found, children = self._read(each.oid, each.like)
                    marks.put(position, _MARKS[found])
                    waiting += children
                except ObjectMissing:  # removed by a gc meanwhile, if nobody names it
                    marks.put(position, _UNKNOWN)
                    yield from self._not_there(each)
                except (ClivefsError, OSError) as error:
                    marks.put(position, self._kind_by_header(each.oid))
                    message = error.message if isinstance(error, ClivefsError) else str(error)
                    yield Problem("corrupt", each.oid.hex(), message)
                self._count += 1
                if self._count % _PROGRESS_OBJECTS == 0:
                    yield Progress(self._count, len(self._refs))
            mark = marks.at(position)
            if each.parent is not None and mark not in (_UNKNOWN, _MARKS[each.kind]):
                yield _wrong_kind(each.parent, each.oid, each.kind, KINDS[mark - 1])

    def rest(self, roots: Iterable[bytes]) -> Iterator[Problem | Progress]:
        """What is wrong with all that was not looked at, and what is missing. *roots*: as for `fsck`."""
        for oid in self._marks.unmarked():
            yield from self.look(oid, "")
        for oid in self._strange:
            self._count += 1
            yield Problem("corrupt", oid.hex(), "this is not the name of an object")
        if self._suspects:
            yield from _judge(self._store, (*self._refs.values(), *roots), self._suspects, self._extra)
        yield Progress(self._count, len(self._refs))

    def _names(self) -> Iterator[bytes]:
        for oid in self._store.names():
            if len(oid) == OID_BYTES:
                yield oid
            else:
                self._strange.append(oid)

    def _read(self, oid: bytes, like: bytes | None) -> tuple[str, list[_Waiting]]:
        """(its kind, what it names and may not have been looked at). CorruptObject unless its content is its name's;
        ObjectMissing, OSError."""
        try:
            kind, payload = self.versions.read(oid)
        except ObjectTooLarge as large:
            _check_large(self._store, oid, large.size)
            return "blob", []
        if hash_object(kind, payload) != oid:
            raise CorruptObject("its content has another name", oid=oid)
        if kind == "tree":
            return kind, self._named_by_tree(oid, like)
        is_point = kind == "commit" and _POINT in payload
        children = _children(kind, payload)
        return kind, [_Waiting(*each, oid, None) for each in children if not (is_point and each[1] == "commit")]

    def _named_by_tree(self, oid: bytes, like: bytes | None) -> list[_Waiting]:
        was_read = like is not None and self._kind_of(like) == "tree"
        gone, new = self.versions.differing(like if was_read else None, oid)
        were = {name: child for _, name, child in gone}
        found = ((child, _kind_of(int(mode, 8)), name) for mode, name, child in new)
        return [_Waiting(child, kind, oid, were.get(name)) for child, kind, name in found if kind]

    def _kind_of(self, oid: bytes) -> str | None:
        """What an object is that was looked at and found whole."""
        position = self._marks.position(oid)
        mark = self._marks.at(position) if position >= 0 else 0
        return KINDS[mark - 1] if 0 < mark < _UNKNOWN else None

    def _kind_by_header(self, oid: bytes) -> int:
        try:
            return _MARKS[self._store.header(oid)[0]]
        except (ClivefsError, OSError):
            return _UNKNOWN

    def _not_there(self, each: _Waiting) -> Iterator[Problem]:
        """An object was not among the names: it may have been written since, or be elsewhere, or be missing."""
        if each.parent is None:
            return
        try:
            found, _ = self._store.header(each.oid)
        except ObjectMissing:
            if len(self._suspects) < _SUSPECTS_MAX and not any(other.has(each.oid) for other in self._extra):
                self._suspects.append(_Suspect(each.parent, each.oid, each.kind))
        except CorruptObject as error:
            yield Problem("corrupt", each.oid.hex(), error.message)
        else:
            if found != each.kind:
                yield _wrong_kind(each.parent, each.oid, each.kind, found)


def _check_ref(store: ObjectStore, name: str, oid: bytes, extra: Sequence[Elsewhere]) -> Iterator[Problem]:
    why = check_ref_name(name)
    if why is not None:
        yield Problem("ref", name, f"it cannot be a ref: {why}")
    if len(oid) != 20:
        yield Problem("ref", name, "its value is not the name of an object")
    elif not store.has(oid) and not any(each.has(oid) for each in extra):
        yield Problem("ref", name, f"it leads to {oid.hex()}, which is missing")


def _children(kind: str, payload: bytes) -> set[tuple[bytes, str]]:
    if kind == "tree":
        entries = stored_entries(payload)
        kinds = {mode: _kind_of(int(mode, 8)) for mode in set(map(itemgetter(0), entries))}
        return {(oid, what) for mode, _, oid in entries if (what := kinds[mode])}
    if kind == "commit":
        commit = decode_commit(payload)
        return {(commit.tree, "tree"), *((parent, "commit") for parent in commit.parents)}
    if kind == "tag":
        return {decode_tag(payload)}
    return set()


def _kind_of(mode: int) -> str:
    """What an entry of that mode names; nothing for a submodule, whose commit is in the submodule."""
    if stat.S_IFMT(mode) == MODE_GITLINK:
        return ""
    return "tree" if stat.S_ISDIR(mode) else "blob"


def _wrong_kind(parent: bytes, child: bytes, kind: str, found: str) -> Problem:
    return Problem("corrupt", parent.hex(), f"it names {child.hex()} as a {kind}, and that is a {found}")


def _check_large(store: ObjectStore, oid: bytes, size: int) -> None:
    fd = store.open_large(oid)
    if fd is None:
        raise CorruptObject("it is kept in no tier", oid=oid)
    try:
        hasher = object_hasher("blob", size)
        offset = 0
        while piece := os.pread(fd, CHUNK_BYTES, offset):
            hasher.update(piece)
            offset += len(piece)
    finally:
        os.close(fd)
    if hasher.digest() != oid:
        raise CorruptObject("its file's content has another name", oid=oid)


def _judge(
    store: ObjectStore, roots: Collection[bytes], suspects: list[_Suspect], extra: Sequence[Elsewhere]
) -> Iterator[Problem]:
    """Of objects that name something missing, report those that a ref leads to and no remote promised."""
    promised = [each.promised() for each in extra]
    left = [each for each in suspects if not any(each.child in known for known in promised)]
    if not left:
        return
    reachable = _reachable(store, roots)
    for parent, child, kind in left:
        if parent in reachable:
            yield Problem("missing", child.hex(), f"this {kind} is named by {parent.hex()}")
    if len(suspects) >= _SUSPECTS_MAX:
        yield Problem("missing", "...", f"the search stopped after {_SUSPECTS_MAX} missing objects")


def _reachable(store: ObjectStore, roots: Collection[bytes]) -> set[bytes]:
    """The commits, trees and tags of the store that *roots* lead to."""
    seen: set[bytes] = set()
    waiting = list(roots)
    while waiting:
        oid = waiting.pop()
        if oid in seen:
            continue
        try:
            kind, payload = store.read(oid)
            children = _children(kind, payload)
        except (ObjectMissing, ObjectTooLarge, CorruptObject):
            continue
        seen.add(oid)
        waiting += [child for child, expected in children if expected != "blob" and child not in seen]
    return seen
