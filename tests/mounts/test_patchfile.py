"""Reading patches: what each form says, and where it is wrong by line."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.patch.binary import apply_delta
from clivefs.mounts.patch.file import PatchSyntax, parse_patch, unquote

BODY = b"@@ -1,2 +1,2 @@ def f():\n 1\n-2\n+3\n"


@pytest.mark.parametrize(
    "header,old,new,what",
    [
        (b"--- a/f\n+++ b/f\n", b"a/f", b"b/f", "modify"),
        (b"--- a/f\t2024-01-02 03:04:05.123456789 +0100\n+++ b/f\t2024-01-02 03:04:05\n", b"a/f", b"b/f", "modify"),
        (b"--- f.c  Mon Jan  2 03:04:05 2006\n+++ f.c  Tue Jan  3 03:04:05 2006\n", b"f.c", b"f.c", "modify"),
        (b"--- a b/f\n+++ a b/f\n", b"a b/f", b"a b/f", "modify"),
        (b'--- "a/\\303\\251\\t\\"x"\n+++ "b/\\303\\251\\t\\"x"\n', b'a/\xc3\xa9\t"x', b'b/\xc3\xa9\t"x', "modify"),
        (b"diff --git a/x y b/x y\nindex 111..222 100644\n--- a/x y\t\n+++ b/x y\t\n", b"a/x y", b"b/x y", "modify"),
        (b"diff --git x x\nindex 111..222\n--- x\n+++ x\n", b"x", b"x", "modify"),
        (b"--- x\t(revision 3)\n+++ x\t(working copy)\n", b"x", b"x", "modify"),
    ],
)
def test_names(header: bytes, old: bytes, new: bytes, what: str) -> None:
    (file,) = parse_patch("p", header + BODY).files
    assert (file.old_name, file.new_name, file.what) == (old, new, what)
    assert [hunk.old for hunk in file.hunks] == [[b"1\n", b"2\n"]]
    assert [hunk.new for hunk in file.hunks] == [[b"1\n", b"3\n"]]


def test_git_headers() -> None:
    patch = (
        b"diff --git a/run b/run\nold mode 100644\nnew mode 100755\n"
        b"diff --git a/empty b/empty\nnew file mode 100644\nindex 0000000..e69de29\n"
        b"diff --git a/old b/old\ndeleted file mode 120000\nindex 1de5659..0000000\n"
        b"--- a/old\n+++ /dev/null\n@@ -1 +0,0 @@\n-target\n\\ No newline at end of file\n"
        b'diff --git "a/a\\tb" b/c\nsimilarity index 90%\nrename from "a\\tb"\nrename to c\n'
        b"diff --git a/c b/d\nsimilarity index 100%\ncopy from c\ncopy to d\n"
    )
    files = parse_patch("p", patch).files
    assert [file.what for file in files] == ["modify", "create", "delete", "rename", "copy"]
    assert [file.line for file in files] == [1, 4, 7, 15, 19]
    assert (files[0].old_mode, files[0].new_mode) == (0o100644, 0o100755)
    assert (files[1].old_name, files[1].new_name) == (None, b"b/empty")
    assert (files[2].old_mode, files[2].hunks[0].old) == (0o120000, [b"target"])
    assert (files[3].source_name, files[3].target_name) == (b"a\tb", b"c")


def test_creation_and_deletion_by_time_alone() -> None:
    patch = (
        b"--- a/n\t1970-01-01 00:00:00.000000000 +0000\n+++ b/n\t2024-01-02 03:04:05 +0000\n@@ -0,0 +1 @@\n+1\n"
        b"--- a/o\t2024-01-02 03:04:05 +0000\n+++ b/o\t1969-12-31 16:00:00.000000000 -0800\n@@ -1 +0,0 @@\n-1\n"
    )
    assert [file.what for file in parse_patch("p", patch).files] == ["create", "delete"]


@pytest.mark.parametrize(
    "patch,line",
    [
        (b"text\n--- a/f\n+++ b/f\n@@ -1,2 +1,2 @@\n 1\n", 4),
        (b"--- a/f\n+++ b/f\n@@ -1 +1 @@\n-1\n+2\n--- a/f\n+++ b/f\n@@ -1 +1 @@\nx\n", 9),
        (b"--- a/f\n+++ b/f\n@@ -x\n", 3),
        (b"\n\ndiff --git a/f b/f\nold mode 99\n", 4),
        (b"diff --git a/f b/f\nindex 1111..2222\nGIT binary patch\nnonsense 3\n", 4),
    ],
)
def test_what_is_wrong_has_its_line(patch: bytes, line: int) -> None:
    with pytest.raises(PatchSyntax) as caught:
        parse_patch("some.patch", patch)
    assert caught.value.place == f"some.patch:{line}"


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([
    b"diff --git a/f b/f\n", b"--- a/f\n", b"+++ b/f\n", b"@@ -1,2 +1,2 @@\n", b"@@ -0,0 +1 @@\n",
    b" x\n", b"-x\n", b"+x\n",
    b"\\ No newline at end of file\n", b"new file mode 100644\n", b"rename from f\n", b"rename to g\n", b"index 1..2\n",
    b"GIT binary patch\n", b"literal 3\n", b"Kcmb\n", b"\n", b"\xff\0\n", b'diff --git "a/\\',
    b"--- /dev/null\n", b"Binary files a and b differ\n",
])))  # fmt: skip
def test_nonsense_is_refused_and_never_fails_otherwise(lines: list[bytes]) -> None:
    try:
        parse_patch("p", b"".join(lines))
    except PatchSyntax:
        return


@pytest.mark.parametrize(
    "text,name", [(b'"a\\"b" c', b'a"b'), (b'"\\001\\377"', b"\x01\xff"), (b'"a', None), (b'"\\x"', None)]
)
def test_quotes(text: bytes, name: bytes | None) -> None:
    found = unquote(text)
    assert (found[0] if found else None) == name


def test_deltas_as_git_makes_them(tmp_path: Path) -> None:
    """`git diff --binary` writes a delta where that is shorter."""

    def git(*arguments: str) -> bytes:
        environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(
            ["git", *arguments], cwd=tmp_path, env=environment, check=True, capture_output=True
        ).stdout

    git("init", "-q")
    old = bytes(range(256)) * 400
    new = old[:5000] + b"changed\0" + old[5100:70000] + old[:30000]
    (tmp_path / "f").write_bytes(old)
    git("add", "f")
    (tmp_path / "f").write_bytes(new)
    (file,) = parse_patch("p", git("diff", "--binary")).files
    assert file.binary is not None
    assert file.binary.is_delta
    assert file.binary.apply(old) == new
    with pytest.raises(ValueError, match="is for a file of"):
        file.binary.apply(old + b"x")


@pytest.mark.parametrize(
    "delta",
    [
        b"",
        b"\x05",
        b"\x03\x02\x00",
        b"\x03\x02\x90\x05",
        b"\x03\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
        b"\x03\x05\x02a",
    ],
)
def test_damaged_deltas(delta: bytes) -> None:
    with pytest.raises(ValueError):
        apply_delta(b"abc", delta)
