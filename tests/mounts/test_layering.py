"""Edits that become a patch of their entry: what is shown stays the same, whatever they are."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.mounts.edits.diff import Version, git_mode
from clivefs.mounts.edits.layering import goes, names_it, plan_layer
from clivefs.mounts.edits.write import carry_out, keep_times, read_file, show_file
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.git.treeeditor import TreeEditor
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Node, Owner, SetAttr
from clivefs.objects.store import Store
from tests.mounts.gitworlds import World, done, fresh, put_world, text

US = Owner(os.geteuid(), os.getegid())
RELEASED_NS = 1_600_000_000_000_000_000
BASE: World = {
    b"a/one": text("1\n"),
    b"a/two": text("2\n"),
    b"a/deep/three": text("3\n"),
    b"b/four": text("4\n", 0o100755),
    b"link": (0o120000, b"a/one"),
    b"top": text("top\n"),
}


class Shown(NamedTuple):
    """All that must stay the same of a file."""

    mode: int
    content: bytes | None
    mtime_ns: int | None
    xattrs: tuple[tuple[bytes, bytes], ...]


class Bench:
    """An overlay on a release, with times as a mount has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store.open(path / "store")
        self.upper = Path(self.store.directory("uppers/w/e"))
        self.cache = path / "cache"
        self.cache.mkdir()
        self.times: dict[bytes, int] = {}
        self.base = put_world(self.store, BASE)
        self.tree = self.open(self.base)

    def lower(self, tree: bytes) -> GitLower:
        times = dict(self.times)
        space = TreeSpace(self.store, b"pypi:x==1", RELEASED_NS)
        return GitLower(
            space, tree, owner=US, cache_dir=str(self.cache), times=lambda path, _: times.get(path, RELEASED_NS)
        )

    def open(self, tree: bytes) -> OverlayTree:
        fd = os.open(self.upper, os.O_RDONLY)
        try:
            return OverlayTree(self.lower(tree), fd, NodeTable(), entry=b"e", source=b"s")
        finally:
            os.close(fd)

    def node(self, path: bytes) -> Node:
        node: Node = self.tree.root
        for name in path.split(b"/") if path else ():
            node = self.tree.lookup(node, name)[0]
        return node

    def edits(self) -> dict[bytes, Version | None]:
        """What the overlay changes, told by comparing everything."""
        shown = {path: read_file(self.tree, path) for path, each in self.shown().items() if git_mode(each.mode)}
        files = {path: file for path, file in shown.items() if file is not None and BASE.get(path) != tuple(file)}
        return {**files, **{path: None for path in BASE if path not in shown}}

    def shown(self) -> dict[bytes, Shown]:
        found: dict[bytes, Shown] = {}
        waiting = [(b"", self.tree.root)]
        while waiting:
            directory, node = waiting.pop()
            for entry in self.tree.entries(node):
                child, attr = self.tree.lookup(node, entry.name)
                path = directory + entry.name
                content = None
                if stat.S_ISDIR(attr.mode):
                    waiting.append((path + b"/", child))
                else:
                    file = read_file(self.tree, path)
                    content = file.content if file is not None else None
                xattrs = tuple((name, self.tree.getxattr(child, name)) for name in self.tree.listxattr(child))
                # A link that becomes part of the layer keeps its target; its time says nothing to anybody.
                mtime_ns = None if stat.S_ISLNK(attr.mode) or stat.S_ISDIR(attr.mode) else attr.mtime_ns
                found[path] = Shown(attr.mode, content, mtime_ns, xattrs)
        return found

    def layer(self) -> tuple[bytes, ...]:
        """Make a layer of the edits; what stays in the upper."""
        edits = self.edits()
        made = plan_layer(self.store, self.store, lower=self.base, edits=edits, name="my.patch", scratch=str(self.path))
        what = done(goes(self.tree, US))
        self.times.update(what.times_ns)
        plan = dataclasses.replace(made.plan, resets=what.resets)
        self.tree.replace_lower(self.lower(plan.lower))
        done(carry_out(self.tree, plan, self.store, US), self.store)
        done(keep_times(self.tree, what.times_ns))
        self.base = plan.lower
        return what.stays

    def close(self) -> None:
        self.tree.close()
        self.store.close()


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    old = os.umask(0)
    made = Bench(tmp_path)
    yield made
    made.close()
    os.umask(old)


# What people do


def write(bench: Bench, path: bytes, content: bytes) -> None:
    done(show_file(bench.tree, path, Version(0o100644, content), US))


def remove(bench: Bench, path: bytes) -> None:
    head, _, name = path.rpartition(b"/")
    node = bench.node(path)
    if stat.S_ISDIR(bench.tree.getattr(node).mode):
        for inner in bench.tree.names(node):
            remove(bench, path + b"/" + inner)
        bench.tree.rmdir(bench.node(head), name)
    else:
        bench.tree.unlink(bench.node(head), name)


def rename(bench: Bench, old: bytes, new: bytes) -> None:
    bench.tree.rename(bench.node(b""), old, bench.node(b""), new, 0)


