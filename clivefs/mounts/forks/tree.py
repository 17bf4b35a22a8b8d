"""The tree of a fork: an overlay of its own on the tree of a point. It has no `.clive`, and cannot get one."""

from __future__ import annotations

import errno
import os

from clivefs.base.syscalls import RENAME_EXCHANGE
from clivefs.mounts.forks.audit import Audit
from clivefs.mounts.forks.lower import ForkLower
from clivefs.mounts.forks.ref import ForkRef
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, DirEntry, Node, OpenFile, Owner, SetAttr, refuse

CONTROL = b".clive"


class ForkTree(OverlayTree):
    """An overlay whose root has no name `.clive`."""

    audit: Audit | None = None
    """Where it is noted what is read and written, if somebody wants to know."""

    # Looking

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        try:
            return super().lookup(directory, name)
        except FileNotFoundError:
            self._note("missing", directory, name)
            raise

    def names(self, directory: Node) -> list[bytes]:
        if self.audit is not None:
            self.audit.node("listed", directory)
        return super().names(directory)

    def entries(self, directory: Node) -> list[DirEntry]:
        if self.audit is not None:
            self.audit.node("listed", directory)
        return super().entries(directory)

    def readlink(self, node: Node) -> bytes:
        if self.audit is not None:
            self.audit.node("read", node)
        return super().readlink(node)

    def open(self, node: Node, flags: int) -> OpenFile:
        if self.audit is not None:
            if flags & os.O_ACCMODE != os.O_WRONLY and not flags & os.O_TRUNC:
                self.audit.node("read", node)
            if flags & (os.O_ACCMODE | os.O_TRUNC):
                self.audit.node("written", node)
        return super().open(node, flags)

    # Changing

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

    def unlink(self, directory: Node, name: bytes) -> None:
        self._note("removed", directory, name)
        super().unlink(directory, name)

    def rmdir(self, directory: Node, name: bytes) -> None:
        self._note("removed", directory, name)
        super().rmdir(directory, name)

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        self._check(dst, new_name)
        if self._would_hide(src, name, dst, new_name) or (
            flags == RENAME_EXCHANGE and self._would_hide(dst, new_name, src, name)
        ):
            raise refuse(errno.EXDEV, name)
        self._note("written" if flags == RENAME_EXCHANGE else "removed", src, name)
        super().rename(src, name, dst, new_name, flags)

    def setattr(self, node: Node, change: SetAttr, file: OpenFile | None) -> Attr:
        if self.audit is not None:
            self.audit.node("written", node)
        return super().setattr(node, change, file)

    def setxattr(self, node: Node, name: bytes, value: bytes) -> None:
        if self.audit is not None:
            self.audit.node("written", node)
        super().setxattr(node, name, value)

    def removexattr(self, node: Node, name: bytes) -> None:
        if self.audit is not None:
            self.audit.node("written", node)
        super().removexattr(node, name)

    def _check(self, directory: Node, name: bytes) -> None:
        if name == CONTROL and directory is self.root:
            raise refuse(errno.EPERM, name)
        self._note("written", directory, name)

    def _note(self, kind: str, directory: Node, name: bytes) -> None:
        if self.audit is not None:
            self.audit.note(kind, directory, name)

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
