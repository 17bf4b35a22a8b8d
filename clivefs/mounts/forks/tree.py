"""The tree of a fork: an overlay of its own on the tree of a point. It has no `.clive`, and cannot get one."""

from __future__ import annotations

import errno

from clivefs.base.syscalls import RENAME_EXCHANGE
from clivefs.mounts.forks.lower import ForkLower, ForkRef
from clivefs.mounts.overlay.nodes import OverlayNode
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, Node, OpenFile, Owner, refuse

CONTROL = b".clive"


class ForkTree(OverlayTree):
    """An overlay whose root has no name `.clive`."""

    def _would_hide(self, src: Node, name: bytes, dst: Node, new_name: bytes) -> bool:
        """Whether an inherited directory would come to a place where files are recorded: a redirect does not tell what
        is in it. Whoever is refused copies, and then all of it is the fork's own."""
        lower = self.lower
        if not isinstance(lower, ForkLower) or not isinstance(dst, OverlayNode):
            return False
        try:
            node, _ = self.listed(src, name)
        except OSError:
            return False
        ref = node.lower if isinstance(node, OverlayNode) and node.is_dir else None
        if not isinstance(ref, ForkRef) or ref.point is not None:
            return False
        names = dst.path().split(b"/") if dst.path() else []
        return not lower.ignores_at([*names, new_name])

    def _check(self, directory: Node, name: bytes) -> None:
        if name == CONTROL and directory is self.root:
            raise refuse(errno.EPERM, name)

    def create(self, directory: Node, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Node, Attr, OpenFile]:
        self._check(directory, name)
        return super().create(directory, name, mode, flags, owner)

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: Owner) -> tuple[Node, Attr]:
        self._check(directory, name)
        return super().mknod(directory, name, mode, rdev, owner)

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: Owner) -> tuple[Node, Attr]:
        self._check(directory, name)
        return super().mkdir(directory, name, mode, owner)

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: Owner) -> tuple[Node, Attr]:
        self._check(directory, name)
        return super().symlink(directory, name, target, owner)

    def link(self, node: Node, directory: Node, name: bytes) -> tuple[Node, Attr]:
        self._check(directory, name)
        return super().link(node, directory, name)

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        self._check(dst, new_name)
        if self._would_hide(src, name, dst, new_name) or (
            flags == RENAME_EXCHANGE and self._would_hide(dst, new_name, src, name)
        ):
            raise refuse(errno.EXDEV, name)
        super().rename(src, name, dst, new_name, flags)
