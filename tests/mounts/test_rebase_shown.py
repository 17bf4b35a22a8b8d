"""A rebase as an overlay shows it afterwards: what was planned and nothing else, whether or not its files were made
before."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clivefs.mounts.edits.diff import Version
from clivefs.mounts.edits.making import Made, Maker
from clivefs.mounts.edits.plan import RebasePlan, Write, plan_rebase
from clivefs.mounts.edits.write import carry_out, hide_file, read_file, show_file
from clivefs.mounts.git.joined import blob_content
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.git.treemerge import Labels
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.overlay.upper import Upper
from clivefs.mounts.tree import Node, Owner, SetAttr
from clivefs.objects.memory import MemoryStore
from tests.mounts.gitworlds import World, done, edited, fresh, get_world, put_world, text, worlds

FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
US = Owner(os.geteuid(), os.getegid())
KEPT: World = {b"keep": text("k\n")}
"""In every world: an empty tree is in no store."""
LINES = [b"line %d\n" % number for number in range(1, 21)]


def lines(**changed: bytes) -> tuple[int, bytes]:
    """Twenty lines, some of them others: `l5=b"mine"`."""
    made = list(LINES)
    for name, line in changed.items():
        made[int(name[1:]) - 1] = line + b"\n"
    return text(b"".join(made))


class Bench:
    """An overlay over a tree of a store."""

    def __init__(self, directory: Path, world: World) -> None:
        self.directory = fresh(directory)
        self.store = MemoryStore()
        self.base = put_world(self.store, world)
        self.table = NodeTable()
        (directory / "upper").mkdir()
        (directory / "cache").mkdir()
        fd = os.open(directory / "upper", os.O_RDONLY)
        try:
            self.tree = OverlayTree(self.lower(self.base), fd, self.table, entry=b"e", source=b"s")
        finally:
            os.close(fd)

    def lower(self, tree: bytes) -> GitLower:
        space = TreeSpace(self.store, b"pypi:x==1", 1_600_000_000_000_000_000)
        return GitLower(space, tree, owner=US, cache_dir=str(self.directory / "cache"))

    @property
    def upper(self) -> Upper:
        assert self.tree.upper is not None
        return self.tree.upper

    def node(self, path: bytes) -> Node:
        node: Node = self.tree.root
        for name in path.split(b"/"):
            node = self.tree.lookup(node, name)[0]
        return node

    def shown(self) -> World:
        found: World = {}
        waiting = [(b"", self.tree.root)]
        while waiting:
            above, node = waiting.pop()
            for entry in self.tree.entries(node):
                path = above + entry.name
                if entry.kind == stat.S_IFDIR:
                    waiting.append((path + b"/", self.tree.lookup(node, entry.name)[0]))
                else:
                    file = read_file(self.tree, path)
                    assert file is not None
                    found[path] = tuple(file)
        return found

    def show(self, world: World) -> None:
        """Edit the overlay until it shows *world*."""
        now = self.shown()
        for path in now.keys() - world.keys():
            hide_file(self.tree, path)
        for path, file in world.items():
            if now.get(path) != file:
                done(show_file(self.tree, path, Version(*file), US))

    def plan(self, base: World, new: World) -> RebasePlan:
        shown = self.shown()
        edits = {
            path: Version(*shown[path]) if path in shown else None
            for path in sorted(base.keys() | shown.keys())
            if base.get(path) != shown.get(path)
        }
        return plan_rebase(
            self.store,
            self.store,
            old_base=self.base,
            new_base=put_world(self.store, new),
            patches=[],
            edits=edits,
            labels=Labels("x 1.0", "your edits", "x 2.0"),
            scratch=str(self.directory),
        )

    def make(self, plan: RebasePlan, maker: Maker) -> dict[Write, Made]:
        found = {}
        for write in (*plan.writes, *plan.aside):
            content = blob_content(self.store, write.version.oid)
            made = maker.make(write.path, Version(write.version.mode, content))
            if made is not None:
                found[write] = made
        return found

    def _is_in_upper(self, path: bytes, made: Made) -> bool:
        return os.lstat(os.fsencode(self.directory / "upper" / "tree") + b"/" + path).st_ino == made.copy.inode

    def delete_discarded(self) -> None:
        job = self.tree.discarded()
        if job is not None:
            job()
        while self.tree.forget_discarded():
            pass

    def check_rebase(self, base: World, new: World, *, beforehand: bool) -> int:
        """Rebase; how many files were put that had been made beforehand."""
        plan = self.plan(base, new)
        maker = Maker(self.upper, US)
        made = self.make(plan, maker) if beforehand else {}
        self.tree.replace_lower(self.lower(plan.lower))
        done(carry_out(self.tree, plan, self.store, US, maker.take), self.store)
        maker.close()
        aside = {write.path: (write.version.mode, blob_content(self.store, write.version.oid)) for write in plan.aside}
        assert self.shown() == get_world(self.store, plan.shown) | aside
        self.delete_discarded()
        assert os.listdir(self.directory / "upper" / "work") == []
        return sum(self._is_in_upper(write.path, each) for write, each in made.items())

    def close(self) -> None:
        self.tree.close()


@pytest.fixture(autouse=True)
def umask() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


@FEW
@given(data=st.data(), beforehand=st.booleans())
def test_what_is_planned_is_shown(data: st.DataObject, beforehand: bool, tmp_path: Path) -> None:
    old = data.draw(worlds()) | KEPT
    new = data.draw(edited(old)) | KEPT
    bench = Bench(tmp_path / "bench", old)
    directories = sorted({path.split(b"/")[0] for path in old if b"/" in path})
    if directories and data.draw(st.booleans()):
        moved = data.draw(st.sampled_from(directories))
        bench.tree.rename(bench.tree.root, moved, bench.tree.root, b"moved", 0)
    bench.show(data.draw(edited(bench.shown())) | KEPT)
    if data.draw(st.booleans()):  # a directory of the lower that stands on nothing now
        for path in [path for path in bench.shown() if path.startswith(b"a/")]:
            hide_file(bench.tree, path)
        assume(not any(path == b"a" for path in bench.shown()))
    bench.check_rebase(old, new, beforehand=beforehand)
    bench.close()


def test_files_that_are_made_before_are_put_by_a_rename(tmp_path: Path) -> None:
    old = {b"d/%d" % number: lines() for number in range(5)} | {b"clash": lines(), b"quiet": text("q\n")}
    new = {path: lines(l18=b"new") for path in old} | {b"clash": lines(l5=b"theirs"), b"quiet": text("Q\n")}
    bench = Bench(tmp_path / "bench", old)
    bench.show({**{path: lines(l2=b"mine") for path in old}, b"clash": lines(l5=b"mine"), b"quiet": text("q\n")})
    node = bench.node(b"d/1")
    bench.tree.setxattr(node, b"user.mine", b"yes")
    bench.tree.setattr(node, SetAttr(mode=0o640), None)
    held = bench.tree.open(node, os.O_RDONLY)
    began_ns = time.time_ns() - 20_000_000  # file times are those of the kernel's last tick
    # Five merged ones, that with markers, and its three versions beside it.
    assert bench.check_rebase(old, new, beforehand=True) == 9
    assert held.read(0, 1000) == lines(l2=b"mine")[1]
    held.close()
    after = bench.node(b"d/1")
    assert after is not node
    assert after.nodeid != node.nodeid
    attr = bench.tree.getattr(after)
    assert (stat.S_IMODE(attr.mode), attr.mtime_ns >= began_ns) == (0o640, True)
    assert bench.tree.getxattr(after, b"user.mine") == b"yes"
    bench.close()


def test_a_directory_in_the_place_of_a_file_that_goes_stays(tmp_path: Path) -> None:
    """It went with the file that it had taken the place of, and what no tree can hold with it."""
    old = {b"f": lines(), **KEPT}
    new = {b"g": lines(), **KEPT}
    bench = Bench(tmp_path / "bench", old)
    bench.show({b"f/mine": text("m\n"), **KEPT})
    bench.tree.setattr(bench.node(b"f/mine"), SetAttr(mtime_ns=5), None)
    bench.check_rebase(old, new, beforehand=True)
    assert bench.tree.getattr(bench.node(b"f/mine")).mtime_ns == 5
    bench.close()


def test_a_file_becomes_a_link_in_a_directory_that_nobody_has_looked_up(tmp_path: Path) -> None:
    old = {b"d/deep/f": lines(), **KEPT}
    bench = Bench(tmp_path / "bench", old)
    done(show_file(bench.tree, b"d/deep/f", Version(0o120000, b"target"), US))
    assert bench.shown() == {b"d/deep/f": (0o120000, b"target"), **KEPT}
    done(show_file(bench.tree, b"d/deep", Version(0o100644, b"x"), US))
    done(show_file(bench.tree, b"d/deep/f", Version(0o100644, b"y"), US))
    assert bench.shown() == {b"d/deep/f": text("y"), **KEPT}
    bench.close()


def test_a_file_that_was_made_for_another_is_not_put(tmp_path: Path) -> None:
    """Who has changed what was looked at meanwhile makes the plan void; but nothing is replaced by mistake either."""
    old = {b"f": lines(), b"g": lines()}
    bench = Bench(tmp_path / "bench", old)
    bench.show({path: lines(l2=b"mine") for path in old})
    maker = Maker(bench.upper, US)
    made = maker.make(b"f", Version(*lines(l3=b"made")))
    free = maker.make(b"new", Version(*lines(l3=b"made")))
    assert made is not None
    assert free is not None
    bench.tree.rename(bench.tree.root, b"g", bench.tree.root, b"f", 0)
    bench.show({b"f": lines(l2=b"mine"), b"new": text("mine\n")})
    before = bench.shown()
    for path, each in ((b"f", made), (b"new", free)):
        assert bench.tree.put(bench.tree.root, path, each.copy, each.replaces, time.time_ns()) is None
    assert bench.shown() == before
    maker.close()
    assert os.listdir(tmp_path / "bench" / "upper" / "work") == []
    # What takes more than a rename is not made: a link, the place of a directory, a way that is not in the upper.
    maker = Maker(bench.upper, US)
    bench.tree.mkdir(bench.tree.root, b"d", 0o755, US)
    assert maker.make(b"link", Version(0o120000, b"f")) is None
    assert maker.make(b"d", Version(0o100644, b"")) is None
    assert maker.make(b"not/there", Version(0o100644, b"")) is None
    maker.close()
    bench.close()
