"""Trees of the past in a view: points, and revisions of git mount entries. Read-only.

One `PastTree` serves all of them. Each stands below a node of its own, a `PastTop`, that some other tree's directory
has as a child; its layer is opened when somebody first looks into it, and closed when the kernel has forgotten all of
it. So a listing of 100,000 points opens none, and entering one costs the same whichever it is.

Owned here: the nodes of the past. A node's number comes from its top's and its path there, so it is the same whenever
the point is entered; hard links of a point are one node.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from clivefs.mounts.inodenumbers import inode_number
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, DirEntry, Node, OpenFile, Owner, Tree, refuse

CONTROL = b".clive"
_NO_OPEN = {stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP}


class PastNode(Node):
    """A file of the past."""

    __slots__ = ("link", "ref", "top")

    def __init__(self, tree: Tree, parent: Node, name: bytes, top: PastTop | None, ref: LowerRef | None) -> None:
        super().__init__(tree, parent, name)
        self.top = top
        """None: it is one itself."""
        self.ref = ref
        self.link = 0
        """Not 0: its number among the hard links of its layer."""


class PastTop(PastNode):
    """The root of a layer, which `open_layer` opens."""

    __slots__ = ("linked", "lower", "mtime_ns", "open_layer")

    def __init__(self, tree: Tree, parent: Node, name: bytes, mtime_ns: int, open_layer: Callable[[], Lower]) -> None:
        super().__init__(tree, parent, name, None, None)
        self.mtime_ns = mtime_ns
        """What a listing shows, which does not look into it."""
        self.open_layer = open_layer
        self.lower: Lower | None = None
        self.linked: dict[int, PastNode] | None = None


class PastTree(Tree):
    """The past of a workspace: `top` puts a layer where it is to be seen."""

    writable = False

    def __init__(self, root: Node, table: NodeTable, owner: Owner) -> None:
        """*root*: of the tree below which the past is shown."""
        self.root = root
        self._table = table
        self._owner = owner

    def top(self, parent: Node, name: bytes, number: int, mtime_ns: int, open_layer: Callable[[], Lower]) -> PastTop:
        """A new child of *parent*: the root of the layer that *open_layer* opens (OSError; may be `Blocked`)."""
        top = PastTop(self, parent, name, mtime_ns, open_layer)
        self._table.add(top, number)
        if parent.children is None:
            parent.children = {}
        parent.children[name] = top
        return top

    def glance(self, top: PastTop) -> Attr:
        """The attributes of a top without opening it: nobody but the owner may count on them, and not for long."""
        if top.lower is not None:
            return self.getattr(top)
        mode = stat.S_IFDIR | 0o700  # never wider than it will turn out to be
        return Attr(mode, 0, top.mtime_ns, uid=self._owner.uid, gid=self._owner.gid, unsized=True)

    def _open(self, node: PastNode) -> tuple[Lower, LowerRef]:
        """The layer that a node is in, and its file there."""
        top = node.top or node
        assert isinstance(top, PastTop)
        if top.lower is None:
            lower = top.open_layer()
            top.ref = lower.root
            top.lower = lower
        assert node.ref is not None
        return top.lower, node.ref

    # Looking

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        return self._get(_own(directory), name, fetch=True)

    def listed(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        return self._get(_own(directory), name, fetch=False)

    def _get(self, directory: PastNode, name: bytes, *, fetch: bool) -> tuple[Node, Attr]:
        lower, ref = self._open(directory)
        if ref.kind != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, name)
        known = directory.children.get(name) if directory.children else None
        if known is not None:
            assert isinstance(known, PastNode)
            assert known.ref is not None
            return known, lower.attr(known.ref, fetch=fetch)
        found = None if name == CONTROL and directory.top is None else lower.child(ref, name)
        if found is None:
            raise refuse(errno.ENOENT, name)
        attr = lower.attr(found, fetch=fetch)
        return self._node(directory, name, lower, found), attr

    def _node(self, directory: PastNode, name: bytes, lower: Lower, ref: LowerRef) -> PastNode:
        top = directory.top or directory
        assert isinstance(top, PastTop)
        link = lower.link(ref)
        if link:
            other = top.linked.get(link) if top.linked else None
            # Only what is of one kind and content can be one file, whatever the metadata says.
            if other is not None and other.ref is not None and _same(lower, other.ref, ref):
                return other
        node = PastNode(self, directory, name, top, ref)
        above = directory.nodeid.to_bytes(8, "little")
        self._table.add(node, inode_number(b"past", above, name))
        if directory.children is None:
            directory.children = {}
        directory.children[name] = node
        if link:
            if top.linked is None:
                top.linked = {}
            if top.linked.setdefault(link, node) is node:
                node.link = link
        return node

    def entries(self, directory: Node) -> list[DirEntry]:
        own = _own(directory)
        lower, ref = self._open(own)
        found = lower.entries(ref)
        return [entry for entry in found if entry.name != CONTROL] if own.top is None else found

    def names(self, directory: Node) -> list[bytes]:
        own = _own(directory)
        lower, ref = self._open(own)
        found = lower.names(ref)
        return [name for name in found if name != CONTROL] if own.top is None else found

    def getattr(self, node: Node) -> Attr:
        lower, ref = self._open(_own(node))
        return lower.attr(ref, fetch=True)

    def readlink(self, node: Node) -> bytes:
        lower, ref = self._open(_own(node))
        if ref.kind != stat.S_IFLNK:
            raise refuse(errno.EINVAL, node.name)
        return lower.readlink(ref)

    def open(self, node: Node, flags: int) -> OpenFile:
        lower, ref = self._open(_own(node))
        if ref.kind != stat.S_IFREG:
            raise refuse(_NO_OPEN.get(ref.kind, errno.ENXIO), node.name)
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise refuse(errno.EROFS, node.name)
        return lower.open(ref)

    # Extended attributes

    def getxattr(self, node: Node, name: bytes) -> bytes:
        lower, ref = self._open(_own(node))
        value = lower.xattrs(ref).get(name)
        if value is None:
            raise refuse(errno.ENODATA, name)
        return value

    def listxattr(self, node: Node) -> list[bytes]:
        lower, ref = self._open(_own(node))
        return sorted(lower.xattrs(ref))

    def describe(self, node: Node) -> dict[str, bytes]:
        lower, ref = self._open(_own(node))
        return lower.describe(ref)

    # Life

    def dropped(self, node: Node) -> None:
        own = _own(node)
        linked = own.top.linked if own.top is not None else None
        if own.link and linked is not None and linked.get(own.link) is own:
            del linked[own.link]
        if isinstance(own, PastTop) and own.lower is not None:
            own.lower.close()
            own.lower = own.ref = own.linked = None


def _same(lower: Lower, one: LowerRef, two: LowerRef) -> bool:
    """Whether two names with one link number can be one file."""
    return one.kind == two.kind and lower.describe(one).get("oid") == lower.describe(two).get("oid")


def _own(node: Node) -> PastNode:
    assert isinstance(node, PastNode)
    return node
