"""The view: which tree answers for a name, and what a mount entry forbids."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.renumbered import Renumbered
from clivefs.mounts.tree import Node, Owner, SetAttr
from clivefs.mounts.view import View

OWNER = Owner(os.geteuid(), os.getegid())


class World:
    """A view with one workspace, `w`, on a host directory."""

    def __init__(self, root: Path) -> None:
        self.directory = root
        self.table = NodeTable()
        self.view = View(self.table, OWNER, 0)
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.root_tree = HostTree(fd, self.table, entry=b"root", writable=True, hidden=lambda _, __: False)
        self.view.add_workspace(b"w", self.root_tree)

    @property
    def root(self) -> Node:
        return self.root_tree.root

    def overlay(self, *files: bytes, content: bytes = b"") -> OverlayTree:
        lower = MemoryLower()
        for each in files:
            lower.file(each, content or each)
        return OverlayTree(lower, None, self.table, entry=b"entry", source=b"memory")

    def at(self, path: str) -> Node:
        node = self.root
        for name in path.split("/"):
            node, _ = self.view.lookup(node, name.encode())
        return node

    def names(self, path: str = "") -> list[str]:
        node = self.at(path) if path else self.root
        return sorted(os.fsdecode(entry.name) for entry in self.view.entries(node))

    def read(self, path: str) -> bytes:
        file = self.view.open(self.at(path), os.O_RDONLY)
        try:
            return file.read(0, 1 << 20)
        finally:
            file.close()


@pytest.fixture(autouse=True)
def umask_zero() -> None:
    os.umask(0)


@pytest.fixture
def world(tmp_path: Path) -> World:
    (tmp_path / "plain").write_bytes(b"plain")
    return World(tmp_path)


def refused(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)


def test_an_entry_hides_what_the_root_has_at_its_path(world: World) -> None:
    (world.directory / "lib" / "x").mkdir(parents=True)
    (world.directory / "lib" / "x" / "hidden").touch()
    (world.directory / "lib" / "own").write_bytes(b"own")
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"shown"))
    assert world.names("lib") == ["own", "x"]
    assert world.names("lib/x") == ["shown"]
    assert world.read("lib/own") == b"own"
    with refused(errno.ENOENT):
        world.at("lib/x/hidden")


def test_missing_parents_are_shown_and_made_only_when_written_to(world: World) -> None:
    world.view.set_entry(world.root, b"a/b/c", world.overlay(b"f"))
    assert world.names() == ["a", "plain"]
    assert world.names("a/b") == ["c"]
    assert not (world.directory / "a").exists()
    node, _, file = world.view.create(world.at("a/b"), b"new", 0o644, os.O_RDWR, OWNER)
    file.write(0, b"text")
    file.close()
    assert (world.directory / "a" / "b" / "new").read_bytes() == b"text"
    assert world.names("a/b") == ["c", "new"]
    assert world.at("a/b/new") is node


def test_nobody_counts_the_links_of_a_directory_with_entries(world: World) -> None:
    """perl's File::Find looks into no directory with two links, as those are `.` and its name in its parent."""
    (world.directory / "lib").mkdir()
    linked = (world.directory / "lib").stat().st_nlink
    world.at("lib")
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"f"))
    for node in (world.root, world.at("lib")):
        assert world.view.getattr(node).nlink == 1
        assert world.view.setattr(node, SetAttr(mode=0o755), None).nlink == 1
    world.view.remove_entry(world.root, b"lib/x")
    assert world.view.getattr(world.at("lib")).nlink == linked
    assert world.view.getattr(world.root).nlink == world.directory.stat().st_nlink


def test_the_way_to_an_entry_survives_the_removal_of_the_directory_below(world: World) -> None:
    (world.directory / "lib").mkdir()
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"f"))
    number = world.at("lib").nodeid
    assert world.names("lib") == ["x"]
    (world.directory / "lib").rmdir()
    assert world.names("lib") == ["x"]
    assert world.at("lib").nodeid == number
    (world.directory / "lib").mkdir()
    (world.directory / "lib" / "again").touch()
    assert world.names("lib") == ["again", "x"]


def test_names_of_mounts_can_be_neither_made_nor_removed_nor_renamed(world: World) -> None:
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"f"))
    lib = world.at("lib")
    with refused(errno.EBUSY):
        world.view.rmdir(lib, b"x")
    with refused(errno.EBUSY):
        world.view.rename(world.root, b"lib", world.root, b"other", 0)
    with refused(errno.EBUSY):
        world.view.rename(world.root, b"plain", lib, b"x", 0)
    with refused(errno.EEXIST):
        world.view.mkdir(world.root, b"lib", 0o755, OWNER)


def test_nothing_moves_from_one_tree_into_another(world: World) -> None:
    world.view.set_entry(world.root, b"x", world.overlay(b"f"))
    with refused(errno.EXDEV):
        world.view.rename(world.root, b"plain", world.at("x"), b"plain", 0)
    with refused(errno.EXDEV):
        world.view.link(world.at("x/f"), world.root, b"f")


