"""Undo and redo over points: where in its past a workspace stands, and what can be taken back.

An undo brings the state of an earlier point and is a new point itself, so the chain of points does not tell where one
stands. That is noted in the store's records, namespace `undo`, by workspace (JSON, see `Position`), and counts only as
long as the newest point is the one that the last undo or redo made: whatever else changes ends it, as in an editor.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import State, compare
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.point import Point
from clivefs.objects.interface import ObjectStore

_NAMESPACE = "undo"
_PAIRS = "undo-pairs"
_PAIRS_MAX = 100


class Position(NamedTuple):
    """Where a workspace stands after an undo or a redo. Ids of points."""

    after: bytes
    """What was the newest point then."""
    at: bytes
    """The point whose state it is."""
    redo: tuple[bytes, ...]
    """What can be taken back, the next one last."""


def note_position(store: ObjectStore, workspace_id: str, position: Position) -> None:
    """Remember where the workspace stands; durable."""
    record = {
        "after": position.after.hex(),
        "at": position.at.hex(),
        "redo": [oid.hex() for oid in position.redo],
    }
    with store.batch() as batch:
        batch.meta_put(_NAMESPACE, workspace_id.encode(), json.dumps(record).encode())


def _position(store: ObjectStore, workspace_id: str, head: Point) -> Position:
    record = store.meta_get(_NAMESPACE, workspace_id.encode())
    if record is not None:
        facts = json.loads(record)
        if facts["after"] == head.oid.hex():
            redo = tuple(bytes.fromhex(oid) for oid in facts["redo"])
            return Position(head.oid, bytes.fromhex(facts["at"]), redo)
    return Position(head.oid, head.oid, ())


def note_pair(store: ObjectStore, workspace_id: str, after: bytes, before: bytes) -> None:
    """Remember that going from the point *before* to *after* was one command, with another point in between, which no
    undo leads to; durable. The last `_PAIRS_MAX` of a workspace are known."""
    pairs = [*_pairs(store, workspace_id).items(), (after, before)][-_PAIRS_MAX:]
    with store.batch() as batch:
        batch.meta_put(_PAIRS, workspace_id.encode(), json.dumps([[a.hex(), b.hex()] for a, b in pairs]).encode())


def _pairs(store: ObjectStore, workspace_id: str) -> dict[bytes, bytes]:
    record = store.meta_get(_PAIRS, workspace_id.encode())
    return {bytes.fromhex(a): bytes.fromhex(b) for a, b in json.loads(record)} if record is not None else {}


def undone(
    store: ObjectStore, points: Points, reader: JoinedObjects, workspace_id: str, head: Point, count: int
) -> tuple[Point, tuple[bytes, ...]]:
    """The point that *count* undos lead to from the newest point *head*, and what can be redone then. Points that
    changed nothing do not count. ClivefsError where there is nothing before."""
    position = _position(store, workspace_id, head)
    redo = list(position.redo)
    point = points.load(position.at)
    pairs = _pairs(store, workspace_id)
    for _ in range(count):
        before = _changed_before(points, reader, point, pairs)
        if before is None:
            raise ClivefsError(
                "there is nothing to undo" if point.oid == position.at else "there are not so many points before",
                remedy="`clivefs log` shows what was recorded; `clivefs restore . --at EXPR` goes anywhere",
            )
        redo.append(point.oid)
        point = before
    return point, tuple(redo)


def _changed_before(points: Points, reader: JoinedObjects, point: Point, pairs: Mapping[bytes, bytes]) -> Point | None:
    """The nearest point before *point* that is another state, not counting times."""
    before: Point | None = point
    while before is not None and _is_same(reader, before, point):
        paired = pairs.get(before.oid)
        before = points.load(paired) if paired is not None and points.by_oid(paired) else points.before(before)
    return before


def _is_same(reader: JoinedObjects, one: Point, other: Point) -> bool:
    states = State(one.tree, one.meta), State(other.tree, other.meta)
    return states[0] == states[1] or next(compare(reader, *states), None) is None


def redone(
    store: ObjectStore, points: Points, workspace_id: str, head: Point, count: int
) -> tuple[Point, tuple[bytes, ...]]:
    """The point that *count* redos lead to, and what can be redone after that. ClivefsError where there is nothing."""
    position = _position(store, workspace_id, head)
    if len(position.redo) < count:
        raise ClivefsError(
            "there is nothing to redo" if not position.redo else f"only {len(position.redo)} can be redone",
            remedy="a change after an undo ends that; `clivefs log` still shows every point",
        )
    kept = position.redo[: len(position.redo) - count]
    return points.load(position.redo[len(kept)]), kept
