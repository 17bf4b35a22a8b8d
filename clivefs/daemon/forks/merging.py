"""Bringing forks back: what one shows, recorded; the plan of a merge; and its one step.

The order is: record the fork, record the live view, plan, stage, and then one span that publishes everything, unless
something has happened at those paths since the live view was recorded: then all of it begins anew.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any, TypeVar

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.daemon.applying import Applied, ChangedMeanwhile, Target, entry_of
from clivefs.daemon.changing import Changing
from clivefs.daemon.control import Progress
from clivefs.daemon.forks import gitsources
from clivefs.daemon.forks.shown import ShownFork, ShownForks
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.forks.merging import MergePlan, changes, plan_merge
from clivefs.mounts.forks.recorded import ForkState, fork_part
from clivefs.mounts.forks.records import ForkRecord
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.treemerge import Labels
from clivefs.mounts.points.compare import State
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.point import Point, make_point
from clivefs.mounts.tree import Blocked, Node, Tree
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

ATTEMPTS_MAX = 20
_UNSETTLED_ROUNDS = 10
_UNSETTLED_S = 0.1
_FORK_POINT = "command:fork"
_GOING_BACK = ("command:undo", "command:redo", "command:restore")
_POINTS_LOOKED_AT = 10_000


class Merging:
    """Merges forks of mounted workspaces. Methods are for the loop's thread."""

    def __init__(
        self, store: Store, workspaces: Workspaces, recording: Recording, changing: Changing, shown: ShownForks
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._recording = recording
        self._changing = changing
        self._shown = shown

    # What a fork is now

    async def state_of(self, shown: ShownFork) -> tuple[ForkState, JoinedObjects]:
        """What a fork shows, recorded, and where its objects are. ForkDropped; ClivefsError for what cannot be
        recorded."""
        reader = await trio.to_thread.run_sync(past_objects, self._store)
        start = shown.start
        async with shown.recording:
            for _ in range(_UNSETTLED_ROUNDS):
                shown.check()
                part = fork_part(
                    shown.tree, reader, State(start.tree, start.meta), start.ms * 1_000_000, self._workspaces.owner
                )
                try:
                    state = await trio.to_thread.run_sync(shown.recorder.record, part.part)
                finally:
                    part.close()
                if not state.unsettled:
                    break
                await trio.sleep(_UNSETTLED_S)
        return state, reader

    async def whole_state(self, shown: ShownFork) -> tuple[ForkState, JoinedObjects]:
        """As `state_of`, of a fork that is to be merged: ClivefsError where a file of it is not in the state."""
        state, reader = await self.state_of(shown)
        if state.unsettled:
            raise ClivefsError(
                "it is being written to all the time",
                place=os.fsdecode(state.unsettled[0]),
                remedy="end what writes there first",
            )
        for path, why in state.left_out.items():
            raise ClivefsError(f"it cannot be merged: {why}", place=os.fsdecode(path))
        return state, reader

    # Merging

    async def merge(self, live: LiveWorkspace, shown: ShownFork, progress: Progress, *, dry: bool) -> dict[str, Any]:
        record = shown.record
        points = self._recording.of(live).points
        theirs, reader = await self.whole_state(shown)
        for _ in range(ATTEMPTS_MAX):
            before = await self._recording.snapshot(live, tell=progress)
            base = await trio.to_thread.run_sync(merge_base, points, reader, record, before)
            plan = await trio.to_thread.run_sync(
                self.plan, live, reader, record.name, state_at(base), state_at(before), theirs.state
            )
            result = _merged(record, plan, dry=dry)
            refused = self.read_only(live, plan)
            result["refused"] = _left_alone(refused)
            if dry:
                return result
            try:
                told = f"merge of the fork {record.name}"
                applied = await self.apply(live, plan, reader, before, "command:merge", told)
            except ChangedMeanwhile:
                continue
            FAULTS.hit("merge.applied")
            result["refused"] = _left_alone(applied.refused)
            after = before
            if plan.puts:
                after = await self._recording.snapshot(live)
                result["after"] = point_facts(after)
            if not refused:  # what was left alone is to be merged another time
                await self._remember(shown, base, theirs.state, before, after)
            try:
                result["commits"] = await self.keep_commits(live, record)
            except ClivefsError as error:  # the files are merged
                result["not_kept"] = error.message
            return result
        raise ClivefsError(
            "the live view is being written to all the time at what the fork changed",
            place=record.name,
            remedy="end what writes there first",
        )

    def plan(
        self, live: LiveWorkspace, reader: JoinedObjects, name: str, base: State, ours: State, theirs: State
    ) -> MergePlan:
        """For threads."""
        return plan_merge(
            reader,
            self._store,
            base=base,
            ours=ours,
            theirs=theirs,
            labels=Labels("the fork's point", "live", name),
            scratch=scratch_directory(self._store.path),
            taken=lambda path: _exists_now(live, path),
        )

    async def apply(
        self, live: LiveWorkspace, plan: MergePlan, reader: JoinedObjects, before: Point, origin: str, message: str
    ) -> Applied:
        """What it changes is recorded as the doing of *origin*, in a point called *message*."""
        if not plan.puts:
            return Applied((), ())
        await trio.to_thread.run_sync(reader.want, [put.oid for put in plan.puts if put.oid is not None])
        targets = [Target(put.wanted, put.oid) for put in plan.puts]
        return await self._changing.change(live, targets, reader, before=before.oid, origin=origin, message=message)

    async def _remember(self, shown: ShownFork, base: Point, theirs: State, before: Point, after: Point) -> None:
        """The next merge is to bring only what the fork changes from now on."""
        if theirs == state_at(base):
            return
        point = make_point(
            ms=max(time.time_ns() // 1_000_000, base.ms + 1),
            seq=base.seq,
            session=base.session,
            machine=base.machine,
            origin=_FORK_POINT,
            tree=theirs.tree,
            meta=theirs.meta,
            parent=base.oid,
            message=f"the fork {shown.record.name} when it was merged",
        )
        old = shown.record
        new = replaced(
            old,
            base=point.oid.hex(),
            base_before=base.oid.hex(),
            merged_from=before.oid.hex(),
            merged_to=after.oid.hex(),
        )
        shown.record = new
        await trio.to_thread.run_sync(lambda: shown.forks.update(old, new, point))

    @staticmethod
    def read_only(live: LiveWorkspace, plan: MergePlan) -> list[tuple[bytes, str]]:
        """The paths of *plan* that lie in what is not written to."""
        found = []
        for put in plan.puts:
            entry = entry_of(live, put.wanted.path)
            if not _tree(live, entry).writable:
                where = f"the mount entry {entry}" if entry else "the workspace's directory"
                found.append((put.wanted.path, f"{where} is not written to"))
        return found

    async def keep_commits(self, live: LiveWorkspace, record: ForkRecord) -> list[dict[str, Any]]:
        """See that what was committed in a fork outlives it; ClivefsError where that cannot be."""
        directory = self._shown.directory(live, record)
        targets = gitsources.keepers(live)
        kept = await trio.to_thread.run_sync(
            gitsources.keep_commits, self._store, live.id, record.name, directory, targets
        )
        return [
            {"entry": each.entry, "ref": each.ref, "commit": each.commit.hex(), "repository": each.repository}
            for each in kept
        ]


def replaced(record: ForkRecord, **fields: Any) -> ForkRecord:
    """*record* with other values in some fields."""
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    return ForkRecord(**{**values, **fields})


def merge_base(points: Points, reader: JoinedObjects, record: ForkRecord, now: Point) -> Point:
    """What the fork is compared with: what it was when it was last merged, unless that merge was undone."""
    if record.merged_to != record.merged_from:
        try:
            before, after = (points.load(bytes.fromhex(each)) for each in (record.merged_from, record.merged_to))
            brought = changes(reader, state_at(before), state_at(after)).keys()
            if brought and _was_undone(points, reader, before, after, now, brought):
                return points.load(bytes.fromhex(record.base_before))
        except ObjectMissing:  # thinned away
            log.info("the points of the last merge of %s are gone", record.name)
    return points.load(bytes.fromhex(record.base))


def _was_undone(
    points: Points, reader: JoinedObjects, before: Point, after: Point, now: Point, brought: Set[bytes]
) -> bool:
    """Whether the paths *brought* by a merge (from *before* to *after*) were taken back, not brought again, whatever
    was written there since."""
    for each in itertools.chain([now], _gone_back(points, after, now)):
        if not brought & changes(reader, state_at(before), state_at(each)).keys():
            return True
        if not brought & changes(reader, state_at(after), state_at(each)).keys():
            return False
    return False


def _gone_back(points: Points, after: Point, now: Point) -> Iterator[Point]:
    """The points that came of going back, newest first."""
    for each in points.between(after.ms + 1, now.ms, reverse=True, limit=_POINTS_LOOKED_AT):
        point = points.load(each.oid)
        if point.origin in _GOING_BACK:
            yield point


def state_at(point: Point) -> State:
    """What was recorded as *point*."""
    return State(point.tree, point.meta)


def listed(changes: Sequence[tuple[bytes, str]]) -> list[dict[str, str]]:
    """Changes as JSON has them."""
    return [{"path": os.fsdecode(path), "status": how} for path, how in changes]


def _left_alone(refused: Sequence[tuple[bytes, str]]) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(path), "why": why} for path, why in refused]


