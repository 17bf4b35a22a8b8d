"""What is told of forks: size, changed files, and early what of them will conflict."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import trio

from clivefs.base.ports import FAULTS
from clivefs.daemon.forks.merging import merge_base, state_at
from clivefs.daemon.forks.shown import ForkDropped, ShownFork, ShownForks
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.forks.merging import Changes, changes, conflicting, foretold
from clivefs.mounts.forks.recorded import ForkState, upper_size
from clivefs.mounts.forks.records import ForkRecord
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import Differs, State
from clivefs.mounts.points.names import point_name
from clivefs.mounts.points.point import Point
from clivefs.objects.store import Store

StateOf = Callable[[ShownFork], Awaitable[tuple[ForkState, JoinedObjects]]]


class _Wrote(NamedTuple):
    """What a fork has changed since it was made, or since it was last merged."""

    base: State
    """What it was then."""
    now: State
    changes: Changes


class Listing:
    """Tells of forks: of trees that nothing leads to, so within `Recording.reading`. Methods are for the loop's
    thread."""

    def __init__(self, store: Store, recording: Recording, shown: ShownForks, state_of: StateOf) -> None:
        self._store = store
        self._recording = recording
        self._shown = shown
        self._state_of = state_of

    async def all(self, live: LiveWorkspace) -> list[dict[str, Any]]:
        """Every fork, with what it changed and what of that conflicts."""
        forks = self._shown.of(live)
        facts: dict[str, dict[str, Any]] = {}
        if forks:
            head = await self._recording.snapshot(live, needed=())
            wrote = await self._wrote(live, forks, head)
            for each in forks:
                if each.record.name in wrote:
                    with suppress(ForkDropped):
                        facts[each.record.name] = await self._facts(live, each, wrote, head)
        for record in self._shown.forks(live).all():
            error = self._shown.error(live, record.name)
            if record.name not in facts and error is not None:  # without a reason: it was made meanwhile
                facts[record.name] = {**_record_facts(record), "error": error}
        return [facts[name] for name in sorted(facts)]

    async def one(self, live: LiveWorkspace, name: str) -> dict[str, Any]:
        """One fork, with the paths that it changed."""
        shown = self._shown.get(live, name)
        head = await self._recording.snapshot(live, needed=())
        wrote = await self._wrote(live, self._shown.of(live), head)
        shown.check()
        facts = await self._facts(live, shown, wrote, head)
        mine = wrote[name].changes
        facts["changes"] = [{"path": os.fsdecode(path), "status": status_of(mine[path])} for path in sorted(mine)]
        return facts

    async def _wrote(self, live: LiveWorkspace, forks: Sequence[ShownFork], head: Point) -> dict[str, _Wrote]:
        """By name what they changed, of those that are not dropped meanwhile."""
        wrote: dict[str, _Wrote] = {}
        for each in forks:
            with suppress(ForkDropped):
                wrote[each.record.name] = await self._changes(live, each, head)
        return wrote

    async def _changes(self, live: LiveWorkspace, shown: ShownFork, head: Point) -> _Wrote:
        """What merging a fork would bring, before the live view's part in it."""
        state, reader = await self._state_of(shown)
        FAULTS.hit("fork.looked-at")
        points = self._recording.of(live).points

        def look() -> _Wrote:
            base = state_at(merge_base(points, reader, shown.record, head))
            return _Wrote(base, state.state, changes(reader, base, state.state))

        return await trio.to_thread.run_sync(look)

    async def _facts(
        self, live: LiveWorkspace, shown: ShownFork, wrote: dict[str, _Wrote], head: Point
    ) -> dict[str, Any]:
        reader = self._shown.reader()
        name = shown.record.name
        fork = wrote[name]

        def look(fds: list[int]) -> tuple[int, list[dict[str, Any]]]:
            scratch = scratch_directory(self._store.path)
            conflicts = []
            if fork.changes:
                now = state_at(head)
                there = _Wrote(fork.base, now, changes(reader, fork.base, now))
                conflicts += _conflicts("live", _conflicting(reader, fork, there, scratch))
            for other in sorted(wrote.keys() - {name}):
                conflicts += _conflicts(f"fork:{other}", _conflicting(reader, fork, wrote[other], scratch))
            return sum(map(upper_size, fds)), conflicts

        fds = shown.directories()  # of its own: the fork may be dropped meanwhile
        try:
            size, conflicts = await trio.to_thread.run_sync(look, fds)
        finally:
            for fd in fds:
                os.close(fd)
        return {
            **_record_facts(shown.record),
            "size": size,
            "files": sum(1 for each in fork.changes.values() if not _is_directory(each)),
            "conflicts": conflicts,
        }


def _conflicting(reader: JoinedObjects, one: _Wrote, two: _Wrote, scratch: str) -> list[bytes]:
    changed = (one.changes, two.changes)
    if one.base == two.base:
        return foretold(reader, one.base, one.now, two.now, changed, scratch)
    return conflicting(reader, *changed, scratch)


def _conflicts(who: str, paths: list[bytes]) -> list[dict[str, Any]]:
    return [{"with": who, "paths": [os.fsdecode(path) for path in paths]}] if paths else []


def _record_facts(record: ForkRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": record.name,
        "made": point_name(record.made_ms),
        "point": record.start,
        "command": record.command or None,
        "kept": record.kept or None,
        "error": None,
    }
    return facts


def _is_directory(differs: Differs) -> bool:
    file = differs.after or differs.before
    return file is not None and file.mode & 0o170000 == 0o040000


def status_of(differs: Differs) -> str:
    """What happened to a path, with git's letters."""
    if differs.before is None:
        return "A"
    return "D" if differs.after is None else "M"
