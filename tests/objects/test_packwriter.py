"""Packs that git takes in, and which objects go into one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.objects.encode import EMPTY_TREE, MODE_FILE, MODE_GITLINK, MODE_TREE, Commit, Signature, TreeEntry
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.interface import ObjectStore
from clivefs.objects.packwriter import new_trees, tree_objects, write_pack
from clivefs.objects.store import Store
from clivefs.objects.values import LARGE_BYTES

CHUNK = 1 << 16


class Objects:
    """A store with the chunks of its large blobs."""

    def __init__(self, store: ObjectStore) -> None:
        self.read = store.read
        self.read_tree = store.read_tree
        self._store = store

    def chunks(self, oid: bytes) -> Iterator[bytes]:
        fd = self._store.open_large(oid)
        assert fd is not None
        with open(fd, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk


def git(directory: Path, *args: str, stdin: bytes | None = None) -> bytes:
    return subprocess.run(
        ["git", *args], cwd=directory, input=stdin, capture_output=True, check=True, timeout=60
    ).stdout


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened


@pytest.mark.parametrize("size", [0, 1, 15, 16, 2047, 2048, LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES + 7])
def test_git_takes_every_size(tmp_path: Path, store: Store, size: int) -> None:
    content = bytes(range(256)) * (size // 256) + bytes(size % 256)
    with store.batch() as batch:
        blob = batch.blob(content)
        tree = batch.tree([TreeEntry(MODE_FILE, b"file", blob)])
        who = Signature(b"A", b"a@b", 1_700_000_000, b"+0000")
        commit = batch.commit(Commit(tree, (), who, who, b"one\n"))
    oids = [commit, *tree_objects(Objects(store), tree, set())]
    pack = bytearray()
    assert write_pack(Objects(store), oids, pack.extend) == len(pack)
    git(tmp_path, "init", "-q", "--bare", "repo")
    repository = tmp_path / "repo"
    git(repository, "index-pack", "--stdin", "--strict", "--fsck-objects", stdin=bytes(pack))
    git(repository, "update-ref", "refs/heads/main", commit.hex())
    git(repository, "fsck", "--strict")
    assert git(repository, "cat-file", "blob", "main:file") == content


def test_only_what_is_new_is_named(store: Store) -> None:
    with store.batch() as batch:
        one, two, three = (batch.blob(text) for text in (b"1", b"2", b"3"))
        same = batch.tree([TreeEntry(MODE_FILE, b"x", one)])
        old_inner = batch.tree([TreeEntry(MODE_FILE, b"y", two), TreeEntry(MODE_GITLINK, b"z", b"\1" * 20)])
        new_inner = batch.tree([TreeEntry(MODE_FILE, b"y", three), TreeEntry(MODE_GITLINK, b"z", b"\1" * 20)])
        before = batch.tree([TreeEntry(MODE_TREE, b"a", same), TreeEntry(MODE_TREE, b"b", old_inner)])
        after = batch.tree([TreeEntry(MODE_TREE, b"a", same), TreeEntry(MODE_TREE, b"b", new_inner)])
        batch.put("tree", b"")
    source = Objects(store)
    assert set(new_trees(source, after, before, set())) == {after, new_inner, three}
    assert set(new_trees(source, after, None, set())) == {after, same, one, new_inner, three}
    assert list(new_trees(source, after, after, set())) == []
    assert set(new_trees(source, after, EMPTY_TREE, {one})) == {after, same, new_inner, three}
    assert set(new_trees(source, EMPTY_TREE, after, set())) == {EMPTY_TREE}


def test_a_missing_object_is_named(store: Store) -> None:
    with pytest.raises(ObjectMissing, match="0101"):
        write_pack(Objects(store), [b"\1" * 20], lambda data: None)
