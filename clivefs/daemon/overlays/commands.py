"""The commands about a user's edits: arguments of the control socket in, JSON values out."""

from __future__ import annotations

import base64
import os
from collections.abc import Callable
from typing import Any

import trio

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.daemon.control import Progress
from clivefs.daemon.overlays import reading, target
from clivefs.daemon.overlays.blaming import Blaming
from clivefs.daemon.overlays.committing import Committing
from clivefs.daemon.overlays.exporting import Exporting
from clivefs.daemon.overlays.moving import Moving
from clivefs.daemon.overlays.reading import all_changes, changed, delete_discarded, keep_for_forks, note_changes
from clivefs.daemon.overlays.rebasing import Rebasing
from clivefs.daemon.overlays.target import Target
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.edits import converting
from clivefs.mounts.edits.diff import Changed, patch_of, stat_of
from clivefs.mounts.lower import Lower

Say = Callable[[Progress], Callable[[str], None]]


class Overlays:
    """The user's edits over the sources of mounted workspaces."""

    def __init__(self, workspaces: Workspaces, say: Say) -> None:
        """*say* makes of a progress one that threads can call."""
        self._workspaces = workspaces
        self._say = say
        moves = Moving(workspaces)
        self._exporting = Exporting(workspaces, moves)
        self._rebasing = Rebasing(workspaces, moves)
        self._committing = Committing(workspaces)
        self._blaming = Blaming(workspaces)

    async def diff(self, args: dict[str, Any], progress: Progress) -> Any:
        """`{"patch": base64}`: the edits at or below a path as a git patch, relative to the entry. With `stat` the
        number of lines of each file instead. `ignored`: also what git ignores."""
        there = target.find(self._workspaces, args)
        found, lower = await self._changed(there)
        left_out: frozenset[bytes] = frozenset()
        if not args.get("ignored"):
            new = {each.path for each in found if each.after} - {each.path for each in found if each.before}
            git_dir = there.mounted.git_dir.path if there.mounted and there.mounted.git_dir else None
            left_out = await reading.left_out(there.tree, new, git_dir=git_dir, scratch=self._workspaces.scratch())
            found = [each for each in found if each.path not in left_out]
        scratch = self._workspaces.scratch()
        found = await trio.to_thread.run_sync(converting.stored_changes, lower, found, scratch)
        facts = {"path": there.path, "ignored": sorted(os.fsdecode(each) for each in left_out)}
        if args.get("stat"):
            files = await trio.to_thread.run_sync(stat_of, found, scratch)
            return {**facts, "files": [{**each._asdict(), "path": os.fsdecode(each.path)} for each in files]}
        patch = await trio.to_thread.run_sync(patch_of, found, scratch)
        return {**facts, "patch": base64.b64encode(patch).decode(), "files": len(found)}

    async def _changed(self, there: Target) -> tuple[list[Changed], Lower]:
        """What is changed at and below what *there* names, and over which layer."""
        while True:
            lower = there.tree.lower
            try:
                found = [each async for each in changed(there.tree, there.below)]
            except OSError:
                if lower is there.tree.lower:
                    raise
                continue
            if lower is there.tree.lower:  # else half of it may be against another release
                return found, lower

    async def reset(self, args: dict[str, Any], progress: Progress) -> Any:
        """Forget the edits of an entry, or of the given files of it."""
        there = target.find(self._workspaces, args)
        async with there.live.entry_lock(there.path):
            return await self._reset(target.anew(self._workspaces, there), args)

    async def _reset(self, there: Target, args: dict[str, Any]) -> Any:
        files = target.files_of(there, args.get("files") or ())
        paths = files or ([there.below] if there.below else None)
        touched = [
            change
            for change in await all_changes(there.tree)
            if paths is None or any(change.path == path or change.path.startswith(path + b"/") for path in paths)
        ]
        for path in files:
            if not any(each.path == path or each.path.startswith(path + b"/") for each in touched):
                raise ClivefsError("there is no edit of yours at this path", place=os.fsdecode(path))
        if not args.get("dry_run"):
            await keep_for_forks(there.tree, [each.path for each in touched if each.what != "deleted"])
            for affected in there.tree.reset_steps(paths):
                self._workspaces.caches.forget_names(affected)
                await trio.lowlevel.checkpoint()
            note_changes(there.tree)
            await self._workspaces.caches.settled()
            await delete_discarded(there.tree)
        return {
            "path": there.path,
            "files": [os.fsdecode(each.path) for each in touched],
            "changes": [{"path": os.fsdecode(each.path), "what": each.what} for each in touched],
            "dry_run": bool(args.get("dry_run")),
        }

    async def export(self, args: dict[str, Any], progress: Progress) -> Any:
        """Make the edits of an entry the patch `file` of it."""
        return await self._exporting.as_layer(
            target.find(self._workspaces, args),
            args["file"],
            self._say(progress),
            with_ignored=bool(args.get("ignored")),
            dry_run=bool(args.get("dry_run")),
        )

    async def commit(self, args: dict[str, Any], progress: Progress) -> Any:
        """Commit what an entry shows."""
        return await self._committing.commit(
            target.find(self._workspaces, args),
            args["message"],
            args.get("branch"),
            dict(args.get("environment") or {}),
            dry_run=bool(args.get("dry_run")),
        )

    async def rebase(self, args: dict[str, Any], progress: Progress) -> Any:
        """Move patches and edits onto `to`, or take that back with `abort`."""
        there = target.find(self._workspaces, args)
        dry_run = bool(args.get("dry_run"))
        if args.get("abort"):
            return await self._rebasing.abort(there, self._say(progress), dry_run=dry_run)
        if not args.get("to"):
            raise UsageError("onto what?", remedy="--to REF-or-VERSION, or --abort")
        return await self._rebasing.rebase(there, args["to"], self._say(progress), dry_run=dry_run)

    async def resolve(self, args: dict[str, Any], progress: Progress) -> Any:
        """Note that conflicts are solved."""
        there = target.find(self._workspaces, args)
        return await self._rebasing.resolve(
            there, args["files"], force=bool(args.get("force")), dry_run=bool(args.get("dry_run"))
        )

    async def blame(self, args: dict[str, Any], progress: Progress) -> Any:
        """Which layer files and lines come from."""
        return await self._blaming.blame(self._workspaces.get(args["workspace"]), args["path"])
