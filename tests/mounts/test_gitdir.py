"""Private gitdirs and their index, judged by stock git: clean at once, and without reading any content."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.git.gitdir import GitDir, Moved
from clivefs.mounts.git.index import IndexStat, build_index, parse_index, stat_from
from clivefs.mounts.git.lower import GitLower, TreeSpace
from clivefs.mounts.git.source import GitSource, Resolved, open_source
from clivefs.mounts.tree import Owner
from clivefs.objects.encode import TreeEntry
from clivefs.objects.memory import MemoryStore

ENVIRONMENT = {
    **os.environ,
    **{f"GIT_{who}_{what}": f"{who}@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(cwd: Path, *arguments: str, trace: Path | None = None) -> str:
    command = ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments]
    if trace is not None:
        command = ["strace", "-f", "-e", "trace=open,openat,read,readlink", "-o", str(trace), *command]
    result = subprocess.run(command, cwd=cwd, capture_output=True, env=ENVIRONMENT, check=False)
    assert result.returncode == 0, result.stderr
    return os.fsdecode(result.stdout).rstrip("\n")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository whose last commit was made a moment ago."""
    path = tmp_path / "origin"
    path.mkdir()
    git(path, "init", "-q")
    (path / "src" / "deep").mkdir(parents=True)
    for name in (b"caf\xe9", b"two\nlines", b"src/a", b"src/deep/b", b"src.c", b"src-d", b"n" * 200, b"empty"):
        target = os.fsencode(path) + b"/" + name
        with open(target, "wb") as file:
            file.write(b"" if name == b"empty" else name * 10)
    (path / "run").write_text("#!/bin/sh\n")
    (path / "run").chmod(0o755)
    (path / "link").symlink_to("src/a")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "tag", "-am", "words", "v1")
    git(path, "branch", "other")
    (path / "src" / "a").write_text("second")
    git(path, "commit", "-qam", "two")
    return path


class Mounted:
    """What a mount shows, as a plain directory with the sizes and times that it would report. The content
    is wrong: git must not look at it."""

    def __init__(self, tmp_path: Path, location: str, ref: str = "main", name: str = "work") -> None:
        self.tmp_path = tmp_path
        self.source: GitSource
        self.resolved: Resolved
        store = str(tmp_path / "store")
        self.source, self.resolved = open_source(location, ref, base_dir=str(tmp_path), store_dir=store)
        self.path = tmp_path / name
        self.path.mkdir()
        self.lower = self.layer(self.resolved)
        self.fill(self.lower, self.lower.root, os.fsencode(self.path))
        self.gitdir = GitDir.create_or_open(str(tmp_path / f"{name}.gitdir"), self.resolved, self.source)
        (self.path / ".git").write_bytes(self.gitdir.dot_git_content())

    def layer(self, resolved: Resolved) -> GitLower:
        space = TreeSpace(resolved.repository, resolved.layer, resolved.commit_time_ns, self.source.fetch_objects)
        (self.tmp_path / "cache").mkdir(exist_ok=True)
        return GitLower(space, resolved.tree, owner=Owner(0, 0), cache_dir=str(self.tmp_path / "cache"))

    def fill(self, lower: GitLower, directory: Any, at: bytes) -> None:
        for entry in lower.entries(directory):
            ref = lower.child(directory, entry.name)
            assert ref is not None
            target = at + b"/" + entry.name
            if entry.kind == stat.S_IFDIR:
                os.makedirs(target, exist_ok=True)
                self.fill(lower, ref, target)
                continue
            attr = lower.attr(ref, fetch=False)
            if entry.kind == stat.S_IFLNK:
                os.symlink(lower.readlink(ref), target)
            else:
                with open(target, "wb") as file:
                    git_reads = entry.name.startswith(b".git")
                    file.write(lower.open(ref).read(0, attr.size) if git_reads else b"?" * attr.size)
                os.chmod(target, stat.S_IMODE(attr.mode))
            os.utime(target, ns=(attr.mtime_ns, attr.mtime_ns), follow_symlinks=False)

    def git(self, *arguments: str) -> str:
        return git(self.path, *arguments)

    def content_read(self, *arguments: str) -> list[str]:
        """The files of the tree that a git command opens or reads the target of."""
        trace = self.tmp_path / "trace"
        git(self.path, *arguments, trace=trace)
        opened = re.findall(
            r'(?:open\w*\(AT_FDCWD, |readlink\()"([^"]+)"[^)]*\) = \d', trace.read_text(errors="replace")
        )
        return [
            name
            for name in opened
            if not name.startswith("/") and not name.endswith("/") and os.path.lexists(self.path / name)
            and not (self.path / name).is_dir() and name != ".git"
        ]  # fmt: skip


