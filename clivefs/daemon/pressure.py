"""Keeping bounded how many files the kernel remembers, and we for it.

The kernel gives an inode back only when it wants memory for itself, so a walk over a tree without end (a few
git objects make one of 10^10 files) would grow the daemon without end. Above a limit the names of the
files known longest are taken from the kernel, which then forgets their inodes; who has one open keeps it.
"""

from __future__ import annotations

from clivefs.mounts.host.nodes import HostNode
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.tree import Node

NODES_MAX = 200_000
_KEPT = 0.8
_DIRECTORIES_FROM = 4
"""Directories are let go above this many times the limit: one of them may be somebody's current directory, which
then has no name any more."""


def surplus(table: NodeTable, nodes_max: int = NODES_MAX) -> list[Node]:
    """The nodes to take from the kernel, none while there are at most *nodes_max*."""
    if len(table) <= nodes_max:
        return []
    excess = len(table) - int(nodes_max * _KEPT)
    directories_too = len(table) > nodes_max * _DIRECTORIES_FROM
    found: list[Node] = []
    for node in table.nodes():  # the oldest first
        if len(found) >= excess:
            break
        if not isinstance(node, (HostNode, OverlayNode)) or node.parent is None or node.removed or node.opens:
            continue
        if node.is_dir and not (directories_too and not node.children and not node.mounts):
            continue
        found.append(node)
    return found