def test_the_control_directory_answers_but_is_never_listed(world: World) -> None:
    (world.directory / ".clive").mkdir()
    (world.directory / ".clive" / "junk").touch()
    control = world.at(".clive")
    assert ".clive" not in world.names()
    assert world.names(".clive") == []
    for attempt in (
        lambda: world.view.mkdir(control, b"new", 0o755, OWNER),
        lambda: world.view.create(control, b"new", 0o644, os.O_RDWR, OWNER),
        lambda: world.view.unlink(control, b"status"),
        lambda: world.view.setattr(control, SetAttr(mode=0o777), None),
    ):
        with refused(errno.EPERM):
            attempt()
    with refused(errno.EBUSY):
        world.view.rmdir(world.root, b".clive")


def test_long_names_are_refused_in_every_call(world: World) -> None:
    name = b"n" * 256
    for attempt in (
        lambda: world.view.lookup(world.root, name),
        lambda: world.view.create(world.root, name, 0o644, os.O_RDWR, OWNER),
        lambda: world.view.mkdir(world.root, name, 0o755, OWNER),
        lambda: world.view.symlink(world.root, name, b"x", OWNER),
        lambda: world.view.rename(world.root, b"plain", world.root, name, 0),
        lambda: world.view.link(world.at("plain"), world.root, name),
    ):
        with refused(errno.ENAMETOOLONG):
            attempt()


def test_another_tree_at_the_same_path_keeps_directories_and_renews_files(world: World) -> None:
    world.view.set_entry(world.root, b"x", world.overlay(b"d/e/f", b"d/only-old", content=b"old"))
    directories = [world.at("x").nodeid, world.at("x/d").nodeid, world.at("x/d/e").nodeid]
    old = world.at("x/d/e/f")
    old.lookups += 1
    opened = world.view.open(old, os.O_RDONLY)
    world.view.set_entry(world.root, b"x", world.overlay(b"d/e/f", content=b"new"))
    assert [world.at("x").nodeid, world.at("x/d").nodeid, world.at("x/d/e").nodeid] == directories
    assert world.read("x/d/e/f") == b"new"
    assert world.at("x/d/e/f").nodeid != old.nodeid
    assert opened.read(0, 10) == b"old"
    with refused(errno.ENOENT):
        world.at("x/d/only-old")


def test_removing_an_entry_shows_what_was_below_it(world: World) -> None:
    (world.directory / "lib").mkdir()
    (world.directory / "lib" / "x").write_bytes(b"below")
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"f"))
    parent, name = world.view.remove_entry(world.root, b"lib/x")
    assert (parent.path(), name) == (b"lib", b"x")
    assert world.read("lib/x") == b"below"
    assert not world.root.mounts


def test_nothing_is_kept_once_the_kernel_forgets(world: World) -> None:
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"a/b/c"))
    before = len(world.table)
    node = world.at("lib/x/a/b/c")
    node.lookups += 1
    assert len(world.table) > before
    world.table.forget(node.nodeid, 1)
    assert len(world.table) == before


def test_private_attributes_tell_and_cannot_be_set(world: World) -> None:
    world.view.set_entry(world.root, b"x", world.overlay(b"f"))
    assert world.view.getxattr(world.at("plain"), b"user.clive.layer") == b"local"
    assert world.view.listxattr(world.at("plain")) == []
    with refused(errno.EOPNOTSUPP):
        world.view.setxattr(world.at("plain"), b"user.clive.layer", b"mine")
    with refused(errno.ENODATA):
        world.view.getxattr(world.at("plain"), b"user.clive.nothing")


def test_a_file_of_the_layer_below_gives_way_to_the_way_to_an_entry(world: World) -> None:
    (world.directory / "lib").write_bytes(b"a file")
    world.view.set_entry(world.root, b"lib/x", world.overlay(b"f"))
    assert stat.S_ISDIR(world.view.getattr(world.at("lib")).mode)
    assert world.names("lib") == ["x"]


def test_a_directory_made_on_the_way_to_an_entry_keeps_its_number_in_the_next_mount(tmp_path: Path) -> None:
    root, store = tmp_path / "root", tmp_path / "store"
    root.mkdir()
    store.mkdir()
    fd = os.open(store, os.O_RDONLY)

    def mounted() -> tuple[World, Renumbered]:
        numbers = Renumbered(fd)
        world = World(root)
        world.table.renumbered = numbers.read()
        world.view.keep_number = numbers.add
        world.view.set_entry(world.root, b"lib/deep/x", world.overlay(b"shown"))
        return world, numbers

    def number(world: World, path: str) -> int:
        return world.view.kernel_node(world.at(path)).nodeid

    first, numbers = mounted()
    wanted = {path: number(first, path) for path in ("lib", "lib/deep")}
    first.view.mkdir(first.at("lib/deep"), b"made", 0o755, OWNER)
    assert (root / "lib" / "deep" / "made").is_dir()
    assert {path: number(first, path) for path in wanted} == wanted
    numbers.close()
    with open(store / "numbers", "ab") as file:
        file.write(b"half")  # the power went
    for _ in range(2):
        again, numbers = mounted()
        assert {path: number(again, path) for path in wanted} == wanted
        again.view.remove_entry(again.root, b"lib/deep/x")
        assert {path: number(again, path) for path in wanted} == wanted
        numbers.close()
    without = World(root)
    without.table.renumbered = Renumbered(fd).read()
    assert {path: number(without, path) for path in wanted} == wanted
    os.close(fd)
