"""What only the store on disk does: its format, several processes, crashes, its writer."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from clivefs.base.ports import FAULTS
from clivefs.objects.encode import MODE_FILE, TreeEntry, hash_object
from clivefs.objects.environment import open_environment
from clivefs.objects.errors import ContentChanged, RefConflict, StoreError
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store

FORMATS = Path(__file__).parent.parent / "formats"
LARGE = b"clivefs " * 140_000


# Format


def test_the_golden_store_of_format_1_opens(tmp_path: Path) -> None:
    with tarfile.open(FORMATS / "store-1.tar.gz") as archive:
        if hasattr(tarfile, "data_filter"):  # not in Debian 12's Python
            archive.extraction_filter = tarfile.tar_filter
        archive.extractall(tmp_path)
    os.chown(tmp_path / "store", os.geteuid(), -1)
    with Store.open(tmp_path / "store", create=False) as store:
        assert fsck(store) == []
        refs = store.refs()
        assert list(refs) == ["refs/clive/golden/\udcff", "refs/tags/v1"]
        commit = store.read_commit(refs["refs/clive/golden/\udcff"])
        assert commit.message == b"golden\n"
        tree = {entry.name: entry.oid for entry in store.read_tree(commit.tree)}
        assert store.read(tree[b"text"]) == ("blob", b"a text that is worth compressing\n" * 100)
        assert store.read(tree[b"empty"]) == ("blob", b"")
        (large,) = store.read_tree(tree[b"d\xff"])
        assert store.header(large.oid) == ("blob", len(LARGE))
        assert dict(store.meta_items("golden")) == {b"short": b"1", b"long" * 200: b"2"}
        assert store.size_of(b"\1" * 20) == 123_456_789_012
        with store.batch() as batch:  # and can be written to
            batch.set_ref("refs/clive/new", batch.blob(b"new"))
        assert fsck(store) == []


def test_everything_is_its_owners_alone(store: Store) -> None:
    with store.batch() as batch:
        batch.blob(LARGE)
    assert os.path.isdir(store.directory("uppers/a/b"))
    for folder, _, files in os.walk(store.path):
        for path in [folder, *(os.path.join(folder, name) for name in files)]:
            assert stat.S_IMODE(os.lstat(path).st_mode) & 0o077 == 0, path


def test_an_open_store_directory_is_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(0o755)
    with Store.open(tmp_path / "store"):
        assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o700


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    (tmp_path / "store" / "format").write_text("clivefs store 2\n")
    with pytest.raises(StoreError, match=r"has format 2, and clivefs .* knows format 1") as caught:
        Store.open(tmp_path / "store")
    assert caught.value.remedy


@pytest.mark.parametrize("content", [{"file": "x"}, {"format": "clivefs"}, {"format": ""}, {"format": "2"}])
def test_what_is_not_a_store_is_refused_and_left_alone(tmp_path: Path, content: dict[str, str]) -> None:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(StoreError, match="not a clivefs store"):
        Store.open(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == content


def test_other_places_that_are_no_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for path in ("file", "file/below"):
        with pytest.raises(StoreError):
            Store.open(tmp_path / path)
    with pytest.raises(StoreError, match="there is no store"):
        Store.open(tmp_path / "absent", create=False)
    (tmp_path / "empty").mkdir()
    with pytest.raises(StoreError):
        Store.open(tmp_path / "empty", create=False)
    assert list((tmp_path / "empty").iterdir()) == []


def test_making_a_store_may_be_cut_short(tmp_path: Path) -> None:
    (tmp_path / "format.new-123").write_text("clivefs st")
    with Store.open(tmp_path) as store:
        assert fsck(store) == []
    assert not (tmp_path / "format.new-123").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_another_users_store_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    os.chown(tmp_path / "store", 12345, -1)
    with pytest.raises(StoreError, match="belongs to user 12345"):
        Store.open(tmp_path / "store")


def test_a_database_that_is_none_is_refused(tmp_path: Path) -> None:
    Store.open(tmp_path / "store").close()
    (tmp_path / "store" / "db" / "data.mdb").write_bytes(b"garbage" * 10_000)
    with pytest.raises(StoreError, match="not one that this clivefs can read"):
        Store.open(tmp_path / "store")


# One process, several processes


def test_one_environment_a_process(store: Store, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("store")
    with Store.open(tmp_path / "link") as again, again.batch() as batch:
        oid = batch.blob(b"x")
    assert store.read(oid) == ("blob", b"x")  # still open


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    with store.batch(wait=False) as batch:
        oid = batch.blob(b"x")
    store.close()
    store.close()
    assert batch.future is not None
    assert batch.future.done()
    with pytest.raises(StoreError, match="closed"):
        store.read(oid)
    with pytest.raises(StoreError, match="closed"), store.batch() as batch:
        batch.set_ref("refs/x", None)
    with Store.open(tmp_path / "store") as again:
        assert again.has(oid)
        assert fsck(again) == []


FORKER = """
import os, sys
from clivefs.objects.errors import StoreError
from clivefs.objects.store import Store
store = Store.open(sys.argv[1])
with store.batch() as batch:
    oid = batch.blob(b"x")
