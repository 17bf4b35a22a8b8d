"""What is left of a tree whose mount entry is gone: the nodes that somebody still holds.

Files that are open go on working through their descriptors, with true attributes. A directory that
somebody works in is like one that was removed: empty, and nothing can be made in it. The tree itself is
closed, so its overlay can be mounted again at once, by whoever attaches the same source.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, Blocked, DirEntry, Node, OpenFile, SetAttr, Tree, refuse


class DetachedTree(Tree):
    """The held nodes of *tree*, which *close* closes: while this is made, once the nodes' facts are known."""

    writable = False
    degraded = True

    def __init__(self, tree: Tree, table: NodeTable, close: Callable[[], None]) -> None:
        self.root = tree.root
        self._known: dict[Node, Attr] = {}
        held = [node for node in table.nodes() if node.tree is tree]
        for node in held:
            try:
                self._known[node] = tree.getattr(node)
            except (OSError, Blocked):
                continue  # answered ESTALE from now on
        close()
        for node in held:
            node.tree = self

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        raise refuse(errno.ENOENT, name)

    def entries(self, directory: Node) -> list[DirEntry]:
        return []

    def getattr(self, node: Node) -> Attr:
        attr = self._known.get(node)
        if attr is None:
            raise refuse(errno.ESTALE)
        if stat.S_ISDIR(attr.mode):
            attr.nlink = 0
        return attr

    def getattr_open(self, node: Node, file: OpenFile) -> Attr:
        """As `getattr`, of a node that is open as *file*."""
        fd = file.fileno()
        return Attr.of(os.fstat(fd)) if fd is not None else self.getattr(node)

    def readlink(self, node: Node) -> bytes:
        raise refuse(errno.ESTALE)

    def open(self, node: Node, flags: int) -> OpenFile:
        raise refuse(errno.ESTALE)

    def setattr(self, node: Node, change: SetAttr, file: OpenFile | None) -> Attr:
        fd = file.fileno() if file is not None else None
        if file is None or fd is None or change.uid is not None or change.gid is not None:
            raise refuse(errno.ESTALE)
        if change.size is not None:
            os.ftruncate(fd, change.size)
        if change.mode is not None:
            os.fchmod(fd, change.mode)
        if change.atime_ns is not None or change.mtime_ns is not None:
            st = os.fstat(fd)
            times = (change.atime_ns, change.mtime_ns)
            now = (st.st_atime_ns, st.st_mtime_ns)
            atime_ns, mtime_ns = (old if new is None else new for old, new in zip(now, times, strict=True))
            os.utime(fd, ns=(atime_ns, mtime_ns))
        return self.getattr_open(node, file)

    def dropped(self, node: Node) -> None:
        self._known.pop(node, None)
