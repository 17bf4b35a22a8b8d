"""Two recorded states side by side: every file that differs in what git says of it or in what the metadata adds.

Modification times do not count: a path whose content and mode are the same is the same. Only directories whose tree
or metadata differ are read.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from typing import NamedTuple

from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.points.metadata import Facts, decode_records, split_meta
from clivefs.objects.encode import EMPTY_TREE, MODE_GITLINK, MODE_SYMLINK, MODE_TREE, TreeEntry

_PERMISSIONS = {MODE_TREE: 0o755, 0o100755: 0o755, MODE_SYMLINK: 0o777}


class State(NamedTuple):
    """A recorded state: a view's tree and its metadata tree."""

    tree: bytes
    meta: bytes | None


NOTHING = State(EMPTY_TREE, None)
"""The state before the first point."""


class File(NamedTuple):
    """One file, directory or special file as it was recorded."""

    mode: int
    """st_mode; git's where nothing else is known."""
    oid: bytes | None
    """The blob; None for what has no content."""
    facts: Facts | None

    def same_as(self, other: File | None) -> bool:
        """Whether it is what *other* is but for its times."""
        if other is None or self.mode != other.mode or self.oid != other.oid:
            return False
        return _xattrs(self) == _xattrs(other)

    def times_as(self, other: File | None) -> bool:
        """Whether nothing says that its time is another than that of *other*."""
        if other is None or self.facts is None or other.facts is None:
            return True
        return self.facts.mtime_ns == other.facts.mtime_ns


def _xattrs(file: File) -> tuple[tuple[bytes, bytes], ...]:
    return file.facts.xattrs if file.facts is not None else ()


def change_status(before: int | None, after: int | None) -> str:
    """`A`, `D`, `M`, or `T` where the kind changed, as git says, of a path with these modes; None: nothing is there."""
    if before is None:
        return "A"
    if after is None:
        return "D"
    return "M" if stat.S_IFMT(before) == stat.S_IFMT(after) else "T"


class Differs(NamedTuple):
    """A path that two states do not have alike; None where nothing is. Submodules are left out."""

    path: bytes
    before: File | None
    after: File | None

    @property
    def status(self) -> str:
        """See `change_status`."""
        return change_status(
            self.before.mode if self.before is not None else None, self.after.mode if self.after is not None else None
        )


class _Directory(NamedTuple):
    files: dict[bytes, File]
    trees: dict[bytes, tuple[bytes, bytes | None]]
    """Subdirectories that have something in them: tree and metadata tree."""


_NOTHING = _Directory({}, {})


def compare(
    reader: JoinedObjects, before: State, after: State, path: bytes = b"", *, times: bool = False
) -> Iterator[Differs]:
    """What differs at and below *path*, with *times* also what does in nothing else; a directory comes before what is
    in it. ObjectMissing, CorruptObject."""
    one, two = _at(reader, before, path), _at(reader, after, path)
    if path and not _same(one[0], two[0], times):
        yield Differs(path, one[0], two[0])
    waiting = [(path, one[1], two[1])]
    while waiting:
        directory, left, right = waiting.pop()
        if left == right:
            continue
        old, new = _load(reader, left), _load(reader, right)
        for name in sorted(old.files.keys() | new.files.keys()):
            below = directory + b"/" + name if directory else name
            was, now = old.files.get(name), new.files.get(name)
            if not _same(was, now, times):
                yield Differs(below, was, now)
            if name in old.trees or name in new.trees:
                waiting.append((below, old.trees.get(name), new.trees.get(name)))


def file_at(reader: JoinedObjects, state: State, path: bytes) -> File | None:
    """What a state has at *path*, but for the root itself."""
    return _at(reader, state, path)[0]


def children_at(reader: JoinedObjects, state: State, path: bytes) -> dict[bytes, File]:
    """What a state has in the directory at *path*, by name; submodules are left out."""
    return _load(reader, _at(reader, state, path)[1]).files


def _same(one: File | None, other: File | None, times: bool) -> bool:
    if one is None:
        return other is None
    return one.same_as(other) and (not times or one.times_as(other))


def _at(reader: JoinedObjects, state: State, path: bytes) -> tuple[File | None, tuple[bytes, bytes | None] | None]:
    """The file at *path*, and the trees of the directory there."""
    file: File | None = None
    trees: tuple[bytes, bytes | None] | None = (state.tree, state.meta)
    for name in path.split(b"/") if path else ():
        directory = _load(reader, trees)
        file, trees = directory.files.get(name), directory.trees.get(name)
    return file, trees


def _load(reader: JoinedObjects, trees: tuple[bytes, bytes | None] | None) -> _Directory:
    if trees is None:
        return _NOTHING
    tree, meta = trees
    entries: list[TreeEntry] = [] if tree == EMPTY_TREE else reader.read_tree(tree)
    records: dict[bytes, Facts] = {}
    below: dict[bytes, bytes] = {}
    if meta is not None:
        blob, below = split_meta(reader.read_tree(meta))
        if blob is not None:
            records = decode_records(blob_content(reader, blob), entries)
            records.pop(b"", None)
    files: dict[bytes, File] = {}
    inner: dict[bytes, tuple[bytes, bytes | None]] = {}
    for entry in entries:
        if entry.mode == MODE_GITLINK:
            continue
        facts = records.pop(entry.name, None)
        if entry.is_tree:
            files[entry.name] = File(facts.mode if facts else stat.S_IFDIR | 0o755, None, facts)
            inner[entry.name] = (entry.oid, below.get(entry.name))
            continue
        files[entry.name] = File(facts.mode if facts else _git_mode(entry.mode), entry.oid, facts)
    for name, facts in records.items():
        files[name] = File(facts.mode, None, facts)
        if name in below:
            inner[name] = (EMPTY_TREE, below[name])
    return _Directory(files, inner)


def _git_mode(mode: int) -> int:
    kind = stat.S_IFLNK if mode == MODE_SYMLINK else stat.S_IFREG
    return kind | _PERMISSIONS.get(mode, 0o644)
