"""What happened between points: which files differ, which points changed a path, when a text came or went."""

from __future__ import annotations

import stat
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from clivefs.mounts.edits.diff import Changed
from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.treeeditor import Version, differences
from clivefs.mounts.points.compare import NOTHING, Differs, File, State, change_status, compare
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.metadata import RECORDS
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.objects.encode import EMPTY_TREE, MODE_GITLINK, MODE_TREE, TreeEntry
from clivefs.objects.errors import ObjectMissing

_SLASH = ord("/")
_PAGE = 256
_TREES_MAX = 4096
_WANTED_MAX = 500
"""Files whose content is asked for at once."""


class AtPath(NamedTuple):
    """What a tree has at a path: git's mode and the object."""

    mode: int
    oid: bytes

    @property
    def is_tree(self) -> bool:
        return self.mode == MODE_TREE


class PathFinder:
    """Looks paths up in trees. Trees that were read last are kept: neighbouring points share most of theirs."""

    def __init__(self, reader: JoinedObjects) -> None:
        self.reader = reader
        self._trees: OrderedDict[bytes, dict[bytes, TreeEntry]] = OrderedDict()

    def find(self, tree: bytes, path: bytes) -> AtPath | None:
        """What *tree* has at *path* (b"" is itself), or None. ObjectMissing."""
        found = AtPath(MODE_TREE, tree)
        for name in path.split(b"/") if path else ():
            entry = self._entries(found.oid).get(name) if found.is_tree else None
            if entry is None:
                return None
            found = AtPath(entry.mode, entry.oid)
        return found

    def entries(self, tree: bytes, path: bytes) -> dict[bytes, TreeEntry]:
        """What *tree* has in the directory at *path*, by name; nothing where it has none. ObjectMissing."""
        found = self.find(tree, path)
        return self._entries(found.oid) if found is not None and found.is_tree else {}

    def _entries(self, tree: bytes) -> dict[bytes, TreeEntry]:
        known = self._trees.get(tree)
        if known is None:
            entries = () if tree == EMPTY_TREE else self.reader.read_tree(tree)
            known = self._trees[tree] = {entry.name: entry for entry in entries}
            if len(self._trees) > _TREES_MAX:
                self._trees.popitem(last=False)
        else:
            self._trees.move_to_end(tree)
        return known


class Difference(NamedTuple):
    """A path that two states do not have alike; None where there is no file."""

    path: bytes
    before: Version | None
    after: Version | None

    @property
    def status(self) -> str:
        """See `change_status`."""
        return change_status(
            self.before.mode if self.before is not None else None, self.after.mode if self.after is not None else None
        )


def differences_at(reader: JoinedObjects, before: bytes, after: bytes, path: bytes = b"") -> Iterator[Difference]:
    """The files at and below *path* that differ between two trees, sorted by path within a directory's reading."""
    finder = PathFinder(reader)
    old, new = finder.find(before, path), finder.find(after, path)
    if old == new:
        return
    if (old is not None and not old.is_tree) or (new is not None and not new.is_tree):
        yield Difference(path, _version(old), _version(new))
    one = old.oid if old is not None and old.is_tree else EMPTY_TREE
    two = new.oid if new is not None and new.is_tree else EMPTY_TREE
    prefix = path + b"/" if path else b""
    for name, left, right in differences(reader, one, two):
        yield Difference(prefix + name, left, right)


def _version(found: AtPath | None) -> Version | None:
    return Version(found.mode, found.oid) if found is not None and not found.is_tree else None


def beside_patch(reader: JoinedObjects, before: State, after: State, path: bytes = b"") -> list[Differs]:
    """What differs at and below *path* that git has no patch for: other permissions and attributes, directories with
    nothing in them, pipes."""
    found = list(compare(reader, before, after, path))
    above = {each.path[:at] for each in found for at, byte in enumerate(each.path) if byte == _SLASH}
    return [each for each in found if _in_git(each.before) == _in_git(each.after) and not _follows(each, above)]


def _follows(differs: Differs, above: set[bytes]) -> bool:
    """Whether it is a directory that came or went with what is told of it; *above*: all that has something in it."""
    return (differs.before is None or differs.after is None) and differs.path in above


def _in_git(file: File | None) -> tuple[bytes, int, bool] | None:
    """What git knows of a file."""
    if file is None or file.oid is None:
        return None
    return file.oid, stat.S_IFMT(file.mode), bool(file.mode & stat.S_IXUSR)


