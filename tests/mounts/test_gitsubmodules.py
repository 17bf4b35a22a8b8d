"""Submodules as directories: from the superproject's own gitdir, from a URL, or not at all."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from clivefs.mounts.git.attributes import GitAttributes
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource
from clivefs.mounts.git.submodules import GitSubmodules
from clivefs.mounts.tree import Blocked, Owner
from tests.mounts.stockgit import git


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
    source = GitSource(location, "main", subdir, base_dir=str(tmp_path), store_dir=str(tmp_path / "store"))
    resolved = source.open()
    submodules = GitSubmodules(source, resolved, converter=lambda _: GitAttributes(str(tmp_path)))
    space = replace(source.space(resolved), submodules=submodules)
    return GitLower(space, resolved.tree, owner=Owner(0, 0), cache_dir=str(tmp_path))


def listed(lower: GitLower, path: bytes) -> list[bytes]:
    for _ in range(9):
        try:
            ref = lower.find(path)
            assert ref is not None
            return [entry.name for entry in lower.entries(ref)]
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


def content(lower: GitLower, path: bytes) -> bytes:
    for _ in range(9):
        try:
            ref = lower.find(path)
            assert ref is not None
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


@pytest.fixture
def nest(outer: Path, tmp_path: Path) -> Path:
    """A superproject of `outer`, with submodules two deep; their commits."""
    (tmp_path / "inner" / ".gitattributes").write_text("*.bat eol=crlf\n")
    (tmp_path / "inner" / "run.bat").write_text("one\n")
    git(tmp_path / "inner", "add", ".")
    git(tmp_path / "inner", "commit", "-qm", "two")
    git(outer / "d" / "sub", "pull", "-q")
    git(outer, "commit", "-qam", "newer")
    path = tmp_path / "nest"
    path.mkdir()
    git(path, "init", "-q")
    git(path, "submodule", "--quiet", "add", str(outer), "o")
    git(path, "commit", "-qm", "nested")
    return path


@pytest.mark.parametrize("location", ["nest", "bare"])
def test_submodules_of_submodules(nest: Path, outer: Path, tmp_path: Path, location: str) -> None:
    if location == "nest":
        git(nest, "submodule", "--quiet", "update", "--init", "--recursive")
        (tmp_path / "inner").rename(tmp_path / "gone")
    else:
        for path, name, url in ((outer, "d/sub", "../inner"), (nest, "o", "../outer")):
            git(path, "config", "-f", ".gitmodules", f"submodule.{name}.url", url)
            git(path, "commit", "-qam", "relative")
            if path == outer:
                git(nest / "o", "pull", "-q")
        git(tmp_path, "clone", "-q", "--bare", "nest", "bare")
    lower = lower_of(location, tmp_path)
    assert listed(lower, b"o") == [b".gitmodules", b"d"]
    assert listed(lower, b"o/d/sub") == [b".gitattributes", b"f", b"run.bat"]
    assert content(lower, b"o/d/sub/f") == b"inner"
    assert content(lower, b"o/d/sub/run.bat") == b"one\r\n"  # as a checkout makes it
    commit = git(outer, "rev-parse", "HEAD:d/sub").encode()
    assert describe(lower, b"o/d/sub/f") == b"submodule:" + commit


def test_a_repository_in_itself_ends_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "self"
    path.mkdir()
    git(path, "init", "-q")
    (path / ".gitmodules").write_text('[submodule "me"]\n\tpath = me\n\turl = ./\n')
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "config", "uploadpack.allowFilter", "true")
    git(path, "update-index", "--add", "--cacheinfo", f"160000,{git(path, 'rev-parse', 'HEAD')},me")
    git(path, "commit", "-qm", "two")
    for _ in range(12):
        git(path, "update-index", "--cacheinfo", f"160000,{git(path, 'rev-parse', 'HEAD')},me")
        git(path, "commit", "-qm", "more")
    lower = lower_of("self", tmp_path)
    at = b"me"
    while names := listed(lower, at):
        assert names == [b".gitmodules", b"me"]
        at += b"/me"
    assert at.count(b"/") == 8
    assert describe(lower, at).endswith(b"(it is 8 submodules deep)")


@pytest.mark.parametrize("name", ["../up", "/abs", "a/../../b", "", "in/side", "made/by/others"])
def test_no_gitdir_outside_of_its_place(outer: Path, tmp_path: Path, name: str) -> None:
    source = GitSource("outer", "main", base_dir=str(tmp_path), store_dir=str(tmp_path / "store"))
    superproject = GitDir.create_or_open(str(tmp_path / "gitdir"), source.open(), source)
    modules = tmp_path / "gitdir/modules"
    (modules / "made/by/others").mkdir(parents=True)
    assert superproject.module("in", source.current, source, None) is not None
    before = sorted(tmp_path.glob("*")) + sorted(modules.rglob("*"))
    assert superproject.module(name, source.current, source, None) is None
    assert sorted(tmp_path.glob("*")) + sorted(modules.rglob("*")) == before


def test_the_gitdir_of_a_submodule_stands_on_its_own(nest: Path, outer: Path, tmp_path: Path) -> None:
    git(nest, "submodule", "--quiet", "update", "--init", "--recursive")
    source = GitSource("nest", "main", base_dir=str(tmp_path), store_dir=str(tmp_path / "store"))
    superproject = GitDir.create_or_open(str(tmp_path / "gitdir"), source.open(), source)
    submodules = GitSubmodules(source, source.current, git_dir=superproject)
    space = replace(source.space(source.current), submodules=submodules)
    lower = GitLower(space, source.current.tree, owner=Owner(0, 0), cache_dir=str(tmp_path))
    assert listed(lower, b"o/d/sub") == [b".gitattributes", b"f", b"run.bat"]
    superproject.settle(source)
    shutil.rmtree(nest / ".git")
    for path, commit in (("modules/o", "HEAD"), ("modules/o/modules/d/sub", "HEAD:d/sub")):
        module = tmp_path / "gitdir" / path
        assert git(module, "rev-parse", "HEAD") == git(outer, "rev-parse", commit)
        git(module, "fsck", "--strict")


def test_submodules_are_kept_with_their_superproject(nest: Path, outer: Path, tmp_path: Path) -> None:
    git(nest, "submodule", "--quiet", "update", "--init", "--recursive")
    source = GitSource("nest", "main", base_dir=str(tmp_path), store_dir=str(tmp_path / "store"))
    submodules = GitSubmodules(source, source.open())
    space = replace(source.space(source.current), submodules=submodules)
    lower = GitLower(space, source.current.tree, owner=Owner(0, 0), cache_dir=str(tmp_path))
    source.keep()
    assert source.is_kept
    assert listed(lower, b"o/d/sub") == [b".gitattributes", b"f", b"run.bat"]
    assert not source.is_kept
    source.keep()
    assert source.is_kept
    shutil.rmtree(nest / ".git")
    assert content(lower, b"o/d/sub/f") == b"inner"
