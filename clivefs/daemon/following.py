"""What makes a mounted workspace change by itself: a saved Clive.toml, and sources that move on."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import ownconfig
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.overlays.reading import delete_discarded
from clivefs.daemon.patched import PatchedEntries
from clivefs.daemon.recording import Recording
from clivefs.daemon.workspaces import FOLLOWED_FILES, Workspaces
from clivefs.mounts.assembly.entry import Mounted, Prepared, State
from clivefs.mounts.config import config, lockfile, trust
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.host.watch import Outside, Watcher
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.ownwatch import OwnWatch, watched_places

log = logging.getLogger(__name__)

_FETCH_LOOK_S = 0.5
_FETCH_RETRY_S = 30.0
_SETTLE_S = 2.0
"""How long an entry that is about to move waits for a point with what was before."""


class _Edit(NamedTuple):
    """A change of Clive.toml by a command."""

    old: str
    new: str
    origin: str
    """`command:NAME`."""
    message: str
    first: Callable[[], Awaitable[None]] | None = None
    """What else is changed, before it."""
    last: Callable[[], Awaitable[None]] | None = None
    """What else is changed of the file, after it."""


class Following:
    """Keeps the workspaces what their Clive.toml and their sources say. Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces, watcher: Watcher, recording: Recording) -> None:
        self._workspaces = workspaces
        self._recording = recording
        self.patched = PatchedEntries(workspaces, watcher)
        workspaces.on_shown = self._shown
        self._watcher = watcher
        self._edited: dict[LiveWorkspace, OwnWatch] = {}
        """What tells of edits of Clive.toml that are kept apart from the workspace's directory."""
        self._reloads: set[str] = set()
        self._reload_asked = trio.Event()

    def _shown(self, live: LiveWorkspace) -> None:
        """Entries of *live* may have come, gone or changed."""
        self.patched.shown(live)
        there = self._workspaces.live.get(live.name) is live
        if not there and live in self._edited:
            self._edited.pop(live).close()
        elif there and live.settings.write == "overlay" and live not in self._edited:
            watch = self._edited[live] = OwnWatch(
                self._watcher, live.assembly.files, lambda _: self._reload_soon(live.name)
            )
            places = watched_places(live.assembly.files, {b"": frozenset((ownconfig.NAME,))})
            for each in watch.keep(places):
                watch.add(each, places[each])
            self._reload_soon(live.name)

    def _reload_soon(self, name: str) -> None:
        self._reloads.add(name)
        self._reload_asked.set()

    def noticed(self, change: Outside) -> None:
        """A change outside; if it is of a workspace's Clive.toml or Clive.lock, they are read again soon."""
        if change.name is None or os.fsdecode(change.name) not in FOLLOWED_FILES:
            return
        for live in self._workspaces.live.values():
            if change.directory == live.directory:
                self._reload_soon(live.name)

    def reload_all(self) -> None:
        self._reloads.update(self._workspaces.live)
        self._reload_asked.set()
        self.patched.look_at_all()

    async def reload_when_asked(self) -> None:
        """Until cancelled: read each Clive.toml again that `noticed` told of."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            await trio.sleep(0.02)  # an editor's save is several events
            names, self._reloads = self._reloads, set()
            for name in names:
                live = self._workspaces.live.get(name)
                if live is None:
                    continue
                try:
                    await self.reload(live)
                except Exception:  # the mount goes on, whatever one file says
                    log.exception("reading %s again failed", live.settings.file)

    async def reload(self, live: LiveWorkspace, *, retry: bool = False) -> None:
        """Make what is mounted what Clive.toml and Clive.lock say. A broken file leaves everything as it is, and says
        so in `live.error`. With *retry*, entries that failed are tried again."""
        async with live.reloading:
            try:
                settings, locked = await trio.to_thread.run_sync(_load_again, live)
                check_stays(live, settings)
            except ClivefsError as error:
                if live.error != str(error):
                    log.warning("%s stays as it was: %s", live.name, error)
                live.error = str(error)
                return
            await self._take(live, settings, locked, retry=retry)

    async def edit(
        self,
        live: LiveWorkspace,
        old: str,
        new: str,
        *,
        retry: bool,
        origin: str,
        message: str,
        locked: lockfile.Lock | None = None,
        first: Callable[[], Awaitable[None]] | None = None,
        last: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """Let Clive.toml say *new* instead of *old*, and what is mounted be what it says: recorded as one point, which
        *origin* made. ClivefsError, and nothing changed, where the file is not *old* any more. *first* changes what
        belongs to the same point, *last* what is to be otherwise of the new file; *locked* is what Clive.lock says when
        *first* has been called."""

        def parse() -> tuple[Workspace, lockfile.Lock]:
            settings = config.parse(new, file=live.settings.file, root=live.root)
            return settings, ownconfig.read_lock(live) if locked is None else locked

        async with live.reloading:
            settings, lock = await trio.to_thread.run_sync(parse)
            check_stays(live, settings)
            try:
                await self._take(live, settings, lock, retry=retry, edit=_Edit(old, new, origin, message, first, last))
            except BaseException:
                self._reload_soon(live.name)  # what is in force is what is in the file
                raise

    async def _take(
        self, live: LiveWorkspace, settings: Workspace, locked: lockfile.Lock, *, retry: bool, edit: _Edit | None = None
    ) -> None:
        """Show what *settings* say, with *edit* once that is in the file. `live.reloading` is held."""
        refused = trust.not_allowed(settings, self._workspaces.trust, live.id)
        retry = self._workspaces.use(live.assembly, settings, locked) or retry
        changed = [entry for entry in settings.mounts if self._differs(live, entry, refused.get(entry.path), retry)]
        async with contextlib.AsyncExitStack() as alone:
            for entry in changed:
                await alone.enter_async_context(live.entry_lock(entry.path))
            prepared = await trio.to_thread.run_sync(
                lambda: [live.assembly.prepare(entry, refused.get(entry.path), _quiet) for entry in changed]
            )
            if not await self._workspaces.wait_for(live, prepared):
                return
            if edit is not None:
                try:
                    await alone.enter_async_context(self._recording.of(live).done_by(edit.origin, edit.message))
                    if edit.first is not None:
                        await edit.first()
                    if edit.new != edit.old:
                        await trio.to_thread.run_sync(ownconfig.save, live, edit.old, edit.new)
                    if edit.last is not None:
                        await edit.last()
                except BaseException:
                    for each in prepared:
                        each.discard()
                    raise
            await alone.enter_async_context(live.changing)
            if not await self._workspaces.wait_for(live, prepared):
                return
            self._workspaces.apply(live, settings, prepared)
            live.error = None

    @staticmethod
    def _differs(live: LiveWorkspace, entry: MountEntry, refusal: str | None, retry: bool) -> bool:
        mounted = live.entries.get(entry.path)
        if mounted is None or not mounted.same_as(entry):
            return True
        pin = live.assembly.pin(entry)
        if not mounted.is_as(pin):
            return True
        mounted.locked = pin
        if (mounted.state == State.NOT_ALLOWED) != (refusal is not None):
            return True
        return retry and mounted.state == State.ERROR

    async def follow(self) -> None:
        """Move entries whose source has moved on, and try again those whose source could not be had."""
        for live in list(self._workspaces.live.values()):
            due = [mounted for mounted in live.entries.values() if mounted.due()]
            for mounted in due:
                path = mounted.entry.path
                async with live.entry_lock(path):
                    if live.entries.get(path) is not mounted:
                        continue
                    prepared = await trio.to_thread.run_sync(live.assembly.look_again, mounted)
                    if prepared is None:
                        continue
                    before = await self._point_before(live) if mounted.entry.follow else None
                    await trio.to_thread.run_sync(live.assembly.look_over, prepared)
                    async with live.changing:
                        if not await self._workspaces.wait_for(live, [prepared]):
                            continue
                        if live.entries.get(path) is mounted:
                            self._move(live, mounted, prepared, before)
                        else:
                            prepared.discard()

    async def _point_before(self, live: LiveWorkspace) -> bytes | None:
        """A point with all that was changed until now, if there can be one soon."""
        head = self._recording.head_of(live)
        if head is not None and self._recording.of(live).unrecorded() == set():
            return head.oid
        if head is not None:
            with trio.move_on_after(_SETTLE_S), contextlib.suppress(ClivefsError):
                return (await self._recording.snapshot(live, needed=())).oid
        return None

    def _move(self, live: LiveWorkspace, mounted: Mounted, prepared: Prepared, before: bytes | None) -> None:
        """Show what *mounted* has become, in a point of its own where *before* is still the newest."""
        path = mounted.entry.path
        recording = self._recording.of(live) if before is not None and self._recording.head_of(live) else None
        alone = recording is not None and before is not None and recording.is_still(before, {os.fsencode(path)})
        self._workspaces.set_entry(live, prepared)
        self.patched.shown(live)
        old, new = mounted.resolved, live.entries[path].resolved
        if recording is not None and alone and old is not None and new is not None and new.tree != old.tree:
            recording.expect("command:follow", f"{path} follows {new.ref} to {new.commit.hex()[:12]}")

    async def fetch_in_background(self) -> None:
        """Until cancelled: delete the copies that covered what sources have moved on to, make the store own what
        entries show of local repositories, and get the blobs of entries that want all of them (`blobs = "all"`), one
        entry at a time."""
        while True:
            for live in list(self._workspaces.live.values()):
                for mounted in list(live.entries.values()):
                    if isinstance(mounted.tree, OverlayTree):
                        try:
                            await delete_discarded(mounted.tree)
                        except OSError:  # it stays in the way of nobody, and goes at the next mount
                            log.exception("%s: what was taken away could not be deleted", mounted.entry.path)
                    if mounted.wants_keeping():
                        await trio.to_thread.run_sync(mounted.keep, abandon_on_cancel=True)
            waiting = [
                mounted
                for live in self._workspaces.live.values()
                for mounted in live.entries.values()
                if mounted.wants_blobs(trio.current_time())
            ]
            for mounted in waiting:
                await trio.to_thread.run_sync(mounted.fetch_blobs, abandon_on_cancel=True)
                if not mounted.has_blobs:
                    mounted.fetch_again_at = trio.current_time() + _FETCH_RETRY_S
            await trio.sleep(_FETCH_LOOK_S)


def check_stays(live: LiveWorkspace, settings: Workspace) -> None:
    """ClivefsError where *settings* change what stays as it is while the workspace is mounted."""
    if settings.name != live.name:
        raise ClivefsError(
            f"the workspace is mounted as {live.name}",
            place=settings.file,
            remedy="`clivefs unmount` and mount it again to rename it",
        )
    if settings.write != live.settings.write:
        raise ClivefsError(
            "the write mode of a workspace changes only when it is mounted anew",
            place=settings.file,
            remedy="write it in the workspace's own directory, then `clivefs unmount` and `clivefs mount`",
        )


def _load_again(live: LiveWorkspace) -> tuple[Workspace, lockfile.Lock]:
    """The workspace as its Clive.toml has it now, and what its Clive.lock pins."""
    return ownconfig.load(live), ownconfig.read_lock(live)


def _quiet(_: str) -> None:
    return None
