"""Random operations on a tree and on a plain directory: every result and every errno is the same.

The tree's kernel forgets at random, and files stay open across operations. Inode numbers and ctimes are
not compared; that a name keeps its inode number while it is neither removed nor replaced is.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import NodeTable, Tree
from tests.contract.tree_driver import Failed, PlainDriver, PlainFile, TreeDriver, TreeFile, both, outcome

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DIRECTORIES = st.lists(NAMES, min_size=0, max_size=2).map(b"/".join)
DATA = st.binary(min_size=1, max_size=20)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o777, 0o400])
XATTRS = st.sampled_from([b"user.one", b"user.two"])
OPEN_FLAGS = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC])
OPEN_MAX = 4


class TreeModel(RuleBasedStateMachine):
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
        self.tree = TreeDriver(self.make_tree(self.place, self.table), self.table, remember=True)
        self.files: list[tuple[TreeFile, PlainFile]] = []

    def both(self, method: str, *args: object) -> object:
        return both(self.tree, self.plain, method, *args)

    # Files

    @rule(path=PATHS, data=DATA, mode=MODES)
    def make(self, path: bytes, data: bytes, mode: int) -> None:
        self.both("make", path, data, mode)

    @rule(path=PATHS, data=DATA, offset=st.integers(0, 30))
    def write(self, path: bytes, data: bytes, offset: int) -> None:
        self.both("write", path, data, offset)

    @rule(path=PATHS, data=DATA)
    def append(self, path: bytes, data: bytes) -> None:
        self.both("append", path, data)

    @rule(path=PATHS, data=DATA)
    def overwrite(self, path: bytes, data: bytes) -> None:
        self.both("overwrite", path, data)

    @rule(path=PATHS, size=st.integers(0, 40))
    def truncate(self, path: bytes, size: int) -> None:
        self.both("truncate", path, size)

    @rule(path=PATHS)
    def read(self, path: bytes) -> None:
        self.both("read", path)
        self.both("stat", path)

    # Open files

    @precondition(lambda self: len(self.files) < OPEN_MAX)
    @rule(path=PATHS, flags=OPEN_FLAGS)
    def open(self, path: bytes, flags: int) -> None:
        mine = outcome(lambda: self.tree.open(path, flags))
        theirs = outcome(lambda: self.plain.open(path, flags))
        if isinstance(mine, Failed) or isinstance(theirs, Failed):
            assert mine == theirs
        else:
            self.files.append((mine, theirs))

    def _each(self, index: int, call: Callable[[TreeFile | PlainFile], object]) -> None:
        mine, theirs = self.files[index % len(self.files)]
        assert outcome(lambda: call(mine)) == outcome(lambda: call(theirs))

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9), offset=st.integers(0, 30))
    def read_open(self, index: int, offset: int) -> None:
        # The kernel keeps a descriptor for writing only from being read: the tree need not.
        mine, theirs = self.files[index % len(self.files)]
        want = outcome(lambda: theirs.read(offset, 50))
        if want != Failed("EBADF"):
            assert outcome(lambda: mine.read(offset, 50)) == want

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9), offset=st.integers(0, 30), data=DATA)
    def write_open(self, index: int, offset: int, data: bytes) -> None:
        self._each(index, lambda file: file.write(offset, data))

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9))
    def stat_open(self, index: int) -> None:
        self._each(index, lambda file: file.stat())

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9))
    def close(self, index: int) -> None:
        mine, theirs = self.files.pop(index % len(self.files))
        mine.close()
        theirs.close()

    # Names

    @rule(path=PATHS, mode=MODES)
    def mkdir(self, path: bytes, mode: int) -> None:
        self.both("mkdir", path, mode)

    @rule(path=PATHS, content=st.sampled_from([b"a", b"../x", b"/etc/passwd"]))
    def symlink(self, path: bytes, content: bytes) -> None:
        self.both("symlink", content, path)

    @rule(old=PATHS, new=PATHS)
    def link(self, old: bytes, new: bytes) -> None:
        self.both("link", old, new)

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self.both("unlink", path)

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        self.both("rmdir", path)

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        before = outcome(lambda: self.tree.inode(old))
        if not isinstance(self.both("rename", old, new, flags), Failed):
            assert self.tree.inode(new) == before

    @rule(path=DIRECTORIES)
    def listdir(self, path: bytes) -> None:
        self.both("listdir", path)

    @rule(path=PATHS)
    def readlink(self, path: bytes) -> None:
        self.both("readlink", path)

    # Attributes

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: bytes, mode: int) -> None:
        self.both("chmod", path, mode)

    @rule(path=PATHS, atime=st.integers(0, 2**60), mtime=st.integers(0, 2**60))
    def utime(self, path: bytes, atime: int, mtime: int) -> None:
        if not isinstance(self.both("utime", path, atime, mtime), Failed):
            assert self.tree.stat(path, times=True) == self.plain.stat(path, times=True)

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
            for mine, theirs in self.files:
                mine.close()
                theirs.close()
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