def _merged(record: ForkRecord, plan: MergePlan, *, dry: bool) -> dict[str, Any]:
    return {
        "name": record.name,
        "changes": listed(plan.changes),
        "conflicts": [
            {
                "path": os.fsdecode(conflict.path),
                "kind": conflict.why,
                "aside": [os.fsdecode(name) for name in beside],
            }
            for conflict, beside in plan.conflicts
        ],
        "refused": [],
        "commits": [],
        "not_kept": None,
        "dry_run": dry,
    }


def _tree(live: LiveWorkspace, entry: str) -> Tree:
    return live.entries[entry].tree if entry else live.root_tree


def _exists_now(live: LiveWorkspace, path: bytes) -> bool:
    """As `_exists`, from a thread."""
    while True:
        try:
            return trio.from_thread.run_sync(_exists, live, path)
        except Blocked as blocked:
            blocked.job()


def _exists(live: LiveWorkspace, path: bytes) -> bool:
    """Whether the live view has something at *path*. May be `Blocked`."""
    entry = entry_of(live, path)
    tree = _tree(live, entry)
    node: Node = tree.root
    below = path[len(os.fsencode(entry)) + 1 :] if entry else path
    for name in below.split(b"/") if below else ():
        try:
            node, _ = tree.listed(node, name)
        except OSError:
            return False
    return True


async def waiting(call: Callable[[], T]) -> T:
    """Call until it need not wait any more."""
    while True:
        try:
            return call()
        except Blocked as blocked:
            await trio.to_thread.run_sync(blocked.job)
