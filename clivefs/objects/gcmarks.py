"""Which objects are reachable: a mark for each of those that there were when the collection began.

An object that is younger is in no one's way: it is not among these, so it is never taken for garbage.

Memory is 21 bytes an object and some 20 MiB.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Callable, Iterable, Iterator

from clivefs.objects.encode import MODE_GITLINK, OID_BYTES, decode_tag, stored_entries
from clivefs.objects.errors import ObjectMissing, ObjectTooLarge
from clivefs.objects.interface import ObjectStore

_SLOTS = 1 << 16
_SEEN_MAX = 1 << 16
"""Entries of trees that are remembered: the next tree is most often the same directory with one entry changed."""


class Marks:
    """The names that there were, and which of them are marked."""

    def __init__(self, names: Iterable[bytes]) -> None:
        """*names*: in order, none twice."""
        held = bytearray()
        first = array("Q", bytes(8 * (_SLOTS + 1)))
        for name in names:
            held += name
            first[int.from_bytes(name[:2], "big") + 1] += 1
        for slot in range(_SLOTS):
            first[slot + 1] += first[slot]
        self._names = bytes(held)
        self._first = first
        self._marks = bytearray(len(held) // OID_BYTES)

    def __len__(self) -> int:
        return len(self._marks)

    def position(self, oid: bytes) -> int:
        """Which of the names *oid* is, in their order; -1 for none."""
        slot = int.from_bytes(oid[:2], "big")
        at, end = self._first[slot] * OID_BYTES, self._first[slot + 1] * OID_BYTES
        while True:
            at = self._names.find(oid, at, end)
            if at < 0 or at % OID_BYTES == 0:
                return at // OID_BYTES if at >= 0 else -1
            at += 1  # the end of one name and the beginning of the next

    def __contains__(self, oid: bytes) -> bool:
        return self.position(oid) >= 0

    def is_marked(self, oid: bytes) -> bool:
        position = self.position(oid)
        return position >= 0 and bool(self._marks[position])

    def mark(self, oid: bytes) -> bool | None:
        """Mark *oid*; whether that is new. None: it was not there."""
        position = self.position(oid)
        if position < 0:
            return None
        if self._marks[position]:
            return False
        self._marks[position] = 1
        return True

    def at(self, position: int) -> int:
        """The mark of the name at *position*: 0 for none."""
        return self._marks[position]

    def put(self, position: int, mark: int) -> None:
        """Give the name at *position* a mark from 1 to 255."""
        self._marks[position] = mark

    def unmarked(self) -> Iterator[bytes]:
        """The names without a mark, in order."""
        position = self._marks.find(0)
        while position >= 0:
            yield self._names[position * OID_BYTES : (position + 1) * OID_BYTES]
            position = self._marks.find(0, position + 1)


class Reach:
    """Marks what roots lead to."""

    def __init__(
        self,
        store: ObjectStore,
        marks: Marks,
        *,
        of_commit: Callable[[bytes, bytes], Iterable[bytes]],
        is_closed: Callable[[bytes], bool] = lambda oid: False,
    ) -> None:
        """*of_commit*: what a commit (name, payload) leads to. *is_closed*: whether an object is kept elsewhere, with
        all that it leads to."""
        self._store = store
        self.marks = marks
        self._of_commit = of_commit
        self._is_closed = is_closed
        self._others: set[bytes] = set()
        """Looked at, and not among the marks: younger, or elsewhere."""
        self._seen: set[tuple[bytes, bytes, bytes]] = set()

    def mark(self, roots: Iterable[bytes]) -> None:
        """Mark all that *roots* lead to. What is missing leads nowhere. CorruptObject."""
        for root in roots:
            if self._is_new(root):
                self._walk(root)

    def _is_new(self, oid: bytes) -> bool:
        new = self.marks.mark(oid)
        if new is None:
            new = oid not in self._others
            if new:
                self._others.add(oid)
                new = not self._is_closed(oid)
        return new

    def _unseen(self, tree: bytes) -> set[tuple[bytes, bytes, bytes]]:
        """The entries of a tree that were not looked at a moment ago."""
        new = set(stored_entries(tree)) - self._seen
        if len(self._seen) > _SEEN_MAX:
            self._seen.clear()
        self._seen |= new
        return new

    def _walk(self, oid: bytes) -> None:
        waiting = [oid]
        mark = self.marks.mark
        while waiting:
            oid = waiting.pop()
            try:
                kind, payload = self._store.read(oid)
            except (ObjectMissing, ObjectTooLarge):
                continue
            if kind == "tree":
                for mode, _, child in self._unseen(payload):
                    number = int(mode, 8)
                    if stat.S_ISDIR(number):
                        if self._is_new(child):
                            waiting.append(child)
                    elif number != MODE_GITLINK:
                        mark(child)
            elif kind == "commit":
                waiting += [child for child in self._of_commit(oid, payload) if self._is_new(child)]
            elif kind == "tag":
                target, _ = decode_tag(payload)
                if self._is_new(target):
                    waiting.append(target)