@pytest.fixture
def mounted(origin: Path, tmp_path: Path) -> Callable[..., Mounted]:
    return lambda ref="main", name="work", location="origin": Mounted(tmp_path, location, ref, name)


@pytest.mark.parametrize("ref", ["main", "v1", "other"])
def test_the_first_status_is_clean_and_reads_no_content(mounted: Callable[..., Mounted], ref: str) -> None:
    work = mounted(ref)
    assert work.gitdir.build_index(stat_from(work.lower))
    assert not work.gitdir.build_index(stat_from(work.lower))
    if shutil.which("strace"):
        assert work.content_read("status", "--porcelain") == []
    assert work.git("status", "--porcelain") == ""
    assert work.git("diff", "--stat") == ""
    assert work.git("diff", "--cached", "--stat") == ""
    (work.path / "src" / "a").write_text("edited")
    assert work.git("status", "--porcelain") == " M src/a"


def test_the_index_is_the_one_that_read_tree_writes(mounted: Callable[..., Mounted], tmp_path: Path) -> None:
    work = mounted()
    ours = build_index(work.resolved.repository, work.resolved.tree, lambda *_: None).content
    git(work.path, "read-tree", "HEAD")
    assert ours == (Path(work.gitdir.path) / "index").read_bytes()


def test_head_and_refs_are_those_of_a_clone(mounted: Callable[..., Mounted], origin: Path) -> None:
    work = mounted()
    assert work.git("symbolic-ref", "HEAD") == "refs/heads/main"
    assert work.git("rev-parse", "--abbrev-ref", "@{upstream}") == "origin/main"
    assert work.git("for-each-ref", "--format=%(refname)").split() == [
        "refs/heads/main",
        "refs/remotes/origin/main",
        "refs/remotes/origin/other",
        "refs/tags/v1",
    ]
    assert work.git("remote", "get-url", "origin") == str(origin)
    assert work.git("log", "--format=%s") == "two\none"
    assert work.gitdir.head() == work.gitdir.base == work.resolved.commit
    assert work.gitdir.head_branch() == "main"
    tagged = mounted("v1", "tagged")
    assert tagged.gitdir.head_branch() is None
    assert tagged.git("describe") == "v1"
    tagged.git("fsck")


def test_commits_and_switches_live_on(mounted: Callable[..., Mounted], tmp_path: Path, origin: Path) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    (work.path / "src" / "a").write_text("edited")
    work.git("commit", "-qam", "mine")
    again = GitDir.create_or_open(work.gitdir.path, work.resolved, work.source)
    assert again.head() != again.base == work.resolved.commit
    work.git("switch", "-q", "-c", "topic")
    work.git("stash", "list")
    assert again.head_branch() == "topic"
    assert git(origin, "log", "-1", "--format=%s", "main") == "two"
    git(origin, "config", "receive.denyCurrentBranch", "ignore")
    work.git("push", "-q", "origin", "topic")
    assert git(origin, "log", "-1", "--format=%s", "topic") == "mine"


def moved_on(origin: Path) -> None:
    (origin / "src" / "a").write_text("third")
    (origin / "new").write_text("new")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "three")
    git(origin, "branch", "-f", "fresh")


def follow(work: Mounted) -> tuple[Resolved, GitLower]:
    news = work.source.poll()
    assert news is not None
    return news, work.layer(news)


def test_move_takes_head_index_and_base_along(mounted: Callable[..., Mounted], origin: Path) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)
    assert work.gitdir.move(news, stat_from(lower), work.source) is Moved.MOVED
    assert work.gitdir.head() == work.gitdir.base == news.commit
    assert work.gitdir.head_branch() == "main"
    assert work.git("diff", "--cached", "--stat") == ""
    assert work.git("rev-parse", "origin/main", "origin/fresh") == f"{news.commit.hex()}\n{news.commit.hex()}"
    assert work.git("ls-files").splitlines().count("new") == 1
    assert work.gitdir.move(news, stat_from(lower), work.source) is Moved.MOVED


@pytest.mark.parametrize("obstacle", ["commit", "staged", "lock", "switch"])
def test_move_stays_behind_where_the_user_has_gone_on(
    mounted: Callable[..., Mounted], origin: Path, obstacle: str
) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    (work.path / "src" / "a").write_text("edited")
    lock = Path(work.gitdir.path, "index.lock")
    if obstacle == "commit":
        work.git("commit", "-qm", "mine", "src/a")
    elif obstacle == "staged":
        work.git("add", "src/a")
    elif obstacle == "switch":
        work.git("symbolic-ref", "HEAD", "refs/heads/without-commits")
    else:
        lock.touch()
    before = (work.gitdir.head(), work.gitdir.base, Path(work.gitdir.path, "index").read_bytes())
    moved_on(origin)
    news, lower = follow(work)
    assert work.gitdir.move(news, stat_from(lower), work.source) is Moved.BEHIND
    assert (work.gitdir.head(), work.gitdir.base, Path(work.gitdir.path, "index").read_bytes()) == before
    assert lock.exists() == work.gitdir.git_at_work() == (obstacle == "lock")


