"""A git tree as a lower layer: names, modes and content as in a checkout, and hostile trees."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import GitRef, Submodules, TreeSpace
from clivefs.mounts.tree import Blocked, Owner
from clivefs.objects.encode import TreeEntry
from clivefs.objects.memory import MemoryStore
from clivefs.objects.repository import Repository
from tests.mounts import stockgit

T = TypeVar("T")
TIME_NS = 1_600_000_000_000_000_000
ENVIRONMENT = {
    **stockgit.ENVIRONMENT,
    "GIT_AUTHOR_DATE": "1600000000 +0000",
    "GIT_COMMITTER_DATE": "1600000000 +0000",
}


def git(cwd: Path, *arguments: str | bytes, stdin: bytes = b"") -> bytes:
    result = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def waited(operation: Callable[[], T]) -> T:
    """The operation's result, having run what it waited for."""
    for _ in range(5):
        try:
            return operation()
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    path = tmp_path / "repo"
    path.mkdir()
    git(path, "init", "-q")
    return path


def tree_of(repo: Path, entries: list[tuple[str, bytes, bytes]]) -> bytes:
    """Write a tree as it is given, however bad; its name."""
    raw = b"".join(mode.encode() + b" " + name + b"\0" + oid for mode, name, oid in entries)
    return bytes.fromhex(git(repo, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", stdin=raw).decode())


def blob_of(repo: Path, content: bytes) -> bytes:
    return bytes.fromhex(git(repo, "hash-object", "-w", "--stdin", stdin=content).decode())


def lower_of(repo: Path, tree: bytes, submodules: Submodules | None = None, **options: object) -> GitLower:
    cache = repo.parent / "cache"
    cache.mkdir(exist_ok=True)
    space = TreeSpace(Repository(repo), b"git:" + b"0" * 40, TIME_NS, submodules=submodules)
    return GitLower(space, tree, owner=Owner(12, 34), cache_dir=str(cache), **options)  # type: ignore[arg-type]


def head_tree(repo: Path) -> bytes:
    return bytes.fromhex(git(repo, "rev-parse", "HEAD^{tree}").decode())


def found(lower: GitLower, path: bytes) -> GitRef:
    ref = lower.find(path)
    assert isinstance(ref, GitRef)
    return ref


def names(lower: GitLower, path: bytes = b"") -> list[bytes]:
    return [entry.name for entry in lower.entries(found(lower, path))]


def content(lower: GitLower, ref: GitRef) -> bytes:
    file = waited(lambda: lower.open(ref))
    try:
        return file.read(0, 1 << 24)
    finally:
        file.close()


def test_shows_what_a_checkout_would_make(repo: Path) -> None:
    odd = [b"caf\xe9", b"two\nlines", b"-dash", b"x" * 255, b"a b", b"#hash", "ü".encode()]
    for name in odd:
        Path(os.fsdecode(os.fsencode(repo) + b"/" + name)).write_bytes(name)
    (repo / "run").write_text("#!/bin/sh\n")
    (repo / "run").chmod(0o755)
    (repo / "link").symlink_to("../else/where")
    (repo / "big").write_bytes(os.urandom(1 << 20) + b"tail")
    (repo / "empty").write_bytes(b"")
    (repo / "a").mkdir()
    (repo / "a" / "deep").write_text("deep")
    (repo / "a-b").write_text("sorts between a and a/ in git")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "one")
    lower = lower_of(repo, head_tree(repo))
    expected = sorted(name for name in os.listdir(os.fsencode(repo)) if name != b".git")
    assert names(lower) == expected
    assert not lower.live
    for name in expected:
        ref = found(lower, name)
        attr = lower.attr(ref, fetch=True)
        on_disk = os.lstat(os.fsencode(repo) + b"/" + name)
        assert stat.S_IFMT(attr.mode) == stat.S_IFMT(on_disk.st_mode)
        assert (attr.uid, attr.gid, attr.mtime_ns) == (12, 34, TIME_NS)
        if stat.S_ISREG(attr.mode):
            assert attr.size == on_disk.st_size
            assert stat.S_IMODE(attr.mode) == (0o755 if name == b"run" else 0o644)
            assert content(lower, ref) == Path(os.fsdecode(os.fsencode(repo) + b"/" + name)).read_bytes()
            assert lower.open(ref).keep_cache
    link = found(lower, b"link")
    assert lower.readlink(link) == b"../else/where"
    assert lower.attr(link, fetch=True).size == len("../else/where")
    assert lower.attr(lower.root, fetch=True).nlink == 1
    assert lower.find(b"a/none") is None
    assert lower.find(b"run/below") is None
    with pytest.raises(OSError) as refused:
        lower.open(link)
    assert refused.value.errno == errno.ELOOP


def test_references_are_equal_for_one_file_and_tell_content_apart(repo: Path) -> None:
    same = blob_of(repo, b"same")
    inner = tree_of(repo, [("100644", b"f", same)])
    lower = lower_of(repo, tree_of(repo, [("40000", b"d", inner), ("40000", b"e", inner), ("100644", b"f", same)]))
    assert found(lower, b"d/f") == found(lower, b"d/f")
    assert hash(found(lower, b"d/f")) == hash(found(lower, b"d/f"))
    assert len({found(lower, path) for path in (b"d/f", b"e/f", b"f", b"d", b"e", b"")}) == 6
    assert len({lower.identity(found(lower, path)) for path in (b"d/f", b"e/f", b"f", b"d", b"e", b"")}) == 6
    changed = lower_of(repo, tree_of(repo, [("100644", b"f", blob_of(repo, b"new")), ("40000", b"d", inner)]))
    assert changed.identity(found(changed, b"f")) != lower.identity(found(lower, b"f"))
    assert changed.identity(found(changed, b"d")) == lower.identity(found(lower, b"d"))
    assert lower.path(found(lower, b"d/f")) == b"d/f"
    assert lower.describe(found(lower, b"f")) == {"layer": b"git:" + b"0" * 40, "oid": same.hex().encode()}


def test_times_may_differ_by_path(repo: Path) -> None:
    blob = blob_of(repo, b"x")
    tree = tree_of(repo, [("100644", b"f", blob), ("100644", b"g", blob)])
    lower = lower_of(repo, tree, times=lambda path, oid: 7 if (path, oid) == (b"g", blob) else 5)
    assert lower.attr(found(lower, b"f"), fetch=True).mtime_ns == 5
    assert lower.attr(found(lower, b"g"), fetch=True).mtime_ns == 7


@pytest.mark.warns
def test_bad_entries_are_hidden_and_told_once(repo: Path, caplog: pytest.LogCaptureFixture) -> None:
    blob = blob_of(repo, b"good")
    below = tree_of(repo, [("100644", b"f", blob)])
    bad = [b"..", b".", b"", b"a/b", b".git", b".GIT", b".git.", b"git~1", ".g\u200cit".encode(), b"n" * 300]
    entries = [("100644", name, blob) for name in bad]
    entries += [("40000", b"..", below), ("100644", b"twice", blob), ("100755", b"twice", blob)]
    entries += [("60000", b"mode", blob), ("100664", b"group", blob), ("100644", b"good", blob)]
    lower = lower_of(repo, tree_of(repo, entries))
    assert names(lower) == [b"good", b"group", b"twice"]
    assert names(lower) == [b"good", b"group", b"twice"]
    assert stat.S_IMODE(lower.attr(found(lower, b"group"), fetch=True).mode) == 0o644
    for name in [*bad, b"mode"]:
        assert lower.child(lower.root, name) is None
    assert len(caplog.records) == 1
    assert "not shown" in caplog.text


def test_a_tree_of_ten_billion_files_costs_nothing(repo: Path) -> None:
    tree = tree_of(repo, [("100644", b"%d" % number, blob_of(repo, b"x")) for number in range(10)])
    for _ in range(9):
        tree = tree_of(repo, [("40000", b"%d" % number, tree) for number in range(10)])
    lower = lower_of(repo, tree, tree_entries_max=50)
    assert len(names(lower, b"0/1/2/3/4/5/6/7/8")) == 10
    for path in (b"9/9/9/9/9/9/9/9/9/9", b"0/0/0/0/0/0/0/0/0/0"):
        assert content(lower, found(lower, path)) == b"x"


def test_a_tree_of_ten_thousand_levels_can_be_walked(tmp_path: Path) -> None:
    store = MemoryStore()
    with store.batch() as batch:
        oid = batch.tree([TreeEntry(0o100644, b"f", batch.blob(b"bottom"))])
        for _ in range(10_000):
            oid = batch.tree([TreeEntry(0o040000, b"dd", oid)])
    lower = GitLower(TreeSpace(store, b"git:x", TIME_NS), oid, owner=Owner(0, 0), cache_dir=str(tmp_path))
    ref = found(lower, b"dd/" * 10_000 + b"f")
    assert content(lower, ref) == b"bottom"
    assert ref == found(lower, lower.path(ref))
    assert len(lower.path(ref)) == 30_001
    assert hash(ref) == hash(found(lower, lower.path(ref)))


@pytest.mark.warns
def test_corrupt_and_missing_objects_are_eio(repo: Path) -> None:
    blob = blob_of(repo, b"x")
    lower = lower_of(repo, tree_of(repo, [("100644", b"lost", b"\1" * 20), ("40000", b"file", blob)]))
    with pytest.raises(OSError) as lost:
        lower.attr(found(lower, b"lost"), fetch=True)
    assert lost.value.errno == errno.EIO
    with pytest.raises(OSError) as no_tree:
        lower.entries(found(lower, b"file"))
    assert no_tree.value.errno == errno.EIO
    with pytest.raises(OSError) as nothing:
        lower.find(b"file/x")
    assert nothing.value.errno == errno.EIO


def test_hostile_symlinks_are_refused(repo: Path) -> None:
    targets = {b"long": b"x" * 5000, b"nul": b"a\0b", b"none": b"", b"shadow": b"/etc/shadow"}
    tree = tree_of(repo, [("120000", name, blob_of(repo, target)) for name, target in sorted(targets.items())])
    lower = lower_of(repo, tree)
    assert lower.readlink(found(lower, b"shadow")) == b"/etc/shadow"  # the kernel follows it, with the reader's rights
    for name, code in ((b"long", errno.ENAMETOOLONG), (b"nul", errno.EIO), (b"none", errno.EIO)):
        with pytest.raises(OSError) as refused:
            lower.readlink(found(lower, name))
        assert refused.value.errno == code


def test_a_large_directory_is_read_in_a_job(repo: Path) -> None:
    blob = blob_of(repo, b"x")
    entries = [("100644", b"file-with-a-longer-name-%06d" % number, blob) for number in range(30_000)]
    lower = lower_of(repo, tree_of(repo, entries))
    with pytest.raises(Blocked):
        lower.entries(lower.root)
    assert len(waited(lambda: lower.entries(lower.root))) == 30_000


def test_a_submodule_is_an_empty_directory_that_says_why(repo: Path) -> None:
    lower = lower_of(repo, tree_of(repo, [("160000", b"sub", b"\2" * 20)]))
    ref = found(lower, b"sub")
    assert stat.S_ISDIR(lower.attr(ref, fetch=True).mode)
    assert lower.entries(ref) == []
    assert lower.describe(ref)["layer"] == b"submodule:" + b"02" * 20 + b" (not fetched)"


def test_a_submodule_shows_its_content_where_that_can_be_had(repo: Path) -> None:
    inner = tree_of(repo, [("100644", b"f", blob_of(repo, b"inner"))])
    space = TreeSpace(Repository(repo), b"submodule:02", 9)

    class Here:
        def open(self, path: bytes, commit: bytes) -> tuple[TreeSpace, bytes] | str:
            assert (path, commit) == (b"d/sub", b"\2" * 20)
            return space, inner

    tree = tree_of(repo, [("40000", b"d", tree_of(repo, [("160000", b"sub", b"\2" * 20)]))])
    lower = lower_of(repo, tree, submodules=Here())
    ref = found(lower, b"d/sub/f")
    assert content(lower, ref) == b"inner"
    assert lower.attr(ref, fetch=True).mtime_ns == 9
    assert lower.path(ref) == b"d/sub/f"
    assert lower.describe(ref)["layer"] == b"submodule:02"
