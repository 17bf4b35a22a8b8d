"""A host directory, shown and written through: a local checkout that git and editors also use directly.

Every operation is the host's own system call on (directory descriptor, name), so semantics and errors are
the host's. Which node a file is, is decided in `host.nodes`; what others changed, in `host.reports`.

The process's umask must be 0: the kernel has applied the caller's already.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable
from mmap import PAGESIZE

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_at
from clivefs.mounts.host import calls, making
from clivefs.mounts.host.calls import HostFile, host_flags, proc_path, stat_at, xattr_path
from clivefs.mounts.host.nodes import HostNode, HostNodes, facts_of, identity_of
from clivefs.mounts.host.reports import HostWatch
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, DirEntry, Node, OpenFile, Owner, SetAttr, Tree, refuse

_USER = b"user."


class OpenHostFile(HostFile):
    """An open file of a host tree. Its writes leave in the node what the watcher knows them by.

    The host's file is not opened with O_APPEND, which would send every write to the end: the kernel also writes
    pages that were changed through a shared mapping. Writes are appended one by one (*append*).
    """

    __slots__ = ("_append", "_tree", "node")

    def __init__(self, fd: int, node: HostNode, tree: HostTree, *, append: bool = False) -> None:
        super().__init__(fd)
        self.node = node
        self._append = append
        self._tree = tree
        node.files.append(self)

    def write(self, offset: int, data: bytes) -> int:
        before = os.fstat(self.fd)
        if facts_of(before) != self.node.seen:
            self._tree.saw(self.node, before)
        try:
            if self._append and not _is_page(offset, len(data), before.st_size):
                return self._write_at_end(data)
            return super().write(offset, data)
        finally:
            self.node.remember(os.fstat(self.fd), own=True)

    def _write_at_end(self, data: bytes) -> int:
        """Where the end is now: others may have appended outside."""
        written = 0
        while written < len(data):
            written += os.pwritev(self.fd, [memoryview(data)[written:]], 0, os.RWF_APPEND)
        return written

    def changed(self) -> None:
        self.node.remember(os.fstat(self.fd), own=True)

    def close(self) -> None:
        if self.fd >= 0:
            self.node.files.remove(self)
            self._tree.closing(self)
        super().close()


def _is_page(offset: int, size: int, end: int) -> bool:
    """Whether a write may be of a page of a shared mapping: those are whole, but for the file's last."""
    return offset % PAGESIZE == 0 and offset < end and (size % PAGESIZE == 0 or offset + size == end)


