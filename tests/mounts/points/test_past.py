"""What a point shows: content, what git does not say of it, and that nothing of it can be changed."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.points.lower import lower_of_point
from clivefs.mounts.points.metadata import encode_records, meta_entries
from clivefs.mounts.tree import SetAttr
from clivefs.objects.encode import MODE_FILE, TreeEntry
from clivefs.objects.fsck import fsck
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.points.pastworlds import OWNER, World, refused, state
from tests.mounts.points.pointworlds import (
    MTIME_NS,
    directory,
    regular,
    special,
    symlink,
    unknown,
    write,
)


@pytest.fixture(params=["disk", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with Store.open(tmp_path / "store") if request.param == "disk" else MemoryStore() as store:
        made = World(store, tmp_path)
        yield made
        made.operations.close()
        assert fsck(store) == []


def test_what_git_does_not_say_is_shown(world: World) -> None:
    twin = regular(b"linked", 0o640, link=77)
    point = world.record(
        directory(
            {
                b"private": regular(b"key", 0o600, uid=5, gid=6, xattrs=((b"user.a", b"1"), (b"user.b", b""))),
                b"run": regular(b"#!", 0o751),
                b"link": symlink(b"private"),
                b"empty": directory({}, 0o711),
                b"only": directory({b"empty": directory({})}),
                b"pipe": special(stat.S_IFIFO | 0o622),
                b"disk": special(stat.S_IFBLK | 0o660, rdev=os.makedev(8, 1)),
                b"one": twin,
                b"sub": directory({b"two": twin}, 0o2775),
                b"other": regular(b"linked, it says", 0o640, link=77),
            },
            0o750,
            uid=9,
        )
    )
    top = f"sessions/work/{point.name}"
    assert sorted(world.names(top)) == sorted(
        ["private", "run", "link", "empty", "only", "pipe", "disk", "one", "sub", "other"]
    )
    root = world.attr(top)
    assert (root.mode, root.uid, root.gid, root.mtime_ns) == (stat.S_IFDIR | 0o750, 9, 1001, MTIME_NS)
    private = world.attr(f"{top}/private")
    assert (private.mode, private.uid, private.gid, private.size) == (stat.S_IFREG | 0o600, 5, 6, 3)
    assert private.mtime_ns == private.ctime_ns == MTIME_NS
    number = world.lookup(f"{top}/private").nodeid
    assert world.operations.listxattr(number) == [b"user.a", b"user.b"]
    assert world.operations.getxattr(number, b"user.a") == b"1"
    assert world.operations.getxattr(number, b"user.clive.layer") == b"point:" + point.name.encode()
    with refused(errno.ENODATA):
        world.operations.getxattr(number, b"user.c")
    assert world.attr(f"{top}/run").mode == stat.S_IFREG | 0o751
    assert world.target(f"{top}/link") == "private"
    assert (world.attr(f"{top}/empty").mode, world.names(f"{top}/empty")) == (stat.S_IFDIR | 0o711, [])
    assert world.names(f"{top}/only") == ["empty"]
    assert world.names(f"{top}/only/empty") == []
    assert world.attr(f"{top}/pipe").mode == stat.S_IFIFO | 0o622
    assert world.attr(f"{top}/disk").rdev == os.makedev(8, 1)
    assert world.attr(f"{top}/sub").mode == stat.S_IFDIR | 0o2775
    with refused(errno.ENXIO):
        world.operations.open(world.lookup(f"{top}/pipe").nodeid, os.O_RDONLY)
    one, two = world.lookup(f"{top}/one"), world.lookup(f"{top}/sub/two")
    assert one.nodeid == two.nodeid
    assert one.attr is not None
    assert one.attr.nlink == 2
    assert world.lookup(f"{top}/other").nodeid != one.nodeid


def test_what_was_not_recorded_is_never_shown_wider(world: World) -> None:
    point = world.record(
        directory(
            {
                b"a": unknown(regular(b"a")),
                b"x": unknown(regular(b"x", 0o755)),
                b"d": unknown(directory({b"b": unknown(regular(b"b"))})),
                b"git": directory(
                    {b"d": unknown(directory({b"x": unknown(regular(b""))}))}, 0o755, uid=3, inherits=True
                ),
            }
        )
    )
    top = f"sessions/work/{point.name}"
    for path, mode in (("a", 0o600), ("x", 0o600), ("d", 0o700), ("d/b", 0o600)):
        attr = world.attr(f"{top}/{path}")
        assert (stat.S_IMODE(attr.mode), attr.uid, attr.mtime_ns) == (mode, OWNER.uid, point.ms * 1_000_000)
    for path, mode in (("git/d", 0o755), ("git/d/x", 0o644)):
        attr = world.attr(f"{top}/{path}")
        assert (stat.S_IMODE(attr.mode), attr.uid, attr.gid, attr.mtime_ns) == (mode, 3, 1001, MTIME_NS)


@pytest.mark.warns
def test_damaged_metadata_shows_the_content_to_its_owner_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    with world.store.batch() as batch:
        tree, _ = write(batch, directory({b"f": regular(b"f")}))
        stranger = batch.tree([TreeEntry(MODE_FILE, b"stranger", batch.blob(b""))])
        of_another = batch.tree(meta_entries(batch.blob(encode_records({}, [])), {}))
    for meta in (a_blob(world), stranger, of_another, b"\x99" * 20):
        with world.store.batch() as batch:
            point = world.history.publish(batch, tree, meta)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert world.read(f"sessions/work/{point.name}/f") == b"f"
        assert "is lost" in caplog.text
        assert stat.S_IMODE(world.attr(f"sessions/work/{point.name}/f").mode) == 0o600
        assert world.attr(f"sessions/work/{point.name}").mode == stat.S_IFDIR | 0o700


def a_blob(world: World) -> bytes:
    with world.store.batch() as batch:
        return batch.blob(b"no tree")


def test_the_past_cannot_be_changed(world: World) -> None:
    point = world.record(state(b"x"))
    ops = world.operations
    top = world.lookup(f"sessions/work/{point.name}").nodeid
    file = world.lookup(f"sessions/work/{point.name}/src/a.py").nodeid
    session, at = world.lookup("sessions/work").nodeid, world.control.at.nodeid
    for number in (top, session, at):
        for attempt in (
            lambda: ops.mkdir(number, b"new", 0o755, OWNER),  # noqa: B023
            lambda: ops.create(number, b"new", 0o644, os.O_RDWR, OWNER),  # noqa: B023
            lambda: ops.symlink(number, b"new", b"x", OWNER),  # noqa: B023
            lambda: ops.unlink(number, b"README"),  # noqa: B023
            lambda: ops.rename(number, b"README", number, b"new", 0),  # noqa: B023
            lambda: ops.setattr(number, SetAttr(mode=0o777), None),  # noqa: B023
            lambda: ops.setxattr(number, b"user.x", b"y"),  # noqa: B023
        ):
            with refused(errno.EROFS):
                attempt()
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
        with refused(errno.EROFS):
            ops.open(file, flags)
    with refused(errno.EROFS):
        ops.setattr(file, SetAttr(size=0), None)
    with refused(errno.EPERM):
        ops.mkdir(ops.lookup(ops.lookup(1, b"w").nodeid, b".clive").nodeid, b"new", 0o755, OWNER)


def test_numbers_are_the_same_whenever_a_point_is_entered(world: World) -> None:
    points = [world.record(state(b"same")) for _ in range(2)]
    paths = [f"sessions/work/{point.name}{tail}" for point in points for tail in ("", "/src", "/src/a.py")]
    numbers = [world.lookup(path).nodeid for path in paths]
    assert len(set(numbers)) == len(numbers)
    world.forget_all()
    assert [world.lookup(path).nodeid for path in reversed(paths)] == numbers[::-1]


def test_nothing_of_a_point_is_kept_once_the_kernel_forgets_it(world: World) -> None:
    twin = regular(b"linked", 0o640, link=7)
    points = [world.record(directory({b"a": twin, b"d": directory({b"b": twin})})) for _ in range(3)]
    before = len(world.table)
    for point in points:
        top = f"sessions/work/{point.name}"
        world.names(top)
        assert world.lookup(f"{top}/d/b").nodeid == world.lookup(f"{top}/a").nodeid
    world.names("sessions/work")
    world.target("at/latest")
    opened = world.operations.open(world.lookup(f"sessions/work/{points[0].name}/a").nodeid, os.O_RDONLY)
    assert len(world.table) > before
    world.forget_all()
    assert world.operations.read(opened.handle, 0, 10) == b"linked"
    world.operations.release(opened.handle)
    assert len(world.table) == before
    assert world.control.sessions.children is None


def test_a_large_file_of_the_past(world: World) -> None:
    content = os.urandom(1 << 20) + b"and a byte"
    point = world.record(directory({b"large": regular(content)}))
    assert world.read(f"sessions/work/{point.name}/large") == content


def test_a_fork_can_stand_on_a_point(world: World, tmp_path: Path) -> None:
    os.umask(0)
    point = world.record(directory({b"a": regular(b"old", 0o640), b"empty": directory({})}))
    (tmp_path / "upper").mkdir()
    fd = os.open(tmp_path / "upper", os.O_RDONLY | os.O_DIRECTORY)
    lower = lower_of_point(point, world.store, owner=OWNER, cache_dir=str(tmp_path))
    tree = OverlayTree(lower, fd, world.table, entry=b"fork", source=point.oid)
    assert [entry.name for entry in tree.entries(tree.root)] == [b"a", b"empty"]
    _, attr = tree.lookup(tree.root, b"a")
    assert attr.mode == stat.S_IFREG | 0o640
    node, _, file = tree.create(tree.root, b"new", 0o644, os.O_RDWR, OWNER)
    file.write(0, b"new")
    file.close()
    assert tree.getattr(node).size == 3
    assert [entry.name for entry in tree.entries(tree.root)] == [b"a", b"empty", b"new"]
    tree.close()
    os.close(fd)
