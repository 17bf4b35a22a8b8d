"""Which paths of an overlay are nothing but what the lower layer has there, told without looking them up.

For whoever must look at thousands of paths, of which the upper and its marks touch a few. Each directory of the upper
is listed once, so what is told is true while nobody else changes the tree.
"""

from __future__ import annotations

import enum
import stat
from typing import NamedTuple

from clivefs.mounts.overlay.marks import Mark, MarkKind
from clivefs.mounts.overlay.upper import PathFds, Upper, list_for_us


class Shown(enum.Enum):
    """Where what is shown at a path comes from, as far as can be told so."""

    LOWER = enum.auto()
    """The upper has nothing at the path, and no mark at, above or below it."""
    UPPER = enum.auto()
    """The upper has a file there that is no directory."""
    UNKNOWN = enum.auto()


class _Directory(NamedTuple):
    kinds: dict[bytes, int] | None
    """What the upper has in it; None where it has no such directory."""
    mark: Mark | None
    plain: bool
    """No mark at it or above, and no file of the upper in the place of a directory."""


class Untouched:
    """Of one upper. May run in a thread. `close` it."""

    def __init__(self, upper: Upper) -> None:
        self._fds = PathFds(upper.tree_fd)
        self._directories = {b"": _Directory(self._list(b""), upper.root_mark, True)}

    def shown(self, path: bytes) -> Shown:
        """What is shown at *path*, which is not the root."""
        head, _, name = path.rpartition(b"/")
        directory = self._directory(head)
        kind = directory.kinds.get(name) if directory.kinds is not None else None
        if kind is not None:
            return Shown.UPPER if kind != stat.S_IFDIR else Shown.UNKNOWN
        unmarked = directory.mark is None or directory.mark.child(name) is None
        return Shown.LOWER if directory.plain and unmarked else Shown.UNKNOWN

    def _directory(self, path: bytes) -> _Directory:
        missing: list[bytes] = []
        while (known := self._directories.get(path)) is None:
            missing.append(path)
            path = path.rpartition(b"/")[0]
        for each in reversed(missing):
            name = each.rpartition(b"/")[2]
            kind = known.kinds.get(name) if known.kinds is not None else None
            mark = known.mark.child(name) if known.mark is not None else None
            known = self._directories[each] = _Directory(
                self._list(each) if kind == stat.S_IFDIR else None,
                mark,
                known.plain and kind in (None, stat.S_IFDIR) and (mark is None or mark.kind is MarkKind.INHERIT),
            )
        return known

    def _list(self, path: bytes) -> dict[bytes, int]:
        return dict(list_for_us(self._fds.open(path)))

    def close(self) -> None:
        self._fds.close()
