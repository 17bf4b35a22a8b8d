"""What changed in a tree through the mount since somebody last asked: for the recorder.

A tree that is recorded has a `Journal`; the view writes into it after every change that succeeded. It says where to
look again, not what happened: paths are worked out when they are taken, from where the nodes are by then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
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

    __slots__ = ("_everything", "_left", "_left_names", "_names", "_nodes", "_on_change")

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._names: dict[Node, dict[bytes, None]] = {}
        """By the directory."""
        self._nodes: dict[Node, None] = {}
        self._left_names: set[bytes] = set()
        self._left: set[bytes] = set()
        """The paths of names and of nodes that were forgotten meanwhile."""
        self._everything = False

    def name(self, directory: Node, name: bytes) -> None:
        """*name* in *directory* came, went, or leads to another file now."""
        self._names.setdefault(directory, {})[name] = None
        self._on_change()

    def node(self, node: Node) -> None:
        """The content or the attributes of *node* changed."""
        self._nodes[node] = None
        self._on_change()

    def moved(self, source: Node, name: bytes, target: Node, new_name: bytes) -> None:
        """What was *name* in *source* is *new_name* in *target*."""
        self._names.setdefault(source, {})[name] = None
        self.name(target, new_name)

    def everything(self) -> None:
        """The tree stands on another source."""
        self._everything = True
        self._on_change()

    def dropping(self, node: Node) -> None:
        """The table is about to forget *node*: what is noted of it is told by path from now on. Where one of the
        directories above is renamed afterwards, that is a change of its own, of all that is below."""
        if node in self._names:
            self._left_names.update(_paths_of(node, self._names.pop(node)))
        if node in self._nodes:
            del self._nodes[node]
            self._left.update(places_of(node))

    def __bool__(self) -> bool:
        return bool(self._names or self._nodes or self._left_names or self._left or self._everything)

    def take(self) -> Taken:
        """All of it; the journal is empty afterwards."""
        taken = self.peek()
        self._names = {}
        self._nodes = {}
        self._left_names = set()
        self._left = set()
        self._everything = False
        return taken

    def peek(self) -> Taken:
        """All of it; the journal stays as it is."""
        names = self._left_names.union(*(_paths_of(directory, found) for directory, found in self._names.items()))
        paths = names.union(self._left, *(places_of(node) for node in self._nodes))
        return Taken(frozenset(paths), frozenset(names), self._everything)


def _paths_of(directory: Node, names: Iterable[bytes]) -> list[bytes]:
    """The paths of *names* in *directory*; none if that is gone, which whoever removed it has told."""
    if directory.removed:
        return []
    above = directory.path()
    return [above + b"/" + name for name in names] if above else list(names)


def places_of(node: Node) -> list[bytes]:
    """Every path of *node* in its tree."""
    if node.removed:
        return []
    if node.parent is None:
        return [b""]
    return [path for parent, name in node.places() for path in _paths_of(parent, (name,))]
