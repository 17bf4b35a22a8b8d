"""Copy-up as a node sees it: its file gets a place in the upper, and what it has open goes on there.

A copy (`overlay.copyup`) is seen by nobody until it is renamed to its place, in one step with the record of its inode
number. The directories on the way come first, each as an empty one that merges with the lower's.
"""

from __future__ import annotations

import contextlib
import errno
import os

from clivefs.base.syscalls import RENAME_NOREPLACE, rename_at
from clivefs.mounts.host.calls import chmod_at
from clivefs.mounts.overlay.copyup import Copy, Staging, directory_extra_mode
from clivefs.mounts.overlay.marks import KEEP_MODE, Action, ActionKind, Edit, EditKind
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.overlay.nodes import OverlayNodes
from clivefs.mounts.overlay.upper import WORK, Upper, set_times, tree_path, writable_for_us
from clivefs.mounts.tree import refuse


class Placing:
    """Brings files of the lower to the upper."""

    def __init__(self, nodes: OverlayNodes, upper: Upper) -> None:
        self._nodes = nodes
        self._upper = upper
        self.staging = Staging(upper)

    def copy_up(self, node: OverlayNode, size_max: int | None = None) -> None:
        """Bring *node* (of a file, the first *size_max* bytes) to the upper, if it is not there."""
        if node.upper:
            return
        if node.is_dir:
            self.need_directory(node)
            return
        assert node.lower is not None
        lower = self._nodes.lower_of(node)
        what = os.fsdecode(node.path())
        try:
            copy = self.staging.prepare(node.nodeid, lower, node.lower, size_max, what)
        except FileNotFoundError:
            raise refuse(errno.ESTALE) from None
        try:
            fds = self._open_for(node, copy)
            try:
                if not node.removed:
                    assert isinstance(node.parent, OverlayNode)
                    self.need_directory(node.parent)
                    self._publish(node, copy)
            except BaseException:
                close_all(fds)
                raise
        except BaseException:
            self.staging.discard(copy)
            raise
        if node.removed:
            self.staging.discard(copy)
            node.upper = copy.inode
        node.lower = None
        self._nodes.rebind(node, fds)

    def _open_for(self, node: OverlayNode, copy: Copy) -> list[int]:
        """A descriptor of the copy for each open file of *node*. Before anything changes: there may be none left."""
        if node.removed and not node.files:
            raise refuse(errno.ESTALE)
        fds: list[int] = []
        try:
            for _ in node.files or ():
                fds.append(os.open(copy.name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._upper.work_fd))
        except BaseException:
            close_all(fds)
            raise
        return fds

    def need_directory(self, directory: OverlayNode) -> None:
        """Make sure that *directory* is in the upper, with the way to it."""
        missing: list[OverlayNode] = []
        node = directory
        while not node.upper:
            missing.append(node)
            assert isinstance(node.parent, OverlayNode)
            node = node.parent
        for each in reversed(missing):
            ref = self._nodes.lower_directory(each)
            if ref is None:
                raise refuse(errno.ESTALE, each.name)
            lower = self._nodes.lower
            copy = self.staging.make_directory(lower.attr(ref, fetch=True), lower.xattrs(ref))
            try:
                self._publish(each, copy)
            except BaseException:
                self.staging.discard(copy)
                raise

    def _publish(self, node: OverlayNode, copy: Copy) -> None:
        parent = node.parent
        assert isinstance(parent, OverlayNode)
        fd = self._nodes.directory_fd(parent)
        before = os.fstat(fd)
        narrow = node.is_dir and directory_extra_mode(copy.mode) != 0
        mode = copy.mode & 0o7777 if narrow else KEEP_MODE
        action = Action(
            ActionKind.RENAME, WORK + b"/" + copy.name, tree_path(node.path()), copy.inode, RENAME_NOREPLACE, mode
        )

        def change() -> None:
            with writable_for_us(fd):
                rename_at(self._upper.work_fd, copy.name, fd, node.name, RENAME_NOREPLACE)
            if narrow:
                chmod_at(fd, node.name, mode)

        self._nodes.reborn(copy.inode)
        edit = Edit(EditKind.ORIGIN, inode=copy.inode, number=self._nodes.own_number(node))
        self._upper.perform([edit], action, change, "overlay.copyup")
        node.upper = copy.inode
        self._upper.touched(parent.upper)
        with contextlib.suppress(OSError):  # the copy is there; a directory's time is not worth failing for
            set_times(fd, before.st_atime_ns, before.st_mtime_ns)


def close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
