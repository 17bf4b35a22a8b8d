"""A live host directory as a lower layer."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import DirEntry


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "d" / "e").mkdir(parents=True)
    (root / "f").write_bytes(b"content")
    (root / "s").symlink_to("/etc/shadow")
    (root / "mnt").mkdir()
    (root / "mnt" / "never").write_text("seen")
    return root


@pytest.fixture
def lower(root: Path) -> Iterator[LocalLower]:
    fds = len(os.listdir("/proc/self/fd"))
    st = os.stat(root)
    lower = LocalLower(
        os.open(root, os.O_RDONLY | os.O_DIRECTORY),
        hidden=lambda identity, name: identity == (st.st_dev, st.st_ino) and name == b"mnt",
    )
    yield lower
    lower.close()
    assert len(os.listdir("/proc/self/fd")) == fds


def test_looking(lower: LocalLower, root: Path) -> None:
    assert lower.live
    assert lower.entries(lower.root) == [
        DirEntry(b"d", stat.S_IFDIR),
        DirEntry(b"f", stat.S_IFREG),
        DirEntry(b"mnt", stat.S_IFDIR),
        DirEntry(b"s", stat.S_IFLNK),
    ]
    ref = lower.find(b"f")
    assert ref is not None
    assert ref.kind == stat.S_IFREG
    assert lower.attr(ref, fetch=True).size == 7
    file = lower.open(ref)
    assert file.read(1, 3) == b"ont"
    assert not file.keep_cache
    with pytest.raises(OSError):
        file.write(0, b"x")
    file.close()
    link = lower.find(b"s")
    assert link is not None
    assert lower.readlink(link) == b"/etc/shadow"
    assert lower.find(b"none") is None
    assert lower.find(b"f/x") is None
    assert lower.find(b"s/x") is None
    deep = lower.find(b"d/e")
    assert deep is not None
    assert lower.path(deep) == b"d/e"
    assert lower.path(lower.root) == b""
    assert lower.describe(deep) == {"layer": b"local"}
    assert lower.find(b"") is lower.root


def test_references_are_values(lower: LocalLower) -> None:
    assert lower.find(b"d/e") == lower.find(b"d/e")
    assert hash(lower.find(b"d/e")) == hash(lower.find(b"d/e"))
    assert lower.find(b"d") != lower.find(b"d/e")
    one, other = lower.find(b"f"), lower.find(b"d")
    assert one is not None
    assert other is not None
    assert lower.identity(one) != lower.identity(other)


def test_hidden_mountpoints(lower: LocalLower) -> None:
    ref = lower.find(b"mnt")
    assert ref is not None
    assert ref.kind == stat.S_IFDIR
    assert lower.attr(ref, fetch=True).mode == stat.S_IFDIR | 0o555
    assert lower.entries(ref) == []
    assert lower.child(ref, b"never") is None
    assert lower.xattrs(ref) == {}


def test_what_has_gone_is_stale(lower: LocalLower, root: Path) -> None:
    file, deep = lower.find(b"f"), lower.find(b"d/e")
    assert file is not None
    assert deep is not None
    (root / "new").write_text("x")
    (root / "new").rename(root / "f")
    for call in (lambda: lower.attr(file, fetch=True), lambda: lower.open(file)):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.ESTALE
    (root / "d").rename(root / "elsewhere")
    (root / "d").symlink_to("/etc")
    fresh = LocalLower(os.open(root, os.O_RDONLY), hidden=lambda identity, name: False)
    with pytest.raises(OSError) as caught:
        fresh.entries(deep)  # no descriptor of it is open any more
    assert caught.value.errno == errno.ESTALE
    fresh.close()


def test_xattrs(lower: LocalLower, root: Path) -> None:
    os.setxattr(root / "f", "user.one", b"1")
    ref = lower.find(b"f")
    assert ref is not None
    assert lower.xattrs(ref) == {b"user.one": b"1"}
    assert lower.xattrs(lower.root) == {}


def test_very_deep(lower: LocalLower, root: Path) -> None:
    levels = 3000
    fd = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(b"deep", dir_fd=fd)
        below = os.open(b"deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    ref = lower.find(b"/".join([b"deep"] * levels))
    assert ref is not None
    top = lower.find(b"deep")
    assert top is not None
    lower.entries(top)
    assert lower.entries(ref) == []
    assert len(lower.path(ref)) == 5 * levels - 1
    subprocess.run(["rm", "-rf", root / "deep"], check=True)


def test_watching(root: Path) -> None:
    watcher = Watcher()
    lower = LocalLower(os.open(root, os.O_RDONLY), hidden=lambda identity, name: False, watcher=watcher)
    assert not lower.degraded
    directory = lower.find(b"d")
    assert directory is not None
    lower.entries(directory)
    (root / "f").write_bytes(b"other")
    (root / "d" / "n").write_bytes(b"new")
    found = {(each.kind, lower.path(each.directory), each.name) for each in watcher.read_events()}  # type: ignore[arg-type]
    assert found == {
        ("content", b"", b"f"),
        ("name", b"d", b"n"),
        ("content", b"d", b"n"),
        ("attr", b"d", None),
    }
    lower.unwatch(directory)
    (root / "d" / "n").unlink()
    assert watcher.read_events() == []
    (root / "d" / "e").rmdir()
    lower.close()
    watcher.close()


def test_directories_that_others_rename_are_watched_once(root: Path) -> None:
    watcher = Watcher()
    lower = LocalLower(os.open(root, os.O_RDONLY), hidden=lambda identity, name: False, watcher=watcher)
    table = NodeTable()
    tree = OverlayTree(lower, None, table, entry=b"e", source=b"s")

    def look(name: bytes) -> None:
        node, _ = tree.lookup(tree.root, name)
        tree.entries(node)
        table.release(node)

    kept, _ = tree.lookup(tree.root, b"d")
    kept.lookups += 1  # as the kernel does that has it open
    look(b"d")
    before = len(watcher), watcher.told
    for number in range(50):  # a directory that goes from name to name
        (root / "d").rename(root / f"d{number}")
        look(f"d{number}".encode())
        (root / f"d{number}").rename(root / "d")
        look(b"d")
    for number in range(50):  # and a name that leads to one directory after the other
        (root / "d").rename(root / f"old{number}")
        (root / "d").mkdir()
        look(b"d")
        watcher.read_events()
    assert (len(watcher), watcher.told) == before
    (root / "d" / "new").touch()
    changes = [each for each in watcher.read_events() if each.kind == "name"]
    assert [(lower.path(each.directory), each.name) for each in changes] == [(b"d", b"new")]  # type: ignore[arg-type]
    table.forget(kept.nodeid, 1)
    tree.close()
    assert watcher.told == 0
    watcher.close()
