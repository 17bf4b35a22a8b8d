"""Another git tree under an overlay: what did not change is not looked at, and goes on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clivefs.mounts.git.attributes import GitAttributes
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.edits import Affected
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Blocked, Node, Owner
from clivefs.objects.store import Store
from tests.mounts.gitworlds import World, put_world, text

TIME_NS = 1_600_000_000_000_000_000
US = Owner(os.geteuid(), os.getegid())
BASE: World = {f"d{one}/s{two}/f{three}".encode(): text(f"{one} {two} {three}\n")
               for one in range(4) for two in range(4) for three in range(4)}  # fmt: skip


class Counted(GitLower):
    """Counts the names that are looked up in it."""

    looked = 0

    def child(self, directory: LowerRef, name: bytes):  # type: ignore[no-untyped-def]
        self.looked += 1
        return super().child(directory, name)


class Mounted:
    def __init__(self, base: Path, world: World, *, layer: bytes = b"pypi:x==1") -> None:
        self.base = base
        self.store = Store.open(base / "store", create=True)
        (base / "upper").mkdir()
        (base / "cache").mkdir()
        self.lowest = self.lower(world, layer)
        fd = os.open(base / "upper", os.O_RDONLY)
        self.tree = OverlayTree(self.lowest, fd, NodeTable(), entry=b"e", source=b"s")
        os.close(fd)

    def lower(self, world: World, layer: bytes = b"pypi:x==1") -> Counted:
        converter = GitAttributes(str(self.base / "cache")) if layer.startswith(b"git:") else None
        space = TreeSpace(self.store, layer, TIME_NS, converter=converter)
        return Counted(space, put_world(self.store, world), owner=US, cache_dir=str(self.base / "cache"))

    def replace(self, world: World) -> list[Affected]:
        """Show another commit."""
        lower = self.lower(world, b"git:1")
        waited(lambda: self.tree.check_lower(lower))
        return self.tree.replace_lower(lower)

    def node(self, path: bytes) -> Node:
        node: Node = self.tree.root
        for name in path.split(b"/"):
            node = waited(lambda n=node, x=name: self.tree.lookup(n, x)[0])
        return node

    def read(self, path: bytes) -> bytes:
        node = self.node(path)
        file = waited(lambda: self.tree.open(node, os.O_RDONLY))
        try:
            return file.read(0, 1000)
        finally:
            file.close()

    def write(self, path: bytes, content: bytes) -> None:
        file = waited(lambda: self.tree.open(self.node(path), os.O_WRONLY | os.O_TRUNC))
        file.write(0, content)
        file.close()

    def close(self) -> None:
        self.tree.close()
        self.store.close()


def waited(operation):  # type: ignore[no-untyped-def]
    for _ in range(20):
        try:
            return operation()
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


@pytest.fixture
def mounted(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Mounted(tmp_path, BASE)
    yield made
    made.close()


def test_only_the_way_to_a_change_is_looked_at(mounted: Mounted) -> None:
    nodes = {path: mounted.node(path) for path in BASE}
    for number in range(3):
        new = {**BASE, b"d1/s2/f3": text(f"changed {number}\n"), b"d1/s2/fresh": text("fresh\n")}
        lower = mounted.lower(new)
        affected = {(each.parent.path(), each.name) for each in mounted.tree.replace_lower(lower)}
        assert affected == {(b"d1/s2", b"f3")} | ({(b"d1/s2", b"fresh")} if not number else set())
        assert lower.looked <= 3 * 5
        for path, (_, content) in new.items():
            assert mounted.read(path) == content
            if path in nodes and path != b"d1/s2/f3":
                assert mounted.node(path) is nodes[path]


def test_what_went_on_can_be_edited_and_reset(mounted: Mounted) -> None:
    for path in BASE:
        mounted.node(path)
    mounted.write(b"d2/s0/f0", b"mine\n")
    mounted.tree.replace_lower(mounted.lower({**BASE, b"d0/s0/f0": text("new\n")}))
    mounted.write(b"d3/s3/f3", b"mine too\n")
    directory = mounted.node(b"d3/s3")
    mounted.tree.unlink(directory, b"f2")
    mounted.tree.rename(mounted.tree.root, b"d1", mounted.tree.root, b"moved", 0)
    mounted.tree.replace_lower(mounted.lower({**BASE, b"d1/s0/f0": text("newer\n"), b"d3/s3/f3": text("x\n")}))
    assert mounted.read(b"moved/s0/f0") == b"newer\n"
    assert mounted.read(b"d0/s0/f0") == BASE[b"d0/s0/f0"][1]
    assert mounted.read(b"d2/s0/f0") == b"mine\n"
    assert mounted.read(b"d3/s3/f3") == b"mine too\n"
    with pytest.raises(FileNotFoundError):
        mounted.node(b"d3/s3/f2")
    list(mounted.tree.reset() or ())
    assert mounted.read(b"d3/s3/f3") == b"x\n"
    for path in (b"d1/s3/f3", b"d2/s0/f0", b"d3/s3/f2"):
        assert mounted.read(path) == BASE[path][1]


def test_another_commit_is_another_layer_of_every_file(mounted: Mounted) -> None:
    node = mounted.node(b"d0/s0/f0")
    mounted.tree.replace_lower(mounted.lower({**BASE, b"d1/s0/f0": text("new\n")}, b"pypi:x==2"))
    assert mounted.tree.describe(mounted.node(b"d0/s0/f0"))["layer"] == b"pypi:x==2"
    assert mounted.node(b"d0/s0/f0") is node


def test_conversions_go_on_and_their_files_go_with_the_last(tmp_path: Path) -> None:
    world = {**BASE, b"d0/s0/.gitattributes": text("f1 eol=crlf\nf2 eol=crlf\n")}
    mounted = Mounted(tmp_path, world, layer=b"git:1")
    for path in world:
        mounted.node(path)
    for number in range(3):
        mounted.replace({**world, b"d1/s0/f0": text(f"{number}\n")})
        assert mounted.read(b"d0/s0/f1") == b"0 0 1\r\n"
        assert waited(lambda: mounted.tree.getattr(mounted.node(b"d0/s0/f2"))).size == 7
    # A rule above bears on what did not change itself.
    mounted.replace({**world, b"d2/.gitattributes": text("f0 eol=crlf\n")})
    assert mounted.read(b"d2/s3/f0") == b"2 3 0\r\n"
    mounted.replace({**world, b".gitattributes": text("f3 eol=crlf\n")})
    assert mounted.read(b"d3/s3/f3") == b"3 3 3\r\n"
    mounted.close()
    assert os.listdir(tmp_path / "cache") == []


def test_what_other_rules_convert_otherwise_is_another_file(tmp_path: Path) -> None:
    """The kernel keeps pages and sizes of a file as long as it has its number."""
    mounted = Mounted(tmp_path, {**BASE, b".gitattributes": text("f0 eol=crlf\nf1 text eol=crlf\n")}, layer=b"git:1")
    before = {path: (mounted.node(path), mounted.read(path)) for path in BASE}
    told = mounted.replace({**BASE, b".gitattributes": text("f1 eol=crlf\nf2 eol=crlf\n")})
    affected = {each.parent.path() + b"/" + each.name for each in told}
    for path, (_, stored) in BASE.items():
        node, shown = before[path]
        converted = stored.replace(b"\n", b"\r\n") if path.endswith((b"f1", b"f2")) else stored
        assert mounted.read(path) == converted
        assert (mounted.node(path) is node) == (shown == converted) == (path not in affected)
    mounted.close()
