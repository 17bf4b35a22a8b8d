"""What the applier is answered: a change that has happened already is carried out once more, for the kernel alone.

Nothing tells inotify of a change that did not come through the mount; an operation through the mount does. So another
process, the applier, does each of them through the mount again, and its requests are recognised by its process number
and answered from here: a file that has come is absent until the applier makes it, one that has gone is there until he
removes it. Nothing is changed by any of these answers, nothing is recorded, and what was not expected is refused.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from typing import NamedTuple

from clivefs.fuse.operations import Entry, Opened, Operations
from clivefs.mounts.synthetic import SyntheticDirectory
from clivefs.mounts.tree import Attr, Blocked, OpenFile, Owner, SetAttr, refuse

WINGS = b".clivefs-wings"
"""A directory in the mountpoint that only the applier sees: where what comes by a rename comes from."""


class Look(NamedTuple):
    """What a name leads to for the applier; *nodeid* 0: nowhere."""

    nodeid: int
    kind: int
    at: tuple[int, bytes] | None = None
    """The directory and the name where it is; None for what is gone."""


NOWHERE = Look(0, 0)


Act = tuple[str, int, bytes]
"""What is done ("make", "remove", "move", "touch", "open"), the directory's number and the name; for the last two the
file's number and b""."""


class Script(NamedTuple):
    """What is expected of the applier next."""

    looks: dict[tuple[int, bytes], Look]
    acts: Counter[Act]


class _Nothing(OpenFile):
    """A file that is opened to be closed again."""

    __slots__ = ()
    keep_cache = True

    def read(self, offset: int, size: int) -> bytes:
        return b""


class AppliedOperations(Operations):
    """The answers for the applier. Only those requests that could change something, and LOOKUP, come here."""

    def __init__(self, real: Operations) -> None:
        super().__init__(real.view, -1)
        self._real = real
        self.wings: SyntheticDirectory = real.view.synthetic.directory(real.view.root, WINGS, hidden=True)
        self._script: Script | None = None

    def expect(self, script: Script) -> None:
        """Answer by *script* until `settle`. What others look up meanwhile, the kernel does not remember."""
        self._script = script
        self._real.unsettled = True

    def settle(self) -> Counter[Act]:
        """Expect nothing any more; what of the script was not done."""
        script, self._script = self._script, None
        self._real.unsettled = False
        return +script.acts if script is not None else Counter()

    def _take(self, act: Act) -> None:
        script = self._script
        if script is None or script.acts[act] <= 0:
            raise refuse(errno.EPERM, act[2])
        script.acts[act] -= 1

    # Names

    def lookup(self, parent: int, name: bytes) -> Entry:
        script = self._script
        look = script.looks.get((parent, name)) if script is not None else None
        if look is not None:
            return self._led_to(look) if look.nodeid else Entry(0, None, 0.0, 0.0)
        if name == WINGS and parent == self.view.root.nodeid:
            self.wings.lookups += 1
            return Entry(self.wings.nodeid, self.view.getattr(self.wings), 0.0, 0.0)
        if parent == self.wings.nodeid:
            return Entry(0, None, 0.0, 0.0)
        return self._real.lookup(parent, name)

    def _led_to(self, look: Look) -> Entry:
        if look.at is not None:
            return self._now_at(*look.at)
        attr: Attr | None = None
        node = self._table.find(look.nodeid)
        if node is not None:
            try:
                attr = self.view.getattr(node)
            except (OSError, Blocked):
                attr = None
            node.lookups += 1
        if attr is None or stat.S_IFMT(attr.mode) != look.kind:
            owner = self.view.owner
            attr = Attr(look.kind | 0o600, 0, 0, uid=owner.uid, gid=owner.gid)
        return Entry(look.nodeid, attr, 0.0, 0.0)

    def _make(self, parent: int, name: bytes) -> Entry:
        self._take(("make", parent, name))
        self._look_done(parent, name)
        return self._now_at(parent, name)

    def _look_done(self, parent: int, name: bytes) -> None:
        if self._script is not None:
            self._script.looks.pop((parent, name), None)

    def _now_at(self, parent: int, name: bytes) -> Entry:
        try:
            node, attr = self.view.listed(self._table.get(parent), name)
        except Blocked:
            raise refuse(errno.EAGAIN, name) from None
        node.lookups += 1
        return Entry(node.nodeid, attr, 0.0, 0.0)

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Entry:
        return self._make(parent, name)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Entry:
        return self._make(parent, name)

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> Entry:
        return self._make(parent, name)

    def link(self, nodeid: int, parent: int, name: bytes) -> Entry:
        raise refuse(errno.EPERM, name)

    def unlink(self, parent: int, name: bytes) -> None:
        self._take(("remove", parent, name))
        self._look_done(parent, name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.unlink(parent, name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self._take(("move", parent, name))
        self._look_done(parent, name)
        self._look_done(new_parent, new_name)

    # Files

    def setattr(self, nodeid: int, change: SetAttr, handle: int | None, *, drop_privileges: bool = False) -> Entry:
        self._take(("touch", nodeid, b""))
        try:
            return self._real.getattr(nodeid)
        except Blocked:
            raise refuse(errno.EAGAIN) from None

    def create(self, parent: int, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Opened, Entry]:
        raise refuse(errno.EPERM, name)

    def open(self, nodeid: int, flags: int, *, drop_privileges: bool = False) -> Opened:
        if flags & os.O_TRUNC:
            raise refuse(errno.EPERM)
        self._take(("open", nodeid, b""))
        return self._real.opened_for_nothing(nodeid, _Nothing())
