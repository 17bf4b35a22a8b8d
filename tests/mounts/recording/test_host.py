"""Recording a host directory: as git would, incrementally as from scratch, and never torn."""

from __future__ import annotations

import errno
import os
import random
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.ports import FAULTS, SystemClock
from clivefs.base.syscalls import CLOCK_REALTIME_COARSE
from clivefs.mounts.recording.parts import Dirty
from clivefs.mounts.recording.statcache import Shown
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.recording.worlds import (
    ENVIRONMENT,
    OLD_NS,
    Workspace,
    contents,
    files,
    on_disk,
    recorded_as_on_disk,
)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "w")
    yield made
    made.close()
    FAULTS.clear()


class CountingClock(SystemClock):
    """Is asked for the time whenever a file is read."""

    reads = 0

    def now_ns(self) -> int:
        self.reads += 1
        return super().now_ns()


def git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_the_tree_is_the_one_that_git_makes(workspace: Workspace) -> None:
    workspace.write("src/a.py", "print()\n")
    workspace.write("src/run", "#!/bin/sh\n").chmod(0o755)
    workspace.write("big", os.urandom(3 << 20))
    workspace.write("src/sub/deep/x", "")
    workspace.write("odd \xe9name", "x")
    workspace.write("build/out.o", "object")
    workspace.write("keep.o", "kept")
    workspace.write("tracked.o", "forced in")
    workspace.write(".gitignore", "*.o\n!keep.o\nbuild/\n")
    workspace.write("src/.gitignore", "secret\n")
    workspace.write("src/secret", "no")
    os.symlink("a.py", workspace.root / "src/link")
    git(workspace.root, "init", "-q")
    git(workspace.root, "add", "-f", "tracked.o")
    recorded = workspace.record()
    git(workspace.root, "add", "-A")
    assert recorded.tree.hex() == git(workspace.root, "write-tree")
    assert recorded.changed
    assert b"src/a.py" in recorded.paths


@pytest.mark.parametrize("version", ["2", "4"])
def test_what_the_index_tracks_is_recorded_in_spite_of_the_rules(workspace: Workspace, version: str) -> None:
    workspace.write(".gitignore", "out/\n*.log\n")
    workspace.write("out/deep/kept", "1")
    workspace.write("out/deep/not", "2")
    workspace.write("out/other/not", "3")
    workspace.write("a.log", "4")
    workspace.write("b.log", "5")
    git(workspace.root, "init", "-q")
    git(workspace.root, "add", "-f", "out/deep/kept", "a.log", ".gitignore")
    git(workspace.root, "update-index", "--index-version", version)
    workspace.record()
    assert set(files(workspace.store, workspace.base)) == {
        b".gitignore",
        b"a.log",
        b"out",
        b"out/deep",
        b"out/deep/kept",
    }
    (workspace.root / "out/deep/kept").write_text("changed")
    (workspace.root / "out/deep/not").write_text("changed")
    recorded = workspace.record(b"out/deep/kept", b"out/deep/not", b"b.log")
    assert recorded.paths == (b"out/deep/kept",)
    git(workspace.root, "add", "-f", "b.log", "out/other")
    git(workspace.root, "update-index", "--index-version", version)
    assert workspace.record_all([]).paths == (b"b.log", b"out/other", b"out/other/not"), "nobody told of the files"
    assert workspace.record_all([]).paths == ()


def test_ignored_says_that_gitignore_does_not_count(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "w", ignored=True, exclude=["*.tmp"])
    workspace.write(".gitignore", "*.o\n")
    workspace.write("a.o", "")
    workspace.write("a.tmp", "")
    workspace.write(".git/config", "")
    workspace.write(".clive/x", "")
    workspace.record()
    assert set(files(workspace.store, workspace.base)) == {b".gitignore", b"a.o"}
    workspace.close()


def test_a_changed_gitignore_is_looked_at_with_everything_below(workspace: Workspace) -> None:
    workspace.write(".gitignore", "*.o\n")
    workspace.write("d/a.o", "1")
    workspace.write("d/b.c", "2")
    workspace.record()
    workspace.write(".gitignore", "*.c\n")
    recorded = workspace.record(b".gitignore")
    assert set(files(workspace.store, workspace.base)) == {b".gitignore", b"d", b"d/a.o"}
    assert recorded.paths == (b".gitignore", b"d/a.o", b"d/b.c")


