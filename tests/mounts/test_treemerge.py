"""Merges of trees: what stock git merges cleanly is merged to the same, and what it does not is a conflict."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.mounts.git.treemerge import Conflict, ConflictKind, Labels, Merge, merge_trees
from clivefs.objects.memory import MemoryStore
from tests.mounts.gitworlds import World, edited, fresh, get_world, put_world, read_world, run, text, worlds

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LINES = [f"line {number}\n" for number in range(1, 21)]
BASE = "".join(LINES)


def merged(
    base: World, ours: World, theirs: World, scratch: Path, renames: bool = True
) -> tuple[World, Merge, MemoryStore]:
    store = MemoryStore()
    trees = [put_world(store, world) for world in (base, ours, theirs)]
    labels = Labels("base", "ours", "theirs")
    merge = merge_trees(store, store, *trees, scratch=str(scratch), labels=labels, renames=renames)
    return get_world(store, merge.tree), merge, store


def only(merge: Merge) -> Conflict:
    assert len(merge.conflicts) == 1
    return merge.conflicts[0]


def changed(number: int, line: str) -> str:
    return "".join(line if at == number else each for at, each in enumerate(LINES))


def fast_import(worlds_by_branch: dict[str, World], directory: Path) -> None:
    """A bare repository with a commit of each world; all but the first stand on the first."""
    run("git", "init", "-q", "--bare", ".", cwd=directory)
    stream = b"feature done\n"
    for mark, (branch, world) in enumerate(worlds_by_branch.items(), 1):
        stream += b"commit refs/heads/%b\nmark :%d\ncommitter c <c> 0 +0000\ndata 0\n" % (branch.encode(), mark)
        stream += b"from :1\ndeleteall\n" if mark > 1 else b""
        for path, (mode, content) in world.items():
            quoted = b'"' + b"".join(b"\\%03o" % byte for byte in path) + b'"'
            stream += b"M %o inline %b\ndata %d\n%b\n" % (mode, quoted, len(content), content)
    run("git", "fast-import", "--quiet", cwd=directory, stdin=stream + b"done\n")


@FEW
@given(data=st.data())
def test_clean_where_git_merges_cleanly_and_then_the_same(data: st.DataObject, tmp_path: Path) -> None:
    base = data.draw(worlds())
    ours, theirs = data.draw(edited(base)), data.draw(edited(base))
    world, merge, _ = merged(base, ours, theirs, tmp_path, renames=False)
    bare = fresh(tmp_path / "bare.git")
    fast_import({"base": base, "ours": ours, "theirs": theirs}, bare)
    command = ("git", "-c", "merge.renames=false", "merge-tree", "--write-tree", "-z", "--name-only", "ours", "theirs")
    result = run(*command, cwd=bare, check=False)
    assert result.returncode in (0, 1), result.stderr
    if b"rename" in result.stdout or merged(base, ours, theirs, tmp_path)[1].renames:
        return  # git follows moved files whatever it is told: that is compared below
    assert (result.returncode == 0) == (not merge.conflicts), merge.conflicts
    tree = result.stdout.partition(b"\0")[0].decode()
    if result.returncode == 0:
        assert merge.tree.hex() == tree
    for conflict in merge.conflicts:
        if conflict.kind in (ConflictKind.CONTENT, ConflictKind.DELETED_BY_OURS, ConflictKind.DELETED_BY_THEIRS):
            listed = run("git", "ls-tree", "-r", "-z", tree, cwd=bare).stdout.split(b"\0")
            theirs_by_path = {line.partition(b"\t")[2]: line.split(b"\t")[0].split() for line in listed if line}
            if conflict.path in theirs_by_path and conflict.path in world:
                oid = theirs_by_path[conflict.path][2].decode()
                assert run("git", "cat-file", "blob", oid, cwd=bare).stdout == world[conflict.path][1]


@FEW
@given(data=st.data())
def test_merging_what_did_not_change_is_the_other_side(data: st.DataObject, tmp_path: Path) -> None:
    base = data.draw(worlds())
    other = data.draw(edited(base))
    assert merged(base, other, base, tmp_path)[0] == other
    assert merged(base, base, other, tmp_path)[0] == other
    assert merged(base, other, other, tmp_path)[0] == other


def test_changes_in_different_places_merge(tmp_path: Path) -> None:
    base = {b"d/f": text(BASE)}
    ours = {b"d/f": text(changed(1, "ours\n"))}
    theirs = {b"d/f": text(changed(18, "theirs\n"), 0o100755), b"new": text("n")}
    world, merge, _ = merged(base, ours, theirs, tmp_path)
    assert not merge.conflicts
    both = changed(1, "ours\n").replace("line 19\n", "theirs\n")
    assert world == {b"d/f": text(both, 0o100755), b"new": text("n")}


def test_the_same_lines_have_markers(tmp_path: Path) -> None:
    world, merge, _ = merged(
        {b"f": text(BASE)}, {b"f": text(changed(5, "o\n"))}, {b"f": text(changed(5, "t\n"))}, tmp_path
    )
    conflict = only(merge)
    assert (conflict.kind, conflict.path) == (ConflictKind.CONTENT, b"f")
    assert world[b"f"][1].count(b"<<<<<<<") == 1
    assert b"<<<<<<< ours\no\n=======\nt\n>>>>>>> theirs\n" in world[b"f"][1]


def test_text_is_merged_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each file that both sides changed is what made large rebases slow."""
    monkeypatch.setenv("PATH", "")
    base = {b"%d" % number: text(BASE) for number in range(3)}
    ours = {path: text(changed(1, "ours\n")) for path in base}
    theirs = {path: text(changed(18, "theirs\n")) for path in base} | {b"2": text(changed(1, "theirs\n"))}
    world, merge, _ = merged(base, ours, theirs, tmp_path)
    assert only(merge).path == b"2"
    assert world[b"0"] == text(changed(1, "ours\n").replace("line 19\n", "theirs\n"))
    assert world[b"2"][1].startswith(b"line 1\n<<<<<<< ours\nours\n=======\ntheirs\n>>>>>>> theirs\nline 3\n")


