"""The gitdirs of forks: what making one costs, and that whatever runs in a fork writes to its own files alone."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from pathlib import Path

import pytest

from clivefs.mounts.forks import gitdirs
from clivefs.mounts.git.index import IndexStat, StatOf, parse_index


def _git(*args: str, cwd: Path) -> str:
    return subprocess.run(["git", *args], cwd=cwd, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    _git("init", "-q", "-b", "main", cwd=path)
    (path / "a").write_text("one\n")
    _git("add", "a", cwd=path)
    _git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-q", "-m", "first", cwd=path)
    return path


def _made(tmp_path: Path, source: Path) -> Path:
    upper = tmp_path / "upper"
    upper.mkdir()
    gitdirs.make(str(upper), {"": gitdirs.Source(str(source / ".git"))})
    (gitdir,) = gitdirs.places(str(upper)).values()
    return Path(gitdir)


def finish(gitdir: Path, stat_of: StatOf = lambda path, oid, mode: None) -> None:
    gitdirs.finish(str(gitdir), stat_of, str(gitdir.parent.parent))


def test_making_a_fork_copies_no_index(tmp_path: Path, source: Path) -> None:
    index = source / ".git/index"
    gitdir = _made(tmp_path, source)
    assert not gitdirs.is_finished(str(gitdir))
    assert os.stat(index).st_nlink == 2
    assert not (gitdir / "index").exists()


def test_the_index_is_that_of_when_the_fork_was_made(tmp_path: Path, source: Path) -> None:
    index = source / ".git/index"
    then, then_ns = index.read_bytes(), os.stat(index).st_mtime_ns
    gitdir = _made(tmp_path, source)
    (source / "b").write_text("two\n")
    _git("add", "b", cwd=source)  # git puts another file in its place
    assert index.read_bytes() != then
    finish(gitdir)
    assert gitdirs.is_finished(str(gitdir))
    assert (gitdir / "index").read_bytes() == then
    assert os.stat(gitdir / "index").st_mtime_ns == then_ns
    assert os.stat(gitdir / "index").st_nlink == 1
    assert sorted(os.listdir(gitdir.parent)) == ["0", "0.borrowed", "0.start", "places"]


def test_what_a_fork_writes_to_its_index_stays_there(tmp_path: Path, source: Path) -> None:
    index = source / ".git/index"
    then = index.read_bytes()
    gitdir = _made(tmp_path, source)
    assert [name for name in os.listdir(gitdir) if "index" in name] == []  # nothing there that is shared
    finish(gitdir)
    with open(gitdir / "index", "r+b") as file:
        file.write(b"damage")
    assert index.read_bytes() == then


def test_an_index_that_the_fork_has_made_itself_stays(tmp_path: Path, source: Path) -> None:
    gitdir = _made(tmp_path, source)
    (tmp_path / "other").write_bytes(b"other")
    (gitdir / "index").symlink_to(tmp_path / "other")
    finish(gitdir)
    assert gitdirs.is_finished(str(gitdir))
    assert (gitdir / "index").is_symlink()
    assert (tmp_path / "other").read_bytes() == b"other"


def test_a_split_index_comes_with_what_it_needs(tmp_path: Path, source: Path) -> None:
    _git("update-index", "--split-index", cwd=source)
    gitdir = _made(tmp_path, source)
    finish(gitdir)
    listed = _git(f"--git-dir={gitdir}", f"--work-tree={source}", "ls-files", "--stage", cwd=source)
    assert listed == _git("ls-files", "--stage", cwd=source) != ""


def test_several_may_finish_one_at_once(tmp_path: Path, source: Path) -> None:
    gitdir = _made(tmp_path, source)
    failed: list[BaseException] = []

    def one() -> None:
        try:
            finish(gitdir)
        except BaseException as error:  # noqa: BLE001
            failed.append(error)

    threads = [threading.Thread(target=one) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert (gitdir / "index").read_bytes() == (source / ".git/index").read_bytes()
    assert sorted(os.listdir(gitdir.parent)) == ["0", "0.borrowed", "0.start", "places"]


def test_where_links_cannot_be_made_the_index_is_copied_at_once(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    gitdir = _made(tmp_path, source)
    assert gitdirs.is_finished(str(gitdir))
    assert (gitdir / "index").read_bytes() == (source / ".git/index").read_bytes()


@pytest.mark.parametrize("checkout", ["main", "--detach"])
def test_an_index_that_nobody_has_made_yet_is_made_of_what_head_was(
    tmp_path: Path, source: Path, checkout: str
) -> None:
    _git("checkout", "-q", checkout, cwd=source)
    blob = _git("rev-parse", "HEAD:a", cwd=source).strip()
    (source / ".git/index").unlink()
    upper = tmp_path / "upper"
    upper.mkdir()
    gitdirs.make(str(upper), {"": gitdirs.Source(str(source / ".git"), unbuilt=True)})
    (gitdir,) = map(Path, gitdirs.places(str(upper)).values())
    assert not gitdirs.is_finished(str(gitdir))
    _git("-c", "user.name=A", "-c", "user.email=a@example.org", "commit", "-q", "--allow-empty", "-m", "on", cwd=source)
    st = os.stat(source / "a")
    finish(gitdir, lambda path, oid, mode: IndexStat(st.st_size, st.st_mtime_ns) if path == b"a" else None)
    assert gitdirs.is_finished(str(gitdir))
    assert sorted(os.listdir(gitdir.parent)) == ["0", "0.borrowed", "0.start", "places"]
    entries = parse_index((gitdir / "index").read_bytes())
    assert [(each.path, each.oid.hex(), each.size) for each in entries] == [(b"a", blob, 4)]
    made = (gitdir / "index").read_bytes()
    finish(gitdir)  # again: nothing is to be done
    assert (gitdir / "index").read_bytes() == made
    status = _git(f"--git-dir={gitdir}", f"--work-tree={source}", "status", "--porcelain", cwd=source)
    assert status == ""


@pytest.mark.parametrize("checkout", ["main", "--detach"])
def test_head_is_what_git_says_of_it(tmp_path: Path, source: Path, checkout: str) -> None:
    _git("checkout", "-q", checkout, cwd=source)
    gitdir = _made(tmp_path, source)
    for question in (["rev-parse", "HEAD"], ["rev-parse", "--symbolic-full-name", "HEAD"]):
        assert _git(f"--git-dir={gitdir}", *question, cwd=source) == _git(*question, cwd=source)


@pytest.mark.parametrize("branch", ["füße", "unborn"])
def test_an_index_is_made_whatever_the_branch_is_called(tmp_path: Path, source: Path, branch: str) -> None:
    """And where it has no commit yet there is nothing to be made."""
    _git("checkout", "-q", *(["--orphan"] if branch == "unborn" else ["-b"]), branch, cwd=source)
    (source / ".git/index").unlink()
    upper = tmp_path / "upper"
    upper.mkdir()
    gitdirs.make(str(upper), {"": gitdirs.Source(str(source / ".git"), unbuilt=True)})
    (gitdir,) = map(Path, gitdirs.places(str(upper)).values())
    finish(gitdir)
    assert gitdirs.is_finished(str(gitdir))
    assert (gitdir / "index").exists() == (branch != "unborn")
