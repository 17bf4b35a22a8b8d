"""What of one workspace has to be looked at again: from the journals of its trees, and from what is heard of its
directories.

Invariant: what is dirty stays known until it is in a durable point. `_dirty` and the journals have what is to be looked
at, `_taken` what somebody looks at now; whoever could not record that gives it back.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import trio

from clivefs.daemon.recent import Recent
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.assembly.recorded import LivePart, live_part
from clivefs.mounts.journal import Journal, places_of
from clivefs.mounts.recording.outside import OutsideWatch
from clivefs.mounts.recording.parts import Dirty, Part, join, within
from clivefs.mounts.tree import Node, Owner, Tree

QUIET_S = 0.025
BEHIND_S = 0.25
_GATHER_S = 0.005


class Work(NamedTuple):
    """What is to be looked at."""

    dirty: dict[Dirty, None]
    whole: bool
    """Everything is, so `dirty` says nothing."""
    rearranged: bool
    """Mount entries went."""
    by_mount: bool
    """Some of it came through the mount."""

    def __bool__(self) -> bool:
        return self.whole or self.rearranged or bool(self.dirty)


class Noticed:
    """Notices what changes in one workspace, and when. For the loop's thread."""

    def __init__(
        self, owner: Owner, tell_open: Callable[[], None], being_written: Callable[[], Iterable[Node]]
    ) -> None:
        """*tell_open*: has the journals told of what was written to files that are still open; *being_written*: which
        those are."""
        self._owner = owner
        self._tell_open = tell_open
        self._being_written = being_written
        self.outside = OutsideWatch()
        self._parts: dict[bytes, LivePart] = {}
        self._left = Work({}, True, False, False)
        """Known to be dirty, beside what the journals and the watch have."""
        self._taken: Work | None = None
        self.recent = Recent()
        """What was taken."""
        self.is_noted = False
        """Whether something became dirty since the last `take`."""
        self.first_s = 0.0
        self.last_s = 0.0
        """When it did first and last, by the monotonic clock."""
        self.woken = trio.Event()
        """Set when it does; whoever waits makes another."""

    # The trees

    def assembled(self, entries: Mapping[str, Mounted], root: Tree | None) -> None:
        """The workspace has these trees now; none of them is recorded where *root* is None."""
        trees: dict[bytes, tuple[Tree, Mounted | None]] = {}
        if root is not None:
            trees[b""] = root, None
            trees.update((os.fsencode(path), (entry.tree, entry)) for path, entry in entries.items())
        old, self._parts = self._parts, {}
        for prefix, (tree, mounted) in trees.items():
            known = old.pop(prefix, None)
            if known is not None and known.is_of(tree, mounted):
                self._parts[prefix] = known
                continue
            if known is not None:
                self._drop(prefix, known, replaced=known.tree is tree)
            if tree.journal is None:
                tree.journal = Journal(self.note)
            self._parts[prefix] = live_part(prefix, tree, self._owner, mounted)
            self._left.dirty[Dirty(prefix, b"", True)] = None
        for prefix, part in old.items():
            self._drop(prefix, part, replaced=False)
            self._left = self._left._replace(rearranged=True)
            self._note_way(prefix)
        self.note()

    def _note_way(self, prefix: bytes) -> None:
        """What an entry covered, and the directories that may only have led to it, show something else now."""
        path = prefix
        while path and self._parts:
            over = (each for each in self._parts if not each or (path + b"/").startswith(each + b"/"))
            owner = max(over, key=len)
            self._left.dirty[Dirty(owner, path[len(owner) :].lstrip(b"/"))] = None
            path = path.rpartition(b"/")[0]

    def _drop(self, prefix: bytes, part: LivePart, *, replaced: bool) -> None:
        """*replaced*: the same tree is shown, on something else."""
        if not replaced:
            part.tree.journal = None
            self.outside.forget(prefix)
        part.close()

    @contextmanager
    def parts_of(self, work: Work) -> Iterator[tuple[list[Part], dict[bytes, LivePart]]]:
        """The parts as they are now, for whoever looks at *work*, and what they are of. They stay open until the block
        has ended, and *work* stays known to be dirty; what was not recorded is to be given back in it."""
        paths: dict[bytes, list[bytes]] = {}
        for prefix, path, _ in work.dirty:
            paths.setdefault(prefix, []).append(path)
        everywhere = {prefix for prefix in self._parts if work.whole or b"" in paths.get(prefix, ())}
        live_parts = dict(self._parts)
        parts = [
            part.now(None if prefix in everywhere else paths.get(prefix, [])) for prefix, part in live_parts.items()
        ]
        for part in live_parts.values():
            part.hold()
        self._taken = work
        try:
            yield parts, live_parts
        finally:
            self._taken = None
            if work.dirty:
                # What is in a new directory is heard of from when it was looked at: who asked meanwhile is told again.
                self.recent.add(join(each.prefix, each.path) for each in work.dirty)
            for part in live_parts.values():
                part.release()

    # What changes

    def note(self) -> None:
        """Something is dirty."""
        now = time.monotonic()
        if not self.is_noted:
            self.is_noted = True
            self.first_s = now
        self.last_s = now
        self.woken.set()

    def note_path(self, dirty: Dirty, *, by_mount: bool) -> None:
        """This is."""
        self.give_back(Work({dirty: None}, False, False, by_mount))
        self.note()

    def note_everything(self) -> None:
        """Anything may be."""
        self._left = self._left._replace(whole=True)

    def hear(self) -> None:
        """Take in what is heard of the directories."""
        heard = self.outside.read()
        if heard.lost:
            self.note_everything()
        if heard.dirty or heard.lost:
            self._left.dirty.update(dict.fromkeys(heard.dirty))
            # While something comes through the mount, what is heard is most likely its echo: no reason to wait longer.
            if not (self.is_noted and any(part.tree.journal for part in self._parts.values())):
                self.note()

    def take(self, *, open_too: bool) -> Work:
        """What is dirty now; it is not known here any more, but while `parts_of` it is in use. *open_too*: also files
        that somebody writes to through the mount. Otherwise those stay, also where they were made just now: their
        journals are told when he closes them, or after a few seconds, so no save is half recorded."""
        self.hear()  # so that the echo of what the journals tell of is not looked at once more
        self.is_noted = False
        if self._left.dirty and open_too:
            self._tell_open()  # what was heard of them may have come through the mount
        left, self._left = self._left, Work({}, False, False, False)
        by_mount = left.by_mount
        for prefix, part in self._parts.items():
            journal = part.tree.journal
            if not journal:
                continue
            changes = journal.take()
            by_mount = by_mount or bool(changes.paths) or changes.everything
            for path in changes.paths:
                left.dirty[Dirty(prefix, path, path in changes.names)] = None
            if changes.everything:
                left.dirty[Dirty(prefix, b"", True)] = None
        if left.dirty and not open_too:
            for each in self._open_files():
                for dirty in (each, each._replace(recursive=True)):
                    if dirty in left.dirty:
                        del left.dirty[dirty]
                        self._left.dirty[dirty] = None
        if left.whole or left.rearranged:
            self.recent.add_everything()
        elif left.dirty:
            self.recent.add(join(each.prefix, each.path) for each in left.dirty)
        return left._replace(by_mount=by_mount)

    def _open_files(self) -> Iterator[Dirty]:
        for node in self._being_written():
            for prefix, part in self._parts.items():
                if part.tree is node.tree:
                    yield from (Dirty(prefix, path) for path in places_of(node))

    def give_back(self, work: Work) -> None:
        """*work* was not recorded."""
        left = self._left
        left.dirty.update(work.dirty)
        self._left = Work(
            left.dirty, left.whole or work.whole, left.rearranged or work.rearranged, left.by_mount or work.by_mount
        )

    def forget(self) -> None:
        """What is dirty is not to be recorded."""
        self._left.dirty.clear()

    # When

    async def follow(self) -> None:
        """Until cancelled: wake when something changes outside."""
        while True:
            await trio.lowlevel.wait_readable(self.outside.fileno())
            self.hear()
            await trio.sleep(_GATHER_S)  # let a burst gather

    async def wait_for_quiet(self) -> None:
        """Until nothing has changed for a moment, or something has been dirty for long enough."""
        while self.is_noted:
            now = time.monotonic()
            until = min(self.first_s + BEHIND_S, self.last_s + QUIET_S)
            if now >= until:
                return
            await trio.sleep(until - now)

    # What is known of it

    def unrecorded(self) -> set[bytes] | None:
        """The paths that have changed since the newest point, as far as is known by now; a directory stands for all
        that is in it. None: it may be anything."""
        self._tell_open()
        self.hear()
        known = [self._left] if self._taken is None else [self._left, self._taken]
        if any(each.whole for each in known):
            return None
        dirty = {join(each.prefix, each.path) for work in known for each in work.dirty}
        for prefix, part in self._parts.items():
            if part.tree.journal:
                taken = part.tree.journal.peek()
                if taken.everything:
                    return None
                dirty |= {join(prefix, path) for path in taken.paths}
        return dirty

    def is_still(self, paths: Collection[bytes]) -> bool:
        """Whether nothing is known to have happened at or around *paths* that is not recorded."""
        dirty = self.unrecorded()
        if dirty is None:
            return False
        if not dirty:
            return True
        wanted = set(paths)
        return not any(each in wanted or within(dirty, each) for each in wanted) and not any(
            within(wanted, each) for each in dirty
        )

    # The end

    def stop(self) -> None:
        """Notice nothing more."""
        for part in self._parts.values():
            part.tree.journal = None
            part.close()
        self._parts = {}

    def close(self) -> None:
        self.outside.close()
