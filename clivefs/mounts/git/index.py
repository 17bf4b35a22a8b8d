"""An index made from a tree: what `git read-tree` writes, with the stat data that the mount reports.

Format: gitformat-index(5), version 2 with the TREE (cache-tree) extension. With `core.checkStat=minimal`
and `core.trustctime=false` git compares only size and whole seconds of the modification time, so the
other fields stay zero. Two rules keep the first `git status` from reading any content:

- size and time are exactly what stat(2) answers in the mount;
- no time is as late as the index itself, or git takes the entry for "racy" and reads the file: rightly, as
  an edit in the same second could have left size and time alone. So `GitSource` shows no commit with a time
  less than two seconds ago; what a follow changed at this moment git reads once more, and that is few files.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from hashlib import sha1
from typing import NamedTuple, Protocol

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.space import GitRef, Objects
from clivefs.mounts.git.trees import visible
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.tree import Attr, Blocked
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE, tree_sort_key
from clivefs.objects.errors import ObjectMissing

ENTRIES_MAX = 2_000_000
_COUNTED_FROM = 150_000
"""Trees with fewer files are walked without being counted first."""
_JOBS_MAX = 4
_HEADER = struct.Struct(">4sLL")
_STAT = struct.Struct(">10L20sH")
_NAME_MASK = 0xFFF
_SECOND_NS = 1_000_000_000


class IndexStat(NamedTuple):
    """What the mount reports of a file: size in bytes, modification time in ns."""

    size: int
    mtime_ns: int


StatOf = Callable[[bytes, bytes, int], IndexStat | None]
"""(path, blob, git's mode) to what stat(2) says; None where it is not known yet: git then looks itself."""


class BuiltIndex(NamedTuple):
    """An index file's content."""

    content: bytes
    entries: int


def _refuse_too_many(reader: Objects, root: bytes, entries_max: int) -> None:
    """Refuse a tree with more than *entries_max* files before they are walked: a few objects that name each other
    many times over are enough for that. Each tree object is read once."""
    counts: dict[bytes, int] = {}
    pending = [root]
    while pending:
        oid = pending[-1]
        if oid in counts:
            pending.pop()
            continue
        shown, _ = visible(reader.read_tree(oid))
        inner = [entry.oid for entry in shown if entry.mode == MODE_TREE]
        unknown = [each for each in dict.fromkeys(inner) if each not in counts]
        if unknown:
            pending += unknown  # a tree cannot hold itself: it is named by its content
            continue
        counts[oid] = len(shown) - len(inner) + sum(counts[each] for each in inner)
        pending.pop()
        if counts[oid] > entries_max:
            raise _too_many(entries_max)


def _too_many(entries_max: int) -> ClivefsError:
    return ClivefsError(f"the tree has more than {entries_max} files", remedy="Set `git_dir = false` for this entry.")


def build_index(reader: Objects, root: bytes, stat_of: StatOf, *, entries_max: int = ENTRIES_MAX) -> BuiltIndex:
    """The index of the tree *root*. ClivefsError when it has more than *entries_max* files."""
    chunks: list[bytes] = [b""]
    trees: list[_CachedTree] = []
    count = 0
    pack = _STAT.pack
    # Depth first, in git's order, which is the order of the whole paths: the entries of a directory stand
    # where its name does. One iterator for each directory that is being walked.
    walk = [_Walk(b"", root, reader)]
    trees.append(walk[0].cached)
    while walk:
        top = walk[-1]
        entry = next(top.entries, None)
        if entry is None:
            walk.pop()
            if walk:
                outer = walk[-1].cached
                outer.count += top.cached.count
                outer.valid = outer.valid and top.cached.valid
            continue
        mode, name, oid = entry
        path = top.prefix + name
        if mode == MODE_TREE:
            inner = _Walk(path + b"/", oid, reader)
            inner.cached.name = name
            top.cached.subtrees += 1
            trees.append(inner.cached)
            walk.append(inner)
            continue
        count += 1
        top.cached.count += 1
        if count == _COUNTED_FROM:
            _refuse_too_many(reader, root, entries_max)
        if count > entries_max:
            raise _too_many(entries_max)
        told = None if mode == MODE_GITLINK else stat_of(path, oid, mode)
        size = seconds = nanoseconds = 0
        if told is not None:
            seconds, nanoseconds = divmod(told.mtime_ns, _SECOND_NS)
            seconds &= 0xFFFFFFFF
            size = told.size & 0xFFFFFFFF
            if told.size and not size:
                size = 0x80000000  # as git's munge_st_size(): zero would mean "look again"
        length = len(path)
        flags = length if length < _NAME_MASK else _NAME_MASK
        chunks.append(
            pack(0, 0, seconds, nanoseconds, 0, 0, mode, 0, 0, size, oid, flags) + path + bytes(8 - (62 + length) % 8)
        )
    chunks[0] = _HEADER.pack(b"DIRC", 2, count)
    extension = b"".join([each.encode() for each in trees])
    chunks.append(b"TREE" + struct.pack(">L", len(extension)) + extension)
    content = b"".join(chunks)
    return BuiltIndex(content + sha1(content, usedforsecurity=False).digest(), count)


class GitFiles(Protocol):
    """A layer whose files are git's."""

    def find(self, path: bytes) -> LowerRef | None: ...
    def child(self, directory: LowerRef, name: bytes) -> LowerRef | None: ...
    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr: ...
    def git_file(self, ref: LowerRef) -> GitRef | None:
        """What it has of a file in git; None for one that git does not have."""
        ...


def stat_from(lower: GitFiles, top: bytes = b"") -> StatOf:
    """What *lower* itself reports of its files below *top*. Converts what `.gitattributes` ask for, fetches nothing."""
    known: tuple[bytes, LowerRef | None] = (b"", lower.find(top))

    def stat_of(path: bytes, oid: bytes, mode: int) -> IndexStat | None:
        nonlocal known
        parent, _, name = path.rpartition(b"/")
        if parent != known[0]:
            known = (parent, lower.find(top + b"/" + parent if top else parent))
        ref = lower.child(known[1], name) if known[1] is not None else None
        file = lower.git_file(ref) if ref is not None else None
        if ref is None or file is None or file.entry.oid != oid:
            return None  # a patch or an edit has made it another file: git has to see that
        attr: Attr | None = lower.attr(ref, fetch=False)
        if attr is not None and attr.unsized:
            try:
                file.space.reader.header(oid)
            except ObjectMissing:
                return None
            attr = _attr_now(lower, ref)
        return None if attr is None else IndexStat(attr.size, attr.mtime_ns)

    return stat_of


def _attr_now(lower: GitFiles, ref: LowerRef) -> Attr | None:
    """The attributes, having done what they wait for; None if that does not help."""
    for _ in range(_JOBS_MAX):
        try:
            return lower.attr(ref, fetch=True)
        except Blocked as blocked:
            try:
                blocked.job()
            except OSError:
                return None
    return None


class _CachedTree:
    """One record of the TREE extension: git need not look below a directory that is as its tree says."""

    __slots__ = ("count", "name", "oid", "subtrees", "valid")

    def __init__(self, oid: bytes, valid: bool) -> None:
        self.name = b""
        self.oid = oid
        self.count = 0
        self.subtrees = 0
        self.valid = valid

    def encode(self) -> bytes:
        if not self.valid:
            return b"%b\0-1 %d\n" % (self.name, self.subtrees)
        return b"%b\0%d %d\n%b" % (self.name, self.count, self.subtrees, self.oid)


class _Walk:
    """A directory being walked: what is left of it."""

    __slots__ = ("cached", "entries", "prefix")

    def __init__(self, prefix: bytes, oid: bytes, reader: Objects) -> None:
        entries = reader.read_tree(oid)
        shown, refused = visible(entries)
        self.prefix = prefix
        self.entries = iter(sorted(shown, key=tree_sort_key))
        # What is not shown is not in the index, nor is an empty tree: then git must look for itself.
        self.cached = _CachedTree(oid, bool(entries) and not refused and shown == entries)


class IndexEntry(NamedTuple):
    """One entry of an index file, as far as its stat data and place go."""

    path: bytes
    mode: int
    oid: bytes
    size: int
    mtime_s: int
    stage: int


def parse_index(content: bytes) -> list[IndexEntry]:
    """The entries of an index of version 2 (or 3). ClivefsError for any other and for a damaged one."""
    if len(content) < 32 or sha1(content[:-20], usedforsecurity=False).digest() != content[-20:]:
        raise ClivefsError("the index is damaged", remedy="Remove it and run `git reset`.")
    signature, version, count = _HEADER.unpack_from(content)
    if signature != b"DIRC" or version not in (2, 3):
        raise ClivefsError(f"the index has version {version}, which is not read here")
    entries: list[IndexEntry] = []
    offset = _HEADER.size
    for _ in range(count):
        fields = _STAT.unpack_from(content, offset)
        start = offset + _STAT.size
        flags = fields[11]
        if version == 3 and flags & 0x4000:
            start += 2
        end = content.index(b"\0", start)
        entries.append(IndexEntry(content[start:end], fields[6], fields[10], fields[9], fields[2], flags >> 12 & 3))
        offset += (end - offset) // 8 * 8 + 8
    return entries
