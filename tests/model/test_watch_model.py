"""A kernel that caches everything for ever, and others who change the directory: the kernel is never wrong.

Operations run through a host tree by a model of the kernel's caches (names with negative ones, attributes,
pages), and directly on the directory. After every change outside, the watcher's records are applied as
the FUSE layer applies them; then everything that is still cached must be what the host has.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from clivefs.base.syscalls import RENAME_EXCHANGE, rename_at
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.tree import Node, Owner, SetAttr

NAMES = st.sampled_from([b"a", b"b", b"c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DATA = st.binary(min_size=1, max_size=6)
CHANGES = st.sampled_from(["make", "append", "replace", "mkdir", "remove", "rename", "exchange", "link", "chmod"])
OWNER = Owner(os.geteuid(), os.getegid())

Shown = tuple[int, int, int, int]


def shown(mode: int, size: int, nlink: int, mtime_ns: int) -> Shown:
    """What of the attributes is compared; a directory's change with every name in it, which has events of its own."""
    return (mode, 0, 0, 0) if stat.S_ISDIR(mode) else (mode, size, nlink, mtime_ns)


class Kernel:
    """The caches of a kernel without any limit."""

    def __init__(self, tree: HostTree, table: NodeTable) -> None:
        self.tree = tree
        self.table = table
        self.names: dict[tuple[Node, bytes], Node | None] = {}
        self.attrs: dict[Node, Shown] = {}
        self.pages: dict[Node, bytes] = {}

    def lookup(self, directory: Node, name: bytes) -> Node | None:
        if (directory, name) in self.names:
            return self.names[directory, name]
        try:
            node, attr = self.tree.lookup(directory, name)
        except FileNotFoundError:
            self.names[directory, name] = None
            return None
        node.lookups += 1
        self.names[directory, name] = node
        self.attrs[node] = shown(attr.mode, attr.size, attr.nlink, attr.mtime_ns)
        return node

    def walk(self, path: bytes) -> Node | None:
        node: Node | None = self.tree.root
        for name in path.split(b"/") if path else ():
            if node is None or not stat.S_ISDIR(self.tree.getattr(node).mode):
                return None
            node = self.lookup(node, name)
        return node

    def walk_afresh(self, path: bytes) -> None:
        """As `walk`, after the names of *path* were dropped for want of memory (the nodes stay: they have pages)."""
        node: Node | None = self.tree.root
        for name in path.split(b"/"):
            if node is None or not stat.S_ISDIR(self.tree.getattr(node).mode):
                return
            self.names.pop((node, name), None)
            node = self.lookup(node, name)

    def read(self, node: Node) -> bytes:
        file = self.tree.open(node, os.O_RDONLY)
        if not file.keep_cache:
            self.pages.pop(node, None)
        if node not in self.pages:
            self.pages[node] = file.read(0, 1000)
        file.close()
        return self.pages[node]

    def settle(self, watcher: Watcher) -> None:
        """Apply what the watcher says."""
        for each in watcher.read_events():
            assert each.kind != "overflow"
            if each.kind == "name":
                assert isinstance(each.directory, Node)
                assert each.name is not None
                self.names.pop((each.directory, each.name), None)
            elif each.node is not None:
                self.attrs.pop(each.node, None)
                if each.kind == "content":
                    self.pages.pop(each.node, None)

    def forget(self) -> None:
        self.names.clear()
        self.attrs.clear()
        self.pages.clear()
        for node in self.table.nodes():
            self.table.forget(node.nodeid, node.lookups)


class WatchModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = os.fsencode(tempfile.mkdtemp())
        self.watcher = Watcher()
        self.table = NodeTable()
        fd = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        self.tree = HostTree(
            fd, self.table, entry=b"m", writable=True, hidden=lambda identity, name: False, watcher=self.watcher
        )
        self.kernel = Kernel(self.tree, self.table)

    def at(self, path: bytes) -> bytes:
        return self.root + b"/" + path

    # Through the mount

    @rule(path=PATHS)
    def look(self, path: bytes) -> None:
        node = self.kernel.walk(path)
        if node is not None and stat.S_ISREG(self.tree.getattr(node).mode):
            self.kernel.read(node)

    @rule(path=PATHS, data=DATA)
    def write(self, path: bytes, data: bytes) -> None:
        node = self.kernel.walk(path)
        if node is None or not stat.S_ISREG(self.tree.getattr(node).mode):
            return
        self.kernel.read(node)
        file = self.tree.open(node, os.O_RDWR)
        file.write(0, data)
        file.close()
        self.kernel.pages[node] = data + self.kernel.pages[node][len(data) :]
        self.kernel.attrs.pop(node, None)  # as the kernel does after a write

    def _change(self, path: bytes, call: Callable[[Node, bytes], Node | None]) -> None:
        """Change a name as the kernel does, whose cache of that name then follows."""
        head, _, name = path.rpartition(b"/")
        parent = self.kernel.walk(head)
        if parent is None or not stat.S_ISDIR(self.tree.getattr(parent).mode):
            return
        before = self.kernel.lookup(parent, name)
        try:
            after = call(parent, name)
        except OSError:
            return
        self.kernel.names[parent, name] = after
        for node in (before, after):
            if node is not None:
                self.kernel.attrs.pop(node, None)

    @rule(path=PATHS, data=DATA)
    def create(self, path: bytes, data: bytes) -> None:
        def creating(parent: Node, name: bytes) -> Node:
            node, _, file = self.tree.create(parent, name, 0o644, os.O_RDWR, OWNER)
            node.lookups += 1
            file.write(0, data)
            file.close()
            return node

        self._change(path, creating)

    @rule(path=PATHS)
    def mkdir(self, path: bytes) -> None:
        def making(parent: Node, name: bytes) -> Node:
            node, _ = self.tree.mkdir(parent, name, 0o755, OWNER)
            node.lookups += 1
            return node

        self._change(path, making)

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self._change(path, lambda parent, name: self.tree.unlink(parent, name))

    @rule(path=PATHS)
    def chmod(self, path: bytes) -> None:
        node = self.kernel.walk(path)
        if node is not None:
            attr = self.tree.setattr(node, SetAttr(mode=0o711), None)
            self.kernel.attrs[node] = shown(attr.mode, attr.size, attr.nlink, attr.mtime_ns)

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: bytes, new: bytes) -> None:
        head, _, name = old.rpartition(b"/")
        parent = self.kernel.walk(head)
        if parent is None or not stat.S_ISDIR(self.tree.getattr(parent).mode):
            return
        node = self.kernel.lookup(parent, name)
        if node is None:
            return

        def renaming(directory: Node, new_name: bytes) -> Node:
            if self.kernel.lookup(directory, new_name) is node:
                raise OSError  # the kernel does not ask for a rename onto the same file
            self.tree.rename(parent, name, directory, new_name, 0)
            self.kernel.names[parent, name] = None
            return node

        self._change(new, renaming)

    # Outside

    @rule(kind=CHANGES, path=PATHS, other=PATHS, data=DATA, look=st.sampled_from(["", "path", "other", "both"]))
    def outside(self, kind: str, path: bytes, other: bytes, data: bytes, look: str) -> None:
        """One change; *look*: names may be looked up before the events are read."""
        try:
            self._outside(kind, self.at(path), self.at(other), data)
        except OSError:
            return
        try:
            if look in ("path", "both"):
                self.kernel.walk_afresh(path)
            if look in ("other", "both"):
                self.kernel.walk_afresh(other)
        except OSError as error:
            if error.errno != errno.ESTALE:  # then the kernel would ask again, by other names
                raise
        self.kernel.settle(self.watcher)

    def _outside(self, kind: str, path: bytes, other: bytes, data: bytes) -> None:
        if kind == "make":
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            os.write(fd, data)
            os.close(fd)
        elif kind == "append":
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            os.write(fd, data)
            os.close(fd)
        elif kind == "replace":
            fd = os.open(self.root + b"/.new", os.O_RDWR | os.O_CREAT)
            os.write(fd, data)
            os.close(fd)
            os.rename(self.root + b"/.new", path)
        elif kind == "mkdir":
            os.mkdir(path)
        elif kind == "remove":
            if os.path.isdir(path):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        elif kind == "link":
            os.link(path, other)
        elif kind == "chmod":
            os.chmod(path, 0o700)
        else:
            rename_at(-100, path, -100, other, RENAME_EXCHANGE if kind == "exchange" else 0)

    @rule()
    def forget(self) -> None:
        self.kernel.forget()

    @invariant()
    def the_kernel_is_right(self) -> None:
        """Everything that can be reached by cached names is what the host has there."""
        self.kernel.settle(self.watcher)
        pending: list[tuple[Node, bytes]] = [(self.tree.root, self.root)]
        links: dict[Node, int] = {}
        while pending:
            directory, place = pending.pop()
            for (parent, name), node in list(self.kernel.names.items()):
                if parent is not directory:
                    continue
                host = place + b"/" + name
                if node is None:
                    assert not os.path.lexists(host), host
                    continue
                st = os.lstat(host)
                identity = (st.st_dev, st.st_ino)
                assert node.identity == identity, host  # type: ignore[attr-defined]
                links[node] = st.st_nlink
                if node in self.kernel.attrs and st.st_nlink == 1:  # links made elsewhere have no events
                    assert self.kernel.attrs[node] == shown(st.st_mode, st.st_size, st.st_nlink, st.st_mtime_ns), host
                if node in self.kernel.pages:
                    with open(host, "rb") as file:
                        assert self.kernel.pages[node] == file.read(), host
                if stat.S_ISDIR(st.st_mode):
                    pending.append((node, host))

    def teardown(self) -> None:
        self.kernel.forget()
        assert [node.path() for node in self.table.nodes() if node is not self.tree.root] == []
        self.tree.close()
        assert len(self.watcher) == 0
        self.watcher.close()
        shutil.rmtree(self.root)


TestWatch = WatchModel.TestCase
TestWatch.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
