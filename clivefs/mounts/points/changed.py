"""`.clive/changed/TOKEN`: what has changed since a token, as a file that a shell script can read at once.

The content is what git's fsmonitor hook, version 2, is to print (githooks(5)): a new token and then the paths, each
followed by NUL. `TOKEN@DIRECTORY` asks for the paths below a directory of the workspace, `/` in it written as `:`.
The directory lists nothing; a file is made for everybody who opens it.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable

from clivefs.mounts.inodenumbers import inode_number
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, Blocked, DirEntry, Node, OpenFile, Owner, Tree, refuse

Ask = Callable[[bytes, bytes], Callable[[], bytes]]
"""(token, directory) to what makes the content, in a thread; called in the loop's."""


class _File(Node):
    __slots__ = ("answer",)

    def __init__(self, tree: Tree, parent: Node, name: bytes) -> None:
        super().__init__(tree, parent, name)
        self.answer: bytes | None = None


class _Opened(OpenFile):
    __slots__ = ("_content",)
    direct_io = True

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class ChangedTree(Tree):
    """The directory of one workspace. *identity* tells it from every other, for inode numbers."""

    writable = False
    degraded = True

    def __init__(self, table: NodeTable, *, identity: bytes, owner: Owner, ask: Ask) -> None:
        self._table = table
        self._identity = identity
        self._owner = owner
        self._ask = ask
        self.root = Node(self, None, b"changed")
        table.add(self.root, inode_number(b"changed", identity), pin=True)

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        if directory is not self.root:
            raise refuse(errno.ENOTDIR, name)
        node = (directory.children or {}).get(name)
        if node is None:
            node = _File(self, directory, name)
            directory.children = {**(directory.children or {}), name: node}
            self._table.add(node, inode_number(b"changed", self._identity, name))
        return node, self.getattr(node)

    def entries(self, directory: Node) -> list[DirEntry]:
        return []

    def getattr(self, node: Node) -> Attr:
        mode = stat.S_IFDIR | 0o555 if node is self.root else stat.S_IFREG | 0o444
        return Attr(mode, 0, 0, uid=self._owner.uid, gid=self._owner.gid)

    def readlink(self, node: Node) -> bytes:
        raise refuse(errno.EINVAL, node.name)

    def open(self, node: Node, flags: int) -> OpenFile:
        if not isinstance(node, _File):
            raise refuse(errno.EISDIR, node.name)
        if flags & 3:
            raise refuse(errno.EROFS, node.name)
        if node.answer is not None:
            answer, node.answer = node.answer, None
            return _Opened(answer)
        token, _, directory = node.name.partition(b"@")
        make = self._ask(token, directory.replace(b":", b"/"))

        def run() -> None:
            node.answer = make()

        raise Blocked(run, "what has changed")
