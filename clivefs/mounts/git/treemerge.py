"""Three-way merges of git trees, file by file, as data: what is clean is in the merged tree, the rest is told.

Directories that two of the three have alike are not looked into. Text is merged as stock `git merge-file` does it: most
of it in this process (`objects.textmerge`), the rest by git itself. A file that one side moved (the same or similar
content under a new name) meets the other side's changes at the new name. What both moved to one name is merged there;
where they gave it two, both stay, and that is told.
"""

from __future__ import annotations

import enum
import os
import stat
import tempfile
from collections.abc import Set
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.renames import renamed
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import Difference, TreeEditor, Version, differences
from clivefs.mounts.patch.hunks import split_lines
from clivefs.objects.encode import hash_object
from clivefs.objects.interface import ObjectStore
from clivefs.objects.textmerge import MergedText, merge_in_process

T = TypeVar("T")

_SIMILARITY_BYTES_MAX = 1 << 20
_BINARY_LOOK_BYTES = 8000
_EMPTY = hash_object("blob", b"")
_CONFLICTS_MAX = 127
"""`git merge-file` exits with the number of conflicts, this at most; more is a failure."""


class Labels(NamedTuple):
    """What the markers call the three."""

    base: str = "base"
    ours: str = "ours"
    theirs: str = "theirs"


class ConflictKind(enum.StrEnum):
    """Why a path could not be merged."""

    CONTENT = "content"
    """Both changed the same lines."""
    ADDED = "added by both"
    BINARY = "binary"
    DELETED_BY_OURS = "deleted by ours"
    """Ours deleted what theirs changed."""
    DELETED_BY_THEIRS = "deleted by theirs"
    MODE = "mode"
    TYPE = "type"
    """Symlink against file, file against directory, or two symlinks or submodules that differ."""
    RENAMED = "renamed by both"
    """To two names, which both are there."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A path that needs a person. The merged tree has `result` there, None: nothing."""

    path: bytes
    kind: ConflictKind
    base: Version | None
    ours: Version | None
    theirs: Version | None
    result: Version | None
    """With markers where `kind` is CONTENT or ADDED; else what ours has, or who did not delete it."""
    names: tuple[bytes, ...] = ()
    """Where `kind` is RENAMED what ours and theirs call it. The versions are there, and none is given here."""

    @property
    def why(self) -> str:
        """The kind, for people."""
        names = " and ".join(f"to {os.fsdecode(name)}" for name in self.names)
        return f"{self.kind}, {names}" if names else str(self.kind)


@dataclass(frozen=True, slots=True)
class Merge:
    """The merged tree, and what of it is to be looked at."""

    tree: bytes
    conflicts: tuple[Conflict, ...]
    renames: tuple[tuple[bytes, bytes], ...] = ()
    """(old, new) names that were followed."""


class Touched(NamedTuple):
    """Files that ours and theirs have changed otherwise than in kind, content or git's mode."""

    ours: Set[bytes]
    theirs: Set[bytes]


_UNTOUCHED = Touched(frozenset(), frozenset())


class _Sides(NamedTuple):
    base: Version | None
    ours: Version | None
    theirs: Version | None


def merge_trees(
    reader: Reader | JoinedObjects,
    store: ObjectStore,
    base: bytes,
    ours: bytes,
    theirs: bytes,
    *,
    scratch: str,
    labels: Labels | None = None,
    renames: bool = True,
    touched: Touched = _UNTOUCHED,
) -> Merge:
    """*ours* with what happened between *base* and *theirs*. New objects go to *store*, durable.

    *reader* has the objects of all three and of *store*; *scratch* is a directory for temporary files. Moved files
    are followed if *renames*, also those that the other side *touched* in ways that trees do not hold. ObjectMissing.
    """
    if ours == theirs or (base == theirs and not touched.theirs):
        return Merge(ours, ())
    if base == ours and not touched.ours:
        return Merge(theirs, ())
    with store.batch() as batch:
        work = _Merging(reader, base, ours, theirs, scratch, labels or Labels())
        work.run(touched if renames else None)
        for content in work.blobs:
            batch.blob(content)
        tree = work.editor.write(batch)
    conflicts = tuple(sorted(work.conflicts, key=lambda conflict: conflict.path))
    return Merge(tree, conflicts, tuple(sorted(work.renames)))


