"""`blame`: which layer each file of a workspace comes from, and each line."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.overlays import reading, target
from clivefs.daemon.overlays.reading import waiting
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.edits import converting
from clivefs.mounts.edits.blame import Layer, Lines, blame_lines, tree_layers
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.treemerge import is_binary
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.patch.apply import PatchFailed, apply_patch, needed
from clivefs.mounts.patch.file import PatchSyntax
from clivefs.mounts.tree import Node

FILES_MAX = 200_000
_UPPER = "upper"


class Blaming:
    """Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def blame(self, live: LiveWorkspace, path: str) -> dict[str, Any]:
        """Of a directory the files below it, each with its layer; of a file the lines too. ClivefsError."""
        try:
            return await self._blame(live, path)
        except OSError as error:
            raise ClivefsError(
                f"it cannot be read: {error.strerror}",
                place=path,
                remedy="try again when its source can be reached" if error.errno == errno.EIO else None,
            ) from error
        except ClivefsError as error:
            raise ClivefsError(error.message, place=error.place or path, remedy=error.remedy) from error

    async def _blame(self, live: LiveWorkspace, path: str) -> dict[str, Any]:
        view, node = self._workspaces.view, live.root_tree.root
        try:
            for name in os.fsencode(path).split(b"/") if path not in ("", ".") else ():
                node, _ = await waiting(lambda n=node, x=name: view.lookup(n, x))  # type: ignore[misc]
            attr = view.getattr(node)
        except (FileNotFoundError, NotADirectoryError):
            raise ClivefsError("there is no such file", place=path) from None
        if stat.S_ISDIR(attr.mode):
            return {"path": path, "files": await self._files(node), "lines": None}
        layer = _layer(node)
        lines = await self._lines(live, path, node, layer) if stat.S_ISREG(attr.mode) else None
        told = None if lines is None else [each._asdict() for each in lines]
        return {"path": path, "files": [{"path": "", "layer": layer}], "lines": told}

    async def _files(self, top: Node) -> list[dict[str, str]]:
        view = self._workspaces.view
        found: list[dict[str, str]] = []
        pending = [(b"", top)]
        while pending:
            directory, node = pending.pop()
            below: list[tuple[bytes, Node]] = []
            for entry in await waiting(lambda n=node: view.entries(n)):  # type: ignore[misc]
                if not directory and entry.name == b".git":
                    continue
                try:
                    child, attr = await waiting(lambda n=node, x=entry.name: view.listed(n, x))  # type: ignore[misc]
                except OSError:
                    continue  # gone meanwhile
                path = directory + entry.name
                if stat.S_ISDIR(attr.mode):
                    below.append((path + b"/", child))
                else:
                    found.append({"path": os.fsdecode(path), "layer": _layer(child)})
            pending.extend(reversed(below))
            if len(found) > FILES_MAX:
                raise ClivefsError(f"there are over {FILES_MAX} files", remedy="name a directory below")
            await trio.lowlevel.checkpoint()
        return sorted(found, key=lambda each: each["path"])

    async def _lines(self, live: LiveWorkspace, path: str, node: Node, layer: str) -> list[Lines] | None:
        """The layers of a text file's lines; None for a binary file, and for one that cannot be read."""
        entry_path = target.enclosing(live, path)
        mounted = live.entries.get(entry_path) if entry_path is not None else None
        tree = node.tree
        if not isinstance(tree, OverlayTree):
            return None
        inner = os.fsencode(path[len(entry_path) + 1 :] if entry_path is not None else path)
        shown = await reading.shown_version(tree, inner)
        if shown is None or is_binary(shown.content):
            return None
        if mounted is not None and isinstance(mounted.lower, GitLower):
            lower = mounted.lower
            files = {inner: shown}
            shown = (await trio.to_thread.run_sync(converting.stored, lower, files, self._workspaces.scratch()))[inner]
            layers = await trio.to_thread.run_sync(self._git_layers, mounted, lower, inner)
        else:
            ref = tree.lower.find(inner)
            before = await reading.lower_version(tree.lower, ref) if ref is not None else None
            layers = [Layer("local", {inner: before})]
        if layer == _UPPER:
            layers = [*layers, Layer(_UPPER, {inner: shown})]
        return await trio.to_thread.run_sync(blame_lines, layers, inner, self._workspaces.scratch())

    def _git_layers(self, mounted: Mounted, lower: GitLower, path: bytes) -> list[Layer]:
        """For threads: gets what nobody has read of a source that is fetched as it is read."""
        resolved, published = mounted.resolved, mounted.published
        assert resolved is not None or published is not None
        base = resolved.tree if resolved is not None else published.tree  # type: ignore[union-attr]
        name = resolved.layer if resolved is not None else published.layer  # type: ignore[union-attr]
        space, store = lower.root.space, self._workspaces.store
        reader = JoinedObjects((space.reader,), self._workspaces.scratch(), space.fetcher)
        trees = [(name.decode("utf-8", "replace"), base)]
        for patch, data in mounted.series.patches:
            try:
                reader.want(needed(reader, trees[-1][1], patch, data))
                trees.append((f"patch:{patch}", apply_patch(reader, store, trees[-1][1], patch, data).tree))
            except (PatchFailed, PatchSyntax):
                break  # it and those after it are not shown
        return list(tree_layers(reader, trees, path))


def _layer(node: Node) -> str:
    return node.tree.describe(node).get("layer", b"").decode("utf-8", "replace")
