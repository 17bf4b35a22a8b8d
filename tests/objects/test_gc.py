"""A collection removes what nothing leads to, and nothing else, whoever writes meanwhile."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.ports import FAULTS
from clivefs.objects import gc
from clivefs.objects.encode import MODE_FILE, MODE_TREE, Commit, Signature, TreeEntry, decode_commit
from clivefs.objects.fsck import fsck
from clivefs.objects.gcmarks import Marks
from clivefs.objects.store import Store

LARGE = b"clivefs " * 140_000
WHO = Signature(b"A U Thor", b"author@example.org", 1_700_000_000, b"+0100")


class Refs:
    """Refs and nothing else are the roots; a commit keeps its parents."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def fresh(self) -> Iterator[bytes]:
        yield from self._store.refs("").values()

    def of_commit(self, oid: bytes, payload: bytes) -> Iterable[bytes]:
        commit = decode_commit(payload)
        return (commit.tree, *commit.parents)


@pytest.fixture(autouse=True)
def no_faults() -> Iterator[None]:
    yield
    FAULTS.clear()


def collect(store: Store, *, dry_run: bool = False) -> gc.Swept:
    roots = Refs(store)
    with gc.one_at_a_time(store):
        return gc.sweep(store, roots, gc.look(store, roots), dry_run=dry_run)


def put(store: Store, ref: str | None, text: bytes, parents: tuple[bytes, ...] = ()) -> tuple[bytes, bytes, bytes]:
    """(commit, tree, blob) of a new commit of one file."""
    with store.batch() as batch:
        blob = batch.blob(text)
        tree = batch.tree([TreeEntry(MODE_TREE, b"d", batch.tree([TreeEntry(MODE_FILE, b"f", blob)]))])
        commit = batch.commit(Commit(tree, parents, WHO, WHO, b""))
        if ref is not None:
            batch.set_ref(ref, commit)
    return commit, tree, blob


def test_what_a_ref_leads_to_stays_and_the_rest_goes(store: Store) -> None:
    first = put(store, None, b"first")
    second = put(store, "refs/heads/main", b"second", (first[0],))
    lost = put(store, None, b"lost")
    swept = collect(store)
    assert swept.objects == 4
    assert all(store.has(oid) for oid in (*first, *second))
    assert not any(store.has(oid) for oid in lost)
    assert collect(store).objects == 0


def test_a_dry_run_removes_nothing(store: Store) -> None:
    lost = put(store, None, b"lost")
    swept = collect(store, dry_run=True)
    assert (swept.objects, swept.bytes > 0) == (4, True)
    assert all(store.has(oid) for oid in lost)


def test_the_file_of_a_large_blob_goes_with_it(store: Store) -> None:
    with store.batch() as batch:
        kept, lost = batch.blob(LARGE), batch.blob(LARGE + b"x")
        batch.set_ref("refs/heads/large", kept)
    swept = collect(store)
    assert (swept.objects, swept.bytes > len(LARGE)) == (1, True)
    names = [name for _, _, names in os.walk(os.path.join(store.path, "large")) for name in names]
    assert names == [kept.hex()[2:]]
    assert not store.has(lost)


def test_an_old_large_file_without_a_record_goes(store: Store) -> None:
    oid = _orphan(store)
    folder = os.path.join(store.path, "large", oid.hex()[:2])
    collect(store)
    assert os.listdir(folder) == [oid.hex()[2:]]  # it may be of a batch that has not ended
    os.utime(os.path.join(folder, oid.hex()[2:]), (1, 1))
    collect(store)
    assert os.listdir(folder) == []


def _orphan(store: Store) -> bytes:
    fd = os.memfd_create("large")
    try:
        os.write(fd, LARGE)
        return store.stage_file(fd, len(LARGE))[0]
    finally:
        os.close(fd)


def test_what_is_written_while_it_marks_stays(store: Store) -> None:
    """Also what the new batch did not write, as it was there, and nothing led to it."""
    lost = put(store, None, b"lost")
    found = put(store, None, b"found again")
    new: list[tuple[bytes, bytes, bytes]] = []
    FAULTS.plant("gc.looked", lambda: new.append(put(store, "refs/heads/a", b"found again")))
    collect(store)
    assert new == [found]
    assert all(store.has(oid) for oid in found)
    assert not any(store.has(oid) for oid in lost)


