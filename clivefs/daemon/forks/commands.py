"""`fork`, `merge` and `run --fork`, live."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.daemon.applying import ChangedMeanwhile
from clivefs.daemon.changing import Changing
from clivefs.daemon.control import Progress
from clivefs.daemon.forks import gitsources
from clivefs.daemon.forks.listing import Listing, status_of
from clivefs.daemon.forks.merging import ATTEMPTS_MAX, Merging, listed, replaced, state_at, waiting
from clivefs.daemon.forks.shown import ShownFork, ShownForks
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.edits.diff import patch_of, scratch_directory
from clivefs.mounts.forks import gitdirs
from clivefs.mounts.forks.audit import Audit
from clivefs.mounts.forks.merging import both_wrote, changes
from clivefs.mounts.forks.records import UPPER_PREFIX, ForkRecord, check_fork_name
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import State, compare
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.history import differences_at, with_content
from clivefs.objects.errors import MetaConflict
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

STOPPABLE_FORKING = ("fork", "run_begin")
"""Commands that can be cancelled until a fork is made."""


class Forking:
    """The commands about forks. Methods are for the loop's thread."""

    def __init__(
        self, store: Store, workspaces: Workspaces, recording: Recording, changing: Changing, shown: ShownForks
    ) -> None:
        self._store = store
        self._workspaces = workspaces
        self._recording = recording
        self._shown = shown
        self._merging = Merging(store, workspaces, recording, changing, shown)
        self._nursery: trio.Nursery | None = None
        self._listing = Listing(store, recording, shown, self._merging.state_of)

    async def run(self) -> None:
        """Until cancelled: what need not be waited for. First what is left of forks that were dropped is deleted."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for live in list(self._workspaces.live.values()):
                nursery.start_soon(self._aside, "deleting dropped forks", self._shown.clear, live)
                for shown in self._shown.of(live):
                    self._keep_sources(live, shown.record)
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
        shown = await self._make(live, args["name"], args.get("point"), progress, command="")
        return self._told(live, shown)

    async def _make(
        self, live: LiveWorkspace, name: str, point_id: str | None, progress: Progress, *, command: str
    ) -> ShownFork:
        check_fork_name(name)
        if self._shown.forks(live).find(name) is not None:
            raise _taken(name)
        with trio.CancelScope() as scope:
            async with self._recording.reading():  # until the fork's record keeps what it stands on
                if point_id is None:
                    start = await self._recording.snapshot(live, tell=progress)
                else:
                    start = await self._recording.chosen(live, point_id)
                scope.shield = True
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
            shown = await waiting(lambda: self._shown.show(live, record))
            await self._workspaces.caches.settled()
            self._keep_sources(live, record)
        return shown

    def _keep_sources(self, live: LiveWorkspace, record: ForkRecord) -> None:
        """See, in the background, that what a fork borrows stays."""
        if self._nursery is not None:
            directory = self._shown.directory(live, record)
            self._nursery.start_soon(
                self._aside, "keeping what a fork borrows", gitsources.keep_sources, self._store, live, directory
            )

    def _told(self, live: LiveWorkspace, shown: ShownFork) -> dict[str, Any]:
        return {
            "name": shown.record.name,
            "path": os.path.join(self._workspaces.mountpoint, live.name, ".clive", "forks", shown.record.name),
            "point": point_facts(shown.start),
        }

    async def list_all(self, args: dict[str, Any], progress: Progress) -> Any:
        """All forks, with what they changed and what of it conflicts."""
        live = self._workspaces.get(args["workspace"])
        async with self._recording.reading():
            return await self._listing.all(live)

    async def audit(self, args: dict[str, Any], progress: Progress) -> Any:
        """What the command of the sandboxed transaction `name` read and wrote; until it has ended, so far."""
        live = self._workspaces.get(args["workspace"])
        for shown in self._shown.of(live):
            if shown.record.name == args["name"] and shown.tree.audit is not None:
                return _audited(shown.record, None, shown.tree.audit)
        return await trio.to_thread.run_sync(self._shown.audit, live, args["name"])

    async def where(self, args: dict[str, Any], progress: Progress) -> Any:
        """Where the fork `name` is."""
        live = self._workspaces.get(args["workspace"])
        return self._told(live, self._shown.get(live, args["name"]))

    async def show(self, args: dict[str, Any], progress: Progress) -> Any:
        """One fork, with its changed files."""
        live = self._workspaces.get(args["workspace"])
        async with self._recording.reading():
            return await self._listing.one(live, args["name"])

    async def diff(self, args: dict[str, Any], progress: Progress) -> Any:
        """What a fork changed, recorded: two trees whose difference that is. Nothing leads to the second, so whoever
        asks is `reading` before."""
        live = self._workspaces.get(args["workspace"])
        shown = self._shown.get(live, args["name"])
        async with self._recording.reading():
            state, _ = await self._merging.state_of(shown)
            FAULTS.hit("fork.looked-at")
        return {"before": shown.start.tree.hex(), "after": state.state.tree.hex()}

    async def drop(self, args: dict[str, Any], progress: Progress) -> Any:
        """Forget the fork `name` and what was written in it; with `force` also commits that cannot be kept."""
        live = self._workspaces.get(args["workspace"])
        async with live.going_back:
            name = args["name"]
            if self._shown.forks(live).find(name) is None and self._shown.has_audit(live, name):
                await trio.to_thread.run_sync(self._shown.drop_audit, live, name)
                return {"name": name, "commits": []}
            commits = await self._drop(live, self._shown.forks(live).get(name), force=bool(args.get("force")))
            await trio.to_thread.run_sync(self._shown.drop_audit, live, name)
        return {"name": args["name"], "commits": commits}

    async def _drop(self, live: LiveWorkspace, record: ForkRecord, *, force: bool = False) -> list[dict[str, Any]]:
        commits: list[dict[str, Any]] = []
        try:
            commits = await self._merging.keep_commits(live, record)
        except ClivefsError as error:
            if not force:
                raise
            log.info("%s: what was committed in the fork %s is not kept: %s", live.name, record.name, error.message)
        # What a thread deletes must not be shown: hide it first. A crash in between shows it again, whole.
        readers = (each.recording for each in self._shown.of(live) if each.record.name == record.name)
        async with next(readers, nullcontext()):
            self._shown.hide(live, record.name)
        await self._workspaces.caches.settled()
        await trio.to_thread.run_sync(self._shown.drop, live, record)
        return commits

    # Merging

    async def merge(self, args: dict[str, Any], progress: Progress) -> Any:
        """Bring the changes of the fork `name` into the live view, three-way; the fork stays."""
        live = self._workspaces.get(args["workspace"])
        shown = self._shown.get(live, args["name"])
        async with live.going_back, self._recording.reading():
            return await self._merging.merge(live, shown, progress, dry=bool(args.get("dry_run")))

    # Transactions

    async def begin(self, args: dict[str, Any], progress: Progress) -> Any:
        """Make a fork for one command."""
        live = self._workspaces.get(args["workspace"])
        name = args.get("name") or self._free_name(live)
        shown = await self._make(live, name, None, progress, command=args["text"])
        if args.get("audit"):
            shown.tree.audit = Audit()
        try:
            with trio.CancelScope(shield=True):
                git = await trio.to_thread.run_sync(gitdirs.directories, self._shown.directory(live, shown.record))
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.Cancelled:  # nobody is there to run anything in it
            with trio.CancelScope(shield=True):
                await self._drop(live, shown.record)
            raise
        return {**self._told(live, shown), "git": git}

    def _free_name(self, live: LiveWorkspace) -> str:
        return f"run-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.urandom(2).hex()}"

    async def end(self, args: dict[str, Any], progress: Progress) -> Any:
        """The command of a transaction has ended: `commit` its writes, or not; `diff` asks for what it changed."""
        live = self._workspaces.get(args["workspace"])
        shown = self._shown.get(live, args["name"])
        result: dict[str, Any] = {"name": args["name"], "changes": [], "committed": False, "kept": False}
        if shown.tree.audit is not None:
            facts = _audited(shown.record, args["status"], shown.tree.audit)
            await trio.to_thread.run_sync(self._shown.keep_audit, live, args["name"], facts)
            shown.tree.audit = None  # what others do in a fork that is kept is no concern of it
        async with live.going_back, self._recording.reading():
            if args["commit"]:
                refusal = await self._commit(live, shown, result, progress)
                if refusal is not None:
                    await self._keep(shown, refusal)
                    result["refused"] = refusal
                    result["kept"] = True
                    return result
            elif args.get("diff"):
                state, reader = await self._merging.state_of(shown)
                before = shown.start
                result["changes"] = await trio.to_thread.run_sync(_changed, reader, state_at(before), state.state)
                result["patch"] = await trio.to_thread.run_sync(self._patch, reader, before.tree, state.state.tree)
            try:
                result["commits"] = await self._drop(live, shown.record)
            except ClivefsError as error:
                await self._keep(shown, error.message)
                result["refused"] = error.message
                result["kept"] = True
        return result

    async def _commit(
        self, live: LiveWorkspace, shown: ShownFork, result: dict[str, Any], progress: Progress
    ) -> str | None:
        """Commit what a transaction wrote, all at once; the reason where it is refused."""
        try:
            theirs, reader = await self._merging.whole_state(shown)
        except ClivefsError as error:
            return str(error)
        base = state_at(shown.start)
        result["ignored"] = [os.fsdecode(path) for path in theirs.ignored]
        for _ in range(ATTEMPTS_MAX):
            before = await self._recording.snapshot(live, tell=progress)
            both = await trio.to_thread.run_sync(_both_wrote, reader, base, state_at(before), theirs.state)
            if both:
                result["conflicts"] = [os.fsdecode(path) for path in both]
                return "others have written the same files meanwhile"
            plan = await trio.to_thread.run_sync(
                self._merging.plan, live, reader, shown.record.name, base, state_at(before), theirs.state
            )
            result["changes"] = listed(plan.changes)
            refused = self._merging.read_only(live, plan)
            if refused:
                result["conflicts"] = [os.fsdecode(path) for path, _ in refused]
                return refused[0][1]
            if not plan.puts:
                result["committed"] = True
                return None
            try:
                told = f"run: {shown.record.command}"
                await self._merging.apply(live, plan, reader, before, "command:run", told)
            except ChangedMeanwhile:
                continue
            except (ClivefsError, OSError) as error:
                return str(error)
            FAULTS.hit("run.applied")
            after = await self._recording.snapshot(live)
            result["committed"] = True
            result["after"] = point_facts(after)
            return None
        return "the live view is being written to all the time"

    async def _keep(self, shown: ShownFork, why: str) -> None:
        """A transaction that was refused stays, as a fork like any other."""
        old = shown.record
        new = replaced(old, kept=why)
        shown.record = new
        await trio.to_thread.run_sync(shown.forks.update, old, new)

    def _patch(self, reader: JoinedObjects, before: bytes, after: bytes) -> str:
        found = sorted(differences_at(reader, before, after, b""))
        patch = patch_of(with_content(reader, iter(found)), scratch_directory(self._store.path))
        return os.fsdecode(patch)


def _taken(name: str) -> ClivefsError:
    return ClivefsError(
        f"there is already a fork {name!r}", remedy=f"choose another name, or `clivefs fork --drop {name}`"
    )


def _audited(record: ForkRecord, status: int | None, audit: Audit) -> dict[str, Any]:
    return {"command": record.command, "status": status, **audit.describe()}


def _both_wrote(reader: JoinedObjects, base: State, ours: State, theirs: State) -> list[bytes]:
    mine = changes(reader, base, ours)
    return both_wrote(mine, changes(reader, base, theirs)) if mine else []


def _changed(reader: JoinedObjects, before: State, after: State) -> list[dict[str, str]]:
    return listed([(each.path, status_of(each)) for each in compare(reader, before, after)])
