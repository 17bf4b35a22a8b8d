"""What changed in a tree through the mount since somebody last asked: for the recorder.

A tree that is recorded has a `Journal`; the view writes into it after every change that succeeded. It says where to
look again, not what happened: paths are worked out when they are taken, from where the nodes are by then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from clivefs.mounts.tree import Node


class Taken(NamedTuple):
    """What `Journal.take` gives: paths below the tree's root."""

    paths: frozenset[bytes]
    """Names that came, went, or lead to a file whose content or attributes changed."""
    names: frozenset[bytes]
    """Those of them that came or went: where a directory is now, it may be another than before."""
    everything: bool
    """Anything may be different: the tree stands on another source."""


class Journal:
    """Of one tree. *on_change* is called with every change, in the loop's thread: it must be quick."""

    __slots__ = ("_everything", "_names", "_nodes", "_on_change")

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._names: dict[tuple[Node, bytes], None] = {}
        self._nodes: dict[Node, None] = {}
        self._everything = False

    def name(self, directory: Node, name: bytes) -> None:
        """*name* in *directory* came, went, or leads to another file now."""
        self._names[directory, name] = None
        self._on_change()

    def node(self, node: Node) -> None:
        """The content or the attributes of *node* changed."""
        self._nodes[node] = None
        self._on_change()

    def moved(self, source: Node, name: bytes, target: Node, new_name: bytes) -> None:
        """What was *name* in *source* is *new_name* in *target*."""
        self._names[source, name] = None
        self._names[target, new_name] = None
        self._on_change()

    def everything(self) -> None:
        """The tree stands on another source."""
        self._everything = True
        self._on_change()

    def __bool__(self) -> bool:
        return bool(self._names or self._nodes or self._everything)

    def take(self) -> Taken:
        """All of it; the journal is empty afterwards."""
        taken = self.peek()
        self._names = {}
        self._nodes = {}
        self._everything = False
        return taken

    def peek(self) -> Taken:
        """All of it; the journal stays as it is."""
        named = {self.names_of(directory, name) for directory, name in self._names}
        names = frozenset(path for path in named if path is not None)
        paths = {path for node in self._nodes for path in self._places(node) if path is not None}
        return Taken(names | paths, names, self._everything)

    @staticmethod
    def names_of(directory: Node, name: bytes) -> bytes | None:
        """The path of *name* in *directory*; None if that is gone, which whoever removed it has told."""
        if directory.removed:
            return None
        above = directory.path()
        return above + b"/" + name if above else name

    def _places(self, node: Node) -> set[bytes | None]:
        if node.removed:
            return set()
        if node.parent is None:
            return {b""}
        return {self.names_of(parent, name) for parent, name in node.places()}