def test_what_a_batch_relies_on_stays_until_it_ends(store: Store) -> None:
    put(store, None, b"relied on")
    begun, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with store.batch() as batch:
            blob = batch.blob(b"relied on")  # it is there: nothing is written
            begun.set()
            assert go_on.wait(30)
            batch.set_ref("refs/heads/late", blob)

    writer = threading.Thread(target=write)
    writer.start()
    assert begun.wait(30)
    collector = threading.Thread(target=collect, args=(store,))
    collector.start()
    go_on.set()
    collector.join(30)
    writer.join(30)
    assert not collector.is_alive()
    late = store.get_ref("refs/heads/late")
    assert late is not None
    assert store.has(late)


def test_a_collection_waits_for_a_reader_and_says_so(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long he takes."""
    put(store, None, b"lost")
    monkeypatch.setattr(gc, "_BUSY_S", 0.01)
    monkeypatch.setattr(gc, "_TELL_S", 0.01)
    told: list[str] = []
    store.hold()
    try:

        def progress(text: str) -> None:
            told.append(text)
            if sum("waiting" in each for each in told) == 3:
                store.let_go()

        roots = Refs(store)
        swept = gc.sweep(store, roots, gc.look(store, roots), progress=progress)
    finally:
        if sum("waiting" in each for each in told) < 3:
            store.let_go()
    assert swept.objects == 4
    assert f"(process {os.getpid()})" in next(each for each in told if "waiting" in each)


def test_a_collection_whose_time_is_over_waits_no_longer(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    lost = put(store, None, b"lost")
    monkeypatch.setattr(gc, "_BUSY_S", 0.05)
    roots = Refs(store)
    reach = gc.look(store, roots)
    asked = iter([False])
    with store.reading(), pytest.raises(gc.Busy, match="all the time"):
        gc.sweep(store, roots, reach, is_over=lambda: next(asked, True))
    assert all(store.has(oid) for oid in lost)
    assert collect(store).objects == 4


def test_there_is_one_collection_at_a_time(store: Store) -> None:
    with gc.one_at_a_time(store), pytest.raises(gc.Busy, match="under way"):
        collect(store)


@given(names=st.sets(st.binary(min_size=20, max_size=20), max_size=60), data=st.data())
@settings(max_examples=60)
def test_marks_are_a_set(names: set[bytes], data: st.DataObject) -> None:
    marks = Marks(sorted(names))
    pool = st.one_of(st.sampled_from(sorted(names)), st.binary(min_size=20, max_size=20)) if names else st.nothing()
    chosen = data.draw(st.lists(pool, max_size=30)) if names else []
    model: set[bytes] = set()
    for name in chosen:
        expected = None if name not in names else name not in model
        assert marks.mark(name) is expected
        if name in names:
            model.add(name)
        assert marks.is_marked(name) == (name in model)
    assert list(marks.unmarked()) == sorted(names - model)
    assert len(marks) == len(names)


def test_names_that_overlap_are_told_apart() -> None:
    one, two = b"\0" * 19 + b"\1", b"\0" * 18 + b"\1\0"
    marks = Marks(sorted((one, two)))
    assert b"\0" * 20 not in marks
    assert marks.mark(two) is True
    assert list(marks.unmarked()) == [one]


def test_a_store_is_sound_after_each_fault(store: Store) -> None:
    class Killed(BaseException):
        pass

    def die() -> None:
        raise Killed

    kept = put(store, "refs/heads/main", b"kept")
    for fault in ("gc.looked", "store.removed", "gc.removed", "gc.swept"):
        put(store, None, b"lost to " + fault.encode())
        FAULTS.plant(fault, die)
        with pytest.raises(Killed):
            collect(store)
        FAULTS.clear()
        assert fsck(store) == []
        assert all(store.has(oid) for oid in kept)
    collect(store)
    assert sorted(store.names()) == sorted({*kept, *(entry.oid for entry in store.read_tree(kept[1]))})
