"""fsck of points: nothing is said of a whole past, and every kind of damage is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.fsck import point_problems
from clivefs.mounts.points.point import Point
from clivefs.objects.memory import MemoryStore
from tests.mounts.points.pointworlds import WORKSPACE, History, directory, regular

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
    problems = list(point_problems(store, JoinedObjects((store,), str(tmp_path))))
    assert problems
    assert {each.kind for each in problems} == {kind}


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
    problems = list(point_problems(store, JoinedObjects((damaged,), str(tmp_path))))
    assert problems
    assert {each.kind for each in problems} == {"point"}
    assert gone.hex() in problems[0].message
