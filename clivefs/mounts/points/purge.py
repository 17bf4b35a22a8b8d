"""Removing a path from all that was recorded of a workspace: a secret that should never have been there.

Every point that has the path is written anew without it, and every point after the first of these, as it names the one
before; the index, session refs, forks and undo follow, all in one transaction. Then nothing leads to the path's
content, and a collection removes it: from the database, whose file is written anew, from the packs, which are made
anew, from what was unpacked, and from the view that `clivefs git` keeps. A copy of a repository that has it goes as
well, if no `Clive.toml` names it and nothing needs it: it is made again where it is wanted. Killed before the
transaction no point has changed; killed after it, giving the command again does the rest: until then there is a record
`purging` of the workspace. It does not have the path, whose name can be what nobody is to find any more.

Messages of points and command lines that mention the path or its content are emptied, and audits forget it
(`mentions`). Nothing may be mounted meanwhile. Times and numbers of points stay; their ids change.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.forks.records import FORK_REFS
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.users import NAMESPACE, since_key
from clivefs.mounts.patch.apply import CACHE
from clivefs.mounts.points.compare import State, file_at
from clivefs.mounts.points.history import AtPath, PathFinder
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.mentions import Mentions
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point, make_point
from clivefs.mounts.points.repositories import collect_repositories
from clivefs.mounts.points.roots import StoreRoots
from clivefs.mounts.points.sealing import make_anew
from clivefs.mounts.recording.recordedtree import RecordedTree
from clivefs.objects import gc
from clivefs.objects.encode import MODE_GITLINK
from clivefs.objects.errors import CorruptObject, ObjectMissing
from clivefs.objects.interface import ANY, Changes, MetaChange, RefChange
from clivefs.objects.repository import Repository
from clivefs.objects.sealing import sweep_unfinished
from clivefs.objects.store import Store
from clivefs.objects.values import LARGE_BYTES

_BATCH_POINTS = 200
_PURGING = "purging"
_CACHES = ("unpacked", "scratch")
"""Directories of the store with copies of content."""
_FORK_POINTS = ("start", "base", "base_before", "merged_from", "merged_to")
_WHY_IT_STAYS = {
    "named": "a mount entry shows it",
    "borrowed": "a fork, or a git working tree of the store, borrows from it",
    "past": "points show what only it has",
    "damaged": "it is damaged",
}
_WHY_UNTOLD = "why it was kept named something that was purged"
_DUE = b"0"
"""A copy has been of no use since 1970."""

Say = Callable[[str], None]


class Purged(NamedTuple):
    """What a purge did, or would do."""

    points: int
    """Points that had the path."""
    rewritten: int
    """Points with another id now."""
    versions: int
    """Different contents that were at the path."""
    left: tuple[str, ...]
    """Where such content is still, in words."""
    finished: bool = False
    """Whether it did the rest of one that was ended before."""
    mentions: int = 0
    """Messages, command lines and audits that mentioned it."""


def purge(
    store: Store,
    workspace: str,
    path: bytes,
    reader: JoinedObjects,
    repositories: Sequence[Repository] = (),
    *,
    own: Repository | None = None,
    dry_run: bool = False,
    progress: Say = lambda text: None,
) -> Purged:
    """Remove *path* (a file, or a directory with all in it) from every point of *workspace*. *repositories*: those of
    the store; *own*: the workspace's own, which is only looked into. ClivefsError, OSError."""
    points = Points(store, workspace)
    with gc.one_at_a_time(store):
        blobs: set[bytes] = set()
        messages: list[str] = []
        had = _points_with(points, reader, path, blobs, messages, progress)
        mentions = Mentions(path, _texts(reader, blobs))
        audits = _audits(store, workspace, mentions)
        count = len(audits) + sum(map(mentions.in_text, [*messages, *_fork_texts(store, workspace)]))
        if dry_run:
            return Purged(len(had), 0, len(blobs), (), mentions=count)
        unfinished = store.meta_get(_PURGING, workspace.encode()) is not None
        if not had and not unfinished and not count:
            return Purged(0, 0, 0, ())
        for file, audit in audits.items():
            write_whole(file, json.dumps(audit).encode())
        rewritten = 0
        if had or count:
            ids = _rewrite(store, points, reader, path, had, mentions, progress)
            rewritten = _publish(store, workspace, points, ids, mentions)
        FAULTS.hit("purge.published")
        _clean(store, workspace, progress)
        left = [*_left(store, blobs), *_drop_copies(store, blobs, repositories, progress)]
        if own is not None and any(own.has(blob) for blob in blobs):
            left.append(f"your own repository has it: {own.path}")
        with store.batch() as batch:
            batch.meta_put(_PURGING, workspace.encode(), None)
        return Purged(len(had), rewritten, len(blobs), tuple(left), unfinished, count)


