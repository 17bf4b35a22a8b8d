"""Edits as commits: stock git reads what is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.edits.blame import Layer, blame_lines, tree_layers
from clivefs.mounts.edits.commit import commit_edits, import_tree
from clivefs.mounts.edits.diff import Version
from clivefs.mounts.edits.ignored import ignored
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.objects.memory import MemoryStore
from clivefs.objects.repository import Repository
from tests.mounts.gitworlds import ENVIRONMENT, World, edited, fresh, put_world, run, text, worlds

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
GIT = GitCommand(environment=ENVIRONMENT)


def edits_between(before: World, after: World) -> dict[bytes, Version | None]:
    return {
        path: Version(*after[path]) if path in after else None
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    }


def repository(directory: Path, world: World) -> tuple[Path, bytes]:
    store = MemoryStore()
    bare = directory / "bare.git"
    commit = import_tree(str(bare), store, put_world(store, world), "x 1.0", git=GIT)
    run("git", "update-ref", "HEAD", commit.hex(), cwd=bare)
    return bare, commit


def world_of(bare: Path, ref: str) -> World:
    found: World = {}
    for line in run("git", "ls-tree", "-r", "-z", ref, cwd=bare).stdout.split(b"\0"):
        if line:
            head, _, path = line.partition(b"\t")
            mode, _, oid = head.split()
            found[path] = (int(mode, 8), run("git", "cat-file", "blob", oid.decode(), cwd=bare).stdout)
    return found


@settings(FEW, max_examples=10)
@given(data=st.data())
def test_commits_hold_what_is_shown(data: st.DataObject, tmp_path: Path) -> None:
    base = data.draw(worlds())
    shown = data.draw(edited(base))
    bare, commit = repository(fresh(tmp_path / "r"), base)
    assert world_of(bare, "HEAD") == base
    edits = edits_between(base, shown)
    if not edits:
        with pytest.raises(ClivefsError, match="nothing to commit"):
            commit_edits(str(bare), base=commit, parent=commit, edits=edits, message="m", git=GIT)
        return
    made = commit_edits(
        str(bare), base=commit, parent=commit, edits=edits, message="Why\n\nBecause", branch="mine", git=GIT
    )
    assert world_of(bare, "mine") == shown
    log = run("git", "log", "-1", "--format=%an %ae %P%n%B", "mine", cwd=bare).stdout.decode()
    assert log.rstrip() == f"A U Thor author@example.org {commit.hex()}\nWhy\n\nBecause"
    assert Repository(bare).refs() == {"refs/heads/main": commit, "refs/heads/mine": made.commit}
    run("git", "fsck", "--strict", "--no-dangling", cwd=bare)


def test_a_commit_moves_head_and_index(tmp_path: Path) -> None:
    work = fresh(tmp_path / "work")
    run("git", "init", "-q", "-b", "main", cwd=work)
    (work / "f").write_text("1\n")
    (work / "d").mkdir()
    (work / "d" / "g").write_text("g\n")
    run("git", "add", ".", cwd=work)
    run("git", "commit", "-qm", "base", cwd=work)
    base = Repository(work).resolve("HEAD")
    (work / "f").write_text("2\n")
    (work / "d" / "g").unlink()
    (work / "d").rmdir()
    (work / "d").write_text("file now\n")
    edits = {b"f": Version(0o100644, b"2\n"), b"d/g": None, b"d": Version(0o100644, b"file now\n")}
    made = commit_edits(str(work / ".git"), base=base, parent=base, edits=edits, message="two", git=GIT)
    assert made.ref == "HEAD"
    assert run("git", "status", "--porcelain", "-b", cwd=work).stdout == b"## main\n"
    assert Repository(work).resolve("main") == made.commit
    with pytest.raises(ClivefsError, match="HEAD is at"):
        commit_edits(str(work / ".git"), base=base, parent=base, edits=edits, message="again", git=GIT)


def test_without_a_name_git_says_so(tmp_path: Path) -> None:
    bare, commit = repository(tmp_path, {b"f": text("1")})
    nobody = GitCommand(environment={"PATH": ENVIRONMENT["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"})
    run("git", "config", "user.useConfigOnly", "true", cwd=bare)
    edits: dict[bytes, Version | None] = {b"f": None}
    with pytest.raises(ClivefsError, match="does not know who the author is"):
        commit_edits(str(bare), base=commit, parent=commit, edits=edits, message="m", git=nobody)


def test_what_git_ignores_is_left_out(tmp_path: Path) -> None:
    base = {b".gitignore": text("*.o\n"), b"kept.o": text("tracked\n"), b"d/f": text("f\n")}
    bare, _ = repository(tmp_path, base)
    store = MemoryStore()
    edits: dict[bytes, Version | None] = {
        b"new.o": Version(0o100644, b"o"),
        b"kept.o": Version(0o100644, b"mine"),
        b"d/.gitignore": Version(0o100644, b"junk/\n"),
        b"d/junk/x": Version(0o100644, b"x"),
        b"d/g": Version(0o100644, b"g"),
        b"d/f": None,
    }
    found = ignored(str(bare), store, put_world(store, base), edits, scratch=str(tmp_path), git=GIT)
    assert found == {b"new.o", b"d/junk/x"}
    assert ignored(str(bare), store, put_world(store, base), {b"d/f": None}, scratch=str(tmp_path), git=GIT) == set()


def test_lines_and_their_layers(tmp_path: Path) -> None:
    store = MemoryStore()
    lines = "".join(f"{number}\n" for number in range(10))
    base = put_world(store, {b"old": text(lines), b"other": text("o\n")})
    moved = put_world(store, {b"new": text(lines.replace("4\n", "four\n")), b"other": text("o\n")})
    reader = JoinedObjects((store,), str(tmp_path))
    layers = list(tree_layers(reader, [("base", base), ("patch:p", moved)], b"new"))
    upper = Layer("upper", {b"new": Version(0o100644, lines.replace("4\n", "four\n").encode() + b"end\n")})
    assert blame_lines([*layers, upper], b"new", str(tmp_path)) == [
        (1, 4, "base"), (5, 5, "patch:p"), (6, 10, "base"), (11, 11, "upper"),
    ]  # fmt: skip
