"""A lower layer with the user's edits over it: the tree of a mount entry that is not written through.

The rules are the kernel's (Documentation/filesystems/overlayfs.rst), with redirects and without metadata-only
copies: a file is copied up when it is opened for writing or its attributes are changed; directories merge;
what is removed is hidden; a lower directory is renamed by redirecting its new place. Hard links of a lower
(live directories may have them) are files of their own; those that are made here are links.

Without an upper every change answers EROFS.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterable, Iterator

from clivefs.mounts.host.calls import change_at, get_xattr, list_xattrs, proc_path, remove_xattr, set_xattr
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.copyup import Copy, dress
from clivefs.mounts.overlay.edits import (
    Affected,
    OverlayChange,
    changes,
    compare_lower,
    forget_discarded,
    replace_lower,
    reset,
)
from clivefs.mounts.overlay.listing import merged_entries, merged_names
from clivefs.mounts.overlay.marks import MarkKind, split
from clivefs.mounts.overlay.names import OverlayNames, open_flags
from clivefs.mounts.overlay.node import OverlayFile, OverlayNode, UpperFile, shown
from clivefs.mounts.overlay.nodes import OverlayNodes
from clivefs.mounts.overlay.settling import settle
from clivefs.mounts.overlay.standstill import Standstill
from clivefs.mounts.overlay.upper import Upper
from clivefs.mounts.tree import Attr, DirEntry, Node, OpenFile, Owner, SetAttr, Tree, refuse

_USER = b"user."
_UNKNOWN_TO_US = (b"security.", b"trusted.")


class OverlayTree(Tree):
    """The lower *lower*, with the upper in the directory *upper_dir_fd* over it."""

    def __init__(
        self, lower: Lower, upper_dir_fd: int | None, table: NodeTable, *, entry: bytes, source: bytes = b""
    ) -> None:
        """*entry* tells this mount entry from every other, *source* what it shows: both go into inode numbers.

        *upper_dir_fd* stays the caller's; the tree owns *lower* and closes it. The process's umask must be 0.
        Raises ClivefsError when the upper is of another format.
        """

        def dress_root(dir_fd: int, name: bytes) -> None:
            root = lower.root
            dress(dir_fd, name, lower.attr(root, fetch=True), lower.xattrs(root))

        upper = Upper(upper_dir_fd, dress_root) if upper_dir_fd is not None else None
        self._nodes = OverlayNodes(self, lower, upper, table, entry, source)
        self._names = OverlayNames(self._nodes, upper) if upper is not None else None
        self._table = table
        self.root = self._nodes.root
        self.writable = upper is not None
        self.standstill = Standstill()

    @property
    def lower(self) -> Lower:
        return self._nodes.lower

    @property
    def upper(self) -> Upper | None:
        """What is written to; None where nothing can be."""
        return self._nodes.upper

    @property
    def degraded(self) -> bool:  # type: ignore[override]
        return self._nodes.lower.degraded

    def _changing(self) -> OverlayNames:
        if self._names is None:
            raise refuse(errno.EROFS)
        self.standstill.check()
        return self._names

    # Looking

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        self.standstill.check()
        return self._nodes.get(_own(directory), name)

    def names(self, directory: Node) -> list[bytes]:
        self.standstill.check()
        node = _own(directory)
        if not node.is_dir:
            raise refuse(errno.ENOTDIR)
        return merged_names(self._nodes, node)

    def listed(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        self.standstill.check()
        return self._nodes.get(_own(directory), name, fetch=False)

    def entries(self, directory: Node) -> list[DirEntry]:
        self.standstill.check()
        node = _own(directory)
        if not node.is_dir:
            raise refuse(errno.ENOTDIR)
        return merged_entries(self._nodes, node)

    def getattr(self, node: Node) -> Attr:
        return self._nodes.attr(_own(node))

    def readlink(self, node: Node) -> bytes:
        self.standstill.check()
        own = _own(node)
        if own.kind != stat.S_IFLNK:
            raise refuse(errno.EINVAL)
        if not own.upper:
            assert own.lower is not None
            return self._nodes.lower_of(own).readlink(own.lower)
        if own.removed:
            raise refuse(errno.ESTALE)
        fd, name, _ = self._nodes.locate(own)
        return os.readlink(name, dir_fd=fd)

    def open(self, node: Node, flags: int) -> OpenFile:
        self.standstill.check()
        own = _own(node)
        if own.kind != stat.S_IFREG:
            raise refuse({stat.S_IFDIR: errno.EISDIR, stat.S_IFLNK: errno.ELOOP}.get(own.kind, errno.ENXIO))
        writing = flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)
        if writing:
            self._changing().placing.copy_up(own, 0 if flags & os.O_TRUNC else None)
        if not own.upper:
            assert own.lower is not None
            try:
                inner = self._nodes.lower_of(own).open(own.lower)
            except FileNotFoundError:
                raise refuse(errno.ESTALE) from None
            return OverlayFile(self._nodes.sync_place, self.standstill, own, inner, keep_cache=inner.keep_cache)
        try:
            fd = self._nodes.open_upper(own, open_flags(flags))
        except PermissionError:  # of a file that we may write but not read
            if flags & os.O_ACCMODE != os.O_WRONLY:
                raise
            fd = self._nodes.open_upper(own, (open_flags(flags) & ~os.O_ACCMODE) | os.O_WRONLY)
        # Pages that the kernel has from a live lower may be older than what was copied up.
        return self._file(own, fd)

    def _file(self, node: OverlayNode, fd: int) -> OverlayFile:
        """The upper file *fd*, opened."""
        keep_cache = not self.lower.live
        return OverlayFile(self._nodes.sync_place, self.standstill, node, UpperFile(fd), keep_cache=keep_cache)

    # Changing

    def create(self, directory: Node, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Node, Attr, OpenFile]:
        node, attr, fd = self._changing().create(_own(directory), name, mode, flags, owner)
        return node, attr, self._file(node, fd)

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: Owner) -> tuple[Node, Attr]:
        return self._changing().mknod(_own(directory), name, mode, rdev, owner)

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: Owner) -> tuple[Node, Attr]:
        return self._changing().mkdir(_own(directory), name, mode, owner)

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: Owner) -> tuple[Node, Attr]:
        return self._changing().symlink(_own(directory), name, target, owner)

    def link(self, node: Node, directory: Node, name: bytes) -> tuple[Node, Attr]:
        return self._changing().link(_own(node), _own(directory), name)

    def unlink(self, directory: Node, name: bytes) -> None:
        self._changing().unlink(_own(directory), name)

    def rmdir(self, directory: Node, name: bytes) -> None:
        self._changing().rmdir(_own(directory), name)

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        self._changing().rename(_own(src), name, _own(dst), new_name, flags)

    def put(self, directory: Node | None, path: bytes, copy: Copy, replaces: int, time_ns: int) -> Affected | None:
        """Let *path*, which is in *directory*, lead to a file that was made in the upper's `work/`; the name that the
        kernel must forget. None, and the file is gone, where something else than *replaces* is there: see
        `OverlayNames.put`. To be followed by `discarded`."""
        names = self._changing()
        name = path.rpartition(b"/")[2]
        if directory is not None and not directory.removed:
            own = _own(directory)
            old = self._nodes.known(own, name)
            if names.put(own, name, copy, replaces, time_ns):
                return Affected(own, name, old, was=old is None and replaces != 0)
        assert self._nodes.upper is not None
        self._nodes.upper.unlink_work(copy.name)
        return None

    @contextlib.contextmanager
    def held(self, node: Node) -> Iterator[None]:
        """Meanwhile *node* is not forgotten, whoever else lets go of it."""
        node.opens += 1
        try:
            yield
        finally:
            node.opens -= 1
            self._table.release(node)

    def setattr(self, node: Node, change: SetAttr, file: OpenFile | None) -> Attr:
        own = _own(node)
        names = self._changing()
        if change.size is not None and own.is_dir:
            raise refuse(errno.EISDIR)
        names.placing.copy_up(own, change.size)
        if isinstance(file, OverlayFile) and isinstance(file.inner, UpperFile):
            return shown(change_at(-1, b"", change, file.inner.fd))
        fd, name = self._reach(own)
        return shown(change_at(fd, name, change, None if name else fd))

    def _reach(self, node: OverlayNode) -> tuple[int, bytes]:
        """(descriptor of its directory, name) of a node in the upper; (its own, b"") where it has no name."""
        upper = self._nodes.upper
        assert upper is not None
        if node is self.root:
            return upper.tree_fd, b""
        if node.removed:
            fd = node.host_fd()
            if fd is None:
                raise refuse(errno.ESTALE)
            return fd, b""
        fd, name, _ = self._nodes.locate(node)
        return fd, name

    # Extended attributes

    def getxattr(self, node: Node, name: bytes) -> bytes:
        if name.startswith(_UNKNOWN_TO_US):
            raise refuse(errno.ENODATA, name)
        if not name.startswith(_USER):
            raise refuse(errno.EOPNOTSUPP, name)
        own = _own(node)
        if not own.upper:
            assert own.lower is not None
            value = self._nodes.lower_of(own).xattrs(own.lower).get(name)
            if value is None:
                raise refuse(errno.ENODATA, name)
            return value
        fd, place = self._reach(own)
        return get_xattr(fd, place, name) if place else os.getxattr(proc_path(fd), name)

    def listxattr(self, node: Node) -> list[bytes]:
        own = _own(node)
        if not own.upper:
            assert own.lower is not None
            return sorted(self._nodes.lower_of(own).xattrs(own.lower))
        fd, place = self._reach(own)
        found = list_xattrs(fd, place) if place else [os.fsencode(each) for each in os.listxattr(proc_path(fd))]
        return [each for each in found if each.startswith(_USER)]

    def setxattr(self, node: Node, name: bytes, value: bytes) -> None:
        fd, place = self._reach_for_xattr(_own(node), name)
        if place:
            set_xattr(fd, place, name, value)
        else:
            os.setxattr(proc_path(fd), name, value)

    def removexattr(self, node: Node, name: bytes) -> None:
        own = _own(node)
        if not own.upper and self.writable and name.startswith(_USER):
            self.getxattr(own, name)  # ENODATA is no reason to copy up
        fd, place = self._reach_for_xattr(own, name)
        if place:
            remove_xattr(fd, place, name)
        else:
            os.removexattr(proc_path(fd), name)

    def _reach_for_xattr(self, node: OverlayNode, name: bytes) -> tuple[int, bytes]:
        names = self._changing()
        if not name.startswith(_USER):
            raise refuse(errno.EOPNOTSUPP, name)
        if node.kind not in (stat.S_IFREG, stat.S_IFDIR):
            raise refuse(errno.EPERM, name)
        names.placing.copy_up(node)
        return self._reach(node)

    def describe(self, node: Node) -> dict[str, bytes]:
        own = _own(node)
        if own.upper:
            return {"layer": b"upper"}
        return self._nodes.lower_of(own).describe(own.lower) if own.lower is not None else {}

    def known_over(self, ref: LowerRef) -> list[Node]:
        """The known directories that show the directory *ref* of the lower layer: that at the same path, and those
        that were renamed."""
        path = self.lower.path(ref)
        places = [path]
        upper = self._nodes.upper
        if upper is not None and upper.log.marks.any_redirect:
            for place, mark in upper.root_mark.walk():
                if mark.kind is MarkKind.REDIRECT and (path + b"/").startswith(mark.target + b"/"):
                    places.append(place + path[len(mark.target) :])
        found: list[Node] = []
        for each in places:
            node: Node | None = self.root
            for name in split(each):
                node = (node.children or {}).get(name) if node is not None else None
            if node is not None:
                found.append(node)
        return found

    def told_of(self, node: Node) -> bool:
        own = _own(node)
        if own.upper or own.removed or own.lower is None or not isinstance(self.lower, LocalLower):
            return True
        return own.is_dir and self.lower.watches(own.lower)

    def watch(self, directory: Node) -> None:
        own = _own(directory)
        if isinstance(self.lower, LocalLower) and own.is_dir and own.lower is not None:
            self.lower.watch(own.lower)

    # The edits as a whole

    def changes(self) -> Iterator[OverlayChange]:
        """Every path that is not as in the lower; see `overlay.edits.changes`. May be `Blocked`, at any step."""
        self.standstill.check()
        for change in changes(self._nodes):
            yield change
            self.standstill.check()

    def reset(self, paths: Iterable[bytes] | None = None) -> list[Affected]:
        """Forget the edits below *paths* (relative to the root), or all; the names that the kernel must forget.

        To be followed by `discarded`.
        """
        return [each for step in self.reset_steps(paths) for each in step]

    def reset_steps(self, paths: Iterable[bytes] | None = None, *, alone: bool = False) -> Iterator[list[Affected]]:
        """As `reset`, one path after the other, so that others can have the loop between them; *alone*: they change
        nothing here meanwhile."""
        self._changing()
        assert self._nodes.upper is not None
        return reset(self._nodes, self._nodes.upper, paths, alone=alone)

    def discarded(self) -> Callable[[], None] | None:
        """What deletes the files that resets took away: to be called in a thread, and followed by calls of
        `forget_discarded` until that has nothing to do. None: nothing is to be deleted."""
        upper = self._nodes.upper
        return upper.discard.take(upper.work_fd) if upper is not None and upper.work_fd >= 0 else None

    def forget_discarded(self) -> bool:
        """Forget some of what is remembered of deleted files; false when nothing was left to be forgotten."""
        upper = self._nodes.upper
        return upper is not None and upper.work_fd >= 0 and forget_discarded(self._nodes, upper)

    def replace_lower(self, new: Lower, source: bytes | None = None) -> list[Affected]:
        """Stand on *new* from now on (it is the tree's then); the names that the kernel must forget.

        *source* is its identity where that is another. May be `Blocked`, before any change.
        """
        return replace_lower(self._nodes, new, source)

    def check_lower(self, new: Lower) -> None:
        """`Blocked` as long as `replace_lower` with *new* would be."""
        compare_lower(self._nodes, new)

    def lost_over(self, new: Lower) -> bytes | None:
        """A directory that was renamed here, and that *new* has under neither name; it would be empty. None: there is
        none. As `check_lower`."""
        return settle(self._nodes, new).lost

    # Durability and life

    def fsync_dir(self, directory: Node) -> Callable[[], None]:
        node = _own(directory)
        return lambda: self._nodes.sync_place(node)

    def sync(self) -> None:
        """syncfs(2): everything that was changed survives a power loss. May run in a thread."""
        if self._nodes.upper is not None:
            self._nodes.upper.sync()

    def dropped(self, node: Node) -> None:
        if self._names is not None:
            self._names.placing.staging.forget(node.nodeid)
        self._nodes.dropped(_own(node))

    def close(self) -> None:
        if self._names is not None:
            self._names.placing.staging.close()
        self._nodes.close()
        self._table.unpin(self.root)


def _own(node: Node) -> OverlayNode:
    assert isinstance(node, OverlayNode)
    return node
