"""Files of the live view, found by path for whoever is not the kernel: through its trees' own nodes.

So marks, redirects and hidden mountpoints count as they do in the mount, and a directory is watched by being looked
into. Directories on the way are held, so that the next look is quick; they are believed only as long as they are
where they were.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping

from clivefs.mounts.host.calls import xattr_path
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, Blocked, Node, Tree, refuse

GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.EACCES, errno.ELOOP)
"""What is answered for a file that is not there, or may not be reached."""
_HELD_MAX = 256
_USED_MAX = 16

Trees = Callable[[], Mapping[bytes, Tree]]
"""The trees of the live view by mount entry; that of the workspace's own directory is the empty path."""


class LiveFiles:
    """For the loop's thread."""

    def __init__(self, table: NodeTable, trees: Trees) -> None:
        self._table = table
        self._trees = trees
        self._held: OrderedDict[tuple[int, bytes], Node] = OrderedDict()
        self._used: deque[Node] = deque()

    def find(self, path: bytes) -> tuple[Tree, Node, Attr] | None:
        """What there is at *path* of the workspace; None where there is nothing. The node is good until some others
        were asked for. May be `Blocked`."""
        trees = self._trees()
        prefix = path
        while prefix not in trees:
            if not prefix:
                return None
            prefix = prefix.rpartition(b"/")[0]
        tree = trees[prefix]
        below = path[len(prefix) :].lstrip(b"/")
        for _ in range(2):
            try:
                return self._walk(tree, below)
            except OSError as error:
                if error.errno not in GONE:
                    raise
                if not self._forget_way(tree, below):
                    break
        return None

    def _walk(self, tree: Tree, path: bytes) -> tuple[Tree, Node, Attr]:
        if not path:
            return tree, tree.root, tree.getattr(tree.root)
        head, _, name = path.rpartition(b"/")
        node, attr = tree.lookup(self._directory(tree, head), name)
        self._use(node)
        return tree, node, attr

    def _use(self, node: Node) -> None:
        """Hold a node for as long as its finder may need it."""
        node.opens += 1
        self._used.append(node)
        if len(self._used) > _USED_MAX:
            self._unuse(self._used.popleft())

    def _unuse(self, node: Node) -> None:
        node.opens -= 1
        self._table.release(node)

    def _directory(self, tree: Tree, path: bytes) -> Node:
        """The directory *path* of *tree*, held so that the next look is quick. Iterative: paths may be deep."""
        names = path.split(b"/") if path else []
        at = len(names)
        node = tree.root
        while at:
            known = self._held.get((id(tree), b"/".join(names[:at])))
            if known is not None:
                if known.tree is tree and not known.removed and known.path() == b"/".join(names[:at]):
                    node = known
                    break
                self._let_go((id(tree), b"/".join(names[:at])))
            at -= 1
        for index in range(at, len(names)):
            node, attr = tree.lookup(node, names[index])
            if not stat.S_ISDIR(attr.mode):
                self._table.release(node)
                raise refuse(errno.ENOTDIR, names[index])
            self._hold((id(tree), b"/".join(names[: index + 1])), node)
        return node

    def _hold(self, key: tuple[int, bytes], node: Node) -> None:
        self._let_go(key)
        node.opens += 1
        self._held[key] = node
        while len(self._held) > _HELD_MAX:
            self._let_go(next(iter(self._held)))

    def _let_go(self, key: tuple[int, bytes]) -> bool:
        node = self._held.pop(key, None)
        if node is None:
            return False
        node.opens -= 1
        self._table.release(node)
        return True

    def _forget_way(self, tree: Tree, path: bytes) -> bool:
        """Forget the held directories on the way to *path*; whether there were any."""
        found = False
        while path:
            path = path.rpartition(b"/")[0]
            found = self._let_go((id(tree), path)) or found
        return found

    def close(self) -> None:
        """Let go of everything."""
        for key in list(self._held):
            self._let_go(key)
        while self._used:
            self._unuse(self._used.popleft())


def host_xattrs(dir_fd: int, name: bytes) -> dict[bytes, bytes]:
    """The user extended attributes of a file of the host."""
    path = xattr_path(dir_fd, name)
    try:
        names = [os.fsencode(each) for each in os.listxattr(path, follow_symlinks=False)]
        return {each: os.getxattr(path, each, follow_symlinks=False) for each in names if each.startswith(b"user.")}
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA):
            return {}
        raise


def tree_xattrs(tree: Tree, node: Node) -> dict[bytes, bytes]:
    """Those of a node; none where it has gone. May be `Blocked`."""
    try:
        names = [each for each in tree.listxattr(node) if each.startswith(b"user.")]
        return {each: tree.getxattr(node, each) for each in names}
    except Blocked:
        raise
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.ENODATA, *GONE):
            return {}
        raise
