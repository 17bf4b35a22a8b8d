"""Changing a few files of a git tree without looking at the rest.

A `TreeEditor` reads a directory's tree when a path first leads through it, and `write` writes those that changed:
a change in a tree of 50,000 files costs the trees on the way to it. Directories appear with their first file and
go with their last, as in git.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.space import Objects
from clivefs.objects.encode import EMPTY_TREE, MODE_GROUP_WRITABLE, MODE_TREE, TreeEntry, check_tree_entry
from clivefs.objects.interface import Batch

MODE_REGULAR = 0o100644
PATH_DEPTH_MAX = 256


class RefusedPath(ClivefsError):
    """A path that no change may be made at: it is no path of a working tree, or leads through something."""


class Version(NamedTuple):
    """A file of a tree: git's mode (no directory's) and the object's name."""

    mode: int
    oid: bytes


class _Directory:
    __slots__ = ("changed", "entries", "inner")

    def __init__(self, entries: dict[bytes, TreeEntry]) -> None:
        self.entries = entries
        self.inner: dict[bytes, _Directory] = {}
        """Those taken apart; a name here may have no entry (yet)."""
        self.changed = False

    def is_empty(self) -> bool:
        """No file is below it."""
        for name, entry in self.entries.items():
            if not entry.is_tree or name not in self.inner:
                return False
        return all(each.is_empty() for each in self.inner.values())


class TreeEditor:
    """The tree *tree* of *objects*, and the changes made to it here. Nothing is written before `write`."""

    def __init__(self, objects: Objects, tree: bytes) -> None:
        self._objects = objects
        self._tree = tree
        self._root = self._load(tree)

    def get(self, path: bytes) -> Version | None:
        """The file at *path*; None where there is none, or a directory."""
        head, name = self._split(path)
        directory: _Directory | None = self._root
        for part in head:
            directory = self._inner(directory, part)
            if directory is None:
                return None
        assert directory is not None
        entry = directory.entries.get(name)
        if entry is None or entry.is_tree:
            return None
        return Version(MODE_REGULAR if entry.mode == MODE_GROUP_WRITABLE else entry.mode, entry.oid)

    def is_directory(self, path: bytes) -> bool:
        """Whether files are below *path*."""
        directory: _Directory | None = self._root
        for part in path.split(b"/"):
            directory = self._inner(directory, part) if directory is not None else None
        return directory is not None and not directory.is_empty()

    def obstacle(self, path: bytes) -> tuple[bytes, int] | None:
        """(path, mode) of the file that stands where *path* needs a directory, if one does."""
        directory: _Directory | None = self._root
        parts = path.split(b"/")
        for count, part in enumerate(parts[:-1], 1):
            assert directory is not None
            entry = directory.entries.get(part)
            if entry is not None and not entry.is_tree:
                return b"/".join(parts[:count]), entry.mode
            directory = self._inner(directory, part)
            if directory is None:
                return None
        return None

    def put(self, path: bytes, version: Version) -> None:
        """Let *version* be at *path*. RefusedPath where a directory is, or on the way a file."""
        head, name = self._split(path)
        why = check_path(path, version.mode)
        if why is not None:
            raise RefusedPath(why, place=show(path))
        directory = self._root
        passed = [directory]
        for part in head:
            entry = directory.entries.get(part)
            if entry is not None and not entry.is_tree:
                what = "symlink" if stat.S_ISLNK(entry.mode) else "file"
                raise RefusedPath(f"it leads through the {what} {show(part)}", place=show(path))
            inner = self._inner(directory, part)
            if inner is None:
                inner = directory.inner[part] = _Directory({})
            directory = inner
            passed.append(directory)
        inner = self._inner(directory, name)
        if inner is not None and not inner.is_empty():
            raise RefusedPath("a directory is there", place=show(path))
        directory.inner.pop(name, None)
        directory.entries[name] = TreeEntry(version.mode, name, version.oid)
        for each in passed:
            each.changed = True

    def remove(self, path: bytes) -> bool:
        """Let no file be at *path*; whether there was one."""
        head, name = self._split(path)
        directory: _Directory | None = self._root
        passed = [self._root]
        for part in head:
            directory = self._inner(directory, part)
            if directory is None:
                return False
            passed.append(directory)
        assert directory is not None
        entry = directory.entries.get(name)
        if entry is None or entry.is_tree:
            return False
        del directory.entries[name]
        for each in passed:
            each.changed = True
        return True

    def write(self, batch: Batch) -> bytes:
        """The tree with all changes, its new objects put into *batch*."""
        if not self._root.changed:
            return self._tree
        return _write(batch, self._root)

    def _split(self, path: bytes) -> tuple[list[bytes], bytes]:
        parts = path.split(b"/")
        return parts[:-1], parts[-1]

    def _inner(self, directory: _Directory | None, name: bytes) -> _Directory | None:
        if directory is None:
            return None
        inner = directory.inner.get(name)
        if inner is None:
            entry = directory.entries.get(name)
            if entry is None or not entry.is_tree:
                return None
            inner = directory.inner[name] = self._load(entry.oid)
        return inner

    def _load(self, tree: bytes) -> _Directory:
        if tree == EMPTY_TREE:
            return _Directory({})
        return _Directory({entry.name: entry for entry in self._objects.read_tree(tree)})


