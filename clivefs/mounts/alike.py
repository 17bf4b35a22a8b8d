"""Whether two files of a live tree have the same content."""

from __future__ import annotations

import os
import stat

from clivefs.mounts.tree import Attr, Node, Tree

_COMPARED_BYTES_MAX = 1 << 20


def same_content(tree: Tree, one: tuple[Node, Attr], other: tuple[Node, Attr]) -> bool:
    """Whether two regular files, or two symlinks, have it. Files over 1 MiB are not looked into: False. May be
    `Blocked`."""
    (node, attr), (other_node, other_attr) = one, other
    if stat.S_IFMT(attr.mode) != stat.S_IFMT(other_attr.mode):
        return False
    if stat.S_ISLNK(attr.mode):
        return tree.readlink(node) == tree.readlink(other_node)
    if not stat.S_ISREG(attr.mode) or attr.size != other_attr.size or attr.size > _COMPARED_BYTES_MAX:
        return False
    return _content(tree, node, attr.size) == _content(tree, other_node, attr.size)


def _content(tree: Tree, node: Node, size: int) -> bytes:
    file = tree.open(node, os.O_RDONLY)
    try:
        return bytes(file.read(0, size))
    finally:
        file.close()
