"""The stat cache: what it keeps, what it does not trust, and that a damaged file is as good as none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clivefs.mounts.recording.statcache import DECODED_ROWS_MAX, TICK_NS, Row, StatCache, directory_key, is_settled

rows = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: b"\0" not in name and b"/" not in name),
    st.builds(
        Row,
        st.integers(0, (1 << 64) - 1),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.integers(0, (1 << 63) - 1),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, 1),
        st.binary(min_size=20, max_size=20),
    ),
    max_size=5,
)


def row(number: int) -> Row:
    return Row(number, 1, 2, 3, 0o100644, 0, bytes(20))


@given(st.dictionaries(st.integers(0, (1 << 64) - 1), rows, max_size=4))
def test_what_is_saved_is_loaded(
    tmp_path_factory: pytest.TempPathFactory, directories: dict[int, dict[bytes, Row]]
) -> None:
    path = os.fspath(tmp_path_factory.mktemp("c") / "cache")
    cache = StatCache()
    for key, each in directories.items():
        cache.replace(key, each)
    cache.save(path)
    loaded = StatCache()
    loaded.load(path)
    for key, each in directories.items():
        assert loaded.rows(key) == each
    assert loaded.rows(directory_key(b"no", b"such", 1)) == {}


@pytest.mark.parametrize("damage", ["short", "flipped", "empty", "other", "gone"])
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "cache"
    cache = StatCache()
    cache.replace(1, {b"a": row(1), b"b": row(2)})
    cache.save(os.fspath(path))
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        at = len(content) // 2
        flipped = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
        path.write_bytes({"short": content[:-7], "flipped": flipped, "empty": b"", "other": b"something else"}[damage])
    loaded = StatCache()
    loaded.load(os.fspath(path))
    assert loaded.rows(1) == {}


def test_memory_is_bounded_and_nothing_is_forgotten() -> None:
    cache = StatCache()
    directories = {key: {b"%d" % number: row(number) for number in range(key % 50 + 1)} for key in range(5_000)}
    for key, each in directories.items():
        cache.replace(key, each)
    assert sum(map(len, directories.values())) > 2 * DECODED_ROWS_MAX
    cache.note(7, b"new", row(9))
    cache.note(7, b"0", None)
    assert cache.rows(7) == {name: each for name, each in directories[7].items() if name != b"0"} | {b"new": row(9)}
    for key, each in directories.items():
        if key != 7:
            assert cache.rows(key) == each
    cache.retain({1, 2})
    assert cache.rows(2)
    assert not cache.rows(3)


def test_late_times_are_not_trusted(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    st_now = os.stat(tmp_path / "f")
    assert not is_settled(st_now, st_now.st_ctime_ns)
    assert not is_settled(st_now, st_now.st_ctime_ns + TICK_NS)
    assert is_settled(st_now, st_now.st_ctime_ns + 3_000_000_000)
    os.utime(tmp_path / "f", ns=(1, st_now.st_ctime_ns + 10_000_000_000))
    assert not is_settled(os.stat(tmp_path / "f"), st_now.st_ctime_ns + 3_000_000_000), "a time in the future"
