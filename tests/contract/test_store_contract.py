"""What every object store does, on disk and in memory."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.objects.encode import (
    EMPTY_TREE,
    MODE_FILE,
    MODE_GITLINK,
    MODE_TREE,
    Commit,
    Signature,
    TreeEntry,
    encode_tree,
    hash_object,
)
from clivefs.objects.errors import (
    ContentChanged,
    CorruptObject,
    InvalidName,
    MetaConflict,
    ObjectMissing,
    ObjectTooLarge,
    RefConflict,
)
from clivefs.objects.fsck import fsck
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store

WHO = Signature(b"A U Thor", b"author@example.org", 1_700_000_000, b"+0100")
LARGE = os.urandom(1 << 20) + b"one byte more"


@pytest.fixture(params=["disk", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    with Store.open(tmp_path / "store") if request.param == "disk" else MemoryStore() as opened:
        yield opened
        assert fsck(opened) == []


@pytest.mark.parametrize("data", [b"", b"x", b"text " * 1000, os.urandom(70_000), b"\0" * (1 << 20)])
def test_a_blob_comes_back(store: ObjectStore, data: bytes) -> None:
    with store.batch() as batch:
        oid = batch.blob(data)
    assert oid == hash_object("blob", data)
    assert store.read(oid) == ("blob", data)
    assert store.header(oid) == ("blob", len(data))
    assert store.has(oid)
    assert store.open_large(oid) is None


def test_nothing_is_there_before_the_block_ends(store: ObjectStore) -> None:
    with store.batch() as batch:
        oid = batch.blob(b"x")
        batch.set_ref("refs/heads/main", oid)
        assert store.get_ref("refs/heads/main") is None
    assert store.get_ref("refs/heads/main") == oid


def test_a_batch_whose_block_raises_moves_no_ref(store: ObjectStore) -> None:
    with pytest.raises(KeyError), store.batch() as batch:  # noqa: PT012
        batch.set_ref("refs/heads/main", batch.blob(b"x"))
        batch.meta_put("allow", b"k", b"v")
        raise KeyError
    assert store.refs() == {}
    assert store.meta_get("allow", b"k") is None


def test_a_batch_need_not_be_waited_for(store: ObjectStore) -> None:
    with store.batch(wait=False) as batch:
        oid = batch.blob(b"x")
    assert batch.future is not None
    assert batch.future.result(10) is None
    assert store.read(oid) == ("blob", b"x")


def test_a_large_batch_arrives_whole(store: ObjectStore) -> None:
    with store.batch() as batch:
        entries = [TreeEntry(MODE_FILE, b"%d" % number, batch.blob(b"%d" % number)) for number in range(2000)]
        batch.set_ref("refs/heads/main", batch.tree(entries))
    tree = store.get_ref("refs/heads/main")
    assert tree is not None
    assert sorted(store.read_tree(tree)) == sorted(entries)
    assert len(list(store.names())) == 2001
    assert list(store.names()) == sorted(store.names())


@pytest.mark.parametrize("by_file", [False, True])
def test_a_large_blob_is_a_file(store: ObjectStore, tmp_path: Path, by_file: bool) -> None:
    (tmp_path / "source").write_bytes(LARGE)
    if by_file:
        oid = store.put_large(tmp_path / "source")
    else:
        with store.batch() as batch:
            oid = batch.blob(LARGE)
    assert oid == hash_object("blob", LARGE)
    assert store.header(oid) == ("blob", len(LARGE))
    with pytest.raises(ObjectTooLarge):
        store.read(oid)
    fd = store.open_large(oid)
    assert fd is not None
    assert os.pread(fd, len(LARGE) + 1, 0) == LARGE
    with pytest.raises(OSError):
        os.write(fd, b"x")
    os.close(fd)


def test_a_descriptor_keeps_its_offset(store: ObjectStore, tmp_path: Path) -> None:
    for content in (b"small", LARGE):
        (tmp_path / "source").write_bytes(content)
        with open(tmp_path / "source", "rb") as file:
            file.seek(3)
            assert store.put_large(file.fileno()) == hash_object("blob", content)
            assert file.tell() == 3


def test_only_a_regular_file_can_be_stored(store: ObjectStore, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OSError):
            store.put_large(tmp_path / name)


def test_a_file_that_shrinks_is_not_stored(store: ObjectStore, tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(LARGE)
    fd = os.open(path, os.O_RDWR)
    path.write_bytes(b"short")
    with pytest.raises(ContentChanged):
        store.stage_file(fd, len(LARGE))
    os.close(fd)
    assert list(store.names()) == []


def test_trees_and_commits(store: ObjectStore) -> None:
    with store.batch() as batch:
        blob = batch.blob(b"x")
        inner = batch.tree([TreeEntry(MODE_FILE, b"f", blob)])
        submodule = TreeEntry(MODE_GITLINK, b"sub", b"\1" * 20)
        outer = batch.tree([TreeEntry(MODE_TREE, b"d", inner), TreeEntry(MODE_FILE, b"d.txt", blob), submodule])
        empty = batch.tree([])
        commit = Commit(outer, (), WHO, WHO, b"message\n")
        first = batch.commit(commit)
        second = batch.commit(commit._replace(parents=(first,), tree=empty))
        batch.set_ref("refs/heads/main", second)
    assert empty == EMPTY_TREE
    assert [entry.name for entry in store.read_tree(outer)] == [b"d.txt", b"d", b"sub"]
    assert store.read_commit(first) == commit
    assert store.read_commit(second).parents == (first,)
    with pytest.raises(CorruptObject, match="not a tree"):
        store.read_tree(first)


def test_what_is_missing_says_so(store: ObjectStore) -> None:
    absent = b"\7" * 20
    for ask in (store.read, store.header, store.open_large, store.read_tree, store.read_commit):
        with pytest.raises(ObjectMissing) as caught:
            ask(absent)
        assert caught.value.oid == absent
    assert not store.has(absent)


def test_what_is_not_trusted_is_checked(store: ObjectStore) -> None:
    payload = encode_tree([])
    with store.batch() as batch:
        assert batch.put("tree", payload, expect=EMPTY_TREE) == EMPTY_TREE
        with pytest.raises(CorruptObject, match="has the name"):
            batch.put("tree", b"100644 f\0short", expect=EMPTY_TREE)
        for kind, bad in (("tree", b"100644 f\0short"), ("commit", b"author x\n"), ("tag", b"object 12\n")):
            with pytest.raises(CorruptObject):
                batch.put(kind, bad, expect=hash_object(kind, bad))
    assert list(store.names()) == [EMPTY_TREE]


def test_compare_and_swap(store: ObjectStore) -> None:
    with store.batch() as batch:
        one, two = batch.blob(b"1"), batch.blob(b"2")
        batch.set_ref("refs/clive/a", one, None)
    with pytest.raises(RefConflict) as caught, store.batch() as batch:  # noqa: PT012
        lost = batch.blob(b"lost")
        batch.set_ref("refs/clive/b", one)
        batch.set_ref("refs/clive/a", two, None)
    assert (caught.value.expected, caught.value.found) == (None, one)
    assert store.refs() == {"refs/clive/a": one}
    assert not store.has(lost)
    with store.batch() as batch:
        batch.set_ref("refs/clive/a", two, one)
        batch.set_ref("refs/clive/a", one, two)  # sees the change before it
        batch.set_ref("refs/clive/b", two)
    assert store.refs() == {"refs/clive/a": one, "refs/clive/b": two}
    with pytest.raises(RefConflict), store.batch() as batch:
        batch.set_ref("refs/clive/a", None, two)
    with store.batch() as batch:
        batch.set_ref("refs/clive/a", None, one)
        batch.set_ref("refs/clive/never", None)
    assert store.refs() == {"refs/clive/b": two}


def test_refs_by_prefix(store: ObjectStore) -> None:
    names = ["refs/clive/a/1", "refs/clive/a/2", "refs/clive/ab", "refs/heads/\udcff", "refs/heads/é"]
    with store.batch() as batch:
        oid = batch.blob(b"")
        for name in reversed(names):
            batch.set_ref(name, oid)
    assert list(store.refs()) == [*names[:3], "refs/heads/é", "refs/heads/\udcff"]
    assert list(store.refs("refs/clive/a/")) == names[:2]
    assert store.get_ref("refs/heads/\udcff") == oid


@pytest.mark.parametrize(
    "name",
    ["main", "refs/", "refs/a..b", "refs/a b", "refs/.a", "refs/a/.b", "refs/a.lock", "refs/a.lock/b", "refs/a//b",
     "refs/a/", "refs/a.", "refs/a@{b", "refs/a\\b", "refs/a\nb", "refs/a*", "refs/" + "x" * 500, "refs/\ud800"],
)  # fmt: skip
def test_names_that_cannot_be_refs(store: ObjectStore, name: str) -> None:
    with pytest.raises(InvalidName), store.batch() as batch:
        batch.set_ref(name, EMPTY_TREE)
    with pytest.raises(InvalidName):
        store.get_ref(name)


def test_a_ref_cannot_be_a_directory_too(store: ObjectStore) -> None:
    with store.batch() as batch:
        oid = batch.blob(b"")
        batch.set_ref("refs/a/b", oid)
    for name in ("refs/a", "refs/a/b/c", "refs/a/b/c/d"):
        with pytest.raises(InvalidName), store.batch() as batch:
            batch.set_ref(name, oid)
    with store.batch() as batch:
        batch.set_ref("refs/a/b/c", oid)
        batch.set_ref("refs/a/b", None)
        batch.set_ref("refs/a/bc", oid)
    assert list(store.refs()) == ["refs/a/b/c", "refs/a/bc"]


def test_records(store: ObjectStore) -> None:
    long_key = b"/long" * 200
    with store.batch() as batch:
        batch.meta_put("allow", b"b", b"2", None)
        batch.meta_put("allow", b"a", b"")
        batch.meta_put("allow", long_key, b"3", None)
        batch.meta_put("allow-not", b"a", b"other")
        batch.note_size(b"\1" * 20, 5_000_000_000)
    assert store.meta_get("allow", b"a") == b""
    assert store.meta_get("allow", long_key) == b"3"
    assert store.meta_get("allow", b"c") is None
    assert sorted(store.meta_items("allow")) == [(long_key, b"3"), (b"a", b""), (b"b", b"2")]
    assert list(store.meta_items("other")) == []
    assert store.size_of(b"\1" * 20) == 5_000_000_000
    assert store.size_of(b"\2" * 20) is None
    with pytest.raises(MetaConflict), store.batch() as batch:  # noqa: PT012
        batch.meta_put("allow", b"c", b"x")
        batch.meta_put("allow", b"b", b"3", b"not that")
    assert store.meta_get("allow", b"c") is None
    with store.batch() as batch:
        batch.meta_put("allow", b"b", b"3", b"2")
        batch.meta_put("allow", long_key, None, b"3")
    assert dict(store.meta_items("allow")) == {b"a": b"", b"b": b"3"}
    with pytest.raises(InvalidName):
        store.meta_get("A b", b"")


def test_records_in_a_range(store: ObjectStore) -> None:
    keys = [b"", b"\0", b"a", b"a\0", b"ab", b"b", b"k" * 400, b"\xff", b"\xff\xff"]
    with store.batch() as batch:
        for key in reversed(keys):
            batch.meta_put("times", key, b"of " + key)
        for neighbour in ("time", "times.x", "timet"):
            batch.meta_put(neighbour, b"a", b"")
        batch.meta_put("times", b"k" * 401, b"too long to be in order")
    records = [(key, b"of " + key) for key in keys]
    assert store.meta_range("times", b"", None) == records
    assert store.meta_range("times", b"", None, reverse=True) == records[::-1]
    bounds = [*keys, b"aa", b"k" * 399, b"k" * 401, b"k" * 401 + b"x", b"l" * 600, b"\xff" * 3]
    for start in bounds:
        for end in [*bounds, None]:
            found = [record for record in records if start <= record[0] and (end is None or record[0] < end)]
            assert store.meta_range("times", start, end) == found
            assert store.meta_range("times", start, end, reverse=True) == found[::-1]
            assert store.meta_range("times", start, end, limit=2) == found[:2]
            assert store.meta_range("times", start, end, reverse=True, limit=1) == found[::-1][:1]
    assert store.meta_range("times", b"", None, limit=0) == []
    assert store.meta_range("none", b"", None) == store.meta_range("zzz", b"", None, reverse=True) == []
    with pytest.raises(InvalidName):
        store.meta_range("A b", b"", None)


def test_many_threads_count_together(store: ObjectStore) -> None:
    def count() -> None:
        done = 0
        while done < 20:
            old = store.meta_get("count", b"")
            try:
                with store.batch() as batch:
                    batch.blob(os.urandom(100))
                    batch.meta_put("count", b"", b"%d" % (int(old or b"0") + 1), old)
                done += 1
            except MetaConflict:
                pass

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert store.meta_get("count", b"") == b"80"
    assert len(list(store.names())) >= 80
