"""What `.gitattributes` convert, compared byte for byte with git's own checkout."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.git.attributes import GitAttributes, _Patterns
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource
from clivefs.mounts.git.space import GitRef, TreeSpace
from clivefs.mounts.tree import Attr, Blocked, OpenFile, Owner
from clivefs.objects.repository import Repository
from tests.mounts.stockgit import git

CONTENTS = {
    "unix.txt": b"one\ntwo\n",
    "dos.txt": b"one\r\ntwo\r\n",
    "mixed.txt": b"one\r\ntwo\nthree\rfour\n",
    "empty.txt": b"",
    "no-end.txt": b"one\ntwo",
    "binary.bin": b"one\n\0two\n",
    "run.bat": b"echo\nexit\n",
    "source.c": b"/* $Id$ */\nint x; /* $Id: old stuff $ */ $Id\n",
    "wide.ps1": "text with ü\nand more\n".encode(),
    "caf\udce9.txt": b"name\n",
    "two\nlines.txt": b"name\n",
    "sp ace.txt": b"name\n",
    "large.txt": b"a line of text\n" * 100_000,
}
RULES = {
    "nothing concerned": {"": "*.txt text=auto\n*.bin -text\n*.c text eol=lf\n"},
    "crlf by name": {"": "*.bat text eol=crlf\n"},
    "crlf for all": {"": "* text=auto eol=crlf\n*.bin binary\n"},
    "crlf without text": {"": "*.txt eol=crlf\n"},
    "ident": {"": "*.c ident\n"},
    "all together": {
        "": "* text=auto\n*.txt eol=crlf\n*.c ident eol=crlf\n*.ps1 working-tree-encoding=UTF-16LE eol=crlf\n"
    },
    "undone below": {"": "*.txt text eol=crlf\n", "sub": "*.txt -text -eol\n"},
    "only below": {"sub": "*.txt text eol=crlf\n"},
    "by path": {"": "sub/*.txt text eol=crlf\n/unix.txt text eol=crlf\n"},
    "macros": {"": "[attr]dos text eol=crlf\n[attr]windows dos\n*.txt windows\nunix.txt !eol -dos\n"},
    "quoted and ranges": {"": '"sp ace.txt" text eol=crlf\n[a-m]*.txt text eol=crlf\n'},
    "external filter": {"": "*.txt filter=evil diff=lfs -text\n*.bat filter=lfs text eol=crlf\n"},
    "crlf, the old word": {"": "*.txt crlf\n*.bat crlf=input eol=crlf\n"},
}


def committed(path: Path, rules: Mapping[str, str]) -> Path:
    path.mkdir()
    git(path, "init", "-q")
    for directory in ("", "sub"):
        (path / directory).mkdir(exist_ok=True)
        for name, content in CONTENTS.items():
            (path / directory / name).write_bytes(content)
    git(path, "add", ".")  # as they are: no conversion on the way in
    for directory, text in rules.items():
        (path / directory / ".gitattributes").write_text(text)
    git(path, "add", "--", *(os.path.join(directory, ".gitattributes") for directory in rules))
    git(path, "commit", "-qm", "one")
    return path


def shown(repo: Path, cache: Path, info: bytes = b"") -> dict[bytes, bytes]:
    """All content that the layer shows, by path; sizes checked against it."""
    cache.mkdir()
    tree = bytes.fromhex(git(repo, "rev-parse", "HEAD^{tree}"))
    converter = GitAttributes(str(cache), info_attributes=info)
    space = TreeSpace(Repository(repo), b"git:x", 0, converter=converter)
    lower = GitLower(space, tree, owner=Owner(0, 0), cache_dir=str(cache))
    found: dict[bytes, bytes] = {}
    pending: list[GitRef] = [lower.root]
    while pending:
        directory = pending.pop()
        for entry in lower.entries(directory):
            ref = lower.child(directory, entry.name)
            assert ref is not None
            if entry.kind == stat.S_IFDIR:
                pending.append(ref)
                continue
            file = waited(lambda ref=ref: lower.open(ref))  # type: ignore[misc]
            found[lower.path(ref)] = file.read(0, 1 << 24)
            file.close()
            attr = lower.attr(ref, fetch=False)
            assert not attr.unsized
            assert attr.size == len(found[lower.path(ref)])
    lower.close()
    assert not list(cache.glob("attributes-*"))
    return found


def waited(operation: Callable[[], OpenFile]) -> OpenFile:
    for _ in range(4):
        try:
            return operation()
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


def checked_out(repo: Path, path: Path) -> dict[bytes, bytes]:
    git(repo, "worktree", "add", "-q", "--detach", str(path), "HEAD")
    found: dict[bytes, bytes] = {}
    top = os.fsencode(path)
    for directory, _, names in os.walk(top):
        for name in names:
            full = os.path.join(directory, name)
            if name != b".git":
                with open(full, "rb") as file:
                    found[os.path.relpath(full, top)] = file.read()
    return found


@pytest.mark.parametrize("name", RULES)
def test_content_is_what_a_checkout_has(tmp_path: Path, name: str) -> None:
    repo = committed(tmp_path / "repo", RULES[name])
    ours = shown(repo, tmp_path / "cache")
    theirs = checked_out(repo, tmp_path / "tree")
    assert ours.keys() == theirs.keys()
    assert [path for path in ours if ours[path] != theirs[path]] == []


def test_rules_above_a_subdir_count(tmp_path: Path) -> None:
    repo = committed(tmp_path / "repo", RULES["all together"])
    source = GitSource("repo", "main", "sub", base_dir=str(tmp_path), store_dir=str(tmp_path / "store"))
    resolved = source.open()
    space = source.space(resolved, GitAttributes(str(tmp_path)))
    lower = GitLower(space, resolved.tree, owner=Owner(0, 0), cache_dir=str(tmp_path))
    theirs = checked_out(repo, tmp_path / "tree")
    for entry in lower.entries(lower.root):
        ref = lower.child(lower.root, entry.name)
        assert ref is not None
        with closing(waited(lambda ref=ref: lower.open(ref))) as file:  # type: ignore[misc]
            assert file.read(0, 1 << 24) == theirs[b"sub/" + entry.name]
    lower.close()


def test_the_repositorys_own_rules_count(tmp_path: Path) -> None:
    repo = committed(tmp_path / "repo", {})
    (repo / ".git" / "info").mkdir(exist_ok=True)
    (repo / ".git" / "info" / "attributes").write_text("*.txt text eol=crlf\n")
    assert shown(repo, tmp_path / "cache", b"*.txt text eol=crlf\n") == checked_out(repo, tmp_path / "tree")


def test_no_filter_of_the_users_ever_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = committed(tmp_path / "repo", RULES["external filter"])
    touched = tmp_path / "touched"
    home = tmp_path / "home"
    home.mkdir()
    text = f'[filter "evil"]\n\tsmudge = "touch {touched}; cat"\n[core]\n\tautocrlf = true\n'
    (home / ".gitconfig").write_text(text)
    with (repo / ".git" / "config").open("a") as config:
        config.write(text)
    monkeypatch.setenv("HOME", str(home))
    ours = shown(repo, tmp_path / "cache")
    assert not touched.exists()
    assert ours[b"unix.txt"] == CONTENTS["unix.txt"]
    assert ours[b"run.bat"] == b"echo\r\nexit\r\n"


def test_nothing_is_started_where_no_file_is_concerned(tmp_path: Path) -> None:
    repo = committed(tmp_path / "repo", RULES["nothing concerned"])
    tree = bytes.fromhex(git(repo, "rev-parse", "HEAD^{tree}"))
    space = TreeSpace(Repository(repo), b"git:x", 0, converter=GitAttributes(str(tmp_path)))
    lower = GitLower(space, tree, owner=Owner(0, 0), cache_dir=str(tmp_path))
    for entry in lower.entries(lower.root):
        ref = lower.child(lower.root, entry.name)
        assert ref is not None
        assert isinstance(lower.attr(ref, fetch=True), Attr)


def test_the_size_is_unknown_until_converted(tmp_path: Path) -> None:
    repo = committed(tmp_path / "repo", RULES["crlf by name"])
    tree = bytes.fromhex(git(repo, "rev-parse", "HEAD^{tree}"))
    space = TreeSpace(Repository(repo), b"git:x", 0, converter=GitAttributes(str(tmp_path)))
    lower = GitLower(space, tree, owner=Owner(0, 0), cache_dir=str(tmp_path))
    bat, txt = lower.find(b"sub/run.bat"), lower.find(b"sub/unix.txt")
    assert bat is not None
    assert txt is not None
    assert lower.attr(bat, fetch=False).unsized
    with pytest.raises(Blocked, match="converting 1 files of sub") as blocked:
        lower.attr(bat, fetch=True)
    blocked.value.job()
    blocked.value.job()
    assert lower.attr(bat, fetch=False).size == len(b"echo\r\nexit\r\n")
    for kept in tmp_path.glob("attributes-*/kept/*"):
        kept.unlink()
    assert waited(lambda: lower.open(bat)).read(0, 100) == b"echo\r\nexit\r\n"


@given(
    st.lists(st.sampled_from(["*.a", "b?", "*", "[ab]*", "/x", "d/**", "é*"]), max_size=3),
    st.sampled_from(["x.a", "bc", "é"]),
)
@settings(max_examples=60, deadline=None)
def test_the_first_look_never_says_no_wrongly(patterns: list[str], name: str) -> None:
    text = "".join(f"{pattern} eol=crlf\n" for pattern in patterns).encode()
    may = _Patterns([text]).may_concern(name.encode())
    surely = {"x.a": {"*.a", "*"}, "bc": {"b?", "*", "[ab]*"}, "é": {"*", "é*"}}[name]
    assert may or not surely.intersection(patterns)