class _Merging:
    def __init__(
        self, reader: Reader | JoinedObjects, base: bytes, ours: bytes, theirs: bytes, scratch: str, labels: Labels
    ) -> None:
        self.editor = TreeEditor(reader, ours)
        self.conflicts: list[Conflict] = []
        self.renames: list[tuple[bytes, bytes]] = []
        self.blobs: list[bytes] = []
        self._reader = reader
        self._scratch = scratch
        self._labels = labels
        self._ours = {each.path: each for each in differences(reader, base, ours)}
        self._theirs = {each.path: each for each in differences(reader, base, theirs)}

    def run(self, touched: Touched | None) -> None:
        """Merge. Afterwards `editor`, `blobs`, `conflicts` and `renames` have the result. None: no moved files."""
        if touched is not None:
            self._follow_renames(touched)
        removals: list[bytes] = []
        puts: list[tuple[bytes, Version]] = []
        for path, theirs in sorted(self._theirs.items()):
            ours = self._ours.get(path)
            if ours is None or ours.after == theirs.after:
                result = theirs.after  # only theirs changed it, or both alike
            else:
                result = self.file(path, _Sides(theirs.before, ours.after, theirs.after))
            if result is None:
                removals.append(path)
            else:
                puts.append((path, result))
        for path in removals:
            self.editor.remove(path)
        for path, version in puts:
            self._put(path, version)

    def file(self, path: bytes, sides: _Sides) -> Version | None:
        """The merged file, where both sides changed it, not alike."""
        base, ours, theirs = sides
        if ours is None or theirs is None:
            kind = ConflictKind.DELETED_BY_OURS if ours is None else ConflictKind.DELETED_BY_THEIRS
            return self._conflict(path, kind, sides, ours or theirs)
        whole = _merged(base, ours, theirs)
        if whole is not None and stat.S_IFMT(ours.mode) == stat.S_IFMT(theirs.mode):
            return whole  # one side has only moved it
        if not (_is_regular(ours) and _is_regular(theirs)):
            return self._conflict(path, ConflictKind.TYPE, sides, ours)
        if base is not None and not _is_regular(base):
            base = None
        mode = _merged(base.mode if base else None, ours.mode, theirs.mode)
        oid = _merged(base.oid if base else None, ours.oid, theirs.oid)
        if oid is None:
            return self._text(path, sides, base, mode)
        if mode is None:
            return self._conflict(path, ConflictKind.MODE, sides, Version(ours.mode, oid))
        return Version(mode, oid)

    def _text(self, path: bytes, sides: _Sides, base: Version | None, mode: int | None) -> Version | None:
        ours, theirs = sides.ours, sides.theirs
        assert ours is not None
        assert theirs is not None
        contents = [blob_content(self._reader, each.oid) if each is not None else b"" for each in (base, ours, theirs)]
        if any(is_binary(content) for content in contents):
            return self._conflict(path, ConflictKind.BINARY, sides, ours)
        merged = merge_text(contents[1], contents[0], contents[2], self._scratch, self._labels)
        version = Version(mode if mode is not None else ours.mode, self._blob(merged.content))
        if merged.clean:
            return version if mode is not None else self._conflict(path, ConflictKind.MODE, sides, version)
        kind = ConflictKind.CONTENT if base is not None else ConflictKind.ADDED
        return self._conflict(path, kind, sides, version)

    def _conflict(self, path: bytes, kind: ConflictKind, sides: _Sides, result: Version | None) -> Version | None:
        self.conflicts.append(Conflict(path, kind, *sides, result))
        return result

    def _put(self, path: bytes, version: Version) -> None:
        """Put a file where theirs has one: a directory or file of ours can be in its way, and stays."""
        if self.editor.get(path) is None and (self.editor.is_directory(path) or self.editor.obstacle(path)):
            self.conflicts = [each for each in self.conflicts if each.path != path]
            change = self._theirs[path]
            self._conflict(path, ConflictKind.TYPE, _Sides(change.before, None, change.after), None)
            return
        self.editor.put(path, version)

    def _blob(self, content: bytes) -> bytes:
        oid = hash_object("blob", content)
        self.blobs.append(content)
        return oid

    # Moved files

    def _follow_renames(self, touched: Touched) -> None:
        """Let a file that one side moved, and the other changed, be at its new name on both; and so one that both moved
        to one name. Note what they moved to two."""
        ours, theirs = self._ours, self._theirs
        here = self._moved(ours, theirs, touched.theirs)
        there = self._moved(theirs, ours, touched.ours)
        for path in sorted(here.keys() & there.keys()):
            names = here[path], there[path]
            before = ours[path].before
            if before is None or before.oid == _EMPTY:
                continue  # files of nothing are alike without being moved
            if names[0] == names[1]:
                self.renames.append((path, names[0]))
                for each in (ours, theirs):
                    each[names[0]] = Difference(names[0], before, each[names[0]].after)
            elif names[0] not in theirs and names[1] not in ours:
                self.conflicts.append(Conflict(path, ConflictKind.RENAMED, None, None, None, None, names))
        for moved, mine, others in ((there, theirs, ours), (here, ours, theirs)):
            for path, target in sorted(moved.items()):
                if self.editor.is_directory(target) or self.editor.obstacle(target) is not None:
                    continue  # the move is a conflict of its own: what ours has stays where it is
                if target not in others and (path not in others or others[path].after is not None):
                    self.renames.append((path, target))
                    self._move(path, target, mine, others)

    def _moved(
        self, mine: dict[bytes, Difference], others: dict[bytes, Difference], touched: Set[bytes]
    ) -> dict[bytes, bytes]:
        """What one side moved of the files that the other has changed, *touched* or removed: new names by old."""
        gone = {path: each.before for path, each in mine.items() if each.after is None and each.before is not None}
        wanted = {path for path in gone if path in others or path in touched}
        if not wanted:
            return {}
        added = {
            path: each.after
            for path, each in mine.items()
            if each.before is None and each.after is not None
            if path not in others or others[path].after != each.after  # else both have added it
        }
        new = renamed(gone, added, self._lines, wanted=wanted)
        return {path: new[path] for path in wanted & new.keys()}

    def _move(self, path: bytes, target: bytes, mine: dict[bytes, Difference], others: dict[bytes, Difference]) -> None:
        """As if *path* had always been called *target*."""
        before = mine[path].before
        if path not in others:
            return  # git's part of it is the same: it goes with the move
        changed = others.pop(path).after
        moved = mine.pop(path)
        mine[target] = Difference(target, before, mine[target].after)
        others[target] = Difference(target, before, changed)
        assert moved.after is None
        # The editor stands on ours: what it has under the old name goes.
        self.editor.remove(path)

    def _lines(self, version: Version) -> list[bytes]:
        if self._reader.header(version.oid)[1] > _SIMILARITY_BYTES_MAX:
            return []
        content = blob_content(self._reader, version.oid)
        return [] if is_binary(content) else split_lines(content)


