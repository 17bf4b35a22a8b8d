"""`fork`, `merge` and `run --fork`, live."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.daemon.applying import ChangedMeanwhile, LiveChanges, Target, entry_of
from clivefs.daemon.control import Progress
from clivefs.daemon.forks import gitsources
from clivefs.daemon.forks.listing import Listing, status_of
from clivefs.daemon.forks.shown import ShownFork, ShownForks
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.edits.diff import patch_of, scratch_directory
from clivefs.mounts.forks import gitdirs
from clivefs.mounts.forks.audit import Audit
from clivefs.mounts.forks.merging import MergePlan, both_wrote, changes, plan_merge
from clivefs.mounts.forks.recorded import ForkState, fork_part
from clivefs.mounts.forks.records import UPPER_PREFIX, ForkRecord, check_fork_name
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.treemerge import Labels
from clivefs.mounts.points.compare import State, compare
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.history import differences_at, with_content
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.point import Point, make_point
from clivefs.mounts.tree import Blocked, Node, Tree
from clivefs.objects.errors import MetaConflict, ObjectMissing
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

_ATTEMPTS_MAX = 20
_UNSETTLED_ROUNDS = 10
_UNSETTLED_S = 0.1
_FORK_POINT = "command:fork"


class Forking:
    """The commands about forks. Methods are for the loop's thread."""

    def __init__(
        self, store: Store, workspaces: Workspaces, recording: Recording, changes: LiveChanges, shown: ShownForks
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._recording = recording
        self._changes = changes
        self._shown = shown
        self._nursery: trio.Nursery | None = None
        self._listing = Listing(store, recording, shown, self.state_of)

    async def run(self) -> None:
        """Until cancelled: what need not be waited for. First what is left of forks that were dropped is deleted."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for live in list(self._workspaces.live.values()):
                nursery.start_soon(self._aside, "deleting dropped forks", self._shown.clear, live)
            await trio.sleep_forever()

    async def _aside(self, what: str, call: Callable[..., None], *args: Any) -> None:
        try:
            await trio.to_thread.run_sync(call, *args)
        except (OSError, ClivefsError) as error:
            log.warning("%s failed: %s", what, error)

    # Making, showing, dropping

    async def make(self, args: dict[str, Any], progress: Progress) -> Any:
        """Make the fork `name` on the point `point` (an id), or on what there is now."""
        live = self._workspaces.get(args["workspace"])
        shown = await self._make(live, args["name"], args.get("point"), command="")
        return self._told(live, shown)

    async def _make(self, live: LiveWorkspace, name: str, point_id: str | None, *, command: str) -> ShownFork:
        check_fork_name(name)
        if self._shown.forks(live).find(name) is not None:
            raise _taken(name)
        if point_id is None:
            start = await self._recording.snapshot(live)
        else:
            points = self._recording.of(live).points
            start = await trio.to_thread.run_sync(points.load, bytes.fromhex(point_id))
        record = ForkRecord(
            name=name,
            upper=f"{UPPER_PREFIX}{name}-{os.urandom(4).hex()}",
            made_ms=time.time_ns() // 1_000_000,
            start=start.oid.hex(),
            base=start.oid.hex(),
            entries=tuple(live.entries),
            command=command,
        )
        try:
            await trio.to_thread.run_sync(self._shown.make, live, record)
        except MetaConflict:
            raise _taken(name) from None
        shown = await _waiting(lambda: self._shown.show(live, record))
        await self._workspaces.caches.settled()
        if self._nursery is not None:
            directory = self._shown.directory(live, record)
            self._nursery.start_soon(
                self._aside, "keeping what a fork borrows", gitsources.keep_sources, self._store, live, directory
            )
        return shown

    def _told(self, live: LiveWorkspace, shown: ShownFork) -> dict[str, Any]:
        return {
            "name": shown.record.name,
            "path": os.path.join(self._workspaces.mountpoint, live.name, ".clive", "forks", shown.record.name),
            "point": point_facts(shown.start),
        }

    async def list_all(self, args: dict[str, Any], progress: Progress) -> Any:
        """All forks, with what they changed and what of it conflicts."""
        return await self._listing.all(self._workspaces.get(args["workspace"]))

    async def audit(self, args: dict[str, Any], progress: Progress) -> Any:
        """What the command of the sandboxed transaction `name` read and wrote."""
        live = self._workspaces.get(args["workspace"])
        return await trio.to_thread.run_sync(self._shown.audit, live, args["name"])

    async def where(self, args: dict[str, Any], progress: Progress) -> Any:
        """Where the fork `name` is."""
        live = self._workspaces.get(args["workspace"])
        return self._told(live, self._shown.get(live, args["name"]))

    async def show(self, args: dict[str, Any], progress: Progress) -> Any:
        """One fork, with its changed files."""
        return await self._listing.one(self._workspaces.get(args["workspace"]), args["name"])

    async def diff(self, args: dict[str, Any], progress: Progress) -> Any:
        """What a fork changed, recorded: two trees whose difference that is."""
        live = self._workspaces.get(args["workspace"])
        shown = self._shown.get(live, args["name"])
        state, _ = await self.state_of(shown)
        return {"before": shown.start.tree.hex(), "after": state.state.tree.hex()}

    async def drop(self, args: dict[str, Any], progress: Progress) -> Any:
        """Forget the fork `name` and what was written in it."""
        live = self._workspaces.get(args["workspace"])
        async with live.going_back:
            name = args["name"]
            if self._shown.forks(live).find(name) is None and self._shown.has_audit(live, name):
                await trio.to_thread.run_sync(self._shown.drop_audit, live, name)
                return {"name": name, "commits": []}
            commits = await self._drop(live, self._shown.forks(live).get(name))
            await trio.to_thread.run_sync(self._shown.drop_audit, live, name)
        return {"name": args["name"], "commits": commits}

    async def _drop(self, live: LiveWorkspace, record: ForkRecord) -> list[dict[str, Any]]:
        # What a thread deletes must not be shown: hide it first. A crash in between shows it again, whole.
        commits = await self._keep_commits(live, record)
        self._shown.hide(live, record.name)
        await self._workspaces.caches.settled()
        await trio.to_thread.run_sync(self._shown.drop, live, record)
        return commits

    async def _keep_commits(self, live: LiveWorkspace, record: ForkRecord) -> list[dict[str, Any]]:
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

    # What a fork is now

    async def state_of(self, shown: ShownFork) -> tuple[ForkState, JoinedObjects]:
        """What a fork shows, recorded, and where its objects are. ClivefsError for what cannot be recorded."""
        reader = await trio.to_thread.run_sync(past_objects, self._store)
        start = shown.start
        async with shown.recording:
            for _ in range(_UNSETTLED_ROUNDS):
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

    async def _whole_state(self, shown: ShownFork) -> tuple[ForkState, JoinedObjects]:
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

    async def merge(self, args: dict[str, Any], progress: Progress) -> Any:
        """Bring the changes of the fork `name` into the live view, three-way; the fork stays."""
        live = self._workspaces.get(args["workspace"])
        shown = self._shown.get(live, args["name"])
        async with live.going_back:
            return await self._merge(live, shown, dry=bool(args.get("dry_run")))

    async def _merge(self, live: LiveWorkspace, shown: ShownFork, *, dry: bool) -> dict[str, Any]:
        record = shown.record
        points = self._recording.of(live).points
        theirs, reader = await self._whole_state(shown)
        for _ in range(_ATTEMPTS_MAX):
            before = await self._recording.snapshot(live)
            base = await trio.to_thread.run_sync(_merge_base, points, reader, record, before)
            plan = await trio.to_thread.run_sync(
                self._plan, live, reader, record.name, _state(base), _state(before), theirs.state
            )
            result = _merged(record, plan, dry=dry)
            refused = self._read_only(live, plan)
            result["refused"] = [{"path": os.fsdecode(path), "why": why} for path, why in refused]
            if dry:
                return result
            if plan.puts:
                await self._refuse_in_the_way(live, plan)
            try:
                await self._apply(live, plan, reader, before)
            except ChangedMeanwhile:
                continue
            FAULTS.hit("merge.applied")
            after = before
            if plan.puts:
                self._recording.of(live).as_origin("command:merge")
                after = await self._recording.snapshot(live, f"merge of the fork {record.name}")
                result["after"] = point_facts(after)
            if not refused:  # what was left alone is to be merged another time
                await self._remember(shown, base, theirs.state, before, after)
            result["commits"] = await self._keep_commits(live, record)
            return result
        raise ClivefsError(
            "the live view is being written to all the time at what the fork changed",
            place=record.name,
            remedy="end what writes there first",
        )

    def _plan(
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

    async def _apply(self, live: LiveWorkspace, plan: MergePlan, reader: JoinedObjects, before: Point) -> None:
        recording = self._recording.of(live)
        paths = {put.wanted.path for put in plan.puts}
        if paths:
            targets = [Target(put.wanted, put.oid) for put in plan.puts]
            await self._changes.apply(live, targets, reader, lambda: recording.is_still(before.oid, paths))

    async def _remember(self, shown: ShownFork, base: Point, theirs: State, before: Point, after: Point) -> None:
        """The next merge is to bring only what the fork changes from now on."""
        if theirs == _state(base):
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
        new = _replaced(
            old,
            base=point.oid.hex(),
            base_before=base.oid.hex(),
            merged_from=before.oid.hex(),
            merged_to=after.oid.hex(),
        )
        shown.record = new
        await trio.to_thread.run_sync(lambda: shown.forks.update(old, new, point))

    @staticmethod
    def _read_only(live: LiveWorkspace, plan: MergePlan) -> list[tuple[bytes, str]]:
        """The paths of *plan* that lie in what is not written to."""
        found = []
        for put in plan.puts:
            entry = entry_of(live, put.wanted.path)
            if not _tree(live, entry).writable:
                where = f"the mount entry {entry}" if entry else "the workspace's directory"
                found.append((put.wanted.path, f"{where} is not written to"))
        return found

    @staticmethod
    async def _refuse_in_the_way(live: LiveWorkspace, plan: MergePlan) -> None:
        """ClivefsError where a new file would take the place of one that is not recorded."""
        for path in plan.new:
            if await _waiting(lambda: _exists(live, path)):  # noqa: B023
                found = {put.wanted.path: put for put in plan.puts}[path]
                if not found.wanted.mode & 0o040000:
                    raise ClivefsError(
                        "an ignored file of the live view is in the way",
                        place=os.fsdecode(path),
                        remedy="Move it elsewhere; it is not recorded, so nothing would bring it back.",
                    )

    # Transactions

    async def begin(self, args: dict[str, Any], progress: Progress) -> Any:
        """Make a fork for one command."""
        live = self._workspaces.get(args["workspace"])
        name = args.get("name") or self._free_name(live)
        shown = await self._make(live, name, None, command=args["text"])
        if args.get("audit"):
            shown.tree.audit = Audit()
        return {**self._told(live, shown), "git": os.path.join(self._shown.directory(live, shown.record), gitdirs.NAME)}

    def _free_name(self, live: LiveWorkspace) -> str:
        return f"run-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"

    async def end(self, args: dict[str, Any], progress: Progress) -> Any:
        """The command of a transaction has ended: `commit` its writes, or not; `diff` asks for what it changed."""
        live = self._workspaces.get(args["workspace"])
        shown = self._shown.get(live, args["name"])
        result: dict[str, Any] = {"name": args["name"], "changes": [], "committed": False, "kept": False}
        if shown.tree.audit is not None:
            facts = {"command": shown.record.command, "status": args["status"], **shown.tree.audit.describe()}
            await trio.to_thread.run_sync(self._shown.keep_audit, live, args["name"], facts)
        async with live.going_back:
            if args["commit"]:
                refusal = await self._commit(live, shown, result)
                if refusal is not None:
                    await self._keep(shown, refusal)
                    result["refused"] = refusal
                    result["kept"] = True
                    return result
            elif args.get("diff"):
                state, reader = await self.state_of(shown)
                before = shown.start
                result["changes"] = await trio.to_thread.run_sync(_changed, reader, _state(before), state.state)
                result["patch"] = await trio.to_thread.run_sync(self._patch, reader, before.tree, state.state.tree)
            result["commits"] = await self._drop(live, shown.record)
        return result

    async def _commit(self, live: LiveWorkspace, shown: ShownFork, result: dict[str, Any]) -> str | None:
        """Commit what a transaction wrote, all at once; the reason where it is refused."""
        try:
            theirs, reader = await self._whole_state(shown)
        except ClivefsError as error:
            return str(error)
        base = _state(shown.start)
        for _ in range(_ATTEMPTS_MAX):
            before = await self._recording.snapshot(live)
            both = await trio.to_thread.run_sync(_both_wrote, reader, base, _state(before), theirs.state)
            if both:
                result["conflicts"] = [os.fsdecode(path) for path in both]
                return "others have written the same files meanwhile"
            plan = await trio.to_thread.run_sync(
                self._plan, live, reader, shown.record.name, base, _state(before), theirs.state
            )
            result["changes"] = _listed(plan.changes)
            refused = self._read_only(live, plan)
            if refused:
                result["conflicts"] = [os.fsdecode(path) for path, _ in refused]
                return refused[0][1]
            if not plan.puts:
                result["committed"] = True
                return None
            try:
                await self._refuse_in_the_way(live, plan)
                await self._apply(live, plan, reader, before)
            except ChangedMeanwhile:
                continue
            except (ClivefsError, OSError) as error:
                return str(error)
            FAULTS.hit("run.applied")
            self._recording.of(live).as_origin("command:run")
            after = await self._recording.snapshot(live, f"run: {shown.record.command}")
            result["committed"] = True
            result["after"] = point_facts(after)
            return None
        return "the live view is being written to all the time"

    async def _keep(self, shown: ShownFork, why: str) -> None:
        """A transaction that was refused stays, as a fork like any other."""
        old = shown.record
        new = _replaced(old, kept=why)
        shown.record = new
        await trio.to_thread.run_sync(shown.forks.update, old, new)

    def _patch(self, reader: JoinedObjects, before: bytes, after: bytes) -> str:
        found = sorted(differences_at(reader, before, after, b""))
        patch = patch_of(with_content(reader, iter(found)), scratch_directory(self._store.path))
        return os.fsdecode(patch)


def _replaced(record: ForkRecord, **fields: Any) -> ForkRecord:
    values = {name: getattr(record, name) for name in record.__struct_fields__}
    return ForkRecord(**{**values, **fields})


def _merge_base(points: Points, reader: JoinedObjects, record: ForkRecord, now: Point) -> Point:
    """What the fork is compared with: what it was when it was last merged, unless that merge was undone."""
    if record.merged_to != record.merged_from:
        try:
            before, after = (points.load(bytes.fromhex(each)) for each in (record.merged_from, record.merged_to))
            brought = changes(reader, _state(before), _state(after))
            moved_on = changes(reader, _state(before), _state(now))
            if brought and not brought.keys() & moved_on.keys():
                return points.load(bytes.fromhex(record.base_before))
        except ObjectMissing:  # thinned away
            log.info("the points of the last merge of %s are gone", record.name)
    return points.load(bytes.fromhex(record.base))


def _taken(name: str) -> ClivefsError:
    return ClivefsError(
        f"there is already a fork {name!r}", remedy=f"choose another name, or `clivefs fork --drop {name}`"
    )


def _state(point: Point) -> State:
    return State(point.tree, point.meta)


def _listed(changes: Sequence[tuple[bytes, str]]) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(path), "status": how} for path, how in changes]


def _both_wrote(reader: JoinedObjects, base: State, ours: State, theirs: State) -> list[bytes]:
    mine = changes(reader, base, ours)
    return both_wrote(mine, changes(reader, base, theirs)) if mine else []


def _changed(reader: JoinedObjects, before: State, after: State) -> list[dict[str, str]]:
    return _listed([(each.path, status_of(each)) for each in compare(reader, before, after)])


def _merged(record: ForkRecord, plan: MergePlan, *, dry: bool) -> dict[str, Any]:
    return {
        "name": record.name,
        "changes": _listed(plan.changes),
        "conflicts": [
            {
                "path": os.fsdecode(conflict.path),
                "kind": str(conflict.kind),
                "aside": [os.fsdecode(name) for name in beside],
            }
            for conflict, beside in plan.conflicts
        ],
        "refused": [],
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


async def _waiting(call: Callable[[], T]) -> T:
    while True:
        try:
            return call()
        except Blocked as blocked:
            await trio.to_thread.run_sync(blocked.job)
