"""Applying a set of changes to a live tree: all of it in one step, also over a crash."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.mounts.applying import Applying
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.steps import STAGING, Steps, Wanted
from clivefs.mounts.tree import Node, Owner, Tree

OWNER = Owner(os.geteuid(), os.getegid())
FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755


def host_tree(place: Path, table: NodeTable) -> Tree:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    return HostTree(fd, table, entry=b"test", writable=True, hidden=lambda identity, name: False)


def overlay_tree(place: Path, table: NodeTable) -> Tree:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return OverlayTree(MemoryLower(), fd, table, entry=b"test", source=b"memory")
    finally:
        os.close(fd)


@pytest.fixture(autouse=True)
def umask_zero() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture(params=[host_tree, overlay_tree])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    make: Callable[[Path, NodeTable], Tree] = request.param
    place = tmp_path / "tree"
    place.mkdir()
    table = NodeTable()
    made = make(place, table)
    made.table = table  # type: ignore[attr-defined]
    yield made
    made.close()


def writer(content: bytes) -> Callable[[int], None]:
    """What writes *content* to a descriptor."""

    def write(fd: int) -> None:
        os.write(fd, content)

    return write


def decoded(record: bytes) -> Steps:
    return msgspec.msgpack.decode(record, type=Steps)


def apply(tree: Tree, wanted: dict[bytes, tuple[int, bytes | None]], *, crash_after: str = "") -> None:
    table: NodeTable = tree.table  # type: ignore[attr-defined]
    applying = Applying(tree, table, OWNER)
    for path, (mode, content) in wanted.items():
        if stat.S_ISREG(mode) and applying.takes_files_of_threads():
            assert content is not None
            applying.make(Wanted(path, mode), bytes(20), writer(content))
            continue
        file = applying.stage(Wanted(path, mode), content if content is None or len(content) < 8 else None)
        if file is not None:
            assert content is not None
            file.write(0, content)
            applying.staged(Wanted(path, mode), file)
    applying.check()
    record = msgspec.msgpack.encode(applying.steps)
    if crash_after:
        if crash_after == "publish":
            applying.publish()
        again = Applying.resume(tree, table, OWNER, decoded(record))
        again.publish()
        again.finish()
        return
    applying.publish()
    applying.finish()


def content(tree: Tree, directory: Node | None = None, prefix: bytes = b"") -> dict[bytes, object]:
    """Everything in *tree*: path -> (mode, bytes) of files, the target of symlinks, the mode of directories."""
    found: dict[bytes, object] = {}
    directory = directory or tree.root
    for entry in tree.entries(directory):
        node, attr = tree.lookup(directory, entry.name)
        path = prefix + entry.name
        if stat.S_ISDIR(attr.mode):
            found[path] = attr.mode
            found.update(content(tree, node, path + b"/"))
        elif stat.S_ISLNK(attr.mode):
            found[path] = tree.readlink(node)
        else:
            file = tree.open(node, os.O_RDONLY)
            found[path] = (attr.mode, file.read(0, 1000))
            file.close()
    return found


def test_files_come_change_kind_and_go(tree: Tree) -> None:
    apply(tree, {b"a": (FILE, b"1"), b"d/e/f": (stat.S_IFREG | 0o755, b"long content"), b"s": (stat.S_IFLNK, b"a")})
    assert content(tree) == {
        b"a": (FILE, b"1"),
        b"d": DIRECTORY,
        b"d/e": DIRECTORY,
        b"d/e/f": (stat.S_IFREG | 0o755, b"long content"),
        b"s": b"a",
    }
    apply(
        tree,
        {
            b"a/inner": (FILE, b"2"),
            b"a": (DIRECTORY, None),
            b"d/e/f": (0, None),
            b"d/e": (0, None),
            b"d": (FILE, b"was a directory"),
            b"s": (stat.S_IFDIR | 0o700, None),
        },
    )
    assert content(tree) == {
        b"a": DIRECTORY,
        b"a/inner": (FILE, b"2"),
        b"d": (FILE, b"was a directory"),
        b"s": stat.S_IFDIR | 0o700,
    }


def test_a_directory_that_holds_something_else_stays(tree: Tree) -> None:
    apply(tree, {b"d/ours": (FILE, b"1"), b"d/ignored": (FILE, b"2")})
    apply(tree, {b"d/ours": (0, None), b"d": (0, None)})
    assert content(tree) == {b"d": DIRECTORY, b"d/ignored": (FILE, b"2")}


def test_what_is_not_ours_is_not_removed_for_a_file(tree: Tree) -> None:
    apply(tree, {b"d/ours": (FILE, b"1"), b"d/e/ignored": (FILE, b"2")})
    before = content(tree)
    table: NodeTable = tree.table  # type: ignore[attr-defined]
    applying = Applying(tree, table, OWNER)
    applying.stage(Wanted(b"d/ours", 0))
    applying.stage(Wanted(b"d", FILE), b"file")
    with pytest.raises(OSError) as refused:
        applying.check()
    assert (refused.value.errno, refused.value.filename) == (errno.ENOTEMPTY, b"d/e/ignored")
    applying.finish()
    assert content(tree) == before


def test_who_has_a_file_open_keeps_what_he_opened(tree: Tree) -> None:
    apply(tree, {b"a": (FILE, b"old")})
    node, _ = tree.lookup(tree.root, b"a")
    file = tree.open(node, os.O_RDONLY)
    apply(tree, {b"a": (FILE, b"new")})
    assert file.read(0, 10) == b"old"
    file.close()
    assert content(tree) == {b"a": (FILE, b"new")}


def test_times_and_attributes(tree: Tree) -> None:
    table: NodeTable = tree.table  # type: ignore[attr-defined]
    applying = Applying(tree, table, OWNER)
    applying.stage(Wanted(b"a", FILE, 1_600_000_000_123_456_789, xattrs=((b"user.note", b"n"),)), b"x")
    applying.stage(Wanted(b"d", DIRECTORY, 1_500_000_000_000_000_001))
    applying.stage(Wanted(b"d/b", FILE), b"y")
    applying.check()
    applying.publish()
    applying.finish()
    node, attr = tree.lookup(tree.root, b"a")
    assert attr.mtime_ns == 1_600_000_000_123_456_789
    assert tree.getxattr(node, b"user.note") == b"n"
    assert tree.lookup(tree.root, b"d")[1].mtime_ns == 1_500_000_000_000_000_001


class Killed(Exception):
    """The process ends here."""


class MortalTree(HostTree):
    """A host tree whose process is killed at its renames, when none is left."""

    renames_left = 1_000_000

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        if not self.renames_left:
            raise Killed
        self.renames_left -= 1
        super().rename(src, name, dst, new_name, flags)


@pytest.mark.parametrize("renames", range(5))
def test_a_crash_between_two_files(tmp_path: Path, renames: int) -> None:
    """Files that had changed places with the new ones are not put back, and no old file stays anywhere."""
    table = NodeTable()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    tree = MortalTree(fd, table, entry=b"test", writable=True, hidden=lambda identity, name: False)
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(f"old {name}")
    tree.lookup(tree.root, b"b")  # one that the kernel may know
    applying = Applying(tree, table, OWNER)
    assert applying.takes_files_of_threads()
    for name in (b"a", b"b", b"c"):
        applying.make(Wanted(name, FILE), bytes(20), writer(b"new " + name))
    applying.check()
    record = msgspec.msgpack.encode(applying.steps)
    tree.renames_left = renames
    if renames < 4:
        with pytest.raises(Killed):
            applying.publish()
    else:
        applying.publish()
    tree.renames_left = 1_000_000
    again = Applying.resume(tree, table, OWNER, decoded(record))
    if again.has_begun:
        again.publish()
    again.finish()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: f"new {name}" if renames else f"old {name}" for name in ("a", "b", "c")
    }
    tree.close()


@pytest.mark.parametrize("takes", [True, False])
@pytest.mark.parametrize("known", [True, False])
def test_old_files_go_as_a_whole_where_they_can(tmp_path: Path, takes: bool, known: bool) -> None:
    place, trash = tmp_path / "tree", tmp_path / "trash"
    place.mkdir()
    trash.mkdir()
    table = NodeTable()
    tree = host_tree(place, table)
    for number in range(100):
        (place / f"f{number}").write_text("old")
    node = tree.lookup(tree.root, b"f1")[0] if known else None
    applying = Applying(tree, table, OWNER)
    assert applying.takes_files_of_threads()
    for number in range(100):
        applying.make(Wanted(b"f%d" % number, FILE), bytes(20), writer(b"new"))
    assert {made[0] for made in applying.made.values()} == {3}
    applying.check()
    applying.publish()
    assert not applying.let_go()

    def take(parent: int, name: bytes) -> bool:
        assert name.startswith(STAGING)
        if takes:
            os.rename(name, trash / "taken", src_dir_fd=parent)
        return takes

    applying.sweep(take)
    names = {affected.name for affected in applying.finish()}
    assert {path.name: path.read_text() for path in place.iterdir()} == {f"f{number}": "new" for number in range(100)}
    assert len(os.listdir(trash / "taken") if takes else ()) == (100 - known if takes else 0)
    assert {applying.staging, applying.staging + b".begun"} <= names
    if node is not None:
        assert node.opens == 0
        assert tree.lookup(tree.root, b"f1")[0] is not node
    tree.close()


class IntrudedTree(HostTree):
    """A host tree in which somebody puts a directory in the place of a file just before that changes places."""

    intruder: Path | None = None

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        if new_name == b"f3" and self.intruder is not None:
            (self.intruder / "f3").unlink()
            (self.intruder / "f3").mkdir()
            (self.intruder / "f3/precious").write_text("nobody has recorded it")
        super().rename(src, name, dst, new_name, flags)


@pytest.mark.parametrize("count", [4, 12])
def test_a_directory_that_came_just_then_is_not_removed(tmp_path: Path, count: int) -> None:
    place, trash = tmp_path / "tree", tmp_path / "trash"
    place.mkdir()
    trash.mkdir()
    table = NodeTable()
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    tree = IntrudedTree(fd, table, entry=b"test", writable=True, hidden=lambda identity, name: False)
    for number in range(count):
        (place / f"f{number}").write_text("old")
    applying = Applying(tree, table, OWNER)
    assert applying.takes_files_of_threads()
    for number in range(count):
        applying.make(Wanted(b"f%d" % number, FILE), bytes(20), writer(b"new"))
    applying.check()
    tree.intruder = place
    applying.publish()
    (kept,) = applying.rescue()
    while applying.let_go():
        pass
    applying.sweep(lambda parent, name: os.rename(name, trash / "taken", src_dir_fd=parent) is None)
    applying.finish()
    assert (place / kept / "precious").read_text() == "nobody has recorded it"
    assert (place / "f3").read_text() == "new"
    assert not [name for name in os.listdir(place) if name.startswith(os.fsdecode(STAGING))]
    tree.close()


@pytest.mark.parametrize("group_goes_on", [False, True])
def test_a_staging_directory_that_was_made_elsewhere(tmp_path: Path, group_goes_on: bool) -> None:
    """Not where it would hand on something else to what is made in it."""
    place, store = tmp_path / "tree", tmp_path / "store"
    place.mkdir()
    store.mkdir()
    place.chmod(0o2755 if group_goes_on else 0o755)
    table = NodeTable()
    tree = host_tree(place, table)
    made: list[bytes] = []

    def elsewhere(parent: int, name: bytes) -> bool:
        made.append(name)
        (store / "made").mkdir(mode=0o700)
        os.rename(store / "made", name, dst_dir_fd=parent)
        return True

    applying = Applying(tree, table, OWNER, elsewhere=elsewhere)
    assert applying.takes_files_of_threads()
    applying.make(Wanted(b"a", FILE), bytes(20), writer(b"new"))
    applying.check()
    applying.publish()
    applying.finish()
    assert made == ([] if group_goes_on else [applying.staging])
    assert {path.name: path.read_text() for path in place.iterdir()} == {"a": "new"}
    tree.close()


def test_the_very_file_is_not_in_the_way(tree: Tree) -> None:
    apply(tree, {b"same": (FILE, b"content"), b"other": (FILE, b"content")})
    table: NodeTable = tree.table  # type: ignore[attr-defined]
    node = tree.lookup(tree.root, b"same")[0]
    applying = Applying(tree, table, OWNER)
    applying.stage(Wanted(b"same", FILE, is_new=True), b"content")
    applying.check()
    applying.publish()
    applying.finish()
    assert tree.lookup(tree.root, b"same")[0] is node
    applying = Applying(tree, table, OWNER)
    applying.stage(Wanted(b"other", FILE, is_new=True), b"another")
    with pytest.raises(FileExistsError):
        applying.check()
    applying.finish()
    assert content(tree) == {b"same": (FILE, b"content"), b"other": (FILE, b"content")}


def test_steps_of_an_older_version_are_read() -> None:
    """They have no inode numbers."""
    steps = decoded(msgspec.msgpack.encode([1, b".clivefs-new-x", [[b"a", FILE, None, b"0"]]]))
    assert (steps.steps[0].staged, steps.steps[0].inode) == (b"0", 0)


PATHS = st.sampled_from([b"a", b"b", b"a/x", b"a/y", b"b/x/z", b"c"])


@st.composite
def worlds(draw: st.DrawFn) -> dict[bytes, tuple[int, bytes | None]]:
    """A tree as path -> wanted: files, and the directories that they need."""
    world: dict[bytes, tuple[int, bytes | None]] = {}
    for path in sorted(draw(st.sets(PATHS, max_size=5))):
        parts = path.split(b"/")
        above = [b"/".join(parts[:n]) for n in range(1, len(parts))]
        if any(each in world and not stat.S_ISDIR(world[each][0]) for each in above):
            continue
        world.update(dict.fromkeys(above, (DIRECTORY, None)))
        world[path] = (stat.S_IFREG | draw(st.sampled_from([0o644, 0o755])), draw(st.binary(max_size=12)))
    return world


@pytest.mark.parametrize("make", [host_tree, overlay_tree])
@pytest.mark.parametrize("crash_after", ["", "stage", "publish"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=worlds(), after=worlds())
def test_any_tree_becomes_any_other(
    tmp_path_factory: pytest.TempPathFactory,
    make: Callable[[Path, NodeTable], Tree],
    crash_after: str,
    before: dict[bytes, tuple[int, bytes | None]],
    after: dict[bytes, tuple[int, bytes | None]],
) -> None:
    table = NodeTable()
    tree = make(tmp_path_factory.mktemp("tree"), table)
    tree.table = table  # type: ignore[attr-defined]
    apply(tree, before)
    apply(tree, {**dict.fromkeys(before, (0, None)), **after}, crash_after=crash_after)
    shown = content(tree)
    assert shown == {path: mode if stat.S_ISDIR(mode) else (mode, data) for path, (mode, data) in after.items()}
    assert not any(name.startswith(STAGING) for name in shown)
    tree.close()


@pytest.mark.parametrize("crash_after", ["", "stage", "publish"])
def test_names_that_are_to_be_one_file(tree: Tree, crash_after: str) -> None:
    """Also where their old files were one: that the first name left it says nothing of what others do."""
    table: NodeTable = tree.table  # type: ignore[attr-defined]
    apply(tree, {b"a": (FILE, b"old"), b"other": (FILE, b"old"), b"d": (DIRECTORY, None)})
    node = tree.lookup(tree.root, b"a")[0]
    tree.link(node, tree.lookup(tree.root, b"d")[0], b"b")
    applying = Applying(tree, table, OWNER)
    first = Wanted(b"a", FILE, link=1, had_links=True)
    if applying.takes_files_of_threads():
        applying.make(first, bytes(20), writer(b"new"))
    else:
        applying.stage(first, b"new")
    assert applying.link(Wanted(b"d/b", FILE, link=1, had_links=True), b"a")
    assert applying.link(Wanted(b"c", FILE, link=1), b"a")
    applying.check()
    record = msgspec.msgpack.encode(applying.steps)
    if crash_after != "stage":
        applying.publish()
    if crash_after:
        applying = Applying.resume(tree, table, OWNER, decoded(record))
        applying.publish()
    applying.finish()
    found = [tree.lookup(tree.root, b"a"), tree.lookup(tree.lookup(tree.root, b"d")[0], b"b")]
    found.append(tree.lookup(tree.root, b"c"))
    assert {node.nodeid for node, _ in found} == {found[0][0].nodeid}
    assert {tree.getattr(node).nlink for node, _ in found} == {3}
    assert content(tree) == {
        **dict.fromkeys((b"a", b"c", b"d/b"), (FILE, b"new")),
        b"d": DIRECTORY,
        b"other": (FILE, b"old"),
    }
