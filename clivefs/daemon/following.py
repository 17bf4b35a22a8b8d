"""What makes a mounted workspace change by itself: a saved Clive.toml, and sources that move on."""

from __future__ import annotations

import logging
import os

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import State
from clivefs.mounts.config import config, trust
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.host.watch import Outside

log = logging.getLogger(__name__)

_FETCH_LOOK_S = 0.5
_FETCH_RETRY_S = 30.0


class Following:
    """Keeps the workspaces what their Clive.toml and their sources say. Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces
        self._reloads: set[str] = set()
        self._reload_asked = trio.Event()

    def noticed(self, change: Outside) -> None:
        """A change outside; if it is of a workspace's Clive.toml, it is read again soon."""
        if change.name != config.FILE_NAME.encode():
            return
        for live in self._workspaces.live.values():
            if change.directory == live.directory:
                self._reloads.add(live.name)
                self._reload_asked.set()

    def reload_all(self) -> None:
        self._reloads.update(self._workspaces.live)
        self._reload_asked.set()

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
        """Make what is mounted what Clive.toml says. A broken file leaves everything as it is, and says so
        in `live.error`. With *retry*, entries that failed are tried again."""
        async with live.reloading:
            try:
                settings = await trio.to_thread.run_sync(_load_again, live)
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
                        remedy="`clivefs unmount` and `clivefs mount`",
                    )
            except ClivefsError as error:
                if live.error != str(error):
                    log.warning("%s stays as it was: %s", live.name, error)
                live.error = str(error)
                return
            refused = trust.not_allowed(settings, self._workspaces.trust, live.id)
            changed = [entry for entry in settings.mounts if self._differs(live, entry, refused.get(entry.path), retry)]
            prepared = await trio.to_thread.run_sync(
                lambda: [live.assembly.prepare(entry, refused.get(entry.path), _quiet) for entry in changed]
            )
            if await self._workspaces.wait_for(live, prepared):
                self._workspaces.apply(live, settings, prepared)
                live.error = None

    @staticmethod
    def _differs(live: LiveWorkspace, entry: MountEntry, refusal: str | None, retry: bool) -> bool:
        mounted = live.entries.get(entry.path)
        if mounted is None or not mounted.same_as(entry):
            return True
        if (mounted.state == State.NOT_ALLOWED) != (refusal is not None):
            return True
        return retry and mounted.state == State.ERROR

    async def follow(self) -> None:
        """Move entries whose source has moved on, and try again those whose source could not be had."""
        for live in list(self._workspaces.live.values()):
            due = [mounted for mounted in live.entries.values() if mounted.due()]
            if not due:
                continue
            async with live.reloading:
                for mounted in due:
                    entry = mounted.entry
                    prepared = await trio.to_thread.run_sync(live.assembly.look_again, mounted)
                    if prepared is None or not await self._workspaces.wait_for(live, [prepared]):
                        continue
                    if live.entries.get(entry.path) is mounted:
                        self._workspaces.set_entry(live, prepared)
                    else:
                        prepared.discard()

    async def fetch_in_background(self) -> None:
        """Until cancelled: get the blobs of entries that want all of them (`blobs = "all"`), one entry at a time."""
        while True:
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


def _load_again(live: LiveWorkspace) -> Workspace:
    """The workspace as its Clive.toml has it now. An empty file is one that somebody is about to write."""
    file = os.path.join(live.root, config.FILE_NAME)
    settings = config.load(file, root=live.root)
    if live.entries and not settings.mounts and os.path.getsize(file) == 0:
        raise ClivefsError("the file is empty", place=file, remedy="`clivefs detach` takes mount entries away")
    return settings


def _quiet(_: str) -> None:
    return None
