"""Which node a file of an overlay is, in which layer its content lies, and how it is reached there.

Everything that keeps `OverlayNode.upper`, `lower` and `mark` true lives in this file; `known` has what keeps the names
by which nodes are known.

Invariants
----------
1. A node with `upper` has its content (a directory: its attributes) in the upper, at its own path; so have
   all its ancestors an upper directory. `lower` is then the directory that it merges with, or None.
2. A node without `upper` is the lower file `lower`.
3. `mark` is the mark at a directory's path, if the trie has one: set when the node is made, and by `mark_way`
   after marks were added below known directories.
4. One upper inode is one node: those with several names are in `_linked`.
5. `nodeid` of what came from the lower is derived from the lower and survives copy-up in `origins`; of what was
   born in the upper, from its upper inode. Directories of the lower go by their path there, so that they keep
   their number when they are renamed (a redirect) or the lower is replaced.
"""

from __future__ import annotations

import copy
import errno
import os
import stat

from clivefs.mounts.host.calls import DirFds, open_directory, proc_path, stat_at
from clivefs.mounts.inodenumbers import host_inode_number, inode_number
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.known import KnownNodes
from clivefs.mounts.overlay.marks import Mark, MarkKind, split
from clivefs.mounts.overlay.node import OverlayNode, UpperFile, directory_only, shown
from clivefs.mounts.overlay.upper import Upper
from clivefs.mounts.tree import Attr, Tree, refuse


