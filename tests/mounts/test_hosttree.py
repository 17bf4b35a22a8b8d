"""What a host tree does beyond the contract of every tree: others work in the same directory."""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.ports import FAULTS
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Owner, SetAttr
from tests.contract.tree_driver import TreeDriver

OWNER = Owner(os.geteuid(), os.getegid())


@pytest.fixture(autouse=True)
def umask_zero() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def open_tree(root: Path, **kwargs: object) -> tuple[HostTree, NodeTable]:
    table = NodeTable()
    options: dict[str, object] = {"entry": b"e", "writable": True, "hidden": lambda identity, name: False}
    tree = HostTree(os.open(root, os.O_RDONLY | os.O_DIRECTORY), table, **(options | kwargs))  # type: ignore[arg-type]
    return tree, table


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def driver(root: Path) -> Iterator[TreeDriver]:
    fds = len(os.listdir("/proc/self/fd"))
    tree, table = open_tree(root)
    driver = TreeDriver(tree, table, remember=True)
    yield driver
    driver.forget_all()
    assert [node.path() for node in table.nodes() if node is not tree.root] == []
    tree.close()
    assert len(os.listdir("/proc/self/fd")) <= fds, "a descriptor was left open"


def errno_of(call: object) -> int:
    with pytest.raises(OSError) as caught:
        call()  # type: ignore[operator]
    return caught.value.errno or 0


# Inode numbers


def test_inode_numbers_are_the_same_in_every_mount(root: Path) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").write_text("x")
    numbers = []
    for _ in range(2):
        tree, table = open_tree(root)
        driver = TreeDriver(tree, table)
        numbers.append((tree.root.nodeid, driver.inode(b"d"), driver.inode(b"d/f")))
        tree.close()
    assert numbers[0] == numbers[1]
    assert len(set(numbers[0])) == 3


def test_two_entries_on_one_directory_have_different_numbers(root: Path) -> None:
    (root / "f").write_text("x")
    table = NodeTable()
    trees = []
    for entry in (b"one", b"two"):
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        trees.append(HostTree(fd, table, entry=entry, writable=True, hidden=lambda identity, name: False))
    assert TreeDriver(trees[0], table).inode(b"f") != TreeDriver(trees[1], table).inode(b"f")
    for tree in trees:
        tree.close()


# What others do to names


