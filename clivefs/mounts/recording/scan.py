"""A whole directory, looked at afresh: files that the stat cache does not know are read, trees are written.

One directory is finished before the next of its level is begun, so that memory is that of the way down and not of
the tree. A directory that turns out as it was recorded is not written again.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Set
from itertools import islice

from clivefs.mounts.git.space import Objects
from clivefs.mounts.git.treeeditor import differences
from clivefs.mounts.overlay.marks import MarkKind
from clivefs.mounts.points.metadata import ROOT, Facts
from clivefs.mounts.recording.contents import Contents, Deferred, Unreadable, Unsettled
from clivefs.mounts.recording.layers import Found, Layers, Level, is_never, unstorable
from clivefs.mounts.recording.parts import Dirty, join
from clivefs.mounts.recording.recordedtree import Directory, Subtree, Version, load, write_directory
from clivefs.mounts.recording.statcache import Row, StatCache
from clivefs.objects.encode import EMPTY_TREE, MODE_TREE, TreeEntry
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.interface import Batch

PATHS_MAX = 1000
"""Changed paths that a recording names; more are counted."""
_LEFT_OUT_MAX = 1000
_COUNTED_MAX = 10_000
_LINKS_MAX = 1_000_000
_NOTHING: frozenset[bytes] = frozenset()

Watch = Callable[[bytes, bytes, int], None]
"""(prefix of the part, path where it is shown, descriptor): a host directory whose names are about to be looked at."""


class Outcome:
    """What a recording came across."""

    def __init__(self, links: dict[int, set[bytes]] | None = None) -> None:
        self.links = links if links is not None else {}
        """The paths of each hard-link group that were seen, in this recording or before: hints, no more."""
        self.inodes: dict[int, tuple[int, int]] = {}
        """Of each hard-link group that got names: the inode, and how many of them are not in the stat cache."""
        self.paths: dict[bytes, None] = {}
        self.more_paths = 0
        self.again: dict[Dirty, None] = {}
        """To be looked at at the next quiet moment."""
        self.deferred: dict[Dirty, None] = {}
        """Large files to be read aside."""
        self.left_out: dict[bytes, str] = {}
        """What cannot be recorded, and why."""
        self.cache_keys: set[int] = set()
        self.sources: set[bytes] = set()
        """Prefixes of the parts whose git tree was named."""

    def changed(self, path: bytes) -> None:
        if len(self.paths) < PATHS_MAX:
            self.paths[path] = None
        elif path not in self.paths:
            self.more_paths += 1

    def joined(self, group: int, path: bytes, inode: int, row: Row | None) -> None:
        """*path*, which has *row*, is a name of a hard-link group of that inode, and was not before."""
        self.linked(group, path)
        self.inodes[group] = (inode, self.inodes.get(group, (0, 0))[1] + (row is None))

    def linked(self, group: int, path: bytes) -> None:
        """It is one."""
        if group in self.links:
            self.links[group].add(path)
        elif len(self.links) < _LINKS_MAX:
            self.links[group] = {path}

    def leave_out(self, path: bytes, why: str) -> None:
        if len(self.left_out) < _LEFT_OUT_MAX:
            self.left_out[path] = why


class _Frame:
    """A directory that is being scanned."""

    __slots__ = ("below", "entries", "facts", "level", "lower_rows", "name", "old", "own", "path", "subdirectories",
                 "subtree", "upper_rows")  # fmt: skip

    def __init__(self, name: bytes, path: bytes, level: Level, own: Facts, subtree: Subtree | None) -> None:
        self.name = name
        self.path = path
        """In the workspace."""
        self.level = level
        self.own = own
        self.subtree = subtree
        """As it was recorded before."""
        self.old: Directory | None = None
        self.entries: dict[bytes, TreeEntry] = {}
        self.facts: dict[bytes, Facts] = {}
        self.below: dict[bytes, bytes] = {}
        self.upper_rows: dict[bytes, Row] = {}
        self.lower_rows: dict[bytes, Row] = {}
        self.subdirectories: list[tuple[bytes, Found | None, bool]] = []

    def add_file(self, name: bytes, version: Version | None, facts: Facts) -> None:
        self.facts[name] = facts
        if version is not None:
            self.entries[name] = TreeEntry(version.mode, name, version.oid)

    def add_directory(self, name: bytes, subtree: Subtree) -> None:
        assert subtree.facts is not None
        self.facts[name] = subtree.facts
        if subtree.tree != EMPTY_TREE:
            self.entries[name] = TreeEntry(MODE_TREE, name, subtree.tree)
        if subtree.meta is not None:
            self.below[name] = subtree.meta


class Scanner:
    """Scans directories of one part into *batch*."""

    def __init__(
        self,
        layers: Layers,
        contents: Contents,
        cache: StatCache,
        objects: Objects,
        batch: Batch,
        outcome: Outcome,
        watch: Watch | None,
        mounts: Mapping[bytes, Subtree],
        ways: Mapping[bytes, Set[bytes]],
        bridge: Facts,
    ) -> None:
        """*objects*: where what was recorded before can be read. *mounts*: the mount entries by their path in the
        workspace, as they are recorded; *ways*: the names in each directory above one that lead to it. *bridge*: the
        facts of such a directory where the part has none."""
        self._layers = layers
        self._contents = contents
        self._cache = cache
        self._objects = objects
        self._batch = batch
        self._outcome = outcome
        self._watch = watch
        self._mounts = mounts
        self._ways = ways
        self._bridge = bridge
        self._prefix = layers.part.prefix

    # Directories

    def scan(self, level: Level, own: Facts, old: Subtree | None) -> Subtree:
        """The directory of *level*; *old* is what was recorded of it. OSError where it cannot be read."""
        stack = [self._begin(b"", level, own, old, list(self._layers.names(self._looked_into(level))))]
        while True:
            frame = stack[-1]
            if frame.subdirectories:
                name, found, ignored = frame.subdirectories.pop()
                inner = self._enter(frame, name, found, ignored)
                if inner is not None:
                    stack.append(inner)
                continue
            stack.pop()
            subtree = self._finish(frame)
            if not stack:
                return subtree
            if not (frame.level.ignored and not frame.facts):
                stack[-1].add_directory(frame.name, subtree)

    def _looked_into(self, level: Level) -> Level:
        """*level*, whose names are about to be looked at: watched from now on."""
        if self._watch is not None and level.lower is not None and self._layers.lower_host is not None:
            self._watch(self._prefix, level.path, self._layers.lower_fd(level.lower))
        return level

    def _begin(
        self, name: bytes, level: Level, own: Facts, subtree: Subtree | None, names: list[tuple[bytes, Found]]
    ) -> _Frame:
        frame = _Frame(name, join(self._prefix, level.path), level, own, subtree)
        if subtree is not None:
            frame.old = load(self._objects, subtree)
        layers = self._layers
        upper_rows, lower_rows = self._known_rows(level)
        leading = self._ways.get(frame.path, _NOTHING)
        for each, found in names:
            if each in leading:
                continue
            recorded = layers.records(level, each, found)
            if recorded is False:
                continue
            if found.kind == stat.S_IFDIR and (found.entry is None or found.tree is not None):
                if unstorable(found, each) is None:
                    frame.subdirectories.append((each, found, recorded is None))
                continue
            self._file(frame, each, found, upper_rows if found.in_upper else lower_rows)
        for each in leading:
            self._lead(frame, each)
        return frame

    def _lead(self, frame: _Frame, name: bytes) -> None:
        """Add a name that is a mount entry or leads to one, whatever the part has there."""
        path = join(frame.path, name)
        if path in self._mounts:
            frame.add_directory(name, self._mounts[path])
        elif path in self._ways:
            found = self._layers.look(frame.level, name)
            is_dir = found is not None and found.kind == stat.S_IFDIR
            frame.subdirectories.append((name, found if is_dir else None, False))

    def _known_rows(self, level: Level) -> tuple[dict[bytes, Row], dict[bytes, Row]]:
        layers = self._layers
        upper: dict[bytes, Row] = {}
        lower: dict[bytes, Row] = {}
        if level.in_upper:
            upper = self._cache.rows(self._key(level, upper=True))
        if level.lower is not None and layers.lower_host is not None:
            lower = self._cache.rows(self._key(level, upper=False))
        return upper, lower

    def _key(self, level: Level, *, upper: bool) -> int:
        key = self._layers.key_of(level, upper=upper)
        self._outcome.cache_keys.add(key)
        return key

    def _enter(self, frame: _Frame, name: bytes, found: Found | None, ignored: bool) -> _Frame | None:
        """The frame of a subdirectory; None when there is nothing to scan in it."""
        layers = self._layers
        old = frame.old.subtree(name) if frame.old is not None and frame.old.is_directory(name) else None
        level_path = join(frame.level.path, name)
        if found is not None and layers.is_untouched(found) and not self._leads_to_mount(level_path):
            self._graft(frame, name, found, old)
            return None
        try:
            level = layers.enter(frame.level, name, found, ignored=ignored)
            own = layers.facts(level) if found is not None else self._bridge_facts(old)
            names = list(layers.names(self._looked_into(level)))
        except (FileNotFoundError, NotADirectoryError):
            return None  # removed meanwhile: that is dirty by itself
        except OSError as error:
            self._outcome.leave_out(join(self._prefix, level_path), error.strerror or str(error))
            if old is not None:
                frame.add_directory(name, old)
            return None
        return self._begin(name, level, own, old, names)

    def _bridge_facts(self, old: Subtree | None) -> Facts:
        return old.facts if old is not None and old.facts is not None else self._bridge

    def _leads_to_mount(self, level_path: bytes) -> bool:
        return join(self._prefix, level_path) in self._ways

    def _graft(self, frame: _Frame, name: bytes, found: Found, old: Subtree | None) -> None:
        """Record a directory of the git tree by its id."""
        assert found.tree is not None
        assert found.lower is not None
        subtree = Subtree(found.tree, None, self._layers.tree_facts(MODE_TREE, found.lower, inherits=True))
        frame.add_directory(name, subtree)
        self._outcome.sources.add(self._prefix)
        self.note_graft(join(frame.path, name), subtree, old)

    def note_graft(self, path: bytes, subtree: Subtree, old: Subtree | None) -> None:
        """Tell what differs between a directory as it was recorded and a tree that is known by its id."""
        if old is None or old.facts is None or old.facts.mode != (subtree.facts.mode if subtree.facts else None):
            self._outcome.changed(path)
        if old is None or old.tree == subtree.tree:
            return
        try:
            for difference in islice(differences(self._objects, old.tree, subtree.tree), _COUNTED_MAX):
                self._outcome.changed(path + b"/" + difference.path)
        except ObjectMissing:
            self._outcome.changed(path)  # a partial clone, whose old trees are gone: something below it

    def _finish(self, frame: _Frame) -> Subtree:
        level, old = frame.level, frame.old
        if not frame.path:
            frame.facts[ROOT] = frame.own
        if level.in_upper:
            self._cache.replace(self._key(level, upper=True), frame.upper_rows)
        if level.lower is not None and self._layers.lower_host is not None:
            self._cache.replace(self._key(level, upper=False), frame.lower_rows)
        before = frame.subtree.facts if frame.subtree is not None else None
        told_by_files = old is None and bool(frame.facts)
        if frame.path and not told_by_files and not is_alike(before, frame.own):
            self._outcome.changed(frame.path)
        if old is not None and frame.subtree is not None:
            self._compare(frame, old)
            known = frame.subtree.facts is None or not frame.subtree.facts.inherits
            if known and (frame.entries, frame.facts, frame.below) == (old.entries, old.facts, old.below):
                return Subtree(frame.subtree.tree, frame.subtree.meta, frame.own)
        tree, meta = write_directory(self._batch, frame.entries, frame.facts, frame.below)
        return Subtree(tree, meta, frame.own)

    def _compare(self, frame: _Frame, old: Directory) -> None:
        """Tell the files that are new, other, or gone. What is below directories is told by their own frames."""
        for name, facts in frame.facts.items():
            entry, before = frame.entries.get(name), old.entries.get(name)
            if stat.S_ISDIR(facts.mode) and (entry is None or entry.is_tree):
                if name and old.kind(name) and not old.is_directory(name):
                    self._outcome.changed(join(frame.path, name))
            elif entry != before or facts != old.facts.get(name):
                self._outcome.changed(join(frame.path, name))
        for name in old.names():
            if name not in frame.facts:
                self._outcome.changed(join(frame.path, name))

    # Files

    def _file(self, frame: _Frame, name: bytes, found: Found, rows: dict[bytes, Row]) -> None:
        """Add what is no directory (of ours): a file, or a submodule."""
        if is_never(name):
            return
        why = unstorable(found, name)
        if why is not None:
            self._outcome.leave_out(join(frame.path, name), why)
            return
        if found.entry is not None:
            assert found.lower is not None
            version = Version(found.entry.mode, found.entry.oid)
            frame.add_file(name, version, self._layers.tree_facts(found.entry.mode, found.lower))
            self._outcome.sources.add(self._prefix)
            return  # of a source that is new its directory is told, not every file
        read = read_file(self._layers, self._contents, frame.level, name, found, rows.get(name), self._outcome)
        if read is None:
            self._keep_old(frame, name)
            return
        read_version, facts, row = read
        frame.add_file(name, read_version, facts)
        if facts.link:
            was = frame.old.facts.get(name) if frame.old is not None else None
            if was is not None and was.link == facts.link:
                self._outcome.linked(facts.link, join(frame.path, name))
            else:
                assert found.st is not None
                self._outcome.joined(facts.link, join(frame.path, name), found.st.st_ino, row)
        if row is not None:
            (frame.upper_rows if found.in_upper else frame.lower_rows)[name] = row
        if frame.old is None:
            self._outcome.changed(join(frame.path, name))

    def _keep_old(self, frame: _Frame, name: bytes) -> None:
        """What could not be read stays as it was recorded, if it was."""
        if frame.old is None or frame.old.is_directory(name):
            return
        facts = frame.old.facts.get(name)
        entry = frame.old.entries.get(name)
        if facts is not None:
            frame.add_file(name, Version(entry.mode, entry.oid) if entry is not None else None, facts)


def read_file(
    layers: Layers,
    contents: Contents,
    level: Level,
    name: bytes,
    found: Found,
    row: Row | None,
    outcome: Outcome,
) -> tuple[Version | None, Facts, Row | None] | None:
    """The host file at *name*; None where it cannot be read now, which is told to *outcome*."""
    assert found.st is not None
    part = layers.part
    path = join(level.path, name)
    if found.in_upper:
        fd, there = layers.upper_fd(level.path), name
        group: bytes | None = part.prefix + b"\0upper"
    else:
        assert found.lower is not None
        head, _, there = found.lower.rpartition(b"/")
        fd = layers.lower_fd(head)
        # Each name of a lower's hard link is a file of its own, as in overlayfs.
        group = part.prefix if part.upper is None else None
    try:
        return contents.file(fd, there, found.st, row, group)
    except (FileNotFoundError, Unsettled):
        outcome.again[Dirty(part.prefix, path)] = None
    except Deferred:
        outcome.deferred[Dirty(part.prefix, path)] = None
    except Unreadable as error:
        outcome.leave_out(join(part.prefix, path), str(error))
    return None


def shown_by_default(found: Found, level: Level, name: bytes) -> bool:
    """Whether *found* is what the lower shows because no mark is there (any more, or yet)."""
    mark = level.mark.child(name) if level.mark is not None else None
    return not found.in_upper and (mark is None or mark.kind is MarkKind.INHERIT)


def is_alike(one: Facts | None, other: Facts) -> bool:
    """Whether a directory has the same facts but for its time, which changes with every name in it."""
    return one is not None and one._replace(mtime_ns=0, inherits=False) == other._replace(mtime_ns=0, inherits=False)
