"""What an overlay's upper hides and redirects: the marks, and the edits that change them.

`overlay.intentlog` keeps them on disk.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from typing import NamedTuple

KEEP_MODE = 0xFFFFFFFF


class MarkKind(enum.IntEnum):
    """What stands below a path of the upper."""

    INHERIT = 0
    """The child of the lower directory that the parent stands on."""
    HIDDEN = 1
    """Nothing: a whiteout, or an opaque directory where the upper has a directory."""
    REDIRECT = 2
    """The lower directory at `Mark.target`."""


class Mark:
    """The mark of one path, and the way to those below it."""

    __slots__ = ("children", "kind", "target")

    def __init__(self) -> None:
        self.kind = MarkKind.INHERIT
        self.target = b""
        self.children: dict[bytes, Mark] | None = None

    def child(self, name: bytes) -> Mark | None:
        return self.children.get(name) if self.children else None

    def make_child(self, name: bytes) -> Mark:
        if self.children is None:
            self.children = {}
        return self.children.setdefault(name, Mark())

    def walk(self, path: bytes = b"") -> Iterator[tuple[bytes, Mark]]:
        """Every marked path at or below this mark, parents first."""
        waiting = [(path, self)]
        while waiting:
            place, mark = waiting.pop()
            if mark.kind is not MarkKind.INHERIT:
                yield place, mark
            for name, each in (mark.children or {}).items():
                waiting.append((place + b"/" + name if place else name, each))


class EditKind(enum.IntEnum):
    """What one edit does to the marks (paths) or to the origins (inode numbers)."""

    HIDE = 1
    """Whiteout; marks below are forgotten, as nothing is left there."""
    OPAQUE = 2
    """The directory stands on nothing; marks below stay."""
    REDIRECT = 3
    """The directory stands on the lower directory at the second path; marks below stay."""
    INHERIT = 4
    """No mark; marks below stay."""
    FORGET = 5
    """No mark here nor below."""
    MOVE = 6
    """The marks at and below the first path are those of the second now, which loses its own."""
    SWAP = 7
    ORIGIN = 8
    """The upper inode (first number) is shown with the second as its inode number."""
    UNORIGIN = 9


class Edit(NamedTuple):
    kind: EditKind
    path: bytes = b""
    other: bytes = b""
    inode: int = 0
    number: int = 0


class ActionKind(enum.IntEnum):
    RENAME = 1
    """Rename `path` to `other` with renameat2 flags; undone so far if `inode` is still at `path`."""
    REMOVE = 2
    """Unlink (or rmdir) `path`; undone so far if `inode` is still there."""


class Action(NamedTuple):
    """The one change in the upper's directory that an intent announces."""

    kind: ActionKind
    path: bytes
    other: bytes
    inode: int
    flags: int = 0
    mode: int = KEEP_MODE
    """Permission bits that `other` gets after the rename; KEEP_MODE for those it has."""


def split(path: bytes) -> list[bytes]:
    """The components of a path; none for the root."""
    return path.split(b"/") if path else []


class Marks:
    """The marks of a whole upper, and the inode numbers of what was copied up."""

    def __init__(self) -> None:
        self.root = Mark()
        self.origins: dict[int, int] = {}
        self.any_redirect = False
        """There is a redirect, or was one."""

    def at(self, path: bytes) -> Mark | None:
        mark: Mark | None = self.root
        for name in split(path):
            mark = mark.child(name) if mark is not None else None
        return mark

    def _make(self, path: bytes) -> Mark:
        mark = self.root
        for name in split(path):
            mark = mark.make_child(name)
        return mark

    def _take(self, path: bytes) -> Mark | None:
        """Cut the mark at *path* out, with those below it; empty ways to it are cut too."""
        names = split(path)
        way = [self.root]
        for name in names[:-1]:
            step = way[-1].child(name)
            if step is None:
                return None
            way.append(step)
        last = way[-1]
        taken = last.children.pop(names[-1], None) if last.children else None
        if not last.children:
            last.children = None
        return taken

    def _place(self, path: bytes, mark: Mark | None) -> None:
        self._take(path)
        if mark is not None:
            head, _, name = path.rpartition(b"/")
            parent = self._make(head)
            if parent.children is None:
                parent.children = {}
            parent.children[name] = mark

    def apply(self, edits: Iterable[Edit]) -> None:
        for edit in edits:
            self._apply_one(edit)

    def _apply_one(self, edit: Edit) -> None:
        kind = edit.kind
        if kind is EditKind.ORIGIN:
            self.origins[edit.inode] = edit.number
        elif kind is EditKind.UNORIGIN:
            self.origins.pop(edit.inode, None)
        elif kind is EditKind.HIDE:
            mark = self._make(edit.path)
            mark.kind, mark.target, mark.children = MarkKind.HIDDEN, b"", None
        elif kind is EditKind.OPAQUE:
            mark = self._make(edit.path)
            mark.kind, mark.target = MarkKind.HIDDEN, b""
        elif kind is EditKind.REDIRECT:
            mark = self._make(edit.path)
            mark.kind, mark.target = MarkKind.REDIRECT, edit.other
            self.any_redirect = True
        elif kind is EditKind.INHERIT:
            found = self.at(edit.path)
            if found is not None:
                found.kind, found.target = MarkKind.INHERIT, b""
        elif kind is EditKind.FORGET:
            if edit.path:
                self._take(edit.path)
        elif kind is EditKind.MOVE:
            self._place(edit.other, self._take(edit.path))
        else:
            first, second = self._take(edit.path), self._take(edit.other)
            self._place(edit.path, second)
            self._place(edit.other, first)

    def snapshot(self) -> Iterator[Edit]:
        """The edits that make these marks out of nothing."""
        for path, mark in self.root.walk():
            if mark.kind is MarkKind.REDIRECT:
                yield Edit(EditKind.REDIRECT, path, mark.target)
            else:
                yield Edit(EditKind.OPAQUE, path)
        for inode, number in self.origins.items():
            yield Edit(EditKind.ORIGIN, inode=inode, number=number)
