"""What is kept of a local repository: it survives whatever becomes of the source, and the source is not written."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from clivefs.mounts.git import kept
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.kept import KeptObjects
from clivefs.mounts.git.source import GitSource
from clivefs.objects.errors import ObjectMissing, UnknownRef
from clivefs.objects.repository import Repository
from tests.mounts.stockgit import ENVIRONMENT, git


def commit(path: Path, name: str, content: str, *options: str) -> bytes:
    (path / name).write_text(content)
    git(path, "add", "-A")
    git(path, "commit", "-qm", name, *options)
    return head(path)


def head(path: Path, ref: str = "HEAD") -> bytes:
    return bytes.fromhex(git(path, "rev-parse", ref))


def amend_and_collect(path: Path) -> None:
    """What takes the objects of a commit away for good."""
    commit(path, "other", "instead\n", "--amend")
    git(path, "tag", "-d", "v1", check=False)
    git(path, "reflog", "expire", "--expire=now", "--all")
    git(path, "gc", "-q", "--prune=now")


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """Two commits: the first packed, the second loose."""
    path = tmp_path / "origin"
    path.mkdir()
    git(path, "init", "-q")
    commit(path, "first", "1\n")
    git(path, "gc", "-q")
    commit(path, "second", "2\n")
    return path


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., GitSource]:
    def open_it(location: str = "origin", ref: str = "main") -> GitSource:
        git_command = GitCommand(environment=ENVIRONMENT)
        source = GitSource(location, ref, base_dir=str(tmp_path), store_dir=str(tmp_path / "store"), git=git_command)
        source.open()
        return source

    return open_it


def readable(repository: Repository, oid: bytes) -> dict[bytes, bytes]:
    """Name to content of the files of a commit."""
    return {
        entry.name: repository.read(entry.oid)[1] for entry in repository.read_tree(repository.read_commit(oid).tree)
    }


def kept_path(tmp_path: Path) -> Path:
    (path,) = (tmp_path / "store" / "repositories").glob("*.git")
    return path


def snapshot(path: Path) -> dict[str, tuple[int, int, int]]:
    """Every file below *path*: inode, size and mtime."""
    facts = {}
    for each in sorted(path.rglob("*")):
        found = each.lstat()
        facts[str(each)] = (found.st_ino, found.st_size, found.st_mtime_ns)
    return facts


def test_without_keeping_a_commit_is_lost(origin: Path, opened: Callable[..., GitSource]) -> None:
    source = opened()
    amend_and_collect(origin)
    source.current.repository.refresh()
    with pytest.raises(ObjectMissing):
        readable(source.current.repository, source.current.commit)


def test_a_kept_commit_outlives_amend_and_gc(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    source = opened()
    before = snapshot(origin)
    assert not source.is_kept
    source.keep()
    assert source.is_kept
    assert snapshot(origin) == before
    old = source.current.commit
    expected = {b"first": b"1\n", b"second": b"2\n"}
    assert readable(source.current.repository, old) == expected
    amend_and_collect(origin)
    assert readable(source.current.repository, old) == expected  # through the handle that had the old packs
    other: list[dict[bytes, bytes]] = []
    thread = threading.Thread(target=lambda: other.append(readable(source.current.repository, old)))
    thread.start()
    thread.join()
    assert other == [expected]
    git(kept_path(tmp_path), "fsck", "--strict")
    assert git(kept_path(tmp_path), "log", "--format=%s", old.hex()) == "second\nfirst"
    again = opened(ref=old.hex())  # a commit that the source does not have any more
    assert readable(again.current.repository, old) == expected
    assert opened(ref=old.hex()[:12]).current.commit == old
    assert opened(ref=old.hex() + "~1").current.commit == head(origin, "main~1")


def test_packs_that_vanish_while_they_are_read(origin: Path, opened: Callable[..., GitSource]) -> None:
    git(origin, "gc", "-q")
    source = opened()
    reader = source.current.repository
    assert reader.has(source.current.commit)
    source.keep()
    shutil.rmtree(origin / ".git" / "objects" / "pack")
    assert readable(reader, source.current.commit) == {b"first": b"1\n", b"second": b"2\n"}


def test_large_blobs_too(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    (origin / "large").write_bytes(os.urandom(2 << 20))
    commit(origin, "third", "3\n")
    content = (origin / "large").read_bytes()
    blob = head(origin, "HEAD:large")
    for keep in (False, True):
        source = opened()
        if keep:
            source.keep()
            git(origin, "rm", "-q", "large")
            amend_and_collect(origin)
            assert not Repository(origin).has(blob)
        target = tmp_path / f"cache-{keep}"
        target.mkdir()
        assert Path(source.current.repository.materialize(blob, str(target))).read_bytes() == content


def test_what_comes_later_is_packed_alone(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    source = opened()
    source.keep()
    packs = set((kept_path(tmp_path) / "objects" / "pack").glob("*.pack"))
    (origin / "big").write_bytes(os.urandom(300_000))
    commit(origin, "third", "3\n")
    source.keep()
    assert not source.current.repository.has(b"\1" * 20)
    third = source.poll()
    assert third is not None
    assert not source.is_kept
    source.keep()
    assert source.is_kept
    new = set((kept_path(tmp_path) / "objects" / "pack").glob("*.pack")) - packs
    assert len(new) == 1
    assert 300_000 < new.pop().stat().st_size < 301_000
    commit(origin, "third", "instead\n", "--amend")
    amend_and_collect(origin)
    assert readable(third.repository, third.commit)[b"third"] == b"3\n"
    git(kept_path(tmp_path), "fsck", "--strict")


def test_trees_and_tags_are_kept_as_well(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    source = opened()
    source.keep()
    commit(origin, "third", "3\n")
    git(origin, "tag", "-am", "words", "v1")
    tag, tree = head(origin, "v1"), head(origin, "HEAD^{tree}")
    source.keep([tree])
    git(origin, "update-ref", "refs/heads/hidden", "HEAD~1")
    git(origin, "reset", "-q", "--hard", "HEAD~1")
    source.keep([tag])
    amend_and_collect(origin)
    own = Repository(kept_path(tmp_path))
    assert {entry.name for entry in own.read_tree(tree)} == {b"first", b"second", b"third"}
    assert own.read(tag)[0] == "tag"
    git(kept_path(tmp_path), "fsck", "--strict")


def test_where_it_must_not_take_long_it_is_not_begun(origin: Path, opened: Callable[..., GitSource]) -> None:
    source = opened()
    source.keep(begin=False)
    assert not source.is_kept
    source.keep()
    commit(origin, "third", "3\n")
    assert source.poll() is not None
    source.keep(begin=False)
    assert source.is_kept


def test_keeping_again_does_nothing(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    opened().keep()
    before = snapshot(kept_path(tmp_path))
    again = opened()
    assert not again.is_kept  # nobody has looked yet
    again.keep()
    assert again.is_kept
    assert snapshot(kept_path(tmp_path)) == before


def test_what_is_not_there_cannot_be_kept(origin: Path, opened: Callable[..., GitSource]) -> None:
    source = opened()
    for _ in range(2):
        with pytest.raises(OSError) as refused:
            source.keep([b"\1" * 20])
        assert refused.value.errno == errno.EIO
        assert not source.is_kept
    source.keep()
    assert source.is_kept


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM])
def test_where_links_cannot_be_made_what_is_needed_is_copied(
    origin: Path, opened: Callable[..., GitSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    blob = head(origin, "HEAD:second")
    monkeypatch.setattr(os, "link", refuse)
    source = opened()
    source.keep()
    old = source.current.commit
    amend_and_collect(origin)
    assert readable(source.current.repository, old)[b"second"] == b"2\n"
    assert Repository(kept_path(tmp_path)).has(blob)
    git(kept_path(tmp_path), "fsck", "--strict")


@pytest.mark.parametrize("what", ["packs", "all objects"])
def test_objects_behind_symbolic_links(
    origin: Path, opened: Callable[..., GitSource], tmp_path: Path, what: str
) -> None:
    """Tools that manage many checkouts share objects like that."""
    elsewhere = tmp_path / "elsewhere"
    objects = origin / ".git" / "objects"
    if what == "packs":
        elsewhere.mkdir()
        for path in (objects / "pack").iterdir():
            path.rename(elsewhere / path.name)
            path.symlink_to(elsewhere / path.name)
    else:
        objects.rename(elsewhere)
        objects.symlink_to(elsewhere)
    source = opened()
    source.keep()
    shutil.rmtree(elsewhere)
    assert readable(source.current.repository, source.current.commit) == {b"first": b"1\n", b"second": b"2\n"}
    assert not [path for path in kept_path(tmp_path).rglob("*") if path.is_symlink()]


def test_packs_of_any_name(origin: Path, opened: Callable[..., GitSource]) -> None:
    pack = origin / ".git" / "objects" / "pack"
    for path in pack.glob("*.*"):
        path.rename(pack / f"pack-odd{path.suffix}")
    source = opened()
    source.keep()
    shutil.rmtree(pack)
    assert readable(source.current.repository, source.current.commit) == {b"first": b"1\n", b"second": b"2\n"}


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="/dev/shm is no other filesystem here")
def test_another_filesystem(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    other = Path(f"/dev/shm/clivefs-test-{os.getpid()}")
    try:
        shutil.copytree(origin, other / "origin")
        source = opened(str(other / "origin"))
        source.keep()
        old = source.current.commit
        amend_and_collect(other / "origin")
        assert readable(source.current.repository, old)[b"second"] == b"2\n"
    finally:
        shutil.rmtree(other, ignore_errors=True)


def test_borrowed_objects_of_the_source_are_kept_too(
    origin: Path, opened: Callable[..., GitSource], tmp_path: Path
) -> None:
    git(tmp_path, "clone", "-q", "--shared", "origin", "borrower")
    source = opened("borrower")
    source.keep()
    shutil.rmtree(origin)
    assert readable(source.current.repository, source.current.commit) == {b"first": b"1\n", b"second": b"2\n"}


def test_a_shallow_clone_that_is_deepened(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{origin}", "shallow")
    first = head(origin, "HEAD~1")
    source = opened("shallow")
    source.keep()
    git(kept_path(tmp_path), "fsck", "--strict")
    assert not source.current.repository.has(first)
    git(tmp_path / "shallow", "fetch", "-q", "--unshallow")
    commit(tmp_path / "shallow", "third", "3\n")
    news = source.poll()
    assert news is not None
    source.keep()
    shutil.rmtree(tmp_path / "shallow" / ".git" / "objects")
    assert readable(news.repository, first) == {b"first": b"1\n"}
    git(kept_path(tmp_path), "fsck", "--strict")


def test_a_local_partial_clone(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    git(origin, "config", "uploadpack.allowFilter", "true")
    git(origin, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", f"file://{origin}", "partial")
    source = opened("partial")
    source.keep()
    assert source.is_kept
    git(tmp_path / "partial", "checkout", "-q", "main")  # fetches a blob that is the source's alone
    commit(tmp_path / "partial", "third", "3\n")
    news = source.poll()
    assert news is not None
    source.keep()
    amend_and_collect(tmp_path / "partial")
    source.current.repository.refresh()
    commits = git(kept_path(tmp_path), "rev-list", news.commit.hex()).split()
    assert len(commits) == 3
    assert source.current.repository.read(head(origin, "HEAD:second"))[1] == b"2\n"
    assert readable(news.repository, news.commit)[b"third"] == b"3\n"


def test_many_small_packs_become_few(
    origin: Path, opened: Callable[..., GitSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "PACKS_MAX", 12)
    source = opened()
    source.keep()
    commits = []
    for number in range(14):
        commits.append(commit(origin, "counted", f"{number}\n"))
        source.poll()
        source.keep()
    packs = list((kept_path(tmp_path) / "objects" / "pack").glob("*.pack"))
    assert len(packs) <= 12
    shutil.rmtree(origin / ".git" / "objects")
    for number, each in enumerate(commits):
        assert readable(source.current.repository, each)[b"counted"] == f"{number}\n".encode()
    git(kept_path(tmp_path), "fsck", "--strict")


def test_gc_at_the_same_time_loses_nothing(origin: Path, tmp_path: Path) -> None:
    """Objects move between files while they are linked."""
    path = tmp_path / "store" / "k.git"
    for number in range(40):
        commit(origin, f"file{number}", f"{number}\n")
    source = Repository(origin)
    objects = KeptObjects(str(path), source, git=GitCommand(environment=ENVIRONMENT))
    objects.create()
    with subprocess.Popen(["git", "gc", "-q", "--prune=now"], cwd=origin, env=ENVIRONMENT) as collector:
        objects.keep([head(origin)])
    assert collector.returncode == 0
    shutil.rmtree(origin / ".git" / "objects")
    assert git(path, "rev-list", "--count", "--all") == "42"
    git(path, "fsck", "--strict")


def test_stock_git_can_repack_it(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    source = opened()
    source.keep()
    old = source.current.commit
    amend_and_collect(origin)
    git(kept_path(tmp_path), "gc", "-q", "--prune=now")
    assert readable(source.current.repository, old) == {b"first": b"1\n", b"second": b"2\n"}


def test_a_gitdir_stands_on_what_is_kept_alone(origin: Path, opened: Callable[..., GitSource], tmp_path: Path) -> None:
    git(origin, "branch", "side")
    source = opened()
    gitdir = GitDir.create_or_open(str(tmp_path / "g"), source.current, source)
    alternates = tmp_path / "g" / "objects" / "info" / "alternates"
    assert str(origin) in alternates.read_text()
    late = commit(origin, "third", "3\n")
    git(tmp_path / "g", "--git-dir=.", "fetch", "-q", "origin")  # takes it from there without a copy
    gitdir.settle(source)
    assert str(origin) not in alternates.read_text()
    later = commit(origin, "fourth", "4\n")
    git(tmp_path / "g", "--git-dir=.", "fetch", "-q", "origin")  # now it is copied
    git(origin, "branch", "-D", "side")
    git(origin, "reset", "-q", "--hard", "HEAD~3")
    amend_and_collect(origin)
    assert not any(Repository(origin).has(oid) for oid in (late, later))
    git(tmp_path / "g", "--git-dir=.", "fsck", "--strict")
    assert git(tmp_path / "g", "--git-dir=.", "log", "--format=%s", "origin/main") == "fourth\nthird\nsecond\nfirst"
    gitdir.settle(source)
    assert str(origin) not in alternates.read_text()


def test_a_gitdir_that_is_opened_and_settled_at_the_same_time(
    origin: Path, opened: Callable[..., GitSource], tmp_path: Path
) -> None:
    source = opened()
    gitdir = GitDir.create_or_open(str(tmp_path / "g"), source.current, source)
    done = threading.Event()

    def again() -> None:
        other = opened()
        while not done.is_set():
            GitDir.create_or_open(str(tmp_path / "g"), other.current, other)

    with ThreadPoolExecutor(3) as pool:
        others = [pool.submit(again) for _ in range(3)]
        for _ in range(8):
            gitdir.settle(source)
        done.set()
        for other in others:
            other.result()
    gitdir.settle(source)
    assert str(origin) not in (tmp_path / "g" / "objects" / "info" / "alternates").read_text()
    assert git(tmp_path / "g", "--git-dir=.", "log", "--format=%s", "main") == "second\nfirst"


def test_an_unknown_commit_is_still_unknown(origin: Path, opened: Callable[..., GitSource]) -> None:
    opened().keep()
    with pytest.raises(UnknownRef):
        opened(ref="1" * 40)
