"""Random operations on a tree and on a plain directory: every result and every errno is the same.

The tree's kernel forgets at random, and files stay open across operations. Inode numbers and ctimes are
not compared; that a name keeps its inode number while it is neither removed nor replaced is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule

from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Tree
from tests.contract.plain_driver import PlainDriver
from tests.contract.tree_driver import TreeDriver
from tests.contract.tree_rules import PATHS, TreeRules

XATTRS = st.sampled_from([b"user.one", b"user.two"])


class TreeModel(TreeRules):
    """Subclasses make the tree, in an empty directory of their own."""

    def make_tree(self, place: Path, table: NodeTable) -> Tree:
        raise NotImplementedError

    def __init__(self) -> None:
        super().__init__()
        self._umask = os.umask(0)
        self.place = Path(tempfile.mkdtemp())
        (self.place / "plain").mkdir()
        self.table = NodeTable()
        self.plain = PlainDriver(self.place / "plain")
        self.tree: TreeDriver = TreeDriver(self.make_tree(self.place, self.table), self.table, remember=True)

    @rule(path=PATHS, name=XATTRS, value=st.binary(max_size=8))
    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        self.both("setxattr", path, name, value)

    @rule(path=PATHS, name=XATTRS)
    def removexattr(self, path: bytes, name: bytes) -> None:
        self.both("removexattr", path, name)

    @rule(path=PATHS, name=XATTRS)
    def getxattr(self, path: bytes, name: bytes) -> None:
        self.both("getxattr", path, name)
        self.both("listxattr", path)

    # The kernel

    @rule()
    def forget(self) -> None:
        self.tree.forget_all()

    @invariant()
    def children_are_true(self) -> None:
        for node in self.table.nodes():
            for name, child in (node.children or {}).items():
                assert self.table.find(child.nodeid) is child, name
                assert not child.removed, name

    def teardown(self) -> None:
        try:
            assert self.tree.tree_of() == self.plain.tree_of()
            self.close_all()
            self.tree.forget_all()
            assert [node.path() for node in self.table.nodes() if node is not self.tree.tree.root] == []
        finally:
            self.tree.tree.close()
            shutil.rmtree(self.place)
            os.umask(self._umask)


class HostTreeModel(TreeModel):
    def make_tree(self, place: Path, table: NodeTable) -> Tree:
        (place / "host").mkdir()
        fd = os.open(place / "host", os.O_RDONLY | os.O_DIRECTORY)
        return HostTree(fd, table, entry=b"model", writable=True, hidden=lambda identity, name: False)


TestHostTree = HostTreeModel.TestCase
TestHostTree.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


class OverlayTreeModel(TreeModel):
    def make_tree(self, place: Path, table: NodeTable) -> Tree:
        (place / "upper").mkdir()
        fd = os.open(place / "upper", os.O_RDONLY | os.O_DIRECTORY)
        try:
            return OverlayTree(MemoryLower(owner=(os.geteuid(), os.getegid())), fd, table, entry=b"model")
        finally:
            os.close(fd)


TestOverlayTree = OverlayTreeModel.TestCase
TestOverlayTree.settings = settings(
    max_examples=30, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
