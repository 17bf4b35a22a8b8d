"""Which overlay a command means, and what the parts of one are called."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import Reader
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.overlay.upper import Upper


class Target(NamedTuple):
    """An overlay that can be written."""

    live: LiveWorkspace
    mounted: Mounted | None
    """None for the workspace's own directory."""
    tree: OverlayTree
    path: str
    """The entry's."""
    below: bytes
    """What was named in it; empty for all of it."""

    @property
    def upper(self) -> Upper:
        upper = self.tree.upper
        assert upper is not None
        return upper


class Based(NamedTuple):
    """An overlay on a git ref or a published module."""

    target: Target
    mounted: Mounted
    lower: GitLower
    base: bytes
    """The tree of the ref or the release, without patches."""
    reader: Reader
    """Has its objects, and those of the patched tree."""

    @property
    def patched(self) -> bytes:
        """The tree that the overlay stands on."""
        return self.lower.root.entry.oid


def find(workspaces: Workspaces, args: dict[str, Any]) -> Target:
    """The overlay that the path in *args* lies in. ClivefsError where there is none that can be written."""
    live = workspaces.get(args["workspace"])
    path = os.path.normpath(args["path"])
    entry_path = enclosing(live, path)
    if entry_path is not None:
        mounted = live.entries[entry_path]
        if not isinstance(mounted.tree, OverlayTree) or not mounted.tree.writable:
            wrong = mounted.error or f"the entry is not an overlay (write = {mounted.entry.write!r})"
            raise ClivefsError(wrong, place=entry_path, remedy='only entries with write = "overlay" keep edits apart')
        return Target(live, mounted, mounted.tree, entry_path, os.fsencode(path[len(entry_path) + 1 :]))
    if isinstance(live.root_tree, OverlayTree) and live.root_tree.writable:
        return Target(live, None, live.root_tree, "", b"" if path == "." else os.fsencode(path))
    entries = ", ".join(live.entries) or "none"
    raise ClivefsError(
        "no mount entry is at or above this path", place=path, remedy=f"the mount entries are: {entries}"
    )


def anew(workspaces: Workspaces, there: Target) -> Target:
    """*there* as it is now, for who has waited for a lock of its entry: that may show something else since.
    ClivefsError where it is none any more."""
    path = os.path.join(there.path, os.fsdecode(there.below))
    found = find(workspaces, {"workspace": there.live.name, "path": path})
    if found.live is not there.live or found.path != there.path:
        raise ClivefsError("the entry has changed meanwhile", place=there.path, remedy="run it again")
    return found


def enclosing(live: LiveWorkspace, path: str) -> str | None:
    """The path of the innermost mount entry at or above *path*."""
    found = [each for each in live.entries if path == each or path.startswith(each + "/")]
    return max(found, key=len, default=None)


def based(target: Target, what: str) -> Based:
    """*target* with what it stands on. ClivefsError for a directory of this machine: *what* needs a release."""
    mounted = target.mounted
    if mounted is None or not isinstance(mounted.lower, GitLower):
        raise ClivefsError(
            f"{what} needs a git ref or a published module below it, and this is a directory of this machine",
            place=target.path or target.live.name,
            remedy="`clivefs overlay export PATH -o FILE` writes the edits as a patch",
        )
    if mounted.resolved is not None:
        tree = mounted.resolved.tree
    else:
        assert mounted.published is not None
        tree = mounted.published.tree
    return Based(target, mounted, mounted.lower, tree, mounted.lower.root.space.reader)


def whole_entry(target: Target, what: str) -> None:
    """ClivefsError where *target* is only a part of a mount entry."""
    if target.mounted is None or target.below:
        raise ClivefsError(
            f"{what} concerns a whole mount entry", place=os.fsdecode(target.below), remedy=f"name {target.path}"
        )


def files_of(target: Target, names: Sequence[str]) -> list[bytes]:
    """The files *names*, which a person gave relative to the path, relative to the entry."""
    paths = [os.path.join(target.below, os.fsencode(os.path.normpath(each))) for each in names]
    for path in paths:
        if path.startswith((b"/", b"../")) or path in (b"..", b"."):
            raise ClivefsError("the file lies outside the entry", place=os.fsdecode(path))
    return paths
