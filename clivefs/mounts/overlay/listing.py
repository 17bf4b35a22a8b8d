"""What a directory of an overlay lists: the names of both layers, as the marks say."""

from __future__ import annotations

import errno

from clivefs.mounts.overlay.marks import MarkKind
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.overlay.nodes import OverlayNodes
from clivefs.mounts.overlay.upper import list_directory
from clivefs.mounts.tree import DirEntry


def merged_entries(nodes: OverlayNodes, directory: OverlayNode) -> list[DirEntry]:
    """The names in a directory with their kinds, sorted by their bytes."""
    if directory.removed:
        return []
    found: dict[bytes, int] = {}
    ref = nodes.lower_directory(directory)
    if ref is not None:
        try:
            found.update(nodes.lower.entries(ref))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
        if directory.mark is not None and directory.mark.children:
            for name, mark in directory.mark.children.items():
                if mark.kind is MarkKind.HIDDEN:
                    found.pop(name, None)
    if directory.upper:
        found.update(list_directory(nodes.directory_fd(directory)))
    return [DirEntry(name, kind) for name, kind in sorted(found.items())]


def merged_names(nodes: OverlayNodes, directory: OverlayNode) -> list[bytes]:
    """The names of `merged_entries`. Of a directory that is as in the lower they are the lower's."""
    mark = directory.mark
    if directory.upper or directory.removed or nodes.lower.live or directory.lower is None:
        return [entry.name for entry in merged_entries(nodes, directory)]
    if mark is not None and mark.children:
        return [entry.name for entry in merged_entries(nodes, directory)]
    return nodes.lower.names(directory.lower)
