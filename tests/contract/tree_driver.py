"""Drives a `Tree` as the kernel would, by paths: see `driver`."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, Blocked, Node, OpenFile, Owner, SetAttr, Tree
from tests.contract.driver import Driver, Facts, File, facts

RETRIES_MAX = 20


class TreeFile(File):
    """A file that the driver has open."""

    def __init__(self, driver: TreeDriver, node: Node, file: OpenFile) -> None:
        self.driver = driver
        self.node = node
        self.file = file

    def read(self, offset: int, size: int) -> bytes:
        return bytes(self.driver.call(lambda: self.file.read(offset, size)))

    def write(self, offset: int, data: bytes) -> int:
        return int(self.driver.call(lambda: self.file.write(offset, data)))

    def stat(self) -> Facts:
        return facts(self.driver.call(lambda: self.driver.tree.getattr(self.node)))

    def truncate(self, size: int) -> None:
        self.driver.call(lambda: self.driver.tree.setattr(self.node, SetAttr(size=size), self.file))

    def fsync(self) -> None:
        self.driver.call(lambda: self.file.fsync(False))

    def close(self) -> None:
        self.file.flush()
        self.file.close()
        self.node.opens -= 1
        self.driver.table.release(self.node)


class TreeDriver(Driver):
    """A tree by paths. Counts references as the kernel does: each look-up is one, given back by `forget`.

    With *remember* it keeps them, as a kernel with a warm cache does, until `forget_all`.
    """

    def __init__(self, tree: Tree, table: NodeTable, *, owner: Owner | None = None, remember: bool = False) -> None:
        self.tree = tree
        self.table = table
        self.owner = owner or Owner(os.geteuid(), os.getegid())
        self.remember = remember
        self._held: list[Node] = []

    # The kernel's side

    def call(self, operation: Callable[[], Any]) -> Any:
        """The result of *operation*, after having waited for whatever blocks it."""
        for _ in range(RETRIES_MAX):
            try:
                return operation()
            except Blocked as blocked:
                blocked.job()
        raise AssertionError(f"still blocked after {RETRIES_MAX} jobs")

    def hold(self, node: Node) -> Node:
        node.lookups += 1
        self._held.append(node)
        return node

    def forget_all(self) -> None:
        """Give back every reference, as a kernel short of memory does."""
        held, self._held = self._held, []
        for node in held:
            self.table.forget(node.nodeid, 1)

    def _done(self) -> None:
        if not self.remember:
            self.forget_all()

    def _lookup(self, directory: Node, name: bytes) -> Node:
        node, _ = self.call(lambda: self.tree.lookup(directory, name))
        return self.hold(node)

    def _resolve(self, path: bytes) -> Node:
        node = self.tree.root
        for name in path.split(b"/") if path else ():
            node = self._walk(node, name)
        return node

    def _walk(self, directory: Node, name: bytes) -> Node:
        """One step down; as in the kernel, not through anything but a directory."""
        self._enter(directory)
        return self._lookup(directory, name)

    def _enter(self, directory: Node) -> None:
        attr = self.call(lambda: self.tree.getattr(directory))
        if stat.S_ISLNK(attr.mode):
            raise OSError(errno.ELOOP, "the driver follows no symlink")
        if not stat.S_ISDIR(attr.mode):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))

    def _parent(self, path: bytes) -> tuple[Node, bytes]:
        head, _, name = path.rpartition(b"/")
        parent = self._resolve(head)
        self._enter(parent)
        return parent, name

    def _warm(self, directory: Node, name: bytes) -> Node | None:
        """The kernel looks a name up before it removes, replaces or makes it."""
        try:
            return self._lookup(directory, name)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            return None

    def _at(self, path: bytes, operation: Callable[[Node], Any]) -> Any:
        try:
            node = self._resolve(path)
            return self.call(lambda: operation(node))
        finally:
            self._done()

    def _in(self, path: bytes, operation: Callable[[Node, bytes], Any], *, warm: bool = True) -> Any:
        try:
            parent, name = self._parent(path)
            if warm:
                self._warm(parent, name)
            return self.call(lambda: operation(parent, name))
        finally:
            self._done()

    # Looking

    def node(self, path: bytes) -> Node:
        """The node at *path*, held until `forget_all`."""
        return self._resolve(path)

    def stat(self, path: bytes, *, times: bool = False) -> Facts:
        return facts(self._at(path, self.tree.getattr), times=times)

    def inode(self, path: bytes) -> int:
        return int(self._at(path, lambda node: node.nodeid))

    def listdir(self, path: bytes) -> list[tuple[bytes, int]]:
        """Sorted names with their kinds (S_IFMT bits)."""

        def listing(node: Node) -> list[tuple[bytes, int]]:
            if not stat.S_ISDIR(self.tree.getattr(node).mode):
                raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            return sorted((entry.name, entry.kind) for entry in self.tree.entries(node))

        result: list[tuple[bytes, int]] = self._at(path, listing)
        return result

    def readlink(self, path: bytes) -> bytes:
        def target(node: Node) -> bytes:
            if not stat.S_ISLNK(self.tree.getattr(node).mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            return self.tree.readlink(node)

        result: bytes = self._at(path, target)
        return result

    # Files

    def open(self, path: bytes, flags: int = os.O_RDONLY) -> TreeFile:
        def opening(node: Node) -> TreeFile:
            mode = self.tree.getattr(node).mode
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise OSError(errno.EOPNOTSUPP, "the driver opens regular files only")
            file = self.tree.open(node, flags)
            node.opens += 1
            return TreeFile(self, node, file)

        opened: TreeFile = self._at(path, opening)
        return opened

    def create(self, path: bytes, mode: int = 0o644, flags: int = os.O_RDWR) -> TreeFile:
        """open(O_CREAT | O_EXCL)."""

        def creating(parent: Node, name: bytes) -> TreeFile:
            node, _, file = self.tree.create(parent, name, mode, flags, self.owner)
            self.hold(node)
            node.opens += 1
            return TreeFile(self, node, file)

        created: TreeFile = self._in(path, creating)
        return created

    def append(self, path: bytes, data: bytes) -> int:
        file = self.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            attr = self.call(lambda: self.tree.getattr(file.node))
            return file.write(attr.size, data)
        finally:
            file.close()

    def truncate(self, path: bytes, size: int) -> None:
        def truncating(node: Node) -> None:
            mode = self.tree.getattr(node).mode
            if stat.S_ISLNK(mode):
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
            if stat.S_ISDIR(mode):
                raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):
                raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
            self.tree.setattr(node, SetAttr(size=size), None)

        self._at(path, truncating)

    # Names

    def _made(self, made: tuple[Node, Attr]) -> None:
        self.hold(made[0])

    def mkdir(self, path: bytes, mode: int = 0o755) -> None:
        self._in(path, lambda parent, name: self._made(self.tree.mkdir(parent, name, mode, self.owner)))

    def mknod(self, path: bytes, mode: int, rdev: int = 0) -> None:
        self._in(path, lambda parent, name: self._made(self.tree.mknod(parent, name, mode, rdev, self.owner)))

    def symlink(self, target: bytes, path: bytes) -> None:
        self._in(path, lambda parent, name: self._made(self.tree.symlink(parent, name, target, self.owner)))

    def link(self, old: bytes, new: bytes) -> None:
        try:
            node = self._resolve(old)
            parent, name = self._parent(new)
            self._warm(parent, name)
            self._made(self.call(lambda: self.tree.link(node, parent, name)))
        finally:
            self._done()

    def unlink(self, path: bytes) -> None:
        self._in(path, self.tree.unlink)

    def rmdir(self, path: bytes) -> None:
        self._in(path, self.tree.rmdir)

    def rename(self, old: bytes, new: bytes, flags: int = 0) -> None:
        try:
            src, name = self._parent(old)
            dst, new_name = self._parent(new)
            self._warm(src, name)
            self._warm(dst, new_name)
            self.call(lambda: self.tree.rename(src, name, dst, new_name, flags))
        finally:
            self._done()

    # Attributes

    def _set(self, path: bytes, change: SetAttr) -> None:
        self._at(path, lambda node: self.tree.setattr(node, change, None))

    def chmod(self, path: bytes, mode: int) -> None:
        self._set(path, SetAttr(mode=mode))

    def chown(self, path: bytes, uid: int, gid: int) -> None:
        self._set(path, SetAttr(uid=None if uid < 0 else uid, gid=None if gid < 0 else gid))

    def utime(self, path: bytes, atime_ns: int, mtime_ns: int) -> None:
        self._set(path, SetAttr(atime_ns=atime_ns, mtime_ns=mtime_ns))

    def getxattr(self, path: bytes, name: bytes) -> bytes:
        return bytes(self._at(path, lambda node: self.tree.getxattr(node, name)))

    def listxattr(self, path: bytes) -> list[bytes]:
        return sorted(self._at(path, self.tree.listxattr))

    def setxattr(self, path: bytes, name: bytes, value: bytes) -> None:
        self._at(path, lambda node: self.tree.setxattr(node, name, value))

    def removexattr(self, path: bytes, name: bytes) -> None:
        self._at(path, lambda node: self.tree.removexattr(node, name))

    def fsync_dir(self, path: bytes) -> None:
        self._at(path, self.tree.fsync_dir)()
