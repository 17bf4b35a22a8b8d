"""Objects from several places: who is asked, and what is answered where one of them is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from clivefs.mounts.git.joined import JoinedObjects
from clivefs.objects.errors import CorruptObject, ObjectMissing
from clivefs.objects.memory import MemoryStore


class Counted(MemoryStore):
    """A store that counts how often a header is asked for, and may be damaged."""

    asked = 0
    damaged = False

    def header(self, oid: bytes) -> tuple[str, int]:
        self.asked += 1
        if self.damaged:
            raise CorruptObject("it is damaged", oid=oid)
        return super().header(oid)


def put(store: MemoryStore, content: bytes) -> bytes:
    with store.batch() as batch:
        return batch.blob(content)


@pytest.fixture
def two(tmp_path: Path) -> tuple[Counted, Counted, JoinedObjects]:
    ours, theirs = Counted(), Counted()
    return ours, theirs, JoinedObjects([ours, theirs], str(tmp_path))


def test_who_had_the_last_one_is_asked_first(two: tuple[Counted, Counted, JoinedObjects]) -> None:
    ours, theirs, joined = two
    for number in range(20):
        assert joined.header(put(theirs, b"%d" % number)) == ("blob", len(str(number)))
    assert (ours.asked, theirs.asked) == (1, 20)
    for number in range(20):
        assert joined.header(put(ours, b"ours %d" % number)) == ("blob", len(f"ours {number}"))
    assert (ours.asked, theirs.asked) == (21, 21)


def test_a_damaged_copy_is_passed_over_for_a_whole_one(two: tuple[Counted, Counted, JoinedObjects]) -> None:
    ours, theirs, joined = two
    joined.header(put(theirs, b"theirs alone"))
    both = put(ours, b"of both")
    assert put(theirs, b"of both") == both
    theirs.damaged = True
    assert joined.header(both) == ("blob", 7)
    with pytest.raises(CorruptObject):
        joined.header(put(theirs, b"theirs too"))


def test_what_nobody_has_is_missing(two: tuple[Counted, Counted, JoinedObjects], tmp_path: Path) -> None:
    *_, joined = two
    for readers in (joined, JoinedObjects([], str(tmp_path))):
        with pytest.raises(ObjectMissing):
            readers.header(b"\1" * 20)
