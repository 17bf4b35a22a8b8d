"""Sessions and the past, live: the barrier, new sessions, and going back."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import trio

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.daemon.applying import ChangedMeanwhile
from clivefs.daemon.changing import CONFIG, Changing
from clivefs.daemon.control import Progress
from clivefs.daemon.goingback import Plan, plan
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.moments import Moment
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.undo import Position, note_pair, note_position, redone, undone
from clivefs.objects.store import Store

STOPPABLE = ("restore", "undo", "redo")
"""Commands that can be cancelled until something is to be seen of them."""
_ATTEMPTS_MAX = 8


class Sessions:
    """The commands about a workspace's past that need its daemon."""

    def __init__(self, store: Store, workspaces: Workspaces, recording: Recording, changing: Changing) -> None:
        self._store = store
        self._workspaces = workspaces
        self._recording = recording
        self._changing = changing

    async def snapshot(self, args: dict[str, Any], progress: Progress) -> Any:
        """The point in which everything is that was saved before; with `message` a new one. With `needed` (paths below
        the workspace) large files elsewhere are not waited for: `reading` names them."""
        live = self._workspaces.get(args["workspace"])
        needed = args.get("needed")
        settled = await self._recording.settle(
            live,
            args.get("message"),
            needed=[b""] if needed is None else [os.fsencode(path) for path in needed],
            tell=progress,
        )
        facts = {**point_facts(settled.point), "busy": [os.fsdecode(path) for path in settled.busy]}
        return facts if needed is None else {**facts, "reading": list(settled.reading)}

    async def new(self, args: dict[str, Any], progress: Progress) -> Any:
        """End the session and begin one, called `name` or by its start."""
        live = self._workspaces.get(args["workspace"])
        new, old = await self._recording.of(live).new_session(args.get("name"), tell=progress)
        return {"session": new, "ended": old}

    async def restore(self, args: dict[str, Any], progress: Progress) -> Any:
        """Let `paths` (below the workspace; "" is all) be what they were at `moment` (the fields of a `Moment`)."""
        live = self._workspaces.get(args["workspace"])
        paths = [os.fsencode(path) for path in args["paths"]]
        origin = f"command:{args.get('command', 'restore')}"
        with trio.CancelScope() as scope:
            async with live.going_back, self._recording.reading():
                times, dry = bool(args.get("times")), bool(args["dry_run"])
                needed = _needed(paths, times)
                point = await self._recording.found(live, Moment(**args["moment"]), needed=needed, tell=progress)
                result, _ = await self._go_to(live, point, paths, origin, scope, progress, times=times, dry=dry)
                return result

    async def undo(self, args: dict[str, Any], progress: Progress) -> Any:
        """Go back by `count` points."""
        live = self._workspaces.get(args["workspace"])
        count = _count(args)
        with trio.CancelScope() as scope:
            async with live.going_back, self._recording.reading():
                head = await self._recording.snapshot(live, tell=progress)
                points = self._recording.of(live).points
                reader = await trio.to_thread.run_sync(past_objects, self._store)
                target, redo = await trio.to_thread.run_sync(undone, self._store, points, reader, live.id, head, count)
                return await self._step(live, target, redo, "command:undo", scope, progress, dry=bool(args["dry_run"]))

    async def redo(self, args: dict[str, Any], progress: Progress) -> Any:
        """Take back `count` undos."""
        live = self._workspaces.get(args["workspace"])
        count = _count(args)
        with trio.CancelScope() as scope:
            async with live.going_back, self._recording.reading():
                head = await self._recording.snapshot(live, tell=progress)
                points = self._recording.of(live).points
                target, redo = await trio.to_thread.run_sync(redone, self._store, points, live.id, head, count)
                return await self._step(live, target, redo, "command:redo", scope, progress, dry=bool(args["dry_run"]))

    async def _step(
        self,
        live: LiveWorkspace,
        target: Point,
        redo: tuple[bytes, ...],
        origin: str,
        scope: trio.CancelScope,
        progress: Progress,
        *,
        dry: bool,
    ) -> dict[str, Any]:
        result, head = await self._go_to(live, target, [b""], origin, scope, progress, times=False, dry=dry)
        if not dry:
            await trio.to_thread.run_sync(note_position, self._store, live.id, Position(head, target.oid, redo))
        return result

    async def _go_to(
        self,
        live: LiveWorkspace,
        point: Point,
        paths: list[bytes],
        origin: str,
        scope: trio.CancelScope,
        progress: Progress,
        *,
        times: bool,
        dry: bool,
    ) -> tuple[dict[str, Any], bytes]:
        """What is told of it, and the newest point. *scope*, in which all of it is done, is shielded as soon as
        something is to be seen: it is to end then, and be told."""

        def begin() -> None:
            scope.shield = True

        reader = await trio.to_thread.run_sync(past_objects, self._store)
        result: dict[str, Any] = {
            "point": point_facts(point),
            "changes": [],
            "refused": [],
            "not_owned": [],
            "dry_run": dry,
        }
        needed = _needed(paths, times)
        first: Point | None = None
        known = False
        """Whether it was looked whether there ever was what is to be restored."""
        for _ in range(_ATTEMPTS_MAX):
            before = await self._recording.snapshot(live, needed=needed, tell=progress)
            left_out = self._recording.of(live).left_out()
            made = await trio.to_thread.run_sync(plan, live, reader, before, point, paths, known, left_out, times)
            known = True
            if dry or not made.targets:
                result["changes"] += _changes(made)
                result["refused"] += _told(made.left_alone)
                result["not_owned"] += _names(made.unowned())
                if result["changes"] and not dry:
                    result["after"] = point_facts(before)
                return result, before.oid
            wanted = [target.oid for target in made.targets if target.oid is not None]
            await trio.to_thread.run_sync(reader.want, wanted)
            try:
                applied = await self._changing.change(
                    live,
                    made.targets,
                    reader,
                    before=before.oid,
                    origin=origin,
                    message=f"{origin.partition(':')[2]} to {point.name}",
                    begin=begin,
                )
            except ChangedMeanwhile:
                continue
            result["changes"] += _changes(made)
            result["refused"] += _told(made.left_alone | dict(applied.refused))
            result["not_owned"] += _names(sorted({*made.owners, *applied.not_owned}))
            if not made.mounts:
                after = await self._recording.snapshot(live, needed=needed, tell=progress)
                result["after"] = point_facts(after)
                if first is not None:
                    await trio.to_thread.run_sync(note_pair, self._store, live.id, after.oid, first.oid)
                return result, after.oid
            first = before  # What is mounted is what it was then; what differs in that comes now, in another point.
        raise ClivefsError(
            "what is to be changed is being written to all the time",
            place=live.name,
            remedy="end what writes there first; "
            + ("nothing was changed" if first is None else "until now only what is mounted was changed"),
        )


def _needed(paths: list[bytes], times: bool) -> list[bytes]:
    """What must be recorded as it is before *paths* become something else: with *times*, the directories above get
    another; and another Clive.toml may show other files anywhere."""
    if CONFIG in paths:
        return [b""]
    above = [each.rpartition(b"/")[0] for each in paths if times and b"/" in each]
    return [*paths, *above]


def _count(args: dict[str, Any]) -> int:
    count = int(args.get("count", 1))
    if count < 1:
        raise UsageError(f"{count} is no number of points", remedy="give 1 or more")
    return count


def _told(refused: Mapping[bytes, str]) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(path), "why": why} for path, why in refused.items()]


def _changes(made: Plan) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(each.path), "status": each.status} for each in made.differs]


def _names(paths: Iterable[bytes]) -> list[str]:
    return [os.fsdecode(path) for path in paths]