class OverlayNodes(KnownNodes):
    """The nodes of one overlay."""

    def __init__(
        self, tree: Tree, lower: Lower, upper: Upper | None, table: NodeTable, entry: bytes, source: bytes
    ) -> None:
        super().__init__(table)
        self._tree = tree
        self._entry = entry
        self.source = source
        self.lower = lower
        self.upper = upper
        self._linked: dict[int, OverlayNode] = {}
        self._fds: DirFds[int] = DirFds()
        self._old_lowers: dict[OverlayNode, Lower] = {}
        """The lower of nodes that lost their name when theirs was replaced."""
        self.root = OverlayNode(tree, None, b"", stat.S_IFDIR)
        self.root.lower = lower.root
        if upper is not None:
            self.root.upper = upper.tree_ino
            self.root.mark = upper.root_mark
        table.add(self.root, inode_number(entry, b"dir", b""), pin=True)

    def close(self) -> None:
        self._fds.close()
        if self.upper is not None:
            self.upper.close()
        for each in {id(lower): lower for lower in (self.lower, *self._old_lowers.values())}.values():
            each.close()
        self._old_lowers.clear()

    # Layers

    def directory_fd(self, directory: OverlayNode) -> int:
        """A descriptor of the upper directory of *directory*, good until 256 others were asked for."""
        assert self.upper is not None
        missing: list[OverlayNode] = []
        node = directory
        fd: int | None = None
        while node is not self.root:
            fd = self._fds.get(node.upper)
            if fd is not None:
                break
            missing.append(node)
            assert isinstance(node.parent, OverlayNode)
            node = node.parent
        current = self.upper.tree_fd if fd is None else fd
        for each in reversed(missing):
            current = self._fds.put(each.upper, open_directory(current, each.name))
        return current

    def drop_fd(self, inode: int) -> None:
        """The upper directory *inode* is no more."""
        self._fds.drop(inode)

    def lower_of(self, node: OverlayNode) -> Lower:
        """The lower layer that `node.lower` belongs to."""
        if node.removed and self._old_lowers:
            return self._old_lowers.get(node, self.lower)
        return self.lower

    def lower_directory(self, directory: OverlayNode) -> LowerRef | None:
        """The lower directory that *directory* stands on now; asked anew where the lower is live."""
        if not self.lower.live or directory.removed:
            return directory.lower
        chain: list[OverlayNode] = []
        node = directory
        while node is not self.root:
            chain.append(node)
            assert isinstance(node.parent, OverlayNode)
            node = node.parent
        ref: LowerRef | None = self.lower.root
        for each in reversed(chain):
            ref = directory_only(self.marked(ref, each.name, each.mark))
            self.stand_on(each, ref)
        return ref

    def stand_on(self, directory: OverlayNode, ref: LowerRef | None) -> None:
        """*directory* shows the lower's *ref* now, and what it showed before no more."""
        old, directory.lower = directory.lower, ref
        if old is not None and self.lower.live and old != ref:
            self.lower.unwatch(old)

    def candidate(self, ref: LowerRef | None, name: bytes) -> LowerRef | None:
        """What the lower directory *ref* has under *name*, whatever the marks say."""
        if ref is None:
            return None
        try:
            return self.lower.child(ref, name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE, errno.ENOTDIR):
                return None
            raise

    def marked(self, ref: LowerRef | None, name: bytes, mark: Mark | None) -> LowerRef | None:
        """What the lower shows under *name*, as the mark there says."""
        if mark is None or mark.kind is MarkKind.INHERIT:
            return self.candidate(ref, name)
        if mark.kind is MarkKind.HIDDEN:
            return None
        return self.at_path(mark.target)

    def at_path(self, path: bytes) -> LowerRef | None:
        """The lower file at *path*."""
        ref: LowerRef | None = self.lower.root
        for name in split(path):
            ref = self.candidate(directory_only(ref), name)
        return ref

    def find(self, directory: OverlayNode, name: bytes) -> tuple[os.stat_result | None, LowerRef | None]:
        """What is under *name*: in the upper, and in the lower as far as that shows. (None, None): nothing."""
        found: os.stat_result | None = None
        if directory.upper:
            try:
                found = stat_at(self.directory_fd(directory), name)
            except FileNotFoundError:
                pass
            else:
                if not stat.S_ISDIR(found.st_mode):
                    return found, None
        mark = directory.mark.child(name) if directory.mark is not None else None
        if mark is not None and mark.kind is MarkKind.HIDDEN:
            return found, None
        ref = self.marked(self.lower_directory(directory), name, mark)
        return found, ref if found is None else directory_only(ref)

    def mark_way(self, directory: OverlayNode) -> None:
        """Marks were added at or below *directory*: tell the nodes on the way to it."""
        missing: list[OverlayNode] = []
        node = directory
        while node.mark is None:
            missing.append(node)
            assert isinstance(node.parent, OverlayNode)
            node = node.parent
        for each in reversed(missing):
            assert isinstance(each.parent, OverlayNode)
            assert each.parent.mark is not None
            each.mark = each.parent.mark.child(each.name)
            if each.mark is None:
                return

    # From a name to its node

    def get(self, directory: OverlayNode, name: bytes, *, fetch: bool = True) -> tuple[OverlayNode, Attr]:
        """The node under *name*, made if it is not known, and its attributes. ENOENT; may be `Blocked`."""
        if not directory.is_dir:
            raise refuse(errno.ENOTDIR, name)
        if directory.removed:
            raise refuse(errno.ENOENT, name)
        node = self.known(directory, name)
        if node is not None and (node.upper or not self.lower.live):
            try:
                return node, self.attr(node, fetch=fetch)
            except OSError as error:
                if error.errno != errno.ESTALE:
                    raise
        found, ref = self.find(directory, name)
        if found is None and ref is None:
            if node is not None:
                self.detach(directory, name, node)
            raise refuse(errno.ENOENT, name)
        attr = self._attr_of(found, ref, fetch=fetch)
        if node is not None:
            if self._is_still(node, found, ref):
                if node.is_dir:
                    self.stand_on(node, ref)
                else:
                    node.lower = ref
                return node, attr
            self.detach(directory, name, node)
        return self._make(directory, name, found, ref, attr), attr

    def _is_still(self, node: OverlayNode, found: os.stat_result | None, ref: LowerRef | None) -> bool:
        """Whether *node* is what is now under its name."""
        if found is not None:
            return node.upper == found.st_ino and node.kind == stat.S_IFMT(found.st_mode)
        if ref is None or node.upper or ref.kind != node.kind:
            return False
        return node.is_dir or ref == node.lower or self.lower.identity(ref) == node.identity

    def _attr_of(self, found: os.stat_result | None, ref: LowerRef | None, *, fetch: bool) -> Attr:
        if found is not None:
            return shown(Attr.of(found))
        assert ref is not None
        return self._lower_attr(self.lower, ref, fetch=fetch)

    def _lower_attr(self, lower: Lower, ref: LowerRef, *, fetch: bool) -> Attr:
        """Attributes of a lower file. Each name of one with hard links is a file of its own, as in overlayfs, and tells
        how many links that has there, until it is copied up."""
        try:
            attr = lower.attr(ref, fetch=fetch)
        except FileNotFoundError:
            raise refuse(errno.ESTALE) from None
        if attr.nlink != 1 and stat.S_ISDIR(attr.mode):
            attr = copy.copy(attr)
            attr.nlink = 1
            attr.reply = None
        return attr

    def _make(
        self, directory: OverlayNode, name: bytes, found: os.stat_result | None, ref: LowerRef | None, attr: Attr
    ) -> OverlayNode:
        """The node for what `find` found; the one of its other name, if it has several."""
        if found is not None and not stat.S_ISDIR(found.st_mode):
            linked = self._linked.get(found.st_ino)
            if linked is not None:
                self.attach(directory, name, linked)
                return linked
        node = OverlayNode(self._tree, directory, name, stat.S_IFMT(attr.mode))
        node.removed = True
        node.lower = ref
        if node.is_dir and directory.mark is not None:
            node.mark = directory.mark.child(name)
        if found is not None:
            self.set_upper(node, found)
            number = self.upper_number(found.st_ino)
        else:
            assert ref is not None
            number = self._lower_number(node, ref)
        self._table.add(node, number)
        self.attach(directory, name, node)
        return node

    def born(self, directory: OverlayNode, name: bytes, found: os.stat_result, number: int) -> OverlayNode:
        """The node for a file that was just made in the upper; *number* is its inode number if that is free."""
        node = OverlayNode(self._tree, directory, name, stat.S_IFMT(found.st_mode))
        node.removed = True
        if node.is_dir and directory.mark is not None:
            node.mark = directory.mark.child(name)
        self.set_upper(node, found)
        self._table.add(node, number)
        self.attach(directory, name, node)
        return node

    def set_upper(self, node: OverlayNode, found: os.stat_result) -> None:
        """*node* lies in the upper, as *found* says."""
        node.upper = found.st_ino
        if not node.is_dir and found.st_nlink > 1:
            self._linked[found.st_ino] = node

    def linked(self, node: OverlayNode) -> None:
        """*node* has, or is about to have, several names."""
        self._linked[node.upper] = node

    def reborn(self, inode: int) -> None:
        """A file was just made in the upper: whoever had its inode number is no more."""
        assert self.upper is not None
        self.upper.discard.reborn(inode)
        self.unlinked(inode)

    def unlinked(self, inode: int) -> None:
        """The last name of the upper file *inode* is gone: its number may be given to another."""
        self._linked.pop(inode, None)

    def upper_number(self, inode: int) -> int:
        """The inode number under which an upper inode is shown."""
        assert self.upper is not None
        return self.upper.origins.get(inode) or self.derived_number(inode)

    def derived_number(self, inode: int) -> int:
        """The inode number of a file that was born in the upper."""
        return inode_number(self._entry, b"upper", b"%d" % inode)

    def own_number(self, node: OverlayNode) -> int:
        """The inode number of a file of the lower, also while a bridge has it (see `View`)."""
        if node.is_dir and node.lower is not None:
            return self._lower_number(node, node.lower)
        return node.nodeid

    def _lower_number(self, node: OverlayNode, ref: LowerRef) -> int:
        if node.is_dir:
            return inode_number(self._entry, b"dir", self.lower.path(ref))
        identity = self.lower.identity(ref)
        if not self.lower.live:
            return inode_number(self._entry, self.source, identity)
        node.identity = identity
        # The path as well: hard links of the lower are files of their own here.
        host = self.lower.host_inode(ref)
        if host is None:
            return inode_number(self._entry, self.source, identity, self.lower.path(ref))
        return host_inode_number(host, self._entry, self.source, identity, self.lower.path(ref))

    def keep_lower(self, node: OverlayNode, lower: Lower) -> None:
        """*node*, which has no name any more, goes on reading from *lower*."""
        if node.lower is not None:
            self._old_lowers[node] = lower

    def retire(self, lower: Lower) -> None:
        """Close *lower* as soon as no node reads from it any more."""
        if lower is not self.lower and lower not in self._old_lowers.values():
            lower.close()

    def dropped(self, node: OverlayNode) -> None:
        """The table has forgotten *node*."""
        self.forget(node)
        if node.is_dir and node.lower is not None and self.lower.live:
            self.lower.unwatch(node.lower)
        if self._linked.get(node.upper) is node:
            del self._linked[node.upper]
        old = self._old_lowers.pop(node, None)
        if old is not None:
            self.retire(old)

    # Attributes and descriptors of one node

    def attr(self, node: OverlayNode, *, fetch: bool = True) -> Attr:
        """The attributes of a node. ESTALE; may be `Blocked` if *fetch*."""
        if node.removed:
            return self._removed_attr(node)
        if node.upper:
            return shown(Attr.of(self.stat(node)))
        assert node.lower is not None
        return self._lower_attr(self.lower, node.lower, fetch=fetch)

    def stat(self, node: OverlayNode) -> os.stat_result:
        """stat of a node in the upper that has a name."""
        assert self.upper is not None
        if node is self.root:
            return os.fstat(self.upper.tree_fd)
        return self.locate(node)[2]

    def locate(self, node: OverlayNode) -> tuple[int, bytes, os.stat_result]:
        """A place of a node in the upper that has a name: the directory's descriptor, the name, and what stat says.

        Of a file with several, one whose directory we may search. ESTALE; EACCES if there is none such.
        """
        assert isinstance(node.parent, OverlayNode)
        denied: PermissionError | None = None
        for directory, name in node.places() if node.links else ((node.parent, node.name),):
            try:
                fd = self.directory_fd(directory)
                found = stat_at(fd, name)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                denied = error
                continue
            if found.st_ino == node.upper:
                return fd, name, found
        if denied is not None:
            raise denied
        raise refuse(errno.ESTALE)

    def _removed_attr(self, node: OverlayNode) -> Attr:
        fd = node.host_fd()
        if fd is not None:
            return Attr.of(os.fstat(fd))
        if node.last is None:
            if node.upper or node.lower is None:
                raise refuse(errno.ESTALE)
            node.last = self._lower_attr(self.lower_of(node), node.lower, fetch=True)
        attr = copy.copy(node.last)
        attr.nlink = 0
        attr.reply = None
        return attr

    def open_upper(self, node: OverlayNode, flags: int) -> int:
        """A new descriptor of the upper file of *node*, whether or not it has a name."""
        if node.removed:
            fd = node.host_fd()
            if fd is None:
                raise refuse(errno.ESTALE)
            return os.open(proc_path(fd), flags & ~os.O_NOFOLLOW)
        assert isinstance(node.parent, OverlayNode)
        if node.links:
            fd, name, _ = self.locate(node)
            return os.open(name, flags, dir_fd=fd)
        return os.open(node.name, flags, dir_fd=self.directory_fd(node.parent))

    def rebind(self, node: OverlayNode, fds: list[int]) -> None:
        """The content of *node* is in the upper now: its open files read from there, through *fds*."""
        for file, fd in zip(node.files or (), fds, strict=True):
            old_fd = file.inner.fileno()
            if old_fd is None:
                old, file.inner = file.inner, UpperFile(fd)
                old.close()
            else:  # a thread may be about to read from the descriptor: it stays, and leads to the same content
                os.dup2(fd, old_fd, inheritable=False)
                os.close(fd)
                file.inner = UpperFile(old_fd)

    # Durability

    def sync_place(self, node: OverlayNode) -> None:
        """Make the names that lead to *node* survive a power loss. May run in a thread."""
        closed = self.upper is None or self.upper.tree_fd < 0
        if self.upper is not None and not closed and node.upper and not node.removed:
            self.upper.sync_chain(self.names_to(node if node.is_dir or node.parent is None else node.parent))
