"""Sessions as a repository that stock git reads."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.export import session_refs, update
from clivefs.objects.encode import MODE_FILE, MODE_TREE, Commit, Signature, TreeEntry
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.store import Store
from clivefs.objects.values import LARGE_BYTES

WORKSPACE = "w"


def git(directory: Path, *args: str) -> str:
    return subprocess.run(
        ["git", *args], cwd=directory, capture_output=True, check=True, timeout=60, text=True
    ).stdout.strip()


class History:
    """Points of a workspace, made by hand."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(path / "store")
        scratch = path / "scratch"
        scratch.mkdir()
        self.source = JoinedObjects((self.store,), str(scratch))
        self.head: bytes | None = None
        self.view = path / "view"

    def point(self, session: str, files: dict[str, bytes], second: int) -> bytes:
        with self.store.batch() as batch:
            inner = batch.tree(TreeEntry(MODE_FILE, name.encode(), batch.blob(data)) for name, data in files.items())
            tree = batch.tree([TreeEntry(MODE_TREE, b"dir", inner)])
            who = Signature(b"clivefs", b"clivefs@here", 1_700_000_000 + second)
            parents = (self.head,) if self.head is not None else ()
            self.head = batch.commit(Commit(tree, parents, who, who, b"point %d\n" % second))
            batch.set_ref(f"refs/clive/sessions/{WORKSPACE}/{session}", self.head)
        return self.head

    def update(self, directory: Path | None = None) -> int:
        refs = session_refs(self.store, WORKSPACE)
        return update(str(directory or self.view), refs, self.source, head=max(refs))


@pytest.fixture
def history(tmp_path: Path) -> Iterator[History]:
    made = History(tmp_path)
    yield made
    made.store.close()


def packed(view: Path) -> int:
    (count,) = [line for line in git(view, "count-objects", "-v").splitlines() if line.startswith("in-pack:")]
    return int(count.split()[1])


def test_git_reads_sessions(history: History) -> None:
    history.point("one", {"a": b"1\n"}, 1)
    history.point("one", {"a": b"2\n"}, 2)
    history.point("two", {"a": b"2\n", "b": bytes(LARGE_BYTES + 5)}, 3)
    assert history.update() == 3
    assert git(history.view, "log", "--format=%s").splitlines() == ["point 3", "point 2", "point 1"]
    assert git(history.view, "log", "--format=%s", "refs/clive/sessions/one").splitlines() == ["point 2", "point 1"]
    assert "+2" in git(history.view, "log", "-p", "-1", "refs/clive/sessions/one")
    assert git(history.view, "cat-file", "-s", "HEAD:dir/b") == str(LARGE_BYTES + 5)
    git(history.view, "fsck", "--strict", "--no-dangling")


def test_an_update_packs_only_what_is_new(history: History) -> None:
    history.point("one", {str(n): b"%d" % n for n in range(200)}, 1)
    history.update()
    before = packed(history.view)
    assert history.update() == 0
    history.point("one", {**{str(n): b"%d" % n for n in range(200)}, "7": b"seven"}, 2)
    assert history.update() == 1
    assert packed(history.view) == before + 4, "a commit, two trees and a blob"
    git(history.view, "fsck", "--strict")


def test_a_session_that_is_gone_is_gone_there_too(history: History) -> None:
    history.point("one", {"a": b"1"}, 1)
    history.point("two", {"a": b"2"}, 2)
    history.update()
    with history.store.batch() as batch:
        batch.set_ref(f"refs/clive/sessions/{WORKSPACE}/one", None)
    history.update()
    names = git(history.view, "for-each-ref", "--format=%(refname)").splitlines()
    assert names == ["refs/clive/sessions/two", "refs/heads/latest"]


def test_what_another_repository_has_is_borrowed(history: History, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    (other / "dir").mkdir()
    (other / "dir/a").write_bytes(b"borrowed")
    git(other, "add", "-A")
    theirs = bytes.fromhex(git(other, "write-tree"))
    blob = bytes.fromhex(git(other, "rev-parse", f"{theirs.hex()}:dir/a"))
    inner = bytes.fromhex(git(other, "rev-parse", f"{theirs.hex()}:dir"))
    history.point("one", {"a": b"borrowed"}, 1)
    refs = session_refs(history.store, WORKSPACE)
    objects = str(other / ".git/objects")
    update(
        str(history.view),
        refs,
        history.source,
        head="one",
        elsewhere=lambda oid: oid in (theirs, blob, inner),
        alternates=(objects,),
    )
    assert packed(history.view) == 1, "the commit alone"
    assert git(history.view, "show", "HEAD:dir/a") == "borrowed"


def test_what_is_no_repository_is_left_alone(history: History, tmp_path: Path) -> None:
    history.point("one", {"a": b"1"}, 1)
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "file").write_text("mine")
    with pytest.raises(ClivefsError, match="neither empty"):
        history.update(taken)
    assert os.listdir(taken) == ["file"]


def test_a_missing_object_leaves_the_refs(history: History) -> None:
    history.point("one", {"a": b"1"}, 1)
    history.update()
    before = git(history.view, "for-each-ref")
    with history.store.batch() as batch:
        who = Signature(b"clivefs", b"clivefs@here", 1)
        broken = batch.commit(Commit(b"\1" * 20, (), who, who, b"broken\n"))
        batch.set_ref(f"refs/clive/sessions/{WORKSPACE}/one", broken)
    with pytest.raises(ObjectMissing):
        history.update()
    assert git(history.view, "for-each-ref") == before
    assert not [name for name in os.listdir(history.view / "objects/pack") if name.startswith("tmp")]
