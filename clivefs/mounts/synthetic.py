"""Directories and files that no source has: the mountpoint's top, the way to a mount entry, `.clive`."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import TypeVar

from clivefs.mounts.inodenumbers import inode_number
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, DirEntry, Node, OpenFile, Owner, Tree, refuse

N = TypeVar("N", bound=Node)


class SyntheticDirectory(Node):
    """A directory whose names are set by the view alone (in `Node.mounts`)."""

    __slots__ = ("unlisted",)

    def __init__(self, tree: Tree, parent: Node | None, name: bytes) -> None:
        super().__init__(tree, parent, name)
        self.unlisted: dict[bytes, Node] = {}
        """Files that answer lookups, by name."""


class Bridge(SyntheticDirectory):
    """A directory on the way to a mount entry. It shows the names of the layer below it too, if that has a
    directory here, and the mount entries on top of them.

    The kernel knows the bridge's number only; `real` is what the layer below has, looked up anew by the
    view whenever the bridge is used, so that it may come and go underneath.
    """

    __slots__ = ("real",)

    def __init__(self, tree: Tree, parent: Node, name: bytes) -> None:
        super().__init__(tree, parent, name)
        self.real: Node | None = None
        self.mounts = {}


class SyntheticFile(Node):
    """A read-only file whose content is made when it is looked at."""

    __slots__ = ("render",)

    def __init__(self, tree: Tree, parent: Node, name: bytes, render: Callable[[], bytes]) -> None:
        super().__init__(tree, parent, name)
        self.render = render


class _Rendered(OpenFile):
    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


class SyntheticTree(Tree):
    """All synthetic nodes of one mountpoint. Read-only; `degraded`, so that nothing of it is cached long."""

    writable = False
    degraded = True

    def __init__(self, table: NodeTable, owner: Owner, time_ns: int) -> None:
        self._table = table
        self._owner = owner
        self._time_ns = time_ns
        self.root = SyntheticDirectory(self, None, b"")
        self.root.mounts = {}
        table.add(self.root, 1, pin=True)

    def directory(self, parent: Node, name: bytes, *, hidden: bool = False) -> SyntheticDirectory:
        """A new directory, shown in *parent* unless *hidden*; it lives until `remove`."""
        return self._place(SyntheticDirectory(self, parent, name), hidden)

    def bridge(self, parent: Node, name: bytes) -> Bridge:
        return self._place(Bridge(self, parent, name), False)

    def file(self, parent: Node, name: bytes, render: Callable[[], bytes]) -> SyntheticFile:
        return self._place(SyntheticFile(self, parent, name, render), False)

    def unlisted_file(self, parent: SyntheticDirectory, name: bytes, render: Callable[[], bytes]) -> SyntheticFile:
        """A file that answers lookups and is not listed; it lives until `remove`."""
        file = parent.unlisted[name] = self._place(SyntheticFile(self, parent, name, render), True)
        return file

    def _place(self, node: N, hidden: bool) -> N:
        parent = node.parent
        if parent is not None and not hidden:
            if parent.mounts is None:
                parent.mounts = {}
            parent.mounts[node.name] = node
        above = parent.nodeid if parent is not None else 0
        self._table.add(node, inode_number(b"synthetic", above.to_bytes(8, "little"), node.name), pin=True)
        return node

    def remove(self, node: Node) -> None:
        """Take a node of this tree, or the root of another that hangs in it, out of its parent."""
        parent = node.parent
        if parent is not None and parent.mounts is not None and parent.mounts.get(node.name) is node:
            del parent.mounts[node.name]
        if isinstance(parent, SyntheticDirectory):
            parent.unlisted.pop(node.name, None)
        node.removed = True
        self._table.unpin(node)

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        found = directory.unlisted.get(name) if isinstance(directory, SyntheticDirectory) else None
        if found is None:
            raise refuse(errno.ENOENT, name)  # what is in `mounts` the view answers
        return found, self.getattr(found)

    def entries(self, directory: Node) -> list[DirEntry]:
        return []  # the view lists what is in `mounts`

    def getattr(self, node: Node) -> Attr:
        uid, gid = self._owner
        if isinstance(node, SyntheticFile):
            size = len(node.render())
            return Attr(stat.S_IFREG | 0o444, size, self._time_ns, uid=uid, gid=gid)
        nlink = 0 if node.removed else 1
        return Attr(stat.S_IFDIR | 0o755, 0, self._time_ns, uid=uid, gid=gid, nlink=nlink)

    def readlink(self, node: Node) -> bytes:
        raise refuse(errno.EINVAL, node.name)

    def open(self, node: Node, flags: int) -> OpenFile:
        if not isinstance(node, SyntheticFile):
            raise refuse(errno.EISDIR, node.name)
        if flags & 3:
            raise refuse(errno.EROFS, node.name)
        return _Rendered(node.render())
