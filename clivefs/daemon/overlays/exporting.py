"""`overlay export --as-layer`: the edits become a patch of the entry. What is shown stays the same."""

from __future__ import annotations

import dataclasses
import glob
import os
from collections.abc import Callable, Generator
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import ownconfig
from clivefs.daemon.overlays import reading, target
from clivefs.daemon.overlays.moving import ATTEMPTS_MAX, Moving, Step, WrittenMeanwhile, alone
from clivefs.daemon.overlays.reading import Edits
from clivefs.daemon.overlays.spans import in_spans, nothing
from clivefs.daemon.overlays.target import Based, Target
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.config import config
from clivefs.mounts.config.patches import add_pattern
from clivefs.mounts.edits import converting, journal
from clivefs.mounts.edits.converting import is_rules
from clivefs.mounts.edits.journal import PatchChange, Rebase
from clivefs.mounts.edits.layering import Goes, goes, names_it, plan_layer
from clivefs.mounts.edits.ownpatches import own_files
from clivefs.mounts.edits.plan import RebasePlan
from clivefs.mounts.edits.still import UNSEEN
from clivefs.mounts.git.joined import JoinedObjects

_MISMATCH = (
    "with this name the patch would not be applied after the others of `patches`; choose one that sorts after them"
)


class Exporting:
    """Makes layers of edits. Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces, moves: Moving) -> None:
        self._workspaces = workspaces
        self._moving = moves

    async def as_layer(
        self, there: Target, file: str, progress: Callable[[str], None], *, with_ignored: bool, dry_run: bool
    ) -> dict[str, Any]:
        """Write the edits of an entry to the patch *file* (relative to the workspace), make it the last of the entry's
        `patches`, and forget them. What git ignores stays an edit, unless *with_ignored*."""
        target.based(there, "--as-layer")
        target.whole_entry(there, "--as-layer")
        live, path = there.live, there.path
        async with alone(live, path):
            based = target.based(target.anew(self._workspaces, there), "--as-layer")
            await trio.to_thread.run_sync(_check_file, based, file)
            if journal.load(self._workspaces.store, journal.key(live.id, path)) is not None:
                raise ClivefsError(
                    "a rebase of it is under way", place=path, remedy="finish it first, or take it back with --abort"
                )
            for _ in range(ATTEMPTS_MAX):
                seen = await self._moving.settled_look(based.target)
                edits = await reading.edits(based.target.tree, self._workspaces.scratch())
                left_out = frozenset[bytes]() if with_ignored else await self._left_out(based, edits)
                edits = edits.without(left_out)
                unfaithful = await self._unfaithful(based, edits)
                edits = edits.without(frozenset(path for path in unfaithful if is_rules(path)))
                ignored = [os.fsdecode(each) for each in sorted(left_out)]
                if not edits.files:
                    return {"path": path, "file": None, "files": [], "stay": [], "ignored": ignored, "dry_run": dry_run}
                layer = await trio.to_thread.run_sync(
                    lambda files: plan_layer(
                        self._reader(based),
                        self._workspaces.store,
                        lower=based.patched,
                        edits=files,
                        name=file,
                        scratch=self._workspaces.scratch(),
                    ),
                    edits.files,
                )
                what = await self._goes(based, edits.kept | unfaithful)
                result = {
                    "path": path,
                    "file": file,
                    "files": [os.fsdecode(each) for each in sorted(edits.files)],
                    "stay": [os.fsdecode(each) for each in what.stays if each not in left_out],
                    "ignored": ignored,
                    "dry_run": dry_run,
                }
                if dry_run:
                    return result
                if not layer.patch:
                    raise ClivefsError("none of these edits is one that a patch can hold", place=path)
                step = await trio.to_thread.run_sync(self._step, based, file, layer.patch, layer.plan)
                step.seen, step.times_ns = seen, what.times_ns
                step.plan = dataclasses.replace(step.plan, kept=edits.kept | unfaithful)
                step.at_last = lambda plan: self._plan(based, plan)
                try:
                    await self._moving.carry(step, progress)
                except WrittenMeanwhile:
                    continue
                return result
        raise ClivefsError("it is being written to all the time", place=path, remedy="stop what writes there first")

    async def _left_out(self, based: Based, edits: Edits) -> frozenset[bytes]:
        lower, git_dir = based.lower, based.mounted.git_dir
        new = [path for path, file in edits.files.items() if file is not None and lower.find(path) is None]
        return await reading.left_out(
            based.target.tree, new, git_dir=git_dir.path if git_dir else None, scratch=self._workspaces.scratch()
        )

    async def _unfaithful(self, based: Based, edits: Edits) -> frozenset[bytes]:
        """Edits that the layer below would show otherwise, by `.gitattributes`: they stay, also where the patch has
        them."""
        scratch, shown = self._workspaces.scratch(), edits.shown
        return await trio.to_thread.run_sync(
            lambda: converting.unfaithful(
                based.lower, {path: shown[path] for path in edits.files}, edits.files, scratch
            )
        )

    def _reader(self, based: Based) -> JoinedObjects:
        """The objects of what is shown, and those that are made of it."""
        return JoinedObjects((self._workspaces.store, based.reader), self._workspaces.scratch())

    async def _goes(self, based: Based, kept: frozenset[bytes]) -> Goes:
        tree, owner = based.target.tree, self._workspaces.owner
        return await in_spans(tree, lambda: goes(tree, owner, kept), nothing)

    def _plan(self, based: Based, plan: RebasePlan) -> Generator[None, None, RebasePlan]:
        """What can go now, while the tree stands still: a file may have been opened meanwhile."""
        what = yield from goes(based.target.tree, self._workspaces.owner, plan.kept)
        return dataclasses.replace(plan, resets=what.resets)

    def _step(self, based: Based, file: str, patch: bytes, plan: RebasePlan) -> Step:
        """For threads: reads Clive.toml."""
        live, entry = based.target.live, based.mounted.entry
        before = ownconfig.read_text(live)
        after = before
        if not names_it(entry.patches, file):
            after = add_pattern(before, entry.path, glob.escape(file), file=live.settings.file)
        new = config.parse(after, file=live.settings.file, root=live.root).entry(entry.path)
        assert new is not None
        name = live.assembly.surroundings().upper_name(entry)
        record = Rebase(
            entry=journal.key(live.id, entry.path),
            before=entry.source,
            after=entry.source,
            state=journal.STARTED,
            patches=(PatchChange.of(file, None, patch),),
            path=entry.path,
            uppers=(name, name),
            toml=(before, after),
            times=self._moving.kept_times(based),
        )
        over = dataclasses.replace(record, state=journal.UNSOLVED)
        return Step(based, record, over, new, plan, self._reader(based), UNSEEN, _MISMATCH)


def _check_file(based: Based, file: str) -> None:
    live = based.target.live
    if target.enclosing(live, file) is not None:
        raise ClivefsError(
            "the patch would lie in a mount entry", place=file, remedy="name a file of the workspace's own directory"
        )
    if own_files(live.assembly.files, live.root).read(file) is not None:
        raise ClivefsError("there is such a file already", place=file, remedy="choose another name")
    if based.mounted.error is not None or based.mounted.series.error is not None:
        raise ClivefsError(
            f"not all patches of it are applied: {based.mounted.error or based.mounted.series.error}",
            place=based.target.path,
            remedy="mend them first, `clivefs status` names the first that does not apply",
        )
