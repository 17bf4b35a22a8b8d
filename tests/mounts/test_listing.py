"""What a listing answers from memory is what looking anew would say."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, Node, Owner, SetAttr, Tree
from clivefs.mounts.view import View
from clivefs.objects.encode import TreeEntry, encode_tree
from clivefs.objects.memory import MemoryStore

LONG_AGO_NS = 1_000_000_000
OWNER = Owner(os.geteuid(), os.getegid())
FACTS = ("mode", "size", "mtime_ns", "ctime_ns", "nlink", "uid", "gid", "blocks", "rdev", "unsized")


def facts(attr: Attr) -> tuple[object, ...]:
    return tuple(getattr(attr, name) for name in FACTS)


def check(tree: Tree, directory: Node) -> dict[bytes, Attr]:
    """What the listing of *directory* tells, having compared it with names and attributes asked for singly."""
    names = tree.names(directory)
    assert names == [entry.name for entry in tree.entries(directory)]
    found: dict[bytes, Attr] = {}
    listed = tree.lister(directory)
    for name in names:
        node, attr = listed(name)
        assert node is tree.listed(directory, name)[0]
        again, looked_up = tree.lookup(directory, name)
        assert node is again
        assert facts(attr) == facts(looked_up) == facts(tree.getattr(node))
        node.lookups += 1  # as the kernel does with each name of a listing
        found[name] = attr
    return found


@pytest.fixture
def host(tmp_path: Path) -> HostTree:
    os.umask(0)
    for name in ("b", "a"):
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "d").mkdir()
    (tmp_path / "l").symlink_to("a")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    return HostTree(fd, NodeTable(), entry=b"e", writable=True, hidden=lambda _, __: False, watcher=Watcher())


def test_a_host_listing_tells_every_change_made_outside(host: HostTree, tmp_path: Path) -> None:
    assert list(check(host, host.root)) == [b"a", b"b", b"d", b"l"]
    same = check(host, host.root)
    assert all(attr is host.listed(host.root, name)[1] for name, attr in same.items()), "nothing was made anew"

    (tmp_path / "a").chmod(0o600)
    assert stat.S_IMODE(check(host, host.root)[b"a"].mode) == 0o600
    (tmp_path / "a").write_bytes(b"longer")
    assert check(host, host.root)[b"a"].size == 6
    os.utime(tmp_path / "b", ns=(1, 2))
    assert check(host, host.root)[b"b"].mtime_ns == 2
    os.link(tmp_path / "a", tmp_path / "a2")
    assert check(host, host.root)[b"a"].nlink == 2

    old = host.listed(host.root, b"b")[0]
    (tmp_path / "new").write_bytes(b"another file")
    (tmp_path / "new").rename(tmp_path / "b")
    assert check(host, host.root)[b"b"].size == len(b"another file")
    assert host.listed(host.root, b"b")[0] is not old
    (tmp_path / "l").unlink()
    with pytest.raises(FileNotFoundError):
        host.listed(host.root, b"l")


def test_a_mountpoint_of_ours_is_not_touched_by_a_listing(tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    hidden: set[bytes] = set()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    table = NodeTable()
    tree = HostTree(fd, table, entry=b"e", writable=True, hidden=lambda _, name: name in hidden, watcher=Watcher())
    known = check(tree, tree.root)[b"mnt"]
    hidden.add(b"mnt")
    assert tree.lister(tree.root)(b"mnt")[1] is not known


def git_overlay(tmp_path: Path, table: NodeTable) -> OverlayTree:
    os.umask(0)
    store = MemoryStore()
    with store.batch() as batch:
        blob = batch.put("blob", b"content")
        inner = batch.put("tree", encode_tree([TreeEntry(0o100755, b"run", blob)]))
        root = batch.put("tree", encode_tree([TreeEntry(0o100644, b"a", blob), TreeEntry(0o040000, b"d", inner)]))
    lower = GitLower(TreeSpace(store, b"git:0", 5), root, owner=OWNER, cache_dir=str(tmp_path))
    (tmp_path / "upper").mkdir()
    fd = os.open(tmp_path / "upper", os.O_RDONLY | os.O_DIRECTORY)
    return OverlayTree(lower, fd, table, entry=b"e", source=b"s")


def test_a_listing_of_a_git_tree_follows_the_edits_over_it(tmp_path: Path) -> None:
    tree = git_overlay(tmp_path, NodeTable())
    first = check(tree, tree.root)
    assert list(first) == [b"a", b"d"]
    assert tree.listed(tree.root, b"a")[1] is first[b"a"], "nothing was made anew"

    node, attr = tree.lookup(tree.root, b"a")
    attr.reply = "what the transport made of it"
    tree.setattr(node, SetAttr(mode=0o600), None)
    changed = check(tree, tree.root)[b"a"]
    assert stat.S_IMODE(changed.mode) == 0o600
    assert changed.reply is None

    directory, _ = tree.lookup(tree.root, b"d")
    tree.unlink(directory, b"run")
    assert check(tree, directory) == {}
    tree.mkdir(directory, b"made", 0o755, OWNER)
    assert list(check(tree, directory)) == [b"made"]


def test_a_removed_file_that_somebody_holds_has_no_links(tmp_path: Path) -> None:
    tree = git_overlay(tmp_path, NodeTable())
    node, attr = tree.lookup(tree.root, b"a")
    node.lookups += 1
    attr.reply = "with one link"
    tree.unlink(tree.root, b"a")
    left = tree.getattr(node)
    assert left.nlink == 0
    assert left.reply is None


def test_every_change_of_a_directory_over_a_git_tree_shows_in_its_mtime(tmp_path: Path) -> None:
    """What git's untracked cache relies on, which private gitdirs turn on."""
    tree = git_overlay(tmp_path, NodeTable())
    directory, _ = tree.lookup(tree.root, b"d")
    directory.lookups += 1
    edits: list[Callable[[], object]] = [
        lambda: tree.create(directory, b"new", 0o644, os.O_WRONLY, OWNER)[2].close(),
        lambda: tree.rename(directory, b"new", directory, b"newer", 0),
        lambda: tree.unlink(directory, b"newer"),
        lambda: tree.unlink(directory, b"run"),  # of the lower: a whiteout
    ]
    for edit in edits:
        edit()
        assert tree.getattr(directory).mtime_ns > LONG_AGO_NS
        tree.setattr(directory, SetAttr(mtime_ns=LONG_AGO_NS), None)
    # Of the mtime it compares the seconds alone, and the size.
    sizes = {
        tree.setattr(directory, SetAttr(mtime_ns=LONG_AGO_NS + tick * 4_000_000), None).size for tick in range(100)
    }
    assert len(sizes) == 100


def test_the_names_of_a_view_have_its_mount_entries(tmp_path: Path, host: HostTree) -> None:
    table = NodeTable()
    view = View(table, OWNER, 0)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    root = HostTree(fd, table, entry=b"r", writable=True, hidden=lambda _, __: False)
    view.add_workspace(b"w", root)
    view.set_entry(root.root, b"d/x", git_overlay(tmp_path, table))
    for directory in (view.root, root.root, view.lookup(root.root, b"d")[0]):
        names = view.names(directory)
        assert names == [entry.name for entry in view.entries(directory)]
        listed = view.lister(directory)
        assert [listed(name)[0] for name in names] == [view.lookup(directory, name)[0] for name in names]
