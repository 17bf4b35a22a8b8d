"""What a directory of an overlay lists: the names of both layers, as the marks say."""

from __future__ import annotations

import errno

from clivefs.mounts.overlay.marks import MarkKind
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.overlay.nodes import OverlayNodes
from clivefs.mounts.overlay.upper import list_directory, list_for_us
from clivefs.mounts.tree import DirEntry


def merged_entries(nodes: OverlayNodes, directory: OverlayNode) -> list[DirEntry]:
    """The names in a directory with their kinds, sorted by their bytes."""
    if directory.removed:
        return []
    found = _lower_entries(nodes, directory)
    if directory.upper:
        found.update(list_directory(nodes.directory_fd(directory)))
    return [DirEntry(name, kind) for name, kind in sorted(found.items())]


def _lower_entries(nodes: OverlayNodes, directory: OverlayNode) -> dict[bytes, int]:
    """The kinds of what shows of the lower, by name."""
    found: dict[bytes, int] = {}
    ref = nodes.lower_directory(directory)
    if ref is None or directory.removed:
        return found
    try:
        found.update(nodes.lower.entries(ref))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ESTALE):
            raise
    if directory.mark is not None and directory.mark.children:
        for name, mark in directory.mark.children.items():
            if mark.kind is MarkKind.HIDDEN:
                found.pop(name, None)
    return found


def is_empty(nodes: OverlayNodes, directory: OverlayNode) -> bool:
    """Whether a directory shows nothing, also where it may not be read: to remove it, the right to change the one it
    is in is enough."""
    if directory.upper and not directory.removed and list_for_us(nodes.directory_fd(directory)):
        return False
    return not _lower_entries(nodes, directory)


def merged_names(nodes: OverlayNodes, directory: OverlayNode) -> list[bytes]:
    """The names of `merged_entries`. Of a directory that is as in the lower they are the lower's."""
    mark = directory.mark
    if directory.upper or directory.removed or nodes.lower.live or directory.lower is None:
        return [entry.name for entry in merged_entries(nodes, directory)]
    if mark is not None and mark.children:
        return [entry.name for entry in merged_entries(nodes, directory)]
    return nodes.lower.names(directory.lower)