def test_renamed_by_others(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("x")
    node = driver.node(b"a")
    (root / "a").rename(root / "b")
    assert driver.node(b"b") is node
    assert errno_of(lambda: driver.node(b"a")) == errno.ENOENT
    assert node.name == b"b"
    assert driver.tree.root.children == {b"b": node}


def test_the_old_name_is_looked_up_first(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("x")
    node = driver.node(b"a")
    (root / "a").rename(root / "b")
    assert errno_of(lambda: driver.node(b"a")) == errno.ENOENT
    assert node.removed
    assert driver.node(b"b") is node
    assert not node.removed


def test_a_directory_moved_by_others_goes_on(root: Path, driver: TreeDriver) -> None:
    (root / "a" / "deep").mkdir(parents=True)
    (root / "b").mkdir()
    (root / "a" / "deep" / "f").write_text("x")
    directory, file = driver.node(b"a/deep"), driver.node(b"a/deep/f")
    (root / "a" / "deep").rename(root / "b" / "moved")
    assert driver.tree.getattr(file).size == 1
    assert driver.node(b"b/moved") is directory
    assert driver.node(b"b/moved/f") is file
    assert file.path() == b"b/moved/f"


def test_directories_turned_inside_out(root: Path, driver: TreeDriver) -> None:
    """Others move the parent into what was its child: no walk up may run in circles."""
    (root / "a" / "b" / "c").mkdir(parents=True)
    nodes = [driver.node(path) for path in (b"a", b"a/b", b"a/b/c")]
    driver.listdir(b"a/b/c")
    (root / "a" / "b" / "c").rename(root / "c")
    (root / "a" / "b").rename(root / "c" / "b")
    (root / "a").rename(root / "c" / "b" / "a")
    found, _ = driver.tree.lookup(nodes[2], b"b")  # somebody works in c, which is believed to be below b
    driver.hold(found)
    assert found is nodes[1]
    found, _ = driver.tree.lookup(found, b"a")
    driver.hold(found)
    assert found is nodes[0]
    assert driver.node(b"c/b/a") is nodes[0]
    assert nodes[0].path() == b"c/b/a"


def test_replaced_by_others(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("old")
    file = driver.open(b"a")
    (root / "new").write_text("newer")
    (root / "new").rename(root / "a")
    assert driver.node(b"a") is not file.node
    assert file.node.removed
    assert driver.read(b"a") == b"newer"
    assert file.read(0, 9) == b"old"
    assert file.stat().nlink == 0
    file.close()


def test_removed_by_others(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("old")
    (root / "d").mkdir()
    node, directory = driver.node(b"a"), driver.node(b"d")
    driver.tree.entries(directory)
    (root / "a").unlink()
    (root / "d").rmdir()
    assert errno_of(lambda: driver.tree.getattr(node)) == errno.ESTALE
    assert errno_of(lambda: driver.tree.open(node, os.O_RDONLY)) == errno.ESTALE
    assert errno_of(lambda: driver.tree.setattr(node, SetAttr(size=0), None)) == errno.ESTALE
    assert errno_of(lambda: driver.node(b"d")) == errno.ENOENT
    assert driver.tree.getattr(directory).nlink == 0
    assert driver.tree.entries(directory) == []


def test_an_inode_number_that_is_used_again_gets_a_new_node(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("old")
    node = driver.node(b"a")
    number = (root / "a").stat().st_ino
    (root / "a").unlink()
    assert errno_of(lambda: driver.node(b"a")) == errno.ENOENT
    for attempt in range(50):
        other = root / f"n{attempt}"
        other.write_text("another")
        if other.stat().st_ino == number:
            break
    else:
        pytest.skip("this filesystem does not use inode numbers again")
    assert driver.node(os.fsencode(other.name)) is not node


def test_a_file_that_becomes_a_directory(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("old")
    node = driver.node(b"a")
    (root / "a").unlink()
    (root / "a").mkdir()
    (root / "a" / "f").write_text("x")
    assert driver.node(b"a") is not node
    assert driver.read(b"a/f") == b"x"


def test_linked_by_others(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("x")
    node = driver.node(b"a")
    os.link(root / "a", root / "b")
    assert driver.node(b"b") is node
    (root / "a").unlink()
    assert driver.node(b"b") is node
    assert driver.tree.getattr(node).nlink == 1
    driver.unlink(b"b")
    assert node.removed


def test_create_loses_against_others(root: Path, driver: TreeDriver) -> None:
    assert errno_of(lambda: driver.tree.lookup(driver.tree.root, b"a")) == errno.ENOENT
    (root / "a").write_text("theirs")
    assert errno_of(lambda: driver.tree.create(driver.tree.root, b"a", 0o644, os.O_RDWR, OWNER)) == errno.EEXIST
    assert (root / "a").read_text() == "theirs"


def test_truncating_open_never_cuts_another_file(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("old")
    node = driver.node(b"a")
    (root / "new").write_text("precious")
    (root / "new").rename(root / "a")
    assert errno_of(lambda: driver.tree.open(node, os.O_WRONLY | os.O_TRUNC)) == errno.ESTALE
    assert (root / "a").read_text() == "precious"


def test_a_symlink_planted_by_others_leads_nowhere(root: Path, driver: TreeDriver, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f").write_text("secret")
    (root / "d").mkdir()
    (root / "d" / "f").write_text("x")
    directory, file = driver.node(b"d"), driver.node(b"d/f")
    driver.tree._nodes._fds.close()  # type: ignore[attr-defined]  # as when many others were used since
    shutil.rmtree(root / "d")
    (root / "d").symlink_to(tmp_path / "secret")
    assert errno_of(lambda: driver.tree.lookup(directory, b"f")) == errno.ESTALE
    assert errno_of(lambda: driver.tree.open(file, os.O_RDONLY)) == errno.ESTALE
    (root / "f").symlink_to(tmp_path / "secret" / "f")
    assert errno_of(lambda: driver.read(b"f")) == errno.ELOOP


# The kernel's pages


def test_pages_are_kept_only_if_nothing_has_changed(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("one")
    os.utime(root / "a", ns=(10**9, 10**9))
    made = driver.tree._nodes  # type: ignore[attr-defined]
    driver.open(b"a").close()
    node = made.known((os.stat(root / "a").st_dev, os.stat(root / "a").st_ino))
    node.racy = False  # as if the file were older
    file = driver.open(b"a", os.O_RDWR)
    assert file.file.keep_cache
    file.write(0, b"ONE")
    file.close()
    file = driver.open(b"a")
    assert file.file.keep_cache
    file.close()
    (root / "a").write_text("two")
    file = driver.open(b"a")
    assert not file.file.keep_cache
    file.close()


def test_a_file_changed_a_moment_ago_is_not_trusted(root: Path, driver: TreeDriver) -> None:
    """Two changes within one tick of a coarse clock can leave the same times."""
    (root / "a").write_text("one")
    before = os.stat(root / "a")
    driver.open(b"a").close()
    (root / "a").write_text("two")
    os.utime(root / "a", ns=(before.st_atime_ns, before.st_mtime_ns))
    file = driver.open(b"a")
    assert not file.file.keep_cache
    file.close()


def test_the_descriptor_can_be_read_though_opened_for_writing(root: Path, driver: TreeDriver) -> None:
    (root / "a").write_text("one")
    file = driver.open(b"a", os.O_WRONLY)
    assert file.read(0, 3) == b"one"
    file.close()


# Mountpoints of our own


@pytest.fixture
def hiding(root: Path) -> Iterator[TreeDriver]:
    (root / "mnt").mkdir()
    (root / "d" / "mnt").mkdir(parents=True)
    (root / "mnt" / "inside").write_text("never seen")
    st = os.stat(root)
    tree, table = open_tree(root, hidden=lambda identity, name: identity == (st.st_dev, st.st_ino) and name == b"mnt")
    driver = TreeDriver(tree, table, remember=True)
    yield driver
    driver.forget_all()
    assert len(table) == 1
    tree.close()


def test_a_hidden_mountpoint_is_an_empty_directory(root: Path, hiding: TreeDriver) -> None:
    assert hiding.listdir(b"") == [(b"d", stat.S_IFDIR), (b"mnt", stat.S_IFDIR)]
    assert hiding.stat(b"mnt").mode == stat.S_IFDIR | 0o555
    assert hiding.listdir(b"mnt") == []
    assert hiding.inode(b"mnt") == hiding.inode(b"mnt")
    assert hiding.stat(b"d/mnt").mode != hiding.stat(b"mnt").mode
    assert errno_of(lambda: hiding.node(b"mnt/inside")) == errno.ENOENT
    assert errno_of(lambda: hiding.make(b"mnt/x")) == errno.EROFS
    assert errno_of(lambda: hiding.chmod(b"mnt", 0)) == errno.EROFS
    assert errno_of(lambda: hiding.rmdir(b"mnt")) == errno.EBUSY
    assert errno_of(lambda: hiding.rename(b"mnt", b"x")) == errno.EBUSY
    assert errno_of(lambda: hiding.rename(b"d", b"mnt")) == errno.EBUSY
    assert errno_of(lambda: hiding.mkdir(b"mnt")) == errno.EEXIST
    assert errno_of(lambda: hiding.getxattr(b"mnt", b"user.x")) == errno.ENODATA
    assert hiding.listxattr(b"mnt") == []
    hiding.fsync_dir(b"mnt")


# The rest


def test_read_only(root: Path) -> None:
    (root / "a").write_text("x")
    (root / "d").mkdir()
    tree, table = open_tree(root, writable=False)
    driver = TreeDriver(tree, table)
    assert driver.read(b"a") == b"x"
    for call in (
        lambda: driver.make(b"n"),
        lambda: driver.mkdir(b"n"),
        lambda: driver.mknod(b"n", stat.S_IFIFO | 0o600),
        lambda: driver.symlink(b"t", b"n"),
        lambda: driver.link(b"a", b"n"),
        lambda: driver.unlink(b"a"),
        lambda: driver.rmdir(b"d"),
        lambda: driver.rename(b"a", b"n"),
        lambda: driver.chmod(b"a", 0o600),
        lambda: driver.truncate(b"a", 0),
        lambda: driver.overwrite(b"a", b"y"),
        lambda: driver.setxattr(b"a", b"user.x", b"y"),
        lambda: driver.open(b"a", os.O_RDONLY | os.O_TRUNC),
    ):
        assert errno_of(call) == errno.EROFS
    tree.close()


def test_describe(root: Path, driver: TreeDriver) -> None:
    driver.make(b"a")
    assert driver.tree.describe(driver.node(b"a")) == {"layer": b"local"}


def test_open_files_outlive_the_tree(root: Path) -> None:
    tree, table = open_tree(root)
    file = TreeDriver(tree, table).create(b"a")
    tree.close()
    file.file.write(0, b"x")
    assert file.file.read(0, 1) == b"x"
    file.close()


def test_an_unlinked_file_that_is_held_by_path_alone(root: Path, driver: TreeDriver) -> None:
    """As by an O_PATH descriptor: the kernel has references but no open file."""
    driver.make(b"a", b"content")
    node = driver.node(b"a")
    driver.unlink(b"a")
    assert driver.tree.getattr(node).nlink == 0
    file = driver.tree.open(node, os.O_RDWR)
    assert file.read(0, 10) == b"content"
    assert driver.tree.setattr(node, SetAttr(mode=0o600), None).mode == stat.S_IFREG | 0o600
    file.close()
    driver.symlink(b"target", b"s")
    link = driver.node(b"s")
    driver.unlink(b"s")
    assert driver.tree.readlink(link) == b"target"


def test_a_file_with_a_name_unknown_to_us_survives_unlink(root: Path, driver: TreeDriver) -> None:
    driver.make(b"a", b"content")
    os.link(root / "a", root / "elsewhere")
    node = driver.node(b"a")
    driver.unlink(b"a")
    assert driver.tree.getattr(node).nlink == 1
    assert driver.node(b"elsewhere") is node
    assert not node.removed


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every directory")
def test_a_directory_that_can_be_searched_only(root: Path, driver: TreeDriver) -> None:
    (root / "d").mkdir()
    (root / "d" / "f").write_text("x")
    (root / "d").chmod(0o311)
    assert driver.read(b"d/f") == b"x"
    assert errno_of(lambda: driver.listdir(b"d")) == errno.EACCES
    (root / "d").chmod(0o755)


def test_ten_thousand_levels(root: Path, driver: TreeDriver) -> None:
    tree = driver.tree
    node, levels = tree.root, 10_000
    chain = [node]
    for _ in range(levels):
        node, _ = tree.mkdir(node, b"d", 0o755, OWNER)
        chain.append(driver.hold(node))
    made, _, file = tree.create(node, b"f", 0o644, os.O_RDWR, OWNER)
    driver.hold(made)
    file.close()
    tree.rename(node, b"f", tree.root, b"g", 0)
    tree.link(made, node, b"f")
    assert tree.getattr(made).nlink == 2
    assert [entry.name for entry in tree.entries(node)] == [b"f"]
    tree.unlink(node, b"f")
    for parent in chain[-2:-300:-1]:  # further than descriptors are kept
        tree.rmdir(parent, b"d")
    subprocess.run(["rm", "-rf", root / "d"], check=True)


# Appending


def test_a_page_of_a_mapping_stays_where_it_is_though_the_file_is_open_for_appending(root: Path) -> None:
    size = mmap.PAGESIZE * 2
    (root / "f").write_bytes(b"." * size)
    tree, _ = open_tree(root)
    node, _ = tree.lookup(tree.root, b"f")
    file = tree.open(node, os.O_RDWR | os.O_APPEND)
    file.write(0, b"m" * mmap.PAGESIZE)
    assert (root / "f").read_bytes() == b"m" * mmap.PAGESIZE + b"." * mmap.PAGESIZE
    with open(root / "f", "ab") as outside:
        outside.write(b"outside")
    file.write(size, b"appended")  # where the kernel believes the end to be
    assert (root / "f").read_bytes()[size:] == b"outsideappended"
    file.close()
    node, _, file = tree.create(tree.root, b"new", 0o644, os.O_RDWR | os.O_APPEND, OWNER)
    file.write(0, b"1")
    file.write(1, b"2")
    file.close()
    assert (root / "new").read_bytes() == b"12"
    tree.close()


def test_a_file_without_a_name_is_closed_after_its_tree_was_detached(root: Path) -> None:
    tree, table = open_tree(root)
    before = len(os.listdir("/proc/self/fd"))
    node, _, file = tree.create(tree.root, b"f", 0o644, os.O_RDWR, OWNER)
    node.lookups = 1
    tree.unlink(tree.root, b"f")
    DetachedTree(tree, table, tree.close)
    file.close()
    table.forget(node.nodeid, 1)
    assert len(os.listdir("/proc/self/fd")) < before  # the root's is closed too


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
@pytest.mark.parametrize("kind", ["file", "regular", "fifo", "link", "directory"])
def test_a_file_that_others_put_in_the_place_of_a_new_one_is_not_given_away(
    root: Path, tmp_path: Path, kind: str
) -> None:
    """They own the directory; the daemon is root's."""
    victim = tmp_path / "victim"
    if kind == "directory":
        victim.mkdir(0o700)
        (victim / "secret").write_text("root's")
    elif kind == "fifo":
        os.mkfifo(victim)
    else:
        victim.write_text("root's")
    before = os.lstat(victim)

    def put_another_there() -> None:
        if kind == "directory":
            (root / "new").rmdir()
            victim.rename(root / "new")
        else:
            (root / "new").unlink()
            os.link(victim, root / "new")

    tree, _ = open_tree(root)
    caller = Owner(1234, 2345)
    makers = {
        "file": lambda: tree.create(tree.root, b"new", 0o644, os.O_RDWR, caller),
        "regular": lambda: tree.mknod(tree.root, b"new", stat.S_IFREG | 0o644, 0, caller),
        "fifo": lambda: tree.mknod(tree.root, b"new", stat.S_IFIFO | 0o644, 0, caller),
        "link": lambda: tree.symlink(tree.root, b"new", b"target", caller),
        "directory": lambda: tree.mkdir(tree.root, b"new", 0o755, caller),
    }
    FAULTS.plant("host.made", put_another_there)
    try:
        assert errno_of(makers[kind]) == errno.ESTALE
    finally:
        FAULTS.clear()
    after = os.lstat(root / "new")
    assert (after.st_ino, after.st_uid, after.st_gid, after.st_mode) == (
        before.st_ino,
        0,
        before.st_gid,
        before.st_mode,
    )
    tree.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_new_files_belong_to_the_caller_with_all_their_bits(root: Path, driver: TreeDriver) -> None:
    driver.owner = Owner(1234, 2345)
    os.chown(root, 0, 77)
    for parent_mode, group in ((0o755, 2345), (0o2755, 77)):
        root.chmod(parent_mode)
        driver.tree.mknod(driver.tree.root, b"fifo", stat.S_IFIFO | 0o4640, 0, driver.owner)
        driver.tree.mknod(driver.tree.root, b"regular", stat.S_IFREG | 0o6755, 0, driver.owner)
        driver.tree.create(driver.tree.root, b"file", 0o4711, os.O_RDWR, driver.owner)[2].close()
        driver.symlink(b"target", b"link")
        driver.mkdir(b"directory")
        modes = {"fifo": 0o4640, "regular": 0o6755, "file": 0o4711}
        for name in ("fifo", "regular", "file", "link", "directory"):
            st = os.lstat(root / name)
            assert (name, st.st_uid, st.st_gid) == (name, 1234, group)
            if name in modes:
                assert (name, stat.S_IMODE(st.st_mode)) == (name, modes[name])
            driver.rmdir(name.encode()) if name == "directory" else driver.unlink(name.encode())
