"""Sessions and the past, live: the barrier, new sessions, and going back."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping, Set
from contextlib import suppress
from typing import Any, NamedTuple

import msgspec
import trio

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.daemon.applying import ChangedMeanwhile, Target
from clivefs.daemon.changing import CONFIG, Changing
from clivefs.daemon.control import Progress
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.applying import Wanted
from clivefs.mounts.config import config
from clivefs.mounts.config import file as config_file
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import Differs, State, compare, file_at
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.moments import Moment
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.point import Point
from clivefs.mounts.points.undo import Position, note_pair, note_position, redone, undone
from clivefs.objects.store import Store

_ATTEMPTS_MAX = 8


class Sessions:
    """The commands about a workspace's past that need its daemon."""

    def __init__(self, store: Store, workspaces: Workspaces, recording: Recording, changing: Changing) -> None:
        self._store = store
        self._workspaces = workspaces
        self._recording = recording
        self._changing = changing

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
        result: dict[str, Any] = {"point": point_facts(point), "changes": [], "refused": [], "dry_run": dry}
        first: Point | None = None
        known = False
        """Whether it was looked whether there ever was what is to be restored."""
        for _ in range(_ATTEMPTS_MAX):
            before = await self._recording.snapshot(live)
            left_out = self._recording.of(live).left_out()
            plan = await trio.to_thread.run_sync(_plan, live, reader, before, point, paths, known, left_out, times)
            known = True
            if dry or not plan.differs:
                result["changes"] += plan.told()
                result["refused"] += plan.refused()
                if result["changes"] and not dry:
                    result["after"] = point_facts(before)
                return result
            wanted = [each.after.oid for each in plan.differs if each.after is not None and each.after.oid is not None]
            await trio.to_thread.run_sync(reader.want, wanted)
            try:
                applied = await self._changing.change(
                    live,
                    [*(_target(each, times=times) for each in plan.differs), *plan.touched],
                    reader,
                    before=before.oid,
                    origin=origin,
                    message=f"{origin.partition(':')[2]} to {point.name}",
                )
            except ChangedMeanwhile:
                continue
            result["changes"] += plan.told()
            result["refused"] += [*plan.refused(), *_told(dict(applied.refused))]
            if not plan.mounts:
                after = await self._recording.snapshot(live)
                result["after"] = point_facts(after)
                if first is not None:
                    await trio.to_thread.run_sync(note_pair, self._store, live.id, after.oid, first.oid)
                return result
            first = before  # What is mounted is what it was then; what differs in that comes now, in another point.
        raise ClivefsError(
            "what is to be changed is being written to all the time",
            place=live.name,
            remedy="end what writes there first; "
            + ("nothing was changed" if first is None else "until now only what is mounted was changed"),
        )


def _count(args: dict[str, Any]) -> int:
    count = int(args.get("count", 1))
    if count < 1:
        raise UsageError(f"{count} is no number of points", remedy="give 1 or more")
    return count


class _Plan(NamedTuple):
    """What going back comes to."""

    differs: list[Differs]
    """What is to be changed."""
    left_alone: dict[bytes, str]
    """What is not, with the reason."""
    mounts: bool
    """Other entries are mounted then: what differs in those is to be looked at when they are."""
    touched: list[Target]
    """With times: directories that get theirs back, as what changes in them gives them another."""

    def told(self) -> list[dict[str, str]]:
        found = [(each.path, each.status) for each in self.differs]
        return [{"path": os.fsdecode(path), "status": status} for path, status in found]

    def refused(self) -> list[dict[str, str]]:
        return _told(self.left_alone)


def _told(refused: Mapping[bytes, str]) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(path), "why": why} for path, why in refused.items()]


def _plan(
    live: LiveWorkspace,
    reader: JoinedObjects,
    before: Point,
    after: Point,
    paths: list[bytes],
    known: bool,
    left_out: Set[bytes],
    times: bool,
) -> _Plan:
    """How to go from the point *before*, which is now but for *left_out*, to *after* at *paths*. Not *known*:
    ClivefsError for a path that neither has. For threads."""
    states = State(before.tree, before.meta), State(after.tree, after.meta)
    found: dict[bytes, Differs] = {}
    for path in paths:
        differs = {each.path: each for each in compare(reader, *states, path, times=times)}
        if not differs and not known:
            _check_known(reader, states, after, path)
        found |= differs
    now, then = _entries(live.settings), _entries_at(live, reader, states[1])
    others = {path for path in now.keys() | then.keys() if now.get(path) != then.get(path)}
    mounts = CONFIG in found and bool(others) and live.root_tree.writable
    plan = _Plan([], {}, mounts, [])
    for path in sorted(found):
        entry = next((each for each in others if path == each or path.startswith(each + b"/")), None)
        if entry is not None and mounts:
            continue  # it goes or comes with its entry, whose files are not ours to remove or to make
        if entry is not None and entry not in then:
            place = os.fsdecode(entry)
            plan.left_alone[path] = f"{place} was no mount entry then; `clivefs detach {place}` takes it away"
            continue
        if path in left_out:
            plan.left_alone[path] = "what it is now could not be recorded, so nothing would bring that back"
            continue
        plan.differs.append(found[path])
    if times:
        above = {each.path.rpartition(b"/")[0] for each in plan.differs} - found.keys() - {b""}
        there = {path: file_at(reader, states[1], path) for path in above}
        plan.touched.extend(
            _target(Differs(path, file, file), times=True) for path, file in there.items() if file is not None
        )
    return plan


def _entries_at(live: LiveWorkspace, reader: JoinedObjects, state: State) -> dict[bytes, MountEntry]:
    """The mount entries that Clive.toml has in a state. Where it cannot be read, those of now that were shown."""
    name = live.settings.file
    file = file_at(reader, state, CONFIG)
    if file is not None and file.oid is not None and stat.S_ISREG(file.mode):
        with suppress(ClivefsError):
            text = config_file.decode(reader.read(file.oid)[1], file=name)
            return _entries(config.parse(text, file=name, root=live.root))
    now = _entries(live.settings)
    return {path: entry for path, entry in now.items() if file_at(reader, state, path) is not None}


def _entries(settings: Workspace) -> dict[bytes, MountEntry]:
    """By path; where in the file they are does not count."""
    return {os.fsencode(each.path): msgspec.structs.replace(each, line=0) for each in settings.mounts}


def _check_known(reader: JoinedObjects, states: tuple[State, State], after: Point, path: bytes) -> None:
    """ClivefsError for a path that neither state has."""
    if path and all(file_at(reader, state, path) is None for state in states):
        raise ClivefsError(
            f"it is not recorded now, and was not at {after.name}",
            place=os.fsdecode(path),
            remedy="`clivefs log` shows what was recorded",
        )


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
            is_new=differs.before is None,
            rdev=facts.rdev if facts is not None else 0,
        ),
        file.oid,
    )
