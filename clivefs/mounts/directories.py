"""Directories of a live tree by path, whose nodes stay as long as they are needed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, Node, SetAttr, Tree, refuse

_OWNER_CHANGES = 0o300
"""To change the names in a directory one must be allowed to write and to search."""
_OTHERS_WRITE = 0o022
"""Whether one of these is for us, the kernel knows."""


class Directories:
    """Looks paths up in *tree*, once each. May be `Blocked`."""

    def __init__(self, tree: Tree, table: NodeTable) -> None:
        self._tree = tree
        self._table = table
        self._known: dict[bytes, Node] = {}
        self._held: list[Node] = []

    def at(self, path: bytes) -> Node | None:
        """The directory at *path*; None where there is none."""
        known = self._known.get(path)
        if known is not None:
            return known
        if not path:
            return self._tree.root
        head, _, name = path.rpartition(b"/")
        parent = self.at(head)
        found = self.child(parent, name) if parent is not None else None
        if found is None or not stat.S_ISDIR(found[1].mode):
            return None
        self.add(path, found[0])
        return found[0]

    def child(self, parent: Node, name: bytes) -> tuple[Node, Attr] | None:
        """What *name* in *parent* leads to; None where there is nothing."""
        try:
            return self._tree.lookup(parent, name)
        except FileNotFoundError:
            return None

    def closed(self, paths: Iterable[bytes]) -> dict[bytes, int]:
        """Those of the directories at *paths* in which the user whom we run as may not change names, though they are
        his, with their permission bits. EACCES for one that is another's. What he may is as permission bits tell."""
        found: dict[bytes, int] = {}
        for path in paths:
            node = self.at(path)
            attr = self._tree.getattr(node) if node is not None else None
            if attr is None:
                continue
            if attr.uid != os.geteuid():
                if not attr.mode & _OTHERS_WRITE:
                    raise refuse(errno.EACCES, path)
            elif attr.mode & _OWNER_CHANGES != _OWNER_CHANGES:
                found[path] = stat.S_IMODE(attr.mode)
        return found

    def open(self, paths: Iterable[bytes]) -> None:
        """Let us change names in those of *paths* that are `closed`."""
        for path, mode in self.closed(paths).items():
            node = self.at(path)
            assert node is not None
            self._tree.setattr(node, SetAttr(mode=mode | _OWNER_CHANGES), None)

    def add(self, path: bytes, node: Node) -> None:
        """There is a directory at *path* now."""
        self.hold(node)
        self._known[path] = node

    def gone(self, path: bytes) -> None:
        """There is none any more."""
        self._known.pop(path, None)

    def hold(self, node: Node) -> None:
        """Let *node* stay, too."""
        node.opens += 1
        self._held.append(node)

    def forget(self) -> None:
        """Look all of them up once more; those that were found stay held."""
        self._known.clear()

    def release(self) -> None:
        """Let go of all of them."""
        self._known.clear()
        held, self._held = self._held, []
        for node in held:
            node.opens -= 1
            self._table.release(node)