EDITS = {
    "write": lambda bench: write(bench, b"a/one", b"mine\n"),
    "add": lambda bench: write(bench, b"new/dir/file", b"new\n"),
    "remove a file": lambda bench: remove(bench, b"a/two"),
    "empty a directory": lambda bench: remove(bench, b"a/deep/three"),
    "remove a directory": lambda bench: remove(bench, b"b"),
    "rename a directory": lambda bench: rename(bench, b"a", b"moved"),
    "rename and edit": lambda bench: (rename(bench, b"a", b"away"), write(bench, b"away/deep/three", b"x\n")),
    "replace a directory": lambda bench: (
        remove(bench, b"b"), bench.tree.mkdir(bench.tree.root, b"b", 0o755, US), write(bench, b"b/else", b"e\n")
    ),
    "a file for a directory": lambda bench: (remove(bench, b"b"), write(bench, b"b", b"now a file\n")),
    "a directory for a file": lambda bench: (remove(bench, b"top"), write(bench, b"top/in", b"in\n")),
    "a private file": lambda bench: (
        write(bench, b"secret", b"s\n"), bench.tree.setattr(bench.node(b"secret"), SetAttr(mode=0o600), None)
    ),
    "executable": lambda bench: bench.tree.setattr(bench.node(b"top"), SetAttr(mode=0o755), None),
    "an attribute": lambda bench: bench.tree.setxattr(bench.node(b"top"), b"user.mine", b"yes"),
    "an empty directory": lambda bench: bench.tree.mkdir(bench.tree.root, b"empty", 0o755, US),
    "a closed directory": lambda bench: bench.tree.setattr(bench.node(b"b"), SetAttr(mode=0o700), None),
    "a fifo": lambda bench: bench.tree.mknod(bench.tree.root, b"fifo", stat.S_IFIFO | 0o644, 0, US),
    "a link": lambda bench: bench.tree.symlink(bench.tree.root, b"to", b"top", US),
    "a hard link": lambda bench: bench.tree.link(bench.node(b"top"), bench.tree.root, b"twin"),
    "touch": lambda bench: bench.tree.setattr(bench.node(b"top"), SetAttr(mtime_ns=5), None),
}  # fmt: skip


def do(bench: Bench, name: str) -> bool:
    try:
        EDITS[name](bench)
    except OSError:
        return False  # what it needs another edit has taken away
    return True


def check_layer(bench: Bench) -> None:
    before = bench.shown()
    bench.layer()
    assert bench.shown() == before
    # And after a new start, from the disk.
    base = bench.base
    bench.tree.close()
    bench.tree = bench.open(base)
    assert bench.shown() == before


@pytest.mark.parametrize("name", EDITS)
def test_each_edit(bench: Bench, name: str) -> None:
    assert do(bench, name)
    check_layer(bench)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(sorted(EDITS)), min_size=2, max_size=7, unique=True))
def test_any_edits(tmp_path: Path, names: list[str]) -> None:
    old = os.umask(0)
    bench = Bench(fresh(tmp_path / "bench"))
    try:
        for name in names:
            do(bench, name)
        check_layer(bench)
    finally:
        bench.close()
        os.umask(old)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(sorted(EDITS)), min_size=1, max_size=8, unique=True))
def test_reset_after_anything_is_the_base(tmp_path: Path, names: list[str]) -> None:
    old = os.umask(0)
    bench = Bench(fresh(tmp_path / "bench"))
    try:
        before = bench.shown()
        for name in names:
            do(bench, name)
        bench.tree.reset()
        assert bench.shown() == before
        assert list(bench.tree.changes()) == []
    finally:
        bench.close()
        os.umask(old)


def test_nothing_is_left_of_what_a_patch_can_hold(bench: Bench) -> None:
    for name in ("write", "add", "remove a file", "replace a directory", "a link"):
        assert do(bench, name)
    assert bench.layer() == ()
    assert list(bench.tree.changes()) == []
    assert os.listdir(bench.upper / "tree") == []
    editor = TreeEditor(bench.store, bench.base)
    assert editor.get(b"new/dir/file") is not None


def test_who_writes_goes_on_in_the_upper(bench: Bench) -> None:
    write(bench, b"log", b"begin\n")
    write(bench, b"other", b"o\n")
    opened = bench.tree.open(bench.node(b"log"), os.O_WRONLY)
    reading = bench.tree.open(bench.node(b"other"), os.O_RDONLY)
    assert bench.layer() == (b"log",)
    opened.write(6, b"end\n")
    opened.close()
    assert bench.shown()[b"log"].content == b"begin\nend\n"
    assert reading.read(0, 10) == b"o\n"
    reading.close()
    assert [(change.path, change.what) for change in bench.tree.changes()] == [(b"log", "modified")]


@pytest.mark.parametrize(
    ("patterns", "path", "found"),
    [
        (["patches/*.patch"], "patches/x.patch", True),
        (["patches/*.patch"], "patches/deep/x.patch", False),
        (["patches/**/*.patch"], "patches/deep/x.patch", True),
        (["patches/**/*.patch"], "patches/x.patch", True),
        (["patches/**"], "patches/.x", False),
        (["a", "b"], "b", True),
        (["*"], ".hidden", False),
        (["[ab].patch"], "b.patch", True),
        ([], "x", False),
    ],
)
def test_which_patterns_name_a_patch(patterns: list[str], path: str, found: bool) -> None:
    assert names_it(patterns, path) is found