pid = os.fork()
if pid == 0:
    for attempt in (lambda: store.read(oid), lambda: Store.open(sys.argv[1])):
        try:
            attempt()
        except StoreError as error:
            print(error.message, flush=True)
    store.close()
    os._exit(0)
os.waitpid(pid, 0)
print(store.read(oid)[1].decode())
store.close()
"""


def test_a_store_does_not_cross_a_fork(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORKER, tmp_path / "store"]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=60).stdout
    assert output == "the store was opened before a fork\n" * 2 + "x\n"


COUNTER = """
import sys
from clivefs.objects.store import Store
from clivefs.objects.errors import MetaConflict
with Store.open(sys.argv[1]) as store:
    done = 0
    while done < 100:
        old = store.meta_get("count", b"")
        try:
            with store.batch() as batch:
                oid = batch.blob(f"{sys.argv[2]} {done}".encode())
                batch.set_ref(f"refs/p{sys.argv[2]}/{done}", oid, None)
                batch.meta_put("count", b"", b"%d" % (int(old or b"0") + 1), old)
            done += 1
        except MetaConflict:
            pass
"""


def test_processes_share_a_store(tmp_path: Path) -> None:
    path = tmp_path / "store"  # which none of them finds made
    processes = [subprocess.Popen([sys.executable, "-c", COUNTER, path, str(number)]) for number in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with Store.open(path, create=False) as store:
        assert store.meta_get("count", b"") == b"300"
        assert len(store.refs("refs/p")) == 300
        assert fsck(store) == []


# Crashes

STORM = """
import os, sys
from clivefs.objects.encode import MODE_FILE, Commit, Signature, TreeEntry
from clivefs.objects.store import Store
who = Signature(b"a", b"b", 1)
with Store.open(sys.argv[1]) as store:
    head = store.get_ref("refs/heads/main")
    number = 0
    while True:
        number += 1
        with store.batch() as batch:
            files = [TreeEntry(MODE_FILE, b"%d" % n, batch.blob(os.urandom(500))) for n in range(20)]
            if number % 5 == 0:
                files.append(TreeEntry(MODE_FILE, b"large", batch.blob(os.urandom(1 << 20) + b"x")))
            commit = Commit(batch.tree(files), (head,) if head else (), who, who, b"")
            new = batch.commit(commit)
            batch.set_ref("refs/heads/main", new, head)
        head = new
        print(head.hex(), flush=True)
"""


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "store"
    acknowledged: list[str] = []
    for round_number in range(8):
        process = subprocess.Popen([sys.executable, "-c", STORM, path], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        for _ in range(2 + 3 * round_number):  # waits for an event, then kills in the middle of the next writes
            acknowledged.append(process.stdout.readline().strip())
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
        process.stdout.close()
        with Store.open(path, create=False) as store:
            assert fsck(store) == []
            history = set()
            at = store.get_ref("refs/heads/main")
            while at is not None:
                history.add(at.hex())
                at = next(iter(store.read_commit(at).parents), None)
            assert history >= {oid for oid in acknowledged if len(oid) == 40}
            assert not any(name.startswith("new-") for name in os.listdir(path / "large"))


# Large files


def test_the_holes_of_a_large_file_take_no_room(tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("wb") as file:
        file.write(b"first")
        file.truncate((64 << 20) + 7)
        file.seek(48 << 20)
        file.write(b"middle")
    with Store.open(tmp_path / "store", create=True) as store, store.batch() as batch:
        oid = batch.blob_file(tmp_path / "disk.img")
    stored = tmp_path / "store" / "large" / oid.hex()[:2] / oid.hex()[2:]
    assert stored.read_bytes() == (tmp_path / "disk.img").read_bytes()
    assert oid == hash_object("blob", stored.read_bytes())
    assert stored.stat().st_blocks * 512 <= 4 << 20


@pytest.mark.parametrize("change", ["removed", "written to"])
def test_a_large_file_that_changes_is_not_read_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.truncate(1 << 30)
    read = 0
    pread = os.pread

    def change_at_once(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        if not read and change == "removed":
            path.unlink()
        elif not read:
            os.utime(path, ns=(1, 1))
        piece = pread(fd, count, offset)
        read += len(piece)
        return piece

    with Store.open(tmp_path / "store", create=True) as store, path.open("rb") as file:
        monkeypatch.setattr(os, "pread", change_at_once)
        with pytest.raises(ContentChanged), store.batch() as batch:
            batch.blob_file(file.fileno())
        monkeypatch.undo()
        assert read <= 65 << 20
        assert os.listdir(tmp_path / "store" / "large") == []


FAULTY = """
import os, sys
from clivefs.base.ports import FAULTS
from clivefs.objects.store import Store
with Store.open(sys.argv[1]) as store:
    FAULTS.plant(sys.argv[2], lambda: os.kill(os.getpid(), 9))
    with store.batch() as batch:
        batch.set_ref("refs/heads/main", batch.blob(os.urandom(1 << 20) + b"x"))
