"""Merging in this process says what `git merge-file` says, or nothing."""

from __future__ import annotations

import random
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.objects.textmerge import MergedText, merge_in_process

FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LABELS = ("your edits", "v1", "vendor/x@2.0 é")
# Few different lines, so that there is more than one way to tell what changed; some alike but for blanks, some without
# a letter (those between two conflicts make them one), some that look like markers.
LINES = (b"a", b"b", b"", b"{", b"}", b"  a", b"\ta", b"word word", b"\r", b"<<<<<<< your edits", b"=======", b"\xff")
TEXTS = st.lists(st.sampled_from(LINES), max_size=12)


def by_git(ours: bytes, base: bytes, theirs: bytes, directory: Path) -> MergedText:
    for name, content in (("ours", ours), ("base", base), ("theirs", theirs)):
        (directory / name).write_bytes(content)
    labels = [word for label in LABELS for word in ("-L", label)]
    command = ["git", "-c", "merge.conflictStyle=merge", "merge-file", "-p", "-q", *labels, "ours", "base", "theirs"]
    done = subprocess.run(command, cwd=directory, capture_output=True, check=False)
    assert 0 <= done.returncode <= 127, done.stderr
    return MergedText(done.stdout, done.returncode == 0)


def merged(ours: bytes, base: bytes, theirs: bytes) -> MergedText | None:
    one, two, three = (label.encode() for label in LABELS)
    return merge_in_process(ours, base, theirs, (one, two, three))


def check(ours: bytes, base: bytes, theirs: bytes, directory: Path) -> bool:
    """Whether it was merged, and then as git does it."""
    mine = merged(ours, base, theirs)
    if mine is None:
        return False
    assert mine == by_git(ours, base, theirs, directory)
    return True


@st.composite
def changed(draw: st.DrawFn, lines: list[bytes]) -> bytes:
    """*lines* with a few stretches of them replaced, removed or doubled, as a file."""
    lines = list(lines)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(lines)))
        end = at + draw(st.integers(0, 3))
        lines[at:end] = draw(st.one_of(st.lists(st.sampled_from(LINES), max_size=3), st.just(lines[at:end] * 2)))
    ending = draw(st.sampled_from([b"\n", b"\n", b"\r\n"]))
    return ending.join(lines) + draw(st.sampled_from([ending, b""]))


@FEW
@given(data=st.data())
def test_as_git_says_it(data: st.DataObject, tmp_path: Path) -> None:
    lines = data.draw(TEXTS) * data.draw(st.integers(1, 5))
    base, ours, theirs = (data.draw(changed(each)) for each in (lines, lines, lines))
    assert check(ours, base, theirs, tmp_path) == bool(ours and theirs)


@pytest.mark.parametrize("seed", range(12))
def test_long_texts_with_many_equal_lines(seed: int, tmp_path: Path) -> None:
    """Here git's heuristics (which lines it leaves out, when it gives up looking) decide."""
    rng = random.Random(seed)
    lines = [rng.choice([*LINES, b"%d" % rng.randrange(400)]) for _ in range(rng.choice([300, 3000]))]
    sides = []
    for _ in range(2):
        side = list(lines)
        for _ in range(rng.randrange(1, 40)):
            at, to, count = rng.randrange(len(side)), rng.randrange(len(side)), rng.randrange(1, 30)
            moved = side[at : at + count]
            side[at : at + count] = rng.choice([[], [b"new %d" % seed], moved + moved])
            side[to:to] = rng.choice([[], moved])
        sides.append(b"\n".join(side) + b"\n")
    assert check(sides[0], b"\n".join(lines) + b"\n", sides[1], tmp_path)


@pytest.mark.parametrize("base", [b"", b"x\n", b"x\r\n", b"\n"])
def test_an_empty_base_is_told_of_as_git_does(base: bytes, tmp_path: Path) -> None:
    assert check(b"one\n", base, b"two", tmp_path)
    assert check(b"one\r\n", base, b"two\r\n", tmp_path)


def test_nothing_is_said_of_empty_sides_and_of_large_files() -> None:
    assert merged(b"", b"a\n", b"b\n") is None
    assert merged(b"b\n", b"a\n", b"") is None
    assert merged(b"a\n" * (3 << 20), b"b\n", b"c\n" * (3 << 20)) is None
