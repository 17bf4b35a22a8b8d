"""Random operations on a tree and on a plain directory: every result and every errno is the same.

The rules alone: `tests/model/test_tree_model.py` runs them on trees in this process,
`tests/e2e/test_mounted_model.py` on a mount.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.contract.driver import Driver, Failed, File, both, outcome
from tests.contract.plain_driver import PlainDriver

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DIRECTORIES = st.lists(NAMES, min_size=0, max_size=2).map(b"/".join)
DATA = st.binary(min_size=1, max_size=20) | st.binary(min_size=4000, max_size=6000)
SIZES = st.integers(0, 40) | st.integers(0, 9000)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o777, 0o400])
OPEN_FLAGS = st.sampled_from([os.O_RDONLY, os.O_WRONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC])
OPEN_MAX = 4


class TreeRules(RuleBasedStateMachine):
    """Subclasses set `tree` and `plain`, which are alike at the start, and end what they have begun."""

    tree: Driver
    plain: PlainDriver

    def __init__(self) -> None:
        super().__init__()
        self.files: list[tuple[File, File]] = []
        """Open in the tree, and in the plain directory."""

    def both(self, method: str, *args: object) -> object:
        return both(self.tree, self.plain, method, *args)

    # Files

    @rule(path=PATHS, data=DATA, mode=MODES)
    def make(self, path: bytes, data: bytes, mode: int) -> None:
        self.both("make", path, data, mode)

    @rule(path=PATHS, data=DATA, offset=SIZES)
    def write(self, path: bytes, data: bytes, offset: int) -> None:
        self.both("write", path, data, offset)

    @rule(path=PATHS, data=DATA)
    def append(self, path: bytes, data: bytes) -> None:
        self.both("append", path, data)

    @rule(path=PATHS, data=DATA)
    def overwrite(self, path: bytes, data: bytes) -> None:
        self.both("overwrite", path, data)

    @rule(path=PATHS, size=SIZES)
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

    def _each(self, index: int, call: Callable[[File], object]) -> None:
        mine, theirs = self.files[index % len(self.files)]
        assert outcome(lambda: call(mine)) == outcome(lambda: call(theirs))

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9), offset=SIZES)
    def read_open(self, index: int, offset: int) -> None:
        # The kernel keeps a descriptor for writing only from being read: a tree need not.
        mine, theirs = self.files[index % len(self.files)]
        want = outcome(lambda: theirs.read(offset, 5000))
        if want != Failed("EBADF"):
            assert outcome(lambda: mine.read(offset, 5000)) == want

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9), offset=SIZES, data=DATA)
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

    def close_all(self) -> None:
        for pair in self.files:
            for file in pair:
                file.close()
