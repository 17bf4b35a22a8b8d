"""fsck of points: nothing is said of a whole past, and every kind of damage is."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.fsck import point_problems, problems
from clivefs.mounts.points.point import Point
from clivefs.objects.encode import MODE_TREE, TreeEntry
from clivefs.objects.fsck import Problem, Progress
from clivefs.objects.memory import MemoryStore
from tests.mounts.points.pointworlds import MTIME_NS, WORKSPACE, File, History, directory, regular, write

_REF = f"refs/clive/sessions/{WORKSPACE}/work"


def history(store: MemoryStore) -> list[Point]:
    made = History(store)
    return [
        made.record(directory({b"d": directory({b"a": regular(b"%d" % number)}), b"b": regular(b"b")}))
        for number in range(3)
    ]


def _key(point: Point) -> bytes:
    return WORKSPACE.encode() + point.ms.to_bytes(8, "big")


def _record_without_commit(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.meta_put("points", _key(made[1]), bytes(20) + (2).to_bytes(8, "big") + b"work")


def _record_of_another(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.meta_put("points", _key(made[1]), made[0].oid + (2).to_bytes(8, "big") + b"work")


def _short_record(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.meta_put("points", _key(made[1]), b"short")


def _number_out_of_order(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.meta_put("points", _key(made[1]), made[1].oid + (1).to_bytes(8, "big") + b"work")


def _no_session(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.meta_put("sessions", WORKSPACE.encode() + b"work", None)


def _ref_behind(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.set_ref(_REF, made[0].oid)


def _broken_session(store: MemoryStore, made: list[Point]) -> None:
    with store.batch() as batch:
        batch.meta_put("sessions", WORKSPACE.encode() + b"work", b"{")


def test_a_whole_past(tmp_path: Path) -> None:
    store = MemoryStore()
    history(store)
    assert list(point_problems(store, JoinedObjects((store,), str(tmp_path)))) == []


@pytest.mark.parametrize(
    ("damage", "kind"),
    [
        (_record_without_commit, "point"),
        (_record_of_another, "point"),
        (_short_record, "point"),
        (_number_out_of_order, "point"),
        (_no_session, "point"),
        (_ref_behind, "session"),
        (_broken_session, "session"),
    ],
)
def test_damage(tmp_path: Path, damage: Callable[[MemoryStore, list[Point]], None], kind: str) -> None:
    store = MemoryStore()
    damage(store, history(store))
    found = list(point_problems(store, JoinedObjects((store,), str(tmp_path))))
    assert found
    assert {each.kind for each in found} == {kind}
    assert {each.kind for each in _all_of(store, tmp_path)} == {kind}


@pytest.mark.parametrize("what", ["tree", "meta", "records"])
def test_objects_that_are_missing(tmp_path: Path, what: str) -> None:
    """A reader without the object stands for a store that lost it."""
    store = MemoryStore()
    made = history(store)
    meta = made[1].meta
    assert meta is not None
    records = next(entry.oid for entry in store.read_tree(meta) if not entry.is_tree)
    gone = {"tree": made[1].tree, "meta": meta, "records": records}[what]
    damaged = MemoryStore()
    for oid in store.names():
        if oid != gone:
            with damaged.batch() as batch:
                batch.put(*store.read(oid))
    found = list(point_problems(store, JoinedObjects((damaged,), str(tmp_path))))
    assert found
    assert {each.kind for each in found} == {"point"}
    assert gone.hex() in found[0].message


# All of a store


class Counting(MemoryStore):
    """Counts how often each object is read."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[bytes] = Counter()

    def read(self, oid: bytes) -> tuple[str, bytes]:
        self.reads[oid] += 1
        return super().read(oid)


def _all_of(store: MemoryStore, scratch: Path) -> list[Problem]:
    steps = problems(store, JoinedObjects((store,), str(scratch)))
    return [each for each in steps if isinstance(each, Problem)]


