"""The edits of an overlay as a whole: what they are, forgetting them, and standing on another lower.

`reset` and `replace_lower` work while files are open: they keep a node where its content stays the same and take
the name from it otherwise, so that its holders keep what they opened and the name gets a new inode.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from clivefs.mounts.host.calls import chmod_at
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.copyup import directory_extra_mode
from clivefs.mounts.overlay.marks import Action, ActionKind, Edit, EditKind, Mark, MarkKind, split
from clivefs.mounts.overlay.node import OverlayNode, directory_only
from clivefs.mounts.overlay.nodes import OverlayNodes
from clivefs.mounts.overlay.settling import lower_at, lower_child, settle
from clivefs.mounts.overlay.upper import (
    WORK,
    PathFds,
    Upper,
    list_for_us,
    stat_for_us,
    tree_path,
    writable_for_us,
)

PRIVATE = b".git"
"""The mount's own file in the upper's root: no edit of the user."""


class OverlayChange(NamedTuple):
    """One path that the upper shows otherwise than the lower does."""

    path: bytes
    what: str
    """`added`, `modified` (also when it was only copied up), `replaced` by another kind, or `deleted`."""
    kind: int
    """S_IFMT bits of what is there now; of what was there, when it is deleted."""


class Affected(NamedTuple):
    """A name that may mean something else now: the kernel must forget it."""

    parent: OverlayNode
    name: bytes
    node: OverlayNode | None
    """Who had the name, if known."""
    was: bool = False
    """Something had the name, though it is not known who."""


# What they are


class _Level(NamedTuple):
    path: bytes
    in_upper: bool
    mark: Mark | None
    base: LowerRef | None
    """The lower directory at this very path: what the edits are against."""
    shown: LowerRef | None
    """The lower directory that shows through here, which for a renamed one is another."""


def changes(nodes: OverlayNodes) -> Iterator[OverlayChange]:
    """Every difference between the lower and what is shown, parents first, without `.git` in the root.

    Of an added or replaced directory everything in it is told, of a deleted one only itself. Fetches nothing.
    The tree must not change meanwhile.
    """
    upper = nodes.upper
    if upper is None:
        return
    fds = PathFds(upper.tree_fd)
    try:
        root = nodes.lower.root
        waiting = [_Level(b"", True, upper.root_mark, root, root)]
        while waiting:
            level = waiting.pop()
            found, inner = _level_changes(nodes, fds, level)
            yield from found
            waiting.extend(reversed(inner))
    finally:
        fds.close()


def _level_changes(nodes: OverlayNodes, fds: PathFds, level: _Level) -> tuple[list[OverlayChange], list[_Level]]:
    in_upper = dict(list_for_us(fds.open(level.path))) if level.in_upper else {}
    names = set(in_upper) | set((level.mark.children if level.mark else None) or ())
    if level.base is not level.shown:
        names |= _names(nodes.lower, level.base) | _names(nodes.lower, level.shown)
    if not level.path:
        names.discard(PRIVATE)
    found: list[OverlayChange] = []
    inner: list[_Level] = []
    for name in sorted(names):
        path = level.path + b"/" + name if level.path else name
        mark = level.mark.child(name) if level.mark else None
        base = nodes.candidate(level.base, name)
        plain = level.base is level.shown and (mark is None or mark.kind is MarkKind.INHERIT)
        behind = base if plain else nodes.marked(level.shown, name, mark)
        kind = in_upper.get(name, behind.kind if behind is not None else 0)
        found += _path_changes(nodes, fds, level, path, name in in_upper, kind, base, behind)
        if kind == stat.S_IFDIR:
            below = _Level(path, name in in_upper, mark, directory_only(base), directory_only(behind))
            if below.in_upper or below.mark or below.base is not below.shown:
                inner.append(below)
    return found, inner


def _path_changes(
    nodes: OverlayNodes,
    fds: PathFds,
    level: _Level,
    path: bytes,
    in_upper: bool,
    kind: int,
    base: LowerRef | None,
    behind: LowerRef | None,
) -> list[OverlayChange]:
    if not kind:
        return [OverlayChange(path, "deleted", base.kind)] if base is not None else []
    if base is None:
        return [OverlayChange(path, "added", kind)]
    if base.kind != kind:
        return [OverlayChange(path, "replaced", kind)]
    if kind == stat.S_IFDIR:
        if not in_upper:
            return []
        mode = stat_for_us(fds.open(level.path), path.rpartition(b"/")[2]).st_mode
        same = mode == nodes.lower.attr(base, fetch=False).mode
        return [] if same else [OverlayChange(path, "modified", kind)]
    if in_upper or behind is not base:
        return [OverlayChange(path, "modified", kind)]
    return []


def _names(lower: Lower, ref: LowerRef | None) -> set[bytes]:
    return {entry.name for entry in lower.entries(ref)} if ref is not None else set()


# Forgetting them


def reset(
    nodes: OverlayNodes, upper: Upper, paths: Iterable[bytes] | None, *, alone: bool = False
) -> Iterator[list[Affected]]:
    """Forget the edits at and below each of *paths* (all but `.git` in the root when None); what is affected, path by
    path. The tree may change between two of them, unless who resets is *alone* with it, which is quicker.

    Each path is reset wholly or not at all, also over a crash. Nothing happens for a path without edits. What is taken
    away is deleted by the job of `Upper.discard`.
    """
    wanted = list(paths) if paths is not None else [b""]
    if b"" in wanted:
        wanted = sorted({entry.name for entry in list_for_us(upper.tree_fd)} | set(upper.root_mark.children or ()))
        wanted = [name for name in wanted if name != PRIVATE]
    fds = PathFds(upper.tree_fd)
    try:
        for path in wanted:
            affected, was_directory = _reset_one(nodes, upper, path, fds, at_once=not alone)
            if was_directory or not alone:  # what is open may be elsewhere now
                fds.forget()
            yield affected
    finally:
        fds.close()


def _reset_one(
    nodes: OverlayNodes, upper: Upper, path: bytes, fds: PathFds, *, at_once: bool
) -> tuple[list[Affected], bool]:
    """What is affected, and whether it was a directory."""
    head, _, name = path.rpartition(b"/")
    try:
        fd = fds.open(head)
        found: os.stat_result | None = stat_for_us(fd, name)
    except (FileNotFoundError, NotADirectoryError):
        fd, found = -1, None
    mark = upper.log.marks.at(path)
    if found is None and mark is None:
        return [], False
    parent = _known_at(nodes, head)
    hidden = _hidden_names(parent, name)
    for node in _known_from(nodes, parent, name):
        if node.upper and not node.is_dir:
            with contextlib.suppress(PermissionError):  # in a directory that may not be searched
                node.last = nodes.attr(node)
    edits = [Edit(EditKind.FORGET, path)]
    gone = upper.work_name()
    if found is None:
        upper.note(edits, "overlay.reset")
    else:
        action = Action(ActionKind.RENAME, tree_path(path), WORK + b"/" + gone, found.st_ino)
        taken = found
        upper.perform(edits, action, lambda: _take_away(fd, name, taken, upper.work_fd, gone), "overlay.reset")
        upper.touched(os.fstat(fd).st_ino)
    affected = [Affected(parent, name, nodes.known(parent, name))] if parent is not None else []
    affected += [Affected(directory, each, None) for directory, each in hidden if not directory.removed]
    if parent is not None:
        affected += _show_lower(nodes, parent, name)
    if found is not None:
        upper.discard.add(upper.work_fd, gone, at_once=at_once)
    return affected, found is not None and stat.S_ISDIR(found.st_mode)


def _take_away(fd: int, name: bytes, found: os.stat_result, work_fd: int, gone: bytes) -> None:
    """Move *name* to `work/`, also where its owner, who we are, may not change it or the directory that it is in."""
    with writable_for_us(fd):
        narrow = directory_extra_mode(found.st_mode) if stat.S_ISDIR(found.st_mode) else 0
        if narrow:  # a directory that goes to another one is changed: its `..` is
            chmod_at(fd, name, found.st_mode | narrow)
        try:
            os.rename(name, gone, src_dir_fd=fd, dst_dir_fd=work_fd)
        except BaseException:
            if narrow:
                chmod_at(fd, name, found.st_mode)
            raise


def forget_discarded(nodes: OverlayNodes, upper: Upper) -> bool:
    """Forget some of what is remembered of files that a reset took away and that are deleted by now; whether there may
    be more."""
    freed = upper.forget_discarded()
    for inode in freed:
        nodes.unlinked(inode)
    return bool(freed)


def _known_at(nodes: OverlayNodes, path: bytes) -> OverlayNode | None:
    node: OverlayNode | None = nodes.root
    for name in split(path):
        node = nodes.known(node, name) if node is not None else None
    return node


def _known_from(nodes: OverlayNodes, parent: OverlayNode | None, name: bytes) -> Iterator[OverlayNode]:
    top = nodes.known(parent, name) if parent is not None else None
    if top is not None:
        yield from nodes.known_below(top)
        yield top


def _hidden_names(parent: OverlayNode | None, name: bytes) -> list[tuple[OverlayNode, bytes]]:
    """The whiteouts in known directories at or below a name: the kernel may remember that nothing is there."""
    top = parent.children.get(name) if parent is not None and parent.children else None
    found: list[tuple[OverlayNode, bytes]] = []
    waiting = [top]
    while waiting:
        node = waiting.pop()
        if isinstance(node, OverlayNode) and node.mark is not None:
            for each, mark in (node.mark.children or {}).items():
                if mark.kind is MarkKind.HIDDEN:
                    found.append((node, each))
            waiting.extend((node.children or {}).values())
    return found


def _show_lower(nodes: OverlayNodes, parent: OverlayNode, name: bytes) -> list[Affected]:
    """The upper has nothing at or below *name* any more: tell the nodes."""
    affected: list[Affected] = []
    waiting = [(parent, name)]
    while waiting:
        directory, each = waiting.pop()
        node = nodes.known(directory, each)
        if node is None:
            continue
        ref = nodes.candidate(nodes.lower_directory(directory), each)
        if node.is_dir and directory_only(ref) is not None:
            if node.upper:
                nodes.drop_fd(node.upper)
            node.upper, node.mark = 0, None
            nodes.stand_on(node, ref)
            waiting.extend((node, below) for below in list(node.children or ()))
        elif node.upper or ref is None or node.lower != ref:
            affected.append(Affected(directory, each, node))
            _take_name(nodes, directory, each, node)
    return affected


def _take_name(nodes: OverlayNodes, directory: OverlayNode, name: bytes, node: OverlayNode) -> None:
    nodes.detach_below(node)
    nodes.detach(directory, name, node)


# Standing on another lower


def replace_lower(nodes: OverlayNodes, new: Lower, source: bytes | None = None) -> list[Affected]:
    """Let the overlay stand on *new*, live; the names that now mean something else or are new.

    Unchanged files and all directories keep their nodes; edits stay. May be `Blocked`, before any change.
    """
    old = nodes.lower
    edits, kept, gone, fresh = compare_lower(nodes, new)
    if edits:
        assert nodes.upper is not None
        nodes.upper.note(edits, "overlay.settle")
    # From here on nothing raises.
    for each in gone:
        assert each.node is not None
        for node in _known_from(nodes, each.parent, each.name):
            nodes.keep_lower(node, old)
        _take_name(nodes, each.parent, each.name, each.node)
    new.take_over(old)
    nodes.lower = new
    nodes.source = source if source is not None else nodes.source
    for node, ref in kept:
        node.lower = ref
        node.identity = new.identity(ref) if new.live and ref is not None else None
    nodes.retire(old)
    return gone + fresh


class Comparison(NamedTuple):
    """What becomes of an overlay's known nodes over another lower."""

    edits: list[Edit]
    """Of the marks; see `settle`."""
    kept: list[tuple[OverlayNode, LowerRef | None]]
    """Those that stay, with their new lower file."""
    gone: list[Affected]
    """The names that mean something else."""
    fresh: list[Affected]
    """The names that are new."""


