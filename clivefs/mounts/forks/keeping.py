"""Before the live view changes an ignored file, its old version is kept for the forks that have inherited it.

A `Keeper` stands at a tree of the live view, and is asked by the view before each change. It must be quick where there
is nothing to keep: it looks at the ignore rules first, which are in memory, and only then at files. What is large is
copied in a thread (`Blocked`, before anything has changed).
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Iterable

from clivefs.base.syscalls import RENAME_EXCHANGE
from clivefs.mounts.forks.inherited import Copying
from clivefs.mounts.forks.lower import ForkLower, Look
from clivefs.mounts.forks.ref import ForkRef
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.overlay.copyup import INLINE_BYTES_MAX
from clivefs.mounts.recording.parts import join
from clivefs.mounts.tree import Attr, Blocked, Node, Tree, refuse

log = logging.getLogger(__name__)

_ATTEMPTS_MAX = 3

Change = Callable[[], None]


class Keeper:
    """Of the tree that is shown at *prefix* of a workspace. Methods are called before the change that they name."""

    def __init__(self, prefix: bytes, forks: Callable[[], Iterable[ForkLower]]) -> None:
        self._prefix = prefix
        self._forks = forks
        self._copying: dict[bytes, tuple[Copying, Attr, int]] = {}

    def making(self, directory: Node, name: bytes) -> None:
        """*name* is about to come: no fork has inherited it."""
        live = self._path(directory, name)
        if live is None:
            return
        found = _Found(live)
        for fork in self._forks():
            _note_coming(fork, found)

    def changing(self, node: Node) -> None:
        """The content or the attributes of *node* are about to change."""
        if node.removed or node.parent is None:
            return
        for parent, name in node.places():
            live = self._path(parent, name)
            if live is not None:
                self._keep(live, leaving=False)

    def leaving(self, directory: Node, name: bytes) -> None:
        """*name* is about to go."""
        live = self._path(directory, name)
        if live is not None:
            self._keep(live, leaving=True)

    def renaming(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> Change:
        """*name* is about to become *new_name*: what is to be called when it has."""
        old, new = self._path(src, name), self._path(dst, new_name)
        if old is None or new is None:
            return _nothing
        exchange = flags == RENAME_EXCHANGE
        moves = _is_directory(src, name) or (exchange and _is_directory(dst, new_name))
        changes: list[Change] = []
        found_old, found_new = _Found(old), _Found(new)
        for fork in self._forks():
            if not exchange:
                self._keep_for(fork, found_new, leaving=True)
            if moves:
                if _has(fork, old) or (_has(fork, new) if exchange else _note_coming(fork, found_new)):
                    changes.append(functools.partial(fork.inherited.note_moved, old, new, exchanged=exchange))
                continue
            self._keep_for(fork, found_old, leaving=False)
            if exchange:
                self._keep_for(fork, found_new, leaving=False)
        if not exchange and not moves:
            self.making(dst, new_name)
        if not changes:
            return _nothing
        return lambda: _all(changes)

    def _path(self, directory: Node, name: bytes) -> bytes | None:
        """Where the live view has *name*."""
        if directory.removed:
            return None
        return join(self._prefix, join(directory.path(), name))

    # Keeping one file

    def _keep(self, live: bytes, *, leaving: bool) -> None:
        found = _Found(live)
        same: int | None = None  # the old version as the first of the forks keeps it: the others share it
        try:
            for fork in self._forks():
                ref = self._keep_for(fork, found, leaving=leaving, same=same)
                if ref is not None and ref.kind == stat.S_IFREG and same is None:
                    fd, name = fork.inherited.place(ref.at)
                    same = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        finally:
            if same is not None:
                os.close(same)

    def _keep_for(self, fork: ForkLower, live: _Found, *, leaving: bool, same: int | None = None) -> ForkRef | None:
        """What was kept, if anything. *same*: a descriptor of the old version, which nobody writes to."""
        try:
            found = fork.inherits_now(live.path, live.by(fork))
            if found is None:
                return None
            self._keep_one(fork, *found, live.path, leaving=leaving, same=same)
        except PermissionError as error:
            log.info("the old version of %r cannot be kept: %s", live.path, error)
            return None
        return found[0]

    def _keep_one(
        self,
        fork: ForkLower,
        ref: ForkRef,
        tree: Tree,
        node: Node,
        attr: Attr,
        live: bytes,
        *,
        leaving: bool,
        same: int | None,
    ) -> None:
        inherited = fork.inherited
        ways = fork.ways(ref)
        kind = stat.S_IFMT(attr.mode)
        if kind == stat.S_IFREG:
            shared = same is not None and inherited.put_link(same, ref.at, ways)
            if not shared and leaving and attr.nlink == 1 and isinstance(tree, HostTree):
                shared = self._link(fork, ref, tree, node, ways)
            if shared:
                fork.kept(ref)
                return
        xattrs = fork.xattrs(ref)
        if kind == stat.S_IFDIR:
            inherited.put_directory(ref.at, [*fork.ways(ref, whole=True), (attr, xattrs)])
            return
        if kind == stat.S_IFREG:
            copy = self._copied(fork, ref, tree, node, attr, xattrs, live)
        else:
            target = tree.readlink(node) if kind == stat.S_IFLNK else None
            copy = inherited.new_copy(attr, xattrs, None, target)
            copy.run()
        inherited.put(copy, ref.at, ways)
        fork.kept(ref)

    @staticmethod
    def _link(
        fork: ForkLower, ref: ForkRef, tree: Tree, node: Node, ways: list[tuple[Attr, dict[bytes, bytes]]]
    ) -> bool:
        file = tree.open(node, os.O_RDONLY)
        try:
            fd = file.fileno()
            return fd is not None and fork.inherited.put_link(fd, ref.at, ways)
        finally:
            file.close()

    def _copied(
        self,
        fork: ForkLower,
        ref: ForkRef,
        tree: Tree,
        node: Node,
        attr: Attr,
        xattrs: dict[bytes, bytes],
        live: bytes,
    ) -> Copying:
        """A finished copy of a regular file. `Blocked` while a thread makes a large one."""
        key = b"%d\0%b" % (id(fork), live)
        begun = self._copying.get(key)
        attempts = 0
        if begun is not None:
            copy, before, attempts = begun
            if not copy.done:
                raise Blocked(copy.run, f"keeping {os.fsdecode(live)} for a fork")
            del self._copying[key]
            if (before.size, before.mtime_ns, before.mode) == (attr.size, attr.mtime_ns, attr.mode):
                return copy
            copy.close()
            if attempts >= _ATTEMPTS_MAX:
                raise refuse(errno.EBUSY, live)  # it changes all the time
        copy = fork.inherited.new_copy(attr, xattrs, tree.open(node, os.O_RDONLY), None)
        if attr.size <= INLINE_BYTES_MAX:
            copy.run()
            return copy
        self._copying[key] = copy, attr, attempts + 1
        raise Blocked(copy.run, f"keeping {os.fsdecode(live)} for a fork")


class _Found:
    """What the live view has at a path before one change: looked for when a fork first wants to know, and once."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._looked = False
        self._found: tuple[Tree, Node, Attr] | None = None

    def by(self, fork: ForkLower) -> Look:
        """What finds it, by the means of *fork*."""

        def look() -> tuple[Tree, Node, Attr] | None:
            if not self._looked:
                self._found = fork.found_in_live(self.path)
                self._looked = True
            return self._found

        return look


def _has(fork: ForkLower, live: bytes) -> bool:
    """Whether the fork may have inherited something at or below *live*."""
    at = fork.inherited.own_path(live)
    return bool(at) and not fork.inherited.is_absent(at or b"")


def _note_coming(fork: ForkLower, live: _Found) -> bool:
    """Something is about to come that the fork has not inherited: whether it has inherited another thing there. If not,
    it is noted that nothing was there."""
    context = fork.context(live.path)
    if context is None:
        return False
    above, name = context
    if fork.has(above, name, live.by(fork)):
        return True
    fork.inherited.note_absent(join(above.at, name))
    return False


def _is_directory(directory: Node, name: bytes) -> bool:
    try:
        _, attr = directory.tree.listed(directory, name)
    except OSError:
        return False
    return stat.S_ISDIR(attr.mode)


def _all(changes: list[Change]) -> None:
    for change in changes:
        change()


def _nothing() -> None:
    return None
