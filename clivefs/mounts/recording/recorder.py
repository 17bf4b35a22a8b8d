"""The recorder of one workspace: dirty paths in, a tree and its metadata tree out.

    with store.batch() as batch:
        recorded = recorder.record(parts, dirty, batch, base=(head.tree, head.meta))
        if recorded.changed:
            points.publish(batch, point of recorded)

The caller publishes the point in the same batch as the objects, so that it is durable together with all that it
names, or is not at all. *base* is the newest point: when a batch failed (a full disk) the next call begins again from
it, and its dirty paths must be given again.

Invariants
----------
- A dirty path says that something may have changed, never what: the truth is a fresh look at the files.
- What cannot be read whole at this moment keeps the version that it had, and is given back in `again`.
- What the lower shows where an edit was just taken away, while the marks were changing, is not believed: the
  copy of the marks may be older than the files. It is given back too.
- Parts are done from the innermost outwards, so that a part that is scanned as a whole finds the entries that lie
  in it finished.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress
from functools import partial
from typing import NamedTuple, TypeVar

from clivefs.base.ports import FAULTS, Clock, SystemClock
from clivefs.mounts.git.space import Objects
from clivefs.mounts.recording.contents import Contents, Seen
from clivefs.mounts.recording.gitfiles import open_git_file
from clivefs.mounts.recording.ignore import Exclude
from clivefs.mounts.recording.layers import Found, Hidden, Layers, Level
from clivefs.mounts.recording.pace import Pace
from clivefs.mounts.recording.parts import Dirty, HostLower, Part, TreeLower
from clivefs.mounts.recording.recordedtree import RecordedTree
from clivefs.mounts.recording.refresh import Refresh, paths_of
from clivefs.mounts.recording.scan import Outcome, Watch, read_file
from clivefs.mounts.recording.statcache import Row, StatCache
from clivefs.mounts.recording.tracked import TrackedPaths
from clivefs.objects.encode import EMPTY_TREE, TreeEntry
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.interface import Batch, ObjectStore

T = TypeVar("T")

Kept = Callable[[], Iterable[Objects]]

DEFER_BYTES = 16 << 20
"""Larger files are read aside while a workspace is recorded, so that a save does not wait for them."""


class Recorded(NamedTuple):
    """What a recording came to."""

    tree: bytes
    meta: bytes | None
    changed: bool
    """Whether it is worth a point: some path is another. Where only times of directories are, `tree` and `meta` are
    those of *base*, and the times wait for a point."""
    paths: tuple[bytes, ...]
    """The changed paths in the workspace, sorted; no more than `scan.PATHS_MAX`."""
    more_paths: int
    again: tuple[Dirty, ...]
    """Files that were being written to: they are dirty still."""
    deferred: tuple[Dirty, ...]
    """Large files: `Recorder.prepare` each in a thread, then they are dirty again."""
    left_out: Mapping[bytes, str]
    """What could not be recorded, and why."""
    sources: frozenset[bytes]
    """Prefixes of the parts whose git tree is named by what was recorded: its objects must be kept."""


class Recorder:
    """Records one workspace into *store*. One recording at a time; `prepare` may run beside it."""

    def __init__(
        self,
        store: ObjectStore,
        cache: StatCache,
        *,
        exclude: Iterable[str] = (),
        ignored: bool = False,
        user_ignore: Callable[[], bytes] = bytes,
        hidden: Hidden = lambda directory, name: False,
        watch: Watch | None = None,
        kept: Kept = tuple,
        clock: Clock | None = None,
        pace: Pace | None = None,
    ) -> None:
        """*exclude* and *ignored* are those of `[sessions]`. *user_ignore*: what git ignores everywhere. *watch* is
        told of each host directory before it is looked into. *pace*: of a recording that takes long. *kept*: the
        repositories in which the objects of earlier points are, asked only for what is nowhere else."""
        self._store = store
        self._cache = cache
        self._exclude = Exclude("\n".join(exclude).encode("utf-8", "surrogateescape"))
        self._obey = not ignored
        self._user_ignore = user_ignore
        self._hidden = hidden
        self._watch = watch
        self._kept = kept
        self._clock = clock or SystemClock()
        self._pace = pace or Pace(lambda: 0.0)
        self._recorded: RecordedTree | None = None
        self._stood_on: dict[bytes, object] = {}
        """What each part stood on at the last recording, by prefix."""
        self._tracked: dict[bytes, TrackedPaths] = {}
        self._links: dict[int, set[bytes]] = {}
        self._recording = threading.Lock()

    def record(
        self,
        parts: Sequence[Part],
        dirty: Iterable[Dirty] | None,
        batch: Batch,
        *,
        base: tuple[bytes, bytes | None] = (EMPTY_TREE, None),
        defer_bytes: int | None = DEFER_BYTES,
    ) -> Recorded:
        """Look at *dirty* (at everything when None) and put what is new into *batch*.

        A part that is new, or stands on another directory or tree than before, is scanned as a whole anyway; so is
        everything at the first recording of a process and after one that failed. With *defer_bytes* None files of any
        size are read at once. OSError when the store cannot be written (ENOSPC): nothing of this recording counts.
        """
        with self._recording:
            recorded, self._recorded = self._recorded, None  # until this has come to its end
            if recorded is None or (recorded.tree, recorded.meta) != base:
                recorded = RecordedTree(self._store, *base)
                self._stood_on = {}
            recorded.objects = _readable(self._store, parts, self._kept)
            self._pace.begin()
            contents = Contents(self._store, batch, self._clock, defer_bytes, self._pace.give_way, self._cache.shown)
            outcome, everything = self._refresh(parts, dirty, recorded, contents, batch)
            FAULTS.hit("record.hashed")
            changed = bool(outcome.paths) or recorded.meta is None  # the first of all, though the workspace be empty
            if changed:
                recorded.write(batch)
            else:
                recorded.keep_written()
            FAULTS.hit("record.written")
            if everything:
                self._cache.retain(outcome.cache_keys)
            self._recorded = recorded
            self._stood_on = {part.prefix: _stands_on(part) for part in parts}
        return Recorded(
            recorded.tree,
            recorded.meta,
            changed,
            tuple(sorted(outcome.paths)),
            outcome.more_paths,
            tuple(outcome.again),
            tuple(outcome.deferred),
            outcome.left_out,
            frozenset(outcome.sources),
        )

    def _refresh(
        self,
        parts: Sequence[Part],
        dirty: Iterable[Dirty] | None,
        recorded: RecordedTree,
        contents: Contents,
        batch: Batch,
    ) -> tuple[Outcome, bool]:
        """What was come across, and whether every part was looked at as a whole."""
        outcome = Outcome(self._links)
        prefixes = {part.prefix for part in parts}
        paths = paths_of(dirty or (), prefixes)
        innermost_first = sorted(parts, key=_depth, reverse=True)
        ways = _ways_to(prefixes)
        self._forget_gone(innermost_first, recorded, outcome, paths)
        whole = 0
        for part in innermost_first:
            own = paths[part.prefix]
            if dirty is None or self._stood_on.get(part.prefix) != _stands_on(part):
                own = {b"": True}
                whole += 1
            tracked = self._tracked.setdefault(part.prefix, TrackedPaths())
            tracked.look_at(partial(open_git_file, part, part.index, b"index"))
            for path, is_directory in tracked.come().items():
                own[path] = own.get(path, False) or is_directory
            if not own:
                continue
            beside = {b"": self._user_ignore()}
            layers = Layers(part, self._exclude, tracked, self._hidden, obey=self._obey, beside=beside)
            try:
                Refresh(
                    layers,
                    contents,
                    self._cache,
                    recorded,
                    batch,
                    outcome,
                    self._watch,
                    ways,
                    prefixes - {b""},
                    self._clock,
                ).run(own)
            finally:
                layers.close()
            if b"" not in own and self._is_elsewhere(outcome):
                outcome.again[Dirty(part.prefix, b"", True)] = None
            outcome.inodes.clear()
        return outcome, whole == len(parts)

    def _is_elsewhere(self, outcome: Outcome) -> bool:
        """Whether a file that got another name by a hard link is recorded under one that was not known to be of the
        group: nobody told that this is another link now, as nothing happened in its directory."""
        known = {
            inode: len(outcome.links.get(group, ())) - uncached for group, (inode, uncached) in outcome.inodes.items()
        }
        return bool(known) and self._cache.has_more_rows(known)

    def _forget_gone(
        self,
        parts: Sequence[Part],
        recorded: RecordedTree,
        outcome: Outcome,
        paths: dict[bytes, dict[bytes, bool]],
    ) -> None:
        """Remove what was recorded of parts that are no more, and have what they covered looked at."""
        for prefix in sorted(self._stood_on.keys() - {part.prefix for part in parts} - {b""}):
            if recorded.remove(prefix):
                outcome.changed(prefix)
            path = prefix
            while path:
                owner = next(part for part in parts if not part.prefix or (path + b"/").startswith(part.prefix + b"/"))
                paths[owner.prefix].setdefault(path[len(owner.prefix) :].lstrip(b"/"), False)
                path = path.rpartition(b"/")[0]

    def prepare(self, part: Part, path: bytes, seen: Seen = lambda count, size: None) -> None:
        """Read the large file *path* of *part* into the store, durably, so that a recording finds it known. For threads
        of their own. What cannot be read is left for the recording to tell. *seen* is told how far it is."""
        layers = Layers(part, self._exclude, TrackedPaths(), self._hidden, obey=False)
        try:
            level = _descend(layers, path)
            name = path.rpartition(b"/")[2]
            found = layers.look(level, name) if level is not None else None
            if level is None or found is None or found.st is None or found.kind != stat.S_IFREG:
                return
            with self._store.batch() as batch:
                contents = Contents(self._store, batch, self._clock, None, seen=seen)
                key, row = _known(layers, self._cache, level, name, found)
                read = read_file(layers, contents, level, name, found, row, Outcome())
            if read is not None:
                self._cache.note(key, name, read[2])
        except (FileNotFoundError, NotADirectoryError):
            return
        finally:
            layers.close()


def _descend(layers: Layers, path: bytes) -> Level | None:
    """The directory that *path* is in; None where there is none."""
    level = layers.root()
    for name in path.split(b"/")[:-1]:
        found = layers.look(level, name)
        if found is None or found.kind != stat.S_IFDIR:
            return None
        level = layers.enter(level, name, found)
    return level


def _known(layers: Layers, cache: StatCache, level: Level, name: bytes, found: Found) -> tuple[int, Row | None]:
    """The stat cache's key for the directory of a host file, and the file's row."""
    key = layers.key_of(level, upper=found.in_upper)
    return key, cache.rows(key).get(name)


def _readable(store: ObjectStore, parts: Sequence[Part], kept: Kept) -> Objects:
    """Where the trees of a recording can be read: in the store, where an untouched lower has them, and, those of an
    entry that stood on another source at the last point, in what is kept of that."""
    readers = {id(part.lower.objects): part.lower.objects for part in parts if isinstance(part.lower, TreeLower)}
    return _Joined((store, *readers.values()), kept)


class _Joined:
    """The objects of *known*, asked in this order, then those of what *kept* gives, which costs to open."""

    def __init__(self, known: tuple[Objects, ...], kept: Kept) -> None:
        self._known = known
        self._open_kept = kept
        self._kept: tuple[Objects, ...] | None = None

    def _first(self, oid: bytes, question: Callable[[Objects], T]) -> T:
        for objects in self._known:
            with suppress(ObjectMissing):
                return question(objects)
        if self._kept is None:
            self._kept = tuple(self._open_kept())
        for objects in self._kept:
            with suppress(ObjectMissing):
                return question(objects)
        raise ObjectMissing(oid)

    def read(self, oid: bytes) -> tuple[str, bytes]:
        return self._first(oid, lambda objects: objects.read(oid))

    def header(self, oid: bytes) -> tuple[str, int]:
        return self._first(oid, lambda objects: objects.header(oid))

    def read_tree(self, oid: bytes) -> list[TreeEntry]:
        return self._first(oid, lambda objects: objects.read_tree(oid))


def _stands_on(part: Part) -> object:
    """What a part must be scanned anew for when it is another."""
    lower: object = None
    if isinstance(part.lower, HostLower):
        st = os.fstat(part.lower.fd)
        lower = (st.st_dev, st.st_ino)
    elif part.lower is not None:
        lower = (part.lower.tree, part.lower.mtime_ns)
    upper = os.fstat(part.upper.fd) if part.upper is not None else None
    return lower, (upper.st_dev, upper.st_ino) if upper is not None else None


def _depth(part: Part) -> int:
    return part.prefix.count(b"/") + 1 if part.prefix else 0


def _ways_to(prefixes: Set[bytes]) -> dict[bytes, set[bytes]]:
    """The names in each directory of the workspace that are a mount entry or lead to one."""
    ways: dict[bytes, set[bytes]] = {}
    for prefix in prefixes:
        path = prefix
        while path:
            path, _, name = path.rpartition(b"/")
            ways.setdefault(path, set()).add(name)
    return ways
