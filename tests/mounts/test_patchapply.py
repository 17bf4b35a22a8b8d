"""Patches on trees: the same as what stock `git apply` and `patch` make of the same files, or refused by name."""

from __future__ import annotations

import difflib
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.edits.diff import Changed, Version, patch_of
from clivefs.mounts.patch.apply import PatchFailed, apply_patch, apply_series, needed, provenance
from clivefs.mounts.patch.file import PatchSyntax
from clivefs.objects.encode import EMPTY_TREE, hash_object
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.gitworlds import (
    World,
    edited,
    fresh,
    get_world,
    put_world,
    read_world,
    run,
    text,
    worlds,
    write_world,
)

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
NUMBERS = "".join(f"line {number}\n" for number in range(1, 41))


def patched(world: World, patch: bytes | str, name: str = "fix.patch") -> World:
    """*world* after *patch*."""
    store = MemoryStore()
    data = patch.encode() if isinstance(patch, str) else patch
    return get_world(store, apply_patch(store, store, put_world(store, world), name, data).tree)


def failure(world: World, patch: bytes | str) -> ClivefsError:
    with pytest.raises((PatchFailed, PatchSyntax)) as caught:
        patched(world, patch)
    return caught.value


def unified(old: str, new: str, names: tuple[str, str] = ("a/f", "b/f"), context: int = 3) -> str:
    lines = difflib.unified_diff(old.splitlines(keepends=True), new.splitlines(keepends=True), *names, n=context)
    return "".join(line if line.endswith("\n") else line + "\n\\ No newline at end of file\n" for line in lines)


def git_patch(before: World, after: World, directory: Path, *options: str) -> bytes:
    """The difference as stock git writes it."""
    fresh(directory)
    run("git", "init", "-q", cwd=directory)
    write_world(directory, before)
    run("git", "add", "-A", "-f", cwd=directory)
    run("git", "commit", "-qm1", "--allow-empty", cwd=directory)
    for entry in directory.iterdir():
        if entry.name != ".git":
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    write_world(directory, after)
    run("git", "add", "-A", "-f", cwd=directory)
    return run("git", "diff", "--cached", "--full-index", *options, cwd=directory).stdout


# As stock tools do


@FEW
@given(data=st.data())
def test_the_difference_of_two_trees_applied_to_the_first_is_the_second(data: st.DataObject, tmp_path: Path) -> None:
    before = data.draw(worlds())
    after = data.draw(edited(before))
    changes = [
        Changed(
            path, Version(*before[path]) if path in before else None, Version(*after[path]) if path in after else None
        )
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    ]
    patch = patch_of(changes, str(tmp_path))
    assert patched(before, patch) == after
    plain = write_world(fresh(tmp_path / "plain"), before)
    result = run("git", "apply", "-", cwd=plain, stdin=patch, check=False) if patch else None
    if result is not None and b"beyond a symbolic link" in result.stderr:
        return  # a directory in a symlink's place: git refuses its own patch there
    assert read_world(plain) == after


@FEW
@given(
    data=st.data(),
    options=st.sampled_from(
        [["--binary", "-M", "-C"], ["--binary", "-U0"], ["--binary", "--no-prefix"], ["--binary", "-U1"]]
    ),
)
def test_every_kind_of_git_diff(data: st.DataObject, options: list[str], tmp_path: Path) -> None:
    before = data.draw(worlds())
    after = data.draw(edited(before))
    assert patched(before, git_patch(before, after, tmp_path / "git", *options)) == after