def _edits(store: MemoryStore, count: int) -> list[Point]:
    """A history in which each point has a file changed, made or removed, or only its times or mode."""
    chooser = random.Random(7)
    made = History(store)
    content: dict[bytes, dict[bytes, File]] = {name: {} for name in (b"d", b"e", b"f")}
    found = []
    for number in range(count):
        below = content[chooser.choice([*content])]
        name = b"%d" % chooser.randrange(6)
        if chooser.random() < 0.2:
            below.pop(name, None)
        else:
            mode = chooser.choice([0o644, 0o644, 0o644, 0o600])
            below[name] = regular(b"%d" % chooser.randrange(number + 1), mode, mtime_ns=MTIME_NS + number)
        files: dict[bytes, File] = {name: directory(below) for name, below in content.items()}
        found.append(made.record(directory({**files, b"top": regular(b"%d" % (number // 5))})))
    return found


def test_every_object_of_a_whole_past_is_read_once(tmp_path: Path) -> None:
    store = Counting()
    _edits(store, 40)
    *_, last = problems(store, JoinedObjects((store,), str(tmp_path)))
    assert last == Progress(len(list(store.names())), 1)
    assert dict(store.reads) == dict.fromkeys(store.names(), 1)


@pytest.mark.parametrize("how", ["gone", "changed", "cut"])
def test_no_damage_to_an_object_is_overlooked(tmp_path: Path, how: str) -> None:
    """To each of a history in which most is like the point before, one after the other."""
    store = MemoryStore()
    _edits(store, 25)
    assert _all_of(store, tmp_path) == []
    objects = store._objects
    for oid, value in [*objects.items()]:
        if how == "gone":
            del objects[oid]
        else:
            objects[oid] = value[:-1] if how == "cut" else value[:-1] + bytes([value[-1] ^ 1])
        found = _all_of(store, tmp_path)
        assert any(oid.hex() in f"{each.name} {each.message}" for each in found), (oid.hex(), value)
        objects[oid] = value


@pytest.mark.parametrize("wrong", ["another kind", "more names", "a name that is no file"])
def test_metadata_that_does_not_go_with_its_tree(tmp_path: Path, wrong: str) -> None:
    """In the second of two points that are all but the same."""
    store = MemoryStore()
    made = History(store)

    def state(files: dict[bytes, File]) -> File:
        return directory({b"d": directory(files), b"b": regular(b"b")})

    made.record(state({b"a": regular(b"1"), b"x": regular(b"2")}))
    sound = state({b"a": regular(b"1"), b"x": regular(b"3")})
    others = {
        "another kind": state({b"a": directory({b"y": regular(b"1")}), b"x": regular(b"2")}),
        "more names": state({b"a": regular(b"1"), b"w": regular(b"1"), b"x": regular(b"2")}),
        "a name that is no file": directory({b"d": directory({b"a": regular(b"1"), b"x": regular(b"2")})}),
    }
    with store.batch() as batch:
        tree, _ = write(batch, sound)
        _, meta = write(batch, others[wrong])
        made.publish(batch, tree, meta)
    assert {each.kind for each in _all_of(store, tmp_path)} == {"point"}


def test_a_kind_that_another_tree_tells_otherwise(tmp_path: Path) -> None:
    store = MemoryStore()
    made = History(store)
    with store.batch() as batch:
        tree, _ = write(batch, directory({b"a": regular(b"1"), b"b": regular(b"1")}))
        made.publish(batch, tree, None)
    blob = store.read_tree(tree)[0].oid
    with store.batch() as batch:
        second = batch.tree([*store.read_tree(tree), TreeEntry(MODE_TREE, b"c", blob)])
        made.publish(batch, second, None)
    (found,) = _all_of(store, tmp_path)
    assert (found.kind, found.name) == ("corrupt", second.hex())
    assert f"{blob.hex()} as a tree" in found.message
