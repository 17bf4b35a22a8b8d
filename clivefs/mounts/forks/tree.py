"""The tree of a fork: an overlay of its own on the tree of a point. It has no `.clive`, and cannot get one."""

from __future__ import annotations

import errno

from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, Node, OpenFile, Owner, refuse

CONTROL = b".clive"


class ForkTree(OverlayTree):
    """An overlay whose root has no name `.clive`."""

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
        super().rename(src, name, dst, new_name, flags)
