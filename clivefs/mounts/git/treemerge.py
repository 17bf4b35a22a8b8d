"""Three-way merges of git trees, file by file, as data: what is clean is in the merged tree, the rest is told.

Directories that two of the three have alike are not looked into. Text is merged as stock `git merge-file` does it: most
of it in this process (`objects.textmerge`), the rest by git itself. A file that one side moved (the same or similar
content under a new name) meets the other side's changes at the new name.
"""

from __future__ import annotations

import difflib
import enum
import os
import stat
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import Difference, TreeEditor, Version, differences
from clivefs.mounts.patch.hunks import split_lines
from clivefs.objects.encode import hash_object
from clivefs.objects.interface import ObjectStore
from clivefs.objects.textmerge import MergedText, merge_in_process

T = TypeVar("T")

SIMILARITY_MIN = 0.5
_RENAME_CANDIDATES_MAX = 200
_SIMILARITY_BYTES_MAX = 1 << 20
_BINARY_LOOK_BYTES = 8000
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


@dataclass(frozen=True, slots=True)
class Merge:
    """The merged tree, and what of it is to be looked at."""

    tree: bytes
    conflicts: tuple[Conflict, ...]
    renames: tuple[tuple[bytes, bytes], ...] = ()
    """(old, new) names that were followed."""


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
) -> Merge:
    """*ours* with what happened between *base* and *theirs*. New objects go to *store*, durable.

    *reader* has the objects of all three and of *store*; *scratch* is a directory for temporary files. Moved files
    are followed if *renames*. ObjectMissing.
    """
    if base == theirs or ours == theirs:
        return Merge(ours, ())
    if base == ours:
        return Merge(theirs, ())
    with store.batch() as batch:
        work = _Merging(reader, base, ours, theirs, scratch, labels or Labels())
        work.run(renames)
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

    def run(self, renames: bool) -> None:
        """Merge. Afterwards `editor`, `blobs`, `conflicts` and `renames` have the result."""
        if renames:
            self._follow_renames()
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

    def _follow_renames(self) -> None:
        """Let a file that one side moved be at its new name on both, where the other side changed it."""
        for mine, others in ((self._theirs, self._ours), (self._ours, self._theirs)):
            gone = [
                path
                for path, change in mine.items()
                if change.after is None and path in others and others[path].after is not None
            ]
            added = [path for path, change in mine.items() if change.before is None and path not in others]
            for path in sorted(gone)[:_RENAME_CANDIDATES_MAX]:
                target = self._renamed(mine[path].before, [(each, mine[each].after) for each in sorted(added)])
                if target is None:
                    continue
                added.remove(target)
                self.renames.append((path, target))
                self._move(path, target, mine, others)

    def _move(self, path: bytes, target: bytes, mine: dict[bytes, Difference], others: dict[bytes, Difference]) -> None:
        """As if *path* had always been called *target*."""
        before = mine[path].before
        changed = others.pop(path).after
        moved = mine.pop(path)
        mine[target] = Difference(target, before, mine[target].after)
        others[target] = Difference(target, before, changed)
        assert moved.after is None
        # The editor stands on ours: what it has under the old name goes.
        self.editor.remove(path)

    def _renamed(self, before: Version | None, added: Iterable[tuple[bytes, Version | None]]) -> bytes | None:
        """Which of *added* is the file *before*: the same content, else the most similar of at least half. A symlink is
        followed only where its target is the same."""
        if before is None:
            return None
        if not _is_regular(before):
            return next((path for path, version in added if version == before), None)
        candidates = [(path, version) for path, version in added if version is not None and _is_regular(version)]
        for path, version in candidates:
            if version.oid == before.oid:
                return path
        best: bytes | None = None
        best_ratio = SIMILARITY_MIN
        content = self._lines(before)
        for path, version in candidates[:_RENAME_CANDIDATES_MAX]:
            ratio = _similarity(content, self._lines(version), best_ratio)
            if ratio >= best_ratio and (best is None or ratio > best_ratio):
                best, best_ratio = path, ratio
        return best

    def _lines(self, version: Version) -> list[bytes]:
        if self._reader.header(version.oid)[1] > _SIMILARITY_BYTES_MAX:
            return []
        content = blob_content(self._reader, version.oid)
        return [] if is_binary(content) else split_lines(content)


def _similarity(one: list[bytes], two: list[bytes], least: float) -> float:
    if not one or not two:
        return 0.0
    matcher = difflib.SequenceMatcher(None, one, two, autojunk=False)
    if matcher.real_quick_ratio() < least or matcher.quick_ratio() < least:
        return 0.0
    return matcher.quick_ratio()


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
