"""The nodes of a mountpoint by their number, and when each is forgotten."""

from __future__ import annotations

import errno
from collections.abc import Iterable

from clivefs.mounts.tree import Node, refuse


class NodeTable:
    """All nodes of one mountpoint by number. Everything that decides when a node is forgotten is here.

    A node lives while the kernel holds it (`lookups`), a file of it is open (`opens`), a known child
    hangs below it, or the view pins it.
    """

    def __init__(self) -> None:
        self._nodes: dict[int, Node] = {}
        self._pinned: set[int] = set()
        self.renumbered: dict[int, int] = {}
        """The numbers that some files have instead of those that are derived for them."""

    def __len__(self) -> int:
        return len(self._nodes)

    def add(self, node: Node, number: int, *, pin: bool = False) -> None:
        """Register *node* under *number*, or under the next free one if a living node has that."""
        number = self.renumbered.get(number, number)
        while number in self._nodes:
            number = number + 1 if number < (1 << 63) - 1 else 2
        node.nodeid = number
        self._nodes[number] = node
        if pin:
            self._pinned.add(number)

    def pin(self, node: Node) -> None:
        """Keep *node*, whoever else lets go of it."""
        self._pinned.add(node.nodeid)

    def unpin(self, node: Node) -> None:
        self._pinned.discard(node.nodeid)
        self.release(node)

    def get(self, nodeid: int) -> Node:
        """The node that the kernel calls *nodeid*. ESTALE if there is none."""
        try:
            return self._nodes[nodeid]
        except KeyError:
            raise refuse(errno.ESTALE) from None

    def find(self, nodeid: int) -> Node | None:
        return self._nodes.get(nodeid)

    def forget(self, nodeid: int, count: int) -> None:
        """The kernel gives back *count* references."""
        node = self._nodes.get(nodeid)
        if node is not None:
            node.lookups = max(0, node.lookups - count)
            self.release(node)

    def release(self, node: Node) -> None:
        """Drop *node*, and then its ancestors, as far as nothing holds them."""
        current: Node | None = node
        while current is not None:
            if current.lookups or current.opens or current.children or current.nodeid in self._pinned:
                return
            if self._nodes.get(current.nodeid) is not current:
                return
            if current.tree.journal is not None:
                current.tree.journal.dropping(current)
            del self._nodes[current.nodeid]
            parent = current.parent
            if parent is not None and parent.children is not None:
                if parent.children.get(current.name) is current:
                    del parent.children[current.name]
                if not parent.children:
                    parent.children = None
            current.tree.dropped(current)
            current = parent

    def nodes(self) -> Iterable[Node]:
        return list(self._nodes.values())

    def replace(self, old: Node, new: Node) -> None:
        """Let *new* answer to the number of *old* from now on: the kernel's references move with it.

        For directories only: who has one open, or works in it, goes on in the new one.
        """
        if self._nodes.get(new.nodeid) is new:
            del self._nodes[new.nodeid]
            self._pinned.discard(new.nodeid)
        new.nodeid = old.nodeid
        new.lookups += old.lookups
        new.opens += old.opens
        if old.tree.journal is not None:
            old.tree.journal.dropping(old)
        old.lookups = old.opens = old.nodeid = 0  # who lets go of the old one must not let go of the new
        old.removed = True
        self._nodes[new.nodeid] = new

    def exchange(self, one: Node, other: Node) -> None:
        """Swap the numbers of two directories, and with each number what is held by it."""
        one.nodeid, other.nodeid = other.nodeid, one.nodeid
        one.lookups, other.lookups = other.lookups, one.lookups
        one.opens, other.opens = other.opens, one.opens
        self._nodes[one.nodeid], self._nodes[other.nodeid] = one, other
        pinned = {number for number in (one.nodeid, other.nodeid) if number in self._pinned}
        if len(pinned) == 1:
            self._pinned ^= {one.nodeid, other.nodeid}
