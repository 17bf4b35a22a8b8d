"""Making an overlay show given files: how a rebase and a resolution write into the upper, live.

Every function is a call of the overlay's own operations, so what is open stays open and the intent log has every
change. None waits, but may be `Blocked`; what has been done by then is not done again by the next call, because each
looks first at what is shown. What takes long is a generator: after each step whoever runs it may let others have the
loop (`OverlayTree.standstill` keeps them from seeing half of it).
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import stat
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import NamedTuple

from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.edits.diff import git_mode
from clivefs.mounts.edits.making import Made
from clivefs.mounts.edits.plan import RebasePlan, Write
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor, Version
from clivefs.mounts.overlay.edits import Affected
from clivefs.mounts.overlay.node import OverlayNode, UpperFile
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.overlay.untouched import Shown, Untouched
from clivefs.mounts.tree import Attr, Node, Owner, SetAttr
from clivefs.objects.encode import MODE_GITLINK, MODE_SYMLINK

_READ_BYTES = 1 << 20
_WRITE_BYTES = 1 << 20
_TEMPORARY = b".clive-new-"
_PATHS_A_STEP = 64
_PUTS_A_STEP = 16

Steps = Generator[list[Affected], None, None]
"""What the kernel must forget, step by step."""
Making = Generator[list[Affected] | Write, bytes | None, None]
"""The same; where it gives a `Write`, it is to be sent the content that the file is to show."""


class _Found(NamedTuple):
    node: OverlayNode
    attr: Attr


def carry_out(
    tree: OverlayTree,
    plan: RebasePlan,
    reader: Reader | JoinedObjects,
    owner: Owner,
    take: Callable[[bytes], Made | None] = lambda path: None,
) -> Making:
    """Let *tree*, which stands on `plan.lower` by now, show what *plan* says.

    *reader* has the plan's trees, *take* what was made for a path. May be `Blocked`, and is then to be begun again.
    OSError: the journal can take it back.
    """
    above_kept = {prefix for path in plan.kept for prefix in _prefixes(path)}
    going = (path for path in plan.resets if path not in above_kept and not is_written(tree, path))
    yield from tree.reset_steps(going, alone=True)
    for path in plan.whiteouts:
        yield hide_file(tree, path)
    now_ns = time.time_ns()
    for head, writes in itertools.groupby((*plan.writes, *plan.aside), lambda write: write.path.rpartition(b"/")[0]):
        yield from _put_all(tree, head, writes, owner, take, now_ns)
    # Whiteouts and redirects of whole directories can hide what the new lower has, or show it elsewhere.
    wanted = TreeEditor(reader, plan.shown)
    aside = {write.path for write in plan.aside}
    for path in dict.fromkeys((*(yield from _in_doubt(tree, plan)), *(yield from _redirected(tree)))):
        if path not in aside and path not in plan.kept:
            yield from _ensure(tree, path, wanted.get(path), plan, owner)
    for path in plan.emptied:
        yield _remove_empty(tree, path)


def _prefixes(path: bytes) -> Iterator[bytes]:
    """The directories above *path*, but for the root."""
    while path := path.rpartition(b"/")[0]:
        yield path


def _in_doubt(tree: OverlayTree, plan: RebasePlan) -> Generator[list[Affected], bytes | None, list[bytes]]:
    """The paths of `plan.expected` that may not show yet what they are to. Not those where neither the upper nor a mark
    has a say, as the lower is the planned one there; nor files of the upper that were right, or have just been put."""
    assert tree.upper is not None
    by_upper = {*plan.unchanged, *(write.path for write in plan.writes)} - {*plan.resets}
    untouched = Untouched(tree.upper)
    found: list[bytes] = []
    try:
        for number, path in enumerate(plan.expected):
            shown = untouched.shown(path)
            if shown is not (Shown.UPPER if path in by_upper else Shown.LOWER):
                found.append(path)
            if number % _PATHS_A_STEP == 0:
                yield []
    finally:
        untouched.close()
    return found


def _redirected(tree: OverlayTree) -> Generator[list[Affected], bytes | None, list[bytes]]:
    """The files that are not as in the lower, where a renamed directory may show what the plan does not know of."""
    assert tree.upper is not None
    found: list[bytes] = []
    if tree.upper.log.marks.any_redirect:
        for each in tree.changes():
            if each.kind != stat.S_IFDIR:
                found.append(each.path)
            yield []
    return found


def _remove_empty(tree: OverlayTree, path: bytes) -> list[Affected]:
    """Remove the directory *path* if there is nothing in it."""
    head, _, name = path.rpartition(b"/")
    parent = _find(tree, head) if head else _root(tree)
    found = _find(tree, path)
    if parent is None or found is None or not stat.S_ISDIR(found.attr.mode) or tree.names(found.node):
        return []
    tree.rmdir(parent.node, name)
    return [Affected(parent.node, name, found.node)]


def _put_all(
    tree: OverlayTree,
    head: bytes,
    writes: Iterable[Write],
    owner: Owner,
    take: Callable[[bytes], Made | None],
    now_ns: int,
) -> Making:
    """Put files of the directory *head*."""
    with contextlib.ExitStack() as stack:
        found = _find(tree, head) if head else _root(tree)
        directory = found.node if found is not None and found.node.is_dir else None
        if directory is not None:
            stack.enter_context(tree.held(directory))
        affected: list[Affected] = []
        for write in writes:
            made = take(write.path)
            put = tree.put(directory, write.path, made.copy, made.replaces, now_ns) if made is not None else None
            if put is None:
                yield from _put(tree, write, owner)
                continue
            affected.append(put)
            if len(affected) == _PUTS_A_STEP:
                yield affected
                affected = []
        yield affected


def _put(tree: OverlayTree, write: Write, owner: Owner) -> Making:
    content = yield write
    assert content is not None
    yield from show_file(tree, write.path, FileVersion(write.version.mode, content), owner)


def _ensure(tree: OverlayTree, path: bytes, expected: Version | None, plan: RebasePlan, owner: Owner) -> Making:
    found = _find(tree, path)
    if found is not None and found.node.upper and path in plan.unchanged:
        yield []
    elif expected is None:
        # What git cannot hold (a socket, say) is in no tree, and stays.
        is_file = found is not None and git_mode(found.attr.mode) is not None
        yield hide_file(tree, path) if is_file else []
    elif expected.mode != MODE_GITLINK and not _is_lower(tree, found, expected):
        yield from _put(tree, Write(path, expected), owner)
    else:
        yield []


def _is_lower(tree: OverlayTree, found: _Found | None, version: Version) -> bool:
    """Whether *found* is *version*, shown by the lower layer."""
    if found is None or git_mode(found.attr.mode) != version.mode:
        return False
    return tree.describe(found.node).get("oid") == version.oid.hex().encode()


def show_file(tree: OverlayTree, path: bytes, file: FileVersion, owner: Owner) -> Steps:
    """Let *file* be at *path*, whatever is there now; directories on the way are made. May be `Blocked`."""
    *head, name = path.split(b"/")
    with contextlib.ExitStack() as stack:  # a directory that nobody holds is forgotten with its last known name
        directory = _root(tree).node
        for part in head:
            found = _child(tree, directory, part)
            if found is not None and not stat.S_ISDIR(found.attr.mode):
                tree.unlink(directory, part)
                yield [Affected(directory, part, found.node)]
                found = None
            if found is None:
                made, _ = tree.mkdir(directory, part, 0o755, owner)
                yield [Affected(directory, part, None)]
                assert isinstance(made, OverlayNode)
                directory = made
            else:
                directory = found.node
            stack.enter_context(tree.held(directory))
        yield from _show_in(tree, directory, name, file, owner)


def _show_in(tree: OverlayTree, directory: OverlayNode, name: bytes, file: FileVersion, owner: Owner) -> Steps:
    found = _child(tree, directory, name)
    if found is not None and _shows(tree, found, file):
        return
    affected = [Affected(directory, name, found.node if found is not None else None)]
    if found is not None and stat.S_ISREG(found.attr.mode) and stat.S_ISREG(file.mode):
        yield from _replace(tree, directory, name, found, file)
        yield affected
        return
    if found is not None:
        _remove(tree, directory, name, found)
    if file.mode == MODE_SYMLINK:
        tree.symlink(directory, name, file.content, owner)
    else:
        yield from _make(tree, directory, name, file.mode & 0o777, file.content, owner)
    yield affected


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


def keep_times(tree: OverlayTree, times_ns: Mapping[bytes, int]) -> Generator[None, None, None]:
    """Give files and directories that lie in the upper the modification times that they had before. In steps."""
    for path, time_ns in times_ns.items():
        yield
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
    if not found.attr.unsized and found.attr.size != len(file.content):
        return False
    return _content(tree, found.node) == file.content


def _make(
    tree: OverlayTree, directory: OverlayNode, name: bytes, mode: int, content: bytes, owner: Owner
) -> Generator[list[Affected], None, OverlayNode]:
    made, _, opened = tree.create(directory, name, mode, os.O_WRONLY, owner)
    try:
        for at in range(0, len(content), _WRITE_BYTES):
            if at:
                yield []
            opened.write(at, content[at : at + _WRITE_BYTES])
    finally:
        opened.close()
    assert isinstance(made, OverlayNode)
    return made


def _replace(tree: OverlayTree, directory: OverlayNode, name: bytes, found: _Found, file: FileVersion) -> Steps:
    """Put a file with the content and mode of *file* in the place of another, whose other attributes it gets: who has
    that one open keeps it."""
    attr = found.attr
    mode = stat.S_IMODE(attr.mode) if git_mode(attr.mode) == file.mode else file.mode & 0o777
    aside = _TEMPORARY + os.urandom(6).hex().encode()
    xattrs = {each: tree.getxattr(found.node, each) for each in tree.listxattr(found.node)}
    made = yield from _make(tree, directory, aside, mode, file.content, Owner(attr.uid, attr.gid))
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
