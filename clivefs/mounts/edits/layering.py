"""The edits of an overlay as one more patch of its entry: which patch that is, and what of the upper can go then.

The upper keeps what a patch cannot say: permission bits beyond git's, owners, extended attributes, hard links, empty
directories, and files that somebody has open for writing.
"""

from __future__ import annotations

import stat
from collections.abc import Container, Generator, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.edits.diff import patch_of
from clivefs.mounts.edits.plan import RebasePlan, edited_tree, tree_changes
from clivefs.mounts.edits.write import is_written
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor
from clivefs.mounts.overlay.edits import OverlayChange
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.patch.apply import apply_patch
from clivefs.mounts.tree import Attr, Node, Owner
from clivefs.objects.interface import ObjectStore

_GIT_MODES = (0o644, 0o755)


class Layer(NamedTuple):
    """A patch of all edits, and the plan of standing on it."""

    patch: bytes
    plan: RebasePlan


def plan_layer(
    reader: Reader | JoinedObjects,
    store: ObjectStore,
    *,
    lower: bytes,
    edits: Mapping[bytes, FileVersion | None],
    name: str,
    scratch: str,
) -> Layer:
    """The patch *name* that makes of the tree *lower* what *edits* show. `plan.resets` are left to `goes`. ClivefsError
    where no patch can say it."""
    tree = edited_tree(reader, store, lower, edits)
    patch = patch_of(tree_changes(reader, lower, tree), scratch)
    if patch and apply_patch(reader, store, lower, name, patch).tree != tree:
        raise ClivefsError("these edits cannot be written as a patch", place=name)
    shown = TreeEditor(reader, tree)
    expected = {path: shown.get(path) for path in sorted(edits)}
    unchanged = frozenset(path for path, file in edits.items() if file is not None)
    plan = RebasePlan((), tree, tree, (), (), (), (), (), (), expected, unchanged, concerned=frozenset(edits))
    return Layer(patch, plan)


class Goes(NamedTuple):
    """What becomes of the edits of an overlay when they are in its lower layer."""

    resets: tuple[bytes, ...]
    """What is forgotten: these paths with all that is below them."""
    stays: tuple[bytes, ...]
    """What is not, as the lower layer cannot show it so."""
    times_ns: dict[bytes, int]
    """When the files and directories that are forgotten were modified."""


def goes(tree: OverlayTree, owner: Owner, kept: frozenset[bytes] = frozenset()) -> Generator[None, None, Goes]:
    """What of the upper can go, when its content is in the lower layer; *kept* is not. In steps, as in `write`."""
    changes: list[OverlayChange] = []
    stays: dict[bytes, None] = {}
    for change in tree.changes():
        changes.append(change)
        if change.path in kept or not _can_go(tree, change, owner):
            stays[change.path] = None
        yield
    emptied = {change.path.rpartition(b"/")[0] for change in changes if change.what == "deleted"}
    stays |= {path: None for path in emptied if path and _is_empty(tree, path)}
    held = {prefix for path in stays for prefix in _prefixes(path)}
    times: dict[bytes, int | None] = {}
    resets: dict[bytes, None] = {}
    for change in changes:
        yield
        if change.path in stays or change.path in held:
            continue
        resets[_topmost(change.path, held, stays)] = None
        if change.what != "deleted":
            times[change.path] = mtime_of(tree, change.path)
        head = change.path.rpartition(b"/")[0]
        if head not in times and head not in held and head not in stays:
            times[head] = mtime_of(tree, head)
    whole = (b"",) if not stays and resets else tuple(resets)
    return Goes(whole, tuple(stays), {path: time_ns for path, time_ns in times.items() if time_ns is not None})


def _can_go(tree: OverlayTree, change: OverlayChange, owner: Owner) -> bool:
    if change.what == "deleted":
        return True
    found = _look(tree, change.path)
    if found is None:
        return True
    node, attr = found
    if tree.listxattr(node) or (attr.uid, attr.gid) != owner:
        return False
    if change.kind == stat.S_IFLNK:
        return True
    mode = stat.S_IMODE(attr.mode)
    if change.kind == stat.S_IFDIR:
        return mode == 0o755 and bool(tree.names(node))
    return change.kind == stat.S_IFREG and mode in _GIT_MODES and attr.nlink == 1 and not is_written(tree, change.path)


def _look(tree: OverlayTree, path: bytes) -> tuple[Node, Attr] | None:
    node: Node = tree.root
    attr = tree.getattr(node)
    try:
        for name in path.split(b"/") if path else ():
            node, attr = tree.listed(node, name)
    except OSError:
        return None
    return node, attr


def _is_empty(tree: OverlayTree, path: bytes) -> bool:
    found = _look(tree, path)
    return found is not None and stat.S_ISDIR(found[1].mode) and not tree.names(found[0])


def mtime_of(tree: OverlayTree, path: bytes) -> int | None:
    """When the file or directory shown at *path* was modified, in ns."""
    found = _look(tree, path)
    return found[1].mtime_ns if found is not None else None


def _prefixes(path: bytes) -> Iterator[bytes]:
    """The directories above *path*, the lowest first; not the root."""
    head = path.rpartition(b"/")[0]
    while head:
        yield head
        head = head.rpartition(b"/")[0]


def _topmost(path: bytes, held: Container[bytes], stays: Container[bytes]) -> bytes:
    """The highest directory above *path*, or itself, in which nothing is *held*."""
    top = path
    for head in _prefixes(path):
        if head in held or head in stays:
            break
        top = head
    return top


# Which patterns name the patch


def names_it(patterns: Iterable[str], path: str) -> bool:
    """Whether one of the `patches` patterns already finds the file *path*."""
    return any(_matches(pattern.split("/"), path.split("/")) for pattern in patterns)


def _matches(pattern: Sequence[str], parts: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not pattern and not parts
    if pattern[0] == "**":
        deeper = not parts[0].startswith(".") and len(parts) > 1 and _matches(pattern, parts[1:])
        return deeper or _matches(pattern[1:], parts)
    if parts[0].startswith(".") and not pattern[0].startswith("."):
        return False
    return fnmatchcase(parts[0], pattern[0]) and _matches(pattern[1:], parts[1:])