def compare_lower(nodes: OverlayNodes, new: Lower) -> Comparison:
    """What becomes of the known nodes over *new*. Changes nothing. May be `Blocked`."""
    edits = settle(nodes, new).edits
    marks = nodes.upper.log.marks if nodes.upper is not None else None
    before: list[tuple[Mark, MarkKind, bytes]] = []
    try:
        for edit in edits:
            mark = marks.at(edit.path) if marks is not None else None
            assert mark is not None
            before.append((mark, mark.kind, mark.target))
            mark.kind = MarkKind.REDIRECT if edit.kind is EditKind.REDIRECT else MarkKind.INHERIT
            mark.target = edit.other
        return Comparison(edits, *_compare_nodes(nodes, new))
    finally:
        for mark, kind, target in before:
            mark.kind, mark.target = kind, target


def _compare_nodes(
    nodes: OverlayNodes, new: Lower
) -> tuple[list[tuple[OverlayNode, LowerRef | None]], list[Affected], list[Affected]]:
    old = nodes.lower
    kept: list[tuple[OverlayNode, LowerRef | None]] = []
    gone: list[Affected] = []
    fresh: list[Affected] = []
    waiting: list[tuple[OverlayNode, LowerRef | None]] = [(nodes.root, new.root)]
    while waiting:
        directory, ref = waiting.pop()
        kept.append((directory, ref))
        before = nodes.lower_directory(directory)
        fresh += _unknown(old, directory, before, new, ref)
        for name, child in (directory.children or {}).items():
            if not isinstance(child, OverlayNode) or (child.upper and not child.is_dir):
                continue
            found = _resolve(new, ref, name, directory.mark.child(name) if directory.mark else None)
            if child.is_dir and (child.upper or directory_only(found) is not None):
                if _is_same_below(old, child, new, found):
                    kept.append((child, found))
                    continue
                waiting.append((child, directory_only(found)))
            elif found is not None and _is_same(old, child, new, found):
                kept.append((child, found))
            else:
                gone.append(Affected(directory, name, child))
    return kept, gone, fresh


