"""A point as a commit, its name, and its clock."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.clock import HybridClock
from clivefs.mounts.points.names import (
    MS_MAX,
    automatic_session_name,
    check_session_name,
    is_session_name,
    parse_point_name,
    point_name,
)
from clivefs.mounts.points.point import Point, machine_name, make_point, quote_path, read_point, unquote_path
from clivefs.objects.encode import EMPTY_TREE, decode_commit, encode_commit, hash_object
from clivefs.objects.errors import CorruptObject

MS = 1_795_231_351_123
NAME = "2026-11-21T03:22:31.123Z"


def a_point(**changes: object) -> Point:
    values: dict[str, object] = {
        "ms": MS,
        "seq": 17,
        "session": "work",
        "machine": "desk",
        "origin": "mount",
        "tree": EMPTY_TREE,
        "meta": b"\1" * 20,
        "parent": b"\2" * 20,
        "paths": (b"src/a.py", b"b", b"c"),
    }
    return make_point(**{**values, **changes})  # type: ignore[arg-type]


paths = st.binary(max_size=30).filter(lambda path: 0 not in path)
messages = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=60)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, MS_MAX),
    st.integers(1, (1 << 63) - 1),
    st.lists(paths, max_size=120),
    st.integers(0, 10),
    messages,
    st.sampled_from(["mount", "outside", "rule:größe 1", "peer:desk", "command:restore"]),
    st.none() | st.binary(min_size=20, max_size=20),
    st.none() | st.binary(min_size=20, max_size=20),
)
def test_a_point_comes_back(
    ms: int,
    seq: int,
    changed: list[bytes],
    more: int,
    message: str,
    origin: str,
    meta: bytes | None,
    parent: bytes | None,
) -> None:
    point = a_point(
        ms=ms, seq=seq, paths=changed, more_paths=more, message=message, origin=origin, meta=meta, parent=parent
    )
    payload = encode_commit(point.commit())
    assert hash_object("commit", payload) == point.oid
    assert read_point(point.oid, decode_commit(payload)) == point
    assert len(point.paths) + point.more_paths == len(changed) + more


@settings(max_examples=200, deadline=None)
@given(paths)
def test_paths_are_quoted_on_one_line(path: bytes) -> None:
    quoted = quote_path(path)
    assert unquote_path(quoted) == path
    assert quoted.isascii()
    assert quoted == quoted.strip()
    assert b"\n" not in quoted


def test_stock_git_reads_a_point(tmp_path: Path) -> None:
    odd = [b"src/a.py", 'é\n"x"'.encode(), b"tab\there", b" blank ", b"back\\slash"]
    point = a_point(parent=None, message="before the change\n\nmore words", paths=odd, more_paths=3)

    def git(*arguments: str, stdin: bytes | None = None) -> bytes:
        return subprocess.run(["git", *arguments], cwd=tmp_path, input=stdin, capture_output=True, check=True).stdout

    git("init", "-q")
    git("mktree", stdin=b"")
    oid = git("hash-object", "-t", "commit", "-w", "--stdin", stdin=encode_commit(point.commit())).decode().strip()
    assert oid == point.oid.hex()
    shown = git("log", "-1", "--format=%s|%an <%ae>|%cI|%(trailers:key=Clive-Path,valueonly,separator=%x00)", oid)
    subject, who, when, listed = shown.rstrip(b"\n").split(b"|")
    assert subject == b"before the change"
    assert who == b"clivefs <clivefs@desk>"
    assert when in (b"2026-11-21T03:22:31+00:00", b"2026-11-21T03:22:31Z")
    assert [unquote_path(path) for path in listed.split(b"\0")] == odd
    trailers = git("log", "-1", "--format=%(trailers:only)", oid).decode().strip().splitlines()
    assert trailers[:6] == [
        "Clive-Seq: 17",
        f"Clive-Time: {NAME}",
        "Clive-Machine: desk",
        "Clive-Session: work",
        "Clive-Origin: mount",
        f"Clive-Meta: {'01' * 20}",
    ]
    assert trailers[-1] == "Clive-More-Paths: 3"


def test_the_subject_tells_what_changed() -> None:
    assert a_point().message == "src/a.py and 2 more"
    assert a_point(paths=[b"one"]).message == "one"
    assert a_point(paths=[b"%d" % number for number in range(150)]).message == "0 and 149 more"
    assert a_point(paths=[]).message == "nothing changed"
    assert a_point(parent=None).message == "start of work"
    assert len(a_point(paths=[b"x/" * 2000]).message) < 200
    assert a_point(message="\n words  \n").message == " words"


@pytest.mark.parametrize(
    "changes",
    [{"seq": 0}, {"ms": -1}, {"ms": MS_MAX + 1}, {"session": "A"}, {"origin": "else"}, {"origin": "rule:a\nb"},
     {"tree": b"short"}, {"paths": [b"a\0b"]}],
)  # fmt: skip
def test_what_is_no_point_is_not_made(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        a_point(**changes)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"Clive-Seq: 17", b"Clive-Seq: x"),
        (b"Clive-Seq: 17", b"Clive-Seq: 17\nClive-Seq: 18"),
        (b"Clive-Seq: 17\n", b""),
        (b"Clive-Time: 2026-11", b"Clive-Time: 2026-13"),
        (b"Clive-Session: work", b"Clive-Session: ../work"),
        (b"Clive-Meta: 01", b"Clive-Meta: x1"),
        (b"Clive-Origin: mount", b"Clive-Origin: moon"),
        (b"Clive-Path: src/a.py", b'Clive-Path: "src'),
        (b"Clive-Path: src/a.py", b'Clive-Path: "\\q"'),
        (b"Clive-Path: b\n", b"Clive-Path: b\n" * 100),
    ],
)
def test_a_commit_that_is_no_point_is_refused(old: bytes, new: bytes) -> None:
    commit = a_point().commit()
    assert old in commit.message
    with pytest.raises(CorruptObject):
        read_point(b"\3" * 20, commit._replace(message=commit.message.replace(old, new)))


def test_an_ordinary_commit_is_no_point() -> None:
    commit = a_point().commit()
    for message in (b"", b"subject", b"subject\n\nSigned-off-by: x <x@example.org>\n"):
        with pytest.raises(CorruptObject):
            read_point(b"\3" * 20, commit._replace(message=message))


def test_names_of_points_are_ordered_as_their_times() -> None:
    assert point_name(MS) == NAME
    times = [0, 999, 1000, MS, MS + 1, MS_MAX]
    names = [point_name(ms) for ms in times]
    assert names == sorted(names)
    assert [parse_point_name(name) for name in names] == times
    for wrong in (
        "2026-11-21T03:22:31Z",
        "2026-11-21T03:22:31.123",
        "2026-02-30T03:22:31.123Z",
        "1969-12-31T23:59:59.999Z",
        NAME.lower(),
        NAME + "\n",
        "٢026-11-21T03:22:31.123Z",
    ):
        assert parse_point_name(wrong) is None


def test_names_of_sessions() -> None:
    for good in ("a", "2026-11-21t03-22-31z", "x" * 64, "a.b-c_d"):
        assert is_session_name(good)
    hiding = ("-5m", "-1", "2026-11-21")
    for bad in ("", "A", "a/b", "x" * 65, "a..b", ".a", "a.", "a.lock", "latest", "today", "é", "a\n", *hiding):
        with pytest.raises(ClivefsError):
            check_session_name(bad)
    first = automatic_session_name(MS)
    assert first == "2026-11-21t03-22-31z"
    second = automatic_session_name(MS + 1, {first})
    assert second == "2026-11-21t03-22-31z-2"
    assert automatic_session_name(MS + 2, {first, second}) == "2026-11-21t03-22-31z-3"
    assert is_session_name(second)


def test_the_clock_only_goes_forward() -> None:
    clock = HybridClock(1000)
    assert [clock.tick(now) for now in (2000, 2000, 10, 1500, 2004, 2003)] == [2000, 2001, 2002, 2003, 2004, 2005]


def test_machines_are_called_what_an_address_can_hold() -> None:
    assert machine_name("desk.example.org") == "desk.example.org"
    assert machine_name("größe <x>") == "gr--e--x-"
    assert machine_name("...") == machine_name("") == "unknown"


def test_the_subject_is_not_an_editors_swap_file() -> None:
    found = a_point(paths=(b"src/.main.py.swp", b"src/main.py", b"src/main.py~"))
    assert found.message == "src/main.py and 2 more"
    assert a_point(paths=(b".profile",)).message == ".profile"
