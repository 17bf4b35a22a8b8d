"""What a fork brings back into the live view, as a plan. Pure: states and objects in, a list of files out.

Files are merged as `overlay rebase` merges them (`git.treemerge`). What a git tree does not hold (permission bits,
owners, extended attributes, empty directories, pipes) goes over where the live view has it as it was, each by itself.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

from clivefs.mounts.edits.plan import aside_names
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.treeeditor import TreeEditor, Version, differences
from clivefs.mounts.git.treemerge import Conflict, Labels, Touched, is_binary, merge_text, merge_trees
from clivefs.mounts.git.trees import ST_MODES
from clivefs.mounts.points.compare import Differs, File, Links, State, compare
from clivefs.mounts.steps import Wanted
from clivefs.objects.encode import MODE_GITLINK
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore

T = TypeVar("T")

_MERGED_BYTES_MAX = 4 << 20
"""Larger files that both have changed are called a conflict without a try."""


class Put(NamedTuple):
    """What is to be at a path of the live view."""

    wanted: Wanted
    oid: bytes | None = None
    """The blob of a file or a symlink."""

    def as_new(self) -> Put:
        """The same where nothing may be."""
        return self._replace(wanted=self.wanted._replace(is_new=True))


class MergePlan(NamedTuple):
    """What a merge does. Nothing of it has been done; the objects that it names are in the store."""

    puts: tuple[Put, ...]
    changes: tuple[tuple[bytes, str], ...]
    """Each path of `puts` that is no directory with A, M or D: what happens to it in the live view."""
    conflicts: tuple[tuple[Conflict, tuple[bytes, ...]], ...]
    """Each with the names that its versions are put under, beside it."""


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
    if not any(each.after is None for path in both_wrote(*changed) for mine in changed if (each := mine.get(path))):
        return conflicting(reader, *changed, scratch)
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
    merge = merge_trees(
        reader,
        store,
        base.tree,
        ours.tree,
        theirs.tree,
        scratch=scratch,
        labels=labels,
        touched=_touched(changed_live, changed),
    )
    sides = _Sides(changed_live, changed, merge.renames)
    puts: dict[bytes, Put] = {}
    told: list[tuple[bytes, str]] = []
    for path, before, after in differences(reader, ours.tree, merge.tree):
        if after is None:
            puts[path] = Put(Wanted(path, 0, had_links=sides.had_links(path)))
        elif after.mode != MODE_GITLINK:
            puts[path] = _file(path, after, sides)
        else:
            continue
        now = sides.live(path)
        if before is None and (now is None or not (stat.S_ISDIR(now.mode) or sides.is_as_before(path))):
            puts[path] = puts[path].as_new()  # nothing is recorded there, or a pipe of the live view's own
        told.append((path, "A" if now is None else "D" if after is None else "M"))
    conflicting_paths = {each.path for each in merge.conflicts}
    for path, differs in changed.items():
        if path in puts or path in conflicting_paths:
            continue
        put = _beside_git(differs, sides)
        if put is not None and put.wanted.path not in puts:
            path = put.wanted.path
            now = sides.live(path)
            puts[path] = put if now is not None else put.as_new()
            told.append((path, "A" if now is None else "D" if not put.wanted.mode else "M"))
    for put in _other_names(reader, base, theirs, puts, changed, changed_live):
        puts[put.wanted.path] = put
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
    )


def _other_names(
    reader: JoinedObjects, base: State, theirs: State, puts: Mapping[bytes, Put], changed: Changes, live: Changes
) -> Iterator[Put]:
    """The files that neither has changed, but which are one file with something of *puts* in the fork."""
    numbers = {put.wanted.link for put in puts.values()} - {0}
    if not numbers:
        return
    links = Links(reader, base, theirs)
    for path in sorted(path for number in numbers for path in links.after[number]):
        _, before, file = links.files[path]
        if file is not None and path not in puts and path not in changed and path not in live:
            wanted = _dressed(path, file.mode, before, file, file)
            had_links = before is not None and before.link != 0
            yield Put(wanted._replace(link=file.link, had_links=had_links), file.oid)


def _touched(one: Changes, two: Changes) -> Touched:
    """The files of git's that each side changed and has still, be it in what git does not hold."""
    mine, others = (
        {path for path, each in side.items() if each.before is not None and each.after is not None}
        for side in (one, two)
    )
    return Touched(mine, others)


