"""A live view on a host directory, and forks of it, driven by paths. For tests."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from clivefs.mounts.forks.inherited import Inherited, RulesOfThen
from clivefs.mounts.forks.keeping import Keeper
from clivefs.mounts.forks.lower import ForkLower
from clivefs.mounts.forks.recorded import ForkRecorder, ForkState, fork_part
from clivefs.mounts.forks.tree import ForkTree
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.points.compare import State
from clivefs.mounts.points.lower import PointLower
from clivefs.mounts.recording.parts import HostLower, Part
from clivefs.mounts.recording.recorder import Recorder
from clivefs.mounts.recording.statcache import StatCache
from clivefs.mounts.tree import Blocked, Node, Owner, SetAttr, Tree
from clivefs.mounts.view import View
from clivefs.objects.store import Store

T = TypeVar("T")

OWNER = Owner(os.geteuid(), os.getegid())
TIME_NS = 1_700_000_000_000_000_000


class Shown(NamedTuple):
    """A file as a view shows it."""

    mode: int
    content: bytes
    """Of a file, the target of a symlink; a directory has none."""


def waited(call: Callable[[], T]) -> T:
    """Call until it need not wait; what it waits for is done at once."""
    for _ in range(20):
        try:
            return call()
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("waits for ever")


class Paths:
    """A tree of a view, driven by paths."""

    def __init__(self, view: View, tree: Tree) -> None:
        self._view = view
        self.tree = tree

    def node(self, path: str) -> Node:
        node = self.tree.root
        for name in path.split("/") if path else ():
            if not stat.S_ISDIR(waited(lambda: self._view.getattr(node)).mode):  # noqa: B023
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
            node = waited(lambda: self._view.lookup(node, name.encode()))[0]  # noqa: B023
        return node

    def _place(self, path: str) -> tuple[Node, bytes]:
        head, _, name = path.rpartition("/")
        node = self.node(head)
        if not stat.S_ISDIR(waited(lambda: self._view.getattr(node)).mode):  # the kernel does not ask then
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), head)
        return node, os.fsencode(name)

    def write(self, path: str, content: bytes) -> None:
        """Make or overwrite a file."""
        directory, name = self._place(path)
        try:
            node, _ = waited(lambda: self._view.lookup(directory, name))
        except FileNotFoundError:
            flags = os.O_WRONLY | os.O_CREAT
            _, _, file = waited(lambda: self._view.create(directory, name, 0o644, flags, OWNER))
        else:
            file = waited(lambda: self._view.open(node, os.O_WRONLY | os.O_TRUNC))
        file.write(0, content)
        file.close()

    def append(self, path: str, content: bytes) -> None:
        node = self.node(path)
        file = waited(lambda: self._view.open(node, os.O_WRONLY))
        size = waited(lambda: self._view.getattr(node)).size
        file.write(size, content)
        file.close()

    def read(self, path: str) -> bytes:
        node = self.node(path)
        file = waited(lambda: self._view.open(node, os.O_RDONLY))
        try:
            return file.read(0, 1 << 24)
        finally:
            file.close()

    def mkdir(self, path: str) -> None:
        directory, name = self._place(path)
        waited(lambda: self._view.mkdir(directory, name, 0o755, OWNER))

    def symlink(self, path: str, target: bytes) -> None:
        directory, name = self._place(path)
        waited(lambda: self._view.symlink(directory, name, target, OWNER))

    def unlink(self, path: str) -> None:
        directory, name = self._place(path)
        waited(lambda: self._view.unlink(directory, name))

    def rmdir(self, path: str) -> None:
        directory, name = self._place(path)
        waited(lambda: self._view.rmdir(directory, name))

    def rename(self, path: str, new: str, flags: int = 0) -> None:
        src, name = self._place(path)
        dst, new_name = self._place(new)
        waited(lambda: self._view.rename(src, name, dst, new_name, flags))

    def chmod(self, path: str, mode: int) -> None:
        node = self.node(path)
        waited(lambda: self._view.setattr(node, SetAttr(mode=mode), None))

    def all(self) -> dict[str, Shown]:
        """Everything, by path."""
        found: dict[str, Shown] = {}
        waiting = [""]
        while waiting:
            path = waiting.pop()
            directory = self.node(path)
            for name, kind in waited(lambda: self.tree.entries(directory)):  # noqa: B023
                below = f"{path}/{os.fsdecode(name)}" if path else os.fsdecode(name)
                node = self.node(below)
                attr = waited(lambda: self._view.getattr(node))  # noqa: B023
                assert stat.S_IFMT(attr.mode) == kind, below
                content = b""
                if stat.S_ISDIR(attr.mode):
                    waiting.append(below)
                elif stat.S_ISLNK(attr.mode):
                    content = waited(lambda: self._view.readlink(node))  # noqa: B023
                elif stat.S_ISREG(attr.mode):
                    content = self.read(below)
                    assert len(content) == attr.size, below
                found[below] = Shown(attr.mode, content)
        return found


class World:
    """A workspace whose directory is `DIRECTORY/live`, written through."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "live"
        self.root.mkdir()
        self.store = Store.open(str(directory / "store"), create=True)
        self.table = NodeTable()
        self.view = View(self.table, OWNER, TIME_NS)
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        tree = HostTree(fd, self.table, entry=b"w", writable=True, hidden=lambda directory, name: False)
        self.view.add_workspace(b"w", tree)
        self.live = Paths(self.view, tree)
        self.lowers: list[ForkLower] = []
        tree.keeper = Keeper(b"", lambda: self.lowers)
        (directory / "scratch").mkdir()
        self._recorder = Recorder(self.store, StatCache())

    def reader(self) -> JoinedObjects:
        return JoinedObjects((self.store,), str(self.directory / "scratch"))

    def point(self) -> State:
        """What the live view has, recorded."""
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with self.store.batch() as batch:
                recorded = self._recorder.record([Part(b"", HostLower(fd))], None, batch)
        finally:
            os.close(fd)
        return State(recorded.tree, recorded.meta)

    def fork(self, name: str = "one", point: State | None = None) -> Fork:
        """A fork of what there is, or one that was made before, opened again."""
        return Fork(self, name, point or self.point())

    def close(self) -> None:
        self.live.tree.close()
        self.store.close()


class Fork(Paths):
    """A fork of a world."""

    def __init__(self, world: World, name: str, point: State) -> None:
        self.point = point
        self._world = world
        upper = world.directory / name
        if not upper.exists():
            upper.mkdir()
            Inherited.write_rules(str(upper), RulesOfThen())
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
        past = PointLower(
            world.store,
            point.tree,
            point.meta,
            time_ns=TIME_NS,
            owner=OWNER,
            layer=b"point",
            cache_dir=str(world.directory / "scratch"),
        )
        self.lower = ForkLower(past, world.store, Inherited(fd), world.table, lambda: {b"": world.live.tree})
        tree = ForkTree(self.lower, fd, world.table, entry=name.encode(), source=b"fork")
        os.close(fd)
        world.lowers.append(self.lower)
        super().__init__(world.view, tree)
        self._recorder = ForkRecorder(world.store, world.reader, point)

    def recorded(self) -> ForkState:
        """What it shows, recorded."""
        assert isinstance(self.tree, ForkTree)
        part = fork_part(self.tree, self._world.reader(), self.point, TIME_NS, OWNER)
        try:
            return self._recorder.record(part.part)
        finally:
            part.close()

    def close(self) -> None:
        """As a daemon that ends does."""
        self._world.lowers.remove(self.lower)
        self.tree.close()