def test_an_emptied_file_has_the_markers_of_git(tmp_path: Path) -> None:
    world, merge, _ = merged({b"f": text("a\n")}, {b"f": text("")}, {b"f": text("b\n")}, tmp_path)
    assert only(merge).kind == ConflictKind.CONTENT
    assert world[b"f"] == text("<<<<<<< ours\n=======\nb\n>>>>>>> theirs\n")


@pytest.mark.parametrize(
    "base,ours,theirs,kind,result",
    [
        ({}, text("a\n"), text("b\n"), ConflictKind.ADDED, None),
        (text("a\n"), None, text("b\n"), ConflictKind.DELETED_BY_OURS, text("b\n")),
        (text("a\n"), text("b\n"), None, ConflictKind.DELETED_BY_THEIRS, text("b\n")),
        (text("\0a"), text("\0b"), text("\0c"), ConflictKind.BINARY, text("\0b")),
        (text("a\n"), text("t", 0o120000), text("b\n"), ConflictKind.TYPE, text("t", 0o120000)),
        ({}, text("a\n"), text("a\n", 0o100755), ConflictKind.MODE, text("a\n")),
    ],
)
def test_kinds_of_conflicts(
    base: tuple[int, bytes] | None,
    ours: tuple[int, bytes] | None,
    theirs: tuple[int, bytes] | None,
    kind: ConflictKind,
    result: tuple[int, bytes] | None,
    tmp_path: Path,
) -> None:
    sides = [{b"keep": text("k")} | ({b"f": each} if each else {}) for each in (base, ours, theirs)]
    world, merge, _ = merged(sides[0], sides[1], sides[2], tmp_path)
    assert only(merge).kind == kind
    if result is not None:
        assert world[b"f"] == result


def test_a_file_against_a_directory(tmp_path: Path) -> None:
    base = {b"keep": text("k")}
    world, merge, _ = merged(base, base | {b"x": text("1")}, base | {b"x/y": text("2")}, tmp_path)
    assert world == base | {b"x": text("1")}
    assert (only(merge).path, only(merge).kind, only(merge).result) == (b"x/y", ConflictKind.TYPE, None)
    world, merge, _ = merged(base, base | {b"x/y": text("2")}, base | {b"x": text("1")}, tmp_path)
    assert world == base | {b"x/y": text("2")}
    assert (only(merge).path, only(merge).kind) == (b"x", ConflictKind.TYPE)


@pytest.mark.parametrize("moved_with_changes", [False, True])
def test_an_edit_follows_a_file_that_the_other_side_moved(tmp_path: Path, moved_with_changes: bool) -> None:
    moved = changed(18, "moved\n") if moved_with_changes else BASE
    edit = {b"old/f": text(changed(1, "mine\n"))}
    move = {b"new/g": text(moved)}
    both = {b"new/g": text(moved.replace("line 2\n", "mine\n"))}
    for ours, theirs in ((edit, move), (move, edit)):
        world, merge, _ = merged({b"old/f": text(BASE)}, ours, theirs, tmp_path)
        assert not merge.conflicts
        assert merge.renames == ((b"old/f", b"new/g"),)
        assert world == both


@pytest.mark.parametrize("moved_by_ours", [False, True])
def test_another_target_follows_a_symlink_that_the_other_side_moved(tmp_path: Path, moved_by_ours: bool) -> None:
    base = {b"old": (0o120000, b"target")}
    moved, elsewhere = {b"d/new": (0o120000, b"target")}, {b"old": (0o120000, b"elsewhere")}
    sides = (moved, elsewhere) if moved_by_ours else (elsewhere, moved)
    world, merge, _ = merged(base, *sides, tmp_path)
    assert not merge.conflicts
    assert world == {b"d/new": (0o120000, b"elsewhere")}
    sides = (moved, {b"old": text("a file\n")}) if moved_by_ours else ({b"old": text("a file\n")}, moved)
    _, merge, _ = merged(base, *sides, tmp_path)
    assert only(merge).kind == ConflictKind.TYPE


