"""`.clive/sessions` and `.clive/at`, as requests see them."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.fuse.operations import CACHE_S, DEGRADED_CACHE_S, Entry
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.points import control as control_module
from clivefs.mounts.tree import Blocked
from clivefs.objects.fsck import fsck
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.points.pastworlds import COMMIT, World, refused, state
from tests.mounts.points.pointworlds import (
    START_MS,
    WORKSPACE,
    directory,
)


@pytest.fixture(params=["disk", "memory"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    with Store.open(tmp_path / "store") if request.param == "disk" else MemoryStore() as store:
        made = World(store, tmp_path)
        yield made
        made.operations.close()
        assert fsck(store) == []


def test_every_point_is_a_directory(world: World) -> None:
    points = [world.record(state(b"version %d" % number)) for number in range(3)]
    assert world.names("sessions") == ["work"]
    assert world.names("sessions/work") == ["start", "latest", *(point.name for point in points)]
    for number, point in enumerate(points):
        assert world.read(f"sessions/work/{point.name}/src/a.py") == b"version %d" % number
        assert sorted(world.names(f"sessions/work/{point.name}")) == ["README", "src"]
    assert world.target("sessions/work/start") == points[0].name
    assert world.target("sessions/work/latest") == points[2].name
    later = world.record(state(b"version 3"))
    assert world.target("sessions/work/latest") == later.name
    assert world.read("sessions/work/latest/src/a.py") == b"version 3"


def test_expressions_lead_to_points_as_of_now(world: World) -> None:
    points = [world.record(state(b"version %d" % number), after_ms=60_000) for number in range(4)]
    assert world.names("at") == []
    assert world.target("at/latest") == f"../sessions/work/{points[3].name}"
    for expression, number in {
        "-90s": 1,
        "-2m": 1,
        "start": 0,
        "@2": 1,
        "work:start": 0,
        points[2].name: 2,
        points[1].oid.hex(): 1,
        points[1].oid.hex()[:12]: 1,
    }.items():
        assert world.read(f"at/{expression}/src/a.py") == b"version %d" % number
    world.now_ms += 60_000
    assert world.read("at/-90s/src/a.py") == b"version 2"
    assert world.attr("at/-90s").nlink == 1
    link = world.entry("at/-90s").attr
    assert link is not None
    assert (stat.S_IFMT(link.mode), link.size) == (stat.S_IFLNK, len(world.target("at/-90s")))


@pytest.mark.parametrize(
    "text", ["what", "-9d", "25:00", "@99", "dead", "0" * 40, "-5m ", "lib:x:other", "\udcff", "é"]
)
def test_what_means_nothing_is_not_there(world: World, text: str) -> None:
    world.record(state(b"x"))
    before = len(world.table)
    with refused(errno.ENOENT):
        entry = world.waited(lambda: world.operations.lookup(world.control.at.nodeid, os.fsencode(text)))
        assert isinstance(entry, Entry)
        if not entry.nodeid:
            raise FileNotFoundError(errno.ENOENT, "")
    assert len(world.table) == before


def test_nothing_is_there_before_the_first_point(world: World) -> None:
    assert world.names("sessions/work") == []
    for path in ("sessions/work/latest", "sessions/work/start", "at/latest", "at/-5m"):
        with refused(errno.ENOENT):
            world.entry(path)


def test_a_revision_of_a_mount_entry(world: World) -> None:
    assert world.target("at/lib:x:main~3") == f"../revisions/lib:x@{COMMIT.hex()}"
    assert world.names("revisions") == []
    assert world.read("at/lib:x:main~3/of-main") == b"old"
    before = len(world.table)
    for other in ("lib:y@" + COMMIT.hex(), "lib:x@" + "0" * 40, "lib:x@12"):
        with refused(errno.ENOENT):
            world.entry("revisions/" + other)
    assert len(world.table) == before


def test_a_listing_tells_nothing_that_could_be_wrong(world: World) -> None:
    point = world.record(directory({}, 0o750))
    told: dict[bytes, Entry] = {}
    handle = world.operations.opendir(world.entry("sessions/work").nodeid)
    world.operations.readdir(handle, 0, lambda name, entry, position: told.setdefault(name, entry) is entry)
    listed = told[point.name.encode()]
    assert listed.attr is not None
    assert (listed.attr.mode, listed.attr_timeout_s) == (stat.S_IFDIR | 0o700, 0)
    known = world.entry(f"sessions/work/{point.name}")
    assert known.attr is not None
    assert (known.nodeid, known.attr.mode, known.attr_timeout_s) == (listed.nodeid, stat.S_IFDIR | 0o750, CACHE_S)


def test_listing_names_gives_the_numbers_that_lookups_give_and_keeps_nothing(world: World) -> None:
    points = [world.record(state(b"%d" % number)) for number in range(3)]
    directory = world.entry("sessions/work").nodeid
    held = world.entry(f"sessions/work/{points[1].name}")  # the others are in nobody's hands
    before = len(world.table)
    listed: dict[bytes, tuple[int, int]] = {}

    def add(name: bytes, number: int, mode: int, position: int) -> bool:
        listed[name] = number, stat.S_IFMT(mode)
        return True

    handle = world.operations.opendir(directory)
    world.operations.readdir_names(handle, 0, add)
    world.operations.releasedir(handle)
    assert len(world.table) == before
    assert listed.pop(b".")[0] == directory
    del listed[b".."]
    assert listed[points[1].name.encode()][0] == held.nodeid
    assert set(listed) == {b"start", b"latest", *(point.name.encode() for point in points)}
    for name, told in listed.items():
        found = world.operations.lookup(directory, name)
        assert found.attr is not None
        assert told == (found.nodeid, stat.S_IFMT(found.attr.mode)), name


def test_the_past_has_no_control_directory(world: World) -> None:
    point = world.record(state(b"x"))
    for path in (f"sessions/work/{point.name}/.clive", f"sessions/work/{point.name}/.git", "sessions/.clive"):
        with refused(errno.ENOENT):
            world.entry(path)


def test_points_of_other_sessions_are_not_shown_in_one(world: World) -> None:
    old = world.record(state(b"x"))
    world.history.begin("more")
    new = world.record(state(b"y"))
    assert world.names("sessions") == ["work", "more"]
    assert world.names("sessions/work") == ["start", "latest", old.name]
    assert world.names("sessions/more") == ["start", "latest", new.name]
    for path in (f"sessions/work/{new.name}", f"sessions/more/{old.name}", "sessions/none", "sessions/work/nonsense"):
        with refused(errno.ENOENT):
            world.entry(path)
    assert world.target("at/start") == f"../sessions/more/{new.name}"


def test_a_listing_opens_no_point_and_is_made_in_a_thread_where_it_is_long(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "LISTED_INLINE", 3)
    points = [world.record(state(b"%d" % number)) for number in range(10)]
    node = world.node("sessions/work")
    with pytest.raises(Blocked) as blocked:
        world.view.names(node)
    blocked.value.job()
    assert world.view.names(node)[2:] == [point.name.encode() for point in points]
    assert world.names("sessions/work")[2:] == [point.name for point in points]
    assert world.opened == []


def test_the_kernel_may_keep_what_does_not_change(world: World) -> None:
    point = world.record(state(b"x"))
    assert world.lookup(f"sessions/work/{point.name}/src").entry_timeout_s == CACHE_S
    assert world.lookup(f"sessions/work/{point.name}").attr_timeout_s == CACHE_S
    assert world.entry("at/latest").entry_timeout_s == DEGRADED_CACHE_S
    assert world.entry("sessions/work").attr_timeout_s == DEGRADED_CACHE_S


def test_a_point_that_is_gone_is_refused(world: World) -> None:
    points = [world.record(state(b"%d" % number)) for number in range(3)]
    key = WORKSPACE.encode() + points[0].ms.to_bytes(8, "big")
    node = world.node("sessions/work")
    listed, _ = world.view.listed(node, points[0].name.encode())
    with world.store.batch() as batch:
        batch.meta_put("points", key, None)
    with refused(errno.ENOENT):
        world.entry(f"sessions/work/{points[0].name}")
    with refused(errno.ESTALE):
        world.view.lookup(listed, b"src")
    world.table.release(listed)
    assert world.target("sessions/work/start") == points[1].name


def test_a_workspace_goes_with_its_past_and_what_is_open_stays_readable(world: World) -> None:
    point = world.record(state(b"x"))
    opened = world.operations.open(world.lookup(f"sessions/work/{point.name}/src/a.py").nodeid, os.O_RDONLY)
    shell = world.lookup("sessions/work").nodeid
    world.view.remove_workspace(b"w")
    for tree in (world.control.past, world.control):
        DetachedTree(tree, world.table, tree.close)
    assert world.operations.read(opened.handle, 0, 10) == b"x"
    assert world.view.names(world.table.get(shell)) == []
    assert world.operations.lookup(1, b"w").nodeid == 0
    world.operations.release(opened.handle)
    world.forget_all()
    assert len(world.table) == 1  # the mountpoint


def test_points_of_a_session_have_numbers_of_their_own(world: World) -> None:
    world.record(state(b"x"))
    session = world.node("sessions/work")
    assert isinstance(session, control_module._Directory)
    numbers = {session.number_of(START_MS + ms) for ms in range(20_000)}
    assert len(numbers) == 20_000
    assert all(1 < number < 1 << 63 for number in numbers)
