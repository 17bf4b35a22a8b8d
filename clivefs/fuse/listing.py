"""Open directories: their listings, and the positions in them that the kernel goes by.

A position must lead to the same place whatever happens to the directory meanwhile: no name that stays is told twice or
left out. Two ways keep that.

- A listing that only its handle reads is remembered as of the last rewind; a position is an index in it.
- A listing that the kernel may keep (FOPEN_CACHE_DIR) is read by handles that never asked for its beginning: the kernel
  drops a page of it whenever it likes, and goes on with us, at a position that it had from another handle. There a
  position is computed from the name that it follows, and names are listed in the order of their positions, so that
  every listing of the directory, old or new, has the same ones.

The kernel itself goes on in a kept listing that was read anew only where it finds the very position: it misses the rest
when that name has gone meanwhile. So one open handle of a directory at a time takes part in keeping.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import NamedTuple
from zlib import crc32

DOTS = (b".", b"..")
_DOTS_END = 2
"""The position after both of them. Positions of names are higher, and positive in 64 bits."""


class Listing(NamedTuple):
    """The names of a directory as of one moment, and the position after each. Begins with the dots."""

    names: list[bytes]
    positions: list[int]

    def index_after(self, position: int) -> int:
        """Where to go on after *position*."""
        return bisect_right(self.positions, position)


def in_order(names: list[bytes]) -> Listing:
    """A listing of *names* in their own order, for one handle."""
    shown = [*DOTS, *names]
    return Listing(shown, list(range(1, len(shown) + 1)))


def by_position(names: list[bytes]) -> Listing:
    """A listing of *names* whose positions depend on the names alone."""
    shown, positions = [*DOTS], [1, _DOTS_END]
    last = _DOTS_END
    for position, name in sorted([(position_of(name), name) for name in names]):
        last = max(position, last + 1)  # two names that share one are told one after the other
        shown.append(name)
        positions.append(last)
    return Listing(shown, positions)


def position_of(name: bytes) -> int:
    """The position after *name*: 62 bits."""
    return (crc32(name) << 30) | (crc32(name[::-1]) >> 2)


class DirHandle:
    """One open directory."""

    __slots__ = ("by_position", "keeps", "listing", "nodeid")

    def __init__(self, nodeid: int, *, by_position: bool = False) -> None:
        self.nodeid = nodeid  # not the node: another may answer to the number after a change of the mount table
        self.by_position = by_position
        self.keeps = False
        """The kernel may keep what it reads through this handle."""
        self.listing: Listing | None = None


class OpenedDirectory(NamedTuple):
    """An open directory as a reply tells of it."""

    handle: int
    kept: bool
    """The kernel may keep what it reads, and read what it has kept."""
    trusted: bool
    """What it has from before is true."""