def _merged(base: T | None, ours: T, theirs: T) -> T | None:
    """The three-way merge of values; None where both changed it."""
    if ours == theirs or theirs == base:
        return ours
    return theirs if ours == base else None


def _is_regular(version: Version) -> bool:
    return stat.S_ISREG(version.mode)


def is_binary(content: bytes) -> bool:
    """As git decides it: a NUL among the first 8000 bytes."""
    return b"\0" in content[:_BINARY_LOOK_BYTES]


def merge_text(ours: bytes, base: bytes, theirs: bytes, scratch: str, labels: Labels) -> MergedText:
    """As `git merge-file` merges them. *scratch*: a directory for temporary files. GitFailed when git cannot run."""
    names = (os.fsencode(labels.ours), os.fsencode(labels.base), os.fsencode(labels.theirs))
    return merge_in_process(ours, base, theirs, names) or _merge_by_git((ours, base, theirs), names, scratch)


def _merge_by_git(contents: tuple[bytes, ...], labels: tuple[bytes, ...], scratch: str) -> MergedText:
    arguments: list[str | bytes] = ["merge-file", "-q"]
    for label in labels:
        arguments += ["-L", label]
    with tempfile.TemporaryDirectory(prefix="merge-", dir=scratch) as directory:
        names = ("ours", "base", "theirs")
        for name, content in zip(names, contents, strict=True):
            with open(os.path.join(directory, name), "wb") as file:
                file.write(content)
        clean = True
        try:
            GitCommand().run([*arguments, *names], cwd=directory, config=("merge.conflictStyle=merge",))
        except GitFailed as error:
            if not 0 < error.status <= _CONFLICTS_MAX:
                raise
            clean = False
        with open(os.path.join(directory, "ours"), "rb") as file:
            return MergedText(file.read(), clean)
