"""What the tests of the overlay against a plain directory share: a lower, its plain copy, and both side by side."""

from __future__ import annotations

import os
import random
import shutil
import stat
from pathlib import Path
from typing import Any

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from tests.contract.driver import Failed, outcome
from tests.contract.plain_driver import PlainDriver
from tests.contract.tree_driver import TreeDriver

ENTRY = b"w/lib"
NOW_NS = 1_700_000_000_000_000_000
US = (os.geteuid(), os.getegid())
NAMES = [b"a", b"b", b"d", b"e"]
CONTENTS = [b"", b"x", b"new content", b"0" * 5000]
RENAME_FLAGS = [0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]


def random_operation(rng: random.Random) -> tuple[Any, ...]:
    """A change, for a driver: (method, arguments)."""

    def path() -> bytes:
        return b"/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 3)))

    name = rng.choice(["create", "mkdir", "symlink", "link", "unlink", "unlink", "rmdir", "rename", "rename", "rename"])
    if name == "create":
        return ("make", path())
    if name == "symlink":
        return (name, b"target", path())
    if name == "link":
        return (name, path(), path())
    if name == "rename":
        return (name, path(), path(), rng.choice(RENAME_FLAGS))
    if rng.random() < 0.2:
        return ("chmod", path(), rng.choice([0o600, 0o755]))
    return (name, path())


def make_lower(*, live: bool = False) -> MemoryLower:
    lower = MemoryLower(live=live, mtime_ns=NOW_NS, owner=US)
    lower.file(b"a", b"content of a")
    lower.file(b"d/a", b"d/a", 0o755)
    lower.file(b"d/b", b"b" * 10_000)
    lower.file(b"d/e/a", b"deep")
    lower.directory(b"d/e/d", 0o700)
    lower.symlink(b"e", b"d/a")
    return lower


def copy_to(lower: MemoryLower, target: Path) -> None:
    """The files of *lower* in a plain directory."""
    target.mkdir()
    waiting = [(lower.root, os.fsencode(target))]
    while waiting:
        ref, place = waiting.pop()
        for name, each in ref.children.items():
            path = place + b"/" + name
            if each.kind == stat.S_IFDIR:
                os.mkdir(path)
                waiting.append((each, path))
            elif each.kind == stat.S_IFLNK:
                os.symlink(each.content, path)
            else:
                Path(os.fsdecode(path)).write_bytes(each.content)
            if each.kind != stat.S_IFLNK:
                os.chmod(path, stat.S_IMODE(each.mode))


def said(operation: str, result: Any) -> Any:
    """An outcome. Through a symlink the two drivers refuse differently, and of two bad paths name either."""
    if not isinstance(result, Failed):
        return result
    unreachable = ("ENOENT", "ENOTDIR", "ELOOP") if operation in ("link", "rename") else ("ENOTDIR", "ELOOP")
    return Failed("ENOTDIR") if result.name in unreachable else result


class World:
    """An overlay beside its plain twin."""

    def __init__(self, directory: Path, *, live: bool, remember: bool) -> None:
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        self.upper = directory / "upper"
        self.upper.mkdir()
        self.live = live
        self.remember = remember
        copy_to(make_lower(), directory / "plain")
        self.plain = PlainDriver(directory / "plain")
        self.files: list[tuple[Any, Any]] = []
        self.mount()

    def mount(self) -> None:
        self.table = NodeTable()
        fd = os.open(self.upper, os.O_RDONLY)
        self.tree = OverlayTree(make_lower(live=self.live), fd, self.table, entry=ENTRY, source=b"src")
        os.close(fd)
        self.driver = TreeDriver(self.tree, self.table, remember=self.remember)

    def unmount(self) -> None:
        for mine, plain in self.files:
            mine.close()
            plain.close()
        self.files = []
        self.driver.forget_all()
        assert len(self.table) == 1, "nodes are left that nobody holds"
        self.tree.close()
        assert len(self.table) == 0

    def remount(self) -> None:
        numbers = self.numbers()
        self.unmount()
        self.mount()
        assert self.numbers() == numbers

    def numbers(self) -> dict[bytes, int]:
        return {path: self.driver.inode(path) for path in self.driver.tree_of()}

    def do(self, operation: tuple[Any, ...]) -> None:
        name, *args = operation
        if name == "remount":
            self.remount()
        elif name == "forget":
            self.driver.forget_all()
        elif name == "reopen":
            self.check_files()
        elif name == "open":
            self.open(args[0])
        else:
            want = said(name, outcome(lambda: getattr(self.plain, name)(*args)))
            got = said(name, outcome(lambda: getattr(self.driver, name)(*args)))
            assert got == want, f"{name}{args}: overlay {got!r}, plain directory {want!r}"

    def open(self, path: bytes) -> None:
        try:
            plain = self.plain.open(path)
        except OSError:
            return
        self.files.append((self.driver.open(path), plain))

    def check_files(self) -> None:
        for mine, plain in self.files:
            assert mine.read(0, 1 << 20) == plain.read(0, 1 << 20)
            assert mine.stat() == plain.stat()

    def check(self) -> None:
        assert self.driver.tree_of() == self.plain.tree_of()
        self.check_files()
