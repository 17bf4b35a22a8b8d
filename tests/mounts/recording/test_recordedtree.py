"""The editor of a tree and its metadata tree against a plain dictionary."""

from __future__ import annotations

import random
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.points.metadata import Facts
from clivefs.mounts.recording.recordedtree import RecordedTree, Subtree, Version
from clivefs.objects.encode import EMPTY_TREE, MODE_FILE, TreeEntry, hash_object
from clivefs.objects.errors import CorruptObject
from clivefs.objects.memory import MemoryStore
from tests.mounts.gitworlds import put_world, text
from tests.mounts.recording.worlds import contents

NAMES = [b"a", b"b", b"a.c", b"d"]
Model = dict[bytes, tuple[Version | None, Facts]]


def blob(content: bytes) -> Version:
    return Version(MODE_FILE, hash_object("blob", content))


def facts(kind: int, number: int) -> Facts:
    return Facts(kind | 0o640, 1_000_000_007 * number, number % 3, 5)


def random_path(rng: random.Random) -> bytes:
    return b"/".join(rng.choice(NAMES) for _ in range(rng.randint(1, 4)))


def drop(model: Model, path: bytes) -> None:
    for each in [each for each in model if each == path or each.startswith(path + b"/")]:
        del model[each]


def make_way(model: Model, path: bytes, like: Facts) -> None:
    parts = path.split(b"/")[:-1]
    for count in range(1, len(parts) + 1):
        above = b"/".join(parts[:count])
        if above not in model or not stat.S_ISDIR(model[above][1].mode):
            drop(model, above)
            model[above] = None, Facts(stat.S_IFDIR | 0o755, like.mtime_ns, like.uid, like.gid)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_edits_are_as_those_of_a_dictionary(seed: int) -> None:
    rng = random.Random(seed)
    store = MemoryStore()
    model: Model = {}
    tree = RecordedTree(store)
    for number in range(60):
        path = random_path(rng)
        what = rng.choice(["put", "put", "special", "mkdir", "remove", "write", "reopen", "subtree"])
        if what in ("put", "special", "mkdir"):
            kind = {"put": stat.S_IFREG, "special": stat.S_IFIFO, "mkdir": stat.S_IFDIR}[what]
            new = facts(kind, number)
            version = blob(b"%d" % (number % 5)) if what == "put" else None
            make_way(model, path, new)
            drop(model, path)
            model[path] = version, new
            if what == "mkdir":
                tree.put_tree(path, Subtree(EMPTY_TREE, None, new))
            else:
                tree.put(path, version, new)
        elif what == "remove":
            assert tree.remove(path) == (path in model)
            drop(model, path)
        else:
            with store.batch() as batch:
                if what == "subtree":
                    tree.subtree(path, batch)
                    continue
                base = tree.write(batch)
            if what == "reopen":
                tree = RecordedTree(store, *base)
    with store.batch() as batch:
        base = tree.write(batch)
    found = contents(store, base)
    found.pop(b"")
    assert found == model
    scratch = RecordedTree(store)
    for path in sorted(model):
        version, known = model[path]
        if stat.S_ISDIR(known.mode):
            scratch.put_tree(path, Subtree(EMPTY_TREE, None, known))
        else:
            scratch.put(path, version, known)
    with store.batch() as batch:
        assert scratch.write(batch) == base, "equal content has equal ids"


def test_an_inherited_directory_gets_records_when_it_changes() -> None:
    store = MemoryStore()
    lower = put_world(store, {b"x/y/f": text("1"), b"x/g": text("2", 0o100755), b"z/h": text("3")})
    own = Facts(stat.S_IFDIR | 0o755, 77, 8, 9, inherits=True)
    tree = RecordedTree(store)
    tree.put_tree(b"lib", Subtree(lower, None, own))
    with store.batch() as batch:
        base = tree.write(batch)
    tree = RecordedTree(store, *base)
    assert tree.get(b"lib/x/g") == (Version(0o100755, hash_object("blob", b"2")), Facts(0o100755, 77, 8, 9))
    tree.put_facts(b"lib/x", Facts(stat.S_IFDIR | 0o700, 78, 8, 9))
    with store.batch() as batch:
        base = tree.write(batch)
    tree = RecordedTree(store, *base)
    assert tree.get(b"lib/x")[1] == Facts(stat.S_IFDIR | 0o700, 78, 8, 9)
    assert tree.get(b"lib/x/g")[1] == Facts(0o100755, 77, 8, 9), "what it had inherited stays"
    assert tree.get(b"lib/x/y")[1] == Facts(stat.S_IFDIR | 0o755, 77, 8, 9, inherits=True)
    assert tree.get(b"lib/z")[1] == Facts(stat.S_IFDIR | 0o755, 77, 8, 9, inherits=True)
    assert tree.get(b"lib")[1] == Facts(stat.S_IFDIR | 0o755, 77, 8, 9)


def test_only_what_changed_is_written() -> None:
    class Counting(MemoryStore):
        staged = 0

        def stage(self, oid: bytes, kind: str, payload: bytes) -> bytes:
            self.staged += 1
            return super().stage(oid, kind, payload)

    store = Counting()
    tree = RecordedTree(store)
    for number in range(1000):
        tree.put(b"%d/%d/%d" % (number // 100, number // 10 % 10, number), blob(b""), facts(stat.S_IFREG, number))
    with store.batch() as batch:
        base = tree.write(batch)
    for again in (tree, RecordedTree(store, *base)):
        store.staged = 0
        again.put(b"3/3/333", blob(b"new %d" % id(again)), facts(stat.S_IFREG, 5))
        with store.batch() as batch:
            again.write(batch)
        assert store.staged <= 7, "three trees, three metadata trees, one of records"


def test_metadata_that_does_not_go_with_the_tree_is_refused() -> None:
    store = MemoryStore()
    tree = RecordedTree(store)
    tree.put(b"a", blob(b""), facts(stat.S_IFREG, 1))
    tree.put(b"d/b", blob(b""), facts(stat.S_IFREG, 1))
    with store.batch() as batch:
        recorded, meta = tree.write(batch)
        other = put_world(store, {b"d": text("a file")})
        records = batch.blob(b"nonsense")
        bad = batch.tree([TreeEntry(MODE_FILE, b"-", records)])
    for found in (RecordedTree(store, other, meta), RecordedTree(store, recorded, bad)):
        with pytest.raises(CorruptObject):
            found.get(b"a")