class HostTree(Tree):
    """The files below *root_fd*, which the tree owns from now on.

    *entry* tells this mount entry from every other (for inode numbers). `hidden(identity of a directory,
    name)` says that the name is one of our own mountpoints: it is shown as an empty directory and never
    touched, since that would wait for ourselves. Without a *watcher* nothing is noticed but by looking.
    """

    root: HostNode

    def __init__(
        self,
        root_fd: int,
        table: NodeTable,
        *,
        entry: bytes,
        writable: bool,
        hidden: Callable[[tuple[int, int], bytes], bool],
        watcher: Watcher | None = None,
    ) -> None:
        self.writable = writable
        self._hidden = hidden
        self._nodes = HostNodes(self, root_fd, table, entry)
        self._watch = HostWatch(self, self._nodes, watcher)
        self._nodes.on_stale = self._watch.stale
        self.root = self._nodes.root
        st = os.fstat(self._nodes.root_fd)
        self.root.remember(st)
        self._hidden_attr = Attr(stat.S_IFDIR | 0o555, 0, st.st_mtime_ns, uid=st.st_uid, gid=st.st_gid, nlink=2)

    @property
    def root_fd(self) -> int:
        """A descriptor of the root, which stays the tree's."""
        return self._nodes.root_fd

    # Shared steps

    def _directory(self, node: Node) -> tuple[HostNode, int]:
        """*node* as a directory of this tree, watched, with its descriptor."""
        assert isinstance(node, HostNode)
        fd = self._nodes.dir_fd(node)
        if not node.watched:
            self._watch.watch(node, fd)
        return node, fd

    def _to_change(self, node: Node, name: bytes, taken: int) -> tuple[HostNode, int]:
        """As `_directory`, for a change of *name*. EROFS; *taken* if one of our mountpoints has the name."""
        assert isinstance(node, HostNode)
        if not self.writable or node.identity is None:
            raise refuse(errno.EROFS, name)
        if self._hidden(node.identity, name):
            raise refuse(taken, name)
        return self._directory(node)

    def _file(self, node: Node) -> HostNode:
        """*node*, to be changed."""
        assert isinstance(node, HostNode)
        if not self.writable or node.identity is None:
            raise refuse(errno.EROFS)
        return node

    def saw(self, node: HostNode, st: os.stat_result) -> None:
        """An operation found *node* in this state, which is not of its own making."""
        self._watch.saw(node, st)

    def _reached(self, node: HostNode) -> tuple[str | bytes, bool]:
        """A path that leads to *node*, and whether its last link is to be followed; for calls without *at*."""
        fd = self._nodes.cached_fd(node)
        if fd is not None:
            return proc_path(fd), True
        dir_fd, name, _ = self._nodes.locate(node)
        return xattr_path(dir_fd, name), False

    # Looking

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        assert isinstance(directory, HostNode)
        if directory.identity is None:
            raise refuse(errno.ENOENT, name)
        if self._hidden(directory.identity, name):
            return self._nodes.synthetic(directory, name), self._hidden_attr
        directory, fd = self._directory(directory)
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            lost = self._nodes.lost(directory, name)
            if lost is not None:
                self._nodes.on_stale(directory, name, lost)
            raise
        node = self._nodes.at(directory, name, st)
        self.saw(node, st)
        return node, node.attr_of(st)

    def lister(self, directory: Node) -> Callable[[bytes], tuple[Node, Attr]]:
        """A look at a known file that is as it was costs one stat and nothing more."""
        anew = functools.partial(self.lookup, directory)
        assert isinstance(directory, HostNode)
        identity = directory.identity
        if identity is None or not directory.watched or not directory.children:
            return anew
        try:
            dir_fd = self._nodes.dir_fd(directory)
        except OSError:
            return anew
        children = directory.children
        hidden = self._hidden

        def listed(name: bytes) -> tuple[Node, Attr]:
            node = children.get(name)
            if not isinstance(node, HostNode) or hidden(identity, name):
                return anew(name)
            try:
                st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            except FileNotFoundError:
                return anew(name)
            attr = node.attr
            if attr is None or node.identity != (st.st_dev, st.st_ino) or not attr.tells_of(st):
                return anew(name)
            return node, attr

        return listed

    def names(self, directory: Node) -> list[bytes]:
        assert isinstance(directory, HostNode)
        if directory.identity is None:
            return []
        return calls.scan_names(self._directory(directory)[1])

    def entries(self, directory: Node) -> list[DirEntry]:
        assert isinstance(directory, HostNode)
        if directory.identity is None:
            return []
        identity = directory.identity
        _, fd = self._directory(directory)
        return calls.scan_kinds(fd, lambda name: self._hidden(identity, name))

    def getattr(self, node: Node) -> Attr:
        assert isinstance(node, HostNode)
        if node.identity is None:
            return self._hidden_attr
        st = self._nodes.stat(node)
        self.saw(node, st)
        return node.attr_of(st)

    def told_of(self, node: Node) -> bool:
        assert isinstance(node, HostNode)
        return node.watched or not node.is_dir or node.identity is None

    def readlink(self, node: Node) -> bytes:
        assert isinstance(node, HostNode)
        if node.held >= 0:
            return os.readlink(b"", dir_fd=node.held)
        dir_fd, name, _ = self._nodes.locate(node)
        return os.readlink(name, dir_fd=dir_fd)

    def open(self, node: Node, flags: int) -> OpenFile:
        assert isinstance(node, HostNode)
        writing = flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC
        if writing and not self.writable:
            raise refuse(errno.EROFS)
        if node.kind != stat.S_IFREG:
            raise refuse(errno.EISDIR if node.is_dir else errno.EOPNOTSUPP)
        wanted = host_flags(flags) & ~(os.O_TRUNC | os.O_APPEND)
        if flags & os.O_ACCMODE == os.O_RDONLY and writing:
            wanted |= os.O_RDWR  # who truncates needs no more than that, but ftruncate does
        fd = self._open_fd(node, wanted)
        try:
            st = os.fstat(fd)
            same = node.seen == facts_of(st) and not node.racy
            if not same:
                self.saw(node, st)
                node.remember(st)
            if flags & os.O_TRUNC:  # only now that it is known to be the right file
                os.ftruncate(fd, 0)
                node.remember(os.fstat(fd), own=True)
        except OSError:
            os.close(fd)
            raise
        file = OpenHostFile(fd, node, self, append=bool(flags & os.O_APPEND))
        file.keep_cache = same and not flags & os.O_TRUNC
        return file

    def _open_fd(self, node: HostNode, flags: int) -> int:
        """Open *node*; for reading too where it was asked for writing only, if that is permitted."""
        if flags & os.O_ACCMODE == os.O_WRONLY:
            try:
                return self._nodes.open(node, flags & ~os.O_ACCMODE | os.O_RDWR)
            except PermissionError:
                pass
        return self._nodes.open(node, flags)

    def closing(self, file: OpenHostFile) -> None:
        """*file* is about to close its descriptor. The kernel may hold its node longer, though it has no name."""
        node = file.node
        detached = node.tree is not self  # nobody would close what is kept
        if node.removed and not node.files and node.lookups and node.held < 0 and not detached:
            self._nodes.keep(node, os.dup(file.fd))

    # Making

    def _new_node(self, directory: HostNode, name: bytes, st: os.stat_result) -> tuple[HostNode, Attr]:
        """The node of a file that our own operation has made."""
        old = self._nodes.known(identity_of(st))
        if old is not None:  # its inode number was free: whoever had it is gone
            self._nodes.forget_identity(old)
        node = self._nodes.at(directory, name, st)
        node.remember(st, own=True)
        return node, Attr.of(st)

    def create(self, directory: Node, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Node, Attr, OpenFile]:
        parent, dir_fd = self._to_change(directory, name, errno.EEXIST)
        wanted = host_flags(flags) & ~(os.O_ACCMODE | os.O_TRUNC | os.O_APPEND)
        fd = making.make_file(dir_fd, name, wanted | os.O_RDWR, mode, owner)
        st = os.fstat(fd)
        node, attr = self._new_node(parent, name, st)
        return node, attr, OpenHostFile(fd, node, self, append=bool(flags & os.O_APPEND))

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: Owner) -> tuple[Node, Attr]:
        parent, dir_fd = self._to_change(directory, name, errno.EEXIST)
        if stat.S_ISREG(mode):
            fd = making.make_file(dir_fd, name, os.O_WRONLY | os.O_NOFOLLOW, mode, owner)
            try:
                return self._new_node(parent, name, os.fstat(fd))
            finally:
                os.close(fd)
        make = functools.partial(os.mknod, mode=mode, device=rdev)
        return self._new_node(parent, name, making.make_special(dir_fd, name, mode, owner, make, os.unlink))

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: Owner) -> tuple[Node, Attr]:
        parent, dir_fd = self._to_change(directory, name, errno.EEXIST)
        mode = stat.S_IFDIR | mode & 0o7777
        make = functools.partial(os.mkdir, mode=mode & 0o7777)
        return self._new_node(parent, name, making.make_special(dir_fd, name, mode, owner, make, os.rmdir))

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: Owner) -> tuple[Node, Attr]:
        parent, dir_fd = self._to_change(directory, name, errno.EEXIST)
        make = functools.partial(os.symlink, target)
        return self._new_node(parent, name, making.make_special(dir_fd, name, stat.S_IFLNK, owner, make, os.unlink))

    def link(self, node: Node, directory: Node, name: bytes) -> tuple[Node, Attr]:
        source = self._file(node)
        parent, fd = self._to_change(directory, name, errno.EEXIST)
        if source.removed:
            raise refuse(errno.ENOENT, name)
        dir_fd = os.dup(fd)
        try:
            src_fd, src_name, _ = self._nodes.locate(source)
            os.link(src_name, name, src_dir_fd=src_fd, dst_dir_fd=dir_fd, follow_symlinks=False)
            st = stat_at(dir_fd, name)
        finally:
            os.close(dir_fd)
        if identity_of(st) != source.identity:  # replaced between two calls
            return self._nodes.at(parent, name, st), Attr.of(st)
        self._nodes.attach(parent, name, source)
        source.remember_attributes(st)
        return source, Attr.of(st)

    # Removing and renaming

    def unlink(self, directory: Node, name: bytes) -> None:
        self._remove(directory, name, os.unlink)

    def rmdir(self, directory: Node, name: bytes) -> None:
        self._remove(directory, name, os.rmdir)

    def _remove(self, directory: Node, name: bytes, remove: Callable[..., None]) -> None:
        parent, dir_fd = self._to_change(directory, name, errno.EBUSY)
        node = self._nodes.hold(parent, name)
        try:
            remove(name, dir_fd=dir_fd)
        except OSError:
            if node is not None:
                self._nodes.let_go(node)
            raise
        self._watch.moved(parent, name)
        self._nodes.unnamed(parent, name, node)

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        source, fd = self._to_change(src, name, errno.EBUSY)
        src_fd = os.dup(fd)  # the way to the other directory may close it
        try:
            target, dst_fd = self._to_change(dst, new_name, errno.EBUSY)
            if flags & RENAME_EXCHANGE:
                rename_at(src_fd, name, dst_fd, new_name, flags)
                self._watch.moved(source, name)
                self._watch.moved(target, new_name)
                for node in self._nodes.exchanged(source, name, target, new_name):
                    self._renamed(node)
            else:
                self._rename(source, src_fd, name, target, dst_fd, new_name, flags)
        finally:
            os.close(src_fd)

    def _rename(
        self, source: HostNode, src_fd: int, name: bytes, target: HostNode, dst_fd: int, new_name: bytes, flags: int
    ) -> None:
        replaced = None if flags & RENAME_NOREPLACE else self._nodes.hold(target, new_name)
        moving = source.children.get(name) if source.children else None
        try:
            rename_at(src_fd, name, dst_fd, new_name, flags)
        except OSError:
            if replaced is not None:
                self._nodes.let_go(replaced)
            raise
        if replaced is not None and replaced is moving:  # two links of one file: rename(2) does nothing
            self._nodes.let_go(replaced)
            return
        self._watch.moved(source, name)
        self._watch.moved(target, new_name)
        self._nodes.unnamed(target, new_name, replaced)
        node = self._nodes.renamed(source, name, target, new_name)
        if node is not None:
            self._renamed(node)

    def _renamed(self, node: HostNode) -> None:
        """Take the ctime that a rename gave."""
        if node.identity is None:
            return
        try:
            node.remember_attributes(self._nodes.stat(node))
        except OSError:
            return  # others were quicker; they have events

    # Attributes

    def setattr(self, node: Node, change: SetAttr, file: OpenFile | None) -> Attr:
        target = self._file(node)
        if change.size is not None and target.kind != stat.S_IFREG:
            raise refuse(errno.EISDIR if target.is_dir else errno.EINVAL)
        fd = file.fileno() if file is not None else None
        if fd is None and target.removed and target.files:
            fd = target.files[-1].fd
        attr: Attr | None = None
        if fd is not None:
            self.saw(target, os.fstat(fd))
            attr = calls.change_at(-1, b"", change, fd)
        elif target.removed or target is self.root:
            attr = self._set_by_fd(target, change, os.O_RDONLY if change.size is None else os.O_WRONLY)
        else:
            if change.size is not None:  # through a descriptor, so that no file that took its place is cut
                attr = self._set_by_fd(target, SetAttr(size=change.size), os.O_WRONLY)
                change = change._replace(size=None)
            if attr is None or change != SetAttr():
                dir_fd, name, st = self._nodes.locate(target)
                self.saw(target, st)
                attr = calls.change_at(dir_fd, name, change)
        target.seen = (attr.size, attr.mtime_ns, attr.ctime_ns)
        return attr

    def _set_by_fd(self, node: HostNode, change: SetAttr, flags: int) -> Attr:
        fd = self._nodes.open(node, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            self.saw(node, os.fstat(fd))
            return calls.change_at(-1, b"", change, fd)
        finally:
            os.close(fd)

    # Extended attributes: those of the user pass, there are no others

    def getxattr(self, node: Node, name: bytes) -> bytes:
        assert isinstance(node, HostNode)
        if not name.startswith(_USER):
            raise refuse(errno.ENODATA if name.startswith((b"security.", b"trusted.")) else errno.EOPNOTSUPP, name)
        if node.identity is None:
            raise refuse(errno.ENODATA, name)
        path, follow = self._reached(node)
        return os.getxattr(path, name, follow_symlinks=follow)

    def listxattr(self, node: Node) -> list[bytes]:
        assert isinstance(node, HostNode)
        if node.identity is None:
            return []
        path, follow = self._reached(node)
        try:
            names = os.listxattr(path, follow_symlinks=follow)
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                return []
            raise
        return [name for name in map(os.fsencode, names) if name.startswith(_USER)]

    def setxattr(self, node: Node, name: bytes, value: bytes) -> None:
        target = self._file(node)
        if not name.startswith(_USER):
            raise refuse(errno.EOPNOTSUPP, name)
        path, follow = self._reached(target)
        os.setxattr(path, name, value, follow_symlinks=follow)
        target.remember_attributes(self._nodes.stat(target))

    def removexattr(self, node: Node, name: bytes) -> None:
        target = self._file(node)
        if not name.startswith(_USER):
            raise refuse(errno.EOPNOTSUPP, name)
        path, follow = self._reached(target)
        os.removexattr(path, name, follow_symlinks=follow)
        target.remember_attributes(self._nodes.stat(target))

    def describe(self, node: Node) -> dict[str, bytes]:
        return {"layer": b"local"}

    # Durability and life

    def fsync_dir(self, directory: Node) -> Callable[[], None]:
        assert isinstance(directory, HostNode)
        if directory.identity is None:
            return super().fsync_dir(directory)
        fd = os.dup(self._nodes.dir_fd(directory))

        def sync() -> None:
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        return sync

    def adopt(self, directory: Node, name: bytes, make: Callable[[int, bytes], bool]) -> Node | None:
        parent, dir_fd = self._to_change(directory, name, errno.EEXIST)
        inherited = {"system.posix_acl_default", "security.selinux"} & set(os.listxattr(proc_path(dir_fd)))
        if inherited or os.fstat(dir_fd).st_mode & stat.S_ISGID or not make(dir_fd, name):
            return None
        self._watch.moved(parent, name)
        return self.lookup(parent, name)[0]

    def host_directory(self, directory: Node) -> int | None:
        assert isinstance(directory, HostNode)
        if directory.identity is None:
            return None
        self._watch.leave_alone(directory)
        return os.dup(self._nodes.dir_fd(directory))

    def watch(self, directory: Node) -> None:
        """Watch *directory* now, though nobody has looked into it yet."""
        self._directory(directory)

    def dropped(self, node: Node) -> None:
        assert isinstance(node, HostNode)
        self._watch.dropped(node)
        self._nodes.dropped(node)

    def close(self) -> None:
        self._watch.close()
        self._nodes.close()
