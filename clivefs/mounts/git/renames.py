"""Which files that came are files that went, under another name: the same content, else text of which at least half is
alike. A symlink is the same only with its target.

Files of the same content are found however many there are; alike ones among the first `_CANDIDATES_MAX` of each kind.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Mapping, Set

from clivefs.mounts.git.treeeditor import Version

_SIMILARITY_MIN = 0.5
_CANDIDATES_MAX = 200
_KEPT_LINES_MAX = 500_000

Lines = Callable[[Version], list[bytes]]
"""The lines of a file; none where it is binary or too large."""


def renamed(
    gone: Mapping[bytes, Version], added: Mapping[bytes, Version], lines: Lines, *, wanted: Set[bytes]
) -> dict[bytes, bytes]:
    """The new names, by old name, of those of *gone* that are among *added*, each at most once. Files that are only
    alike are looked for where their old name is *wanted*."""
    left = dict(sorted(added.items()))
    found: dict[bytes, bytes] = {}
    by_content: dict[tuple[int, bytes], list[bytes]] = {}
    for path, version in left.items():
        by_content.setdefault(_content(version), []).append(path)
    for path, version in sorted(gone.items()):
        same = by_content.get(_content(version))
        if same:
            found[path] = next((each for each in same if _name(each) == _name(path)), same[0])
            same.remove(found[path])
            del left[found[path]]
    alike = _Alike(lines)
    files = [path for path in left if stat.S_ISREG(left[path].mode)]
    unknown = [path for path in sorted(wanted & gone.keys() - found.keys()) if stat.S_ISREG(gone[path].mode)]
    for path in unknown[:_CANDIDATES_MAX]:
        ratios = {each: alike.ratio(gone[path], left[each]) for each in files[:_CANDIDATES_MAX]}
        best = max(ratios, key=ratios.__getitem__, default=None)
        if best is not None and ratios[best] >= _SIMILARITY_MIN:
            found[path] = best
            files.remove(best)
    return found


def _content(version: Version) -> tuple[int, bytes]:
    """What files have alike that are the same: two files may differ in being executable."""
    return stat.S_IFMT(version.mode), version.oid


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


class _Alike:
    """How much of two texts is alike, whatever the order of their lines."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        self._counts: dict[bytes, tuple[int, Counter[int]]] = {}
        self._kept = 0

    def ratio(self, one: Version, other: Version) -> float:
        """The part of all lines that both have; 0 where that is less than counts."""
        (size, counts), (other_size, others) = self._counted(one), self._counted(other)
        if not size or not other_size or 2 * min(size, other_size) < _SIMILARITY_MIN * (size + other_size):
            return 0.0
        if len(others) < len(counts):
            counts, others = others, counts
        both = sum(min(count, others[line]) for line, count in counts.items() if line in others)
        return 2 * both / (size + other_size)

    def _counted(self, version: Version) -> tuple[int, Counter[int]]:
        """The number of lines, and how often there is each (by its hash)."""
        counted = self._counts.get(version.oid)
        if counted is None:
            lines = self._lines(version)
            counted = len(lines), Counter(map(hash, lines))
            if self._kept + len(lines) > _KEPT_LINES_MAX:
                self._counts.clear()
                self._kept = 0
            self._kept += len(lines)
            self._counts[version.oid] = counted
        return counted
