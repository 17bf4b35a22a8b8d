"""The applier is answered by its script, once each, and changes nothing."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.fuse.applied import NOWHERE, WINGS, AppliedOperations, Look, Script
from clivefs.fuse.operations import CACHE_S, Operations
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Owner, SetAttr
from clivefs.mounts.view import View

OWNER = Owner(os.geteuid(), os.getegid())


class World:
    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.table = NodeTable()
        self.view = View(self.table, OWNER, 0)
        self.watcher = Watcher()
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.tree = HostTree(
            fd, self.table, entry=b"m", writable=True, hidden=lambda identity, name: False, watcher=self.watcher
        )
        self.view.add_workspace(b"shop", self.tree)
        self.real = Operations(self.view, -1)
        self.applied = AppliedOperations(self.real)
        self.top = self.real.lookup(1, b"shop").nodeid

    def expect(self, looks: dict[tuple[int, bytes], Look], *acts: tuple[str, int, bytes]) -> None:
        self.applied.expect(Script(looks, Counter(acts)))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path / "root")
    yield world
    world.tree.close()
    world.watcher.close()


def test_what_has_come_is_absent_until_it_is_made(world: World) -> None:
    (world.root / "new").write_text("x")
    world.expect({(world.top, b"new"): NOWHERE}, ("make", world.top, b"new"))
    assert world.applied.lookup(world.top, b"new").nodeid == 0
    assert world.real.lookup(world.top, b"new").nodeid != 0  # others see it
    made = world.applied.mknod(world.top, b"new", stat.S_IFREG, 0, OWNER)
    assert made.nodeid == world.applied.lookup(world.top, b"new").nodeid == world.real.lookup(world.top, b"new").nodeid
    with pytest.raises(PermissionError):
        world.applied.mknod(world.top, b"new", stat.S_IFREG, 0, OWNER)
    assert world.applied.settle() == Counter()


def test_what_has_gone_is_there_until_it_is_removed(world: World) -> None:
    (world.root / "old").write_text("x")
    old = world.real.lookup(world.top, b"old")
    (world.root / "old").unlink()
    world.expect({(world.top, b"old"): Look(old.nodeid, stat.S_IFREG)}, ("remove", world.top, b"old"))
    found = world.applied.lookup(world.top, b"old")
    assert found.nodeid == old.nodeid
    assert found.attr is not None
    assert stat.S_ISREG(found.attr.mode)
    world.applied.unlink(world.top, b"old")
    assert world.applied.lookup(world.top, b"old").nodeid == 0


def test_nothing_is_changed_by_what_is_not_expected(world: World) -> None:
    (world.root / "kept").write_text("content")
    kept = world.real.lookup(world.top, b"kept").nodeid
    before = (world.root / "kept").stat()
    for refused in (
        lambda: world.applied.unlink(world.top, b"kept"),
        lambda: world.applied.rmdir(world.top, b"kept"),
        lambda: world.applied.rename(world.top, b"kept", world.top, b"other", 0),
        lambda: world.applied.mkdir(world.top, b"made", 0o700, OWNER),
        lambda: world.applied.symlink(world.top, b"made", b"x", OWNER),
        lambda: world.applied.link(kept, world.top, b"made"),
        lambda: world.applied.create(world.top, b"made", 0o600, os.O_WRONLY, OWNER),
        lambda: world.applied.setattr(kept, SetAttr(size=0), None),
        lambda: world.applied.open(kept, os.O_WRONLY),
        lambda: world.applied.open(kept, os.O_WRONLY | os.O_TRUNC),
    ):
        with pytest.raises(PermissionError):
            refused()
    assert os.listdir(world.root) == ["kept"]
    assert (world.root / "kept").stat() == before


def test_expected_touches_change_nothing(world: World) -> None:
    (world.root / "kept").write_text("content")
    kept = world.real.lookup(world.top, b"kept").nodeid
    before = (world.root / "kept").stat()
    world.expect({}, ("touch", kept, b""), ("open", kept, b""))
    world.applied.setattr(kept, SetAttr(mtime_ns=1, size=0), None)
    opened = world.applied.open(kept, os.O_WRONLY)
    assert opened.keep_cache
    with pytest.raises(OSError, match="Bad file descriptor"):
        world.real.write(opened.handle, 0, b"lost")
    world.real.flush(opened.handle)
    world.real.release(opened.handle)
    assert (world.root / "kept").stat() == before


def test_others_remember_nothing_meanwhile(world: World) -> None:
    (world.root / "f").write_text("x")
    assert world.real.lookup(world.top, b"f").entry_timeout_s == CACHE_S
    world.expect({})
    assert world.real.lookup(world.top, b"f").entry_timeout_s == 0
    assert world.real.lookup(world.top, b"absent").entry_timeout_s == 0
    world.applied.settle()
    assert world.real.lookup(world.top, b"absent").entry_timeout_s == CACHE_S


def test_only_the_applier_sees_the_wings(world: World) -> None:
    assert world.real.lookup(1, WINGS).nodeid == 0
    wings = world.applied.lookup(1, WINGS).nodeid
    assert wings == world.applied.wings.nodeid
    assert world.applied.lookup(wings, b"anything").nodeid == 0
    assert WINGS not in world.view.names(world.view.root)
