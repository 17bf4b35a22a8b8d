"""Private gitdirs and their index, judged by stock git: clean at once, and without reading any content."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.index import IndexStat, build_index, parse_index, stat_from
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.tree import Owner
from clivefs.objects.encode import TreeEntry
from clivefs.objects.memory import MemoryStore
from tests.mounts.stockgit import git


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
        self.source = GitSource(location, ref, base_dir=str(tmp_path), store_dir=store)
        self.resolved = self.source.open()
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
        watch = ("strace", "-f", "-e", "trace=open,openat,read,readlink", "-o", str(trace))
        git(self.path, *arguments, under=watch)
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


def move(work: Mounted, news: Resolved, lower: GitLower) -> bool:
    """Move the gitdir, as showing the new tree does; whether it did."""
    staged = work.gitdir.stage(news, stat_from(lower), work.source)
    if staged is None:
        return False
    if not staged.lock():
        staged.discard()
        return False
    staged.commit()
    return True


def leftovers(work: Mounted) -> list[str]:
    """What should be gone when nothing is under way."""
    found = {name for name in os.listdir(work.gitdir.path) if name.startswith("clive-")} - {"clive-base"}
    return sorted(found) + [str(path) for path in Path(work.gitdir.path).rglob("*.lock")]


def test_move_takes_head_index_and_base_along(mounted: Callable[..., Mounted], origin: Path) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)
    assert move(work, news, lower)
    assert work.gitdir.head() == work.gitdir.base == news.commit
    assert work.gitdir.head_branch() == "main"
    assert work.git("diff", "--cached", "--stat") == ""
    assert work.git("rev-parse", "origin/main", "origin/fresh") == f"{news.commit.hex()}\n{news.commit.hex()}"
    assert work.git("ls-files").splitlines().count("new") == 1
    assert work.git("reflog", "-1", "--format=%gs %H", "HEAD") == f"clivefs: follow {news.commit.hex()}"
    assert work.git("reflog", "-1", "--format=%gs", "main") == "clivefs: follow"
    assert work.git("rev-parse", "HEAD@{1}") == work.resolved.commit.hex()
    assert leftovers(work) == []
    work.git("fsck")


@pytest.mark.parametrize("how", ["packed", "detached", "without index", "deep"])
def test_moves_wherever_head_is_kept(mounted: Callable[..., Mounted], origin: Path, how: str) -> None:
    work = mounted("HEAD" if how == "detached" else "main")
    if how != "without index":
        work.gitdir.build_index(stat_from(work.lower))
    if how == "packed":
        work.git("pack-refs", "--all")
    elif how == "detached":
        work.git("checkout", "-q", "--detach")
    elif how == "deep":
        work.git("switch", "-q", "-c", "a/b/c")
        work.git("pack-refs", "--all")
    moved_on(origin)
    news, lower = follow(work)
    assert move(work, news, lower)
    assert work.git("rev-parse", "HEAD") == news.commit.hex()
    assert (work.gitdir.head_branch() is None) == (how == "detached")
    assert work.gitdir.has_index() == (how != "without index")
    assert leftovers(work) == []


@pytest.mark.parametrize("obstacle", ["commit", "staged", "lock", "switch"])
@pytest.mark.parametrize("late", [False, True])
def test_move_stays_behind_where_the_user_has_gone_on(
    mounted: Callable[..., Mounted], origin: Path, obstacle: str, late: bool
) -> None:
    """*late*: after the move was made ready, before it is shown."""
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)
    staged = work.gitdir.stage(news, stat_from(lower), work.source) if late else None
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
    if late:
        assert staged is not None
        assert not staged.lock()
        staged.discard()
    else:
        assert not move(work, news, lower)
    assert (work.gitdir.head(), work.gitdir.base, Path(work.gitdir.path, "index").read_bytes()) == before
    assert leftovers(work) == ([str(lock)] if obstacle == "lock" else [])


def test_the_base_follows_what_the_user_pulled(mounted: Callable[..., Mounted], origin: Path) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    work.git("pull", "-q")
    (work.path / "src" / "a").write_text("edited")
    work.git("commit", "-qam", "mine")
    head = work.gitdir.head()
    news, lower = follow(work)
    assert move(work, news, lower)
    assert work.gitdir.base == news.commit
    assert work.gitdir.head() == head
    assert leftovers(work) == []


POINTS = [f"gitdir.move.{step}" for step in ("planned", "locked", "pointed", "indexed")]


def cut_short(work: Mounted, news: Resolved, lower: GitLower, point: str) -> None:
    class Killed(BaseException):
        pass

    def kill() -> None:
        raise Killed

    FAULTS.plant(point, kill)
    try:
        with pytest.raises(Killed):
            move(work, news, lower)
    finally:
        FAULTS.clear()


@pytest.mark.parametrize("point", POINTS)
def test_a_move_that_was_cut_short_is_finished_or_taken_back(
    mounted: Callable[..., Mounted], origin: Path, point: str
) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)
    cut_short(work, news, lower, point)
    again = GitDir.create_or_open(work.gitdir.path, news, work.source)
    expected = news.commit if point in POINTS[2:] else work.resolved.commit
    assert again.head() == again.base == expected
    assert leftovers(work) == []
    assert work.git("diff", "--cached", "--stat") == ""
    assert (again.base == news.commit) or move(work, news, lower)
    assert work.git("diff", "--cached", "--stat") == ""


@pytest.mark.parametrize("point", POINTS)
def test_recovery_leaves_the_locks_of_others_alone(mounted: Callable[..., Mounted], origin: Path, point: str) -> None:
    """Whoever found our lock after a crash and removed it may have one of their own now."""
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)
    cut_short(work, news, lower, point)
    lock = Path(work.gitdir.path, "index.lock")
    lock.unlink(missing_ok=True)
    lock.write_bytes(b"theirs")
    GitDir.create_or_open(work.gitdir.path, news, work.source)
    assert lock.read_bytes() == b"theirs"
    lock.unlink()
    assert leftovers(work) == []


def test_a_first_index_that_was_cut_short_locks_nobody_out(mounted: Callable[..., Mounted]) -> None:
    work = mounted()
    script = (
        "import os, sys\n"
        "from clivefs.base.ports import FAULTS\n"
        "from clivefs.mounts.git.move import put_first_index\n"
        "FAULTS.plant('gitdir.index.locked', lambda: os._exit(9))\n"
        "put_first_index(sys.argv[1], b'half')\n"
    )
    assert subprocess.run([sys.executable, "-c", script, work.gitdir.path], check=False).returncode == 9
    assert work.gitdir.git_at_work()
    again = GitDir.create_or_open(work.gitdir.path, work.resolved, work.source)
    assert leftovers(work) == []
    assert again.build_index(stat_from(work.lower))
    assert work.git("status", "--porcelain") == ""


def test_a_lock_that_was_removed_by_hand_costs_no_index(mounted: Callable[..., Mounted], origin: Path) -> None:
    work = mounted()
    work.gitdir.build_index(stat_from(work.lower))
    moved_on(origin)
    news, lower = follow(work)
    cut_short(work, news, lower, "gitdir.move.pointed")
    Path(work.gitdir.path, "index.lock").unlink()
    GitDir.create_or_open(work.gitdir.path, news, work.source)
    assert work.git("diff", "--cached", "--stat") == ""
    assert leftovers(work) == []


def test_a_partial_clone_fetches_through_its_gitdir(mounted: Callable[..., Mounted], origin: Path) -> None:
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    source = GitSource(f"file://{origin}", "main", base_dir=str(origin.parent), store_dir=str(origin.parent / "store"))
    resolved = source.open()
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
    source = GitSource("origin", "main", "src", base_dir=str(tmp_path), store_dir=str(tmp_path / "s"))
    resolved = source.open()
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
