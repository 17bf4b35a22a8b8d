"""What a fork shows, as a recorded state: its point, and over that what was written in it.

Only what the upper has is looked at, with the recorder's own means: so a fork of 100,000 files in which one was
changed is recorded as quickly as that one. Ignored files stay out, as they do of points.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.overlay.marks import MarkKind
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.overlay.upper import PathFds
from clivefs.mounts.points.compare import State
from clivefs.mounts.recording.contents import Contents
from clivefs.mounts.recording.ignore import Exclude
from clivefs.mounts.recording.layers import Layers, Level, is_never
from clivefs.mounts.recording.parts import Part, TreeLower, UpperLayer, copy_marks, join
from clivefs.mounts.recording.recordedtree import RecordedTree, Subtree
from clivefs.mounts.recording.refresh import Refresh
from clivefs.mounts.recording.scan import Outcome
from clivefs.mounts.recording.statcache import StatCache
from clivefs.mounts.recording.tracked import TrackedPaths
from clivefs.mounts.tree import Owner
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.interface import ObjectStore


class ForkState(NamedTuple):
    """What a fork shows."""

    state: State
    left_out: Mapping[bytes, str]
    """What cannot be recorded, and why."""
    unsettled: tuple[bytes, ...]
    """Files that were being written to: of these it has what they were before."""
    ignored: tuple[bytes, ...] = ()
    """What was written and is no part of it, as it is ignored: files, and directories for all that is in them."""


@dataclass(slots=True, eq=False)
class ForkPart:
    """A fork's layers at one moment, with a descriptor of its own: made on the loop, for a thread. `close` it."""

    part: Part
    fd: int

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def fork_part(tree: OverlayTree, reader: JoinedObjects, start: State, mtime_ns: int, owner: Owner) -> ForkPart:
    """The layers of the fork *tree* on the point *start*, as they are now. For the loop's thread."""
    upper = tree.upper
    assert upper is not None
    fd = os.dup(upper.tree_fd)
    log = upper.log
    layer = UpperLayer(
        fd, copy_marks(upper.root_mark, None), generation=log.sequence, generation_now=lambda: log.sequence
    )
    return ForkPart(Part(b"", TreeLower(reader, start.tree, mtime_ns, owner), layer), fd)


class ForkRecorder:
    """Records one fork, again and again. One call at a time; for threads."""

    def __init__(
        self,
        store: ObjectStore,
        reader: Callable[[], JoinedObjects],
        start: State,
        *,
        entries: Iterable[str] = (),
        exclude: Iterable[str] = (),
        ignored: bool = False,
        beside: Mapping[str, str] = MappingProxyType({}),
        clock: Clock | None = None,
    ) -> None:
        """*entries*, *exclude*, *ignored*: the workspace's mount entries and settings when the fork was made.
        *beside*: see `RulesOfThen.info_exclude`."""
        self._store = store
        self._reader = reader
        self._start = start
        self._exclude = Exclude("\n".join(exclude).encode("utf-8", "surrogateescape"))
        self._obey = not ignored
        self._beside = {os.fsencode(path): text.encode("latin-1") for path, text in beside.items()}
        self._anew = frozenset(os.fsencode(path) for path in entries)
        self._clock = clock or SystemClock()
        self._cache = StatCache()

    def record(self, part: Part) -> ForkState:
        """The fork's state; its objects are in the store, durable. OSError, ObjectMissing."""
        outcome = Outcome()
        recorded = self._point()
        layers = Layers(part, self._exclude, TrackedPaths(), _nothing_hidden, obey=self._obey, beside=self._beside)
        layers.anew = self._anew
        try:
            with self._store.batch() as batch:
                contents = Contents(self._store, batch, self._clock, None)
                refresh = Refresh(
                    layers, contents, self._cache, recorded, batch, outcome, None, {}, frozenset(), self._clock
                )
                edited = _Edited(layers, recorded, self._point())
                refresh.run(edited.paths(), all_known=True)
                tree, meta = recorded.write(batch)
        finally:
            layers.close()
        unsettled = tuple(sorted({dirty.path for dirty in outcome.again}))
        return ForkState(State(tree, meta), outcome.left_out, unsettled, tuple(sorted(edited.ignored)))

    def _point(self) -> RecordedTree:
        return RecordedTree(self._reader(), self._start.tree, self._start.meta)


def _nothing_hidden(directory: tuple[int, int], name: bytes) -> bool:
    return False


class _Edited:
    """The paths of a fork that may be other than in its point. Directories that stand on something else, or are new,
    are put into *recorded* on the way, with what is recorded of what they stand on in *point*. `ignored` gets what is
    not recorded."""

    def __init__(self, layers: Layers, recorded: RecordedTree, point: RecordedTree) -> None:
        self._layers = layers
        self._recorded = recorded
        self._point = point
        self._found: dict[bytes, bool] = {}
        self._waiting: list[Level] = []
        self.ignored: list[bytes] = []

    def paths(self) -> dict[bytes, bool]:
        """All of them, parents first, as `Refresh.run` wants them."""
        upper = self._layers.part.upper
        assert upper is not None
        fds = PathFds(upper.fd)
        self._waiting = [self._layers.root()]
        try:
            while self._waiting:
                level = self._waiting.pop()
                names: set[bytes] = set((level.mark.children or ()) if level.mark is not None else ())
                if level.in_upper:
                    with suppress(OSError):  # may be searched only, or has gone
                        names |= {os.fsencode(name) for name in os.listdir(fds.open(level.path))}
                for name in sorted(names):
                    self._look(level, name)
        finally:
            fds.close()
        return self._found

    def _look(self, level: Level, name: bytes) -> None:
        path = join(level.path, name)
        found = self._layers.look(level, name)
        self._found[path] = False
        if found is None:
            return
        is_recorded = self._layers.records(level, name, found)
        if is_recorded is False and not is_never(name):
            self.ignored.append(path)
        if is_recorded is False or found.kind != stat.S_IFDIR:
            return
        inner = self._layers.enter(level, name, found, ignored=is_recorded is None)
        self._waiting.append(inner)
        moved = found.mark is not None and found.mark.kind is not MarkKind.INHERIT
        if moved or not self._recorded.is_directory(path):
            stands_on: Subtree | None = None
            if found.mark is not None and found.mark.kind is MarkKind.REDIRECT:
                stands_on = self._point.peek(found.mark.target)
            if stands_on is None or stands_on.facts is None:
                stands_on = Subtree(EMPTY_TREE, None, self._layers.facts(inner))
            self._recorded.put_tree(path, stands_on)


def upper_size(tree_fd: int) -> int:
    """What the files of an upper take on disk, in bytes. For threads."""
    fds = PathFds(tree_fd)
    total = 0
    waiting = [b""]
    seen: set[int] = set()
    try:
        while waiting:
            path = waiting.pop()
            with suppress(OSError), os.scandir(fds.open(path)) as listing:
                for entry in listing:
                    with suppress(FileNotFoundError):
                        st = entry.stat(follow_symlinks=False)
                        if stat.S_ISDIR(st.st_mode):
                            waiting.append(join(path, os.fsencode(entry.name)))
                        elif st.st_ino not in seen:
                            if st.st_nlink > 1:
                                seen.add(st.st_ino)
                            total += st.st_blocks * 512
    finally:
        fds.close()
    return total
