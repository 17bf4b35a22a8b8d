"""What a fork brings back into the live view, as a plan. Pure: states and objects in, a list of files out.

Files are merged as `overlay rebase` merges them (`git.treemerge`). What a git tree does not hold (permission bits,
empty directories, pipes, extended attributes) goes over where the live view has it as it was.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from clivefs.mounts.applying import Wanted
from clivefs.mounts.edits.plan import aside_names
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.treeeditor import TreeEditor, Version, differences
from clivefs.mounts.git.treemerge import Conflict, Labels, is_binary, merge_text, merge_trees
from clivefs.mounts.git.trees import ST_MODES
from clivefs.mounts.points.compare import Differs, File, State, compare, file_at
from clivefs.objects.encode import MODE_GITLINK
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore

_MERGED_BYTES_MAX = 4 << 20
"""Larger files that both have changed are called a conflict without a try."""


class Put(NamedTuple):
    """What is to be at a path of the live view."""

    wanted: Wanted
    oid: bytes | None = None
    """The blob of a file or a symlink."""


class MergePlan(NamedTuple):
    """What a merge does. Nothing of it has been done; the objects that it names are in the store."""

    puts: tuple[Put, ...]
    changes: tuple[tuple[bytes, str], ...]
    """Each path of `puts` that is no directory with A, M or D: what happens to it in the live view."""
    conflicts: tuple[tuple[Conflict, tuple[bytes, ...]], ...]
    """Each with the names that its versions are put under, beside it."""
    new: tuple[bytes, ...]
    """Paths of files where nothing is recorded, or a pipe of the live view's own: nothing may be there."""


Changes = Mapping[bytes, Differs]
"""By path."""


def changes(reader: JoinedObjects, before: State, after: State) -> Changes:
    """What differs between two states, directories and special files too. ObjectMissing."""
    return {each.path: each for each in compare(reader, before, after)}


def _read_by_merge(one: Changes, two: Changes) -> Iterator[bytes]:
    """The blobs that a merge looks into: of files that both have changed, and of those that may have been moved."""
    for mine, others in ((one, two), (two, one)):
        moved = any(each.before is None for each in mine.values())
        for path, each in mine.items():
            if path in others or (moved and each.after is None):
                yield from (file.oid for file in (each.before, each.after) if file is not None and file.oid is not None)


def both_wrote(one: Changes, two: Changes) -> list[bytes]:
    """The paths that both have changed, also where one has a file and the other something below it. That both wrote the
    same is no excuse: who counts up from a number that another has counted up as well must hear of it. Making, changing
    or removing one directory in both is none of these."""
    if not one or not two:
        return []
    found = {path for path in one.keys() & two.keys() if not _is_directory_in_both(one[path], two[path])}
    for mine, others in ((one, two), (two, one)):
        files = {path for path, each in others.items() if _is_file(each.after)}
        found.update(path for path, each in mine.items() if each.after is not None and _below(path, files))
    return sorted(found)


def conflicting(reader: JoinedObjects, one: Changes, two: Changes, scratch: str) -> list[bytes]:
    """The paths of `both_wrote` that do not merge by themselves: a merge would need a person."""
    return [path for path in both_wrote(one, two) if not _merges(reader, one.get(path), two.get(path), scratch)]


def foretold(
    reader: JoinedObjects, base: State, one: State, two: State, changed: tuple[Changes, Changes], scratch: str
) -> list[bytes]:
    """As `conflicting`, of two that stand on the same *base*, which *changed* is against. A file that is gone on one
    side may have been moved: then all is merged as it will be, to nowhere, as only that follows moved files."""
    paths = conflicting(reader, *changed, scratch)
    if not any(each.after is None for mine in changed for path in paths if (each := mine.get(path)) is not None):
        return paths
    merge = merge_trees(reader, MemoryStore(), base.tree, one.tree, two.tree, scratch=scratch)
    return [conflict.path for conflict in merge.conflicts]


def _merges(reader: JoinedObjects, one: Differs | None, two: Differs | None, scratch: str) -> bool:
    if one is None or two is None:
        return False
    if _are_alike(one.after, two.after):
        return True
    if one.before is None:
        return False
    files = (one.after, one.before, two.after)
    contents: list[bytes] = []
    for file in files:
        if file is None or file.oid is None or not stat.S_ISREG(file.mode):
            return False
        if reader.header(file.oid)[1] > _MERGED_BYTES_MAX:
            return False
        contents.append(blob_content(reader, file.oid))
    if any(is_binary(content) for content in contents):
        return False
    ours, base, theirs = contents
    return merge_text(ours, base, theirs, scratch, Labels()).clean


def _are_alike(one: File | None, other: File | None) -> bool:
    if one is None or other is None:
        return one is other
    return one.same_as(other)


def _is_directory_in_both(one: Differs, other: Differs) -> bool:
    if one.after is None and other.after is None:
        return not _is_file(one.before)
    return all(each is not None and stat.S_ISDIR(each.mode) for each in (one.after, other.after))


def _is_file(file: File | None) -> bool:
    return file is not None and not stat.S_ISDIR(file.mode)


def _below(path: bytes, files: set[bytes]) -> bool:
    """Whether a directory on the way to *path* is one of *files*."""
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        if path in files:
            return True
    return False


