"""What a mount entry shows without patches and edits: the trees of `.clive/base`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from clivefs.mounts.assembly.entry import Mounted, State
from clivefs.mounts.assembly.places import Places
from clivefs.mounts.git.attributes import GitAttributes
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource
from clivefs.mounts.git.submodules import GitSubmodules
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.lower import Lower
from clivefs.mounts.overlay.tree import OverlayTree


def base_lower(places: Places, mounted: Mounted, local_lower: Callable[[int], LocalLower]) -> Lower | None:
    """The source of *mounted* as it is, as a layer of its own; None where there is nothing between it and what is
    shown: an entry written through, or one that shows nothing. ClivefsError, OSError."""
    entry, lower = mounted.entry, mounted.lower
    if not isinstance(mounted.tree, OverlayTree) or mounted.state not in (State.MOUNTED, State.BEHIND):
        return None
    if isinstance(lower, LocalLower):
        assert entry.host_path is not None
        return local_lower(places.open_directory(entry.host_path, entry.location))
    if not isinstance(lower, GitLower):
        return None
    space = lower.root.space
    if mounted.resolved is None or mounted.source is None:
        assert mounted.published is not None
        return GitLower(space, mounted.published.tree, owner=places.owner, cache_dir=places.unpacked)

    def converter(source: GitSource) -> GitAttributes:
        return GitAttributes(places.unpacked, info_attributes=source.info_attributes())

    source, resolved = mounted.source, mounted.resolved
    submodules = GitSubmodules(source, resolved, timeout_s=places.network_timeout_s, converter=converter)
    return GitLower(
        dataclasses.replace(space, converter=converter(source), submodules=submodules),
        resolved.tree,
        owner=places.owner,
        cache_dir=places.unpacked,
        fetch_timeout_s=places.network_timeout_s,
    )