def _points_with(
    points: Points, reader: JoinedObjects, path: bytes, blobs: set[bytes], messages: list[str], progress: Say
) -> set[bytes]:
    """The points that have *path*; the content that is there is added to *blobs*, and all points' messages to
    *messages*."""
    finder = PathFinder(reader)
    seen: set[bytes] = set()
    had: set[bytes] = set()
    for number, each in enumerate(points.between(0, MS_MAX)):
        point = points.load(each.oid)
        if point.message:
            messages.append(point.message)
        found = finder.find(point.tree, path)
        if found is not None:
            _contents(reader, found, seen, blobs)
        if found is not None or file_at(reader, State(point.tree, point.meta), path) is not None:
            had.add(each.oid)  # the latter: an empty directory, say, which no git tree has
        if number % 1000 == 0:
            progress(f"{number} points looked at")
    return had


def _contents(reader: JoinedObjects, found: AtPath, seen: set[bytes], blobs: set[bytes]) -> None:
    waiting = [(found.mode, found.oid)]
    while waiting:
        mode, oid = waiting.pop()
        if oid in seen or mode == MODE_GITLINK:
            continue
        seen.add(oid)
        if AtPath(mode, oid).is_tree:
            waiting += [(entry.mode, entry.oid) for entry in reader.read_tree(oid)]
        else:
            blobs.add(oid)


def _texts(reader: JoinedObjects, blobs: Iterable[bytes]) -> Iterator[bytes]:
    """Those of the contents that can be had here, and are small."""
    for blob in blobs:
        with suppress(ObjectMissing, CorruptObject):
            if reader.header(blob)[1] <= LARGE_BYTES:
                yield reader.read(blob)[1]


def _audits(store: Store, workspace: str, mentions: Mentions) -> dict[str, dict[str, Any]]:
    """The audits that mention it, by file, as they are without that."""
    directory = os.path.join(store.path, "audits", workspace)
    found = {}
    for name in sorted(os.listdir(directory)) if os.path.isdir(directory) else ():
        file = os.path.join(directory, name)
        with open(file, "rb") as opened:
            audit = json.loads(opened.read())
        without = mentions.without(audit)
        if without != audit:
            found[file] = without
    return found


def _fork_texts(store: Store, workspace: str) -> list[str]:
    own = workspace.encode()
    forks = [msgspec.json.decode(value) for _, value in store.meta_range("forks", own, own + b"\x7f")]
    return [fork.get(name, "") for fork in forks for name in ("command", "kept")]


def _rewrite(
    store: Store,
    points: Points,
    reader: JoinedObjects,
    path: bytes,
    had: set[bytes],
    mentions: Mentions,
    progress: Say,
) -> dict[bytes, bytes]:
    """Write the points anew; old id -> new id."""
    ids: dict[bytes, bytes] = {}
    done: dict[tuple[bytes, bytes | None], tuple[bytes, bytes | None]] = {}
    every = [each.oid for each in points.between(0, MS_MAX)]
    for start in range(0, len(every), _BATCH_POINTS):
        with store.batch() as batch:
            for oid in every[start : start + _BATCH_POINTS]:
                old = points.load(oid)
                parent = ids.get(old.parent, old.parent) if old.parent is not None else None
                state = old.tree, old.meta
                if oid in had:
                    if state not in done:
                        tree = RecordedTree(reader, *state)
                        tree.remove(path)
                        done[state] = tree.write(batch)
                    state = done[state]
                new = _without(old, path, parent, state, mentions)
                if new.oid != old.oid:
                    ids[oid] = batch.commit(new.commit())
        progress(f"{min(start + _BATCH_POINTS, len(every))} of {len(every)} points written anew")
        FAULTS.hit("purge.written")
    return ids


def _without(
    old: Point, path: bytes, parent: bytes | None, state: tuple[bytes, bytes | None], mentions: Mentions
) -> Point:
    """The point, of that parent and state, that does not name *path*."""
    paths = tuple(each for each in old.paths if each != path and not each.startswith(path + b"/"))
    names_it = len(paths) != len(old.paths) or mentions.in_text(old.message)
    if not names_it and parent == old.parent and state == (old.tree, old.meta):
        return old
    return make_point(
        ms=old.ms,
        seq=old.seq,
        session=old.session,
        machine=old.machine,
        origin=old.origin,
        tree=state[0],
        meta=state[1],
        parent=parent,
        paths=paths,
        more_paths=old.more_paths,
        message="" if names_it else old.message,
    )