def plan_merge(
    reader: JoinedObjects,
    store: ObjectStore,
    *,
    base: State,
    ours: State,
    theirs: State,
    labels: Labels,
    scratch: str,
    taken: Callable[[bytes], bool] = lambda path: False,
) -> MergePlan:
    """The plan of bringing what happened between *base* and *theirs* into *ours*.

    *taken*: whether the live view has something at a path, recorded or not. *scratch*: a directory for temporary
    files. ObjectMissing. What was never read of a lazy source is fetched: ClivefsError where that cannot be.
    """
    changed, changed_live = changes(reader, base, theirs), changes(reader, base, ours)
    reader.want(_read_by_merge(changed, changed_live))
    merge = merge_trees(reader, store, base.tree, ours.tree, theirs.tree, scratch=scratch, labels=labels)
    live = _Live(reader, ours, changed_live)
    puts: dict[bytes, Put] = {}
    told: list[tuple[bytes, str]] = []
    new: list[bytes] = []
    for path, before, after in differences(reader, ours.tree, merge.tree):
        if after is None:
            puts[path] = Put(Wanted(path, 0))
        elif after.mode != MODE_GITLINK:
            puts[path] = _file(path, after, changed.get(path), live)
        else:
            continue
        now = live.file(path)
        if before is None and (now is None or not (stat.S_ISDIR(now.mode) or live.is_as_before(path))):
            new.append(path)
        told.append((path, "A" if now is None else "D" if after is None else "M"))
    for path, differs in changed.items():
        if path in puts or any(path == each.path for each in merge.conflicts):
            continue
        put = _beside_git(differs, live)
        if put is not None:
            puts[path] = put
            now = live.file(path)
            if now is None:
                new.append(path)
            told.append((path, "A" if now is None else "D" if not put.wanted.mode else "M"))
    conflicts = []
    editor = TreeEditor(reader, merge.tree)
    for conflict in merge.conflicts:
        beside = _beside(conflict, editor, taken)
        puts |= {put.wanted.path: put for put in beside}
        conflicts.append((conflict, tuple(put.wanted.path for put in beside)))
    return MergePlan(
        tuple(puts[path] for path in sorted(puts)),
        tuple(sorted(told)),
        tuple(conflicts),
        tuple(new),
    )


class _Live:
    """What the live view has."""

    def __init__(self, reader: JoinedObjects, state: State, changed: Changes) -> None:
        self._reader = reader
        self._state = state
        self._changed = changed

    def file(self, path: bytes) -> File | None:
        return file_at(self._reader, self._state, path)

    def is_as_before(self, path: bytes) -> bool:
        """Whether it has at *path* what the base has."""
        return path not in self._changed


def _file(path: bytes, version: Version, theirs: Differs | None, live: _Live) -> Put:
    """A file that the merged tree has otherwise than the live view."""
    kind_and_mode = ST_MODES[version.mode]
    now = live.file(path)
    file = theirs.after if theirs is not None else None
    ours_too = theirs is not None and theirs.before is not None and now is not None and now.mode != theirs.before.mode
    if ours_too or file is None or file.oid is None or not _goes_with(file.mode, kind_and_mode):
        file = now
    if file is None or not _goes_with(file.mode, kind_and_mode):
        return Put(Wanted(path, kind_and_mode), version.oid)
    facts = file.facts
    uid, gid, xattrs = (facts.uid, facts.gid, facts.xattrs) if facts is not None else (None, None, ())
    return Put(Wanted(path, file.mode, None, uid, gid, xattrs), version.oid)


def _goes_with(mode: int, git_mode: int) -> bool:
    """Whether a file of *mode* is what git calls *git_mode*."""
    return stat.S_IFMT(mode) == stat.S_IFMT(git_mode) and bool(mode & 0o100) == bool(git_mode & 0o100)


def _beside_git(differs: Differs, live: _Live) -> Put | None:
    """A change that the trees do not show: of a directory, a special file, permissions, attributes."""
    path, before, after = differs
    now = live.file(path)
    if after is None:
        if before is None or now is None or not live.is_as_before(path) or not _outside_git(before):
            return None
        return Put(Wanted(path, 0))
    if not _outside_git(after) and (before is None or before.oid != after.oid):
        return None  # the merged tree has said what is there
    if now is None:
        if before is not None or not _outside_git(after):
            return None  # the live view has removed it
    elif now.same_as(after) or not (live.is_as_before(path) or _are_directories(now, after)):
        return None
    if stat.S_IFMT(after.mode) in (stat.S_IFCHR, stat.S_IFBLK):
        return None
    facts = after.facts
    uid, gid, xattrs = (facts.uid, facts.gid, facts.xattrs) if facts is not None else (None, None, ())
    return Put(Wanted(path, after.mode, None, uid, gid, xattrs), after.oid)


def _are_directories(one: File, other: File) -> bool:
    return stat.S_ISDIR(one.mode) and stat.S_ISDIR(other.mode)


def _outside_git(file: File) -> bool:
    return file.oid is None


def _beside(conflict: Conflict, editor: TreeEditor, taken: Callable[[bytes], bool]) -> list[Put]:
    """`FILE.orig`, `.ours` and `.theirs`, as far as there is such a version, where nothing is in the way."""
    plain = names = aside_names(conflict.path, editor)
    number = 0
    while any(taken(name) for name in names):
        number += 1
        names = [b"%b.%d" % (name, number) for name in plain]
    versions = (conflict.base, conflict.ours, conflict.theirs)
    return [
        Put(Wanted(name, ST_MODES[version.mode]), version.oid)
        for name, version in zip(names, versions, strict=True)
        if version is not None and version.mode != MODE_GITLINK
    ]
