"""One suite for every tree that can be written: it does what a plain directory on the same filesystem does.

A new kind of tree adds a factory to `FACTORIES`; nothing else here changes.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Owner, SetAttr, Tree
from tests.contract.driver import Failed, both, outcome
from tests.contract.plain_driver import PlainDriver
from tests.contract.tree_driver import TreeDriver

Factory = Callable[[Path, NodeTable], Tree]


def host_tree(place: Path, table: NodeTable) -> Tree:
    root = place / "host"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    return HostTree(fd, table, entry=b"test", writable=True, hidden=lambda identity, name: False)


def overlay_tree(place: Path, table: NodeTable) -> Tree:
    root = place / "upper"
    root.mkdir()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        lower = MemoryLower(owner=(os.geteuid(), os.getegid()))
        return OverlayTree(lower, fd, table, entry=b"test", source=b"memory")
    finally:
        os.close(fd)


FACTORIES: dict[str, Factory] = {"host": host_tree, "overlay": overlay_tree}


@dataclass
class Pair:
    """A tree and a plain directory that are to be alike."""

    tree: TreeDriver
    plain: PlainDriver

    def __call__(self, method: str, *args: object, **kwargs: object) -> object:
        return both(self.tree, self.plain, method, *args, **kwargs)

    def alike(self) -> None:
        assert self.tree.tree_of() == self.plain.tree_of()


@pytest.fixture(autouse=True)
def umask_zero() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(params=[(name, warm) for name in FACTORIES for warm in (False, True)], ids=lambda p: f"{p[0]}-{p[1]}")
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    """*warm*: the kernel remembers what it looked up."""
    name, warm = request.param
    table = NodeTable()
    tree = FACTORIES[name](tmp_path, table)
    driver = TreeDriver(tree, table, remember=warm)
    (tmp_path / "plain").mkdir()
    pair = Pair(driver, PlainDriver(tmp_path / "plain"))
    yield pair
    pair.alike()
    driver.forget_all()
    left = [node.path() for node in table.nodes() if node is not tree.root]
    assert left == [], "nodes that nobody holds are still in the table"
    tree.close()


def failed(result: object, code: int) -> bool:
    return result == Failed(errno.errorcode[code])


# Files


def test_create_write_read(pair: Pair) -> None:
    pair("make", b"a", b"hello")
    pair("read", b"a")
    pair("write", b"a", b"J", 0)
    pair("write", b"a", b"far", 10_000)
    pair("append", b"a", b"end")
    pair("read", b"a")
    pair("overwrite", b"a", b"short")
    pair("truncate", b"a", 3)
    pair("truncate", b"a", 100)
    assert pair("read", b"a") == b"sho" + b"\0" * 97


def test_create_errors(pair: Pair) -> None:
    pair("make", b"a")
    pair("mkdir", b"d")
    assert failed(pair("make", b"a"), errno.EEXIST)
    assert failed(pair("make", b"d"), errno.EEXIST)
    assert failed(pair("make", b"none/a"), errno.ENOENT)
    assert failed(pair("make", b"a/b"), errno.ENOTDIR)
    assert failed(pair("read", b"d"), errno.EISDIR)
    assert failed(pair("read", b"x"), errno.ENOENT)
    assert failed(pair("truncate", b"d", 0), errno.EISDIR)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o755, 0o444, 0o000, 0o777, 0o4755, 0o2755, 0o1644])
def test_modes_of_new_files(pair: Pair, mode: int) -> None:
    pair("make", b"a", b"", mode)
    pair("stat", b"a")
    pair("mkdir", b"d", mode & 0o1777)
    pair("stat", b"d")
    pair("chmod", b"a", 0o644)
    pair("chmod", b"d", 0o755)


def test_unlinked_file_works_while_open(pair: Pair) -> None:
    pair("make", b"a", b"content")
    file = pair.tree.open(b"a", os.O_RDWR)
    pair("unlink", b"a")
    assert failed(pair("stat", b"a"), errno.ENOENT)
    assert file.read(0, 100) == b"content"
    assert file.write(7, b"!") == 1
    assert file.stat().nlink == 0
    assert file.stat().size == 8
    file.truncate(2)
    assert file.read(0, 100) == b"co"
    pair("make", b"a", b"new")
    assert file.read(0, 100) == b"co"
    assert pair("read", b"a") == b"new"
    file.close()


def test_replaced_file_works_while_open(pair: Pair) -> None:
    pair("make", b"a", b"old")
    pair("make", b"b", b"new")
    file = pair.tree.open(b"a", os.O_RDONLY)
    pair("rename", b"b", b"a")
    assert file.read(0, 10) == b"old"
    assert file.stat().nlink == 0
    assert pair("read", b"a") == b"new"
    file.close()


def test_removed_directory_answers_while_held(pair: Pair) -> None:
    pair("mkdir", b"d")
    node = pair.tree.node(b"d")
    node.opens += 1
    pair("rmdir", b"d")
    tree = pair.tree.tree
    assert stat.S_ISDIR(tree.getattr(node).mode)
    assert tree.getattr(node).nlink == 0
    assert tree.entries(node) == []
    owner = pair.tree.owner
    with pytest.raises(FileNotFoundError):
        tree.lookup(node, b"x")
    with pytest.raises(FileNotFoundError):
        tree.mkdir(node, b"x", 0o755, owner)
    with pytest.raises(FileNotFoundError):
        tree.create(node, b"x", 0o644, os.O_RDWR, owner)
    pair("mkdir", b"d")
    assert pair.tree.node(b"d") is not node
    node.opens -= 1
    pair.tree.table.release(node)
    pair.tree.forget_all()


def test_setattr_of_an_unlinked_open_file(pair: Pair) -> None:
    pair("make", b"a", b"12345")
    file = pair.tree.open(b"a")
    pair("unlink", b"a")
    tree = pair.tree.tree
    attr = tree.setattr(file.node, SetAttr(mode=0o600, size=2, mtime_ns=5), None)
    assert (stat.S_IMODE(attr.mode), attr.size, attr.mtime_ns) == (0o600, 2, 5)
    file.close()


# Directories


def test_directories(pair: Pair) -> None:
    pair("mkdir", b"d")
    pair("mkdir", b"d/e")
    pair("make", b"d/f")
    assert failed(pair("mkdir", b"d"), errno.EEXIST)
    assert failed(pair("rmdir", b"d"), errno.ENOTEMPTY)
    assert failed(pair("rmdir", b"d/f"), errno.ENOTDIR)
    assert failed(pair("unlink", b"d/e"), errno.EISDIR)
    assert failed(pair("rmdir", b"x"), errno.ENOENT)
    assert failed(pair("unlink", b"x"), errno.ENOENT)
    pair("listdir", b"d")
    assert failed(pair("listdir", b"d/f"), errno.ENOTDIR)
    pair("unlink", b"d/f")
    pair("rmdir", b"d/e")
    pair("rmdir", b"d")
    assert pair("listdir", b"") == []


def test_odd_names(pair: Pair) -> None:
    for name in (b"\xff\xfe", b" ", b"\n", b"-", b"..x", "é".encode(), b"x" * 255, b".wh.a", b".wh..wh..opq"):
        pair("make", name, name)
        pair("stat", name)
    pair("listdir", b"")
    assert failed(pair("make", b"x" * 256), errno.ENAMETOOLONG)
    assert failed(pair("stat", b"x" * 256), errno.ENAMETOOLONG)
    assert failed(pair("unlink", b"x" * 256), errno.ENAMETOOLONG)


def test_setgid_directory(pair: Pair) -> None:
    pair("mkdir", b"d")
    pair("chmod", b"d", 0o2775)
    pair("mkdir", b"d/e", 0o755)
    pair("make", b"d/f")
    assert stat.S_IMODE(pair.tree.stat(b"d/e").mode) == 0o2755


# Renames


def test_rename_files(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("make", b"b", b"2")
    pair("mkdir", b"d")
    pair("rename", b"a", b"c")
    pair("rename", b"c", b"d/c")
    pair("rename", b"d/c", b"b")
    assert pair("read", b"b") == b"1"
    pair("rename", b"b", b"b")
    assert failed(pair("rename", b"x", b"y"), errno.ENOENT)
    assert failed(pair("rename", b"b", b"d"), errno.EISDIR)
    assert failed(pair("rename", b"d", b"b"), errno.ENOTDIR)
    assert failed(pair("rename", b"b", b"none/b"), errno.ENOENT)


def test_rename_directories(pair: Pair) -> None:
    pair("mkdir", b"a")
    pair("mkdir", b"a/b")
    pair("make", b"a/b/f", b"x")
    pair("mkdir", b"empty")
    pair("mkdir", b"full")
    pair("make", b"full/f")
    assert failed(pair("rename", b"a", b"full"), errno.ENOTEMPTY)
    assert failed(pair("rename", b"a", b"a/b/c"), errno.EINVAL)
    pair("rename", b"a", b"empty")
    assert pair("read", b"empty/b/f") == b"x"
    pair("rename", b"empty/b", b"full/b")
    pair("make", b"full/b/g")
    assert failed(pair("rename", b"full/b", b"full"), errno.ENOTEMPTY)


def test_rename_noreplace_and_exchange(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("mkdir", b"d")
    pair("make", b"d/x", b"2")
    assert failed(pair("rename", b"a", b"d", RENAME_NOREPLACE), errno.EEXIST)
    pair("rename", b"a", b"b", RENAME_NOREPLACE)
    pair("rename", b"b", b"d", RENAME_EXCHANGE)
    assert pair("read", b"b/x") == b"2"
    assert pair("read", b"d") == b"1"
    pair("rename", b"d", b"b/x", RENAME_EXCHANGE)
    assert failed(pair("rename", b"b", b"none", RENAME_EXCHANGE), errno.ENOENT)
    assert failed(pair("rename", b"b", b"b/x", RENAME_EXCHANGE), errno.EINVAL)


def test_the_inode_number_stays(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("mkdir", b"d")
    number, directory = pair.tree.inode(b"a"), pair.tree.inode(b"d")
    pair("rename", b"a", b"d/b")
    pair("write", b"d/b", b"xx")
    pair("link", b"d/b", b"c")
    pair("rename", b"d", b"e")
    assert pair.tree.inode(b"e/b") == pair.tree.inode(b"c") == number
    assert pair.tree.inode(b"e") == directory
    pair.tree.forget_all()
    assert pair.tree.inode(b"c") == number
    assert pair.tree.inode(b"e") == directory


# Links


def test_hard_links(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("mkdir", b"d")
    pair("link", b"a", b"d/b")
    pair("link", b"d/b", b"c")
    assert pair.tree.stat(b"a").nlink == 3
    pair("write", b"c", b"22")
    assert pair("read", b"d/b") == b"22"
    pair("unlink", b"a")
    pair("stat", b"c")
    pair("rename", b"d/b", b"c")  # two names of one file: nothing happens
    pair("stat", b"d/b")
    pair("stat", b"c")
    pair("unlink", b"c")
    pair("stat", b"d/b")
    assert failed(pair("link", b"d", b"x"), errno.EPERM)
    assert failed(pair("link", b"x", b"y"), errno.ENOENT)
    pair("make", b"t")
    assert failed(pair("link", b"d/b", b"t"), errno.EEXIST)


def test_a_hard_link_is_one_node(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("link", b"a", b"b")
    first, second = pair.tree.node(b"a"), pair.tree.node(b"b")
    assert first is second
    first.opens += 1
    pair("unlink", b"a")
    assert pair.tree.node(b"b") is first
    assert not first.removed
    pair("rename", b"b", b"c")
    assert pair.tree.node(b"c") is first
    assert first.name == b"c"
    pair("unlink", b"c")
    assert first.removed
    first.opens -= 1
    pair.tree.table.release(first)
    pair.tree.forget_all()


def test_symlinks(pair: Pair) -> None:
    pair("symlink", b"/etc/shadow", b"s")
    pair("symlink", b"x" * 4000, b"long")
    pair("readlink", b"s")
    pair("readlink", b"long")
    pair("stat", b"s")
    assert failed(pair("symlink", b"t", b"s"), errno.EEXIST)
    assert failed(pair("read", b"s"), errno.ELOOP)
    assert failed(pair("chmod", b"s", 0o600), errno.EOPNOTSUPP)
    pair("utime", b"s", 1, 2)
    pair("make", b"f")
    assert failed(pair("readlink", b"f"), errno.EINVAL)
    pair("link", b"s", b"s2")
    pair("readlink", b"s2")


def test_special_files(pair: Pair) -> None:
    pair("mknod", b"fifo", stat.S_IFIFO | 0o644)
    pair("mknod", b"sock", stat.S_IFSOCK | 0o755)
    pair("mknod", b"file", stat.S_IFREG | 0o640)
    if os.geteuid() == 0:
        pair("mknod", b"dev", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    pair("listdir", b"")
    pair("stat", b"fifo")
    pair("truncate", b"fifo", 0)
    pair("rename", b"fifo", b"fifo2")
    pair("unlink", b"sock")


# Attributes


def test_times_in_nanoseconds(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("mkdir", b"d")
    for path in (b"a", b"d"):
        pair("utime", path, 1_600_000_000_123_456_789, 1_500_000_000_987_654_321)
        assert pair.tree.stat(path, times=True) == pair.plain.stat(path, times=True)
    assert pair.tree.stat(b"a", times=True).mtime_ns == 1_500_000_000_987_654_321


def test_chmod_and_chown(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("mkdir", b"d")
    for path in (b"a", b"d", b""):
        for mode in (0o700, 0o4755, 0o2755, 0o1777, 0o755):
            pair("chmod", path, mode)
            pair("stat", path)
    pair("chmod", b"a", 0o6755)
    pair("chown", b"a", os.geteuid(), os.getegid())
    if os.geteuid() == 0:
        pair("chown", b"a", 12, 34)
        pair("chown", b"d", -1, 34)
        pair("symlink", b"t", b"s")
        pair("chown", b"s", 12, -1)
        pair("stat", b"s")
    pair("stat", b"a")


def test_user_xattrs(pair: Pair) -> None:
    pair("make", b"a", b"1")
    pair("mkdir", b"d")
    for path in (b"a", b"d", b""):
        assert failed(pair("getxattr", path, b"user.x"), errno.ENODATA)
        pair("setxattr", path, b"user.x", b"value")
        pair("setxattr", path, b"user.y", b"")
        pair("getxattr", path, b"user.x")
        pair("listxattr", path)
        pair("removexattr", path, b"user.x")
        assert failed(pair("removexattr", path, b"user.x"), errno.ENODATA)
        pair("listxattr", path)
    pair("symlink", b"t", b"s")
    assert failed(pair("setxattr", b"s", b"user.x", b"v"), errno.EPERM)


def test_other_xattrs_are_absent(pair: Pair) -> None:
    pair("make", b"a", b"1")
    assert failed(outcome(lambda: pair.tree.getxattr(b"a", b"security.capability")), errno.ENODATA)
    for name in (b"system.posix_acl_access", b"system.posix_acl_default"):
        result = outcome(lambda name=name: pair.tree.getxattr(b"a", name))  # type: ignore[misc]
        assert failed(result, errno.EOPNOTSUPP) or failed(result, errno.ENODATA)
    assert failed(outcome(lambda: pair.tree.setxattr(b"a", b"security.x", b"v")), errno.EOPNOTSUPP)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_new_files_belong_to_the_caller(pair: Pair) -> None:
    pair.tree.owner = Owner(1234, 5678)
    pair.tree.make(b"f", b"", 0o4755)
    pair.tree.mkdir(b"d")
    pair.tree.symlink(b"t", b"s")
    for path in (b"f", b"d", b"s"):
        assert (pair.tree.stat(path).uid, pair.tree.stat(path).gid) == (1234, 5678)
    assert stat.S_IMODE(pair.tree.stat(b"f").mode) == 0o4755
    pair.tree.chown(b"d", 0, 99)
    pair.tree.chmod(b"d", 0o2777)
    pair.tree.make(b"d/f")
    assert (pair.tree.stat(b"d/f").uid, pair.tree.stat(b"d/f").gid) == (1234, 99)
    for path in (b"d/f", b"s", b"f"):
        pair.tree.unlink(path)
    pair.tree.rmdir(b"d")


# Size


def test_a_very_deep_tree(pair: Pair) -> None:
    """Paths far beyond PATH_MAX, and far more levels than descriptors are kept."""
    table, tree, owner = pair.tree.table, pair.tree.tree, pair.tree.owner
    levels = 1500
    node = tree.root
    for _ in range(levels):
        node, _ = tree.mkdir(node, b"a-longer-name", 0o755, owner)
        pair.tree.hold(node)
    made, _, file = tree.create(node, b"f", 0o644, os.O_RDWR, owner)
    pair.tree.hold(made)
    file.write(0, b"deep")
    file.close()
    top, _ = tree.lookup(tree.root, b"a-longer-name")
    tree.rename(node, b"f", top, b"g", 0)  # from one end to the other
    tree.rename(top, b"g", node, b"f", 0)
    assert len(node.path()) > 4096
    assert tree.getattr(made).size == 4
    pair.tree.forget_all()
    assert len(table) == 1
    chain = [tree.root]
    for _ in range(levels):
        child, _ = tree.lookup(chain[-1], b"a-longer-name")
        chain.append(pair.tree.hold(child))
    tree.unlink(chain[-1], b"f")
    for parent in reversed(chain[:-1]):
        tree.rmdir(parent, b"a-longer-name")
    pair.tree.forget_all()


def test_a_wide_directory(pair: Pair) -> None:
    pair("mkdir", b"d")
    for number in range(300):
        pair("make", b"d/%03d" % number)
    assert len(pair.tree.listdir(b"d")) == 300
    for number in range(0, 300, 2):
        pair("unlink", b"d/%03d" % number)
    pair("listdir", b"d")


def test_fsync(pair: Pair) -> None:
    file = pair.tree.create(b"a")
    file.write(0, b"x")
    file.fsync()
    file.close()
    pair("fsync_dir", b"")
    pair.plain.make(b"a", b"x")
