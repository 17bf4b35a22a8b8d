"""What is kept for forks before the live view changes it: the log and the paths that it translates."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.forks.inherited import Inherited, RulesOfThen


def opened(directory: Path) -> Inherited:
    directory.mkdir(exist_ok=True)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Inherited(fd)
    finally:
        os.close(fd)


@pytest.fixture
def inherited(tmp_path: Path) -> Iterator[Inherited]:
    made = opened(tmp_path / "fork")
    yield made
    made.close()


def test_what_was_not_there_covers_what_is_below(inherited: Inherited) -> None:
    inherited.note_absent(b"node_modules/new")
    assert inherited.is_absent(b"node_modules/new")
    assert inherited.is_absent(b"node_modules/new/deep/file")
    assert not inherited.is_absent(b"node_modules/newer")
    assert not inherited.is_absent(b"node_modules")


def test_paths_follow_renames(inherited: Inherited) -> None:
    inherited.note_moved(b"a", b"b")
    assert inherited.live_path(b"a/x") == b"b/x"
    assert inherited.own_path(b"b/x") == b"a/x"
    assert inherited.own_path(b"a/x") is None  # what is there now came later
    inherited.note_moved(b"b", b"a")
    assert inherited.live_path(b"a/x") == b"a/x"
    assert inherited.own_path(b"a/x") == b"a/x"


def test_exchanged_directories(inherited: Inherited) -> None:
    inherited.note_moved(b"a", b"b", exchanged=True)
    assert inherited.live_path(b"a/1") == b"b/1"
    assert inherited.live_path(b"b/1") == b"a/1"
    assert inherited.own_path(b"a/1") == b"b/1"


_NAMES = st.sampled_from([b"a", b"b", b"c"])
_PATHS = st.lists(_NAMES, min_size=1, max_size=3).map(b"/".join)


def _rename(tree: dict[bytes, bytes], source: bytes, target: bytes) -> None:
    """Rename the directory *source* of the plain dict *tree* (path to the name it had at first)."""
    for path in [each for each in tree if each == source or each.startswith(source + b"/")]:
        tree[target + path[len(source) :]] = tree.pop(path)


@settings(max_examples=200, deadline=None)
@given(moves=st.lists(st.tuples(_PATHS, _PATHS), max_size=6))
def test_renames_are_as_of_a_plain_tree(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[bytes, bytes]]
) -> None:
    tree = {
        b"/".join(parts): b"/".join(parts)
        for parts in [(x, y, z) for x in (b"a", b"b", b"c") for y in (b"a", b"b") for z in (b"f", b"g")]
    }
    inherited = opened(tmp_path_factory.mktemp("fork") / "f")
    try:
        for source, target in moves:
            below_each_other = (source + b"/").startswith(target + b"/") or (target + b"/").startswith(source + b"/")
            there = any(path.startswith(source + b"/") for path in tree)
            taken = any(path == target or path.startswith(target + b"/") for path in tree)
            if below_each_other or not there or taken:
                continue
            inherited.note_moved(source, target)
            _rename(tree, source, target)
        for now, first in tree.items():
            assert inherited.live_path(first) == now
            assert inherited.own_path(now) == first
    finally:
        inherited.close()


def test_a_log_that_was_cut_short_ends_before_the_cut(tmp_path: Path) -> None:
    first = opened(tmp_path / "fork")
    first.note_absent(b"one")
    first.note_moved(b"x", b"y")
    first.note_absent(b"two")
    first.close()
    log = tmp_path / "fork" / "inherited" / "log"
    whole = log.read_bytes()
    for size in range(len(whole)):
        log.write_bytes(whole[:size])
        again = opened(tmp_path / "fork")
        assert not again.is_absent(b"two")
        again.note_absent(b"three")
        again.close()
        once_more = opened(tmp_path / "fork")
        assert once_more.is_absent(b"three")
        once_more.close()


def test_a_damaged_record_ends_the_log(tmp_path: Path) -> None:
    first = opened(tmp_path / "fork")
    first.note_absent(b"one")
    first.note_absent(b"two")
    first.close()
    log = tmp_path / "fork" / "inherited" / "log"
    content = bytearray(log.read_bytes())
    content[-6] ^= 0x40
    log.write_bytes(content)
    again = opened(tmp_path / "fork")
    assert again.is_absent(b"one")
    assert not again.is_absent(b"two")
    again.close()


def test_rules_are_those_of_the_beginning(tmp_path: Path) -> None:
    (tmp_path / "fork").mkdir()
    rules = RulesOfThen(exclude=("*.tmp",), info_exclude={"": "/lib/\n"})
    Inherited.write_rules(os.fspath(tmp_path / "fork"), rules)
    again = opened(tmp_path / "fork")
    assert again.rules == rules
    again.close()
