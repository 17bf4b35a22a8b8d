"""Changes made to host directories behind the mount's back, told by inotify.

Everything that affects watches lives in this file: which directories are watched, what happens when the
kernel has no more watches or drops events, and how a burst of events becomes a few records. What an event
*means* is decided by the owner of the directory (`WatchedTree.examine`), which knows what it and the
kernel have seen.

A directory is watched from the first time its names are looked at, before they are, so that nothing is
missed. Events only name a directory and a name in it; the truth is always a fresh stat. A write through
mmap outside gives no event but at close.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Hashable, Iterable
from typing import Literal, NamedTuple, Protocol

from clivefs.base.ports import Clock, SystemClock
from clivefs.base.syscalls import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_EXCL_UNLINK,
    IN_IGNORED,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    inotify_add,
    inotify_open,
    inotify_parse,
    inotify_remove,
)
from clivefs.mounts.host.calls import proc_path
from clivefs.mounts.lower import Lower
from clivefs.mounts.tree import Node, Tree

NAME_MASK = IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
CONTENT_MASK = IN_MODIFY | IN_CLOSE_WRITE
WATCH_MASK = NAME_MASK | CONTENT_MASK | IN_ATTRIB | IN_DELETE_SELF | IN_ONLYDIR | IN_EXCL_UNLINK
_GONE_MASK = IN_DELETE_SELF | IN_UNMOUNT | IN_IGNORED

READ_BYTES = 1 << 16
READS_MAX = 64
"""Reads of one `read_events`: what remains keeps the descriptor readable."""
RETRY_INTERVAL_NS = 1_000_000_000
RETRY_BATCH = 64
UNWATCHED_MAX = 100_000
"""Directories remembered as unwatched; beyond it the state stays degraded until the trees are closed."""

Kind = Literal["content", "attr", "name", "overflow", "gone"]


class Outside(NamedTuple):
    """One change that did not come through the mount.

    - `content`: the bytes (and attributes) of `node` changed; cached pages are wrong.
    - `attr`: only the attributes of `node` changed (for a directory: also that its listing did).
    - `name`: what `name` in `directory` leads to changed, or that it leads anywhere.
    - `gone`: the directory itself was removed or unmounted.
    - `overflow`: events were lost; anything may have changed. The other fields are None.
    """

    kind: Kind
    tree: Tree | Lower | None
    """Where it happened."""
    directory: Hashable
    """A `Node` of a host tree, or a `LowerRef` of a live lower layer."""
    name: bytes | None
    node: Node | None
    """The node it is about; None where the mount knows none."""
    mask: int = 0
    """The union of the events that told of it; 0 for what only follows from another change."""


class WatchedTree(Protocol):
    """What owns watched directories. They are objects of its own."""

    def set_degraded(self, degraded: bool) -> None:
        """Whether some directory is not watched, so that what the kernel caches must expire quickly."""
        ...

    def examine(self, directory: Hashable, names: dict[bytes, int]) -> Iterable[Outside]:
        """What the events of *names* (to the union of their masks; b"" is the directory itself) mean, echoes of our
        own changes left out. Updates what the tree remembers."""
        ...

    def examine_all(self, directory: Hashable) -> Iterable[Outside]:
        """The same for everything known in *directory*, which was unwatched for a time."""
        ...

    def named(self, kind: Kind, directory: Hashable, name: bytes) -> Outside:
        """The record that says that *name* in *directory* had an event."""
        ...

    def vanished(self, directory: Hashable) -> Iterable[Outside]:
        """The directory was removed or unmounted."""
        ...

    def mistrust(self) -> None:
        """Events were lost: nothing that is remembered proves anything."""
        ...

    def take_noticed(self) -> list[Outside]:
        """Outside changes that operations came across since the last call."""
        ...


_Target = tuple[WatchedTree, Hashable]


class Watcher:
    """The watches of one mountpoint, on one inotify descriptor.

    `fileno()` becomes readable when `read_events()` has something to say. While `degraded`, call it at
    least once a second too: it then tries to get the missing watches.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._fd = inotify_open()
        self._clock = clock or SystemClock()
        self._targets: dict[int, list[_Target]] = {}
        """Watch descriptor to who wants to hear of it: two trees on one directory share one watch."""
        self._watches: dict[_Target, int] = {}
        self._unwatched: dict[_Target, None] = {}
        self._forgot_some = False
        self._trees: dict[int, WatchedTree] = {}
        self._retry_at_ns = 0
        self.degraded = False
        """Some directory that was looked at is not watched."""
        self.also_report: set[tuple[Hashable, bytes]] = set()
        """(directory, name) to be reported whenever an event names it, echoes of our own changes included."""

    def fileno(self) -> int:
        return self._fd

    def __len__(self) -> int:
        return len(self._targets)

    @property
    def told(self) -> int:
        """How many times somebody is told of a directory: at least once for each watch."""
        return len(self._watches)

    # Watches

    def join(self, tree: WatchedTree) -> None:
        """*tree* is to hear of lost events."""
        self._trees[id(tree)] = tree
        tree.set_degraded(self.degraded)

    def leave(self, tree: WatchedTree) -> None:
        """End all watches of *tree*."""
        for target in [each for each in self._watches if each[0] is tree]:
            self.drop(*target)
        for target in [each for each in self._unwatched if each[0] is tree]:
            del self._unwatched[target]
        self._trees.pop(id(tree), None)
        if not self._trees:
            self._forgot_some = False
        self._judge()

    def _judge(self) -> None:
        degraded = bool(self._unwatched) or self._forgot_some
        if degraded != self.degraded:
            self.degraded = degraded
            for tree in self._trees.values():
                tree.set_degraded(degraded)

    def watch(self, tree: WatchedTree, directory: Hashable, dir_fd: int) -> bool:
        """Watch the directory behind *dir_fd* for *tree*; whether it is watched now."""
        target = (tree, directory)
        if target in self._watches:
            return True
        if target in self._unwatched:
            return False  # `read_events` tries again
        try:
            watch = inotify_add(self._fd, os.fsencode(proc_path(dir_fd)), WATCH_MASK)
        except OSError:  # ENOSPC: no more watches; EACCES: may be searched but not read
            self._mark_unwatched(target)
            return False
        self._watches[target] = watch
        self._targets.setdefault(watch, []).append(target)
        return True

    def _mark_unwatched(self, target: _Target) -> None:
        if len(self._unwatched) < UNWATCHED_MAX:
            self._unwatched[target] = None
        else:
            self._forgot_some = True
        if self._retry_at_ns <= self._clock.monotonic_ns():
            self._retry_at_ns = self._clock.monotonic_ns() + RETRY_INTERVAL_NS
        self._judge()

    def watches(self, tree: WatchedTree, directory: Hashable) -> bool:
        return (tree, directory) in self._watches

    def drop(self, tree: WatchedTree, directory: Hashable) -> None:
        """End the watch of *directory*, if it has one."""
        target = (tree, directory)
        if target in self._unwatched:
            del self._unwatched[target]
            self._judge()
        watch = self._watches.pop(target, None)
        if watch is None:
            return
        targets = self._targets[watch]
        targets.remove(target)
        if targets:
            return
        del self._targets[watch]
        try:
            inotify_remove(self._fd, watch)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the directory is gone, and the watch with it
                raise
        self._retry_at_ns = 0  # a watch is free

    # Events

    def read_events(self) -> list[Outside]:
        """What changed outside since the last call, without echoes of our own changes and without repetitions."""
        found: dict[Outside, None] = {}
        bursts, overflow = self._read_bursts()
        if overflow:
            for tree in self._trees.values():
                tree.mistrust()
            found[Outside("overflow", None, None, None, None)] = None
        for watch, names in bursts.items():
            gone = names.pop(b"", 0)
            targets = list(self._targets.get(watch, ()))
            for tree, directory in targets:
                if gone & ~_GONE_MASK:
                    names[b""] = gone & ~_GONE_MASK
                if names:
                    self._add(found, tree.examine(directory, names))
                    self._add_asked(found, tree, directory, names)
            if gone & _GONE_MASK:
                self._end(watch)
                for tree, directory in targets:
                    self._add(found, tree.vanished(directory))
        for tree in self._trees.values():
            self._add(found, tree.take_noticed())
        self._retry(found)
        return list(found)

    @staticmethod
    def _add(found: dict[Outside, None], changes: Iterable[Outside]) -> None:
        for change in changes:
            found[change] = None

    def _add_asked(
        self, found: dict[Outside, None], tree: WatchedTree, directory: Hashable, names: dict[bytes, int]
    ) -> None:
        for name, mask in names.items():
            if (directory, name) not in self.also_report:
                continue
            kind: Kind = "name" if mask & NAME_MASK else "content"
            if not any(each.directory == directory and each.name == name for each in found):
                found[tree.named(kind, directory, name)] = None

    def _read_bursts(self) -> tuple[dict[int, dict[bytes, int]], bool]:
        """The waiting events as watch -> name -> union of masks, and whether the kernel dropped some."""
        bursts: dict[int, dict[bytes, int]] = {}
        overflow = False
        for _ in range(READS_MAX):
            try:
                data = os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                break
            for watch, mask, _cookie, name in inotify_parse(data):
                if mask & IN_Q_OVERFLOW:
                    overflow = True
                    continue
                names = bursts.setdefault(watch, {})
                names[name] = names.get(name, 0) | mask
        return bursts, overflow

    def _end(self, watch: int) -> None:
        """The kernel has ended this watch, or will when the directory's last holder lets go."""
        for target in self._targets.pop(watch, ()):
            self._watches.pop(target, None)

    def _retry(self, found: dict[Outside, None]) -> None:
        """Try again for the directories that got no watch, the oldest first; report what changed there meanwhile."""
        now = self._clock.monotonic_ns()
        if not self._unwatched or now < self._retry_at_ns:
            return
        self._retry_at_ns = 0
        for tree, directory in list(self._unwatched)[:RETRY_BATCH]:
            del self._unwatched[(tree, directory)]
            self._add(found, tree.examine_all(directory))  # asks for the watch first
            if (tree, directory) in self._unwatched:
                break
        self._retry_at_ns = now + RETRY_INTERVAL_NS if self._unwatched else 0
        self._judge()

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
        self._targets.clear()
        self._watches.clear()
        self._unwatched.clear()
        self._trees.clear()
