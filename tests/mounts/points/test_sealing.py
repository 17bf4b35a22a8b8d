"""Sealed history is all there, in less space, however sealing ends."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clivefs.base.ports import FAULTS
from clivefs.mounts.points import collection, sealing
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects import gc
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.points.pointworlds import WORKSPACE, File, History, directory, regular

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
LARGE = b"clivefs " * 140_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        FAULTS.clear()
        assert fsck(opened, roots=StoreRoots(opened).fresh()) == []


class Edited:
    """A workspace of some files, edited one line at a time."""

    def __init__(self, store: Store) -> None:
        self.history = History(store)
        self.random = random.Random(7)
        self.files = {
            b"d%d" % folder: {b"f%d" % number: [b"line %d" % each for each in range(60)] for number in range(6)}
            for folder in range(4)
        }
        self.large = LARGE

    def save(self, count: int) -> list[Point]:
        made = []
        for _ in range(count):
            folder = self.files[self.random.choice(sorted(self.files))]
            lines = folder[self.random.choice(sorted(folder))]
            lines[self.random.randrange(len(lines))] = b"edit %d" % self.random.randrange(10**9)
            made.append(self.history.record(self._state(), after_ms=MINUTE))
        return made

    def _state(self) -> File:
        folders = {
            name: directory(
                {
                    file: regular(b"\n".join(lines), mtime_ns=hash(tuple(lines)) & (1 << 60) - 1)
                    for file, lines in files.items()
                }
            )
            for name, files in self.files.items()
        }
        return directory({**folders, b"large": regular(self.large)})


def everything(store: Store) -> dict[bytes, tuple[str, bytes | int]]:
    """All that points lead to, read."""
    found: dict[bytes, tuple[str, bytes | int]] = {}
    waiting = [each.oid for each in Points(store, WORKSPACE).between(0, MS_MAX)]
    roots = StoreRoots(store)
    while waiting:
        oid = waiting.pop()
        if oid in found or oid == EMPTY_TREE:
            continue
        kind, size = store.header(oid)
        if kind == "blob" and size > 1 << 20:
            found[oid] = kind, size
            fd = store.open_large(oid)
            assert fd is not None
            os.close(fd)
            continue
        found[oid] = store.read(oid)
        assert store.header(oid) == (kind, len(store.read(oid)[1]))
        if kind == "commit":
            waiting += roots.of_commit(oid, store.read(oid)[1])
        elif kind == "tree":
            waiting += [entry.oid for entry in store.read_tree(oid)]
    return found


def seal(store: Store, now_ms: int, points_min: int = 1, slice_objects: int = sealing.SLICE_OBJECTS) -> None:
    with gc.one_at_a_time(store):
        sealing.seal(store, now_ms, points_min=points_min, slice_objects=slice_objects)


class Killed(BaseException):
    pass


def die() -> None:
    raise Killed


def after(hits: int, action: Callable[[], None]) -> Callable[[], None]:
    """What does *action* when it has been called so often before."""
    left = iter(range(hits, -1, -1))
    return lambda: action() if next(left, 0) == 0 else None


def sealed_points(store: Store) -> int:
    return sum(store.is_sealed(each.oid) for each in Points(store, WORKSPACE).between(0, MS_MAX))


def test_sealed_history_is_all_there_in_less_space(store: Store) -> None:
    edited = Edited(store)
    edited.save(150)
    before = everything(store)
    used = store.usage()[1]
    seal(store, edited.history.ms + 2 * HOUR)
    assert everything(store) == before
    packs, objects, size = store.sealed.count()
    assert packs == 1
    assert objects == len(before) - 1  # the large one stays a file
    assert size < used / 3
    assert store.counts()["objects"] == 1
    store.compact()
    assert everything(store) == before


def test_stock_git_reads_the_pack(store: Store) -> None:
    edited = Edited(store)
    (*_, last) = edited.save(30)
    seal(store, edited.history.ms + 2 * HOUR)
    git = ["git", f"--git-dir={store.sealed.path}"]
    listing = subprocess.run([*git, "log", "--format=%H", last.oid.hex()], check=True, capture_output=True, text=True)
    assert len(listing.stdout.split()) == 30
    (pack,) = store.sealed.pack_names()
    subprocess.run([*git, "verify-pack", os.path.join(store.sealed.packs, pack + ".idx")], check=True)


def test_young_points_are_not_sealed_and_new_ones_go_on(store: Store) -> None:
    edited = Edited(store)
    edited.save(90)
    seal(store, edited.history.ms + 10)
    sealed = [store.is_sealed(each.oid) for each in Points(store, WORKSPACE).between(0, MS_MAX)]
    assert sealed == [True] * 30 + [False] * 60
    edited.save(20)
    assert len(everything(store)) > 300


def test_many_packs_become_one(store: Store) -> None:
    edited = Edited(store)
    for _ in range(5):
        edited.save(12)
        seal(store, edited.history.ms + 2 * HOUR)
    assert len(store.sealed.pack_names()) == 1
    assert len(list(store.meta_items("sealed"))) >= 1
    everything(store)


def test_what_was_thinned_leaves_the_packs_and_what_others_lead_to_stays(store: Store) -> None:
    edited = Edited(store)
    points = edited.save(60)
    seal(store, edited.history.ms + 2 * HOUR)
    young = edited.save(1)[0]  # shares most of what is sealed
    with store.batch() as batch:
        batch.set_ref("refs/clive/published/x", points[20].tree)
    everything_of_20 = points[20].tree
    with gc.one_at_a_time(store), gc.alone(store):
        index = Points(store, WORKSPACE)
        index.forget(index.between(0, points[-1].ms))
    seal(store, edited.history.ms + 2 * HOUR)
    assert not store.has(points[10].oid)
    assert not store.has(points[10].tree)
    assert store.has(young.oid)
    for entry in store.read_tree(everything_of_20):
        assert store.has(entry.oid)
    everything(store)


def test_what_is_written_while_packs_are_made_anew_keeps_the_old_ones(store: Store) -> None:
    edited = Edited(store)
    points = edited.save(40)
    seal(store, edited.history.ms + 2 * HOUR)
    with gc.one_at_a_time(store), gc.alone(store):
        index = Points(store, WORKSPACE)
        index.forget(index.between(0, points[-2].ms))

    def refer() -> None:
        with store.batch() as batch:
            batch.set_ref("refs/clive/forks/w/late", points[3].oid)

    FAULTS.plant("seal.published", refer)
    seal(store, edited.history.ms + 2 * HOUR)
    assert store.has(points[3].oid)
    assert store.has(points[3].tree)


@pytest.mark.parametrize("fault", ["seal.fed", "seal.packed", "seal.published", "seal.dropped", "store.removed"])
def test_after_a_crash_everything_is_there_and_the_next_one_finishes(store: Store, fault: str) -> None:
    edited = Edited(store)
    edited.save(40)
    before = everything(store)
    FAULTS.plant(fault, die)
    with pytest.raises(Killed):
        seal(store, edited.history.ms + 2 * HOUR)
    FAULTS.clear()
    assert everything(store) == before
    assert fsck(store, roots=StoreRoots(store).fresh()) == []
    seal(store, edited.history.ms + 2 * HOUR)
    assert everything(store) == before
    assert store.counts()["objects"] == 1
    assert [name for name in os.listdir(os.path.join(store.path, "packs")) if name.startswith("new-")] == []


@pytest.mark.parametrize("fault", ["seal.replaced", "seal.merged"])
def test_a_crash_while_packs_are_merged_loses_nothing(store: Store, fault: str) -> None:
    edited = Edited(store)
    edited.save(20)
    before = everything(store)
    FAULTS.plant(fault, die)
    with pytest.raises(Killed):
        seal(store, edited.history.ms + 2 * HOUR, slice_objects=30)
    FAULTS.clear()
    assert everything(store) == before
    assert len(store.sealed.pack_names()) > 1
    seal(store, edited.history.ms + 2 * HOUR)
    assert everything(store) == before
    assert len(store.sealed.pack_names()) == 1


def test_a_crash_while_packs_are_made_anew_loses_nothing(store: Store) -> None:
    edited = Edited(store)
    points = edited.save(40)
    seal(store, edited.history.ms + 2 * HOUR)
    with gc.one_at_a_time(store), gc.alone(store):
        index = Points(store, WORKSPACE)
        index.forget(index.between(0, points[30].ms))
    before = everything(store)
    FAULTS.plant("seal.replaced", die)
    with pytest.raises(Killed):
        seal(store, edited.history.ms + 2 * HOUR)
    FAULTS.clear()
    assert everything(store) == before
    seal(store, edited.history.ms + 2 * HOUR)
    assert everything(store) == before
    assert not store.has(points[10].oid)


# Slices


# A full disk


def _full() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _left_over(store: Store) -> list[bytes]:
    """Objects that nothing leads to."""
    with store.batch() as batch:
        return [batch.blob(b"garbage %d" % number) for number in range(20)]


@pytest.mark.parametrize("where", ["seal.fed", "seal.packed", "git"])
def test_where_history_cannot_be_sealed_the_rest_is_collected(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """Who collects as his disk is full wants what is of no use removed all the more."""
    edited = Edited(store)
    edited.save(sealing.POINTS_MIN)
    before = everything(store)
    gone = _left_over(store)
    with monkeypatch.context() as patch:
        if where == "git":
            (tmp_path / "bin").mkdir()
            fake = tmp_path / "bin/git"
            fake.write_text("#!/bin/sh\ncat > /dev/null\necho 'fatal: write error: Out of diskspace' >&2\nexit 128\n")
            fake.chmod(0o700)
            patch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
        else:
            FAULTS.plant(where, _full)
        done = collection.collect(store, now_ms=edited.history.ms + 2 * HOUR)
    assert "not sealed" in done.notes[0]
    assert done.swept.objects == len(gone)
    assert not any(store.has(oid) for oid in gone)
    assert os.listdir(Path(store.path) / "packs") == ["sealed.git"]
    assert everything(store) == before
    FAULTS.clear()
    assert collection.collect(store, now_ms=edited.history.ms + 2 * HOUR).sealed.objects > 1000
    assert everything(store) == before


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A filesystem of 64 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def _fill(path: Path, free: int) -> None:
    """Take all room but *free* bytes."""
    room = os.statvfs(path.parent)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_bsize - free)


def test_a_full_disk_damages_nothing_wherever_it_is_full(small: Path) -> None:
    with Store.open(small / "store") as store:
        edited = Edited(store)
        edited.save(120)
        before = everything(store)
        now_ms = edited.history.ms + 2 * HOUR
        errors: list[OSError] = []
        for free_kib in range(0, 2000, 200):
            _fill(small / "filler", free_kib << 10)
            try:
                seal(store, now_ms, slice_objects=400)
            except OSError as error:
                errors.append(error)
            (small / "filler").unlink()
            assert everything(store) == before
            assert fsck(store, roots=StoreRoots(store).fresh()) == []
            assert os.listdir(small / "store/packs") == ["sealed.git"]
        assert {error.errno for error in errors} == {errno.ENOSPC}
        seal(store, now_ms)
        assert everything(store) == before
        assert sealed_points(store) == 120


def test_each_slice_is_durable_and_a_killed_one_is_all_that_is_lost(store: Store) -> None:
    edited = Edited(store)
    edited.save(60)
    before = everything(store)
    now = edited.history.ms + 2 * HOUR
    done = [0]
    for turn in range(1, 4):
        FAULTS.plant("seal.fed", after(turn, die))
        with pytest.raises(Killed):
            seal(store, now, slice_objects=20)
        FAULTS.clear()
        assert everything(store) == before
        done.append(sealed_points(store))
    assert done == sorted(set(done))
    assert 0 < done[-1] < 60
    seal(store, now, slice_objects=20)
    assert sealed_points(store) == 60
    assert everything(store) == before


def test_sealing_ends_when_it_is_told_to_and_says_that_there_is_more(store: Store) -> None:
    edited = Edited(store)
    edited.save(60)
    now = edited.history.ms + 2 * HOUR
    ends = []
    with gc.one_at_a_time(store):
        for _ in range(40):
            over: list[bool] = []  # as soon as the first slice was gathered
            FAULTS.plant("seal.gathered", lambda over=over: over.append(True))
            done = sealing.seal(store, now, points_min=1, slice_objects=100, is_over=lambda over=over: bool(over))
            ends.append((done.unfinished, sealed_points(store)))
            if not done.unfinished:
                break
    assert ends[-1] == (False, 60)
    assert [unfinished for unfinished, _ in ends[:-1]] == [True] * (len(ends) - 1)
    assert len(ends) > 2
    everything(store)


def test_a_collection_while_it_is_quiet_ends_when_a_point_is_recorded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection, "_LOOK_S", 0)
    edited = Edited(store)
    edited.save(3)
    with store.batch() as batch:
        garbage = batch.blob(b"nobody's")
    now = edited.history.ms + 2 * HOUR
    FAULTS.plant("gc.looked", lambda: edited.save(1))
    done = collection.collect(store, now_ms=now, while_quiet=True)
    FAULTS.clear()
    assert (done.unfinished, done.swept.objects) == (True, 0)
    assert store.has(garbage)
    done = collection.collect(store, now_ms=now, while_quiet=True)
    assert (done.unfinished, done.swept.objects) == (False, 1)


def test_a_point_that_is_more_than_a_slice_is_sealed_in_several(store: Store) -> None:
    history = History(store)
    content = {b"f%03d" % number: regular(random.Random(number).randbytes(300)) for number in range(300)}
    history.record(directory({b"d": directory(content), b"large": regular(LARGE)}), after_ms=MINUTE)
    before = everything(store)
    now = history.ms + 2 * HOUR
    FAULTS.plant("seal.fed", after(2, die))
    with pytest.raises(Killed):
        seal(store, now, slice_objects=50)
    FAULTS.clear()
    assert sealed_points(store) == 0
    assert store.sealed.count()[1] >= 100
    assert everything(store) == before
    seal(store, now, slice_objects=50)
    assert sealed_points(store) == 1
    assert everything(store) == before
    assert store.counts()["objects"] == 1


def test_slices_merged_are_about_as_small_as_one_pack(tmp_path: Path) -> None:
    sizes = []
    for limit in (25, 100_000):
        with Store.open(tmp_path / str(limit)) as store:
            edited = Edited(store)
            edited.save(150)
            seal(store, edited.history.ms + 2 * HOUR, slice_objects=limit)
            assert len(store.sealed.pack_names()) == 1
            sizes.append(store.sealed.count()[2])
            assert fsck(store, roots=StoreRoots(store).fresh()) == []
    assert sizes[0] < 1.5 * sizes[1]


@pytest.mark.parametrize(
    ("sizes", "at_leisure", "wanted"),
    [
        ([], True, ""),
        ([5], True, ""),
        ([100, 5], True, ""),
        ([100, 20], True, "ab"),
        ([100, 20], False, ""),
        ([1] * 9, False, "abcdefghi"),
        ([1000, 100, 1, 1, 1, 1, 1, 1, 1], False, "cdefghi"),
        ([1000, 100, 60, 1, 1, 1, 1, 1, 1], False, "defghi"),
        ([1000, 100, 9, 1, 1, 1, 1, 1, 1], False, "cdefghi"),
    ],
)
def test_small_packs_are_merged(sizes: list[int], at_leisure: bool, wanted: str) -> None:
    chosen = sealing.to_merge(dict(zip("abcdefghi", sizes, strict=False)), at_leisure=at_leisure)
    assert "".join(sorted(chosen)) == wanted


def test_a_damaged_pack_is_found(store: Store, tmp_path: Path) -> None:
    edited = Edited(store)
    edited.save(30)
    seal(store, edited.history.ms + 2 * HOUR)
    (name,) = store.sealed.pack_names()
    for suffix in (".strand", ".idx"):
        path = Path(store.sealed.packs, name + suffix)
        good = path.read_bytes()
        path.unlink()  # another file: this store has the old one mapped
        path.write_bytes(good[: len(good) // 2] if suffix == ".idx" else good[:-40] + b"\0" * 40)
        with Store.open(store.path) as other:
            assert any(problem.kind == "tier" and suffix in problem.name for problem in fsck(other))
        path.write_bytes(good)


def test_thinning_marking_and_sealing_go_together(store: Store) -> None:
    edited = Edited(store)
    points = edited.save(40)
    now = edited.history.ms + 40 * DAY
    seal(store, now)
    done = collection.collect(store, now_ms=now)
    assert done.thinned[0].dropped == 39
    assert [each.oid for each in Points(store, WORKSPACE).between(0, MS_MAX)] == [points[-1].oid]
    everything(store)


# Giving back


def test_compacting_gives_disk_back_and_readers_go_on(store: Store) -> None:
    with store.batch() as batch:
        names = [batch.blob(os.urandom(20_000)) for _ in range(600)]
        kept = batch.blob(b"kept")
        batch.set_ref("refs/heads/kept", kept)
        batch.meta_put("x", b"k" * 450, b"v")
    store.remove(names)
    stop = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not stop.is_set():
                assert store.read(kept) == ("blob", b"kept")
                assert store.get_ref("refs/heads/kept") == kept
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    before = os.path.getsize(os.path.join(store.path, "db", "data.mdb"))
    try:
        freed = store.compact()
        with store.batch() as batch:
            new = batch.blob(b"new")
            batch.set_ref("refs/heads/new", new)
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert failures == []
    assert freed is not None
    assert freed > 10_000_000
    assert os.path.getsize(os.path.join(store.path, "db", "data.mdb")) < before / 10
    assert store.read(new) == ("blob", b"new")
    assert store.meta_get("x", b"k" * 450) == b"v"
    assert [name for name in os.listdir(store.path) if ".new-" in name] == []
    assert store.compact() == 0


def test_nothing_is_replaced_under_another_process(store: Store) -> None:
    with store.batch() as batch:
        names = [batch.blob(os.urandom(20_000)) for _ in range(600)]
    store.remove(names)
    program = (
        "import sys; from clivefs.objects.store import Store; s = Store.open(sys.argv[1]); print('open', flush=True); "
        "sys.stdin.read(); s.close()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", program, store.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "open\n"
    assert store.compact() is None
    other.communicate("")
    assert store.compact()


@pytest.mark.parametrize("fault", ["objects.environment.copied", "objects.environment.exchanged"])
def test_a_crash_while_compacting_leaves_a_whole_database(tmp_path: Path, fault: str) -> None:
    program = f"""
import os, sys
from clivefs.base.ports import FAULTS
from clivefs.objects.store import Store
store = Store.open(sys.argv[1])
with store.batch() as batch:
    names = [batch.blob(os.urandom(20_000)) for _ in range(600)]
    batch.set_ref("refs/heads/kept", batch.blob(b"kept"))
store.remove(names)
FAULTS.plant({fault!r}, lambda: os._exit(9))
store.compact()
"""
    path = str(tmp_path / "store")
    done = subprocess.run([sys.executable, "-c", program, path], check=False)
    assert done.returncode == 9
    with Store.open(path) as store:
        (kept,) = store.refs().values()
        assert store.read(kept) == ("blob", b"kept")
        assert fsck(store) == []
        store.compact()
        with store.batch() as batch:
            names = [batch.blob(os.urandom(20_000)) for _ in range(600)]
        store.remove(names)
        assert store.compact()
        assert [name for name in os.listdir(path) if ".new-" in name] == []
