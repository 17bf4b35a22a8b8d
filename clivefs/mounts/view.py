"""The directory tree of one mountpoint: workspaces, each a root tree with the mount entries in it.

Everything that decides which tree answers for a name lives here: a mount entry hides whatever the
layers below have at its path; the directories on the way to it are bridges; names cannot be removed or
renamed from under a mount; nothing is renamed or linked from one tree into another (EXDEV).
"""

from __future__ import annotations

import copy
import errno
import functools
import os
import stat
from collections.abc import Callable, Mapping

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.synthetic import Bridge, SyntheticDirectory, SyntheticTree
from clivefs.mounts.tree import Attr, Blocked, DirEntry, Node, OpenFile, Owner, SetAttr, Tree, check_name, refuse

CONTROL = b".clive"
PRIVATE_XATTR = b"user.clive."


class View:
    """The live view. Methods take and give nodes; errors are OSError, `Blocked` passes through."""

    def __init__(self, table: NodeTable, owner: Owner, time_ns: int) -> None:
        self.table = table
        self.owner = owner
        self.synthetic = SyntheticTree(table, owner, time_ns)
        self._controls: dict[int, SyntheticDirectory] = {}
        self._bridge_of: dict[int, Bridge] = {}
        self.git_gates: dict[int, Callable[[], None]] = {}
        """By number of an entry's root: what must be so before its `.git` is read; may raise `Blocked`."""
        self.keep_number: Callable[[int, int], None] = lambda derived, shown: None
        """Told of a directory that has another number than the derived one, and shall have it in the next mount too."""

    @property
    def root(self) -> Node:
        return self.synthetic.root

    # Assembling: called by the assembly when workspaces and mount entries come and go

    def add_workspace(self, name: bytes, tree: Tree) -> SyntheticDirectory:
        """Show *tree* as the workspace *name*; its `.clive` directory."""
        check_name(name)
        top = self.synthetic.root
        assert top.mounts is not None
        if name in top.mounts:
            raise refuse(errno.EEXIST, name)
        self._hang(top, name, tree.root)
        control = self.synthetic.directory(tree.root, CONTROL, hidden=True)
        self._controls[tree.root.nodeid] = control
        return control

    def show_in_control(self, control: SyntheticDirectory, directories: Mapping[bytes, Node]) -> None:
        """Show these directories, roots of another tree, in a `.clive` that `add_workspace` gave."""
        for name, root in directories.items():
            self._hang(control, name, root)

    def remove_workspace(self, name: bytes) -> None:
        top = self.synthetic.root
        assert top.mounts is not None
        node = top.mounts[name]
        control = self._controls.pop(node.nodeid)
        for child in list((control.mounts or {}).values()):
            if child.tree is self.synthetic:
                self.synthetic.remove(child)
        self.synthetic.remove(control)
        self._unhang(top, name)

    def set_entry(self, workspace: Node, path: bytes, tree: Tree) -> tuple[Node, bytes]:
        """Show *tree* at *path* of the workspace whose root is given, instead of what was there.

        The parent that the kernel knows and the name, for invalidation.
        """
        *parents, name = path.split(b"/")
        directory = workspace
        for part in parents:
            below = (directory.mounts or {}).get(part)
            if below is None:
                below = self._bridge(directory, part)
            directory = below
        old = (directory.mounts or {}).get(name)
        if old is not None:
            self._transplant(old, tree)
        self._hang(directory, name, tree.root)
        return directory, name

    def remove_entry(self, workspace: Node, path: bytes) -> tuple[Node, bytes]:
        """Take the entry at *path* away, and the bridges that only led to it; what to invalidate."""
        parts = path.split(b"/")
        chain = [workspace]
        for part in parts:
            chain.append((chain[-1].mounts or {})[part])
        at = len(parts) - 1
        self._unhang(chain[at], parts[at])
        left: tuple[Node, bytes] | None = None
        while at > 0 and isinstance(chain[at], Bridge) and not chain[at].mounts:
            bridge = chain[at]
            assert isinstance(bridge, Bridge)
            real = self._take_bridge_away(bridge)
            if left is None and real is not None:
                left = real, parts[at]
            at -= 1
        return left or (chain[at], parts[at])

    def _hang(self, directory: Node, name: bytes, root: Node) -> None:
        # A tree's root keeps no parent: walking up from a node must end at its own tree.
        if directory.mounts is None:
            directory.mounts = {}
        directory.mounts[name] = root
        self.table.pin(root)

    def _unhang(self, directory: Node, name: bytes) -> None:
        assert directory.mounts is not None
        root = directory.mounts.pop(name)
        if not directory.mounts and directory.tree is not self.synthetic:
            directory.mounts = None
        self.git_gates.pop(root.nodeid, None)
        self.table.unpin(root)

    def _transplant(self, old_root: Node, tree: Tree) -> None:
        """Give the directories of *tree* the numbers of the same directories of the tree it takes the
        place of, so that who works in one goes on there. Files get new inodes: their names are looked up
        again, and who has one open keeps what he opened."""
        if old_root.tree is tree:
            return
        pending = [(old_root, tree.root)]
        while pending:
            old, new = pending.pop()
            known = list((old.children or {}).items())
            self.table.replace(old, new)
            for name, child in known:
                # Nothing here may wait or fail: what cannot be told at once is not carried over.
                try:
                    if child.children is None and not stat.S_ISDIR(child.tree.getattr(child).mode):
                        continue
                    found, attr = tree.listed(new, name)
                except (OSError, Blocked):
                    continue
                if stat.S_ISDIR(attr.mode):
                    pending.append((child, found))
                else:
                    self.table.release(found)

    # Bridges

    def _bridge(self, directory: Node, name: bytes) -> Bridge:
        """A new bridge. It gets the number of the layer's directory that it stands over: who works there sees
        the mount entry come, and the number stays what it was."""
        self._number_layer(directory, name)
        bridge = self.synthetic.bridge(directory, name)
        real = self._real(bridge)
        if real is not None:
            self._exchange(bridge, real)
        return bridge

    def _number_layer(self, directory: Node, name: bytes) -> None:
        """Let what the layer has under *name* have its number before a bridge can take that: it may be one that an
        earlier bridge left to it."""
        above = self._real(directory)
        if above is not None:
            try:
                above.tree.lookup(above, name)
            except OSError:
                return  # there is nothing

    def _take_bridge_away(self, bridge: Bridge) -> Node | None:
        """Remove a bridge; the directory of the layer that now answers to its number, if there is one."""
        real = self._real(bridge)
        if real is not None:
            self._exchange(bridge, real)
        self._set_real(bridge, None)
        self.synthetic.remove(bridge)
        return real

    def _exchange(self, bridge: Bridge, real: Node) -> None:
        del self._bridge_of[real.nodeid]
        self.table.exchange(bridge, real)
        bridge.opens -= 1  # the bridge holds the directory, whatever their numbers
        real.opens += 1
        self._bridge_of[real.nodeid] = bridge

    def _real(self, node: Node) -> Node | None:
        """The directory of a layer that a bridge stands over, if there is one now; other nodes: themselves."""
        if not isinstance(node, Bridge):
            return None if isinstance(node, SyntheticDirectory) else node
        assert node.parent is not None
        above = self._real(node.parent)
        found: Node | None = None
        if above is not None:
            try:
                candidate, attr = above.tree.lookup(above, node.name)
            except OSError:
                candidate = None
            if candidate is not None and stat.S_ISDIR(attr.mode):
                found = candidate
            elif candidate is not None:
                self.table.release(candidate)
        self._set_real(node, found)
        return found

    def _set_real(self, bridge: Bridge, found: Node | None) -> None:
        if bridge.real is found:
            return
        if bridge.real is not None:
            self._bridge_of.pop(bridge.real.nodeid, None)
            bridge.real.opens -= 1
            self.table.release(bridge.real)
        bridge.real = found
        if found is not None:
            found.opens += 1
            self._bridge_of[found.nodeid] = bridge

    def _writable_real(self, node: Node) -> Node:
        """The directory to make a name in; made below a bridge where the layer has none yet."""
        real = self._real(node)
        if real is not None:
            return real
        if not isinstance(node, Bridge):
            raise refuse(errno.EPERM, node.name)
        assert node.parent is not None
        above = self._writable_real(node.parent)
        made, _ = above.tree.mkdir(above, node.name, 0o755, self.owner)
        self._set_real(node, made)
        self.table.renumbered[made.nodeid] = node.nodeid
        self.keep_number(made.nodeid, node.nodeid)
        return made

    def kernel_node(self, node: Node) -> Node:
        """The node that the kernel knows for *node*: the bridge over it, or itself."""
        return self._bridge_of.get(node.nodeid, node)

    # Looking

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        if directory.mounts is not None:
            mounted = directory.mounts.get(name)
            if mounted is not None:
                return mounted, self.getattr(mounted)
        if name == CONTROL and directory.nodeid in self._controls:
            control = self._controls[directory.nodeid]
            return control, self.getattr(control)
        if len(name) > 255:
            raise refuse(errno.ENAMETOOLONG, name)
        real = self._real(directory) or directory
        return real.tree.lookup(real, name)

    def listed(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        """As `lookup`, for a name of a listing: never waits for content, the size may be unknown."""
        if directory.mounts is not None and name in directory.mounts:
            return self.lookup(directory, name)
        real = self._real(directory)
        if real is None:
            raise refuse(errno.ENOENT, name)
        return real.tree.listed(real, name)

    def names(self, directory: Node) -> list[bytes]:
        """The names of `entries`."""
        if directory.mounts or directory.nodeid in self._controls:
            return [entry.name for entry in self.entries(directory)]
        real = self._real(directory)
        return real.tree.names(real) if real is not None else []

    def lister(self, directory: Node) -> Callable[[bytes], tuple[Node, Attr]]:
        """`listed` for many names of one directory in a row."""
        if directory.mounts or isinstance(directory, Bridge | SyntheticDirectory):
            return functools.partial(self.listed, directory)
        return directory.tree.lister(directory)

    def numberer(self, directory: Node) -> Callable[[bytes], tuple[int, int]]:
        """The inode number and the mode (of which only the file type counts) of many names of one directory in a row;
        nothing stays in memory of what nobody else holds."""
        if not (directory.mounts or isinstance(directory, Bridge | SyntheticDirectory)):
            numbered = directory.tree.numberer(directory)
            if numbered is not None:
                return numbered
        listed, release = self.lister(directory), self.table.release

        def number(name: bytes) -> tuple[int, int]:
            node, attr = listed(name)
            number = node.nodeid
            release(node)
            return number, attr.mode

        return number

    def entries(self, directory: Node) -> list[DirEntry]:
        """The names of a directory: those of its layer, with the mount entries over them; never `.clive`."""
        real = self._real(directory)
        found = real.tree.entries(real) if real is not None else []
        mounts = directory.mounts
        control = directory.nodeid in self._controls
        if not mounts and not control:
            return found
        shown = [
            entry for entry in found if entry.name not in (mounts or ()) and not (control and entry.name == CONTROL)
        ]
        for name, node in (mounts or {}).items():
            kind = stat.S_IFMT(self.getattr(node).mode)
            shown.append(DirEntry(name, kind))
        return shown

    def getattr(self, node: Node) -> Attr:
        real = self._real(node) if isinstance(node, Bridge) else None
        return _seen(node, real.tree.getattr(real) if real is not None else node.tree.getattr(node))

    def readlink(self, node: Node) -> bytes:
        return node.tree.readlink(node)

    def open(self, node: Node, flags: int) -> OpenFile:
        if node.name == b".git" and node.parent is not None:
            gate = self.git_gates.get(node.parent.nodeid)
            if gate is not None:
                gate()
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            _changing(node)
        return node.tree.open(node, flags)

    # Changing

    def _target(self, directory: Node, name: bytes) -> Node:
        """The directory of the layer in which *name* may be made; the name is free of mounts."""
        check_name(name)
        if directory.tree is self.synthetic and not isinstance(directory, Bridge):
            raise refuse(errno.EPERM, name)
        if self._taken(directory, name):
            raise refuse(errno.EEXIST, name)
        return self._writable_real(directory)

    def _taken(self, directory: Node, name: bytes) -> bool:
        if name == CONTROL and directory.nodeid in self._controls:
            return True
        return directory.mounts is not None and name in directory.mounts

    def create(self, directory: Node, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Node, Attr, OpenFile]:
        real = self._target(directory, name)
        _making(real, name)
        made = real.tree.create(real, name, mode, flags, owner)
        _note(real, name)
        return made

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: Owner) -> tuple[Node, Attr]:
        real = self._target(directory, name)
        _making(real, name)
        made = real.tree.mknod(real, name, mode, rdev, owner)
        _note(real, name)
        return made

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: Owner) -> tuple[Node, Attr]:
        real = self._target(directory, name)
        _making(real, name)
        made = real.tree.mkdir(real, name, mode, owner)
        _note(real, name)
        return made

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: Owner) -> tuple[Node, Attr]:
        real = self._target(directory, name)
        _making(real, name)
        made = real.tree.symlink(real, name, target, owner)
        _note(real, name)
        return made

    def link(self, node: Node, directory: Node, name: bytes) -> tuple[Node, Attr]:
        real = self._target(directory, name)
        if real.tree is not node.tree:
            raise refuse(errno.EXDEV, name)
        _making(real, name)
        made = real.tree.link(node, real, name)
        written(node)  # its other names are links from now on
        _note(real, name)
        return made

    def _removable(self, directory: Node, name: bytes) -> Node:
        synthetic = directory.tree is self.synthetic and not isinstance(directory, Bridge)
        if synthetic and directory is not self.root:
            raise refuse(errno.EPERM, name)
        if self._taken(directory, name):
            raise refuse(errno.EBUSY, name)
        if synthetic:
            raise refuse(errno.EPERM, name)
        real = self._real(directory)
        if real is None:
            raise refuse(errno.ENOENT, name)
        return real

    def unlink(self, directory: Node, name: bytes) -> None:
        real = self._removable(directory, name)
        if real.tree.keeper is not None:
            real.tree.keeper.leaving(real, name)
        real.tree.unlink(real, name)
        _note(real, name)

    def rmdir(self, directory: Node, name: bytes) -> None:
        real = self._removable(directory, name)
        if real.tree.keeper is not None:
            real.tree.keeper.leaving(real, name)
        real.tree.rmdir(real, name)
        _note(real, name)

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise refuse(errno.EINVAL, name)  # a whiteout device would be a file of the host's, not ours
        source = self._removable(src, name)
        if self._taken(dst, new_name) and (dst.tree is not self.synthetic or isinstance(dst, Bridge)):
            raise refuse(errno.EBUSY, new_name)
        target = self._target(dst, new_name)
        if source.tree is not target.tree:
            raise refuse(errno.EXDEV, name)
        keeper = source.tree.keeper
        renamed = keeper.renaming(source, name, target, new_name, flags) if keeper is not None else None
        source.tree.rename(source, name, target, new_name, flags)
        if renamed is not None:
            renamed()
        if source.tree.journal is not None:
            source.tree.journal.moved(source, name, target, new_name)

    def setattr(self, node: Node, change: SetAttr, file: OpenFile | None) -> Attr:
        asked = node
        if isinstance(node, Bridge):
            node = self._writable_real(node)
        if node.tree is self.synthetic:
            raise refuse(errno.EPERM, node.name)
        _changing(node)
        attr = node.tree.setattr(node, change, file)
        written(node)
        return _seen(asked, attr)

    # Extended attributes

    def getxattr(self, node: Node, name: bytes) -> bytes:
        if name.startswith(PRIVATE_XATTR):
            value = node.tree.describe(node).get(name[len(PRIVATE_XATTR) :].decode("utf-8", "replace"))
            if value is None:
                raise refuse(errno.ENODATA, name)
            return value
        return node.tree.getxattr(self._real(node) or node, name)

    def listxattr(self, node: Node) -> list[bytes]:
        return [each for each in node.tree.listxattr(node) if not each.startswith(PRIVATE_XATTR)]

    def setxattr(self, node: Node, name: bytes, value: bytes) -> None:
        self._changeable_xattr(name)
        _changing(node)
        node.tree.setxattr(node, name, value)
        written(node)

    def removexattr(self, node: Node, name: bytes) -> None:
        self._changeable_xattr(name)
        _changing(node)
        node.tree.removexattr(node, name)
        written(node)

    def _changeable_xattr(self, name: bytes) -> None:
        if name.startswith(PRIVATE_XATTR):
            raise refuse(errno.EOPNOTSUPP, name)

    def fsync_dir(self, directory: Node) -> Callable[[], None]:
        """As `Tree.fsync_dir`: what to call in a thread."""
        real = self._real(directory) or directory
        return real.tree.fsync_dir(real)


def _seen(node: Node, attr: Attr) -> Attr:
    """*attr* as the mount shows it. Its tree counts no mount entry, and programs that go by the count look into no
    directory that seems to have none: 1 says, as on btrfs, that nobody counts."""
    if not node.mounts or attr.nlink <= 1:
        return attr
    attr = copy.copy(attr)
    attr.nlink, attr.reply = 1, None
    return attr


def _making(directory: Node, name: bytes) -> None:
    """*name* is about to be made in *directory*."""
    keeper = directory.tree.keeper
    if keeper is not None:
        keeper.making(directory, name)


def _changing(node: Node) -> None:
    """The content or the attributes of *node* are about to change."""
    keeper = node.tree.keeper
    if keeper is not None:
        keeper.changing(node)


def _note(directory: Node, name: bytes) -> None:
    """A change of *name* in *directory* has succeeded."""
    journal = directory.tree.journal
    if journal is not None:
        journal.name(directory, name)


def written(node: Node) -> None:
    """The content or the attributes of *node* have changed."""
    journal = node.tree.journal
    if journal is not None:
        journal.node(node)
