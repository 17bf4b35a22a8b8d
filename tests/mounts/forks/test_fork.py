"""A fork shows what there was when it was made, ignored files included, whatever the live view does since."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.base.syscalls import RENAME_EXCHANGE
from clivefs.mounts.points.compare import compare
from tests.mounts.forks.forkworlds import Paths, Shown, World

LARGE = os.urandom(300_000)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    old = os.umask(0)
    made = World(tmp_path)
    yield made
    for lower in made.lowers[:]:
        made.lowers.remove(lower)
    made.close()
    os.umask(old)


def fill(world: World) -> None:
    root = world.root
    for directory in ("src/__pycache__", "node_modules/a/b", "build"):
        (root / directory).mkdir(parents=True)
    files = {
        ".gitignore": "node_modules\n__pycache__/\nbuild/\n*.o\n",
        "src/main.c": "int main;\n",
        "src/main.o": "object\n",
        "src/__pycache__/x.pyc": "pyc\n",
        "node_modules/a/b/index.js": "module\n",
        "node_modules/top.js": "top\n",
        "build/out": "out\n",
    }
    for path, content in files.items():
        (root / path).write_text(content)
    (root / "node_modules/large").write_bytes(LARGE)
    (root / "node_modules/link").symlink_to("top.js")
    (root / "node_modules/top.js").chmod(0o640)


def test_ignored_files_are_there_at_once(world: World) -> None:
    fill(world)
    fork = world.fork()
    assert fork.all() == world.live.all()
    assert fork.read("node_modules/large") == LARGE
    fork.tree.close()


def test_it_stays_when_the_live_view_goes_on(world: World) -> None:
    fill(world)
    fork = world.fork()
    before = fork.all()
    live = world.live
    live.write("src/main.c", b"changed\n")
    live.write("src/new.c", b"new\n")
    live.append("node_modules/large", b"more")
    live.write("node_modules/top.js", b"changed\n")
    live.chmod("src/main.o", 0o600)
    live.unlink("node_modules/link")
    live.rename("node_modules/a", "node_modules/elsewhere")
    live.write("node_modules/elsewhere/b/index.js", b"changed after the move\n")
    live.mkdir("node_modules/a")
    live.write("node_modules/a/other.js", b"new\n")
    live.unlink("build/out")
    live.rmdir("build")
    live.rename("src", "sources")
    live.unlink("sources/__pycache__/x.pyc")
    live.write("top.o", b"new and ignored\n")
    assert fork.all() == before
    fork.tree.close()


@pytest.mark.parametrize("made", ["node_modules/.new", "src/new.o", "recorded"])
@pytest.mark.parametrize("target", ["node_modules/new", "node_modules/a/b/new", "src/another.o", "node_modules/empty"])
def test_a_directory_that_is_made_elsewhere_and_moved_into_place_is_no_part_of_it(
    world: World, made: str, target: str
) -> None:
    fill(world)
    (world.root / "node_modules/empty").mkdir()
    fork = world.fork()
    before = fork.all()
    world.live.mkdir(made)
    world.live.write(f"{made}/package.json", b"{}\n")
    world.live.rename(made, target)
    assert fork.all() == before
    world.live.write(f"{target}/later.js", b"later\n")
    world.live.rename(target, "node_modules/last")
    assert fork.all() == before
    fork.close()
    again = world.fork(point=fork.point)
    assert again.all() == before
    again.close()


def test_what_was_kept_is_kept_over_a_restart(world: World) -> None:
    fill(world)
    fork = world.fork()
    before = fork.all()
    world.live.write("node_modules/top.js", b"changed\n")
    world.live.rename("node_modules/a", "node_modules/z")
    world.live.write("node_modules/new.js", b"new\n")
    fork.write("src/main.c", b"of the fork\n")
    fork.close()
    again = world.fork(point=fork.point)
    assert again.all() == {**before, "src/main.c": before["src/main.c"]._replace(content=b"of the fork\n")}
    again.tree.close()


def test_writes_stay_in_the_fork(world: World) -> None:
    fill(world)
    before = world.live.all()
    fork = world.fork()
    fork.append("node_modules/large", b"more")
    fork.write("node_modules/top.js", b"fork\n")
    fork.unlink("build/out")
    fork.rmdir("build")
    fork.rename("src", "sources")
    fork.write("sources/__pycache__/x.pyc", b"fork\n")
    assert world.live.all() == before
    assert fork.read("sources/main.o") == b"object\n"
    assert fork.read("node_modules/large") == LARGE + b"more"
    fork.tree.close()


def test_who_has_an_ignored_file_open_reads_what_it_was(world: World) -> None:
    fill(world)
    fork = world.fork()
    file = world.view.open(fork.node("node_modules/top.js"), os.O_RDONLY)
    world.live.write("node_modules/top.js", b"changed\n")
    assert file.read(0, 100) == b"top\n"
    file.close()
    fork.tree.close()


def test_two_forks_keep_what_each_has_inherited(world: World) -> None:
    fill(world)
    one = world.fork("one")
    world.live.write("build/out", b"second\n")
    two = world.fork("two")
    world.live.write("build/out", b"third\n")
    world.live.unlink("build/out")
    assert (one.read("build/out"), two.read("build/out")) == (b"out\n", b"second\n")
    one.tree.close()
    two.tree.close()


def test_another_kind_comes_where_an_inherited_directory_was(world: World) -> None:
    fill(world)
    one = world.fork()
    before = one.all()
    for path in sorted((path for path in world.live.all() if path.startswith("node_modules/")), reverse=True):
        (world.live.rmdir if stat.S_ISDIR(before[path].mode) else world.live.unlink)(path)
    world.live.rmdir("node_modules")
    world.live.write("node_modules", b"a file\n")
    world.live.append("node_modules", b"that grows\n")
    world.live.chmod("node_modules", 0o600)
    world.live.unlink("node_modules")
    world.live.symlink("node_modules", b"elsewhere")
    world.live.unlink("node_modules")
    assert one.all() == before


def test_what_could_not_be_removed_is_kept_before_it_changes(world: World) -> None:
    fill(world)
    one, two = world.fork("one"), world.fork("two")
    before = one.all()
    with pytest.raises(NotADirectoryError):
        world.live.rmdir("node_modules/a/b/index.js")
    world.live.append("node_modules/a/b/index.js", b"more\n")
    assert one.all() == before
    assert two.all() == before


def test_an_inherited_directory_does_not_go_where_files_are_recorded(world: World) -> None:
    fill(world)
    fork = world.fork()
    with pytest.raises(OSError) as caught:
        fork.rename("node_modules", "modules")
    assert caught.value.errno == errno.EXDEV
    fork.rename("node_modules/a", "node_modules/moved")
    assert fork.read("node_modules/moved/b/index.js") == b"module\n"
    fork.rename("build", "node_modules/build")
    assert fork.read("node_modules/build/out") == b"out\n"
    fork.tree.close()


def test_it_has_no_control_directory(world: World) -> None:
    fill(world)
    fork = world.fork()
    for change in (
        lambda: fork.mkdir(".clive"),
        lambda: fork.write(".clive", b""),
        lambda: fork.symlink(".clive", b"x"),
        lambda: fork.rename("src", ".clive"),
    ):
        with pytest.raises(PermissionError):
            change()
    fork.mkdir("src/.clive")
    fork.tree.close()


def test_what_was_written_to_ignored_files_is_told(world: World) -> None:
    fill(world)
    fork = world.fork()
    assert fork.recorded().ignored == ()
    fork.write("src/main.c", b"changed\n")
    fork.write("src/main.o", b"new\n")
    fork.write("node_modules/a/b/index.js", b"new\n")
    fork.write("node_modules/another", b"new\n")
    assert fork.recorded().ignored == (b"node_modules", b"src/main.o")


def test_what_a_fork_shows_is_recorded(world: World) -> None:
    fill(world)
    (world.root / "private").write_text("secret\n")
    (world.root / "private").chmod(0o600)
    (world.root / "lib/deep").mkdir(parents=True)
    (world.root / "lib/deep/f").write_text("f\n")
    (world.root / "lib/deep/f").chmod(0o600)
    fork = world.fork()
    assert fork.recorded().state == fork.point
    fork.write("src/main.c", b"changed\n")
    fork.write("src/main.o", b"ignored\n")
    fork.write("new", b"new\n")
    fork.mkdir("empty")
    fork.rename("lib", "library")
    fork.write("library/deep/g", b"g\n")
    fork.unlink("private")
    fork.write(".gitignore", b"node_modules\n*.o\nnew\n")
    found = {
        each.path: (each.before and each.before.mode, each.after and each.after.mode)
        for each in compare(world.reader(), fork.point, fork.recorded().state)
    }
    assert found == {
        b".gitignore": (0o100666, 0o100666),
        b"src/main.c": (0o100666, 0o100666),
        b"empty": (None, 0o40755),
        b"lib": (0o40777, None),
        b"lib/deep": (0o40777, None),
        b"lib/deep/f": (0o100600, None),
        b"library": (None, 0o40777),
        b"library/deep": (None, 0o40777),
        b"library/deep/f": (None, 0o100600),
        b"library/deep/g": (None, 0o100644),
        b"private": (0o100600, None),
    }
    fork.tree.close()


# Anything at all


_NAMES = st.sampled_from(["a", "b.o", "node_modules", "c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map("/".join)
_CONTENTS = st.binary(max_size=8)
_OPERATIONS = st.one_of(
    st.tuples(st.just("write"), _PATHS, _CONTENTS),
    st.tuples(st.just("mkdir"), _PATHS),
    st.tuples(st.just("unlink"), _PATHS),
    st.tuples(st.just("rmdir"), _PATHS),
    st.tuples(st.just("chmod"), _PATHS, st.sampled_from([0o644, 0o600, 0o755])),
    st.tuples(st.just("symlink"), _PATHS, st.just(b"target")),
    st.tuples(st.just("rename"), _PATHS, _PATHS, st.sampled_from([0, 0, 0, RENAME_EXCHANGE])),
)


def perform(paths: Paths, operation: tuple[object, ...]) -> None:
    """Do it, or be refused as a file system refuses."""
    name, *arguments = operation
    with contextlib.suppress(OSError):
        getattr(paths, str(name))(*arguments)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    before=st.lists(_OPERATIONS, max_size=25),
    after=st.lists(st.tuples(st.sampled_from(["live", "live", "one", "two"]), _OPERATIONS), max_size=25),
)
def test_forks_and_live_view_do_not_see_each_other(
    tmp_path_factory: pytest.TempPathFactory,
    before: list[tuple[object, ...]],
    after: list[tuple[str, tuple[object, ...]]],
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    old = os.umask(0)
    try:
        (world.root / ".gitignore").write_text("node_modules\n*.o\n")
        for operation in before:
            perform(world.live, operation)
        point = world.point()
        forks = {name: world.fork(name, point) for name in ("one", "two")}
        shown: dict[str, dict[str, Shown]] = {name: fork.all() for name, fork in forks.items()}
        assert shown["one"] == world.live.all()
        for who, operation in after:
            changed = world.live if who == "live" else forks[who]
            perform(changed, operation)
            if who != "live":
                shown[who] = forks[who].all()
            for name, fork in forks.items():
                assert fork.all() == shown[name], (who, operation, name)
        for name, fork in forks.items():
            fork.close()
            again = world.fork(name, point)
            assert again.all() == shown[name]
            again.close()
    finally:
        world.close()
        os.umask(old)