def test_two_new_names_of_one_file_are_both_kept_and_told(tmp_path: Path) -> None:
    base = {b"d/a": text(BASE), b"gone": text("")}
    world, merge, _ = merged(base, {b"d/c": text(changed(3, "o\n"))}, {b"b": text(BASE), b"e": text("")}, tmp_path)
    assert world == {b"d/c": text(changed(3, "o\n")), b"b": text(BASE), b"e": text("")}
    assert (only(merge).path, only(merge).names) == (b"d/a", (b"d/c", b"b"))
    assert only(merge).why == "renamed by both, to d/c and to b"


def test_what_both_moved_to_one_name_is_merged_there(tmp_path: Path) -> None:
    ours, theirs = {b"b": text(changed(1, "o\n"))}, {b"b": text(changed(18, "t\n"))}
    world, merge, _ = merged({b"a": text(BASE)}, ours, theirs, tmp_path)
    assert not merge.conflicts
    assert world == {b"b": text(changed(1, "o\n").replace("line 19\n", "t\n"))}


def test_edits_follow_a_directory_of_many_files_that_was_moved(tmp_path: Path) -> None:
    base = {b"old/%d/f" % number: text(f"{number // 2}\n" + BASE) for number in range(300)}
    moved = {path.replace(b"old", b"new"): file for path, file in base.items()}
    edit = {path: text(file[1].decode() + "edited\n") for path, file in base.items()}
    world, merge, _ = merged(base, moved, edit, tmp_path)
    assert not merge.conflicts
    assert world == {path.replace(b"old", b"new"): file for path, file in edit.items()}


def test_of_files_with_one_content_that_of_the_same_name_is_the_moved_one(tmp_path: Path) -> None:
    base = {b"p/a": text(BASE), b"p/b": text(BASE)}
    moved = {b"q/c": text(BASE), b"z/b": text(BASE)}
    world, merge, _ = merged(base, moved, base | {b"p/b": text("b\n" + BASE)}, tmp_path)
    assert not merge.conflicts
    assert world == {b"q/c": text(BASE), b"z/b": text("b\n" + BASE)}


def test_what_only_one_side_has_moved_is_not_taken_for_what_both_have(tmp_path: Path) -> None:
    base = {b"b": text(BASE), b"c": text(BASE)}
    world, merge, _ = merged(
        base, {b"bb": text(BASE), b"c1": text(BASE)}, {b"b": text(BASE), b"c2": text(BASE)}, tmp_path
    )
    assert (only(merge).path, only(merge).names) == (b"c", (b"c1", b"c2"))
    assert world == {b"bb": text(BASE), b"c1": text(BASE), b"c2": text(BASE)}


def test_what_both_have_moved_alike_is_no_conflict(tmp_path: Path) -> None:
    moved = {b"b": text(BASE)}
    world, merge, _ = merged({b"a": text(BASE)}, moved | {b"o": text(BASE)}, moved | {b"t": text("t")}, tmp_path)
    assert not merge.conflicts
    assert world == moved | {b"o": text(BASE), b"t": text("t")}


def test_carriage_returns_and_missing_last_newlines(tmp_path: Path) -> None:
    base = "a\r\nb\r\nc\r\nd\r\ne"
    ours, theirs = base.replace("a\r", "A\r"), base.replace("e", "E")
    world, merge, _ = merged({b"f": text(base)}, {b"f": text(ours)}, {b"f": text(theirs)}, tmp_path)
    assert not merge.conflicts
    assert world == {b"f": text("A\r\nb\r\nc\r\nd\r\nE")}


def test_nothing_is_left_in_the_scratch_directory(tmp_path: Path) -> None:
    merged({b"f": text(BASE)}, {b"f": text(changed(5, "o\n"))}, {b"f": text(changed(5, "t\n"))}, tmp_path)
    assert read_world(tmp_path) == {}


@pytest.mark.parametrize("moved_by", ["ours", "theirs"])
def test_a_move_to_where_the_other_has_a_file_loses_no_edit(tmp_path: Path, moved_by: str) -> None:
    """One side moves `a` below a directory and edits it; the other edits `a` and has a file for the directory."""
    base = {b"a": text(BASE), b"d/a": text("other\n")}
    mover = {b"d/a": text("other\n"), b"d/b": text(changed(2, "moved\n"))}
    stayer = {b"a": text(changed(15, "stayed\n")), b"d": text("a file\n")}
    ours, theirs = (mover, stayer) if moved_by == "ours" else (stayer, mover)
    world, merge, store = merged(base, ours, theirs, tmp_path)
    versions = [version for each in merge.conflicts for version in (each.ours, each.theirs, each.result)]
    left = [content for _, content in world.values()] + [store.read(each.oid)[1] for each in versions if each]
    assert merge.conflicts
    for line in (b"moved\n", b"stayed\n", b"a file\n"):
        assert any(line in content for content in left), line
