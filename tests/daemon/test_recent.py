"""What was dirty lately: every later turn is told, and where that is not known any more, nothing is."""

from __future__ import annotations

from clivefs.daemon.noticing import Noticed
from clivefs.daemon.recent import Recent
from clivefs.mounts.recording.parts import Dirty
from clivefs.mounts.tree import Owner


def test_what_had_its_turn_later_is_told() -> None:
    recent = Recent()
    start = recent.turn
    recent.add([b"a", b"b"])
    first = recent.turn
    recent.add([b"b", b"c"])
    assert recent.since(start) == {b"a", b"b", b"c"}
    assert recent.since(first) == {b"b", b"c"}
    assert recent.since(recent.turn) == set()
    assert recent.since(recent.turn + 1) is None  # of another, or nobody's
    assert Recent().instance != recent.instance


def test_everything_is_more_than_can_be_told() -> None:
    recent = Recent()
    recent.add([b"a"])
    before = recent.turn
    recent.add_everything()
    assert recent.since(before) is None
    now = recent.turn
    assert recent.since(now) == set()
    recent.add([b"b"])
    assert recent.since(now) == {b"b"}


def test_only_so_many_are_kept() -> None:
    recent = Recent(paths_max=3)
    turns = []
    for name in (b"a", b"b", b"c", b"d"):
        turns.append(recent.turn)
        recent.add([name])
    assert recent.since(turns[0]) is None
    assert recent.since(turns[1]) == {b"b", b"c", b"d"}
    recent.add([b"b"])  # again: no new one
    assert recent.since(turns[2]) == {b"b", b"c", b"d"}
    before = recent.turn
    recent.add([b"%d" % number for number in range(5)])
    assert recent.since(before) is None
    assert recent.since(recent.turn) == set()


def test_who_asks_while_a_directory_is_looked_at_is_told_of_it_again() -> None:
    """Its inner directories are watched from when they were looked at: a change before that is not heard of."""
    noticed = Noticed(Owner(0, 0), lambda: None, tuple)
    try:
        noticed.take(open_too=True)  # everything, at first
        noticed.note_path(Dirty(b"", b"moved/in", True), by_mount=False)
        with noticed.parts_of(noticed.take(open_too=True)):
            token = noticed.recent.turn
            assert noticed.unrecorded() == {b"moved/in"}
        assert noticed.unrecorded() == set()
        assert noticed.recent.since(token) == {b"moved/in"}
        assert noticed.recent.since(noticed.recent.turn) == set()
    finally:
        noticed.close()
