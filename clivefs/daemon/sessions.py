"""Sessions and the past, live: the barrier, new sessions, and going back."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import trio

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.daemon.applying import ChangedMeanwhile, LiveChanges, Target
from clivefs.daemon.control import Progress
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.applying import Wanted
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import Differs, State, compare, file_at
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.moments import Moment
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.undo import Position, note_position, redone, undone
from clivefs.objects.store import Store

_ATTEMPTS_MAX = 8


class Sessions:
    """The commands about a workspace's past that need its daemon."""

    def __init__(self, store: Store, workspaces: Workspaces, recording: Recording, changes: LiveChanges) -> None:
        self._store = store
        self._workspaces = workspaces
        self._recording = recording
        self._changes = changes

    async def snapshot(self, args: dict[str, Any], progress: Progress) -> Any:
        """The point in which everything is that was saved before; with `message` a new one."""
        live = self._workspaces.get(args["workspace"])
        settled = await self._recording.settle(live, args.get("message"))
        return {**point_facts(settled.point), "busy": [os.fsdecode(path) for path in settled.busy]}

    async def new(self, args: dict[str, Any], progress: Progress) -> Any:
        """End the session and begin one, called `name` or by its start."""
        live = self._workspaces.get(args["workspace"])
        new, old = await self._recording.of(live).new_session(args.get("name"))
        return {"session": new, "ended": old}

    async def restore(self, args: dict[str, Any], progress: Progress) -> Any:
        """Let `paths` (below the workspace; "" is all) be what they were at `moment` (the fields of a `Moment`)."""
        live = self._workspaces.get(args["workspace"])
        paths = [os.fsencode(path) for path in args["paths"]]
        origin = f"command:{args.get('command', 'restore')}"
        async with live.going_back, self._recording.reading():
            point = await self._recording.found(live, Moment(**args["moment"]))
            return await self._go_to(
                live, point, paths, origin, times=bool(args.get("times")), dry=bool(args["dry_run"])
            )

    async def undo(self, args: dict[str, Any], progress: Progress) -> Any:
        """Go back by `count` points."""
        live = self._workspaces.get(args["workspace"])
        count = _count(args)
        async with live.going_back, self._recording.reading():
            head = await self._recording.snapshot(live)
            points = self._recording.of(live).points
            reader = await trio.to_thread.run_sync(past_objects, self._store)
            target, redo = await trio.to_thread.run_sync(undone, self._store, points, reader, live.id, head, count)
            return await self._step(live, target, redo, "command:undo", dry=bool(args["dry_run"]))

    async def redo(self, args: dict[str, Any], progress: Progress) -> Any:
        """Take back `count` undos."""
        live = self._workspaces.get(args["workspace"])
        count = _count(args)
        async with live.going_back, self._recording.reading():
            head = await self._recording.snapshot(live)
            points = self._recording.of(live).points
            target, redo = await trio.to_thread.run_sync(redone, self._store, points, live.id, head, count)
            return await self._step(live, target, redo, "command:redo", dry=bool(args["dry_run"]))

    async def _step(
        self, live: LiveWorkspace, target: Point, redo: tuple[bytes, ...], origin: str, *, dry: bool
    ) -> dict[str, Any]:
        result = await self._go_to(live, target, [b""], origin, times=False, dry=dry)
        if not dry:
            after = bytes.fromhex(result.get("after", {"id": target.oid.hex()})["id"])
            await trio.to_thread.run_sync(note_position, self._store, live.id, Position(after, target.oid, redo))
        return result

    async def _go_to(
        self, live: LiveWorkspace, point: Point, paths: list[bytes], origin: str, *, times: bool, dry: bool
    ) -> dict[str, Any]:
        reader = await trio.to_thread.run_sync(past_objects, self._store)
        recording = self._recording.of(live)
        for _ in range(_ATTEMPTS_MAX):
            before = await self._recording.snapshot(live)
            differs = await trio.to_thread.run_sync(_differences, reader, before, point, paths)
            result: dict[str, Any] = {
                "point": point_facts(point),
                "changes": [{"path": os.fsdecode(each.path), "status": _status(each)} for each in differs],
                "refused": [],
                "dry_run": dry,
            }
            if dry or not differs:
                return result
            wanted = [each.after.oid for each in differs if each.after is not None and each.after.oid is not None]
            await trio.to_thread.run_sync(reader.want, wanted)
            targets = [_target(each, times=times) for each in differs]
            told = f"{origin.partition(':')[2]} to {point.name}"
            still = partial(recording.claim, before.oid, {each.path for each in differs}, origin, told)
            try:
                applied = await self._changes.apply(live, targets, reader, still)
            except ChangedMeanwhile:
                continue
            result["refused"] = [{"path": os.fsdecode(path), "why": why} for path, why in applied.refused]
            after = await self._recording.snapshot(live)
            result["after"] = point_facts(after)
            return result
        raise ClivefsError(
            "what is to be changed is being written to all the time",
            place=live.name,
            remedy="end what writes there first; nothing was changed",
        )


def _count(args: dict[str, Any]) -> int:
    count = int(args.get("count", 1))
    if count < 1:
        raise UsageError(f"{count} is no number of points", remedy="give 1 or more")
    return count


def _differences(reader: JoinedObjects, before: Point, after: Point, paths: list[bytes]) -> list[Differs]:
    found: dict[bytes, Differs] = {}
    for path in paths:
        for each in compare(reader, State(before.tree, before.meta), State(after.tree, after.meta), path):
            found[each.path] = each
    if not found:
        _check_known(reader, before, after, paths)
    return [found[path] for path in sorted(found)]


def _check_known(reader: JoinedObjects, before: Point, after: Point, paths: list[bytes]) -> None:
    """ClivefsError for a path that neither state has."""
    states = State(before.tree, before.meta), State(after.tree, after.meta)
    for path in paths:
        if path and all(file_at(reader, state, path) is None for state in states):
            raise ClivefsError(
                f"it is not recorded now, and was not at {after.name}",
                place=os.fsdecode(path),
                remedy="`clivefs log` shows what was recorded",
            )


def _status(differs: Differs) -> str:
    """As git says: what applying it does to the path."""
    if differs.before is None:
        return "A"
    return "D" if differs.after is None else "M"


def _target(differs: Differs, *, times: bool) -> Target:
    file = differs.after
    if file is None:
        return Target(Wanted(differs.path, 0))
    facts = file.facts
    return Target(
        Wanted(
            differs.path,
            file.mode,
            facts.mtime_ns if facts is not None and times else None,
            facts.uid if facts is not None else None,
            facts.gid if facts is not None else None,
            facts.xattrs if facts is not None else (),
        ),
        file.oid,
    )
