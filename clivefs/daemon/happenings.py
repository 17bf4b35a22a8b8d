"""What happened behind the kernel's back, and as which operations the applier is to repeat it.

Kept is what is needed to say what a name led to before: numbers of inodes, never nodes, so that nothing is held for it.
What it leads to now is looked up when the operations are planned: however much happened to a name meanwhile, there is
one operation, from what was told last to what is.

    nothing before, something now     made (or moved in, if that is how it came)
    something before, nothing now     removed, or moved to where it is found now
    another file now                  renamed into its place: who holds the old one is told that it has gone
    the same file                     modified, or its attributes changed
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from clivefs.base.syscalls import (
    IN_ATTRIB,
    IN_CREATE,
    IN_DELETE,
    IN_ISDIR,
    IN_MOVED_FROM,
    IN_MOVED_TO,
)
from clivefs.fuse.applied import NOWHERE, WINGS, Act, Look, Script
from clivefs.mounts.host.watch import CONTENT_MASK
from clivefs.mounts.steps import STAGING
from clivefs.mounts.tree import Blocked, Node
from clivefs.mounts.view import View

QUEUE_MAX = 4096
"""Names that are remembered; beyond it a change is told of its directory alone."""

Place = tuple[int, bytes]
"""Number of the directory as the kernel knows it, and the name."""

_PHANTOM = (1 << 62) | (1 << 61)
_EXECUTABLE = 0o111


class Found(NamedTuple):
    """What a name leads to now."""

    number: int
    mode: int
    size: int

    @property
    def kind(self) -> int:
        return stat.S_IFMT(self.mode)


class Happening(NamedTuple):
    """What is known of what happened to a name."""

    mask: int
    """The events that told of it, as of inotify; 0 where there were none."""
    old: int
    """The number of the inode that it led to; 0: it is not known."""
    kind: int
    """The S_IFMT bits of that; 0: not known."""
    was: bool
    """It led to something."""


class Watched:
    """Whose changes somebody wants to hear of: the numbers of inodes; None: perhaps all."""

    def __init__(self, inodes: Iterable[int] | None = ()) -> None:
        self._inodes = frozenset(inodes) if inodes is not None else None

    def __contains__(self, number: int) -> bool:
        return self._inodes is None or number in self._inodes


class Queue:
    """What has happened and was not told yet."""

    def __init__(self) -> None:
        self.names: dict[Place, Happening] = {}
        self.folders: set[int] = set()
        """Directories in which more happened than can be remembered."""
        self._new: set[Place | int] | None = None
        """What of both came, or came again, since `looks`; None while nobody looks."""

    def __bool__(self) -> bool:
        return bool(self.names or self.folders)

    def add(
        self, directory: int, name: bytes, mask: int, old: int, kind: int, *, was: bool, stays: bool = False
    ) -> None:
        """Note it. What a name led to first is what watchers know. *stays*: it leads to *old* still."""
        if name.startswith(STAGING):
            return
        place = (directory, name)
        if self._new is not None:
            self._new.add(place)
        before = self.names.get(place)
        if before is not None:
            if before.old or not old or stays:
                old, kind = before.old, before.kind
            self.names[place] = Happening(before.mask | mask, old, kind, before.was or was)
        elif len(self.names) < QUEUE_MAX:
            self.names[place] = Happening(mask, old, kind, was)
        else:
            self.add_folder(directory)

    def add_folder(self, directory: int) -> None:
        """Note that something happened in the directory."""
        if self._new is not None:
            self._new.add(directory)
        self.folders.add(directory)

    def looks(self) -> None:
        """Somebody begins to look who watches."""
        self._new = set()

    def take_seen(self, watched: Watched) -> Queue:
        """What of it happened before `looks`, or is *watched* as was seen since; it is taken out. The rest waits for
        another look: somebody may have begun to watch after he was looked at."""
        new, self._new = self._new or set(), None
        taken = self.take(watched)
        for place in [each for each in self.names if each not in new]:
            taken.names[place] = self.names.pop(place)
        taken.folders = {each for each in self.folders if each in watched or each not in new}
        self.folders -= taken.folders
        return taken

    def take(self, watched: Watched) -> Queue:
        """What of it is known to be *watched*, which is taken out."""
        taken = Queue()
        taken.names = {
            place: each
            for place, each in self.names.items()
            if place[0] in watched or (each.old != 0 and each.old in watched)
        }
        for place in taken.names:
            del self.names[place]
        return taken


class Plan:
    """One round of the applier: no name is used twice in it."""

    def __init__(self) -> None:
        self.script = Script({}, Counter())
        self.acts: list[list[Any]] = []
        self.mains: list[tuple[Act, int]] = []
        """For each of `acts` what it must come to, and the directory it is in."""
        self.later = Queue()
        """What has to wait for the next round."""

    def _add(self, main: Act, directory: int, *words: Any) -> None:
        self.script.acts[main] += 1
        self.script.acts[("touch", directory, b"")] += 1  # what cannot be done is told of the directory
        self.mains.append((main, directory))
        self.acts.append(list(words))


class Planner:
    """Plans rounds for one view. Methods are for the loop's thread."""

    def __init__(self, view: View, wings: int) -> None:
        self._view = view
        self._wings = wings
        self._count = 0

    def plan(self, queue: Queue, watched: Watched, most: int) -> Plan:
        """A plan for at most *most* of what is in *queue*, which is taken out of it, as far as anybody watches."""
        plan = Plan()
        ways = _Ways(self._view)
        batch = {place: queue.names.pop(place) for place in list(queue.names)[:most]}
        now = {place: self._now(place) for place in batch}
        moved = _moves(batch, now)
        leaving = set(moved.values())
        for place in sorted(batch, key=lambda each: now[each] is not None):  # what leaves comes first
            source = moved.get(place)
            if place in leaving or not self._concerns(watched, place, source, batch[place], now[place]):
                continue
            way = ways.to(place[0])
            found = now[place]
            if way is None:
                continue
            if found is None:
                self._gone(plan, place, way, batch[place])
            elif source is None:
                self._there(plan, place, way, batch[place], found)
            else:
                self._move(plan, ways, source, place, way, batch[place], found)
                if now[source] is not None:  # another file took its old place
                    plan.later.add(*source, IN_CREATE, 0, 0, was=False)
        while queue.folders and len(plan.acts) < most:
            self._folder(plan, ways, queue.folders.pop(), watched)
        return plan

    @staticmethod
    def _concerns(
        watched: Watched, place: Place, source: Place | None, happened: Happening, found: Found | None
    ) -> bool:
        return (
            place[0] in watched
            or (happened.old != 0 and happened.old in watched)
            or (found is not None and found.number in watched)
            or (source is not None and source[0] in watched)
        )

    def _now(self, place: Place) -> Found | None:
        directory = self._view.table.find(place[0])
        if directory is None:
            return None
        try:
            node, attr = self._view.listed(directory, place[1])
        except (OSError, Blocked):
            return None
        found = Found(node.nodeid, attr.mode, attr.size)
        self._view.table.release(node)
        return found

    def _move(
        self,
        plan: Plan,
        ways: _Ways,
        source: Place,
        place: Place,
        way: list[str],
        happened: Happening,
        found: Found,
    ) -> None:
        from_way = ways.to(source[0])
        if from_way is None:
            self._arrive(plan, place, way, happened, found)
            return
        plan.script.looks[source] = Look(found.number, found.kind, place)
        plan.script.looks[place] = Look(happened.old, happened.kind) if happened.old else NOWHERE
        words = ("move", from_way, _text(source[1]), way, _text(place[1]))
        plan._add(("move", *source), place[0], *words)

    def _gone(self, plan: Plan, place: Place, way: list[str], happened: Happening) -> None:
        if not happened.was and not happened.mask & (IN_DELETE | IN_MOVED_FROM):
            return
        kind = happened.kind or (stat.S_IFDIR if happened.mask & IN_ISDIR else stat.S_IFREG)
        number = happened.old or self._phantom()
        plan.script.looks[place] = Look(number, kind)
        if happened.mask & IN_MOVED_FROM and not happened.mask & IN_DELETE and kind != stat.S_IFDIR:
            wing = self._wing()
            plan.script.looks[(self._wings, wing)] = NOWHERE
            plan._add(("move", *place), place[0], "move", way, _text(place[1]), [_text(WINGS)], _text(wing))
        else:
            plan._add(("remove", *place), place[0], "remove", way, _text(place[1]), kind)

    def _there(self, plan: Plan, place: Place, way: list[str], happened: Happening, found: Found) -> None:
        number, mode, size = found
        kind = found.kind
        if happened.old == number:
            if happened.mask & ~(IN_ATTRIB | IN_ISDIR) or not happened.mask:
                self._modify(plan, place, way, number, mode)
            else:
                self._touch(plan, place, way, number)
        elif happened.old and (happened.kind != kind or kind == stat.S_IFDIR):
            self._gone(plan, place, way, happened._replace(mask=IN_DELETE))
            plan.later.add(*place, IN_CREATE, 0, 0, was=False)
        elif happened.old or (happened.was and kind != stat.S_IFDIR):
            self._arrive(plan, place, way, happened, found)
        elif happened.mask & (IN_MOVED_TO | IN_CREATE):
            if happened.mask & IN_CREATE or kind == stat.S_IFDIR:
                self._make(plan, place, way, number, mode, size)
            else:
                self._arrive(plan, place, way, happened, found)
        elif happened.mask & CONTENT_MASK:
            self._modify(plan, place, way, number, mode)
        elif happened.mask & IN_ATTRIB:
            self._touch(plan, place, way, number)
        else:
            self._make(plan, place, way, number, mode, size)

    def _make(self, plan: Plan, place: Place, way: list[str], number: int, mode: int, size: int) -> None:
        plan.script.looks[place] = NOWHERE
        kind = stat.S_IFMT(mode)
        plan._add(("make", *place), place[0], "make", way, _text(place[1]), kind, not mode & _EXECUTABLE)
        if kind == stat.S_IFREG:
            self._allow_modify(plan, number)

    def _arrive(self, plan: Plan, place: Place, way: list[str], happened: Happening, found: Found) -> None:
        """It is renamed into its place; where that was another file's, it is told as a change of content too."""
        wing = self._wing()
        plan.script.looks[(self._wings, wing)] = Look(found.number, found.kind, place)
        plan.script.looks[place] = Look(happened.old, happened.kind) if happened.old else NOWHERE
        words: list[Any] = ["move", [_text(WINGS)], _text(wing), way, _text(place[1])]
        if happened.was and found.kind == stat.S_IFREG:
            words.append(not found.mode & _EXECUTABLE)
            self._allow_modify(plan, found.number)
        plan._add(("move", self._wings, wing), place[0], *words)

    @staticmethod
    def _allow_modify(plan: Plan, number: int) -> None:
        plan.script.acts[("touch", number, b"")] += 1
        plan.script.acts[("open", number, b"")] += 1

    def _modify(self, plan: Plan, place: Place, way: list[str], number: int, mode: int) -> None:
        if not stat.S_ISREG(mode):
            self._touch(plan, place, way, number)
            return
        # A program cannot be started while somebody has it open for writing.
        plan._add(("touch", number, b""), place[0], "modify", way, _text(place[1]), not mode & _EXECUTABLE)
        plan.script.acts[("open", number, b"")] += 1

    def _touch(self, plan: Plan, place: Place, way: list[str], number: int) -> None:
        plan._add(("touch", number, b""), place[0], "attr", way, _text(place[1]))

    def _folder(self, plan: Plan, ways: _Ways, directory: int, watched: Watched) -> None:
        """Tell of the directory itself."""
        way = ways.to(directory)
        if way is not None and directory in watched:
            plan._add(("touch", directory, b""), directory, "folder", way, "")

    def _phantom(self) -> int:
        """A number for what is gone and had none: no inode has it."""
        self._count += 1
        return _PHANTOM + self._count

    def _wing(self) -> bytes:
        self._count += 1
        return b"%d" % self._count


