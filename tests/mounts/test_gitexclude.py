"""The enclosing repository leaves mount entries alone."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from clivefs.mounts.git.exclude import exclude


def git(directory: Path, *args: str) -> str:
    return subprocess.run(["git", *args], cwd=directory, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("name", ["lib/x", "odd [name]*", "!bang", "#hash", "trailing "])
def test_status_and_clean_do_not_see_the_entry(tmp_path: Path, name: str) -> None:
    git(tmp_path, "init", "-q")
    root = tmp_path / "work"
    (root / name).mkdir(parents=True)
    (root / name / "file").touch()
    (root / "other").touch()
    changed = exclude(str(root), name)
    assert changed is not None
    assert exclude(str(root), name) is None
    assert git(tmp_path, "status", "--porcelain", "-uall").split("\n") == ["?? work/other", ""]
    git(tmp_path, "clean", "-fdq")
    assert (root / name / "file").exists()
    assert not (root / "other").exists()


def test_in_a_linked_worktree_the_shared_file_is_used(tmp_path: Path) -> None:
    main = tmp_path / "main"
    main.mkdir()
    git(main, "init", "-q")
    git(main, "-c", "user.name=a", "-c", "user.email=b", "commit", "-q", "--allow-empty", "-m", "x")
    git(main, "worktree", "add", "-q", "../linked")
    (tmp_path / "linked" / "entry").mkdir()
    (tmp_path / "linked" / "entry" / "f").touch()
    assert exclude(str(tmp_path / "linked"), "entry") == str(main / ".git" / "info" / "exclude")
    assert git(tmp_path / "linked", "status", "--porcelain") == ""


def test_without_a_repository_nothing_happens(tmp_path: Path) -> None:
    assert exclude(str(tmp_path), "x") is None
