"""What a change made outside means for the nodes of a host tree.

Everything that tells an outside change from an echo of our own lives in this file. Our own operations
leave in `HostNode.seen` what they made of a file; a fresh stat that differs from it is somebody else's
doing. Names are compared by identity: a name that leads to the node that it is believed to lead to has
not changed, whatever events there were.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Hashable, Iterable

from clivefs.base.syscalls import IN_ATTRIB, IN_MODIFY
from clivefs.mounts.host.calls import stat_at
from clivefs.mounts.host.nodes import HostNode, HostNodes, facts_of, identity_of
from clivefs.mounts.host.watch import CONTENT_MASK, NAME_MASK, Kind, Outside, Watcher
from clivefs.mounts.tree import Tree


class HostWatch:
    """The watched directories of one host tree. A tree without a *watcher* is always degraded."""

    def __init__(self, tree: Tree, nodes: HostNodes, watcher: Watcher | None) -> None:
        self._tree = tree
        self._nodes = nodes
        self._watcher = watcher
        self._noticed: dict[HostNode, None] = {}
        self._stale: dict[Outside, None] = {}
        self._own: set[tuple[HostNode, bytes]] = set()
        """Names that our own operations took away or moved, and whose events are still to come."""
        self._unheard: set[HostNode] = set()
        """Directories that only our own operations change."""
        tree.degraded = True
        if watcher is not None:
            watcher.join(self)

    def watch(self, directory: HostNode, dir_fd: int) -> None:
        """Watch *directory*, before its names are looked at for the first time."""
        if self._watcher is not None and directory not in self._unheard:
            directory.watched = self._watcher.watch(self, directory, dir_fd)

    def leave_alone(self, directory: HostNode) -> None:
        """From now on *directory* is changed by our own operations alone: there is nothing to hear of it."""
        self.dropped(directory)
        self._unheard.add(directory)

    def saw(self, node: HostNode, st: os.stat_result) -> None:
        """An operation came across this state of *node*, which is not of its own making."""
        if node.seen == facts_of(st):
            return
        if node.seen is not None and node.kind == stat.S_IFREG:
            self._noticed[node] = None
        node.remember(st)

    def stale(self, directory: HostNode, name: bytes, node: HostNode) -> None:
        """An operation found that *name* does not lead to *node* any more."""
        self._stale[Outside("name", self._tree, directory, name, node)] = None

    def moved(self, directory: HostNode, name: bytes) -> None:
        """An operation has taken *name* away, or moved something there."""
        if directory.watched:
            self._own.add((directory, name))

    def dropped(self, node: HostNode) -> None:
        self._noticed.pop(node, None)
        self._unheard.discard(node)
        if self._watcher is not None and node.is_dir:
            self._watcher.drop(self, node)
            node.watched = False

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.leave(self)
            self._watcher = None
        self._own.clear()

    # Asked by the watcher

    def set_degraded(self, degraded: bool) -> None:
        self._tree.degraded = degraded

    def examine(self, directory: Hashable, names: dict[bytes, int]) -> Iterable[Outside]:
        """What the events of *names* in *directory* mean; see `WatchedTree`."""
        assert isinstance(directory, HostNode)
        try:
            dir_fd = os.dup(self._nodes.dir_fd(directory))
        except OSError:
            return []
        directory.lookups += 1  # stays, whatever leaves it
        # First what operations came across: by now a name is believed to lead to what came later.
        found = [each for each in self._stale if each.directory is directory]
        for each in found:
            del self._stale[each]
        try:
            gone: list[bytes] = []
            own = {name for name in names if (directory, name) in self._own}
            self._own.difference_update([(directory, name) for name in own])
            for name, mask in names.items():
                if name in own and not self._knows(directory, name):
                    continue
                try:
                    st = stat_at(dir_fd, name) if name else os.fstat(dir_fd)
                except OSError:
                    gone.append(name)
                    continue
                if name:
                    found += self._present(directory, name, mask, st)
                else:
                    found += self._compare(directory, mask, st)
            for name in gone:
                if name in own or not name or self._knows(directory, name):
                    found += self._absent(directory, name, names[name])
                else:
                    found.append(Outside("name", self._tree, directory, name, None, names[name]))
            if any(each.kind == "name" for each in found):
                found.append(self._report("attr", directory))
        finally:
            os.close(dir_fd)
            directory.lookups -= 1
            self._nodes.release(directory)
        return found

    def _present(self, directory: HostNode, name: bytes, mask: int, st: os.stat_result) -> list[Outside]:
        child = directory.children.get(name) if directory.children else None
        if isinstance(child, HostNode):
            if child.identity is None:
                return []
            if child.identity == identity_of(st) and child.kind == stat.S_IFMT(st.st_mode):
                return self._compare(child, mask, st)
        elif not mask & NAME_MASK:  # the kernel knows nothing of this name, but somebody may watch the directory
            return [Outside("content" if mask & CONTENT_MASK else "attr", self._tree, directory, name, None, mask)]
        found = [Outside("name", self._tree, directory, name, child, mask)]
        known = self._nodes.known(identity_of(st))
        if known is not None:
            now = self._nodes.at(directory, name, st)
            if now is known:
                found += self._compare(known, mask, st)
            self._nodes.release(now)
        if isinstance(child, HostNode) and child is not known:
            found += self._absent(directory, name, mask) if self._leads_to(directory, name, child) else []
            found.append(self._report("attr", child))
        return found

    @staticmethod
    def _knows(directory: HostNode, name: bytes) -> bool:
        return directory.children is not None and name in directory.children

    @staticmethod
    def _leads_to(directory: HostNode, name: bytes, node: HostNode) -> bool:
        return directory.children is not None and directory.children.get(name) is node

    def _absent(self, directory: HostNode, name: bytes, mask: int) -> list[Outside]:
        node = self._nodes.lost(directory, name)
        if node is None:
            return []
        return [Outside("name", self._tree, directory, name, node, mask), self._report("attr", node)]

    def _compare(self, node: HostNode, mask: int, st: os.stat_result) -> list[Outside]:
        """What of *node* differs from what was seen last."""
        facts = facts_of(st)
        regular = node.kind == stat.S_IFREG
        if node.seen == facts:
            changed: Kind | None = "content" if node.racy and regular and mask & (CONTENT_MASK | NAME_MASK) else None
        elif regular:
            same_content = node.seen is not None and node.seen[:2] == facts[:2] and not mask & CONTENT_MASK
            changed = "attr" if same_content else "content"
        else:  # a directory changes with every name in it; that has events of its own
            changed = "attr" if mask & IN_ATTRIB or not node.is_dir else None
        if changed is None:
            return []
        node.remember(st)
        self._noticed.pop(node, None)
        return [self._report(changed, node, mask)]

    def _report(self, kind: Kind, node: HostNode, mask: int = 0) -> Outside:
        return Outside(kind, self._tree, node.parent, node.name, node, mask)

    def examine_all(self, directory: Hashable) -> Iterable[Outside]:
        """Get the watch that *directory* lacked, and compare everything known in it."""
        assert isinstance(directory, HostNode)
        try:
            self.watch(directory, self._nodes.dir_fd(directory))
        except OSError:
            return []
        if not directory.watched:
            return []
        every = dict.fromkeys(directory.children or (), NAME_MASK | CONTENT_MASK | IN_ATTRIB)
        return [*self.examine(directory, every), self._report("attr", directory)]

    def named(self, kind: Kind, directory: Hashable, name: bytes) -> Outside:
        assert isinstance(directory, HostNode)
        child = directory.children.get(name) if directory.children else None
        return Outside(kind, self._tree, directory, name, child)

    def vanished(self, directory: Hashable) -> Iterable[Outside]:
        assert isinstance(directory, HostNode)
        directory.watched = False
        found: list[Outside] = []
        for parent, name in list(directory.places()):
            if self._nodes.lost(parent, name) is directory:
                found.append(Outside("name", self._tree, parent, name, directory))
        if found or directory is self._nodes.root:
            found.append(self._report("gone", directory))
        return found

    def mistrust(self) -> None:
        self._own.clear()
        for node in self._nodes:
            node.racy = True

    def take_noticed(self) -> list[Outside]:
        if not self._noticed and not self._stale:
            return []
        noticed, self._noticed = self._noticed, {}
        stale, self._stale = self._stale, {}
        return [*stale, *(self._report("content", node, IN_MODIFY) for node in noticed)]