@FEW
@given(data=st.data())
def test_plain_diffs_of_directories_as_patch_takes_them(data: st.DataObject, tmp_path: Path) -> None:
    files = st.tuples(st.just(0o100644), st.lists(st.sampled_from(["one", "two", "three", "", " "]), max_size=12).map(
        lambda lines: "\n".join(lines).encode()))  # fmt: skip
    before = data.draw(worlds(files))
    after = data.draw(edited(before, files))
    fresh(tmp_path / "plain")
    write_world(tmp_path / "plain" / "orig", before)
    write_world(tmp_path / "plain" / "new", after)
    patch = run("diff", "-ruN", "orig", "new", cwd=tmp_path / "plain", check=False).stdout
    if b" while file " in patch:
        return  # a file in a directory's place, which diff only talks about
    ours = patched(before, patch)
    run("patch", "-p1", "-s", "-E", cwd=tmp_path / "plain" / "orig", stdin=patch)
    theirs = read_world(tmp_path / "plain" / "orig")
    # An empty file is one that a plain diff cannot tell from none.
    assert {path: file for path, file in ours.items() if file[1]} == {
        path: (0o100644, file[1]) if path not in before else (before[path][0], file[1])
        for path, file in theirs.items()
        if file[1]
    }


@FEW
@given(data=st.data())
def test_offsets_and_fuzz_go_where_patch_has_them(data: st.DataObject, tmp_path: Path) -> None:
    words = st.sampled_from(["alpha", "beta", "gamma", "delta", "", "}"])
    old = data.draw(st.lists(words, min_size=4, max_size=25))
    new = list(old)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(new)))
        new[at : at + data.draw(st.integers(0, 2))] = data.draw(st.lists(words, max_size=2))
    other = list(old)
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(other)))
        other[at : at + data.draw(st.integers(0, 1))] = data.draw(st.lists(words, max_size=3))
    patch = unified(_joined(old), _joined(new))
    if not patch:
        return
    place = write_world(fresh(tmp_path / "plain"), {b"f": text(_joined(other))})
    result = run("patch", "-p1", "-s", "-f", "-N", cwd=place, stdin=patch.encode(), check=False)
    world = {b"f": text(_joined(other))}
    if result.returncode:
        failure(world, patch)
    else:
        assert patched(world, patch).get(b"f", text(b""))[1] == (place / "f").read_bytes()


@pytest.mark.parametrize("end", ["", " 3\n"])
@pytest.mark.parametrize("old", ["1\n2\n3\n4\n5\n", "1\n2\n3\n\n\n\n7\n", "1\n2\n3\n"])
@pytest.mark.parametrize("missing", range(5))
def test_a_header_that_counts_lines_which_are_not_there(missing: int, old: str, end: str, tmp_path: Path) -> None:
    count = 2 + bool(end) + missing
    patch = f"--- a/f\n+++ b/f\n@@ -1,{count} +1,{count} @@\n 1\n-2\n+two\n{end}".encode()
    world = {b"f": text(old)}
    place = write_world(fresh(tmp_path / "plain"), world)
    if run("patch", "-p1", "-s", "-f", "-N", cwd=place, stdin=patch, check=False).returncode:
        failure(world, patch)
    else:
        assert patched(world, patch)[b"f"][1] == (place / "f").read_bytes()


@FEW
@given(data=st.data())
def test_what_git_apply_accepts_gives_the_same_here(data: st.DataObject, tmp_path: Path) -> None:
    lines = [f"{number}" for number in range(12)]
    new = list(lines)
    new[data.draw(st.integers(0, 11))] = data.draw(st.sampled_from(["x", "y\nz"]))
    other = list(lines)
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(other)))
        other[at : at + data.draw(st.integers(0, 1))] = data.draw(st.lists(st.sampled_from(["p", "q"]), max_size=3))
    patch = unified(_joined(lines), _joined(new))
    place = write_world(fresh(tmp_path / "plain"), {b"f": text(_joined(other))})
    if run("git", "apply", "-", cwd=place, stdin=patch.encode(), check=False).returncode == 0:
        assert patched({b"f": text(_joined(other))}, patch)[b"f"][1] == (place / "f").read_bytes()


def _joined(lines: list[str]) -> str:
    return "".join(line + "\n" for line in lines)


def test_between_two_versions_of_a_standard_library(tmp_path: Path) -> None:
    """Real files: this interpreter's own, against the same with real edits all over."""
    here = Path(os.__file__).parent
    before: World = {}
    for name in ("argparse.py", "tarfile.py", "zipfile.py", "json/decoder.py", "email/message.py", "shutil.py"):
        place = here / name
        if place.exists():
            before[name.encode()] = text(place.read_bytes())
    after = {
        path: (mode, content.replace(b"self, ", b"self,  ", 40).replace(b"return", b"return ", 9))
        for path, (mode, content) in before.items()
    }
    for options in (["-U3"], ["-U1"], ["-U0", "--no-prefix"]):
        assert patched(before, git_patch(before, after, tmp_path / "git", *options)) == after


