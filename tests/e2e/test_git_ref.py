"""A mounted git ref is a git working tree: stock git in it works as in a clone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import SAMPLE_TOML, WAIT_S, Bench, bench_in, until, write_files

pytestmark = pytest.mark.mount


@pytest.fixture
def origin(bench: Bench) -> Path:
    path = bench.repository("thing", {"README": "hello\n", "src/a.c": "int a;\n", "src/deep/b.c": "int b;\n"})
    write_files(path, {"second": "2\n"})
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-qm", "second", cwd=path)
    bench.git("tag", "v1", cwd=path)
    bench.git("branch", "side", "HEAD~1", cwd=path)
    return path


def mount(bench: Bench, more: str = "", ref: str = "main", entry: str = "lib/thing") -> Path:
    bench.write_toml(f'[workspace]\nname = "shop"\n\n[mounts."{entry}"]\ngit = "../thing"\nref = "{ref}"\n{more}')
    bench.mount()
    return bench.live / entry


def test_first_status_is_clean_and_reads_no_content(bench: Bench, origin: Path) -> None:
    write_files(origin, {f"many/{i // 50}/{i}": f"{i}\n" for i in range(500)})
    bench.git("add", "-A", cwd=origin)
    bench.git("commit", "-qm", "many", cwd=origin)
    tree = mount(bench)
    trace = bench.base / "trace"
    done = bench.run(
        [
            "strace",
            "-f",
            "-e",
            "trace=open,openat",
            "-o",
            str(trace),
            "git",
            "--no-optional-locks",
            "status",
            "--porcelain",
        ],
        cwd=tree,
    )
    assert done.stdout == ""
    opened = [
        line
        for line in trace.read_text().splitlines()
        if "many/" in line and " = -1 " not in line and "O_DIRECTORY" not in line
    ]
    assert opened == [], opened[:3]
    assert "nothing to commit, working tree clean" in bench.git("status", cwd=tree)
    assert bench.git("diff", "HEAD", cwd=tree) == ""
    bench.unmount()
    bench.mount()
    trace.unlink()
    bench.run(["strace", "-f", "-e", "trace=open,openat", "-o", str(trace), "git", "status", "--porcelain"], cwd=tree)
    assert [
        line
        for line in trace.read_text().splitlines()
        if "many/" in line and " = -1 " not in line and "O_DIRECTORY" not in line
    ] == []


def test_edit_add_commit_log_diff(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    (tree / "README").write_text("changed\n")
    (tree / "new").write_text("new\n")
    (tree / "second").unlink()
    assert bench.git("status", "--porcelain", cwd=tree) == " M README\n D second\n?? new\n"
    assert "+changed" in bench.git("diff", cwd=tree)
    bench.git("add", "-A", cwd=tree)
    bench.git("commit", "-qm", "mine", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert bench.git("log", "--format=%s", cwd=tree) == "mine\nsecond\nfirst\n"
    assert bench.git("show", "--stat", "--format=", "HEAD", cwd=tree).count("|") == 3
    assert bench.git("fsck", "--strict", cwd=tree, check=True) == ""
    # The source is untouched.
    assert bench.git("log", "-1", "--format=%s", cwd=origin) == "second\n"
    assert bench.git("status", "--porcelain", cwd=origin) == ""
    bench.unmount()
    bench.mount()
    assert bench.git("log", "-1", "--format=%s", cwd=tree) == "mine\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    head = bench.git("rev-parse", "HEAD", cwd=tree).strip()
    facts = bench.entry("lib/thing")
    assert facts["head"] == head
    assert facts["ref"] == bench.git("rev-parse", "main", cwd=origin).strip()


def test_same_size_edit_right_after_mounting_is_seen(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    bench.git("status", cwd=tree)
    (tree / "README").write_text("hallo\n")
    assert bench.git("status", "--porcelain", cwd=tree) == " M README\n"
    (tree / "README").write_text("hello\n")
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_stash_switch_merge_rebase_reset_clean(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    (tree / "README").write_text("stashed\n")
    bench.git("stash", cwd=tree)
    assert (tree / "README").read_text() == "hello\n"
    bench.git("stash", "pop", cwd=tree)
    assert (tree / "README").read_text() == "stashed\n"
    bench.git("commit", "-qam", "on main", cwd=tree)

    bench.git("switch", "-q", "-c", "topic", "HEAD~2", cwd=tree)
    assert not (tree / "second").exists()
    assert (tree / "README").read_text() == "hello\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    write_files(tree, {"src/topic.c": "int t;\n"})
    bench.git("add", "-A", cwd=tree)
    bench.git("commit", "-qm", "on topic", cwd=tree)
    bench.git("rebase", "-q", "main", cwd=tree)
    assert bench.git("log", "--format=%s", cwd=tree) == "on topic\non main\nsecond\nfirst\n"
    assert (tree / "README").read_text() == "stashed\n"

    bench.git("switch", "-q", "main", cwd=tree)
    assert not (tree / "src/topic.c").exists()
    write_files(tree, {"third": "3\n"})
    bench.git("add", "-A", cwd=tree)
    bench.git("commit", "-qm", "third", cwd=tree)
    bench.git("merge", "-q", "-m", "merged", "topic", cwd=tree)
    assert (tree / "src/topic.c").read_text() == "int t;\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""

    bench.git("reset", "-q", "--hard", "HEAD~1", cwd=tree)
    assert not (tree / "src/topic.c").exists()
    bench.git("cherry-pick", "topic", cwd=tree)
    assert (tree / "src/topic.c").exists()
    bench.git("revert", "--no-edit", "HEAD", cwd=tree)
    assert not (tree / "src/topic.c").exists()
    write_files(tree, {"junk/a": "a", "junk/b/c": "c"})
    bench.git("clean", "-qfd", cwd=tree)
    assert not (tree / "junk").exists()
    bench.git("checkout", "-q", "v1", cwd=tree)
    bench.git("checkout", "-q", "HEAD~1", "--", "README", cwd=tree)
    bench.git("restore", "README", cwd=tree)
    bench.git("mv", "src", "source", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree).startswith("R  src/")
    bench.git("reset", "-q", "--hard", cwd=tree)
    assert sorted(os.listdir(tree / "src")) == ["a.c", "deep"]
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    bench.git("gc", "-q", cwd=tree)
    bench.git("fsck", cwd=tree)


def test_merge_conflict(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    bench.git("switch", "-q", "-c", "one", cwd=tree)
    (tree / "README").write_text("one\n")
    bench.git("commit", "-qam", "one", cwd=tree)
    bench.git("switch", "-q", "main", cwd=tree)
    (tree / "README").write_text("two\n")
    bench.git("commit", "-qam", "two", cwd=tree)
    done = bench.run(["git", "merge", "one"], cwd=tree, check=False)
    assert done.returncode == 1
    assert "<<<<<<<" in (tree / "README").read_text()
    bench.git("merge", "--abort", cwd=tree)
    assert (tree / "README").read_text() == "two\n"


def test_push_fetch_and_pull(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    bench.git("switch", "-q", "-c", "feature", cwd=tree)
    (tree / "README").write_text("feature\n")
    bench.git("commit", "-qam", "feature", cwd=tree)
    bench.git("push", "-q", "origin", "feature", cwd=tree)
    assert bench.git("log", "-1", "--format=%s", "feature", cwd=origin) == "feature\n"
    write_files(origin, {"upstream": "u\n"})
    bench.git("add", "-A", cwd=origin)
    bench.git("commit", "-qm", "upstream", cwd=origin)
    bench.git("switch", "-q", "main", cwd=tree)
    bench.git("pull", "-q", "--ff-only", cwd=tree)
    assert (tree / "upstream").read_text() == "u\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_worktree_of_a_mounted_ref(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    bench.git("worktree", "add", "-q", "../other", "-b", "other", cwd=tree)
    other = bench.live / "lib/other"
    assert (other / "README").read_text() == "hello\n"
    (other / "README").write_text("other\n")
    bench.git("commit", "-qam", "other", cwd=other)
    assert "other" in bench.git("branch", cwd=tree)
    bench.git("worktree", "remove", "../other", cwd=tree)
    assert not other.exists()


def test_a_tag_and_a_commit_are_detached_heads(bench: Bench, origin: Path) -> None:
    tree = mount(bench, ref="v1")
    assert "HEAD detached" in bench.git("status", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert bench.git("describe", "--tags", cwd=tree) == "v1\n"


def test_edit_to_gitignore_and_untracked_directories(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    write_files(tree, {".gitignore": "*.o\nbuild/\n", "x.o": "", "build/y": "", "kept/z": ""})
    assert bench.git("status", "--porcelain", cwd=tree) == "?? .gitignore\n?? kept/\n"


def test_status_sees_every_change_of_one_second(bench: Bench, origin: Path) -> None:
    """git's untracked cache compares the seconds of a directory's mtime: a name that went in the second in which it was
    noted showed for good once the index had been written again."""
    tree = mount(bench)
    (tree / "new").touch()
    assert bench.git("status", "--porcelain", cwd=tree) == "?? new\n"
    noted_ns = tree.stat().st_mtime_ns
    (tree / "new").unlink()
    second, past_ns = divmod(noted_ns, 10**9)
    # As on a machine that does all of it within one second.
    os.utime(tree, ns=(noted_ns, second * 10**9 + (past_ns + 10**8) % 10**9))
    until(lambda: time.time() >= second + 1, "the next second")
    (tree / "src/a.c").write_text("int changed;\n")
    bench.git("commit", "-qam", "writes the index", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_odd_names_modes_and_links(bench: Bench) -> None:
    path = bench.base / "thing"
    path.mkdir()
    bench.git("init", "-q", "-b", "main", cwd=path)
    names = [
        b"latin-\xe9",
        b"tab\there",
        b"new\nline",
        b'quote"d',
        b"back\\slash",
        "ünï".encode(),
        b"e\xcc\x81",
        b" lead",
        b"-dash",
    ]
    for name in names:
        with open(os.path.join(os.fsencode(path), name), "wb") as file:
            file.write(name)
    (path / "run").write_text("#!/bin/sh\necho ran\n")
    (path / "run").chmod(0o755)
    (path / "link").symlink_to("run")
    (path / "broken").symlink_to("no/where")
    (path / "empty").touch()
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-qm", "odd", cwd=path)
    tree = mount(bench)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert set(names) <= set(os.listdir(os.fsencode(tree)))
    assert bench.run("./run", cwd=tree).stdout == "ran\n"
    assert os.readlink(tree / "link") == "run"
    (tree / "run").chmod(0o644)
    assert bench.git("status", "--porcelain", cwd=tree) == " M run\n"
    bench.run("git clone -q . ../../clone", cwd=tree)
    bench.run(["diff", "-r", "--no-dereference", "-x", ".git", str(path), str(bench.live / "clone")])


def test_a_repository_with_sha1_edge_cases(bench: Bench) -> None:
    """Directories whose names sort around a slash, and a file replaced by a directory."""
    path = bench.repository("thing", {"a.b": "", "a/b": "x", "a0": "", "ab/c": "y", "f": "file"})
    bench.git("switch", "-q", "-c", "dirs", cwd=path)
    (path / "f").unlink()
    write_files(path, {"f/in": "now a directory"})
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-qm", "dir", cwd=path)
    bench.git("switch", "-q", "main", cwd=path)
    tree = mount(bench)
    bench.git("switch", "-q", "dirs", cwd=tree)
    assert (tree / "f/in").read_text() == "now a directory"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    bench.git("switch", "-q", "main", cwd=tree)
    assert (tree / "f").read_text() == "file"
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_without_git_dir(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "git_dir = false\n")
    assert not (tree / ".git").exists()
    assert sorted(os.listdir(tree)) == ["README", "second", "src"]


def test_read_only_and_subdir(bench: Bench, origin: Path) -> None:
    tree = mount(bench, 'write = "none"\nsubdir = "src"\n')
    assert sorted(os.listdir(tree)) == ["a.c", "deep"]
    with pytest.raises(OSError, match="Read-only"):
        (tree / "a.c").write_text("x")
    with pytest.raises(OSError, match="Read-only"):
        (tree / "new").mkdir()
    with pytest.raises(OSError, match="Read-only"):
        (tree / "a.c").unlink()
    with pytest.raises(OSError, match="Read-only"):
        (tree / "a.c").chmod(0o600)


# Following


def commit(bench: Bench, repository: Path, files: dict[str, str | bytes], message: str) -> str:
    write_files(repository, files)
    bench.git("add", "-A", cwd=repository)
    bench.git("commit", "-qm", message, cwd=repository)
    return bench.git("rev-parse", "HEAD", cwd=repository).strip()


def git_dir_of(tree: Path) -> Path:
    return Path((tree / ".git").read_text().removeprefix("gitdir:").strip())


def test_follow_moves_tree_head_and_index(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    kept = (tree / "README").stat()
    (tree / "second").read_text()
    new = commit(bench, origin, {"second": "changed\n", "third": "3\n"}, "moved")
    until(lambda: (tree / "second").read_text() == "changed\n", "the followed content")
    assert (tree / "third").read_text() == "3\n"
    assert "third" in os.listdir(tree)
    assert bench.git("rev-parse", "HEAD", cwd=tree).strip() == new
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert bench.entry("lib/thing")["ref"] == new
    same = (tree / "README").stat()
    assert (same.st_mtime_ns, same.st_ino) == (kept.st_mtime_ns, kept.st_ino)
    (origin / "third").unlink()
    newer = commit(bench, origin, {"src/a.c": "int a2;\n"}, "removed")
    until(lambda: not (tree / "third").exists(), "the removal")
    assert (tree / "src/a.c").read_text() == "int a2;\n"
    assert bench.git("rev-parse", "HEAD", cwd=tree).strip() == newer
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_a_follow_is_a_point_of_its_own(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    (tree / "untracked").write_text("mine\n")
    new = commit(bench, origin, {"second": "changed\n", "third": "3\n"}, "moved")
    until(lambda: (tree / "third").exists(), "the followed content")
    bench.cli("snapshot")
    newest, before, *_ = json.loads(bench.cli("log", "--json").stdout)
    assert newest["origin"] == "command:follow"
    assert newest["message"].splitlines()[0] == f"lib/thing follows main to {new[:12]}"
    assert newest["paths"] == ["lib/thing/second", "lib/thing/third"]
    assert "lib/thing/untracked" in before["paths"]


def test_follow_keeps_an_uncommitted_edit(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("status", cwd=tree)
    (tree / "README").write_text("my edit\n")
    commit(bench, origin, {"second": "changed\n"}, "moved")
    until(
        lambda: bench.entry("lib/thing")["state"] == "behind" or (tree / "second").read_text() == "changed\n",
        "the entry moving or saying that it is behind",
    )
    assert (tree / "README").read_text() == "my edit\n"
    assert bench.git("status", "--porcelain", cwd=tree) == " M README\n"


def test_follow_is_behind_local_commits(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("status", cwd=tree)
    (tree / "README").write_text("mine\n")
    bench.git("commit", "-qam", "mine", cwd=tree)
    commit(bench, origin, {"second": "changed\n"}, "moved")
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    assert (tree / "second").read_text() == "2\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert bench.git("log", "-1", "--format=%s", cwd=tree) == "mine\n"
    bench.git("pull", "-q", "--no-rebase", cwd=tree)
    assert (tree / "second").read_text() == "changed\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert bench.entry("lib/thing")["ref"] == bench.git("rev-parse", "main", cwd=origin).strip()
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_follow_goes_on_from_what_was_pushed_though_others_have_pushed_since(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("switch", "-q", "--detach", cwd=origin)
    (tree / "README").write_text("mine\n")
    bench.git("rm", "-q", "second", cwd=tree)
    bench.git("commit", "-qam", "mine", cwd=tree)
    daemon = bench.daemon_pid()
    bench.git("fetch", "-q", str(git_dir_of(tree)), "main:mine", cwd=origin)
    os.kill(daemon, signal.SIGSTOP)  # it sees neither the push alone nor what stands on it alone
    try:
        bench.git("switch", "-q", "mine", cwd=origin)
        theirs = commit(bench, origin, {"second": "again\n", "src/a.c": "int theirs;\n"}, "theirs")
        bench.git("branch", "-q", "-f", "main", theirs, cwd=origin)
    finally:
        os.kill(daemon, signal.SIGCONT)
    until(lambda: (tree / "src/a.c").read_text() == "int theirs;\n", "the followed content")
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert bench.git("rev-parse", "HEAD", cwd=tree).strip() == theirs
    assert (tree / "README").read_text() == "mine\n"
    assert (tree / "second").read_text() == "again\n"
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    (tree / "README").write_text("more\n")
    bench.git("commit", "-qam", "more", cwd=tree)
    bench.git("push", "-q", "origin", "HEAD:refs/heads/more", cwd=tree)


@pytest.mark.parametrize("when", ["mounted", "unmounted"])
def test_a_renamed_directory_that_was_pushed(bench: Bench, origin: Path, when: str) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("status", cwd=tree)
    bench.git("switch", "-q", "--detach", cwd=origin)
    bench.git("mv", "src", "lib", cwd=tree)
    (tree / "lib/a.c").write_text("int edited;\n")
    bench.git("commit", "-qam", "renamed", cwd=tree)
    shutil.move(tree / "lib/deep", tree / "moved")  # and this was not committed
    if when == "unmounted":
        gitdir = git_dir_of(tree)
        bench.unmount()
        bench.git("push", "-q", str(origin), "main", cwd=gitdir)
        bench.mount()
    else:
        bench.git("push", "-q", "origin", "main", cwd=tree)
    pushed = bench.git("rev-parse", "main", cwd=origin).strip()
    until(lambda: bench.entry("lib/thing")["ref"] == pushed, "the base where HEAD is")
    assert (tree / "lib/a.c").read_text() == "int edited;\n"
    assert (tree / "moved/b.c").read_text() == "int b;\n"
    assert bench.git("status", "--porcelain", cwd=tree) == " D lib/deep/b.c\n?? moved/\n"
    bench.git("switch", "-q", "main", cwd=origin)
    theirs = commit(bench, origin, {"src/new.c": "int c;\n", "lib/more.c": "int d;\n"}, "theirs")
    until(lambda: bench.entry("lib/thing")["ref"] == theirs, "the followed commit")
    assert (tree / "src/new.c").read_text() == "int c;\n"
    assert sorted(os.listdir(tree / "lib")) == ["a.c", "more.c"]
    assert (tree / "moved/b.c").read_text() == "int b;\n"
    assert bench.git("status", "--porcelain", cwd=tree) == " D lib/deep/b.c\n?? moved/\n"
    bench.check_sound()


def test_a_renamed_directory_that_goes_upstream(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    (tree / "src").rename(tree / "mine")
    bench.git("rm", "-qr", "src", cwd=origin)
    commit(bench, origin, {"third": "3\n"}, "without src")
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    assert "mine" in bench.entry("lib/thing")["error"]
    assert (tree / "mine/a.c").read_text() == "int a;\n"
    (tree / "mine").rename(tree / "src")
    bench.git("status", cwd=tree)
    until(lambda: (tree / "third").exists(), "the followed commit")
    assert os.listdir(tree / "src") == []
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_follow_does_not_hide_a_change_under_an_edit_of_the_same_file(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("status", cwd=tree)
    (tree / "README").write_text("my edit\n")
    (tree / "third").write_text("mine\n")
    commit(bench, origin, {"README": "theirs\n", "second": "changed\n"}, "moved")
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    assert "README" in bench.entry("lib/thing")["error"]
    assert (tree / "README").read_text() == "my edit\n"
    assert (tree / "second").read_text() == "2\n"
    bench.git("stash", cwd=tree)
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert (tree / "README").read_text() == "theirs\n"
    assert (tree / "second").read_text() == "changed\n"
    assert bench.git("status", "--porcelain", cwd=tree) == "?? third\n"
    commit(bench, origin, {"third": "theirs\n"}, "adds what is untracked here")
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    assert (tree / "third").read_text() == "mine\n"


def test_copies_that_git_wrote_back_do_not_hide_what_follows(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    bench.git("switch", "-q", "--detach", "HEAD~1", cwd=tree)
    bench.git("switch", "-q", "main", cwd=tree)
    (tree / "README").write_text("x\n")
    (tree / "src/a.c").chmod(0o755)
    bench.git("checkout", "-q", "README", "src/a.c", cwd=tree)
    (origin / "second").unlink()
    commit(bench, origin, {"README": "theirs\n", "src/a.c": "int new;\n"}, "moved")
    until(lambda: (tree / "README").read_text() == "theirs\n", "the followed content")
    assert (tree / "src/a.c").read_text() == "int new;\n"
    assert not (tree / "second").exists()
    assert bench.git("status", "--porcelain", cwd=tree) == ""


def test_a_large_copy_that_git_wrote_back_leaves_the_disk(bench: Bench, origin: Path) -> None:
    large = b"0123456789abcdef" * (1 << 17)
    commit(bench, origin, {"large": large}, "large")
    tree = mount(bench, "follow = true\n")
    (tree / "large").write_text("x\n")
    bench.git("checkout", "-q", "large", cwd=tree)
    commit(bench, origin, {"large": large + b"more"}, "more")
    until(lambda: (tree / "large").stat().st_size == len(large) + 4, "the followed content")
    until(lambda: not list(bench.store.glob("uppers/*/*/work/*")), "the end of the copy")


def test_a_branch_that_moved_while_nothing_was_mounted(bench: Bench, origin: Path) -> None:
    tree = mount(bench)
    (tree / "README").write_text("x\n")
    bench.git("checkout", "-q", "README", cwd=tree)
    (tree / "second").write_text("my edit\n")
    bench.unmount()
    commit(bench, origin, {"README": "theirs\n", "third": "3\n"}, "moved")
    bench.mount()
    assert (tree / "README").read_text() == "theirs\n"
    assert bench.git("status", "--porcelain", cwd=tree) == " M second\n"
    bench.unmount()
    commit(bench, origin, {"second": "theirs\n", "README": "again\n"}, "moved again")
    bench.mount(check=False)
    assert bench.entry("lib/thing")["state"] == "behind"
    assert (tree / "README").read_text() == "theirs\n"
    assert bench.git("status", "--porcelain", cwd=tree) == " M second\n"
    bench.git("commit", "-qam", "mine", cwd=tree)
    bench.git("pull", "-q", "--no-rebase", "-X", "ours", cwd=tree)
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    assert (tree / "README").read_text() == "again\n"


def test_follow_goes_on_once_nothing_is_staged(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    (tree / "staged").write_text("s\n")
    bench.git("add", "staged", cwd=tree)
    commit(bench, origin, {"second": "changed\n"}, "moved")
    until(lambda: bench.entry("lib/thing")["state"] == "behind", "the state `behind`")
    bench.git("reset", "-q", cwd=tree)
    until(lambda: bench.entry("lib/thing")["state"] == "mounted", "the entry going on")
    assert (tree / "second").read_text() == "changed\n"
    assert bench.git("status", "--porcelain", cwd=tree) == "?? staged\n"


def test_open_files_keep_their_content_when_the_ref_moves(bench: Bench, origin: Path) -> None:
    tree = mount(bench, "follow = true\n")
    with (
        (tree / "second").open() as file,
        subprocess.Popen(["cat", "-"], cwd=tree / "src", stdin=subprocess.PIPE) as shell,
    ):
        commit(bench, origin, {"second": "changed\n", "src/new": "n\n"}, "moved")
        until(lambda: (tree / "second").read_text() == "changed\n", "the followed content")
        assert file.read() == "2\n"
        assert os.fstat(file.fileno()).st_size == 2
        assert os.listdir(f"/proc/{shell.pid}/cwd/") == os.listdir(tree / "src")
        assert shell.stdin is not None
        shell.stdin.close()
        shell.wait(WAIT_S)


@pytest.fixture
def shallow(tmp_path: Path) -> Iterator[Bench]:
    with bench_in(tmp_path) as made:
        yield made


def test_a_url_is_fetched_on_demand(shallow: Bench) -> None:
    path = shallow.repository("remote", {"README": "hello\n", "dir/a": "a\n", "dir/b": "b\n"})
    shallow.git("config", "uploadpack.allowFilter", "true", cwd=path)
    shallow.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=path)
    shallow.write_toml(f'[workspace]\nname = "shop"\n\n[mounts.far]\ngit = "file://{path}"\nref = "main"\n')
    shallow.mount()
    far = shallow.live / "far"
    assert (far / "dir/a").read_text() == "a\n"
    assert (far / "README").stat().st_size == 6
    assert shallow.git("status", "--porcelain", cwd=far) == ""
    (far / "README").write_text("edit\n")
    shallow.git("commit", "-qam", "edit", cwd=far)
    shallow.git("push", "-q", "origin", "HEAD:refs/heads/pushed", cwd=far)
    assert shallow.git("log", "-1", "--format=%s", "pushed", cwd=path) == "edit\n"


def test_toml_of_the_sample_is_used(shop: Bench) -> None:
    assert (shop.root / "Clive.toml").read_text() == SAMPLE_TOML
    assert shop.git("status", "--porcelain", cwd=shop.live / "lib/thing") == ""
