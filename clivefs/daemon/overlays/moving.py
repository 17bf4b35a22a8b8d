"""Letting an overlay stand on another tree and show what was planned, with the files that say so; and back.

The order of a move: its record and the upper as it was (`journal.begin`); the patch files, Clive.toml and the kept
times; the entry prepared as these say; then it is shown; at last the record goes, or keeps the conflicts. Until then a
crash, and any failure, takes everything back. Who calls holds the locks of `alone`.

Showing it takes as long as there are files: it is done in spans of the loop while the tree stands still, so nobody sees
half of it, no point has half of it, and nothing can be written that taking it back would lose.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import logging
import os
import stat
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from dataclasses import dataclass, field

import msgspec
import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import AT_FDCWD, RENAME_EXCHANGE, rename_at
from clivefs.daemon import ownconfig
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.overlays.reading import delete_discarded, keep_for_forks, note_changes
from clivefs.daemon.overlays.spans import in_spans, nothing, standing_still
from clivefs.daemon.overlays.target import Based, Target
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import Prepared, State
from clivefs.mounts.config import config
from clivefs.mounts.config import file as config_file
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.edits import converting, journal, still, takeback, workingtree
from clivefs.mounts.edits.diff import Version
from clivefs.mounts.edits.journal import Rebase
from clivefs.mounts.edits.making import Maker
from clivefs.mounts.edits.ownpatches import own_files
from clivefs.mounts.edits.plan import RebasePlan, Write
from clivefs.mounts.edits.still import Look
from clivefs.mounts.edits.write import carry_out, keep_times
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.overlay.edits import Affected
from clivefs.mounts.ownfiles import TreeFiles
from clivefs.mounts.tree import Blocked, Node

log = logging.getLogger(__name__)

ATTEMPTS_MAX = 50
_SETTLE_S = 0.03
_TIMES = "times"
_WAITS_MAX = 1000
_NAMES_A_SPAN = 100
_CONTENTS_BYTES_MAX = 64 << 20


class WrittenMeanwhile(Exception):
    """Somebody has written to the overlay: plan again."""


@dataclass
class Step:
    """A move that was planned."""

    based: Based
    record: Rebase
    """As it is begun."""
    after: Rebase
    """As it is when it is shown: unsolved, or over."""
    entry: MountEntry
    plan: RebasePlan
    reader: Reader | JoinedObjects
    seen: Look
    """The upper that was planned for."""
    mismatch: str
    """What is wrong where the files that were written do not make the planned tree."""
    times_ns: Mapping[bytes, int] = field(default_factory=dict)
    """Of paths that go from the upper to the lower with the content that they have."""
    at_last: Callable[[RebasePlan], Generator[None, None, RebasePlan]] | None = None
    """Has the last word on the plan when nobody can write any more."""


@contextlib.asynccontextmanager
async def alone(live: LiveWorkspace, path: str) -> AsyncIterator[None]:
    """Nobody else changes Clive.toml, or what is shown at *path*."""
    async with live.reloading, live.entry_lock(path):
        yield


class Moving:
    """Carries out steps. Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces
        self._store = workspaces.store

    async def settled_look(self, there: Target) -> Look:
        """The upper as it is now, at a moment when nobody is writing. ClivefsError if there is none such."""
        for _ in range(ATTEMPTS_MAX):
            idle = not there.tree.standstill.writing  # a write has its time from when it began
            seen = await trio.to_thread.run_sync(still.look, there.upper)
            if idle and seen.settled:
                return seen
            await trio.sleep(_SETTLE_S)
        raise ClivefsError(
            "it is being written to all the time", place=there.path, remedy="Stop what writes there first."
        )

    def kept_times(self, based: Based) -> str | None:
        """The entry's times as they are kept, for `Rebase.times`."""
        try:
            with open(os.path.join(self._directory(based, based.mounted.entry), _TIMES), "rb") as file:
                return base64.b64encode(file.read()).decode()
        except FileNotFoundError:
            return None

    def _directory(self, based: Based, entry: MountEntry) -> str:
        places = based.target.live.assembly.surroundings()
        return places.entry_directory(places.upper_name(entry))

    # Forth

    async def carry(self, step: Step, progress: Callable[[str], None]) -> None:
        """Do *step*. WrittenMeanwhile, or what went wrong: everything is as before then."""
        store, record = self._store, step.record
        await trio.to_thread.run_sync(takeback.end_moving, self._uppers(step), record.uppers)
        await trio.to_thread.run_sync(journal.begin, store, record, step.based.target.upper)
        maker = Maker(step.based.target.upper, self._workspaces.owner)
        try:
            await self._carry(step, maker, progress)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(maker.close)

    async def _carry(self, step: Step, maker: Maker, progress: Callable[[str], None]) -> None:
        record = step.record
        try:
            prepared = await trio.to_thread.run_sync(self._write, step, progress)
            try:
                contents = await trio.to_thread.run_sync(self._make, step, prepared, maker)
                assert prepared.git_lower is not None
                await trio.to_thread.run_sync(_warm, prepared.git_lower, step.plan)
                await self._ready(step, prepared)
            except BaseException:
                prepared.discard()
                raise
        except BaseException:
            await self._undo(step, shown=False)
            raise
        plan, tree = step.plan, step.based.target.tree
        await keep_for_forks(tree, (*plan.resets, *plan.whiteouts, *(each.path for each in plan.writes)))
        # Points are made of what is on disk, which is half done meanwhile.
        live = step.based.target.live
        async with live.recording_now, standing_still(tree):
            affected = await self._move(step, prepared, maker, contents)
            await trio.to_thread.run_sync(takeback.end_moving, self._uppers(step), record.uppers)
            for at in range(0, len(affected), _NAMES_A_SPAN):  # while all wait: else some names would be old, some new
                self._workspaces.caches.forget_names(affected[at : at + _NAMES_A_SPAN])
                await trio.lowlevel.checkpoint()
        self._workspaces.on_shown(live)
        await self._workspaces.caches.settled()
        await delete_discarded(tree)

    async def _move(self, step: Step, prepared: Prepared, maker: Maker, contents: dict[Write, bytes]) -> list[Affected]:
        """Show it, and note that; the names that the kernel must forget. The tree stands still."""
        shown = False
        try:
            try:
                plan = await self._agreed(step, prepared)
            except BaseException:
                prepared.discard()
                raise
            shown = True
            affected = await self._show(step, plan, prepared, maker, contents)
            FAULTS.hit("rebase.shown")
            note_changes(step.based.target.tree)
            await trio.to_thread.run_sync(journal.update, self._store, step.after)
        except BaseException:
            await self._undo(step, shown=shown)
            raise
        FAULTS.hit("rebase.noted")
        return affected

    def _write(self, step: Step, progress: Callable[[str], None]) -> Prepared:
        """Write the files, and prepare what they say. For threads."""
        live, record = step.based.target.live, step.record
        own = own_files(live.assembly.files, live.root)
        for change in record.patches:
            own.write(change.path, change.new)
            FAULTS.hit("rebase.patch")
        before, after = record.toml
        if before != after:
            parsed = config.parse(after, file=live.settings.file, root=live.root)
            self._workspaces.allow(live, parsed, only=[record.path])
            own.save_config(before, after)
        trio.from_thread.run_sync(self._tell_own, live, record)
        FAULTS.hit("rebase.config")
        self._write_times(step)
        prepared = live.assembly.prepare(step.entry, None, progress, over_edits=True)
        lower = prepared.git_lower
        if prepared.state is not State.MOUNTED or lower is None:
            prepared.discard()
            raise ClivefsError(prepared.error or "it cannot be mounted", place=record.path)
        if prepared.error is not None or lower.root.entry.oid != step.plan.lower:
            prepared.discard()
            raise ClivefsError(step.mismatch, place=record.path)
        FAULTS.hit("rebase.prepared")
        return prepared

    def _write_times(self, step: Step) -> None:
        """Keep the times of what does not change, in the directory that the entry has afterwards."""
        based = step.based
        directory = self._directory(based, step.entry)
        if step.record.times is not None:
            write_whole(os.path.join(directory, _TIMES), base64.b64decode(step.record.times))
        first_ns = based.lower.root.space.commit_time_ns
        times = GitTimes.read(directory).at(step.reader, step.plan.lower, first_ns, time.time_ns())
        times.keep(step.times_ns)
        times.stage()
        times.commit()

    def _make(self, step: Step, prepared: Prepared, maker: Maker) -> dict[Write, bytes]:
        """Have *maker* make what is to be written, as it is to be shown; the content of what it does not make, as far
        as memory allows. For threads."""
        kept: dict[Write, bytes] = {}
        kept_bytes = 0
        left = [*step.plan.aside, *step.plan.writes]
        while left:
            contents: dict[Write, bytes] = {}
            size = 0
            while left and size < _CONTENTS_BYTES_MAX:
                write = left.pop()
                contents[write] = blob_content(step.reader, write.version.oid)
                size += len(contents[write])
            for write, content in self._checked_out(step, prepared, contents).items():
                made = maker.make(write.path, Version(write.version.mode, content))
                if made is None and kept_bytes < _CONTENTS_BYTES_MAX:
                    kept[write] = content
                    kept_bytes += len(content)
        return kept

    def _content(self, step: Step, prepared: Prepared, write: Write) -> bytes:
        """For threads."""
        return self._checked_out(step, prepared, {write: blob_content(step.reader, write.version.oid)})[write]

    def _checked_out(self, step: Step, prepared: Prepared, contents: dict[Write, bytes]) -> dict[Write, bytes]:
        assert prepared.git_lower is not None
        return converting.checked_out(prepared.git_lower, contents, step.plan.beside, self._workspaces.scratch())

    async def _agreed(self, step: Step, prepared: Prepared) -> RebasePlan:
        """The plan, when nobody has written since the upper was kept. The tree stands still.

        Where the plan concerns nothing it may have been written: the upper is kept anew then. WrittenMeanwhile.
        """
        upper, kept = step.based.target.upper, step.seen
        for _ in range(ATTEMPTS_MAX):
            await self._ready(step, prepared)
            now = await trio.to_thread.run_sync(still.look, upper)
            if now.same_as(kept):
                written = now.written(step.seen)
                return dataclasses.replace(step.plan, kept=step.plan.kept | written)
            if now.marks != step.seen.marks or still.touches(now.written(step.seen), step.plan.concerned):
                break
            kept = await self.settled_look(step.based.target)
            await trio.to_thread.run_sync(journal.save_again, self._store, step.record, upper)
        raise WrittenMeanwhile

    def _uppers(self, step: Step) -> str:
        return os.path.dirname(self._directory(step.based, step.entry))

    async def _ready(self, step: Step, prepared: Prepared) -> None:
        """Wait for all that showing it would have to wait for."""
        lower, tree, live = prepared.git_lower, step.based.target.tree, step.based.target.live
        assert lower is not None
        while True:
            if self._workspaces.live.get(live.name) is not live:
                raise ClivefsError("the workspace has left meanwhile", place=step.record.path)
            if step.based.mounted is not live.entries.get(step.record.path):
                raise ClivefsError("the entry has changed meanwhile", place=step.record.path, remedy="Run it again.")
            try:
                tree.check_lower(lower)
                if prepared.git_dir is not None:
                    lower.child(lower.root, b".git")
            except Blocked as blocked:
                await trio.to_thread.run_sync(blocked.job)
            else:
                return

    async def _show(
        self, step: Step, plan: RebasePlan, prepared: Prepared, maker: Maker, contents: dict[Write, bytes]
    ) -> list[Affected]:
        tree = step.based.target.tree
        if step.at_last is not None:
            at_last = step.at_last
            plan = await in_spans(tree, lambda: at_last(plan), nothing)
        await trio.to_thread.run_sync(takeback.begin_moving, self._uppers(step), step.record.uppers[0])
        with tree.standstill.at_work():
            self._lower(step, prepared)
        affected: list[Affected] = []

        async def answer(told: list[Affected] | Write) -> bytes | None:
            if not isinstance(told, Write):
                affected.extend(told)
                return None
            content = contents.pop(told, None)
            return (
                content if content is not None else await trio.to_thread.run_sync(self._content, step, prepared, told)
            )

        await in_spans(tree, lambda: carry_out(tree, plan, step.reader, self._workspaces.owner, maker.take), answer)
        await in_spans(tree, lambda: keep_times(tree, step.times_ns), nothing)
        return affected

    def _lower(self, step: Step, prepared: Prepared) -> None:
        """Let the tree stand on the other lower. One span."""
        live = step.based.target.live
        before, after = step.record.uppers
        if before != after:
            _rename_upper(live, before, after)
            step.based.mounted.entry = step.entry  # the tree is that of the new entry from here on
        FAULTS.hit("rebase.renamed")
        self._workspaces.set_entry(live, prepared)
        _note(live, step.entry)
        mounted = live.entries[step.record.path]
        if mounted.tree is not step.based.target.tree or mounted.state is not State.MOUNTED:
            raise ClivefsError(mounted.error or "it cannot be shown", place=step.record.path)
        FAULTS.hit("rebase.lowered")

    # Back

    async def _undo(self, step: Step, *, shown: bool) -> None:
        """Everything as it was before *step*, after a failure."""
        record, live = step.record, step.based.target.live
        try:
            with trio.CancelScope(shield=True):
                if shown:
                    await self.back(live, record, _silent)
                    return
                await trio.to_thread.run_sync(self._restore_files, live, record)
                if record.times is not None:
                    kept = os.path.join(self._directory(step.based, step.based.mounted.entry), _TIMES)
                    await trio.to_thread.run_sync(write_whole, kept, base64.b64decode(record.times))
                await trio.to_thread.run_sync(journal.end, self._store, record.entry)
        except (ClivefsError, OSError) as error:
            log.error("%s: taking back what failed failed too; the next mount does it: %s", record.path, error)

    def _restore_files(self, live: LiveWorkspace, record: Rebase) -> list[str]:
        """For threads."""
        try:
            return takeback.restore_files(record, own_files(live.assembly.files, live.root))
        finally:
            trio.from_thread.run_sync(self._tell_own, live, record)

    def _tell_own(self, live: LiveWorkspace, record: Rebase) -> None:
        """The kernel and who records are told of the workspace's own files that may be others now. Where these are
        written through, the watcher does."""
        if not isinstance(live.assembly.files, TreeFiles):
            return
        for path in (config_file.FILE_NAME, *(change.path for change in record.patches)):
            node: Node | None = live.root_tree.root
            for name in os.fsencode(path).split(b"/"):
                if node is None:
                    break
                self._workspaces.caches.forget_names([(node, name, None)])
                if live.root_tree.journal is not None:
                    live.root_tree.journal.name(node, name)
                node = (node.children or {}).get(name)

    async def back(self, live: LiveWorkspace, record: Rebase, progress: Callable[[str], None]) -> list[str]:
        """Everything as it was before *record*; the names under which patch files are kept that the user has changed
        since. The tree stands still, and is another afterwards."""
        store = self._store
        await trio.to_thread.run_sync(journal.update, store, takeback.abandoned(record))
        FAULTS.hit("rebase.aborting")
        places = live.assembly.surroundings()
        directory = places.entry_directory(record.uppers[0])

        def restore() -> tuple[list[str], Prepared]:
            kept = self._restore_files(live, record)
            FAULTS.hit("rebase.files-back")
            if record.git is not None:
                workingtree.back(record.git)
            if record.times is not None:
                write_whole(os.path.join(directory, _TIMES), base64.b64decode(record.times))
            parsed = ownconfig.load(live)
            entry = parsed.entry(record.path)
            if entry is None:
                raise ClivefsError("the entry has left Clive.toml", place=record.path)
            self._workspaces.allow(live, parsed, only=[record.path])
            return kept, live.assembly.prepare(entry, None, progress)

        kept, prepared = await trio.to_thread.run_sync(restore)
        uppers = os.path.dirname(directory)
        uppers_fd = takeback.open_uppers(uppers)
        try:
            await trio.to_thread.run_sync(takeback.rebuild_upper, store, record, uppers, uppers_fd)
            if await self._workspaces.wait_for(live, [prepared]):
                # One span: the old upper, and the tree over it.
                takeback.exchange_upper(record, uppers_fd)
                self._workspaces.set_entry(live, prepared, fresh=True)
                _note(live, prepared.entry)
                FAULTS.hit("rebase.shown-back")
                await trio.to_thread.run_sync(takeback.throw_away_uppers, record, uppers_fd)
                await trio.to_thread.run_sync(journal.end, store, record.entry)
        finally:
            os.close(uppers_fd)
        self._workspaces.on_shown(live)
        await self._workspaces.caches.settled()
        return kept