"""


@pytest.mark.parametrize(
    ("point", "there"),
    [
        ("objects.large.before-rename", False),
        ("objects.large.after-rename", False),
        ("objects.environment.before-commit", False),
        ("objects.environment.after-commit", True),
    ],
)
def test_a_kill_at_every_fault_point(tmp_path: Path, point: str, there: bool) -> None:
    process = subprocess.run([sys.executable, "-c", FAULTY, tmp_path / "store", point], check=False)
    assert process.returncode == -signal.SIGKILL
    with Store.open(tmp_path / "store", create=False) as store:
        assert (store.get_ref("refs/heads/main") is not None) == there
        assert fsck(store) == []


def test_a_failing_commit_fails_every_caller_and_changes_nothing(store: Store) -> None:
    def fail() -> None:
        raise OSError(28, "No space left on device")

    FAULTS.plant("objects.environment.before-commit", fail)
    try:
        with pytest.raises(OSError, match="No space left"), store.batch() as batch:  # noqa: PT012
            oid = batch.blob(b"x")
            batch.set_ref("refs/x", oid)
    finally:
        FAULTS.clear()
    assert not store.has(oid)
    with store.batch() as batch:
        batch.set_ref("refs/x", batch.blob(b"x"))


def test_refs_do_not_move_when_an_earlier_part_of_the_batch_failed(store: Store) -> None:
    failures = iter([OSError(28, "No space left on device")])

    def fail_once() -> None:
        for error in failures:
            raise error

    first = threading.Event()
    with pytest.raises(OSError, match="No space left"), store.batch() as batch:  # noqa: PT012
        FAULTS.plant("objects.environment.before-commit", fail_once)
        entries = [TreeEntry(MODE_FILE, b"%d" % n, batch.blob(b"%d" % n)) for n in range(600)]
        # The first part is on its way; let it fail before the rest follows.
        batch._spilled[0].add_done_callback(lambda _: first.set())
        assert first.wait(10)
        FAULTS.clear()
        batch.set_ref("refs/x", batch.tree(entries))
    assert store.refs() == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small filesystem")
def test_a_full_disk_is_enospc_and_harms_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", small], check=False).returncode:
        pytest.skip("tmpfs cannot be mounted here")
    try:
        with Store.open(small / "store") as store:
            with store.batch() as batch:
                kept = batch.blob(b"kept")
                batch.set_ref("refs/kept", kept)
            for size in (5 << 20, 100_000):
                with pytest.raises(OSError) as caught:  # noqa: PT012
                    for number in range(100):
                        with store.batch() as batch:
                            batch.set_ref(f"refs/{number}", batch.blob(os.urandom(size)))
                assert caught.value.errno == 28
            assert store.read(kept) == ("blob", b"kept")
            assert fsck(store) == []
        with Store.open(small / "store") as store:
            assert store.get_ref("refs/kept") == kept
            assert fsck(store) == []
    finally:
        subprocess.run(["umount", small], check=True)


# The writer


def test_a_job_that_fails_after_writing_harms_no_neighbour(tmp_path: Path) -> None:
    environment = open_environment(str(tmp_path), ["records"])
    gate = threading.Event()

    def bad(transaction: object) -> None:
        transaction.put("records", b"bad", b"1")  # type: ignore[attr-defined]
        raise KeyError("after writing")

    try:
        holder = environment.submit(lambda _: gate.wait(10))  # so that the rest is one group
        jobs = [environment.submit(lambda t, k=k: t.put("records", k, b"1")) for k in (b"1", b"2")]
        jobs.append(environment.submit(bad))
        jobs += [environment.submit(lambda t, k=k: t.put("records", k, b"1")) for k in (b"3", b"4")]
        gate.set()
        assert holder.result(10)
        assert [isinstance(job.exception(10), KeyError) for job in jobs] == [False, False, True, False, False]
        assert list(environment.scan_keys("records")) == [b"1", b"2", b"3", b"4"]
    finally:
        gate.set()
        environment.close()


def test_a_full_queue_makes_writers_wait(tmp_path: Path) -> None:
    environment = open_environment(str(tmp_path), ["records"])
    gate = threading.Event()
    try:
        environment.submit(lambda _: gate.wait(10))
        environment.submit(lambda t: t.put("records", b"0", b""), cost=60 << 20)
        late = threading.Thread(target=lambda: environment.submit(lambda t: t.put("records", b"1", b""), cost=60 << 20))
        late.start()
        late.join(0.05)
        assert late.is_alive()
        gate.set()
        late.join(10)
        assert not late.is_alive()
    finally:
        gate.set()
        environment.close()


def test_two_conflicting_batches_of_one_group(store: Store) -> None:
    gate = threading.Event()
    store._environment.submit(lambda _: gate.wait(10))
    futures = []
    for content in (b"1", b"2", b"3"):
        with store.batch(wait=False) as batch:
            batch.set_ref("refs/x", batch.blob(content), None)
        futures.append(batch.future)
    gate.set()
    outcomes = [future.exception(10) for future in futures if future is not None]
    assert [type(outcome) for outcome in outcomes] == [type(None), RefConflict, RefConflict]
    assert store.get_ref("refs/x") == hash_object("blob", b"1")