# Forms


def test_names_with_any_prefix_or_none() -> None:
    old, new = "1\n2\n3\n", "1\nTWO\n3\n"
    world = {b"src/f": text(old), b"other": text("x")}
    for names in (
        ("a/src/f", "b/src/f"),
        ("src/f", "src/f"),
        ("src/f.orig", "src/f"),
        ("./src/f", "./src/f"),
        ("project-1.0/src/f", "project-1.1/src/f"),
        ("deep/project-1.0/src/f\t2024-01-02 03:04:05.000 +0100", "deep/project/src/f\t2024-01-02 03:04:06.000 +0100"),
        ('"a/src/f"', '"b/src/f"'),
        ("a/src/f  2024-01-02 03:04:05", "b/src/f  2024-01-02 03:04:05"),
        ("src/f\t(revision 12)", "src/f\t(working copy)"),
    ):
        assert patched(world, unified(old, new, names))[b"src/f"] == text(new), names


def test_a_mail_is_read_as_git_am_does(tmp_path: Path) -> None:
    mail = (
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: A <a@example.org>\n"
        "Subject: [PATCH] it\n\nText --- of it\n--- and more\n\n---\n f | 2 +-\n 1 file changed\n\n"
    )
    one = "diff --git a/f b/f\nindex 1..2 100644\n" + unified("1\n2\n", "1\n3\n") + "-- \n2.39.5\n\n"
    two = "diff --git a/f b/g\nsimilarity index 50%\nrename from f\nrename to g\n" + unified(
        "1\n3\n", "1\n4\n", ("a/f", "b/g")
    )
    assert patched({b"f": text("1\n2\n")}, mail + one + mail + two + "-- \n2.39.5\n\n") == {b"g": text("1\n4\n")}


def test_two_files_can_change_names() -> None:
    swap = (
        "diff --git a/one b/two\nsimilarity index 100%\nrename from one\nrename to two\n"
        "diff --git a/two b/one\nsimilarity index 100%\nrename from two\nrename to one\n"
    )
    assert patched({b"one": text("1"), b"two": text("2")}, swap) == {b"one": text("2"), b"two": text("1")}


def test_carriage_returns_are_content() -> None:
    old, new = "1\r\n2\r\n3\r\n", "1\r\n2x\r\n3\r\n"
    lines = ["--- a/f\n", "+++ b/f\n", "@@ -1,3 +1,3 @@\n", " 1\r\n", "-2\r\n", "+2x\r\n", " 3\r\n"]
    assert patched({b"f": text(old)}, "".join(lines)) == {b"f": text(new)}
    whole = "".join(line.replace("\r\n", "\n").replace("\n", "\r\n") for line in lines)  # a mailer converted it
    assert patched({b"f": text("1\n2\n3\n")}, whole) == {b"f": text("1\n2x\n3\n")}
    error = failure({b"f": text("1\n2\n3\n")}, "".join(lines))
    assert "carriage returns" in str(error)


def test_a_patch_that_an_editor_saved_with_carriage_returns_or_a_byte_order_mark() -> None:
    patch = unified(NUMBERS, NUMBERS.replace("line 20\n", "line twenty\n")).encode()
    returns = {b"f": (0o100644, NUMBERS.replace("\n", "\r\n").encode())}
    plain = {b"f": (0o100644, NUMBERS.encode())}
    for world, ending in ((plain, b"\n"), (returns, b"\r\n")):
        content = patched(world, patch.replace(b"\n", b"\r\n"))[b"f"][1]
        assert content == world[b"f"][1].replace(b"line 20" + ending, b"line twenty" + ending)
    assert b"twenty" in patched(plain, b"\xef\xbb\xbf" + patch)[b"f"][1]
    assert "UTF-16" in str(failure(plain, patch.decode().encode("utf-16")))


