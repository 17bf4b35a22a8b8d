"""One file of an overlay: its node, and its open files."""

from __future__ import annotations

import stat
from collections.abc import Callable

from clivefs.mounts.host.calls import HostFile
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.overlay.marks import Mark
from clivefs.mounts.overlay.standstill import Standstill
from clivefs.mounts.tree import Attr, Node, OpenFile, Tree

_DIRECTORY_BYTES = 4096


class UpperFile(HostFile):
    """An open file of the upper; told from one of a host directory that serves as the lower."""

    __slots__ = ()


class OverlayNode(Node):
    """A file of an overlay. `parent` and `name` are one of its places; `links` the other known ones."""

    __slots__ = ("files", "identity", "kind", "last", "links", "lower", "mark", "upper")

    def __init__(self, tree: Tree, parent: Node | None, name: bytes, kind: int) -> None:
        super().__init__(tree, parent, name)
        self.kind = kind
        self.upper = 0
        """Its inode number in the upper; 0 when it is not there."""
        self.lower: LowerRef | None = None
        self.mark: Mark | None = None
        self.identity: bytes | None = None
        """`Lower.identity` as it was, where the lower is live."""
        self.files: list[OverlayFile] | None = None
        """Open files of it."""
        self.links: list[tuple[OverlayNode, bytes]] | None = None
        self.last: Attr | None = None
        """Its attributes when its last known name went."""

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    def places(self) -> list[tuple[OverlayNode, bytes]]:
        """Every (directory, name) that is known to lead here."""
        found: list[tuple[OverlayNode, bytes]] = []
        if not self.removed and isinstance(self.parent, OverlayNode):
            found.append((self.parent, self.name))
        return found + (self.links or [])

    def host_fd(self) -> int | None:
        """The descriptor of one of its open files in the upper."""
        for file in self.files or ():
            if isinstance(file.inner, UpperFile):
                return file.inner.fd
        return None


class OverlayFile(OpenFile):
    """An open file. What it reads from changes when the file is copied up, to the same content in the upper."""

    __slots__ = ("_standstill", "_sync_place", "inner", "keep_cache", "node")

    def __init__(
        self,
        sync_place: Callable[[OverlayNode], None],
        standstill: Standstill,
        node: OverlayNode,
        inner: OpenFile,
        *,
        keep_cache: bool,
    ) -> None:
        """Writes wait for *standstill*."""
        self._sync_place = sync_place
        self._standstill = standstill
        self.node = node
        self.inner = inner
        self.keep_cache = keep_cache
        if node.files is None:
            node.files = []
        node.files.append(self)

    def read(self, offset: int, size: int) -> bytes:
        return self.inner.read(offset, size)

    def read_at_once(self, offset: int, size: int) -> bytes | None:
        return self.inner.read_at_once(offset, size)

    def write(self, offset: int, data: bytes) -> int:
        self._standstill.begin_write()
        try:
            return self.inner.write(offset, data)
        finally:
            self._standstill.end_write()

    def fileno(self) -> int | None:
        return self.inner.fileno()

    def fsync(self, data_only: bool) -> None:
        self.inner.fsync(data_only)
        self._sync_place(self.node)

    def close(self) -> None:
        files = self.node.files
        if files is not None and self in files:
            files.remove(self)
            if not files:
                self.node.files = None
        self.inner.close()


def shown(attr: Attr) -> Attr:
    """As the mount shows it: the links of a merged directory cannot be counted (1 says so, as in btrfs).

    The size of a directory, which means nothing, tells of changes within one second: git's untracked cache, which
    private gitdirs turn on, compares size and mtime, and of the mtime the seconds alone.
    """
    if stat.S_ISDIR(attr.mode):
        attr.nlink = 1
        attr.size = _DIRECTORY_BYTES + attr.mtime_ns // 1000 % _DIRECTORY_BYTES
    return attr


def directory_only(ref: LowerRef | None) -> LowerRef | None:
    """*ref* if it is a directory: nothing but a directory merges."""
    return ref if ref is not None and ref.kind == stat.S_IFDIR else None
