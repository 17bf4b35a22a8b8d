"""A view over a store with points, as the kernel sees it. For tests."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.fuse.operations import Entry, Operations
from clivefs.mounts.lower import Lower
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.points.control import PastControl
from clivefs.mounts.points.lower import PointLower, lower_of_point
from clivefs.mounts.points.point import Point
from clivefs.mounts.tree import Attr, Blocked, Node, Owner
from clivefs.mounts.view import View
from clivefs.objects.interface import ObjectStore
from tests.mounts.points.pointworlds import (
    START_MS,
    WORKSPACE,
    File,
    History,
    directory,
    regular,
)

OWNER = Owner(os.geteuid(), os.getegid())
COMMIT = b"\xab" * 20


class Repositories:
    """The repository of one git mount entry, `lib/x`."""

    def entries(self) -> list[str]:
        return ["lib/x"]

    def resolve(self, entry: str, revision: str) -> bytes:
        if revision != "main~3":
            raise ClivefsError("no such revision")
        return COMMIT

    def open(self, entry: str, commit: bytes) -> Lower:
        if commit != COMMIT:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        lower = MemoryLower()
        lower.file(b"of-main", b"old")
        return lower


class World:
    """A workspace `w` with a history, and a view of it."""

    def __init__(self, store: ObjectStore, cache_dir: Path) -> None:
        self.store = store
        self.history = History(store)
        self.table = NodeTable()
        self.view = View(self.table, OWNER, 0)
        self.operations = Operations(self.view, os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        self.now_ms = START_MS
        self.opened: list[PointLower] = []
        self.references: dict[int, int] = {}

        def open_point(point: Point) -> Lower:
            lower = lower_of_point(point, store, owner=OWNER, cache_dir=str(cache_dir))
            self.opened.append(lower)
            return lower

        tree = OverlayTree(MemoryLower(), None, self.table, entry=b"root", source=b"memory")
        control = self.view.add_workspace(b"w", tree)
        self.control = PastControl(
            self.history.points,
            self.table,
            identity=WORKSPACE.encode(),
            owner=OWNER,
            now_ms=lambda: self.now_ms,
            open_point=open_point,
            revisions=Repositories(),
        )
        self.view.show_in_control(control, self.control.directories())

    def record(self, state: File, **how: object) -> Point:
        point = self.history.record(state, **how)  # type: ignore[arg-type]
        self.now_ms = point.ms + 10
        return point

    def lookup(self, path: str) -> Entry:
        """The entry at *path* of `.clive`, symlinks followed; the kernel keeps what it was given."""
        done: list[str] = []
        left = path.split("/")[::-1]
        while True:
            part = left.pop()
            if part == "..":
                done.pop()
                continue
            done.append(part)
            entry = self.entry("/".join(done))
            attr = entry.attr
            if attr is not None and stat.S_ISLNK(attr.mode):
                done.pop()
                left += self.target("/".join([*done, part])).split("/")[::-1]
            elif not left:
                return entry

    def entry(self, path: str) -> Entry:
        number = 1
        names = [b"w", b".clive", *(name.encode() for name in path.split("/"))]
        for name in names:
            entry = self.waited(lambda: self.operations.lookup(number, name))  # noqa: B023
            if not entry.nodeid:
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
            self.references[entry.nodeid] = self.references.get(entry.nodeid, 0) + 1
            number = entry.nodeid
        return entry

    def waited(self, call: Callable[[], object]) -> object:
        for _ in range(5):
            try:
                return call()
            except Blocked as blocked:
                blocked.job()
        raise AssertionError("waits for ever")

    def attr(self, path: str) -> Attr:
        attr = self.lookup(path).attr
        assert attr is not None
        return attr

    def names(self, path: str) -> list[str]:
        handle = self.operations.opendir(self.lookup(path).nodeid)
        found: list[str] = []

        def add(name: bytes, entry: Entry, position: int) -> bool:
            found.append(os.fsdecode(name))
            if name not in (b".", b".."):
                self.references[entry.nodeid] = self.references.get(entry.nodeid, 0) + 1
            return True

        self.waited(lambda: self.operations.readdir(handle, 0, add))
        self.operations.releasedir(handle)
        return found[2:]

    def read(self, path: str) -> bytes:
        opened = self.operations.open(self.lookup(path).nodeid, os.O_RDONLY)
        try:
            return self.operations.read(opened.handle, 0, 1 << 21)
        finally:
            self.operations.release(opened.handle)

    def target(self, path: str) -> str:
        return self.waited(lambda: self.operations.readlink(self.entry(path).nodeid)).decode()  # type: ignore[attr-defined]

    def node(self, path: str) -> Node:
        return self.table.get(self.lookup(path).nodeid)

    def forget_all(self) -> None:
        for nodeid, count in self.references.items():
            self.operations.forget(nodeid, count)
        self.references.clear()


def refused(code: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == code)


def state(text: bytes) -> File:
    return directory({b"src": directory({b"a.py": regular(text)}), b"README": regular(b"read me")})
