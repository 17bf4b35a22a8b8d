"""The journal: what changed from point to point."""

from __future__ import annotations

import os
from pathlib import Path

from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.changes import changes_after
from clivefs.objects.memory import MemoryStore
from tests.mounts.points.pointworlds import History, directory, regular


class World:
    """Points of one file tree."""

    def __init__(self, tmp_path: Path) -> None:
        self.store = MemoryStore()
        self.history = History(self.store)
        self.reader = JoinedObjects((self.store,), os.fspath(tmp_path))

    def record(self, **files: str) -> int:
        """The number of a new point with these files (`_` in a name is `/`)."""
        inner: dict[bytes, dict[bytes, object]] = {}
        top: dict[bytes, object] = {}
        for name, content in files.items():
            parent, _, rest = name.encode().partition(b"_")
            if rest:
                inner.setdefault(parent, {})[rest] = regular(content.encode())
            else:
                top[parent] = regular(content.encode())
        top |= {name: directory(found) for name, found in inner.items()}  # type: ignore[arg-type]
        return self.history.record(directory(top)).seq  # type: ignore[arg-type]

    def after(self, seq: int, *paths: bytes) -> list[tuple[int, str, bytes, bytes | None]]:
        found = changes_after(self.history.points, self.reader, seq, paths)
        return [(each.point.seq, each.kind, each.path, each.old_path) for each in found]

    def thin(self, seq: int) -> None:
        """The point of that number goes, as thinning takes it away."""
        points = self.history.points
        gone = points.by_seq(seq)
        assert gone is not None
        with self.store.batch() as batch:
            batch.meta_put("points", points._key(gone.ms), None)


def test_each_kind(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.record(a="one", d_b="two", d_c="three", e="five")
    second = world.record(a="ONE", d_new="two", f_c="three", g="six")
    assert world.after(0)[0] == (first, "create", b"a", None)
    changes = world.after(first)
    assert {seq for seq, *_ in changes} == {second}
    assert set(changes) == {
        (second, "modify", b"a", None),
        (second, "rename", b"d/new", b"d/b"),
        (second, "create", b"f", None),
        (second, "rename", b"f/c", b"d/c"),
        (second, "delete", b"e", None),
        (second, "create", b"g", None),
    }
    assert world.after(second) == []


def test_paths(tmp_path: Path) -> None:
    world = World(tmp_path)
    first = world.record(a="one", d_b="two")
    world.record(a="two", d_b="three", dd="x")
    assert [path for _, _, path, _ in world.after(first, b"d")] == [b"d/b"]
    assert [path for _, _, path, _ in world.after(first, b"d/b", b"a")] == [b"a", b"d/b"]


def test_what_was_thinned_out_is_said(tmp_path: Path) -> None:
    world = World(tmp_path)
    numbers = [world.record(a=str(number)) for number in range(6)]
    world.thin(numbers[2])
    world.thin(numbers[3])
    gap = [(numbers[4], "overflow", b"", None), (numbers[4], "modify", b"a", None)]
    last = (numbers[5], "modify", b"a", None)
    assert world.after(numbers[1]) == [*gap, last]
    assert world.after(numbers[2]) == [*gap, last]
    assert world.after(numbers[3]) == [*gap, last]
    assert world.after(numbers[4]) == [last]
    for number in numbers[:2]:
        world.thin(number)
    assert world.after(0) == [(numbers[4], "overflow", b"", None), (numbers[4], "create", b"a", None), last]
    assert world.after(numbers[0])[0] == (numbers[4], "overflow", b"", None)


def test_a_number_that_never_was(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.after(7) == []
    number = world.record(a="one")
    assert world.after(number + 1) == [(number, "overflow", b"", None)]
