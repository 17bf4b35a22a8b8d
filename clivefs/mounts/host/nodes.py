"""Which node a file of a host directory is, and how it is reached again.

Everything that keeps `Node.parent`, `name`, `children` and `removed` of a host tree true lives in this
file. There is one node per host inode. Others change the host directory at any time, so every place is
a belief that is verified, by device and inode number, whenever it is used; a place that no longer holds
answers ESTALE, whereupon the kernel looks its name up again.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

from clivefs.mounts.host.calls import PATH_FLAGS, DirFds, HostFile, open_directory, proc_path, stat_at
from clivefs.mounts.inodenumbers import host_inode_number, inode_number
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Attr, Node, Tree, refuse

Identity = tuple[int, int]
"""Device and inode number on the host."""
Facts = tuple[int, int, int]
"""Size in bytes, mtime and ctime in nanoseconds: what differs when a file was changed."""

TICK_NS = 20_000_000
"""Before Linux 6.13 two changes within one tick (at most 10 ms) can leave the same times: facts that were
taken so soon after the file's last change prove nothing."""


def identity_of(st: os.stat_result) -> Identity:
    return (st.st_dev, st.st_ino)


def facts_of(st: os.stat_result) -> Facts:
    return (st.st_size, st.st_mtime_ns, st.st_ctime_ns)


class HostNode(Node):
    """A file of a host tree. `parent` and `name` are its main place; other hard links are `aliases`."""

    __slots__ = ("aliases", "attr", "files", "held", "identity", "kind", "racy", "seen", "watched")
    identity: Identity | None
    """None: a mountpoint of ours, which is shown as an empty directory."""

    def __init__(self, tree: Tree, parent: Node | None, name: bytes, identity: Identity | None, kind: int) -> None:
        super().__init__(tree, parent, name)
        self.identity = identity
        self.kind = kind
        self.aliases: list[tuple[HostNode, bytes]] | None = None
        self.files: list[HostFile] = []
        """Open files of it: they lead to it whatever became of its names."""
        self.held = -1
        """A descriptor that keeps a file without a name within reach while the kernel holds its node."""
        self.seen: Facts | None = None
        """The state that the kernel's cached pages are of."""
        self.racy = False
        """`seen` was taken within a tick of the last change, or events were lost: being equal proves nothing."""
        self.watched = False
        self.attr: Attr | None = None
        """What was last told of it: see `attr_of`."""

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    def attr_of(self, st: os.stat_result) -> Attr:
        """The attributes that *st* tells: the object of last time, where they are the same."""
        attr = self.attr
        if attr is None or not attr.tells_of(st):
            self.attr = attr = Attr.of(st)
        return attr

    def remember(self, st: os.stat_result, *, own: bool = False) -> None:
        """Take *st* as what was seen last; *own*: after a change of our own."""
        self.seen = facts_of(st)
        self.racy = not own and max(st.st_mtime_ns, st.st_ctime_ns) + TICK_NS > time.time_ns()

    def remember_attributes(self, st: os.stat_result) -> None:
        """Take the new ctime after a change of our own that left the content alone."""
        if self.seen is not None and self.seen[:2] == (st.st_size, st.st_mtime_ns):
            self.seen = facts_of(st)

    def places(self) -> Iterator[tuple[HostNode, bytes]]:
        """Every (directory, name) that is believed to lead here."""
        if not self.removed and isinstance(self.parent, HostNode):
            yield self.parent, self.name
        if self.aliases:
            yield from list(self.aliases)