def test_what_git_cannot_hold(workspace: Workspace) -> None:
    workspace.write("a", "x").chmod(0o640)
    os.setxattr(workspace.root / "a", b"user.note", b"hello")
    os.link(workspace.root / "a", workspace.root / "b")
    (workspace.root / "empty/inner").mkdir(parents=True)
    os.mkfifo(workspace.root / "pipe")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(os.fspath(workspace.root / "sock"))
    listening.close()
    os.utime(workspace.root / "a", ns=(1, OLD_NS))
    recorded = workspace.record()
    assert files(workspace.store, (recorded.tree, recorded.meta)) == {
        b"a": b"x", b"b": b"x", b"empty": "dir", b"empty/inner": "dir", b"pipe": "fifo", b"sock": "socket",
    }  # fmt: skip
    found = contents(workspace.store, workspace.base)
    a, b = found[b"a"][1], found[b"b"][1]
    assert a is not None
    assert a == b
    assert (a.mode, a.mtime_ns, a.xattrs) == (stat.S_IFREG | 0o640, OLD_NS, ((b"user.note", b"hello"),))
    assert a.link
    assert not workspace.record().changed
    os.removexattr(workspace.root / "a", b"user.note")
    (workspace.root / "empty/inner").rmdir()
    assert workspace.record(b"a", b"empty/inner").paths == (b"a", b"b", b"empty/inner")


def test_what_has_not_changed_is_not_read_again(tmp_path: Path) -> None:
    clock = CountingClock()
    workspace = Workspace(tmp_path / "w", clock=clock)
    for number in range(50):
        workspace.write(f"d{number % 5}/f{number}", f"content {number}")
    _wait_until_settled(workspace.root)
    workspace.record()
    assert clock.reads == 50
    os.rename(workspace.root / "d0", workspace.root / "renamed")
    workspace.restart()
    workspace.cache.save(os.fspath(tmp_path / "cache"))
    workspace.cache.load(os.fspath(tmp_path / "cache"))
    recorded = workspace.record()
    assert clock.reads == 50, "a directory that was renamed is known by its inode"
    assert {b"d0", b"renamed/f0"} <= set(recorded.paths)
    workspace.write("d1/f1", "other")
    workspace.record(b"d1/f1", b"d1/f6")
    assert clock.reads == 51
    workspace.close()


def test_what_we_have_just_shown_ourselves_is_not_read(tmp_path: Path) -> None:
    """What others may have written to, is: its stat tells."""
    workspace = Workspace(tmp_path / "w")
    workspace.record()
    with workspace.store.batch() as batch:
        oid = batch.blob(b"believed")
    from_ns = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)
    for name in ("shown", "longer", "later", "linked", "unknown"):
        workspace.write(name, b"on disk\n")
    os.link(workspace.root / "linked", workspace.root / "second")
    stats = {name: os.stat(workspace.root / name) for name in ("shown", "longer", "later", "linked")}
    files = {(st.st_dev, st.st_ino): (st.st_size, st.st_mtime_ns, oid) for st in stats.values()}
    workspace.cache.know(Shown(from_ns, max(st.st_ctime_ns for st in stats.values()), files))
    (workspace.root / "longer").write_bytes(b"on disk, longer\n")
    while os.stat(workspace.root / "later").st_ctime_ns <= max(st.st_ctime_ns for st in stats.values()):
        (workspace.root / "later").write_bytes(b"other!!\n")
        os.utime(workspace.root / "later", ns=(OLD_NS, OLD_NS))
    workspace.record(*(name.encode() for name in ("shown", "longer", "later", "linked", "second", "unknown")))
    assert {
        path: workspace.store.read(version.oid)[1]
        for path, (version, _) in contents(workspace.store, workspace.base).items()
        if version
    } == {
        b"shown": b"believed",
        b"longer": b"on disk, longer\n",
        b"later": b"other!!\n",
        b"linked": b"on disk\n",
        b"second": b"on disk\n",
        b"unknown": b"on disk\n",
    }
    workspace.record(b"shown")
    found = contents(workspace.store, workspace.base)[b"shown"][0]
    assert found is not None
    assert workspace.store.read(found.oid)[1] == b"on disk\n", "that is told once"
    workspace.close()


@pytest.mark.parametrize("whole", [False, True])
def test_a_name_that_nobody_told_of_is_the_same_file(tmp_path: Path, whole: bool) -> None:
    """A hard link made outside: nothing happens in the directory of the first name."""
    workspace = Workspace(tmp_path / "w")
    workspace.write("d/first", b"old\n")
    workspace.write("d/other", b"other\n")
    _wait_until_settled(workspace.root)
    workspace.record()
    (workspace.root / "e").mkdir()
    os.link(workspace.root / "d/first", workspace.root / "e/second")
    recorded = workspace.record(Dirty(b"", b"e", True) if whole else b"e/second")
    assert Dirty(b"", b"", True) in recorded.again
    recorded = workspace.record_all(recorded.again)
    assert Dirty(b"", b"", True) not in recorded.again
    (workspace.root / "e/second").write_bytes(b"new\n")
    workspace.record(b"e/second")
    found = contents(workspace.store, workspace.base)
    versions = {found[path][0] for path in (b"d/first", b"e/second")}
    assert [workspace.store.read(version.oid)[1] for version in versions if version] == [b"new\n"]
    workspace.close()


