"""Entries with patches follow their patch files: what is saved, added or removed is applied at once.

Each patched entry has one task, which looks at its patches whenever a watch says that they may have changed, and
applies them if they are others than those that are shown. However many saves there are while it is at work, it looks
once more at the end: what is shown last is the newest state. Where watches ran out it looks every second.
"""

from __future__ import annotations

import logging
import math
import time

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.ownwatch import OwnWatch, WatchedPlace, watched_places
from clivefs.mounts.patch.files import Series

log = logging.getLogger(__name__)

_SETTLE_S = 0.003
"""A save is several events."""
_WRITING_S = 0.1
"""How long the close of a file is waited for that is being written."""
_POLL_S = 1.0
_POLL_FACTOR = 10
"""Looking without watches takes at most one part in so many of the time."""
_RETRY_S = 10.0
_LOOKS_MAX = 5
_WATCHES_A_SPAN = 64


class PatchedEntries:
    """The patched entries of all workspaces. Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces, watcher: Watcher) -> None:
        self._workspaces = workspaces
        self._watcher = watcher
        self._entries: dict[tuple[LiveWorkspace, str], _PatchedEntry] = {}
        self._nursery: trio.Nursery | None = None

    async def keep(self) -> None:
        """Until cancelled: keep all entries as their patches say."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for each in self._entries.values():
                nursery.start_soon(each.keep)
            await trio.sleep_forever()

    def shown(self, live: LiveWorkspace) -> None:
        """Entries of *live* may have come, gone or changed."""
        there = self._workspaces.live.get(live.name) is live
        wanted = {path for path, mounted in live.entries.items() if mounted.is_patched} if there else set()
        for key in [key for key in self._entries if key[0] is live and key[1] not in wanted]:
            self._entries.pop(key).stop()
        for path in wanted:
            known = self._entries.get((live, path))
            if known is not None:
                known.ask(finished=True)
                continue
            made = self._entries[(live, path)] = _PatchedEntry(self._workspaces, self._watcher, live, path)
            if self._nursery is not None:
                self._nursery.start_soon(made.keep)

    def look_at_all(self) -> None:
        """Anything may have changed."""
        for each in self._entries.values():
            each.ask(finished=True)


class _PatchedEntry:
    """One of them."""

    def __init__(self, workspaces: Workspaces, watcher: Watcher, live: LiveWorkspace, path: str) -> None:
        self._workspaces = workspaces
        self._live = live
        self._path = path
        self._watch = OwnWatch(watcher, live.assembly.files, lambda finished: self.ask(finished=finished))
        self._scope = trio.CancelScope()
        self._asked = trio.Event()
        self._finished = trio.Event()
        self._look_again_s = math.inf
        self.ask(finished=True)

    def ask(self, *, finished: bool) -> None:
        """Look at the patches soon; unless it is *finished*, somebody is still writing one."""
        self._asked.set()
        if finished:
            self._finished.set()

    def stop(self) -> None:
        self._scope.cancel()
        self._watch.close()

    async def keep(self) -> None:
        with self._scope:
            while True:
                with trio.move_on_after(self._look_again_s):
                    await self._asked.wait()
                    with trio.move_on_after(_WRITING_S):
                        await self._finished.wait()
                    await trio.sleep(_SETTLE_S)
                self._asked = trio.Event()
                self._finished = trio.Event()
                try:
                    self._look_again_s = await self._look()
                except Exception:  # the mount goes on, whatever one patch does
                    log.exception("%s: applying the patches failed", self._path)
                    self._look_again_s = _RETRY_S

    def _mounted(self) -> Mounted | None:
        mounted = self._live.entries.get(self._path)
        return mounted if mounted is not None and mounted.is_patched else None

    async def _look(self) -> float:
        """Show the patches as they are now; after how many seconds to look again unasked."""
        mounted = self._mounted()
        if mounted is None:
            return math.inf
        begin = time.monotonic()
        series, watched = await self._read(mounted)
        again_s = math.inf if watched else max(_POLL_S, _POLL_FACTOR * (time.monotonic() - begin))
        if series.digest == mounted.series.digest:
            return again_s
        async with self._live.entry_lock(self._path):
            mounted = self._mounted()
            if mounted is None or series.digest == mounted.series.digest:
                return again_s
            return min(again_s, await self._apply(mounted))

    async def _read(self, mounted: Mounted) -> tuple[Series, bool]:
        """The patches, and whether a watch will tell of every change of them."""
        files = self._live.assembly.files

        def read() -> tuple[Series, dict[WatchedPlace, frozenset[bytes]]]:
            series = self._live.assembly.read_patches(mounted)
            return series, watched_places(files, series.looked or {})

        for _ in range(_LOOKS_MAX):
            series, places = await trio.to_thread.run_sync(read)
            fresh = self._watch.keep(places)
            for number, each in enumerate(fresh):
                if number % _WATCHES_A_SPAN == _WATCHES_A_SPAN - 1:
                    await trio.lowlevel.checkpoint()
                self._watch.add(each, places[each])
            if not fresh:
                return series, self._watch.complete
        return series, False  # the directories do not stand still

    async def _apply(self, mounted: Mounted) -> float:
        """Show *mounted* with its patches as they are; after how many seconds to look again unasked."""
        live = self._live
        try:
            prepared = await trio.to_thread.run_sync(live.assembly.repatch, mounted)
        except (ClivefsError, OSError) as error:
            mounted.error = str(error)
            return _RETRY_S
        if not await self._workspaces.wait_for(live, [prepared]):
            return math.inf
        if live.entries.get(self._path) is not mounted:
            prepared.discard()
            return 0.0
        self._workspaces.set_entry(live, prepared)
        shown = self._mounted()
        return math.inf if shown is not None and shown.series.digest == prepared.series.digest else _POLL_S