@pytest.mark.parametrize("point", ["gitdir.move.planned", "gitdir.move.pointed", "gitdir.move.indexed"])
def test_a_move_that_was_cut_short_is_finished_or_taken_back(
    mounted: Callable[..., Mounted], origin: Path, point: str
) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)

    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    FAULTS.plant(point, kill)
    try:
        with pytest.raises(Killed):
            work.gitdir.move(news, stat_from(lower), work.source)
    finally:
        FAULTS.clear()
    again = GitDir.create_or_open(work.gitdir.path, news, work.source)
    expected = work.resolved.commit if point == "gitdir.move.planned" else news.commit
    assert again.head() == again.base == expected
    assert not again.git_at_work()
    assert work.git("diff", "--cached", "--stat") == ""
    assert again.move(news, stat_from(lower), work.source) is Moved.MOVED


def test_a_partial_clone_fetches_through_its_gitdir(mounted: Callable[..., Mounted], origin: Path) -> None:
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    source, resolved = open_source(
        f"file://{origin}", "main", base_dir=str(origin.parent), store_dir=str(origin.parent / "store")
    )
    path = origin.parent / "lazy"
    path.mkdir()
    gitdir = GitDir.create_or_open(str(origin.parent / "lazy.gitdir"), resolved, source)
    (path / ".git").write_bytes(gitdir.dot_git_content())
    cache = origin.parent / "cache"
    cache.mkdir()
    space = TreeSpace(resolved.repository, resolved.layer, resolved.commit_time_ns, source.fetch_objects)
    lower = GitLower(space, resolved.tree, owner=Owner(0, 0), cache_dir=str(cache))
    assert gitdir.build_index(stat_from(lower))  # sizes unknown: none fetched for it
    assert git(path, "log", "-p", "--format=%s", "--", "src/a").count("diff --git") == 2
    assert git(path, "ls-files", "src/a") == "src/a"


def test_subdir_has_no_gitdir(origin: Path, tmp_path: Path) -> None:
    source, resolved = open_source("origin", "main", "src", base_dir=str(tmp_path), store_dir=str(tmp_path / "s"))
    with pytest.raises(ClivefsError, match="subdir"):
        GitDir.create_or_open(str(tmp_path / "g"), resolved, source)


def test_submodules_are_in_the_index(tmp_path: Path) -> None:
    inner, outer = tmp_path / "inner", tmp_path / "origin"
    for path in (inner, outer):
        path.mkdir()
        git(path, "init", "-q")
        git(path, "commit", "-q", "--allow-empty", "-m", "one")
    git(outer, "submodule", "--quiet", "add", str(inner), "sub")
    git(outer, "commit", "-qm", "with a submodule")
    work = Mounted(tmp_path, "origin")
    work.gitdir.build_index(stat_from(work.lower))
    assert (work.path / "sub").is_dir()
    assert work.git("status", "--porcelain") == ""
    (work.path / "sub" / "shown").write_text("content without a .git")
    assert work.git("status", "--porcelain") == ""


def test_sizes_times_and_odd_trees() -> None:
    store = MemoryStore()
    with store.batch() as batch:
        blob = batch.blob(b"x")
        bad = batch.put("tree", b"100644 .git\0" + blob + b"100644 ok\0" + blob)
        tree = batch.tree([TreeEntry(0o040000, b"bad", bad), TreeEntry(0o100644, b"n" * 200, blob)])
        wide = batch.tree([TreeEntry(0o100644, b"%d" % number, blob) for number in range(10)])
        for _ in range(9):
            wide = batch.tree([TreeEntry(0o040000, b"%d" % number, wide) for number in range(10)])
        deep = batch.tree([TreeEntry(0o100644, b"f", blob)])
        for _ in range(2000):
            deep = batch.tree([TreeEntry(0o040000, b"dd", deep)])
    stats = {b"bad/ok": IndexStat(1 << 32, 7 * 10**9 + 5), b"n" * 200: IndexStat(5, 10**9)}
    entries = parse_index(build_index(store, tree, lambda path, *_: stats[path]).content)
    assert [(entry.path, entry.size, entry.mtime_s) for entry in entries] == [
        (b"bad/ok", 0x80000000, 7),
        (b"n" * 200, 5, 1),
    ]
    with pytest.raises(ClivefsError, match="more than 1000 files"):
        build_index(store, wide, lambda *_: None, entries_max=1000)
    (only,) = parse_index(build_index(store, deep, lambda *_: None).content)
    assert len(only.path) == 6001
