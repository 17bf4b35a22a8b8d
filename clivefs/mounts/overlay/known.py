"""Which names of an overlay are known to lead to which nodes. No layer is looked at here.

Everything that keeps `Node.parent`, `name`, `children` and `removed` of an overlay's nodes, and `OverlayNode.links`,
true lives in this file. A node that loses its last name stays as long as somebody holds it (`NodeTable`).
"""

from __future__ import annotations

from collections.abc import Iterator

from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.tree import Node


class KnownNodes:
    """The known nodes of one overlay, and their places."""

    root: OverlayNode

    def __init__(self, table: NodeTable) -> None:
        self._table = table

    def known(self, directory: OverlayNode, name: bytes) -> OverlayNode | None:
        node = directory.children.get(name) if directory.children else None
        return node if isinstance(node, OverlayNode) else None

    def attach(self, directory: OverlayNode, name: bytes, node: OverlayNode) -> None:
        """*name* leads to *node* now."""
        if directory.children is None:
            directory.children = {}
        directory.children[name] = node
        if node.removed:
            node.removed = False
            node.last = None
            node.parent, node.name = directory, name
        elif (node.parent, node.name) != (directory, name):
            node.links = node.links or []
            if (directory, name) not in node.links:
                node.links.append((directory, name))

    def detach(self, directory: OverlayNode, name: bytes, node: OverlayNode) -> None:
        """*name* leads to *node* no more."""
        if directory.children is not None and directory.children.get(name) is node:
            del directory.children[name]
            if not directory.children:
                directory.children = None
        if node.links and (directory, name) in node.links:
            node.links.remove((directory, name))
        elif node.parent is directory and node.name == name:
            if node.links:
                node.parent, node.name = node.links.pop()
            else:
                node.removed = True
        node.links = node.links or None
        if node.removed:
            self._table.release(node)
        self._table.release(directory)

    def detach_below(self, top: OverlayNode) -> None:
        """Everything known below the directory *top* has lost its name. Iterative."""
        for node in self.known_below(top):
            for directory, name in node.places():
                self.detach(directory, name, node)

    def known_below(self, top: OverlayNode) -> Iterator[OverlayNode]:
        """The known nodes below *top*, the deepest first."""
        found: list[OverlayNode] = []
        waiting = [top]
        while waiting:
            for child in (waiting.pop().children or {}).values():
                if isinstance(child, OverlayNode):
                    found.append(child)
                    waiting.append(child)
        return reversed(found)

    def move(self, node: OverlayNode, old: tuple[OverlayNode, bytes], new: tuple[OverlayNode, bytes]) -> None:
        """*node* has its name *new* instead of *old*. Whatever else led to *new* was detached before."""
        directory, name = old
        if directory.children is not None and directory.children.get(name) is node:
            del directory.children[name]
            if not directory.children:
                directory.children = None
        if node.links and old in node.links:
            node.links.remove(old)
            node.links = node.links or None
        elif (node.parent, node.name) == old:
            node.removed = True  # for as long as `attach` takes
        self.attach(*new, node)

    def swap(
        self, one: OverlayNode, old: tuple[OverlayNode, bytes], two: OverlayNode, new: tuple[OverlayNode, bytes]
    ) -> None:
        """*one*, which was at *old*, is at *new*, and *two* the other way round."""
        (first, name), (second, new_name) = old, new
        for node, place in ((one, old), (two, new)):
            if node.links and place in node.links:
                node.links.remove(place)
            elif (node.parent, node.name) == place:
                node.removed = True
        assert first.children is not None
        assert second.children is not None
        del first.children[name]
        del second.children[new_name]
        self.attach(second, new_name, one)
        self.attach(first, name, two)

    def forget(self, node: OverlayNode) -> None:
        """The table has forgotten *node*, and its first name: the others lead nowhere now."""
        for directory, name in node.links or ():
            if directory.children is not None and directory.children.get(name) is node:
                del directory.children[name]
                if not directory.children:
                    directory.children = None
                self._table.release(directory)
        node.links = None
        node.removed = True

    def names_to(self, directory: Node) -> list[bytes]:
        """The components of the path of *directory*."""
        names: list[bytes] = []
        node: Node = directory
        while node.parent is not None and node is not self.root:
            names.append(node.name)
            node = node.parent
        return names[::-1]
