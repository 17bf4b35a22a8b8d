"""What of a foreign tree is shown, and the trees that are kept taken apart.

Everything that decides which entries may appear lives here: names and modes that no checkout may have
(`check_tree_entry`) and duplicates are left out, logged once per tree. Memory is bounded by the number
of entries kept.
"""

from __future__ import annotations

import logging
import stat
import threading
from collections import OrderedDict
from collections.abc import Sequence

from clivefs.objects.encode import TreeEntry, check_tree_entry

log = logging.getLogger(__name__)

TREE_ENTRIES_MAX = 200_000
UNKNOWN = -1
_LOGGED_MAX = 10_000


class ShownEntry:
    """One entry of a tree as it is shown; shared by all places where the same tree appears."""

    __slots__ = ("mode", "oid", "size")

    def __init__(self, mode: int, oid: bytes) -> None:
        self.mode = mode
        """git's mode: 040000, 100644, 100755, 120000, 160000."""
        self.oid = oid
        self.size = UNKNOWN


ST_MODES = {
    0o040000: stat.S_IFDIR | 0o755,
    0o160000: stat.S_IFDIR | 0o755,
    0o100644: stat.S_IFREG | 0o644,
    0o100755: stat.S_IFREG | 0o755,
    0o120000: stat.S_IFLNK | 0o777,
}


class TreeCache:
    """Trees taken apart, the least recently used given up first; and what of them is not shown."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._trees: OrderedDict[bytes, dict[bytes, ShownEntry]] = OrderedDict()
        self._count = 0
        self._logged: set[bytes] = set()
        self._lock = threading.Lock()  # jobs put, the loop gets

    def get(self, oid: bytes) -> dict[bytes, ShownEntry] | None:
        with self._lock:
            found = self._trees.get(oid)
            if found is not None:
                self._trees.move_to_end(oid)
            return found

    def put(self, oid: bytes, shown: dict[bytes, ShownEntry]) -> None:
        with self._lock:
            if oid in self._trees:
                return
            self._trees[oid] = shown
            self._count += len(shown) + 1
            while self._count > self._entries_max and len(self._trees) > 1:
                _, old = self._trees.popitem(last=False)
                self._count -= len(old) + 1

    def clear(self) -> None:
        with self._lock:
            self._trees.clear()
            self._count = 0

    def shown(self, oid: bytes, entries: list[TreeEntry]) -> dict[bytes, ShownEntry]:
        """The entries that may be shown, by name in the order of their bytes."""
        shown, refused = visible(entries)
        if refused and oid not in self._logged and len(self._logged) < _LOGGED_MAX:
            self._logged.add(oid)
            log.warning(
                "tree %s: %d of %d entries are not shown, the first %r: %s",
                oid.hex(),
                len(refused),
                len(entries),
                refused[0][0].name[:80],
                refused[0][1],
            )
        return {entry.name: ShownEntry(entry.mode, entry.oid) for entry in sorted(shown, key=_by_name)}


def visible(entries: Sequence[TreeEntry]) -> tuple[list[TreeEntry], list[tuple[TreeEntry, str]]]:
    """What of a foreign tree may be shown, modes as git canonicalises them, in stored order; and what may
    not, with the reason. Of entries with one name only the first counts."""
    shown: list[TreeEntry] = []
    refused: list[tuple[TreeEntry, str]] = []
    names: set[bytes] = set()
    for entry in entries:
        mode, name, oid = entry
        why = check_tree_entry(mode, name)
        if why is None and name in names:
            why = "the name appears twice"
        if why is not None:
            refused.append((entry, why))
            continue
        names.add(name)
        if mode not in ST_MODES:
            entry = TreeEntry(0o100755 if mode & 0o100 else 0o100644, name, oid)
        shown.append(entry)
    return shown, refused


def _by_name(entry: TreeEntry) -> bytes:
    return entry.name
