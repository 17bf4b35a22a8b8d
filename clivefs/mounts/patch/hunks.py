"""Finding where hunks belong and applying them, as GNU patch does it (its locate_hunk): first at the line that the
hunk names, moved by what earlier hunks were, then further and further away, then with up to two lines of context
left out at its ends. What begins (ends) with less context than it ends (begins) with belongs to the beginning (end)
of the file. `git apply` accepts a subset of this, at the same places.

Pure: lists of lines in, lists of lines out.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import NamedTuple

from clivefs.mounts.patch.file import Hunk

FUZZ_MAX = 2
_VOTES_MAX = 200_000


class Placed(NamedTuple):
    """Where a hunk went. `line` counts from 1, in the file before the patch."""

    line: int
    offset: int
    fuzz: int


@dataclass(frozen=True, slots=True)
class Misfit:
    """A hunk that belongs nowhere: the place that looks most like it, where the lines differ first."""

    number: int
    """From 1."""
    hunk: Hunk
    line: int
    """Of the likeliest place in the file, from 1."""
    expected: tuple[bytes, ...]
    found: tuple[bytes, ...]
    differs_at: int
    """Index in `expected` of the first line that is not there."""
    is_applied: bool
    """What the hunk makes is there already."""
    only_endings: bool
    """Only carriage returns make the difference."""


def split_lines(content: bytes) -> list[bytes]:
    """Lines with their newlines; a carriage return is content."""
    if b"\r" not in content:
        return content.splitlines(keepends=True)
    pieces = content.split(b"\n")
    lines = [piece + b"\n" for piece in pieces[:-1]]
    return [*lines, pieces[-1]] if pieces[-1] else lines


def apply_hunks(content: bytes, hunks: tuple[Hunk, ...]) -> tuple[bytes, list[Placed]] | Misfit:
    """*content* with *hunks* applied, and where each went; or the first that does not fit."""
    lines = split_lines(content)
    result: list[bytes] = []
    placed: list[Placed] = []
    done = 0
    shift = 0
    for number, hunk in enumerate(hunks, 1):
        found = _place(lines, hunk, done, shift)
        if found is None:
            return _misfit(lines, number, hunk, shift)
        at, fuzz = found
        guess = _first_guess(hunk)
        shift = at - guess
        prefix, suffix = _context(hunk)
        context = max(prefix, suffix)
        skip_start = max(0, fuzz + prefix - context)
        skip_end = max(0, fuzz + suffix - context)
        old, new = hunk.old, hunk.new
        # Lines of context that were left out of the comparison stay as they are in the file.
        result += lines[done : at + skip_start]
        result += new[skip_start : len(new) - skip_end]
        done = at + len(old) - skip_end
        placed.append(Placed(at + 1, shift, fuzz))
    result += lines[done:]
    return _joined(result), placed


def with_returns(hunks: tuple[Hunk, ...]) -> tuple[Hunk, ...]:
    """*hunks* with a carriage return before every newline."""
    return tuple(
        dataclasses.replace(
            hunk,
            lines=tuple(
                (sign, text[:-1] + b"\r\n") if text.endswith(b"\n") else (sign, text) for sign, text in hunk.lines
            ),
        )
        for hunk in hunks
    )


def _joined(lines: list[bytes]) -> bytes:
    # Only the last line may lack its newline; a hunk that was moved away from the end can put one inside.
    for at in range(len(lines) - 1):
        if not lines[at].endswith(b"\n"):
            lines[at] += b"\n"
    return b"".join(lines)


def _first_guess(hunk: Hunk) -> int:
    """Index of the line where the hunk says that it belongs."""
    return hunk.old_start if hunk.old_count == 0 else max(hunk.old_start - 1, 0)


def _context(hunk: Hunk) -> tuple[int, int]:
    """How many lines of context the hunk begins and ends with."""
    signs = [sign for sign, _ in hunk.lines]
    prefix = next((at for at, sign in enumerate(signs) if sign != b" "), len(signs))
    suffix = next((at for at, sign in enumerate(reversed(signs)) if sign != b" "), len(signs))
    return prefix, suffix


def _place(lines: list[bytes], hunk: Hunk, done: int, shift: int) -> tuple[int, int] | None:
    """(index of the first line, fuzz) where the hunk fits at or after index *done*."""
    context = max(_context(hunk))
    for fuzz in range(min(FUZZ_MAX, context) + 1):
        at = _locate(lines, hunk, done, shift, fuzz)
        if at is not None:
            return at, fuzz
    return None


def _locate(lines: list[bytes], hunk: Hunk, done: int, shift: int, fuzz: int) -> int | None:
    old = hunk.old
    guess = _first_guess(hunk) + shift
    if not old:
        return guess if done <= guess <= len(lines) else None
    prefix, suffix = _context(hunk)
    context = max(prefix, suffix)
    prefix_fuzz = fuzz + prefix - context
    suffix_fuzz = fuzz + suffix - context
    if prefix_fuzz < 0 and hunk.old_start <= 1:
        if suffix_fuzz < 0 and len(old) != len(lines):
            return None
        return 0 if done == 0 and _matches(lines, old, 0, 0, max(suffix_fuzz, 0)) else None
    prefix_fuzz = max(prefix_fuzz, 0)
    if suffix_fuzz < 0:
        at = len(lines) - len(old)
        return at if at >= max(done - prefix_fuzz, 0) and _matches(lines, old, at, prefix_fuzz, 0) else None
    first = max(done - prefix_fuzz, 0)
    last = len(lines) - (len(old) - suffix_fuzz)
    for distance in range(max(last - guess, guess - first, 0) + 1):
        if first <= guess + distance <= last and _matches(lines, old, guess + distance, prefix_fuzz, suffix_fuzz):
            return guess + distance
        if first <= guess - distance <= last and _matches(lines, old, guess - distance, prefix_fuzz, suffix_fuzz):
            return guess - distance
    return None


def _matches(lines: list[bytes], old: list[bytes], at: int, prefix_fuzz: int, suffix_fuzz: int) -> bool:
    end = len(old) - suffix_fuzz
    if prefix_fuzz < end and (at + prefix_fuzz >= len(lines) or lines[at + prefix_fuzz] != old[prefix_fuzz]):
        return False
    return lines[at + prefix_fuzz : at + end] == old[prefix_fuzz:end]


# Telling where it should have gone


def _misfit(lines: list[bytes], number: int, hunk: Hunk, shift: int) -> Misfit:
    old = hunk.old
    at = _likeliest(lines, old, _first_guess(hunk) + shift)
    found = lines[at : at + len(old)]
    differs = next((i for i, line in enumerate(old) if i >= len(found) or found[i] != line), 0)
    new = hunk.new
    applied_at = _likeliest(lines, new, _first_guess(hunk) + shift)
    is_applied = bool(new) and new != old and lines[applied_at : applied_at + len(new)] == new
    bare = [line.rstrip(b"\r\n") for line in lines]
    plain = [line.rstrip(b"\r\n") for line in old]
    endings_at = _likeliest(bare, plain, _first_guess(hunk) + shift)
    only_endings = bool(plain) and bare[endings_at : endings_at + len(plain)] == plain
    return Misfit(number, hunk, at + 1, tuple(old), tuple(found), differs, is_applied, only_endings)


def _likeliest(lines: list[bytes], wanted: list[bytes], guess: int) -> int:
    """The index where most of *wanted* is at its place; of equals the nearest to *guess*."""
    places: dict[bytes, list[int]] = {}
    for index, line in enumerate(lines):
        places.setdefault(line, []).append(index)
    votes: Counter[int] = Counter()
    left = _VOTES_MAX
    for offset, line in enumerate(wanted):
        for index in places.get(line, ())[:left]:
            if index >= offset:
                votes[index - offset] += 3 if line.strip() else 1
        left = max(0, left - len(places.get(line, ())))
    fallback = min(max(guess, 0), max(len(lines) - 1, 0))
    if not votes:
        return fallback
    return max(votes.items(), key=lambda vote: (vote[1], -abs(vote[0] - guess)))[0]
