"""The tree of a workspace and its metadata tree, edited together.

A `RecordedTree` reads a directory of the two when a path first leads through it, keeps it for the next flush, and
`write` writes the directories that changed and those above them. A change in a workspace of 100,000 files costs the
trees on the way to it; a subtree that is known by its ids (a git ref) costs its entry.

Invariants:

- A directory's entry stands in its parent's git tree exactly when a file is somewhere below it (git's rule); one
  without any is in its parent's records alone.
- A directory whose facts say `inherits` has no records below. It gets them, derived from git's modes and its own
  facts, when something below it changes.
- Nothing is half changed: an operation either raises before it changes anything or does not raise.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.space import Objects
from clivefs.mounts.git.trees import ST_MODES, visible
from clivefs.mounts.points.metadata import ROOT, Facts, decode_records, encode_records, meta_entries, split_meta
from clivefs.objects.encode import EMPTY_TREE, MODE_TREE, TreeEntry
from clivefs.objects.errors import CorruptObject
from clivefs.objects.interface import Batch

ENTRIES_MAX = 200_000
"""Beyond it, directories that were read are forgotten after a `write`."""


class Version(NamedTuple):
    """A file as git has it."""

    mode: int
    oid: bytes


class Subtree(NamedTuple):
    """A directory with all that is below it, by its ids."""

    tree: bytes
    meta: bytes | None
    """None: nothing below has records."""
    facts: Facts | None


class Directory:
    """One directory, taken apart."""

    __slots__ = ("below", "changed", "entries", "facts", "inner")

    def __init__(self, entries: dict[bytes, TreeEntry], facts: dict[bytes, Facts], below: dict[bytes, bytes]) -> None:
        self.entries = entries
        """What is in the git tree."""
        self.facts = facts
        """The records: also of names that a git tree cannot hold."""
        self.below = below
        """The metadata trees of subdirectories."""
        self.inner: dict[bytes, Directory] = {}
        """The subdirectories that are taken apart; for these the fields above may be out of date."""
        self.changed = False

    def kind(self, name: bytes) -> int:
        """The S_IFMT bits of *name*; 0 where there is nothing."""
        entry = self.entries.get(name)
        if entry is not None:
            return stat.S_IFMT(ST_MODES[entry.mode])
        if name in self.inner:
            return stat.S_IFDIR
        facts = self.facts.get(name) if name else None
        return stat.S_IFMT(facts.mode) if facts is not None else 0

    def is_directory(self, name: bytes) -> bool:
        """Whether *name* is a directory of this tree, and no submodule."""
        entry = self.entries.get(name)
        return entry.mode == MODE_TREE if entry is not None else self.kind(name) == stat.S_IFDIR

    def names(self) -> Iterator[bytes]:
        """Every name, files and directories."""
        yield from self.entries
        for name in self.facts:
            if name and name not in self.entries:
                yield name

    def subtree(self, name: bytes) -> Subtree:
        """The directory *name*, which is not taken apart or has not changed."""
        entry = self.entries.get(name)
        return Subtree(entry.oid if entry is not None else EMPTY_TREE, self.below.get(name), self.facts.get(name))

    def drop(self, name: bytes) -> None:
        self.entries.pop(name, None)
        self.facts.pop(name, None)
        self.below.pop(name, None)
        self.inner.pop(name, None)


def load(objects: Objects, subtree: Subtree) -> Directory:
    """The directory of *subtree*. ObjectMissing, CorruptObject."""
    tree, meta, own = subtree
    shown = visible(objects.read_tree(tree))[0] if tree != EMPTY_TREE else []
    entries = {entry.name: entry for entry in shown}
    if meta is None:
        return Directory(entries, _inherited(shown, own) if own is not None and own.inherits else {}, {})
    records, below = split_meta(objects.read_tree(meta))
    facts: dict[bytes, Facts] = {}
    if records is not None:
        kind, payload = objects.read(records)
        if kind != "blob":
            raise CorruptObject(f"the records of a directory are a {kind}", oid=records)
        facts = decode_records(payload, shown)
    for name in below:
        entry = entries.get(name)
        known = facts.get(name)
        if entry.mode != MODE_TREE if entry is not None else known is None or not stat.S_ISDIR(known.mode):
            raise CorruptObject(f"the metadata tree has {name[:80]!r}, which is no directory", oid=meta)
    return Directory(entries, facts, below)


def _inherited(entries: list[TreeEntry], own: Facts) -> dict[bytes, Facts]:
    return {
        entry.name: Facts(ST_MODES[entry.mode], own.mtime_ns, own.uid, own.gid, inherits=entry.mode == MODE_TREE)
        for entry in entries
    }


def write_directory(
    batch: Batch, entries: dict[bytes, TreeEntry], facts: dict[bytes, Facts], below: dict[bytes, bytes]
) -> tuple[bytes, bytes | None]:
    """The tree and the metadata tree of a directory, put into *batch*; None where it needs none."""
    tree = batch.tree(entries.values()) if entries else EMPTY_TREE
    records = batch.blob(encode_records(facts, list(entries.values()))) if facts else None
    meta = meta_entries(records, below)
    return tree, batch.tree(meta) if meta else None


class RecordedTree:
    """The tree *tree* with the metadata *meta*, read from *objects*, and the changes made to it here."""

    def __init__(self, objects: Objects, tree: bytes = EMPTY_TREE, meta: bytes | None = None) -> None:
        self.objects = objects
        self.tree = tree
        """As it was last written."""
        self.meta = meta
        self._root: Directory | None = None
        self._replaced: Subtree | None = None
        """The whole tree as it is to be written, where it was put as a whole."""
        self._loaded = 0

    # Looking

    def _top(self) -> Directory:
        if self._root is None:
            self._root = self._load(self._replaced or Subtree(self.tree, self.meta, None))
        return self._root

    def _load(self, subtree: Subtree) -> Directory:
        directory = load(self.objects, subtree)
        self._loaded += len(directory.entries) + 1
        return directory

    def _inner(self, directory: Directory, name: bytes) -> Directory | None:
        inner = directory.inner.get(name)
        if inner is None and directory.is_directory(name):
            inner = directory.inner[name] = self._load(directory.subtree(name))
        return inner

    def directory(self, path: bytes) -> Directory | None:
        """The directory at *path*, to look at; None where there is none."""
        directory: Directory | None = self._top()
        for name in path.split(b"/") if path else ():
            directory = self._inner(directory, name) if directory is not None else None
        return directory

    def get(self, path: bytes) -> tuple[Version | None, Facts | None]:
        """What is at *path*: git's part of it (None for a directory or what git cannot hold) and its facts."""
        head, _, name = path.rpartition(b"/")
        parent = self.directory(head)
        if parent is None:
            return None, None
        entry = parent.entries.get(name)
        version = Version(entry.mode, entry.oid) if entry is not None and not entry.is_tree else None
        return version, parent.facts.get(name if path else ROOT)

    def is_directory(self, path: bytes) -> bool:
        """Whether a directory is at *path*, and no submodule."""
        if not path:
            return True
        head, _, name = path.rpartition(b"/")
        parent = self.directory(head)
        return parent is not None and parent.is_directory(name)

    # Changing

    def put(self, path: bytes, version: Version | None, facts: Facts) -> None:
        """Let a file be at *path*: *version* None for what git cannot hold (a pipe, a socket, a device)."""
        way, parent, name = self._way_to(path, facts)
        parent.drop(name)
        parent.facts[name] = facts
        if version is not None:
            parent.entries[name] = TreeEntry(version.mode, name, version.oid)
        _mark(way)

    def put_tree(self, path: bytes, subtree: Subtree) -> None:
        """Let the directory *subtree* be at *path*, with all that is below it. It need not be readable yet."""
        if not path:
            self._replaced, self._root = subtree, None
            return
        assert subtree.facts is not None
        way, parent, name = self._way_to(path, subtree.facts)
        parent.drop(name)
        parent.facts[name] = subtree.facts
        if subtree.tree != EMPTY_TREE:
            parent.entries[name] = TreeEntry(MODE_TREE, name, subtree.tree)
        if subtree.meta is not None:
            parent.below[name] = subtree.meta
        _mark(way)

    def put_facts(self, path: bytes, facts: Facts) -> None:
        """Let the directory at *path*, which is there, have these facts."""
        if not path:
            root = self._top()
            root.facts[ROOT] = facts
            root.changed = True
            return
        way, parent, name = self._way_to(path, facts)
        inner = self._inner(parent, name) if parent.facts.get(name, facts).inherits != facts.inherits else None
        parent.facts[name] = facts
        if inner is not None:
            inner.changed = True
        _mark(way)

    def remove(self, path: bytes) -> bool:
        """Let nothing be at *path*; whether there was something. Directories stay, also when they are empty now."""
        head, _, name = path.rpartition(b"/")
        parent = self.directory(head)
        if parent is None or not parent.kind(name):
            return False
        way = self._way_to(path, None)[0]
        parent.drop(name)
        _mark(way)
        return True

    def _way_to(self, path: bytes, like: Facts | None) -> tuple[list[Directory], Directory, bytes]:
        """The directories from the root to that of *path*, taken apart, those that are missing made: with the time
        and owner of *like*, as the way to a mount entry has."""
        *parts, name = path.split(b"/")
        directory = self._top()
        way = [directory]
        missing = 0
        for missing, part in enumerate(parts):  # noqa: B007
            inner = self._inner(directory, part)
            if inner is None:
                break
            way.append(inner)
            directory = inner
        else:
            return way, directory, name
        if like is None:
            raise ClivefsError(f"there is no directory for {path!r}")
        for part in parts[missing:]:
            directory.drop(part)
            inner = directory.inner[part] = Directory({}, {}, {})
            directory.facts[part] = Facts(stat.S_IFDIR | 0o755, like.mtime_ns, like.uid, like.gid)
            way.append(inner)
            directory = inner
        return way, directory, name

    # Writing

    def write(self, batch: Batch) -> tuple[bytes, bytes | None]:
        """The tree and the metadata tree with all changes, new objects put into *batch*."""
        root = self._root
        if root is not None and root.changed:
            self.tree, self.meta = _write(batch, root)
        elif self._replaced is not None:
            self.tree, self.meta, _ = self._replaced
        self._replaced = None
        if self._loaded > ENTRIES_MAX:
            self._root, self._loaded = None, 0
        return self.tree, self.meta

    def peek(self, path: bytes) -> Subtree | None:
        """The directory at *path* as it was last written; None where there is none."""
        if not path:
            return Subtree(self.tree, self.meta, None)
        head, _, name = path.rpartition(b"/")
        parent = self.directory(head)
        return parent.subtree(name) if parent is not None and parent.is_directory(name) else None

    def keep_written(self) -> None:
        """Nothing that matters has changed: what was put as a whole is given up."""
        if self._replaced is not None:
            self._replaced, self._root = None, None

    def subtree(self, path: bytes, batch: Batch) -> Subtree | None:
        """The directory at *path* as it is now, its changes put into *batch*; None where there is none."""
        if not path:
            tree, meta = self.write(batch)
            return Subtree(tree, meta, self._top().facts.get(ROOT) if self._root is not None else None)
        head, _, name = path.rpartition(b"/")
        parent = self.directory(head)
        if parent is None or not parent.is_directory(name):
            return None
        inner = parent.inner.get(name)
        if inner is not None and inner.changed:
            _settle(parent, name, inner, *_write(batch, inner))
        return parent.subtree(name)


