"""What is removed in the background: it goes at once from where it was, and then for good."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import trio

from clivefs.daemon.trash import Trash


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "trash").mkdir()
    (tmp_path / "full/inner").mkdir(parents=True)
    (tmp_path / "full/inner/file").write_text("old")
    (tmp_path / "kept").write_text("kept")
    os.symlink(tmp_path / "kept", tmp_path / "full/link")
    return tmp_path


async def emptied(directory: Path) -> None:
    with trio.fail_after(20):
        while os.listdir(directory):
            await trio.sleep(0.01)


async def test_what_is_taken_goes_and_nothing_that_it_leads_to(place: Path, nursery: trio.Nursery) -> None:
    trash = Trash(os.fspath(place / "trash"))
    nursery.start_soon(trash.run)
    await emptied(place / "trash")
    parent = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    assert trash.take(parent, b"full")
    os.close(parent)
    assert sorted(os.listdir(place)) == ["kept", "trash"]
    assert len(os.listdir(place / "trash")) == 1
    trash.wake()
    await emptied(place / "trash")
    assert (place / "kept").read_text() == "kept"


async def test_what_an_earlier_daemon_left_goes(place: Path, nursery: trio.Nursery) -> None:
    os.rename(place / "full", place / "trash/0123")
    nursery.start_soon(Trash(os.fspath(place / "trash")).run)
    await emptied(place / "trash")


def test_what_cannot_be_moved_is_left(place: Path) -> None:
    parent = os.open("/proc/self", os.O_RDONLY | os.O_DIRECTORY)
    assert not Trash(os.fspath(place / "trash")).take(parent, b"task")
    assert os.listdir(place / "trash") == []
    (place / "trash").rmdir()
    assert not Trash(os.fspath(place / "trash")).take(parent, b"task")
    os.close(parent)


def test_a_directory_is_made_for_its_owner_alone(place: Path) -> None:
    trash = Trash(os.fspath(place / "trash"))
    parent = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    assert trash.make(parent, b"new")
    assert stat.S_IMODE((place / "new").stat().st_mode) == 0o700
    (place / "full-already").write_text("")
    assert not trash.make(parent, b"full-already")
    os.close(parent)
