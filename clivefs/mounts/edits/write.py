"""Making an overlay show given files: how a rebase and a resolution write into the upper, live.

Every function is a call of the overlay's own operations, so what is open stays open and the intent log has every
change. They run without waiting, or raise `Blocked`; what has been done by then is not done again by the next call,
because each looks first at what is shown.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.edits.diff import git_mode
from clivefs.mounts.edits.plan import RebasePlan
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor, Version
from clivefs.mounts.overlay.edits import Affected
from clivefs.mounts.overlay.node import OverlayNode, UpperFile
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, Node, Owner, SetAttr
from clivefs.objects.encode import MODE_GITLINK, MODE_SYMLINK

_READ_BYTES = 1 << 20
_TEMPORARY = b".clive-new-"


class _Found(NamedTuple):
    node: OverlayNode
    attr: Attr


def carry_out(tree: OverlayTree, plan: RebasePlan, reader: Reader | JoinedObjects, owner: Owner) -> list[Affected]:
    """Let *tree*, which stands on `plan.lower` by now, show what *plan* says; the names that the kernel must forget.

    *reader* has the plan's objects. May be `Blocked`, and is then to be called again. OSError: the journal can take
    it back.
    """
    affected = tree.reset(path for path in plan.resets if not is_written(tree, path))
    for path in plan.whiteouts:
        affected += hide_file(tree, path)
    for path, version in (*plan.writes, *plan.aside):
        affected += show_file(tree, path, FileVersion(version.mode, blob_content(reader, version.oid)), owner)
    # Whiteouts and redirects of whole directories can hide what the new lower has, or show it elsewhere.
    wanted = TreeEditor(reader, plan.shown)
    aside = {write.path for write in plan.aside}
    shown_by_upper = [each.path for each in tree.changes() if each.kind != stat.S_IFDIR]
    for path in (*plan.expected, *shown_by_upper):
        if path not in aside and path not in plan.kept:
            affected += _ensure(tree, path, wanted.get(path), plan, reader, owner)
    return affected


def _ensure(
    tree: OverlayTree,
    path: bytes,
    expected: Version | None,
    plan: RebasePlan,
    reader: Reader | JoinedObjects,
    owner: Owner,
) -> list[Affected]:
    found = _find(tree, path)
    if found is not None and found.node.upper and path in plan.unchanged:
        return []
    if expected is None:
        # What git cannot hold (a socket, say) is in no tree, and stays.
        is_file = found is not None and git_mode(found.attr.mode) is not None
        return hide_file(tree, path) if is_file else []
    if expected.mode == MODE_GITLINK:
        return []
    if found is not None and git_mode(found.attr.mode) == expected.mode:
        facts = tree.describe(found.node)
        if facts.get("oid") == expected.oid.hex().encode():
            return []
    return show_file(tree, path, FileVersion(expected.mode, blob_content(reader, expected.oid)), owner)


def show_file(tree: OverlayTree, path: bytes, file: FileVersion, owner: Owner) -> list[Affected]:
    """Let *file* be at *path*, whatever is there now; directories on the way are made. May be `Blocked`."""
    affected: list[Affected] = []
    directory = _root(tree).node
    *head, name = path.split(b"/")
    for part in head:
        found = _child(tree, directory, part)
        if found is not None and not stat.S_ISDIR(found.attr.mode):
            tree.unlink(directory, part)
            affected.append(Affected(directory, part, found.node))
            found = None
        if found is None:
            made, _ = tree.mkdir(directory, part, 0o755, owner)
            affected.append(Affected(directory, part, None))
            assert isinstance(made, OverlayNode)
            directory = made
        else:
            directory = found.node
    found = _child(tree, directory, name)
    if found is not None and _shows(tree, found, file):
        return affected
    affected.append(Affected(directory, name, found.node if found is not None else None))
    if found is not None and stat.S_ISREG(found.attr.mode) and stat.S_ISREG(file.mode):
        _replace(tree, directory, name, found, file)
        return affected
    if found is not None:
        _remove(tree, directory, name, found)
    if file.mode == MODE_SYMLINK:
        tree.symlink(directory, name, file.content, owner)
    else:
        _make(tree, directory, name, file.mode & 0o777, file.content, owner)
    return affected


def hide_file(tree: OverlayTree, path: bytes) -> list[Affected]:
    """Let no file be at *path*. Its directory stays, as with rm(1). May be `Blocked`."""
    head, _, name = path.rpartition(b"/")
    parent = _find(tree, head) if head else _root(tree)
    if parent is None or not stat.S_ISDIR(parent.attr.mode):
        return []
    found = _child(tree, parent.node, name)
    if found is None or stat.S_ISDIR(found.attr.mode):
        return []
    tree.unlink(parent.node, name)
    return [Affected(parent.node, name, found.node)]


def keep_times(tree: OverlayTree, times_ns: Mapping[bytes, int]) -> None:
    """Give files and directories that lie in the upper the modification times that they had before."""
    for path, time_ns in times_ns.items():
        found = _find(tree, path) if path else _root(tree)
        if found is None or not found.node.upper or found.attr.mtime_ns == time_ns:
            continue
        if stat.S_ISREG(found.attr.mode) or stat.S_ISDIR(found.attr.mode):
            tree.setattr(found.node, SetAttr(mtime_ns=time_ns), None)


def is_written(tree: OverlayTree, path: bytes) -> bool:
    """Whether somebody has the file at *path* open for writing: its upper must stay, he goes on writing there."""
    node: Node | None = tree.root
    for name in path.split(b"/"):
        node = (node.children or {}).get(name) if node is not None else None
    if not isinstance(node, OverlayNode):
        return False
    fds = [file.inner.fd for file in node.files or () if isinstance(file.inner, UpperFile)]
    return any(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY for fd in fds)


def read_file(tree: OverlayTree, path: bytes) -> FileVersion | None:
    """What *tree* shows at *path*; None for nothing, a directory or what git cannot hold. May be `Blocked`."""
    found = _find(tree, path)
    mode = git_mode(found.attr.mode) if found is not None else None
    if found is None or mode is None:
        return None
    return FileVersion(mode, tree.readlink(found.node) if mode == MODE_SYMLINK else _content(tree, found.node))


def _shows(tree: OverlayTree, found: _Found, file: FileVersion) -> bool:
    if git_mode(found.attr.mode) != file.mode:
        return False
    if file.mode == MODE_SYMLINK:
        return tree.readlink(found.node) == file.content
    return _content(tree, found.node) == file.content


def _make(
    tree: OverlayTree, directory: OverlayNode, name: bytes, mode: int, content: bytes, owner: Owner
) -> OverlayNode:
    made, _, opened = tree.create(directory, name, mode, os.O_WRONLY, owner)
    try:
        opened.write(0, content)
    finally:
        opened.close()
    assert isinstance(made, OverlayNode)
    return made


def _replace(tree: OverlayTree, directory: OverlayNode, name: bytes, found: _Found, file: FileVersion) -> None:
    """Put a file with the content and mode of *file* in the place of another, whose other attributes it gets: who has
    that one open keeps it."""
    attr = found.attr
    mode = stat.S_IMODE(attr.mode) if git_mode(attr.mode) == file.mode else file.mode & 0o777
    aside = _TEMPORARY + os.urandom(6).hex().encode()
    xattrs = {each: tree.getxattr(found.node, each) for each in tree.listxattr(found.node)}
    made = _make(tree, directory, aside, mode, file.content, Owner(attr.uid, attr.gid))
    for attribute, value in xattrs.items():
        tree.setxattr(made, attribute, value)
    tree.rename(directory, aside, directory, name, 0)


def _remove(tree: OverlayTree, directory: OverlayNode, name: bytes, found: _Found) -> None:
    """Remove a file, or a directory with all that is in it."""
    waiting = [(directory, name, found)]
    while waiting:
        parent, each, here = waiting[-1]
        if not stat.S_ISDIR(here.attr.mode):
            tree.unlink(parent, each)
            waiting.pop()
            continue
        inner = [(here.node, entry.name, _child(tree, here.node, entry.name)) for entry in tree.entries(here.node)]
        below = [(node, inner_name, child) for node, inner_name, child in inner if child is not None]
        if below:
            waiting.extend(below)
        else:
            tree.rmdir(parent, each)
            waiting.pop()


def _content(tree: OverlayTree, node: OverlayNode) -> bytes:
    opened = tree.open(node, os.O_RDONLY)
    try:
        parts: list[bytes] = []
        offset = 0
        while part := opened.read(offset, _READ_BYTES):
            parts.append(part)
            offset += len(part)
        return b"".join(parts)
    finally:
        opened.close()


def _root(tree: OverlayTree) -> _Found:
    assert isinstance(tree.root, OverlayNode)
    return _Found(tree.root, tree.getattr(tree.root))


def _find(tree: OverlayTree, path: bytes) -> _Found | None:
    current = _root(tree)
    for name in path.split(b"/"):
        if not stat.S_ISDIR(current.attr.mode):
            return None
        found = _child(tree, current.node, name)
        if found is None:
            return None
        current = found
    return current


def _child(tree: OverlayTree, directory: OverlayNode, name: bytes) -> _Found | None:
    try:
        node, attr = tree.listed(directory, name)
    except FileNotFoundError:
        return None
    assert isinstance(node, OverlayNode)
    return _Found(node, attr)
