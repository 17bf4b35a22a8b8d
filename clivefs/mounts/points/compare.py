"""Two recorded states side by side: every file that differs in what git says of it or in what the metadata adds.

Modification times do not count: a path whose content, mode, owner and attributes are the same is the same. Only
directories whose tree or metadata differ are read.

Hard links: the numbers of groups say nothing from one state to another (a file that is made anew has another), so
where two numbers differ, the names that share them are compared. A name is told to differ for its links alone where it
was one file with another name and is no more, or the other way round, and neither of them differs in anything else. To
know all names of a group, the metadata of both states is read.
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
    owner: tuple[int, int] | None = None
    """User and group; None where neither is known."""

    @property
    def link(self) -> int:
        """The number of its hard-link group; 0: it has no other name."""
        return self.facts.link if self.facts is not None else 0

    def same_as(self, other: File | None) -> bool:
        """Whether it is what *other* is but for its times and its other names. An owner that is not known is any."""
        return self.same_but_owner(other) and self.owned_as(other)

    def same_but_owner(self, other: File | None) -> bool:
        """As `same_as`, whoever owns it."""
        if other is None or self.mode != other.mode or self.oid != other.oid:
            return False
        return _xattrs(self) == _xattrs(other)

    def owned_as(self, other: File | None) -> bool:
        """Whether nothing says that *other* has another owner."""
        return other is None or self.owner is None or other.owner is None or self.owner == other.owner

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


class _Trees(NamedTuple):
    """Of a directory that has something in it."""

    tree: bytes
    meta: bytes | None
    owner: tuple[int, int] | None = None
    """Of all that is in it and has no record."""

    def same_as(self, other: _Trees | None) -> bool:
        return other is not None and self[:2] == other[:2]


class _Directory(NamedTuple):
    files: dict[bytes, File]
    trees: dict[bytes, _Trees]


_NOTHING = _Directory({}, {})


def compare(
    reader: JoinedObjects, before: State, after: State, path: bytes = b"", *, times: bool = False
) -> Iterator[Differs]:
    """What differs at and below *path*, with *times* also what does in nothing else; a directory comes before what is
    in it. ObjectMissing, CorruptObject."""
    one, two = _at(reader, before, path), _at(reader, after, path)
    numbered: list[Differs] = []
    """The same but for the numbers of their hard-link groups."""
    if path and not _same(one[0], two[0], times):
        yield Differs(path, one[0], two[0])
    elif one[0] is not None and two[0] is not None and one[0].link != two[0].link:
        numbered.append(Differs(path, one[0], two[0]))
    waiting = [(path, one[1], two[1])]
    while waiting:
        directory, left, right = waiting.pop()
        if left is right or (left is not None and left.same_as(right)):
            continue
        old, new = _load(reader, left), _load(reader, right)
        for name in sorted(old.files.keys() | new.files.keys()):
            below = directory + b"/" + name if directory else name
            was, now = old.files.get(name), new.files.get(name)
            if not _same(was, now, times):
                yield Differs(below, was, now)
            elif was is not None and now is not None and was.link != now.link:
                numbered.append(Differs(below, was, now))
            if name in old.trees or name in new.trees:
                waiting.append((below, old.trees.get(name), new.trees.get(name)))
    if numbered:
        links = Links(reader, before, after)
        yield from (each for each in numbered if links.differ(each))


class Links:
    """The names of the files that have several, in two states. ObjectMissing, CorruptObject."""

    def __init__(self, reader: JoinedObjects, before: State, after: State) -> None:
        self.before: dict[int, set[bytes]] = {}
        """The names by the number of their group; those with one name too."""
        self.after: dict[int, set[bytes]] = {}
        self.files: dict[bytes, Differs] = {}
        """What is at these names, whether it differs or not."""
        self._others: set[bytes] = set()
        """The names that differ in more than that."""
        waiting: list[tuple[bytes, _Trees | None, _Trees | None]] = [(b"", _Trees(*before), _Trees(*after))]
        while waiting:
            path, left, right = waiting.pop()
            if (left is None or left.meta is None) and (right is None or right.meta is None):
                continue  # nothing is recorded here or below
            old = _load(reader, left)
            new = old if left is not None and left.same_as(right) else _load(reader, right)
            for name in old.files.keys() | new.files.keys():
                self._add(path + b"/" + name if path else name, old.files.get(name), new.files.get(name))
            for name in old.trees.keys() | new.trees.keys():
                waiting.append((path + b"/" + name if path else name, old.trees.get(name), new.trees.get(name)))

    def _add(self, path: bytes, was: File | None, now: File | None) -> None:
        one, two = was.link if was is not None else 0, now.link if now is not None else 0
        if one:
            self.before.setdefault(one, set()).add(path)
        if two:
            self.after.setdefault(two, set()).add(path)
        if one or two:
            self.files[path] = Differs(path, was, now)
            if was is None or not was.same_as(now):
                self._others.add(path)

    def differ(self, differs: Differs) -> bool:
        """Whether a name that both states have is one file with other names, of those that differ in nothing else."""
        path, was, now = differs
        own = {path}
        one = self.before.get(was.link, own) if was is not None else own
        two = self.after.get(now.link, own) if now is not None else own
        return one - self._others != two - self._others


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


def _at(reader: JoinedObjects, state: State, path: bytes) -> tuple[File | None, _Trees | None]:
    """The file at *path*, and the trees of the directory there."""
    file: File | None = None
    trees: _Trees | None = _Trees(state.tree, state.meta)
    for name in path.split(b"/") if path else ():
        directory = _load(reader, trees)
        file, trees = directory.files.get(name), directory.trees.get(name)
    return file, trees


def _load(reader: JoinedObjects, trees: _Trees | None) -> _Directory:
    if trees is None:
        return _NOTHING
    tree, meta, owner = trees
    entries: list[TreeEntry] = [] if tree == EMPTY_TREE else reader.read_tree(tree)
    records: dict[bytes, Facts] = {}
    below: dict[bytes, bytes] = {}
    if meta is not None:
        blob, below = split_meta(reader.read_tree(meta))
        if blob is not None:
            records = decode_records(blob_content(reader, blob), entries)
            records.pop(b"", None)
    files: dict[bytes, File] = {}
    inner: dict[bytes, _Trees] = {}
    for entry in entries:
        if entry.mode == MODE_GITLINK:
            continue
        facts = records.pop(entry.name, None)
        own = (facts.uid, facts.gid) if facts is not None else owner
        if entry.is_tree:
            files[entry.name] = File(facts.mode if facts else stat.S_IFDIR | 0o755, None, facts, own)
            inherited = own if facts is None or facts.inherits else None
            inner[entry.name] = _Trees(entry.oid, below.get(entry.name), inherited)
            continue
        files[entry.name] = File(facts.mode if facts else _git_mode(entry.mode), entry.oid, facts, own)
    for name, facts in records.items():
        files[name] = File(facts.mode, None, facts, (facts.uid, facts.gid))
        if name in below:
            inner[name] = _Trees(EMPTY_TREE, below[name])
    return _Directory(files, inner)


def _git_mode(mode: int) -> int:
    kind = stat.S_IFLNK if mode == MODE_SYMLINK else stat.S_IFREG
    return kind | _PERMISSIONS.get(mode, 0o644)