def test_a_link_from_elsewhere_makes_nobody_look_at_everything(tmp_path: Path) -> None:
    """As pnpm and ccache make them."""
    workspace = Workspace(tmp_path / "w")
    workspace.write("a", b"a\n")
    workspace.record()
    (tmp_path / "store").write_bytes(b"content\n")
    os.link(tmp_path / "store", workspace.root / "linked")
    assert workspace.record(b"linked").again == ()
    workspace.close()


def _wait_until_settled(root: Path) -> None:
    """Until nothing below was changed so lately that its time is not trusted."""
    probe = root.parent / "probe"
    while True:
        probe.write_bytes(b"")
        newest = max(
            os.lstat(os.path.join(at, name)).st_ctime_ns for at, dirs, names in os.walk(root) for name in names
        )
        if os.stat(probe).st_ctime_ns > newest + 25_000_000:
            return


def test_where_nothing_matters_the_base_stays(tmp_path: Path) -> None:
    looked_into: list[bytes] = []
    workspace = Workspace(tmp_path / "w", watch=lambda prefix, path, fd: looked_into.append(path))
    workspace.write("d/a", "1")
    workspace.record()
    base = workspace.base
    workspace.write("d/temporary", "").unlink()
    os.utime(workspace.root, ns=(1, 1))
    recorded = workspace.record(b"d/temporary")
    assert not recorded.changed
    assert workspace.base == base
    recorded = workspace.record()
    assert not recorded.changed
    assert workspace.base == base
    looked_into.clear()
    workspace.write("d/b", "2")
    assert workspace.record(b"d/b").paths == (b"d/b",)
    assert not looked_into, "one path is not a reason to scan"
    workspace.restart()
    assert not workspace.record().changed
    workspace.close()


def test_a_change_in_the_same_tick_is_seen(workspace: Workspace) -> None:
    for content in (b"one", b"two", b"six"):
        (workspace.root / "f").write_bytes(content)
        os.utime(workspace.root / "f", ns=(OLD_NS, OLD_NS))
        workspace.record(b"f")
        assert files(workspace.store, workspace.base)[b"f"] == content


NAMES = ["a", "b", "d", "e"]


def change(root: Path, rng: random.Random) -> list[bytes]:
    """Change something; the paths that became dirty, those of a directory that moved in with all below it."""
    path = root.joinpath(*(rng.choice(NAMES) for _ in range(rng.randint(1, 3))))
    other = root.joinpath(*(rng.choice(NAMES) for _ in range(rng.randint(1, 3))))
    what = rng.choice(["write", "write", "mkdir", "symlink", "unlink", "rename", "rename", "link", "chmod", "mkfifo"])
    touched = [path]
    try:
        if what == "write" and not path.is_fifo():
            path.write_bytes(rng.choice([b"", b"x", b"y" * 3000]))
        elif what == "mkdir":
            path.mkdir()
        elif what == "symlink":
            path.symlink_to("no/such/target")
        elif what == "mkfifo":
            os.mkfifo(path)
        elif what == "unlink":
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
        elif what == "chmod":
            path.chmod(rng.choice([0o600, 0o700, 0o755]), follow_symlinks=False)
        else:
            os.rename(path, other) if what == "rename" else os.link(path, other, follow_symlinks=False)
            touched.append(other)
    except (OSError, NotImplementedError):
        return []
    return [os.fsencode(each.relative_to(root)) for each in touched]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32))
def test_incremental_is_as_from_scratch(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    rng = random.Random(seed)
    workspace = Workspace(tmp_path_factory.mktemp("w"))
    workspace.record()
    for _ in range(12):
        before = recorded_as_on_disk(workspace.store, workspace.base)
        dirty = [Dirty(b"", path, True) for _ in range(rng.randint(1, 5)) for path in change(workspace.root, rng)]
        dirty += [Dirty(b"", rng.choice([b"a", b"a/b", b"d/e/a", b"nothing"]))]
        if rng.random() < 0.2:
            workspace.restart()
        recorded = workspace.record_all(dirty)
        assert not recorded.again
        after = recorded_as_on_disk(workspace.store, workspace.base)
        assert after == on_disk(workspace.root)
        differing = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}
        told = set(recorded.paths)
        for path in differing:
            above = {path} | {path[:at] for at in range(len(path)) if path[at : at + 1] == b"/"}
            inside = any(each.startswith(path + b"/") for each in told)  # a new directory is told by its files
            assert above & told or inside, f"{path!r} has changed, and only {told} is told"
    scratch = Workspace(workspace.root)
    scratch.record()
    if workspace.record(b"nothing").changed:
        raise AssertionError("nothing has changed")
    ours, theirs = contents(workspace.store, workspace.base), contents(scratch.store, scratch.base)
    assert {path: each[0] for path, each in ours.items()} == {path: each[0] for path, each in theirs.items()}
    for path, (_, facts) in theirs.items():
        mine = ours[path][1]
        assert facts is not None
        assert mine is not None
        if not stat.S_ISDIR(facts.mode):  # a directory's time may wait for the next point
            assert mine == facts
    scratch.close()
    workspace.close()


