"""Submodules as directories: from the superproject's own gitdir, from a URL, or not at all."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from clivefs.mounts.git.lower import GitLower, TreeSpace
from clivefs.mounts.git.source import open_source
from clivefs.mounts.git.submodules import GitSubmodules
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.tree import Blocked, Owner

ENVIRONMENT = {
    **os.environ,
    **{f"GIT_{who}_{what}": f"{who}@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(cwd: Path, *arguments: str) -> str:
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stderr
    return os.fsdecode(result.stdout).strip()


@pytest.fixture
def outer(tmp_path: Path) -> Path:
    """A superproject whose submodule `d/sub` is named by a relative URL."""
    for name in ("inner", "outer"):
        (tmp_path / name).mkdir()
        git(tmp_path / name, "init", "-q")
        git(tmp_path / name, "config", "uploadpack.allowFilter", "true")
    (tmp_path / "inner" / "f").write_text("inner")
    git(tmp_path / "inner", "add", ".")
    git(tmp_path / "inner", "commit", "-qm", "one")
    git(tmp_path / "outer", "commit", "-q", "--allow-empty", "-m", "one")
    git(tmp_path / "outer", "submodule", "--quiet", "add", str(tmp_path / "inner"), "d/sub")
    git(tmp_path / "outer", "commit", "-qm", "with a submodule")
    return tmp_path / "outer"


def lower_of(location: str, tmp_path: Path, subdir: str = "") -> GitLower:
    source, resolved = open_source(location, "main", subdir, base_dir=str(tmp_path), store_dir=str(tmp_path / "store"))
    space = TreeSpace(resolved.repository, resolved.layer, resolved.commit_time_ns, source.fetch_objects)
    submodules = GitSubmodules(source, resolved)
    return GitLower(space, resolved.tree, owner=Owner(0, 0), cache_dir=str(tmp_path), submodules=submodules)


def listed(lower: GitLower, path: bytes) -> list[bytes]:
    ref = lower.find(path)
    assert ref is not None
    for _ in range(3):
        try:
            return [entry.name for entry in lower.entries(ref)]
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


def content(lower: GitLower, path: bytes) -> bytes:
    ref: LowerRef | None = lower.find(path)
    assert ref is not None
    for _ in range(3):
        try:
            return lower.open(ref).read(0, 100)
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


def describe(lower: GitLower, path: bytes) -> bytes:
    ref = lower.find(path)
    assert ref is not None
    return lower.describe(ref)["layer"]


@pytest.mark.parametrize("subdir", ["", "d"])
def test_what_the_superproject_has_is_used(outer: Path, tmp_path: Path, subdir: str) -> None:
    (tmp_path / "inner").rename(tmp_path / "gone")
    lower = lower_of("outer", tmp_path, subdir)
    path = b"sub" if subdir else b"d/sub"
    commit = git(tmp_path / "gone", "rev-parse", "main").encode()
    assert describe(lower, path) == b"submodule:" + commit + b" (not fetched yet)"
    assert listed(lower, path) == [b"f"]
    assert content(lower, path + b"/f") == b"inner"
    assert describe(lower, path) == b"submodule:" + commit
    assert describe(lower, path + b"/f") == b"submodule:" + commit


@pytest.mark.parametrize("url", [True, False])
def test_a_relative_url_is_followed(outer: Path, tmp_path: Path, url: bool) -> None:
    git(outer, "config", "-f", ".gitmodules", "submodule.d/sub.url", "../inner")
    git(outer, "commit", "-qam", "relative")
    git(tmp_path, "clone", "-q", "--bare", "outer", "bare")
    lower = lower_of(f"file://{tmp_path}/bare" if url else "bare", tmp_path)
    assert listed(lower, b"d/sub") == [b"f"]
    assert content(lower, b"d/sub/f") == b"inner"


@pytest.mark.parametrize("url", ["/etc", "file:///etc", "ext::sh -c true", "-x", "https://127.0.0.1:1/x"])
def test_otherwise_it_is_empty_and_says_why(outer: Path, tmp_path: Path, url: str) -> None:
    git(outer, "config", "-f", ".gitmodules", "submodule.d/sub.url", url)
    git(outer, "commit", "-qam", "elsewhere")
    git(tmp_path, "clone", "-q", "--bare", "outer", "bare")
    lower = lower_of("bare", tmp_path)
    assert listed(lower, b"d/sub") == []
    why = describe(lower, b"d/sub")
    assert why.endswith(b")")
    assert b"not fetched" not in why


def test_without_gitmodules_it_is_empty(outer: Path, tmp_path: Path) -> None:
    git(outer, "rm", "-q", "--cached", ".gitmodules")
    git(outer, "commit", "-qm", "none")
    lower = lower_of("outer", tmp_path)
    assert listed(lower, b"d/sub") == []
    assert describe(lower, b"d/sub").endswith(b"(no entry of .gitmodules has its path)")