def _unknown(
    old: Lower, directory: OverlayNode, before: LowerRef | None, new: Lower, after: LowerRef | None
) -> list[Affected]:
    """The names that nobody has looked up and that come, go or mean something else: the directory may be watched."""
    was, is_now = _kinds(old, before), _kinds(new, after)
    found: list[Affected] = []
    for name in sorted((was.keys() | is_now.keys()) - set(directory.children or ())):
        mark = directory.mark.child(name) if directory.mark is not None else None
        if mark is not None and mark.kind is not MarkKind.INHERIT:
            continue  # hidden, or from elsewhere
        if name in was and name in is_now and was[name] == is_now[name]:
            one, other = lower_child(old, before, name), lower_child(new, after, name)
            if one is None or other is None or _is_equal(old, one, new, other):
                continue
        found.append(Affected(directory, name, None, name in was))
    return found


def _is_equal(old: Lower, one: LowerRef, new: Lower, other: LowerRef) -> bool:
    if old.identity(one) != new.identity(other) or not new.converts_alike(other, old, one):
        return False
    return new.live or old.attr(one, fetch=False).mode == new.attr(other, fetch=False).mode


def _kinds(lower: Lower, ref: LowerRef | None) -> dict[bytes, int]:
    return {entry.name: entry.kind for entry in lower.entries(ref)} if ref is not None else {}


