"""What happens behind the mount's back is told, also in directories that have just appeared or moved."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.mounts.recording.outside import OutsideWatch
from clivefs.mounts.recording.parts import Dirty
from tests.mounts.recording.worlds import Workspace, files, on_disk, recorded_as_on_disk


@pytest.fixture
def watch() -> Iterator[OutsideWatch]:
    made = OutsideWatch()
    yield made
    made.close()


@pytest.fixture
def workspace(tmp_path: Path, watch: OutsideWatch) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "w", watch=watch.watch)
    yield made
    made.close()


def take(watch: OutsideWatch) -> set[tuple[bytes, bool]]:
    found = watch.read()
    assert not found.lost
    return {(each.path, each.recursive) for each in found.dirty}


def follow(workspace: Workspace, watch: OutsideWatch) -> None:
    """Record what is told until nothing more is."""
    for _ in range(20):
        if not select.select([watch.fileno()], [], [], 0)[0]:
            break
        dirty = watch.read().dirty
        if dirty:
            workspace.record_all(dirty)
    assert recorded_as_on_disk(workspace.store, workspace.base) == on_disk(workspace.root)


def test_edits_are_told(workspace: Workspace, watch: OutsideWatch) -> None:
    workspace.write("d/a", "1")
    workspace.write(".gitignore", "ignored\n")
    workspace.write("ignored/x", "1")
    workspace.write(".git/index", "1")
    workspace.record()
    assert len(watch) == 2
    workspace.write("d/a", "2")
    workspace.write("ignored/x", "2")
    workspace.write(".git/index", "2")
    (workspace.root / "d/a").rename(workspace.root / "b")
    (workspace.root / "b").chmod(0o600)
    assert take(watch) == {(b"d/a", False), (b"b", False)}
    assert take(watch) == set()


def test_new_and_moved_directories(workspace: Workspace, watch: OutsideWatch) -> None:
    workspace.record()
    subprocess.run(["sh", "-c", "mkdir -p a/b/c && echo 1 >a/b/c/f && mv a/b moved && echo 2 >moved/c/g"],
                   cwd=workspace.root, check=True)  # fmt: skip
    follow(workspace, watch)
    workspace.write("moved/c/g", "3")
    assert take(watch) == {(b"moved/c/g", False)}
    (workspace.root / "moved").rename(workspace.root.parent / "elsewhere")
    follow(workspace, watch)
    (workspace.root.parent / "elsewhere/c/g").write_text("4")
    assert take(watch) == set(), "what has left is not watched"
    assert len(watch) == 2
    subprocess.run(["rm", "-r", "a"], cwd=workspace.root, check=True)
    follow(workspace, watch)
    assert len(watch) == 1


def test_a_directory_that_is_shown_twice_is_told_twice(workspace: Workspace, watch: OutsideWatch) -> None:
    fd = os.open(workspace.root, os.O_RDONLY)
    watch.watch(b"", b"", fd)
    watch.watch(b"other", b"x", fd)
    workspace.write("f", "1")
    assert set(watch.read().dirty) == {Dirty(b"", b"f"), Dirty(b"other", b"x/f")}
    watch.forget(b"other")
    workspace.write("f", "2")
    assert set(watch.read().dirty) == {Dirty(b"", b"f")}
    watch.forget(b"")
    assert len(watch) == 0
    os.close(fd)


def test_a_directory_that_cannot_be_watched_degrades(workspace: Workspace, watch: OutsideWatch) -> None:
    file = workspace.write("d/a", "1")
    fd = os.open(file, os.O_RDONLY)  # what is no directory cannot be watched as one
    watch.watch(b"", b"d", fd)
    os.close(fd)
    assert watch.degraded
    workspace.record()
    assert not watch.degraded, "the scan has tried again"


def test_events_that_were_dropped_are_told(workspace: Workspace, watch: OutsideWatch) -> None:
    workspace.record()
    with open("/proc/sys/fs/inotify/max_queued_events") as limit:
        events = int(limit.read())
    for number in range(events // 2 + 100):
        os.close(os.open(workspace.root / f"f{number % 2}", os.O_WRONLY | os.O_CREAT, 0o600))
        os.unlink(workspace.root / f"f{number % 2}")
    lost = False
    while select.select([watch.fileno()], [], [], 0)[0]:
        lost |= watch.read().lost
    assert lost
    workspace.record()
    assert files(workspace.store, workspace.base) == {}