def _write(batch: Batch, directory: _Directory) -> bytes:
    for name, inner in directory.inner.items():
        if not inner.changed:
            continue
        if inner.is_empty():
            directory.entries.pop(name, None)
        else:
            directory.entries[name] = TreeEntry(MODE_TREE, name, _write(batch, inner))
    return batch.tree(directory.entries.values())


def check_path(path: bytes, mode: int = MODE_REGULAR) -> str | None:
    """Why no file may be at *path*, or None: absolute, `..`, a spelling of `.git`, too deep, a NUL."""
    if not path:
        return "the name is empty"
    if path.startswith(b"/"):
        return "the path is absolute"
    parts = path.split(b"/")
    if len(parts) > PATH_DEPTH_MAX:
        return f"the path has over {PATH_DEPTH_MAX} components"
    for part in parts[:-1]:
        why = check_tree_entry(MODE_TREE, part)
        if why is not None:
            return why
    return check_tree_entry(mode, parts[-1])


def show(path: bytes) -> str:
    """A path for messages: control characters cannot reach a terminal."""
    text = path.decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else f"\\x{ord(each):02x}" for each in text)


class Difference(NamedTuple):
    """A path whose file two trees do not have alike; None where there is none."""

    path: bytes
    before: Version | None
    after: Version | None


def differences(objects: Objects, before: bytes, after: bytes) -> Iterator[Difference]:
    """Every file that differs between two trees, in no special order. Reads only directories that differ."""
    waiting: list[tuple[bytes, bytes | None, bytes | None]] = [(b"", before, after)]
    while waiting:
        prefix, one, two = waiting.pop()
        left = _by_name(objects, one)
        right = _by_name(objects, two)
        for name in left.keys() | right.keys():
            old, new = left.get(name), right.get(name)
            if old is not None and new is not None and old.oid == new.oid and old.mode == new.mode:
                continue
            path = prefix + name
            old_tree = old.oid if old is not None and old.is_tree else None
            new_tree = new.oid if new is not None and new.is_tree else None
            if old_tree is not None or new_tree is not None:
                waiting.append((path + b"/", old_tree, new_tree))
            old_file, new_file = _version(old), _version(new)
            if old_file != new_file:
                yield Difference(path, old_file, new_file)


def _by_name(objects: Objects, tree: bytes | None) -> dict[bytes, TreeEntry]:
    if tree is None or tree == EMPTY_TREE:
        return {}
    return {entry.name: entry for entry in objects.read_tree(tree)}


def _version(entry: TreeEntry | None) -> Version | None:
    if entry is None or entry.is_tree:
        return None
    return Version(MODE_REGULAR if entry.mode == MODE_GROUP_WRITABLE else entry.mode, entry.oid)
