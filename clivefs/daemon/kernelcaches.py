"""What the kernel has in its caches of our trees, and must forget when it is no longer true."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

import trio

from clivefs.base.syscalls import IN_CREATE
from clivefs.daemon.applier import Applier
from clivefs.daemon.invalidation import Invalidator
from clivefs.mounts.host.watch import Outside
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.synthetic import Bridge, SyntheticDirectory
from clivefs.mounts.tree import Node, Tree
from clivefs.mounts.view import View

log = logging.getLogger(__name__)

_SETTLE_S = 5.0


class KernelCaches:
    """Tells the kernel what to forget. Methods are for the loop's thread."""

    def __init__(self, view: View, invalidator: Invalidator, trees: Callable[[], Iterable[Tree]]) -> None:
        """*trees*: all that are shown now."""
        self._view = view
        self._invalidator = invalidator
        self._trees = trees
        self.applier: Applier | None = None
        """Tells watchers, once there is a mount."""

    def apply(self, change: Outside) -> None:
        """Let the kernel forget what a change outside made untrue."""
        if isinstance(change.tree, Lower) and isinstance(change.directory, LowerRef):
            for each in self._over(change.tree, change.directory):
                known = each.children or {}
                self._forget_changed(change, each, known.get(change.name) if change.name is not None else change.node)
        else:
            self._forget_changed(change, change.directory if isinstance(change.directory, Node) else None, change.node)

    def _forget_changed(self, change: Outside, directory: Node | None, node: Node | None) -> None:
        self._tell(change, directory, node)
        if node is not None:
            self._invalidator.inode(self._view.kernel_node(node).nodeid, attributes_only=change.kind == "attr")
        if directory is not None and change.name is not None and change.kind in ("name", "gone"):
            number = self._view.kernel_node(directory).nodeid
            self._invalidator.entry(number, change.name)
            self._invalidator.inode(number)

    def _tell(self, change: Outside, directory: Node | None, node: Node | None) -> None:
        """Let watchers hear of *change*."""
        if self.applier is None or directory is None or change.name is None or not change.name:
            return
        follows = change.kind == "attr" and not change.mask
        covered = isinstance(change.tree, Lower) and node is not None and node_is_edited(node)
        if change.kind == "gone" or follows or covered:
            return
        known = self._view.kernel_node(directory)
        self.applier.happened(known, change.name, mask=change.mask, old=node, stays=change.kind != "name")

    def _over(self, lower: Lower, ref: LowerRef) -> list[Node]:
        """The known directories of an overlay that show the directory *ref* of its lower layer."""
        for tree in self._trees():
            if isinstance(tree, OverlayTree) and tree.lower is lower:
                return tree.known_over(ref)
        return []

    def forget_names(
        self, affected: Iterable[tuple[Node, bytes, Node | None] | tuple[Node, bytes, Node | None, bool]]
    ) -> None:
        """The kernel forgets names that mean something else now, and the listings that they are in."""
        names: dict[int, list[bytes]] = {}
        for each in affected:
            directory, name, old = each[:3]
            known = self._view.kernel_node(directory)
            names.setdefault(known.nodeid, []).append(name)
            if self.applier is not None:
                self.applier.happened(known, name, old=old, was=len(each) > 3 and bool(each[3]))
        for number, changed in names.items():
            self._invalidator.entries(number, changed)
            self._invalidator.inode(number)
        if names and self.applier is not None:
            self.applier.strands()

    async def settled(self) -> None:
        """The kernel has forgotten what it was told to: who looks now sees the new state."""
        if not await trio.to_thread.run_sync(self._invalidator.drain, _SETTLE_S):
            log.warning("the kernel was not told of all changes within %.0f s", _SETTLE_S)
        if self.applier is not None:
            await self.applier.put_back()

    def forget_way(self, parent: Node, name: bytes) -> None:
        """The kernel forgets the name, the names of the bridges on the way, and the listings around them. Above a
        directory of `.clive` it forgets nothing: that stays what it is, and a name that is forgotten takes along what
        somebody has mounted below it, as a sandbox has its fork."""
        node: Node | None = parent
        while node is not None:
            number = self._view.kernel_node(node).nodeid
            self._invalidator.entry(number, name)
            self._invalidator.inode(number)
            if self.applier is not None:
                self.applier.happened(self._view.kernel_node(node), name, mask=IN_CREATE)
            if isinstance(node, SyntheticDirectory) and not isinstance(node, Bridge):
                break
            name, node = node.name, node.parent
        if self.applier is not None:
            self.applier.strands()

    def forget_tree(self, number: int, stale: Iterable[tuple[int, bytes]]) -> None:
        """Another tree is shown at the node *number*; *stale* is what was known below it (see `known_names`)."""
        for directory, known in stale:
            self._invalidator.entry(directory, known)
            if self.applier is not None:
                self.applier.happened_in(directory)
        self._invalidator.inode(number)
        if self.applier is not None:
            self.applier.happened_in(number)
            self.applier.strands()

    def forget_name(self, directory: Node, name: bytes) -> None:
        """The *name* in *directory* came or went."""
        self._invalidator.entry(directory.nodeid, name)


def node_is_edited(node: Node) -> bool:
    """Whether an overlay shows its own file there, whatever the lower has."""
    return isinstance(node, OverlayNode) and node.upper != 0 and not node.is_dir


def known_names(root: Node) -> Iterable[tuple[int, bytes]]:
    """(number of the directory, name) of everything known below *root*."""
    pending = [root]
    while pending:
        directory = pending.pop()
        for name, child in (directory.children or {}).items():
            yield directory.nodeid, name
            pending.append(child)
