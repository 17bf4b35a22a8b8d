"""Is everything there and what it says it is? Reads a whole store, and changes nothing.

No set of visited objects is needed for a sound store: if every ref leads to an object, and everything
that an object names is there, then by induction everything reachable is. Only when something is missing
is history walked, to tell damage from a leftover that nothing leads to (the first half of a batch whose
process died). So memory stays small, whatever the size of the store.

May run beside writers: an object is committed after, or together with, what it names.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import NamedTuple, Protocol

from clivefs.objects.encode import MODE_GITLINK, decode_commit, decode_tag, hash_object, object_hasher, stored_entries
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge
from clivefs.objects.interface import ObjectStore
from clivefs.objects.large import CHUNK_BYTES
from clivefs.objects.refnames import check_ref_name

_PROGRESS_OBJECTS = 1000
_SUSPECTS_MAX = 100_000
_SOUND_MAX = 1 << 17
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
    for where, message in store.tier_problems():
        yield Problem("tier", where, message)
    refs = store.refs("")
    suspects: list[_Suspect] = []
    for name, oid in refs.items():
        yield from _check_ref(store, name, oid, extra)
    count = 0
    sound: set[tuple[bytes, str]] = set()
    """What was named, and is there: the next tree has most of its entries in common with this one."""
    for oid in store.names():
        try:
            for child, kind in _check_object(store, oid) - sound:
                problem = _check_child(store, oid, child, kind)
                if problem == "":
                    sound.add((child, kind))
                elif problem is None:
                    if len(suspects) < _SUSPECTS_MAX and not any(each.has(child) for each in extra):
                        suspects.append(_Suspect(oid, child, kind))
                else:
                    yield Problem("corrupt", oid.hex(), problem)
            if len(sound) > _SOUND_MAX:
                sound.clear()
        except ObjectMissing:
            pass  # removed by a gc meanwhile
        except (CorruptObject, OSError) as error:
            yield Problem("corrupt", oid.hex(), error.message if isinstance(error, CorruptObject) else str(error))
        count += 1
        if count % _PROGRESS_OBJECTS == 0:
            yield Progress(count, len(refs))
    if suspects:
        yield from _judge(store, (*refs.values(), *roots), suspects, extra)
    yield Progress(count, len(refs))


def _check_ref(store: ObjectStore, name: str, oid: bytes, extra: Sequence[Elsewhere]) -> Iterator[Problem]:
    why = check_ref_name(name)
    if why is not None:
        yield Problem("ref", name, f"it cannot be a ref: {why}")
    if len(oid) != 20:
        yield Problem("ref", name, "its value is not the name of an object")
    elif not store.has(oid) and not any(each.has(oid) for each in extra):
        yield Problem("ref", name, f"it leads to {oid.hex()}, which is missing")


def _check_object(store: ObjectStore, oid: bytes) -> set[tuple[bytes, str]]:
    """What an object names, as (object name, expected kind). CorruptObject unless its content is its name's."""
    try:
        kind, payload = store.read(oid)
    except ObjectTooLarge as large:
        _check_large(store, oid, large.size)
        return set()
    if hash_object(kind, payload) != oid:
        raise CorruptObject("its content has another name", oid=oid)  # also when the key is no name at all
    children = _children(kind, payload)
    if kind == "commit" and _POINT in payload:
        return {child for child in children if child[1] != "commit"}
    return children


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


def _check_child(store: ObjectStore, parent: bytes, child: bytes, kind: str) -> str | None:
    """What is wrong with a name in an object: empty if nothing, None if it is not in the store."""
    try:
        found, _ = store.header(child)
    except ObjectMissing:
        return None
    except CorruptObject:
        return ""  # it is reported under its own name
    return "" if found == kind else f"it names {child.hex()} as a {kind}, and that is a {found}"


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