class _Sides:
    """What base, live view and fork have at a path; of a file that one of them has moved, under either name."""

    def __init__(self, live: Changes, fork: Changes, renames: Iterable[tuple[bytes, bytes]]) -> None:
        """The changes of both, against the base."""
        self._live = live
        self._fork = fork
        self._old = {new: old for old, new in renames}
        self._new = dict(renames)

    def is_as_before(self, path: bytes) -> bool:
        """Whether the live view has at *path* what the base has."""
        return path not in self._live

    def base(self, path: bytes) -> File | None:
        """Of a path that one of them has changed; so of the next two. Submodules are none."""
        changed = self._fork.get(path) or self._live.get(path)
        return changed.before if changed is not None else None

    def live(self, path: bytes) -> File | None:
        return self._live[path].after if path in self._live else self.base(path)

    def fork(self, path: bytes) -> File | None:
        return self._fork[path].after if path in self._fork else self.base(path)

    def had_links(self, path: bytes) -> bool:
        """Whether the live view's file at *path* has other names."""
        now = self.live(path)
        return now is not None and now.link != 0

    def now_at(self, path: bytes) -> bytes:
        """Where the live view has what was at *path*, as far as it has it."""
        return self._new.get(path, path)

    def all(self, path: bytes) -> tuple[File | None, File | None, File | None]:
        """Base, live view and fork of what is merged at *path*."""
        old = self._old.get(path)
        if old is None:
            return self.base(path), self.live(path), self.fork(path)
        return self.base(old), self.live(path) or self.live(old), self.fork(path) or self.fork(old)


def _file(path: bytes, version: Version, sides: _Sides) -> Put:
    """A file that the merged tree has otherwise than the live view."""
    base, ours, theirs = sides.all(path)
    wanted = _dressed(path, ST_MODES[version.mode], base, ours, theirs)
    link = theirs.link if theirs is not None and theirs.oid == version.oid else 0
    return Put(wanted._replace(link=link, had_links=sides.had_links(path)), version.oid)


def _dressed(path: bytes, git_mode: int, base: File | None, ours: File | None, theirs: File | None) -> Wanted:
    """A file of that kind, executable or not, with permissions, owner and attributes merged."""
    files = [each for each in (ours, theirs) if each is not None]
    if base is not None and ours is not None and ours.mode == base.mode:
        files.reverse()
    mode = next((each.mode for each in files if _goes_with(each.mode, git_mode)), git_mode)
    owner = _merged(*(each.owner if each is not None else None for each in (base, ours, theirs))) or (None, None)
    known = [each.facts if each is not None else None for each in (base, ours, theirs)]
    before, mine, others = (dict(facts.xattrs) if facts is not None else {} for facts in known)
    if ours is None or theirs is None:
        xattrs = mine or others
    else:
        names = sorted({*mine, *others})
        merged = {name: _merged(before.get(name), mine.get(name), others.get(name)) for name in names}
        xattrs = {name: value for name, value in merged.items() if value is not None}
    return Wanted(path, mode, None, owner[0], owner[1], tuple(sorted(xattrs.items())))


def _merged(base: T | None, ours: T | None, theirs: T | None) -> T | None:
    """The three-way merge of values that may be missing; where both changed it, the live view's."""
    return theirs if ours == base or ours is None else ours


def _goes_with(mode: int, git_mode: int) -> bool:
    """Whether a file of *mode* is what git calls *git_mode*."""
    return stat.S_IFMT(mode) == stat.S_IFMT(git_mode) and bool(mode & 0o100) == bool(git_mode & 0o100)


def _beside_git(differs: Differs, sides: _Sides) -> Put | None:
    """A change that the trees do not show: of a directory, a special file, permissions, attributes."""
    path, before, after = differs
    if after is not None and not _outside_git(after):
        return _attributes(sides.now_at(path), sides)
    now = sides.live(path)
    if after is None:
        if before is None or now is None or not sides.is_as_before(path) or not _outside_git(before):
            return None
        return Put(Wanted(path, 0))
    if now is None:
        if before is not None:
            return None  # the live view has removed it
    elif now.same_as(after) or not (sides.is_as_before(path) or _are_directories(now, after)):
        return None
    if stat.S_IFMT(after.mode) in (stat.S_IFCHR, stat.S_IFBLK):
        return None
    base = before if before is not None and stat.S_IFMT(before.mode) == stat.S_IFMT(after.mode) else None
    return Put(_dressed(path, after.mode, base, now, after))


def _attributes(path: bytes, sides: _Sides) -> Put | None:
    """The live view's file at *path*, whose content stays, with what the fork changed about it."""
    base, now, theirs = sides.all(path)
    if now is None or theirs is None or now.oid is None or stat.S_IFMT(now.mode) != stat.S_IFMT(theirs.mode):
        return None
    wanted = _dressed(path, now.mode, base, now, theirs)
    wanted = wanted._replace(link=theirs.link if theirs.oid == now.oid else 0, had_links=now.link != 0)
    if wanted.link:
        return Put(wanted, now.oid)
    same_owner = None in (wanted.owner, now.owner) or wanted.owner == now.owner
    if same_owner and wanted.mode == now.mode and wanted.xattrs == (now.facts.xattrs if now.facts is not None else ()):
        return None
    return Put(wanted, now.oid)


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
        Put(Wanted(name, ST_MODES[version.mode], is_new=True), version.oid)
        for name, version in zip(names, versions, strict=True)
        if version is not None and version.mode != MODE_GITLINK
    ]