def test_a_file_that_is_written_to_while_it_is_read(workspace: Workspace) -> None:
    path = workspace.write("f", b"0" * 5000)
    workspace.record()
    number = 0

    def write_on() -> None:
        nonlocal number
        number += 1
        with open(path, "r+b", buffering=0) as file:
            file.write(b"%04d" % number * 1250)

    FAULTS.plant("record.read", write_on)
    path.write_bytes(b"first")
    recorded = workspace.record(b"f")
    assert recorded.again == (Dirty(b"", b"f"),)
    assert not recorded.changed
    assert files(workspace.store, workspace.base)[b"f"] == b"0" * 5000, "what it had before stays"

    def write_once() -> None:
        FAULTS.clear()
        write_on()

    FAULTS.plant("record.read", write_once)
    recorded = workspace.record(b"f")
    assert not recorded.again
    assert files(workspace.store, workspace.base)[b"f"] == path.read_bytes()


def test_a_large_file_that_changes_while_it_is_stored_is_recorded_at_the_next_pause(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        workspace = Workspace(tmp_path / "w", store)
        path = workspace.write("f", b"0" * 3_000_000)
        stored = 0

        def write_on() -> None:
            nonlocal stored
            stored += 1
            with open(path, "r+b", buffering=0) as file:
                file.write(b"%07d" % stored)

        FAULTS.plant("objects.large.before-rename", write_on)
        FAULTS.plant("record.read", FAULTS.clear)
        try:
            recorded = workspace.record()
        finally:
            FAULTS.clear()
        assert (stored, recorded.again) == (1, ())
        assert files(store, workspace.base)[b"f"] == b"0000001" + b"0" * 2_999_993
        workspace.close()


def test_a_large_file_is_put_off_and_found_when_it_was_read_aside(workspace: Workspace) -> None:
    workspace.write("small", "x")
    workspace.write("large", b"0" * 3_000_000)
    _wait_until_settled(workspace.root)
    recorded = workspace.record(defer_bytes=2_000_000)
    assert recorded.deferred == (Dirty(b"", b"large"),)
    assert set(files(workspace.store, workspace.base)) == {b"small"}
    workspace.recorder.prepare(workspace.parts[0], b"large")
    recorded = workspace.record(b"large", defer_bytes=2_000_000)
    assert recorded.paths == (b"large",)
    assert not recorded.deferred
    assert files(workspace.store, workspace.base)[b"large"] == b"0" * 3_000_000
    workspace.recorder.prepare(workspace.parts[0], b"gone")


def test_a_directory_that_may_not_be_read_is_told(workspace: Workspace) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    workspace.write("d/a", "x")
    workspace.record()
    (workspace.root / "d").chmod(0)
    recorded = workspace.record(Dirty(b"", b"d", True))
    (workspace.root / "d").chmod(0o700)
    assert recorded.left_out
    assert files(workspace.store, workspace.base)[b"d/a"] == b"x"


def test_a_name_that_no_point_can_hold_is_left_out_and_told(workspace: Workspace) -> None:
    workspace.write("d/.GIT", "x")
    workspace.write("git~1/a", "x")
    workspace.write("a", "x")
    recorded = workspace.record()
    assert set(files(workspace.store, workspace.base)) == {b"a", b"d"}
    assert b"d/.GIT" in recorded.left_out


@pytest.mark.parametrize("point", ["record.hashed", "record.written", "objects.environment.before-commit"])
def test_a_full_disk_leaves_nothing_half(tmp_path: Path, point: str) -> None:
    with Store.open(tmp_path / "store") as store:
        workspace = Workspace(tmp_path / "w", store)
        workspace.write("d/a", "1")
        workspace.record()
        before = files(store, workspace.base)
        workspace.write("d/a", "2")
        workspace.write("e/b", "3")

        def fail() -> None:
            raise OSError(errno.ENOSPC, "planted")

        FAULTS.plant(point, fail)
        with pytest.raises(OSError, match="planted"):
            workspace.record(b"d/a", Dirty(b"", b"e", True))
        FAULTS.clear()
        assert files(store, workspace.base) == before
        workspace.record(b"d/a", Dirty(b"", b"e", True))
        assert files(store, workspace.base) == {b"d": "dir", b"d/a": b"2", b"e": "dir", b"e/b": b"3"}
        assert not fsck(store)
        workspace.close()
