"""Outside changes of a host tree and of a live lower layer, as the watcher reports them.

inotify events of this machine's own calls are queued before the call returns: nothing here waits.
"""

from __future__ import annotations

import errno
import os
import select
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base import syscalls
from clivefs.mounts.host import watch as watch_module
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Outside, Watcher
from clivefs.mounts.nodetable import NodeTable
from tests.contract.tree_driver import TreeDriver


class HandClock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time_ns = 10**18

    def now_ns(self) -> int:
        return self.time_ns

    def monotonic_ns(self) -> int:
        return self.time_ns


class World:
    """A directory, shown by a tree with a watcher."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = root
        self.clock = HandClock()
        self.watcher = Watcher(self.clock)
        self.table = NodeTable()
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.tree = HostTree(
            fd, self.table, entry=b"e", writable=True, hidden=lambda identity, name: False, watcher=self.watcher
        )
        self.driver = TreeDriver(self.tree, self.table, remember=True)

    def old(self, name: str, content: str) -> None:
        """A file that was there long before anybody looked."""
        (self.root / name).write_text(content)
        os.utime(self.root / name, ns=(10**18, 10**18))

    def settle(self, *paths: bytes) -> None:
        """Look at *paths*, and let time pass."""
        for path in paths:
            self.driver.node(path)
        self.watcher.read_events()
        for node in self.tree._nodes:
            node.racy = False

    def events(self) -> set[tuple[str, bytes, bytes | None]]:
        """What happened, as (kind, path of the node or directory, name); the latter where the node is not known."""
        return {
            (
                each.kind,
                (each.directory if each.kind == "name" or each.node is None else each.node).path(),  # type: ignore[union-attr, attr-defined]
                each.name if each.kind == "name" or each.node is None else None,
            )
            for each in self.watcher.read_events()
        }

    def readable(self) -> bool:
        return bool(select.select([self.watcher.fileno()], [], [], 0)[0])


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    fds = len(os.listdir("/proc/self/fd"))
    world = World(tmp_path / "root")
    yield world
    world.driver.forget_all()
    world.tree.close()
    assert len(world.watcher) == 0
    world.watcher.close()
    assert len(os.listdir("/proc/self/fd")) == fds


ROOT_CHANGED = ("attr", b"", None)


def test_nothing_is_watched_before_somebody_looks(world: World) -> None:
    assert len(world.watcher) == 0
    world.driver.listdir(b"")
    assert len(world.watcher) == 1
    assert not world.tree.degraded


def test_content(world: World) -> None:
    world.old("a", "one")
    world.settle(b"a")
    assert not world.readable()
    (world.root / "a").write_text("two!")
    assert world.readable()
    assert world.events() == {("content", b"a", None)}
    assert world.events() == set()


def test_a_file_that_nobody_looked_at_is_reported_by_its_name(world: World) -> None:
    world.old("a", "one")
    world.old("b", "one")
    world.settle(b"a")
    (world.root / "b").write_text("two")
    assert world.events() == {("content", b"", b"b")}
    (world.root / "b").chmod(0o600)
    assert world.events() == {("attr", b"", b"b")}
    (world.root / "b").unlink()
    assert world.events() == {("name", b"", b"b"), ROOT_CHANGED}


def test_what_a_look_was_quicker_to_notice_is_reported_with_the_file_that_it_was(world: World) -> None:
    """Whoever watches the old file is told by its node."""
    world.old("a", "one")
    world.old("b", "one")
    world.settle(b"a", b"b")
    old = {name: world.driver.node(name) for name in (b"a", b"b")}
    (world.root / "new").write_text("another")
    (world.root / "new").rename(world.root / "a")
    (world.root / "b").unlink()
    world.driver.node(b"a")
    with pytest.raises(FileNotFoundError):
        world.tree.lookup(world.tree.root, b"b")
    named = [each for each in world.watcher.read_events() if each.kind == "name"]
    for name, node in old.items():
        assert next(each for each in named if each.name == name).node is node
    assert world.events() == set()


def test_what_we_removed_ourselves_is_not_reported(world: World) -> None:
    world.old("a", "one")
    world.old("b", "one")
    world.settle(b"a", b"b")
    world.tree.unlink(world.tree.root, b"a")
    world.tree.rename(world.tree.root, b"b", world.tree.root, b"c", 0)
    world.tree.rename(world.tree.root, b"c", world.tree.root, b"d", 0)
    assert world.events() == set()
    (world.root / "d").unlink()
    assert world.events() == {("name", b"", b"d"), ("attr", b"d", None), ROOT_CHANGED}


def test_attributes(world: World) -> None:
    world.old("a", "one")
    (world.root / "d").mkdir()
    world.settle(b"a", b"d")
    (world.root / "a").chmod(0o600)
    (world.root / "d").chmod(0o700)
    assert world.events() == {("attr", b"a", None), ("attr", b"d", None)}
    (world.root).chmod(0o711)
    assert world.events() == {ROOT_CHANGED}


def test_names_come_and_go(world: World) -> None:
    world.settle()
    world.driver.listdir(b"")
    (world.root / "a").write_text("x")
    assert world.events() == {("name", b"", b"a"), ROOT_CHANGED}
    world.settle(b"a")
    (world.root / "a").unlink()
    assert world.events() == {("name", b"", b"a"), ROOT_CHANGED, ("attr", b"a", None)}


def test_replaced(world: World) -> None:
    world.old("a", "one")
    world.settle(b"a")
    node = world.driver.node(b"a")
    (world.root / "new").write_text("two")
    (world.root / "new").rename(world.root / "a")
    assert ("name", b"", b"a") in world.events()
    assert node.removed
    assert world.driver.node(b"a") is not node


def test_moved_between_directories(world: World) -> None:
    (world.root / "d").mkdir()
    (world.root / "e").mkdir()
    world.old("d/a", "one")
    world.settle(b"d/a", b"e")
    world.driver.listdir(b"e")
    node = world.driver.node(b"d/a")
    (world.root / "d" / "a").rename(world.root / "e" / "b")
    events = world.events()
    assert {("name", b"d", b"a"), ("name", b"e", b"b")} <= events
    assert world.driver.node(b"e/b") is node
    assert world.driver.tree.root.children
    assert world.driver.node(b"d").children is None


def test_a_moved_directory_stays_watched(world: World) -> None:
    (world.root / "d").mkdir()
    world.old("d/a", "one")
    world.settle(b"d/a")
    (world.root / "d").rename(world.root / "e")
    world.events()
    world.settle(b"e/a")
    (world.root / "e" / "a").write_text("two!")
    assert world.events() == {("content", b"e/a", None)}


def test_a_look_up_before_the_event_loses_nothing(world: World) -> None:
    world.old("a", "one")
    world.old("m", "one")
    world.settle(b"a", b"m")
    (world.root / "a").write_text("changed")
    (world.root / "m").rename(world.root / "n")
    world.driver.stat(b"a")  # sees the new state; the kernel's pages are of the old one
    world.driver.stat(b"n")
    for node in world.tree._nodes:
        node.racy = False  # as if the events came late
    assert {("content", b"a", None), ("name", b"", b"m")} <= world.events()


def test_linked_outside(world: World) -> None:
    world.old("a", "one")
    world.settle(b"a")
    os.link(world.root / "a", world.root / "b")
    assert ("attr", b"a", None) in world.events()


def test_removed_directory(world: World) -> None:
    (world.root / "d").mkdir()
    world.old("d/a", "one")
    world.settle(b"d/a")
    shutil.rmtree(world.root / "d")
    assert ("name", b"", b"d") in world.events()
    world.driver.forget_all()
    world.watcher.read_events()
    assert len(world.watcher) == 1


def test_the_root_itself_is_removed(world: World) -> None:
    world.driver.listdir(b"")
    world.root.rmdir()
    world.tree._nodes._fds.close()
    assert world.tree.entries(world.tree.root) == []
    world.watcher.read_events()


# Our own changes


def test_our_own_changes_are_not_reported(world: World) -> None:
    driver = world.driver
    driver.listdir(b"")
    driver.make(b"a", b"one")
    driver.mkdir(b"d")
    driver.listdir(b"d")
    driver.symlink(b"t", b"s")
    driver.append(b"a", b"two")
    driver.overwrite(b"a", b"three")
    driver.truncate(b"a", 1)
    driver.chmod(b"a", 0o600)
    driver.utime(b"a", 1, 2)
    driver.setxattr(b"a", b"user.x", b"1")
    driver.removexattr(b"a", b"user.x")
    driver.link(b"a", b"d/b")
    driver.rename(b"a", b"d/c")
    driver.rename(b"s", b"s2")
    driver.unlink(b"d/c")
    driver.unlink(b"s2")
    driver.make(b"t")
    driver.rename(b"t", b"d/b")
    driver.make(b"temporary")
    driver.unlink(b"temporary")
    driver.mkdir(b"e")
    driver.listdir(b"e")
    driver.rename(b"e", b"d", syscalls.RENAME_EXCHANGE)
    driver.rmdir(b"d")
    assert world.readable()
    assert world.watcher.read_events() == []


def test_our_own_and_theirs_are_told_apart(world: World) -> None:
    world.old("a", "one")
    world.settle(b"a")
    world.driver.append(b"a", b"mine")
    with (world.root / "a").open("a") as file:
        file.write("theirs")
    assert world.events() == {("content", b"a", None)}


def test_theirs_before_our_own_is_reported(world: World) -> None:
    world.old("a", "one")
    world.settle(b"a")
    file = world.driver.open(b"a", os.O_RDWR)
    (world.root / "a").write_text("theirs")
    file.write(0, b"mine")
    file.close()
    assert world.events() == {("content", b"a", None)}


def test_many_writes_cost_one_look(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.old("a", "one")
    world.settle(b"a")
    file = world.driver.open(b"a", os.O_RDWR)
    for number in range(10_000):
        file.write(number, b"x")
    seen: list[bytes] = []
    real = watch_module.inotify_parse
    monkeypatch.setattr(watch_module, "inotify_parse", lambda data: seen.append(data) or real(data))
    assert world.watcher.read_events() == []
    assert sum(len(data) for data in seen) < 100
    file.close()


def test_a_file_to_be_reported_always(world: World) -> None:
    world.watcher.also_report.add((world.tree.root, b"Clive.toml"))
    world.tree.watch(world.tree.root)
    (world.root / "Clive.toml").write_text("x")
    assert ("name", b"", b"Clive.toml") in world.events()
    (world.root / "Clive.toml").write_text("yy")
    assert [(each.kind, each.name) for each in world.watcher.read_events()] == [("content", b"Clive.toml")]
    world.driver.overwrite(b"Clive.toml", b"through the mount")
    assert [(each.kind, each.name) for each in world.watcher.read_events()] == [("content", b"Clive.toml")]
    (world.root / "other").write_text("x")
    (world.root / "other").rename(world.root / "Clive.toml")
    assert ("name", b"", b"Clive.toml") in world.events()


# Limits


def test_a_change_within_the_clock_s_tick_is_reported(world: World) -> None:
    (world.root / "a").write_text("one")
    world.driver.node(b"a")
    world.watcher.read_events()
    node = world.driver.node(b"a")
    assert node.racy
    (world.root / "a").write_text("two")
    node.remember(os.stat(world.root / "a"))  # as a coarse clock would have it: the same times
    assert world.events() == {("content", b"a", None)}


def test_overflow(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.old("a", "one")
    world.settle(b"a")
    world.driver.open(b"a").close()
    overflow = (-1, syscalls.IN_Q_OVERFLOW, 0, b"")
    monkeypatch.setattr(watch_module, "inotify_parse", lambda data: [overflow])
    (world.root / "a").write_text("two")
    assert world.watcher.read_events() == [Outside("overflow", None, None, None, None)]
    monkeypatch.undo()
    file = world.driver.open(b"a")
    assert not file.file.keep_cache
    file.close()


def test_no_more_watches(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "d").mkdir()
    (world.root / "d" / "a").write_text("one")
    (world.root / "e").mkdir()
    world.settle(b"d", b"e")

    def full(fd: int, path: bytes, mask: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(watch_module, "inotify_add", full)
    world.driver.node(b"d/a")
    assert world.watcher.degraded
    assert world.tree.degraded
    world.clock.time_ns += 2 * watch_module.RETRY_INTERVAL_NS
    world.watcher.read_events()
    assert world.watcher.degraded
    (world.root / "d" / "a").write_text("two!")
    assert world.watcher.read_events() == []
    monkeypatch.undo()
    world.watcher.read_events()
    assert world.watcher.degraded  # not before its time
    world.clock.time_ns += 2 * watch_module.RETRY_INTERVAL_NS
    assert ("content", b"d/a", None) in world.events()
    assert not world.watcher.degraded
    assert not world.tree.degraded
    (world.root / "d" / "a").write_text("three")
    assert ("content", b"d/a", None) in world.events()


def test_an_unwatched_directory_that_is_forgotten_heals(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "d").mkdir()
    world.settle(b"d")
    monkeypatch.setattr(watch_module, "inotify_add", lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "")))
    world.driver.listdir(b"d")
    assert world.watcher.degraded
    world.driver.forget_all()
    assert not world.watcher.degraded


def test_two_trees_on_one_directory(world: World) -> None:
    table = NodeTable()
    fd = os.open(world.root, os.O_RDONLY | os.O_DIRECTORY)
    second = HostTree(
        fd, table, entry=b"two", writable=True, hidden=lambda identity, name: False, watcher=world.watcher
    )
    other = TreeDriver(second, table, remember=True)
    world.driver.make(b"a", b"one")
    other.node(b"a")
    world.driver.node(b"a")
    world.watcher.read_events()
    world.driver.overwrite(b"a", b"mine")
    events = world.watcher.read_events()
    assert [(each.kind, each.tree) for each in events] == [("content", second)]
    other.forget_all()
    second.close()
    assert len(world.watcher) == 1
    world.settle(b"a")
    (world.root / "a").write_text("theirs")
    assert world.events() == {("content", b"a", None)}


def test_forgotten_directories_lose_their_watch(world: World) -> None:
    for number in range(20):
        (world.root / f"d{number}").mkdir()
        world.driver.listdir(b"d%d" % number)
    assert len(world.watcher) == 21
    world.driver.forget_all()
    assert len(world.watcher) == 1
