"""fsck finds every kind of damage, and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clivefs.objects.encode import MODE_FILE, Commit, Signature, TreeEntry
from clivefs.objects.errors import CorruptObject
from clivefs.objects.fsck import Problem, Progress, fsck, fsck_steps
from clivefs.objects.store import Store

LARGE = b"clivefs " * 140_000
WHO = Signature(b"A U Thor", b"author@example.org", 1_700_000_000, b"+0100")


def kinds(problems: list[Problem]) -> list[str]:
    return sorted({problem.kind for problem in problems})


@pytest.fixture
def filled(tmp_path: Path) -> dict[str, bytes]:
    """The names of objects of a sound store at `store`."""
    with Store.open(tmp_path / "store") as store, store.batch() as batch:
        blob, large = batch.blob(b"text " * 100), batch.blob(LARGE)
        tree = batch.tree([TreeEntry(MODE_FILE, b"f", blob), TreeEntry(MODE_FILE, b"l", large)])
        commit = batch.commit(Commit(tree, (), WHO, WHO, b""))
        batch.set_ref("refs/heads/main", commit)
    return {"blob": blob, "large": large, "tree": tree, "commit": commit}


def _overwrite(store: Store, oid: bytes, value: bytes | None) -> None:
    def job(transaction: object) -> None:
        if value is None:
            transaction.delete("objects", oid)  # type: ignore[attr-defined]
        else:
            transaction.put("objects", oid, value)  # type: ignore[attr-defined]

    store._environment.write(job)


@pytest.mark.parametrize("victim", ["blob", "large", "tree", "commit"])
def test_fsck_finds_a_missing_object(tmp_path: Path, filled: dict[str, bytes], victim: str) -> None:
    with Store.open(tmp_path / "store") as store:
        _overwrite(store, filled[victim], None)
        problems = fsck(store)
        assert kinds(problems) == ["ref" if victim == "commit" else "missing"]
        assert filled[victim].hex() in str(problems[0])


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x03",
        b"\x03" + b"\0" * 8,
        b"\x13\xff" + b"\0" * 7 + b"garbage",
        b"\x99" * 40,
        b"\x13" + b"\xff" * 8 + b"x",
        b"\x03\1" + b"\0" * 7 + b"x",
    ],
)
def test_fsck_finds_a_corrupt_record(tmp_path: Path, filled: dict[str, bytes], value: bytes) -> None:
    with Store.open(tmp_path / "store") as store:
        _overwrite(store, filled["blob"], value)
        assert kinds(fsck(store)) == ["corrupt"]


def test_fsck_finds_damage_in_a_large_file(tmp_path: Path, filled: dict[str, bytes]) -> None:
    name = filled["large"].hex()
    path = tmp_path / "store" / "large" / name[:2] / name[2:]
    path.chmod(0o600)
    with Store.open(tmp_path / "store") as store:
        with open(path, "r+b") as file:
            file.seek(700_000)
            file.write(b"?")
        assert kinds(fsck(store)) == ["corrupt"]
        os.truncate(path, 5)
        with pytest.raises(CorruptObject):
            store.open_large(filled["large"])
        assert kinds(fsck(store)) == ["corrupt"]
        path.unlink()
        with pytest.raises(CorruptObject, match="gone"):
            store.open_large(filled["large"])
        assert kinds(fsck(store)) == ["corrupt"]


def test_fsck_finds_what_does_not_belong(tmp_path: Path, filled: dict[str, bytes]) -> None:
    with Store.open(tmp_path / "store") as store:
        (tmp_path / "store" / "large" / "readme").write_text("x")
        (tmp_path / "store" / "large" / "ab").mkdir(exist_ok=True)
        (tmp_path / "store" / "large" / "ab" / "x").write_text("x")
        problems = fsck(store)
        assert sorted(problem.name for problem in problems) == ["large/ab/x", "large/readme"]


def test_a_leftover_that_nothing_leads_to_is_no_damage(store: Store) -> None:
    with store.batch() as batch:
        orphan = batch.tree([TreeEntry(MODE_FILE, b"f", b"\5" * 20)])
    assert fsck(store) == []
    with store.batch() as batch:
        batch.set_ref("refs/x", orphan)
    assert [problem.kind for problem in fsck(store)] == ["missing"]
    with store.batch() as batch:
        batch.set_ref("refs/x", None)


def test_what_others_hold_or_promise_is_not_missing(store: Store) -> None:
    class Other:
        def __init__(self, here: set[bytes], promised: set[bytes]) -> None:
            self.here, self._promised = here, promised

        def has(self, oid: bytes) -> bool:
            return oid in self.here

        def promised(self) -> set[bytes]:
            return self._promised

    here, promised, missing = b"\1" * 20, b"\2" * 20, b"\3" * 20
    with store.batch() as batch:
        entries = [TreeEntry(MODE_FILE, b"%d" % n, oid) for n, oid in enumerate((here, promised, missing))]
        batch.set_ref("refs/x", batch.tree(entries))
        batch.set_ref("refs/y", here)
    problems = fsck(store, extra=[Other({here}, {promised})])
    assert [problem.name for problem in problems] == [missing.hex()]
    with store.batch() as batch:
        batch.set_ref("refs/x", None)
        batch.set_ref("refs/y", None)


def test_fsck_finds_a_wrong_kind(store: Store) -> None:
    with store.batch() as batch:
        blob = batch.blob(b"")
        batch.set_ref("refs/x", batch.commit(Commit(blob, (), WHO, WHO, b"")))
    assert "as a tree, and that is a blob" in str(fsck(store)[0])
    _overwrite(store, store.refs().popitem()[1], None)
    with store.batch() as batch:
        batch.set_ref("refs/x", None)


def test_reading_leaves_no_descriptor_behind(store: Store) -> None:
    with store.batch() as batch:
        large = batch.blob(LARGE)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(50):
        fd = store.open_large(large)
        assert fd is not None
        os.close(fd)
        fsck(store)
    assert len(os.listdir("/proc/self/fd")) == before


def test_fsck_tells_how_far_it_is(store: Store) -> None:
    with store.batch() as batch:
        for number in range(2500):
            batch.blob(b"%d" % number)
    assert list(fsck_steps(store)) == [Progress(1000, 0), Progress(2000, 0), Progress(2500, 0)]