def _text(name: bytes) -> str:
    return name.decode("latin-1")


class _Ways:
    """The way from the mountpoint to a directory, as the applier goes it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._roots: dict[int, list[str]] = {view.root.nodeid: []}
        waiting: list[Node] = [view.root]
        while waiting:
            node = waiting.pop()
            for name, below in (node.mounts or {}).items():
                if below.nodeid not in self._roots:
                    self._roots[below.nodeid] = [*self._of(node), _text(name)]
                    waiting.append(below)

    def _of(self, node: Node) -> list[str]:
        return self._roots[node.nodeid]

    def to(self, number: int) -> list[str] | None:
        """None for what is nowhere, or not shown."""
        node = self._view.table.find(number)
        names: list[str] = []
        while node is not None and node.nodeid not in self._roots:
            if node.removed or node.parent is None:
                return None
            names.append(_text(node.name))
            node = node.parent
        return [*self._roots[node.nodeid], *reversed(names)] if node is not None else None


def kind_of_node(node: Node) -> int:
    """The S_IFMT bits of a node, as far as it knows them itself; 0 otherwise."""
    kind = getattr(node, "kind", 0)
    return kind if isinstance(kind, int) else stat.S_IFDIR


def names_of(plan: Plan, wings: int) -> Iterable[Place]:
    """The names that the kernel must have forgotten before the applier begins."""
    return [place for place in plan.script.looks if place[0] != wings]


def _moves(batch: Mapping[Place, Happening], now: Mapping[Place, Found | None]) -> dict[Place, Place]:
    """New place to the old one, of what can be told as one rename."""
    left = {each.old: place for place, each in batch.items() if each.old}
    moved: dict[Place, Place] = {}
    for place, found in now.items():
        target = batch[place]
        if found is None or found.number not in left or target.old == found.number:
            continue
        source = left[found.number]
        there = now[source]
        if there is not None and there.number in left:
            continue  # they changed places
        if target.was and (not target.old or target.kind != found.kind or found.kind == stat.S_IFDIR):
            continue  # a rename would not have been possible
        moved[place] = source
    return moved