def _publish(store: Store, workspace: str, points: Points, ids: dict[bytes, bytes], mentions: Mentions) -> int:
    """Let everything name the new points, in one transaction; how many points are others."""

    def new(text: str) -> str:
        oid = bytes.fromhex(text)
        return ids.get(oid, oid).hex()

    with gc.alone(store):
        changes = Changes()
        count = points.rewrite(changes, ids)
        own = workspace.encode()
        for key, value in store.meta_range("forks", own, own + b"\x7f"):
            fork = msgspec.json.decode(value)
            fork.update({name: new(fork[name]) for name in _FORK_POINTS if fork.get(name)})
            if mentions.in_text(fork.get("command", "")):
                fork["command"] = ""
            if mentions.in_text(fork.get("kept", "")):
                fork["kept"] = _WHY_UNTOLD
            changes.meta.append(MetaChange("forks", key, msgspec.json.encode(fork), value))
        for name, oid in store.refs(f"{FORK_REFS}{workspace}/").items():
            changes.refs.append(RefChange(name, ids.get(oid, oid), oid))
        undo = store.meta_get("undo", own)
        if undo is not None:
            facts = json.loads(undo)
            facts.update(after=new(facts["after"]), at=new(facts["at"]), redo=[new(each) for each in facts["redo"]])
            changes.meta.append(MetaChange("undo", own, json.dumps(facts).encode(), ANY))
        changes.meta.append(MetaChange(_PURGING, own, b"", ANY))
        store.apply(changes).result()
    return count


def _clean(store: Store, workspace: str, progress: Say) -> None:
    """Remove what nothing leads to any more from every place in the store."""
    shutil.rmtree(os.path.join(store.path, "gitviews", f"{workspace}.git"), ignore_errors=True)
    with gc.alone(store):  # nothing is mounted: what they tell of is made again
        changes = Changes()
        changes.meta += [MetaChange(CACHE, key, None, ANY) for key, _ in store.meta_items(CACHE)]
        store.apply(changes).result()
    roots = StoreRoots(store, store.path)
    sweep_unfinished(store)
    make_anew(store, progress)
    reach = gc.look(store, roots, progress)
    gc.sweep(store, roots, reach, progress=progress)
    FAULTS.hit("purge.swept")
    for cache in _CACHES:
        shutil.rmtree(os.path.join(store.path, cache), ignore_errors=True)
    if store.compact(always=True) is None:
        raise ClivefsError(
            "it is out of the history, but not yet out of the database's file: another process has the store open",
            place=store.path,
            remedy="end it, and give the command again",
        )


def _left(store: Store, blobs: set[bytes]) -> Iterable[str]:
    """Where content that was at the path still is."""
    kept = sum(store.has(blob) for blob in blobs)
    if kept:
        yield f"{kept} of the contents are also recorded under other paths or workspaces, or held by a fork or a rebase"


def _drop_copies(store: Store, blobs: set[bytes], repositories: Iterable[Repository], progress: Say) -> Iterable[str]:
    """Remove those of *repositories* that have such content and are of no use; why others stay, in words. Where it is
    not known any more what the content was, all that are of no use go."""
    paths = {
        f"repositories/{os.path.basename(each.path)}": each.path
        for each in repositories
        if not blobs or any(each.has(blob) for blob in blobs)
    }
    if not paths:
        return
    with store.batch() as batch:
        for path in paths:
            batch.meta_put(NAMESPACE, since_key(path), _DUE)
    now_ms = time.time_ns() // 1_000_000
    found = collect_repositories(store, lambda: StoreRoots(store, store.path), now_ms=now_ms, progress=progress)
    for judged in found.repositories:
        if blobs and judged.path in paths and judged.state != "removed":
            of = f" (a copy of {', '.join(judged.locations)})" if judged.locations else ""
            yield f"{paths[judged.path]}{of} has it, and stays: {_WHY_IT_STAYS.get(judged.state, 'somebody uses it')}"


def wait_until_alone(store: Store, seconds: float) -> bool:
    """Whether no other process has the store open, within that time."""
    deadline = time.monotonic() + seconds
    while not store.is_alone():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
