"""Reading what an overlay changes, while others go on using it."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import suppress
from typing import NamedTuple, TypeVar

import trio

from clivefs.base.errors import ClivefsError
from clivefs.mounts.edits import converting
from clivefs.mounts.edits.diff import Changed, Version, git_mode
from clivefs.mounts.edits.ignored import ignored_paths, rules_for
from clivefs.mounts.edits.plan import shown_files
from clivefs.mounts.git.joined import CONTENT_BYTES_MAX
from clivefs.mounts.git.treeeditor import check_path
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.edits import OverlayChange
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Blocked, Node, OpenFile

T = TypeVar("T")

_BLOCK = 1 << 20
_PAUSE_S = 0.002
_LOOKS_A_SPAN = 64


class Edits(NamedTuple):
    """What an overlay changes."""

    files: dict[bytes, Version | None]
    """What it shows at each changed path, as git stores it; None where it hides what the lower has."""
    kept: frozenset[bytes]
    """Files that no tree can hold (a repository's `.git`, what is too large), or that stay edits for another reason."""
    shown: dict[bytes, Version | None]
    """`files` as they are shown: `.gitattributes` may convert them."""

    def without(self, paths: frozenset[bytes]) -> Edits:
        """These, with *paths* among those that are kept."""
        files = {path: file for path, file in self.files.items() if path not in paths}
        return Edits(files, self.kept | paths, self.shown)


async def edits(tree: OverlayTree, scratch: str) -> Edits:
    """All edits of an overlay on a git tree. *scratch*: a directory for temporary files. ClivefsError where git cannot
    store one."""
    kept: set[bytes] = set()
    for number, change in enumerate(await all_changes(tree)):
        if not _fits(tree, change.path, change):
            kept.add(change.path)
        if number % _LOOKS_A_SPAN == 0:
            await trio.lowlevel.checkpoint()
    shown = shown_files([change async for change in changed(tree, b"", kept)])
    files = await trio.to_thread.run_sync(converting.stored, tree.lower, shown, scratch)
    return Edits(files, frozenset(kept), shown)


def _fits(tree: OverlayTree, path: bytes, change: OverlayChange) -> bool:
    if check_path(path) is not None:
        return False
    if change.what == "deleted" or change.kind != stat.S_IFREG:
        return True
    node: Node = tree.root
    try:
        for name in path.split(b"/"):
            node, attr = tree.listed(node, name)
    except (OSError, Blocked):
        return True  # gone meanwhile
    return attr.size <= CONTENT_BYTES_MAX


async def all_changes(tree: OverlayTree) -> list[OverlayChange]:
    """`OverlayTree.changes`. Others get the loop meanwhile; where what they change comes in the way, it is looked at
    anew, and in the end without a pause."""
    pauses_s = [float("inf"), _PAUSE_S, _PAUSE_S, _PAUSE_S]
    while True:
        found: list[OverlayChange] = []
        began = time.monotonic()
        try:
            for change in tree.changes():
                found.append(change)
                if time.monotonic() - began > pauses_s[-1]:
                    await trio.lowlevel.checkpoint()
                    began = time.monotonic()
        except Blocked as blocked:  # a submodule, or a directory with very many names
            await trio.to_thread.run_sync(blocked.job)
        except OSError:
            if pauses_s.pop() == float("inf"):
                raise
        else:
            return found


async def left_out(tree: OverlayTree, new: Collection[bytes], *, git_dir: str | None, scratch: str) -> frozenset[bytes]:
    """Of the files *new*, which the lower layer has not, those that are no part of a patch, by the rules as shown."""
    rules = {}
    for path in rules_for(new):
        version = await shown_version(tree, path)
        if version is not None and stat.S_ISREG(version.mode):
            rules[path] = version.content
    return await trio.to_thread.run_sync(lambda: ignored_paths(git_dir, new, rules, scratch=scratch))


async def delete_discarded(tree: OverlayTree) -> None:
    """Delete what resets took away, however much that is."""
    job = tree.discarded()
    if job is not None:
        await trio.to_thread.run_sync(job)
    while tree.forget_discarded():
        await trio.lowlevel.checkpoint()


async def changed(
    tree: OverlayTree, below: bytes, without: set[bytes] | frozenset[bytes] = frozenset()
) -> AsyncIterator[Changed]:
    """Each changed file under *below* before and after, but those of *without* and what git has no name for (a
    repository's `.git`). Lets others have the loop between files."""
    for change in await all_changes(tree):
        if below and change.path != below and not change.path.startswith(below + b"/"):
            continue
        is_directory = change.kind == stat.S_IFDIR
        if change.path in without or check_path(change.path) is not None:
            continue
        if is_directory and change.what in ("added", "modified"):
            continue  # git knows directories by what is in them, and that is told of too
        if change.what != "added":
            ref = await waiting(lambda path=change.path: tree.lower.find(path))  # type: ignore[misc]
            if ref is not None:
                async for path, version in _lower_files(tree.lower, change.path, ref):
                    yield Changed(path, version, None)
        if change.what != "deleted" and not is_directory:
            after = await shown_version(tree, change.path)
            if after is not None:
                yield Changed(change.path, None, after)
        await trio.lowlevel.checkpoint()


async def _lower_files(lower: Lower, path: bytes, ref: LowerRef) -> AsyncIterator[tuple[bytes, Version]]:
    pending = [(path, ref)]
    while pending:
        at, current = pending.pop()
        if current.kind == stat.S_IFDIR:
            for entry in await waiting(lambda of=current: lower.entries(of)):  # type: ignore[misc]
                child = await waiting(lambda of=current, name=entry.name: lower.child(of, name))  # type: ignore[misc]
                if child is not None:
                    pending.append((at + b"/" + entry.name, child))
            continue
        version = await lower_version(lower, current)
        if version is not None:
            yield at, version


async def lower_version(lower: Lower, ref: LowerRef) -> Version | None:
    """A file of the lower layer; None for what git cannot hold."""
    mode = git_mode((await waiting(lambda: lower.attr(ref, fetch=True))).mode)
    if mode is None:
        return None
    if mode == 0o120000:
        return Version(mode, await waiting(lambda: lower.readlink(ref)))
    return Version(mode, await _content(lambda: lower.open(ref)))


async def shown_version(tree: OverlayTree, path: bytes) -> Version | None:
    """What is shown at *path*; None for nothing, and for what git cannot hold."""
    node: Node = tree.root
    try:
        for name in path.split(b"/"):
            node, attr = await waiting(lambda n=node, x=name: tree.lookup(n, x))  # type: ignore[misc]
        mode = git_mode(attr.mode)
        if mode is None:
            return None
        if mode == 0o120000:
            return Version(mode, await waiting(lambda: tree.readlink(node)))
        return Version(mode, await _content(lambda: tree.open(node, os.O_RDONLY)))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise ClivefsError(
            "its mode, or that of a directory on the way to it, does not let you read it",
            place=os.fsdecode(path),
            remedy="chmod it, or forget it with `clivefs overlay reset`",
        ) from error


async def _content(open_it: Callable[[], OpenFile]) -> bytes:
    file = await waiting(open_it)
    try:
        parts: list[bytes] = []
        offset = 0
        while part := file.read(offset, _BLOCK):
            parts.append(part)
            offset += len(part)
            await trio.lowlevel.checkpoint()
        return b"".join(parts)
    finally:
        file.close()


def note_changes(tree: OverlayTree) -> None:
    """Tell who records the tree that anything in it may be another now: not through the mount, so nobody else does."""
    if tree.journal is not None:
        tree.journal.everything()


async def keep_for_forks(tree: OverlayTree, paths: Iterable[bytes]) -> None:
    """Let the forks keep what they have inherited at *paths*, as before a change through the mount: it is about to be
    changed by us."""
    keeper = tree.keeper
    if keeper is None:
        return

    def keep(path: bytes) -> None:
        node: Node = tree.root
        for name in path.split(b"/"):
            node, _ = tree.listed(node, name)
        keeper.changing(node)

    for number, path in enumerate(paths):
        with suppress(FileNotFoundError, NotADirectoryError):
            await waiting(lambda: keep(path))  # noqa: B023 - called at once
        if number % _LOOKS_A_SPAN == 0:
            await trio.lowlevel.checkpoint()


async def waiting(call: Callable[[], T]) -> T:
    """Call until it has not to wait any more."""
    while True:
        try:
            return call()
        except Blocked as blocked:
            await trio.to_thread.run_sync(blocked.job)