def _resolve(lower: Lower, directory: LowerRef | None, name: bytes, mark: Mark | None) -> LowerRef | None:
    if mark is not None and mark.kind is MarkKind.HIDDEN:
        return None
    if mark is None or mark.kind is MarkKind.INHERIT:
        return lower.child(directory, name) if directory is not None else None
    return lower_at(lower, mark.target)


def _is_same_below(old: Lower, node: OverlayNode, new: Lower, ref: LowerRef | None) -> bool:
    """Whether nothing at or below the directory *node* is edited, or another in *new*: its known nodes stay as they
    are. So the cost of a change is that of the change, however much is known."""
    if node.upper or node.mark is not None or node.lower is None or ref is None:
        return False
    return new.same_below(ref, old, node.lower)


def _is_same(old: Lower, node: OverlayNode, new: Lower, ref: LowerRef) -> bool:
    """Whether the file *ref* is what *node* is: the same content, kind and mode."""
    if node.lower is None or node.kind != ref.kind or node.is_dir:
        return False
    try:
        return (
            old.identity(node.lower) == new.identity(ref)
            and old.attr(node.lower, fetch=False).mode == new.attr(ref, fetch=False).mode
            and new.converts_alike(ref, old, node.lower)
        )
    except OSError:
        return False  # a live lower whose file has gone