def with_content(reader: JoinedObjects, differences: Iterator[Difference]) -> Iterator[Changed]:
    """The same with the files' content, for `edits.diff.patch_of`; submodules are left out. What was never read is
    fetched."""
    while some := list(islice(differences, _WANTED_MAX)):
        reader.want(
            version.oid
            for _, *versions in some
            for version in versions
            if version is not None and version.mode != MODE_GITLINK
        )
        for path, before, after in some:
            yield Changed(path, _file(reader, before), _file(reader, after))


def _file(reader: JoinedObjects, version: Version | None) -> FileVersion | None:
    if version is None or version.mode == MODE_GITLINK:
        return None
    return FileVersion(version.mode, blob_content(reader, version.oid))


class Step(NamedTuple):
    """A point and the one before it."""

    point: Point
    before: Point | None


def states(step: Step) -> tuple[State, State]:
    """What was before the point, and what was then."""
    point, before = step
    return State(before.tree, before.meta) if before is not None else NOTHING, State(point.tree, point.meta)


def steps(points: Points, *, start_ms: int = 0, end_ms: int = MS_MAX) -> Iterator[Step]:
    """The points from the newest at *end_ms* to the oldest at *start_ms*, each with the one before it in time."""
    newer: Point | None = None
    for found in _newest_first(points, end_ms):
        point = points.load(found.oid)
        if newer is not None:
            yield Step(newer, point)
            newer = None
        if point.ms < start_ms:
            return
        newer = point
    if newer is not None:
        yield Step(newer, None)


def _newest_first(points: Points, end_ms: int) -> Iterator[IndexedPoint]:
    while True:
        page = points.between(0, end_ms, reverse=True, limit=_PAGE)
        yield from page
        if len(page) < _PAGE:
            return
        end_ms = page[-1].ms - 1


def changed_at(
    points: Points, reader: JoinedObjects, path: bytes, *, start_ms: int = 0, end_ms: int = MS_MAX
) -> Iterator[Step]:
    """The points that changed what is at *path*, be it only permissions or attributes, newest first; all of them for
    b"".

    A point names the paths that it changed; only one that names no path at or below *path*, and no more than it names,
    is passed over without a look into its tree.
    """
    finder = PathFinder(reader)
    for step in steps(points, start_ms=start_ms, end_ms=end_ms):
        point, before = step
        if not path:
            yield step
            continue
        if before is not None and not point.more_paths and not any(_related(each, path) for each in point.paths):
            continue
        was, now = states(step)
        if finder.find(was.tree, path) != finder.find(now.tree, path) or _recorded_otherwise(finder, was, now, path):
            yield step


def _recorded_otherwise(finder: PathFinder, was: State, now: State, path: bytes) -> bool:
    """Whether what git does not know of a path has changed. Looked into only where the metadata around it has, which
    may be for its neighbours, or a time."""
    if _recorded_of(finder, was, path) == _recorded_of(finder, now, path):
        return False
    return next(compare(finder.reader, was, now, path), None) is not None


def _recorded_of(finder: PathFinder, state: State, path: bytes) -> tuple[AtPath | None, AtPath | None]:
    """What the metadata has for the directory that *path* lies in, and for what is below *path*."""
    if state.meta is None:
        return None, None
    *above, name = [b"=" + each for each in path.split(b"/")]
    return (
        finder.find(state.meta, b"/".join([*above, RECORDS])),
        finder.find(state.meta, b"/".join([*above, name])),
    )


def _related(one: bytes, other: bytes) -> bool:
    """One of the paths is the other, or above it."""
    return one == other or one.startswith(other + b"/") or other.startswith(one + b"/") or not one


def content_changes(
    points: Points, reader: JoinedObjects, path: bytes, text: bytes
) -> Iterator[tuple[Step, bytes, bool]]:
    """The points at which a file at or below *path* began or ceased to hold *text*, newest first: (step, the file's
    path, whether it holds it from then on). A blob is searched once."""
    holds: dict[bytes, bool] = {}

    def has(version: Version | None) -> bool:
        if version is None or version.mode == MODE_GITLINK:
            return False
        if version.oid not in holds:
            try:
                holds[version.oid] = text in blob_content(reader, version.oid)
            except ObjectMissing:
                holds[version.oid] = False
        return holds[version.oid]

    for step in changed_at(points, reader, path):
        old = step.before.tree if step.before is not None else EMPTY_TREE
        for difference in sorted(differences_at(reader, old, step.point.tree, path)):
            after = has(difference.after)
            if has(difference.before) != after:
                yield step, difference.path, after