def _note(live: LiveWorkspace, entry: MountEntry) -> None:
    """*entry* is what its path shows now."""
    mounts = tuple(entry if each.path == entry.path else each for each in live.settings.mounts)
    live.settings = msgspec.structs.replace(live.settings, mounts=mounts)


def _rename_upper(live: LiveWorkspace, before: str, after: str) -> None:
    """Let the upper *before* be called *after*: it goes with the entry, which has another source now. Whoever has it
    open does not notice."""
    places = live.assembly.surroundings()
    old, new = places.entry_directory(before), places.entry_directory(after)
    for name in (_TIMES, _TIMES + ".new"):  # those of the new source, which have been made there
        with contextlib.suppress(FileNotFoundError):
            os.rename(os.path.join(new, name), os.path.join(old, name))
    rename_at(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), RENAME_EXCHANGE)


def _warm(lower: GitLower, plan: RebasePlan) -> None:
    """Get everything that `carry_out` looks at in the lower layer. For threads."""
    for path in {*plan.expected, *(write.path for write in plan.writes), *plan.whiteouts, *plan.resets}:
        for _ in range(_WAITS_MAX):
            try:
                ref = lower.find(path) if path else None
                if ref is not None and ref.kind == stat.S_IFREG:
                    lower.attr(ref, fetch=True)
                    lower.open(ref).close()
            except Blocked as blocked:
                blocked.job()
            except OSError:
                break  # who shows it says what is wrong
            else:
                break


def _silent(_: str) -> None:
    return None