def test_a_patch_without_its_last_newline_and_blank_context() -> None:
    assert patched({b"f": text("1\n\n3\n")}, "--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n 1\n\n-3\n+4") == {
        b"f": text("1\n\n4\n")
    }


def test_a_file_twice_in_one_patch() -> None:
    both = unified("1\n2\n", "1\n3\n") + unified("1\n3\n", "0\n3\n")
    assert patched({b"f": text("1\n2\n")}, both) == {b"f": text("0\n3\n")}


def test_submodule_commits_are_moved() -> None:
    store = MemoryStore()
    from clivefs.objects.encode import TreeEntry  # noqa: PLC0415

    with store.batch() as batch:
        tree = batch.tree([TreeEntry(0o160000, b"sub", b"\x11" * 20)])
    patch = (
        "diff --git a/sub b/sub\nindex 1111111..2222222 160000\n--- a/sub\n+++ b/sub\n@@ -1 +1 @@\n"
        f"-Subproject commit {'11' * 20}\n+Subproject commit {'22' * 20}\n"
    )
    applied = apply_patch(store, store, tree, "p", patch.encode())
    assert store.read_tree(applied.tree) == [TreeEntry(0o160000, b"sub", b"\x22" * 20)]


# Failing


def test_what_does_not_apply_is_named_and_shown() -> None:
    patch = unified(NUMBERS, NUMBERS.replace("line 3\n", "LINE 3\n").replace("line 30\n", "LINE 30\n"))
    world = {
        b"f": text(NUMBERS.replace("line 29\n", "other\n").replace("line 30\n", "more\n").replace("line 31\n", "yet\n"))
    }
    error = failure(world, "diff --git a/f b/f\n" + patch)
    assert isinstance(error, PatchFailed)
    assert (error.patch, error.target, error.hunk) == ("fix.patch", "f", 2)
    assert error.place == "fix.patch:12"
    message = str(error)
    assert "hunk 2 of 2 (line 27) does not apply" in message
    assert "> | line 29" in message
    assert "> | other" in message


def test_what_is_applied_already_is_said_to_be() -> None:
    new = NUMBERS.replace("line 9\n", "nine\n")
    assert "there already" in str(failure({b"f": text(new)}, unified(NUMBERS, new)))


@pytest.mark.parametrize(
    "patch,words",
    [
        (unified("1\n", "2\n", ("a/../../etc/passwd", "b/../../etc/passwd")), "the name is `..`"),
        (unified("1\n", "2\n", ("/etc/passwd", "/etc/passwd")), "absolute"),
        (unified("", "2\n", ("/dev/null", "b/.git/hooks/pre-commit")), "spelling of `.git`"),
        (unified("", "2\n", ("/dev/null", "b/sub/.GIT/config")), "spelling of `.git`"),
        (unified("", "2\n", ("/dev/null", "b/link/x")), "symlink link"),
        (unified("x\n", "2\n", ("a/link/x", "b/link/x")), "symlink link"),
        ("diff --git a/f b/link/f\nsimilarity index 100%\nrename from f\nrename to link/f\n", "symlink link"),
        (unified("target\n", "2\n", ("a/link", "b/link")), "it is a symlink"),
        ("diff --git a/f b/f\nnew file mode 100644\nindex 0000000..e69de29\n", "there is one already"),
        ("diff --git a/f b/f\nnew file mode 040000\n", "file mode"),
        (
            "diff --git a/n b/n\nnew file mode 120000\n--- /dev/null\n+++ b/n\n"
            "@@ -0,0 +1 @@\n+a\0b\n\\ No newline\n",
            "symlink",
        ),
        ("diff --git a/f b/f\nindex 1..2\nBinary files a/f and b/f differ\n", "--binary"),
        ("diff --git a/f b/f\nindex 1..2\nGIT binary patch\nliteral 5\nMcmZ\n\n", "damaged"),
        ("--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n 1\n", "ends too early"),
        ("--- a/f\n+++ b/f\n@@ -1,3 +1,3 @@\n 1\n*\n", "none of a hunk"),
        ("@@ -1 +1 @@\n-1\n+2\n", "without a file"),
        ("*** f\n--- f\n***************\n*** 1 ***\n", "context diff"),
        ("just text\n", "no diff in it"),
        (unified("1\n", "2\n", ("a/missing", "b/missing")), "no such file"),
        ("diff --git a/d b/d\ndeleted file mode 100644\n--- a/f\n+++ /dev/null\n@@ -1 +0,0 @@\n-1\n", "more content"),
    ],
)  # fmt: skip
def test_refused_by_name(patch: str, words: str) -> None:
    world = {b"f": text("1\n2\n"), b"link": text("target", 0o120000), b"target/x": text("x\n")}
    assert words in str(failure(world, patch))


