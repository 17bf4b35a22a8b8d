"""The intent log: what is replayed, what is cut off, what a full disk leaves."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.overlay.intentlog import IntentLog, decode_intent, encode_intent
from clivefs.mounts.overlay.marks import Action, ActionKind, Edit, EditKind, Marks


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)
    FAULTS.clear()


def state(marks: Marks) -> dict[bytes, object]:
    found: dict[bytes, object] = {path: (mark.kind, mark.target) for path, mark in marks.root.walk()}
    found[b"/origins"] = dict(marks.origins)
    return found


def write(log: IntentLog, *edits: Edit, action: Action | None = None) -> None:
    log.begin(list(edits), action)
    log.marks.apply(edits)


def hide(path: bytes) -> Edit:
    return Edit(EditKind.HIDE, path)


HIDE_A, HIDE_B = hide(b"a"), hide(b"d/b")
REMOVE = Action(ActionKind.REMOVE, b"tree/a", b"", 7)


def test_replay_gives_what_was_written(dir_fd: int) -> None:
    log = IntentLog(dir_fd)
    write(log, HIDE_A, Edit(EditKind.ORIGIN, inode=5, number=99))
    write(log, Edit(EditKind.REDIRECT, b"d/x", b"old"), Edit(EditKind.HIDE, b"d/x/y"))
    write(log, Edit(EditKind.MOVE, b"d/x", b"e"))
    expected = state(log.marks)
    log.close()
    again = IntentLog(dir_fd)
    assert state(again.marks) == expected
    assert again.marks.at(b"e/y") is not None
    assert again.pending is None
    again.close()


def test_last_intent_is_pending_until_settled(dir_fd: int) -> None:
    log = IntentLog(dir_fd)
    write(log, HIDE_A, action=REMOVE)
    log.close()
    again = IntentLog(dir_fd)
    assert again.pending == REMOVE
    again.settle()
    again.close()
    assert IntentLog(dir_fd).pending is None


def test_aborted_intent_is_left_out(dir_fd: int) -> None:
    log = IntentLog(dir_fd)
    write(log, HIDE_A)
    log.begin([HIDE_B], REMOVE)
    log.abort()
    log.close()
    again = IntentLog(dir_fd)
    assert again.marks.at(b"d/b") is None
    assert again.marks.at(b"a") is not None
    assert again.pending is None
    again.close()


@given(cut=st.integers(min_value=1, max_value=30), garbage=st.binary(max_size=40))
def test_torn_tail_is_cut_off(tmp_path_factory: pytest.TempPathFactory, cut: int, garbage: bytes) -> None:
    directory = tmp_path_factory.mktemp("log")
    fd = os.open(directory, os.O_RDONLY)
    log = IntentLog(fd)
    write(log, HIDE_A)
    before = log._end
    write(log, HIDE_B)
    end = log._end
    log.close()
    path = directory / "marks"
    data = path.read_bytes()[: max(before, end - cut)] + garbage
    path.write_bytes(data)
    again = IntentLog(fd)
    assert again.marks.at(b"a") is not None
    assert again.marks.at(b"d/b") is None
    write(again, hide(b"later"))
    again.close()
    last = IntentLog(fd)
    assert last.marks.at(b"later") is not None
    last.close()
    os.close(fd)


def test_a_disk_that_fails_the_abort_too(dir_fd: int) -> None:
    log = IntentLog(dir_fd)
    write(log, HIDE_A)
    log.begin([HIDE_B], None)

    def full() -> None:
        raise OSError(errno.EIO, "planted")

    FAULTS.plant("marks.append", full)
    log.abort()
    with pytest.raises(OSError, match="planted"):
        log.begin([hide(b"c")], None)
    FAULTS.clear()
    write(log, hide(b"c"))
    log.close()
    again = IntentLog(dir_fd)
    assert again.marks.at(b"d/b") is None
    assert again.marks.at(b"c") is not None
    again.close()


def test_compacting_keeps_everything_and_is_short(dir_fd: int, tmp_path: Path) -> None:
    log = IntentLog(dir_fd)
    for number in range(3000):
        write(log, hide(b"dir/%d" % (number % 7)), Edit(EditKind.ORIGIN, inode=number % 5, number=number + 2))
    expected = state(log.marks)
    log.compact()
    write(log, hide(b"more"))
    log.close()
    assert log._end < 1000
    again = IntentLog(dir_fd)
    assert again.marks.at(b"more") is not None
    write(again, Edit(EditKind.FORGET, b"more"))
    assert state(again.marks) == expected
    again.close()
    assert sorted(os.listdir(tmp_path)) == ["marks"]


def test_failed_compaction_leaves_the_old_log(dir_fd: int) -> None:
    log = IntentLog(dir_fd)
    write(log, HIDE_A)

    def full() -> None:
        raise OSError(errno.ENOSPC, "planted")

    FAULTS.plant("marks.compacted", full)
    with pytest.raises(OSError, match="planted"):
        log.compact()
    write(log, HIDE_B)
    log.close()
    again = IntentLog(dir_fd)
    assert again.marks.at(b"a") is not None
    assert again.marks.at(b"d/b") is not None
    again.close()


def test_newer_format_is_refused(dir_fd: int, tmp_path: Path) -> None:
    (tmp_path / "marks").write_bytes(b"clivefs marks 2\n....")
    with pytest.raises(ClivefsError, match="newer format"):
        IntentLog(dir_fd)


names = st.binary(min_size=1, max_size=20)
numbers = st.integers(0, 2**64 - 1)
path_kinds = st.sampled_from([kind for kind in EditKind if kind < EditKind.ORIGIN])
edits = st.one_of(
    st.tuples(path_kinds, names, names).map(lambda each: Edit(*each)),
    st.tuples(st.sampled_from([EditKind.ORIGIN, EditKind.UNORIGIN]), numbers, numbers).map(
        lambda each: Edit(each[0], inode=each[1], number=each[2])
    ),
)
actions = st.tuples(
    st.sampled_from(ActionKind), names, names, numbers, st.integers(0, 3), st.integers(0, 0xFFFFFFFF)
).map(lambda each: Action(*each))


@given(st.lists(edits, max_size=5), st.none() | actions)
def test_intents_come_back(some: list[Edit], action: Action | None) -> None:
    assert decode_intent(encode_intent(some, action)) == (some, action)
