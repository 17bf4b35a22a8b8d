"""A mounted ref outlives what its user does to the source: amended commits, deleted branches, `git gc`."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount


@pytest.fixture
def origin(bench: Bench) -> Path:
    path = bench.repository("thing", {"README": "hello\n", "src/a.c": "int a;\n"})
    commit(bench, path, {"second": "2\n"}, "second")
    bench.git("branch", "side", cwd=path)
    return path


def commit(bench: Bench, repository: Path, files: dict[str, str | bytes], message: str, *options: str) -> str:
    write_files(repository, files)
    bench.git("add", "-A", cwd=repository)
    bench.git("commit", "-qm", message, *options, cwd=repository)
    return bench.git("rev-parse", "HEAD", cwd=repository).strip()


def mount(bench: Bench, more: str = "", ref: str = "main") -> Path:
    bench.write_toml(f'[workspace]\nname = "shop"\n\n[mounts."lib/thing"]\ngit = "../thing"\nref = "{ref}"\n{more}')
    bench.mount()
    return bench.live / "lib/thing"


def kept(bench: Bench, commit_id: str) -> None:
    """Wait until the store owns a commit, and the git directory of the entry stands on that."""
    until(lambda: any(commit_id in path.read_text() for path in bench.store.glob("repositories/*/packed-refs")), "it")
    until(
        lambda: all(
            str(bench.base / "thing") not in path.read_text()
            for path in bench.store.glob("gitdirs/*/objects/info/alternates")
        ),
        "the git directory",
    )


def collect(bench: Bench, repository: Path) -> None:
    bench.git("reflog", "expire", "--expire=now", "--all", cwd=repository)
    bench.git("gc", "-q", "--prune=now", cwd=repository)


def test_amend_and_gc_in_the_source(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    old = bench.git("rev-parse", "HEAD", cwd=origin).strip()
    kept(bench, old)
    commit(bench, origin, {"second": "amended\n", "third": "3\n"}, "amended", "--amend")
    bench.git("branch", "-qD", "side", cwd=origin)
    collect(bench, origin)
    assert bench.git("cat-file", "-t", old, cwd=origin, check=False) == ""
    assert (tree / "second").read_text() == "2\n"
    assert (tree / "src/a.c").read_text() == "int a;\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert bench.git("log", "--format=%s", cwd=tree) == "second\nfirst\n"
    assert bench.git("fsck", "--strict", cwd=tree) == ""
    (tree / "README").write_text("mine\n")
    bench.git("commit", "-qam", "mine", cwd=tree)
    bench.unmount()
    # The ref is elsewhere now, and nothing of where it was is left in the source.
    bench.mount(check=False)
    assert bench.entry("lib/thing")["state"] == "behind"
    assert (tree / "second").read_text() == "2\n"
    assert bench.git("log", "--format=%s", cwd=tree) == "mine\nsecond\nfirst\n"
    bench.git("pull", "-q", "--no-rebase", "-X", "theirs", cwd=tree)
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert (tree / "third").read_text() == "3\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    bench.check_sound()


def test_a_ref_that_was_amended_while_nothing_was_mounted(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    (tree / "README").write_text("my edit\n")
    kept(bench, bench.git("rev-parse", "HEAD", cwd=origin).strip())
    bench.unmount()
    commit(bench, origin, {"second": "amended\n"}, "amended", "--amend")
    bench.git("branch", "-qD", "side", cwd=origin)
    collect(bench, origin)
    bench.mount()
    assert bench.entry("lib/thing")["state"] == "mounted"
    assert (tree / "second").read_text() == "amended\n"
    assert bench.git("status", "--porcelain", cwd=tree) == " M README\n"
    assert bench.git("log", "--format=%s", cwd=tree) == "amended\nfirst\n"
    bench.check_sound()


def test_a_commit_that_only_the_store_has(bench: Bench, origin: Path) -> None:
    gone = bench.git("rev-parse", "HEAD", cwd=origin).strip()
    tree = mount(bench, ref=gone)
    kept(bench, gone)
    bench.unmount()
    bench.git("reset", "-q", "--hard", "HEAD~1", cwd=origin)
    bench.git("branch", "-qD", "side", cwd=origin)
    collect(bench, origin)
    bench.mount()
    assert (tree / "second").read_text() == "2\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_every_commit_that_is_followed_is_kept(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("status", cwd=tree)
    third = commit(bench, origin, {"third": "3\n"}, "third")
    until(lambda: (tree / "third").exists(), "the followed content")
    kept(bench, third)
    bench.git("fetch", "-q", cwd=tree)
    fourth = commit(bench, origin, {"third": "4\n"}, "instead", "--amend")
    collect(bench, origin)
    until(lambda: (tree / "third").read_text() == "4\n", "the followed content")
    assert bench.git("rev-parse", "HEAD@{1}", cwd=tree).strip() == third
    assert bench.git("show", f"{third}:third", cwd=tree) == "3\n"
    assert bench.git("rev-parse", "HEAD", cwd=tree).strip() == fourth
    assert bench.git("fsck", "--strict", cwd=tree) == ""
    bench.check_sound()


def test_the_source_is_not_written(bench: Bench, origin: Path) -> None:
    def facts() -> dict[str, tuple[int, int, int]]:
        found = {str(path): path.lstat() for path in origin.rglob("*")}
        return {path: (st.st_ino, st.st_size, st.st_mtime_ns) for path, st in found.items()}

    before = facts()
    tree = mount(bench)
    kept(bench, bench.git("rev-parse", "HEAD", cwd=origin).strip())
    (tree / "README").write_text("mine\n")
    bench.git("commit", "-qam", "mine", cwd=tree)
    bench.git("gc", "-q", cwd=tree)
    bench.unmount()
    assert facts() == before


def test_a_move_that_git_is_in_the_way_of_comes_later(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("status", cwd=tree)
    lock = Path(bench.git("rev-parse", "--absolute-git-dir", cwd=tree).strip(), "index.lock")
    lock.touch()
    new = commit(bench, origin, {"second": "changed\n"}, "moved")
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    assert (tree / "second").read_text() == "2\n"
    assert lock.exists()
    lock.unlink()
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert (tree / "second").read_text() == "changed\n"
    assert bench.git("rev-parse", "HEAD", cwd=tree).strip() == new
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_another_ref_in_clive_toml_moves_once_the_work_is_gone(bench: Bench, origin: Path) -> None:
    """Not followed, and tried again all the same."""
    tree = mount(bench)
    bench.git("status", cwd=tree)
    (tree / "second").write_text("my edit\n")
    text = (bench.root / "Clive.toml").read_text()
    bench.write_toml(text.replace('"main"', '"main~1"'))
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    assert (tree / "second").read_text() == "my edit\n"
    bench.git("stash", cwd=tree)
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert not (tree / "second").exists()
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert os.listdir(tree / "src") == ["a.c"]