def _mark(way: list[Directory]) -> None:
    for directory in way:
        directory.changed = True


def _write(batch: Batch, top: Directory) -> tuple[bytes, bytes | None]:
    """Write the changed directories at and below *top*, the deepest first. Iterative: paths may be deep."""
    order = [top]
    for directory in order:
        order.extend(inner for inner in directory.inner.values() if inner.changed)
    ids: dict[int, tuple[bytes, bytes | None]] = {}
    for directory in reversed(order):
        for name, inner in directory.inner.items():
            if inner.changed:
                _settle(directory, name, inner, *ids[id(inner)])
        ids[id(directory)] = _ids(batch, directory)
    for directory in order:
        directory.changed = False
    return ids[id(top)]


def _ids(batch: Batch, directory: Directory) -> tuple[bytes, bytes | None]:
    return write_directory(batch, directory.entries, directory.facts, directory.below)


def _settle(parent: Directory, name: bytes, inner: Directory, tree: bytes, meta: bytes | None) -> None:
    """*inner* was written: its parent knows it by its ids."""
    if tree == EMPTY_TREE:
        parent.entries.pop(name, None)
    else:
        parent.entries[name] = TreeEntry(MODE_TREE, name, tree)
    if meta is None:
        parent.below.pop(name, None)
    else:
        parent.below[name] = meta
    facts = parent.facts.get(name)
    if facts is not None and facts.inherits and inner.facts:
        parent.facts[name] = facts._replace(inherits=False)
