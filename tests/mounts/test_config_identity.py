"""Which workspace a directory is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import birth_ns
from clivefs.mounts.identity import moved_from, relink, workspace_id
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore


@pytest.fixture
def store() -> Iterator[ObjectStore]:
    with MemoryStore() as opened:
        yield opened


def test_the_same_root_is_the_same_workspace(tmp_path: Path, store: ObjectStore) -> None:
    root = tmp_path / "a"
    root.mkdir()
    (tmp_path / "link").symlink_to("a")
    number = workspace_id(store, str(root))
    assert len(number) == 16
    assert int(number, 16) >= 0
    (root / "Clive.toml").write_text("")
    assert workspace_id(store, str(root)) == workspace_id(store, str(tmp_path / "link")) == number
    assert moved_from(store, str(root)) is None


def test_a_copy_is_another(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "a").mkdir()
    number = workspace_id(store, str(tmp_path / "a"))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert workspace_id(store, str(tmp_path / "b")) != number


def test_a_directory_made_anew_is_another(tmp_path: Path, store: ObjectStore) -> None:
    root = tmp_path / "a"
    root.mkdir()
    before = (workspace_id(store, str(root)), born(root), root.stat().st_ino)
    root.rmdir()
    root.mkdir()
    after = (workspace_id(store, str(root)), born(root), root.stat().st_ino)
    assert (before[0] == after[0]) == (before[1:] == after[1:])


def born(path: Path) -> int | None:
    fd = os.open(path, os.O_PATH)
    try:
        return birth_ns(fd)
    finally:
        os.close(fd)


def test_a_moved_root_is_another_until_relinked(tmp_path: Path, store: ObjectStore) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    number = workspace_id(store, str(old))
    old.rename(new)
    assert moved_from(store, str(new)) == str(old)
    other = workspace_id(store, str(new))
    assert other != number
    done = relink(store, str(old), str(new))
    assert (done.id, done.previous) == (number, other)
    assert workspace_id(store, str(new)) == number
    assert moved_from(store, str(new)) is None
    # and on, by id, and home again
    (tmp_path / "sub").mkdir()
    third = tmp_path / "sub" / "third"
    new.rename(third)
    assert relink(store, number, str(third)).id == number
    assert workspace_id(store, str(third)) == number
    third.rename(old)
    assert workspace_id(store, str(old)) == number


def test_relink_to_a_new_directory(tmp_path: Path, store: ObjectStore) -> None:
    """As after a restore from a backup: another inode."""
    (tmp_path / "old").mkdir()
    number = workspace_id(store, str(tmp_path / "old"))
    shutil.copytree(tmp_path / "old", tmp_path / "new")
    with pytest.raises(ClivefsError, match="the workspace is still at"):
        relink(store, str(tmp_path / "old"), str(tmp_path / "new"))
    (tmp_path / "old").rmdir()
    assert relink(store, str(tmp_path / "old"), str(tmp_path / "new")).id == number
    assert workspace_id(store, str(tmp_path / "new")) == number


def test_relink_refuses(tmp_path: Path, store: ObjectStore) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(ClivefsError, match="no workspace was seen there"):
        relink(store, str(tmp_path / "none"), str(tmp_path / "a"))
    with pytest.raises(ClivefsError, match="no workspace was seen there"):
        relink(store, "0123456789abcdef", str(tmp_path / "a"))
    workspace_id(store, str(tmp_path / "a"))
    with pytest.raises(ClivefsError, match="No such file"):
        relink(store, str(tmp_path / "a"), str(tmp_path / "none"))


def test_a_known_root_is_not_written_again(tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    number = workspace_id(store, str(tmp_path))

    def refuse() -> None:
        raise AssertionError("nothing is to be written")

    monkeypatch.setattr(store, "batch", refuse)
    assert workspace_id(store, str(tmp_path)) == number


def test_names_that_are_not_utf8(tmp_path: Path, store: ObjectStore) -> None:
    root = os.path.join(os.fsencode(tmp_path), b"\xff\xfe")
    os.mkdir(root)
    number = workspace_id(store, os.fsdecode(root))
    os.rename(root, root + b"2")
    assert moved_from(store, os.fsdecode(root + b"2")) == os.fsdecode(root)
    assert relink(store, os.fsdecode(root), os.fsdecode(root + b"2")).id == number