class HostNodes:
    """The nodes of one host tree, by host identity; their places, and descriptors of their directories."""

    def __init__(self, tree: Tree, root_fd: int, table: NodeTable, entry: bytes) -> None:
        self._tree = tree
        self._table = table
        self._entry = entry
        self._by_identity: dict[Identity, HostNode] = {}
        self._fds: DirFds[HostNode] = DirFds()
        self._holders: set[HostNode] = set()
        self.on_stale: Callable[[HostNode, bytes, HostNode], None] = lambda directory, name, node: None
        """Told of a place that the kernel may still believe in, though others have moved or removed the node there."""
        self.root_fd = open_directory(root_fd, b".")
        os.close(root_fd)
        st = os.fstat(self.root_fd)
        self.root = HostNode(tree, None, b"", identity_of(st), stat.S_IFDIR)
        self._register(self.root, pin=True)

    def __iter__(self) -> Iterator[HostNode]:
        return iter(list(self._by_identity.values()))

    def _register(self, node: HostNode, *, pin: bool = False) -> None:
        identity = node.identity
        assert identity is not None
        self._by_identity[identity] = node
        dev, ino = identity
        number = host_inode_number(ino, self._entry, b"host", b"%d" % dev, b"%d" % (ino >> 32))
        self._table.add(node, number, pin=pin)

    def known(self, identity: Identity) -> HostNode | None:
        return self._by_identity.get(identity)

    # From a name to its node

    def at(self, directory: HostNode, name: bytes, st: os.stat_result) -> HostNode:
        """The node of the file that *st* found at this place, made if it is new; the place is recorded."""
        identity = identity_of(st)
        kind = stat.S_IFMT(st.st_mode)
        node = self._by_identity.get(identity)
        occupant = directory.children.get(name) if directory.children else None
        if isinstance(occupant, HostNode) and occupant is not node:
            self.on_stale(directory, name, occupant)  # others have put another in its place
        if node is not None:
            at_home = occupant is node
            if node.kind == kind and (at_home or node is self.root or self._is_still(node, st)):
                if not at_home and node is not self.root:
                    self.moved_to(directory, name, node, links=st.st_nlink)
                return node
            self.bury(node)
            self._table.release(node)
        node = HostNode(self._tree, directory, name, identity, kind)
        node.removed = True
        self._register(node)
        self.attach(directory, name, node, new=True)
        return node

    def synthetic(self, directory: HostNode, name: bytes) -> HostNode:
        """The node of a hidden mountpoint: an empty directory without a host file."""
        node = directory.children.get(name) if directory.children else None
        if isinstance(node, HostNode) and node.identity is None:
            return node
        assert directory.identity is not None
        dev, ino = directory.identity
        node = HostNode(self._tree, directory, name, None, stat.S_IFDIR)
        node.removed = True
        self._table.add(node, inode_number(self._entry, b"hidden", b"%d" % dev, b"%d" % ino, name))
        self.attach(directory, name, node, new=True)
        return node

    def _is_still(self, node: HostNode, st: os.stat_result) -> bool:
        """Whether *node* is the file of *st* that appeared at another place (renamed, or another hard link), rather
        than a removed one whose inode number was given to a new file."""
        if node.files or node.held >= 0 or self._fds.get(node) is not None:
            return True  # an open descriptor keeps the inode number from being given away
        if st.st_nlink > 1 or node.is_dir:
            try:
                self.locate(node)
            except OSError:
                pass
            else:
                return True
        return node.seen is not None and node.seen[1] == st.st_mtime_ns

    # Places

    def attach(self, directory: HostNode, name: bytes, node: HostNode, *, new: bool = False) -> None:
        """Record that *name* leads to *node*, beside its other places. *directory* is held by the caller."""
        occupant = directory.children.get(name) if directory.children else None
        if occupant is node:
            return
        if isinstance(occupant, HostNode):
            self.detach(directory, name)
            self._table.release(occupant)
        if node.is_dir and not new:
            self._break_cycle(directory, node)
        if directory.children is None:
            directory.children = {}
        directory.children[name] = node
        if node.removed:
            node.parent, node.name, node.removed = directory, name, False
        else:
            node.aliases = [*(node.aliases or ()), (directory, name)]

    def _break_cycle(self, directory: HostNode, node: HostNode) -> None:
        """A directory that others moved may be believed to be below *node* though it is now above it."""
        current: Node = directory
        while current.parent is not None:
            if current.parent is node:
                assert isinstance(current, HostNode)
                if not current.removed:
                    self.detach(node, current.name)
                current.parent = self.root
                return
            current = current.parent

    def detach(self, directory: HostNode, name: bytes) -> HostNode | None:
        """Record that *name* leads nowhere any more; the node that it led to, if that was known."""
        children = directory.children
        node = children.pop(name, None) if children else None
        if not isinstance(node, HostNode):
            return None
        if not directory.children:
            directory.children = None
            self._table.release(directory)  # unless the kernel holds it
        if not node.removed and node.parent is directory and node.name == name:
            if node.aliases:
                node.parent, node.name = node.aliases.pop(0)
            else:
                node.removed = True
        elif node.aliases and (directory, name) in node.aliases:
            node.aliases.remove((directory, name))
        if not node.aliases:
            node.aliases = None
        return node

    def moved_to(self, directory: HostNode, name: bytes, node: HostNode, *, links: int) -> None:
        """Others gave *node* this place: a file with one link and a directory have no other."""
        old = list(node.places()) if node.is_dir or links == 1 else []
        node.lookups += 1  # stays while it is between two places
        try:
            for place in old:
                self.on_stale(*place, node)
                self.detach(*place)
            self.attach(directory, name, node)
        finally:
            node.lookups -= 1

    def renamed(self, src: HostNode, name: bytes, dst: HostNode, new_name: bytes) -> HostNode | None:
        """Our own operation has renamed what *name* leads to; its node."""
        node = src.children.get(name) if src.children else None
        if not isinstance(node, HostNode):
            return None
        node.lookups += 1
        try:
            self.detach(src, name)
            self.attach(dst, new_name, node)
        finally:
            node.lookups -= 1
        return node

    def exchanged(self, src: HostNode, name: bytes, dst: HostNode, new_name: bytes) -> list[HostNode]:
        """Our own operation has exchanged two names; the nodes behind them."""
        one = src.children.get(name) if src.children else None
        other = dst.children.get(new_name) if dst.children else None
        both = [node for node in (one, other) if isinstance(node, HostNode)]
        for node in both:
            node.lookups += 1
        try:
            self.detach(src, name)
            self.detach(dst, new_name)
            if isinstance(one, HostNode):
                self.attach(dst, new_name, one)
            if isinstance(other, HostNode):
                self.attach(src, name, other)
        finally:
            for node in both:
                node.lookups -= 1
        return both

    def bury(self, node: HostNode) -> None:
        """The host file of *node* is no more, and its inode number may belong to another. To be released then."""
        for place in list(node.places()):
            self.on_stale(*place, node)
            self.detach(*place)
        node.removed = True
        if node.identity is not None and self._by_identity.get(node.identity) is node:
            del self._by_identity[node.identity]
        self._hold_directory(node)

    def forget_identity(self, node: HostNode) -> None:
        """Our own operation has just made a new file with the inode number of *node*: that one is gone."""
        node.lookups += 1
        try:
            self.bury(node)
        finally:
            node.lookups -= 1
        self._table.release(node)

    def release(self, node: HostNode) -> None:
        """Forget *node* unless somebody holds it."""
        self._table.release(node)

    # From a node to its file

    def dir_fd(self, node: HostNode) -> int:
        """A descriptor of a directory, good until many others were asked for. ESTALE when it cannot be found."""
        if node is self.root:
            return self.root_fd
        fd = self._fds.get(node)
        if fd is not None:
            return fd
        if node.held >= 0:
            return node.held
        if not node.is_dir:
            raise refuse(errno.ENOTDIR)
        if node.identity is None:
            raise refuse(errno.EROFS)
        chain, fd = self._nearest(node)
        for step in reversed(chain):
            fd = self._fds.put(step, self._open_below(fd, step))
        return fd

    def _nearest(self, node: HostNode) -> tuple[list[HostNode], int]:
        """The directories from *node* upwards that are not open, and the descriptor of the one above them."""
        chain = [node]
        while True:
            current = chain[-1]
            if current.removed or not isinstance(current.parent, HostNode):
                raise refuse(errno.ESTALE)
            parent = current.parent
            if parent is self.root:
                return chain, self.root_fd
            fd = self._fds.get(parent)
            if fd is not None:
                return chain, fd
            if parent.held >= 0:
                return chain, parent.held
            chain.append(parent)

    @staticmethod
    def _open_below(dir_fd: int, node: HostNode) -> int:
        try:
            fd = open_directory(dir_fd, node.name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise refuse(errno.ESTALE) from None
            raise
        if identity_of(os.fstat(fd)) != node.identity:
            os.close(fd)
            raise refuse(errno.ESTALE)
        return fd

    def cached_fd(self, node: HostNode) -> int | None:
        """A descriptor that leads to *node* whatever became of its names, if there is one."""
        if node is self.root:
            return self.root_fd
        if node.files:
            return node.files[-1].fd
        if node.held >= 0:
            return node.held
        return self._fds.get(node) if node.is_dir else None

    def locate(self, node: HostNode) -> tuple[int, bytes, os.stat_result]:
        """A verified place of *node*: the directory's descriptor, the name, and what stat says. Of a file with several,
        one whose directory we may search. ESTALE; EACCES if there is none such."""
        denied: PermissionError | None = None
        for parent, name in node.places():
            try:
                fd = self.dir_fd(parent)
                st = stat_at(fd, name)
            except PermissionError as error:
                denied = error
                continue
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                    raise
                continue
            if identity_of(st) == node.identity:
                return fd, name, st
        raise denied or refuse(errno.ESTALE)

    def stat(self, node: HostNode) -> os.stat_result:
        """fstat(2) of what *node* stands for, removed or not. ESTALE."""
        fd = self.cached_fd(node)
        return os.fstat(fd) if fd is not None else self.locate(node)[2]

    def open(self, node: HostNode, flags: int) -> int:
        """Open the file of *node*, and no other that took its place. *flags* never create or truncate. ESTALE."""
        if node is self.root:
            return os.open(b".", flags, dir_fd=self.root_fd)
        if node.removed:
            fd = self.cached_fd(node)
            if fd is None:
                raise refuse(errno.ESTALE)
            return os.open(proc_path(fd), flags & ~os.O_NOFOLLOW)
        denied: PermissionError | None = None
        for parent, name in node.places():
            try:
                fd = os.open(name, flags | os.O_NONBLOCK, dir_fd=self.dir_fd(parent))
            except PermissionError as error:  # of the file, or of one of its directories
                denied = error
                continue
            except OSError as error:
                if error.errno not in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                    raise
                continue
            if identity_of(os.fstat(fd)) == node.identity:
                return fd
            os.close(fd)
        raise denied or refuse(errno.ESTALE)

    # Files without a name

    def hold(self, directory: HostNode, name: bytes) -> HostNode | None:
        """Before *name* is removed: keep the file of its node within reach, if the kernel has that node.

        The node, if there is one and the name does lead to it.
        """
        node = directory.children.get(name) if directory.children else None
        if not isinstance(node, HostNode) or node.identity is None:
            return None
        if node.files or node.held >= 0:
            return node
        if node.is_dir:
            self._hold_directory(node)
        if node.held < 0:
            dir_fd = self.dir_fd(directory)
            try:
                fd = open_directory(dir_fd, name) if node.is_dir else os.open(name, PATH_FLAGS, dir_fd=dir_fd)
            except OSError:
                return None
            if identity_of(os.fstat(fd)) != node.identity:
                os.close(fd)
                return None
            self.keep(node, fd)
        return node

    def keep(self, node: HostNode, fd: int) -> None:
        """Let *fd*, owned from now on, keep *node* within reach until it is dropped."""
        node.held = fd
        self._holders.add(node)

    def _hold_directory(self, node: HostNode) -> None:
        fd = self._fds.get(node)
        if fd is not None and node.held < 0:
            self.keep(node, os.dup(fd))
            self._fds.drop(node)

    def let_go(self, node: HostNode) -> None:
        """Close what `hold` opened, the name having stayed."""
        if node.held >= 0:
            os.close(node.held)
            node.held = -1
            self._holders.discard(node)

    def unnamed(self, directory: HostNode, name: bytes, node: HostNode | None) -> None:
        """Our own operation has removed *name*, which led to the node that `hold` returned."""
        gone = self.detach(directory, name)
        node = node or gone
        if node is None:
            return
        fd = self.cached_fd(node)
        st = os.fstat(fd) if fd is not None else None
        if st is not None:
            node.remember_attributes(st)
        if (st is None and node.removed) or (st is not None and st.st_nlink == 0):
            self.bury(node)
        elif not node.removed:
            self.let_go(node)
        self._table.release(node)

    def lost(self, directory: HostNode, name: bytes) -> HostNode | None:
        """Others have removed or replaced what *name* led to; the node it was."""
        node = self.detach(directory, name)
        if node is None:
            return None
        fd = self.cached_fd(node) if node.removed else None
        if fd is not None and os.fstat(fd).st_nlink == 0:
            self.bury(node)
        self._table.release(node)
        return node

    # Life

    def dropped(self, node: HostNode) -> None:
        """The table has forgotten *node*."""
        for parent, name in node.aliases or ():
            if parent.children is not None and parent.children.get(name) is node:
                del parent.children[name]
                if not parent.children:
                    parent.children = None
                self._table.release(parent)
        node.aliases = None
        node.removed = True
        if node.identity is not None and self._by_identity.get(node.identity) is node:
            del self._by_identity[node.identity]
        self._fds.drop(node)
        self.let_go(node)

    def close(self) -> None:
        self._fds.close()
        for node in list(self._holders):
            self.let_go(node)
        fd, self.root_fd = self.root_fd, -1
        if fd >= 0:
            os.close(fd)
