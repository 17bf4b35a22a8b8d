"""`overlay diff` and `overlay reset`, live."""

from __future__ import annotations

import base64
import os
import stat
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.control import Progress
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.edits.diff import Changed, Version, git_mode, patch_of
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Blocked, Node

_BLOCK = 1 << 20


class Overlays:
    """The user's edits over the sources of mounted workspaces."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    def _overlay(self, args: dict[str, Any]) -> tuple[LiveWorkspace, OverlayTree, str, bytes]:
        """The overlay that the path in *args* lies in: workspace, tree, the entry's path, the path below it."""
        live = self._workspaces.get(args["workspace"])
        path = os.path.normpath(args["path"])
        for entry_path, mounted in live.entries.items():
            if path == entry_path or path.startswith(entry_path + "/"):
                if not isinstance(mounted.tree, OverlayTree) or not mounted.tree.writable:
                    raise ClivefsError(
                        f"the entry is not an overlay (write = {mounted.entry.write!r})",
                        place=entry_path,
                        remedy='only entries with write = "overlay" keep edits apart',
                    )
                return live, mounted.tree, entry_path, os.fsencode(path[len(entry_path) + 1 :])
        if isinstance(live.root_tree, OverlayTree) and live.root_tree.writable:
            return live, live.root_tree, "", b"" if path == "." else os.fsencode(path)
        entries = ", ".join(live.entries) or "none"
        raise ClivefsError(
            "no mount entry is at or above this path", place=path, remedy=f"the mount entries are: {entries}"
        )

    async def diff(self, args: dict[str, Any], progress: Progress) -> Any:
        """`{"patch": base64}`: the edits at or below a path as a git patch, relative to the entry."""
        _, tree, entry_path, below = self._overlay(args)
        changed = [each async for each in _changed(tree, below)]
        patch = await trio.to_thread.run_sync(patch_of, changed, self._workspaces.scratch())
        return {"path": entry_path, "patch": base64.b64encode(patch).decode(), "files": len(changed)}

    async def reset(self, args: dict[str, Any], progress: Progress) -> Any:
        """Forget the edits of an entry, or of the given files of it."""
        _, tree, entry_path, below = self._overlay(args)
        files = [os.fsencode(os.path.normpath(each)) for each in args.get("files") or ()]
        paths = [os.path.join(below, each) for each in files] or ([below] if below else None)
        for path in paths or ():
            if path.startswith((b"/", b"../")) or path == b"..":
                raise ClivefsError("a file to reset lies outside the entry", place=os.fsdecode(path))
        touched = [
            change.path
            for change in tree.changes()
            if paths is None or any(change.path == path or change.path.startswith(path + b"/") for path in paths)
        ]
        if not args.get("dry_run"):
            self._workspaces.caches.forget_names(tree.reset(paths))
            await self._workspaces.caches.settled()
        return {
            "path": entry_path,
            "files": [os.fsdecode(each) for each in touched],
            "dry_run": bool(args.get("dry_run")),
        }


async def _changed(tree: OverlayTree, below: bytes) -> Any:
    """Each changed file under *below* before and after. Lets others have the loop between files."""
    for change in list(tree.changes()):
        if below and change.path != below and not change.path.startswith(below + b"/"):
            continue
        is_directory = change.kind == stat.S_IFDIR
        if is_directory and change.what in ("added", "modified"):
            continue  # git knows directories by what is in them, and that is told of too
        if change.what != "added":
            ref = tree.lower.find(change.path)
            if ref is not None:
                async for path, version in _lower_files(tree.lower, change.path, ref):
                    yield Changed(path, version, None)
        if change.what != "deleted" and not is_directory:
            after = await _upper_version(tree, change.path)
            if after is not None:
                yield Changed(change.path, None, after)
        await trio.lowlevel.checkpoint()


async def _lower_files(lower: Lower, path: bytes, ref: LowerRef) -> Any:
    pending = [(path, ref)]
    while pending:
        at, current = pending.pop()
        if current.kind == stat.S_IFDIR:
            for entry in lower.entries(current):
                child = lower.child(current, entry.name)
                if child is not None:
                    pending.append((at + b"/" + entry.name, child))
            continue
        attr = await _waiting(lambda c=current: lower.attr(c, fetch=True))
        mode = git_mode(attr.mode)
        if mode is None:
            continue
        if mode == 0o120000:
            yield at, Version(mode, await _waiting(lambda c=current: lower.readlink(c)))
        else:
            yield at, Version(mode, await _content(lambda c=current: lower.open(c), attr.size))


async def _upper_version(tree: OverlayTree, path: bytes) -> Version | None:
    node: Node = tree.root
    try:
        for name in path.split(b"/"):
            node, attr = await _waiting(lambda n=node, x=name: tree.lookup(n, x))
    except (FileNotFoundError, NotADirectoryError):
        return None
    mode = git_mode(attr.mode)
    if mode is None:
        return None
    if mode == 0o120000:
        return Version(mode, tree.readlink(node))
    return Version(mode, await _content(lambda: tree.open(node, os.O_RDONLY), attr.size))


async def _content(open_it: Any, size: int) -> bytes:
    file = await _waiting(open_it)
    try:
        parts: list[bytes] = []
        offset = 0
        while True:
            part = file.read(offset, _BLOCK)
            if not part:
                return b"".join(parts)
            parts.append(part)
            offset += len(part)
            await trio.lowlevel.checkpoint()
    finally:
        file.close()


async def _waiting(call: Any) -> Any:
    """Call until it has not to wait any more."""
    while True:
        try:
            return call()
        except Blocked as blocked:
            await trio.to_thread.run_sync(blocked.job)