def test_nothing_of_a_failed_patch_stays_and_later_ones_are_not_tried() -> None:
    store = MemoryStore()
    base = put_world(store, {b"f": text("1\n"), b"g": text("1\n")})
    good = unified("1\n", "2\n")
    bad = unified("1\n", "3\n", ("a/g", "b/g")) + unified("nothing\n", "3\n")
    results = apply_series(store, store, base, [("1", good.encode()), ("2", bad.encode()), ("3", good.encode())])
    assert [(result.name, result.error is None) for result in results] == [("1", True), ("2", False)]
    assert results[0].tree is not None
    assert get_world(store, results[0].tree) == {b"f": text("2\n"), b"g": text("1\n")}


# Cost, memory, origin


def test_only_what_a_patch_touches_is_read(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store") as store:
        world = {b"d%d/e%d/f%d" % (n % 10, n % 50, n): text(f"{n}\n") for n in range(500)}
        tree = put_world(store, world)
        read: list[bytes] = []

        class Counting:
            """The store, noting what is asked of it."""

            def read(self, oid: bytes) -> tuple[str, bytes]:
                read.append(oid)
                return store.read(oid)

            def read_tree(self, oid: bytes):  # type: ignore[no-untyped-def]
                read.append(oid)
                return store.read_tree(oid)

            def header(self, oid: bytes) -> tuple[str, int]:
                return store.header(oid)

            def materialize(self, oid: bytes, directory: str) -> str:
                raise AssertionError

        patch = unified("7\n", "seven\n", ("a/d7/e7/f7", "b/d7/e7/f7")).encode()
        assert needed(Counting(), tree, "p", patch) == []
        read.clear()
        applied = apply_patch(Counting(), store, tree, "p", patch)
        assert len(read) <= 4  # three trees and the blob
        assert get_world(store, applied.tree) == world | {b"d7/e7/f7": text("seven\n")}
        read.clear()
        assert apply_patch(Counting(), store, tree, "p", patch) == applied
        assert read == []


def test_blobs_that_are_not_here_are_told() -> None:
    store = MemoryStore()
    world = {b"f": text("1\n"), b"g": text("other\n")}
    tree = put_world(store, world)
    del store._objects[hash_object("blob", b"1\n")]
    assert needed(store, tree, "p", unified("1\n", "2\n").encode()) == [hash_object("blob", b"1\n")]


def test_each_path_has_the_last_patch_that_wrote_it() -> None:
    store = MemoryStore()
    base = put_world(store, {b"f": text("1\n"), b"g": text("1\n"), b"h": text("1\n")})
    series = [
        ("one", unified("1\n", "2\n") + unified("1\n", "2\n", ("a/g", "b/g"))),
        ("two", unified("2\n", "3\n") + "diff --git a/g b/k\nsimilarity index 100%\nrename from g\nrename to k\n"),
    ]
    origin = provenance(apply_series(store, store, base, [(name, data.encode()) for name, data in series]))
    assert [origin.layer(path) for path in (b"f", b"g", b"h", b"k")] == [b"patch:two", None, None, b"patch:two"]


def test_an_empty_patch_changes_nothing() -> None:
    store = MemoryStore()
    assert apply_patch(store, store, EMPTY_TREE, "p", b"\n").tree == EMPTY_TREE
