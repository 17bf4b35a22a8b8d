"""Times of a mounted git tree: what changes is new, what stays keeps its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from clivefs.mounts.git.times import GitTimes, changed_paths
from clivefs.objects.repository import Repository

BASE_NS = 1_700_000_000_000_000_000
LATER_NS = BASE_NS + 5_000_000_000


class Work:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q")

    def git(self, *args: str) -> str:
        identity = {
            "GIT_AUTHOR_NAME": "a",
            "GIT_AUTHOR_EMAIL": "a@b",
            "GIT_COMMITTER_NAME": "a",
            "GIT_COMMITTER_EMAIL": "a@b",
        }
        done = subprocess.run(
            ["git", *args], cwd=self.path, env={**os.environ, **identity}, check=True, capture_output=True, text=True
        )
        return done.stdout.strip()

    def tree(self, files: dict[str, str]) -> bytes:
        self.git("rm", "-rqf", "--ignore-unmatch", ".")
        for name, text in files.items():
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (self.path / name).write_text(text)
        self.git("add", "-A")
        return bytes.fromhex(self.git("write-tree"))


OLD = {"a": "1", "d/same": "s", "d/changed": "1", "d/e/deep": "1", "gone": "g", "kind": "a file"}
NEW = {"a": "1", "d/same": "s", "d/changed": "2", "d/e/deep": "2", "new/x": "x", "kind/inside": "a directory now"}
CHANGED = {b"d/changed", b"d/e/deep", b"new/x", b"kind/inside"}


def test_only_what_differs_is_told(tmp_path: Path) -> None:
    work = Work(tmp_path / "r")
    old, new = work.tree(OLD), work.tree(NEW)
    reader = Repository(str(work.path))
    assert set(changed_paths(reader, old, new)) == CHANGED
    assert list(changed_paths(reader, new, new)) == []


def test_moves_are_remembered_and_only_when_shown(tmp_path: Path) -> None:
    work = Work(tmp_path / "r")
    old, new = work.tree(OLD), work.tree(NEW)
    reader = Repository(str(work.path))
    directory = str(tmp_path)
    first = GitTimes.read(directory).at(reader, old, BASE_NS, BASE_NS + 1)
    first.stage()
    first.commit()
    unsaved = GitTimes.read(directory).at(reader, new, LATER_NS, LATER_NS)
    assert unsaved(b"d/changed", b"") == LATER_NS
    assert first(b"d/changed", b"") == BASE_NS
    again = GitTimes.read(directory).at(reader, old, BASE_NS, LATER_NS + 1)
    assert again(b"d/changed", b"") == BASE_NS
    unsaved.stage()
    assert GitTimes.read(directory).at(reader, old, BASE_NS, LATER_NS + 1)(b"d/changed", b"") == BASE_NS
    unsaved.discard()
    unsaved.stage()
    unsaved.commit()
    kept = GitTimes.read(directory).at(reader, new, LATER_NS, LATER_NS + 2)
    assert {path for path in [*CHANGED, b"a", b"d/same"] if kept(path, b"") == LATER_NS} == CHANGED
    assert kept(b"a", b"") == BASE_NS
