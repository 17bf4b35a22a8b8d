"""Recording one workspace: from changed paths to points, quickly and without holding anybody up.

    a change    `noticing`: the view notes it in the tree's journal, or an inotify descriptor tells of it
    quiet       after 25 ms without another, at most 250 ms after the first, whatever is dirty is taken
    record      `pointmaking`, in a thread: fresh looks, hashes, trees, and all of it published in one transaction
    afterwards  `largefiles`: what would have held up the others is read aside, and recorded when it has been

Invariants
----------
- There is one recording at a time. Whoever holds `_mutex` may record.
- What could not be read or written goes back to what is dirty.
- A failure (a full disk, most likely) pauses the recording and nothing else.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.behind import Behind
from clivefs.daemon.largefiles import LargeFiles, Tell
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.noticing import QUIET_S, Noticed, Work
from clivefs.daemon.pointmaking import Asked, PointMaker, Surroundings
from clivefs.daemon.recent import Recent
from clivefs.mounts.points.index import IndexedPoint
from clivefs.mounts.points.names import point_name
from clivefs.mounts.points.point import Point
from clivefs.mounts.recording.parts import Dirty, join, within
from clivefs.mounts.recording.recorder import DEFER_BYTES, Recorded
from clivefs.mounts.recording.statcache import Shown

log = logging.getLogger(__name__)

_AGAIN_S = 0.25
_PAUSED_S = 5.0
_LONG_S = 3600.0
_RESCAN_S = 10.0
"""How often everything is looked at where directories are not watched."""
_BUSY_S = 5.0
"""How long a barrier waits for a file that is written to all the time."""
_PATIENCE_S = 2.0
"""How long a large file may be read before a barrier goes on without it that does not need it."""
_ALL = (b"",)
_PREPARED_MAX = 3
"""How often a barrier has a large file read that changed meanwhile."""
_TURN_S = 2.0
"""How long a command waits for its turn before it changes what is recorded."""
_END_S = 600.0
"""How long the end of a session waits for large files that are being read; the next mount records what is left."""
_LEFT_OUT_MAX = 1000
_PATHS_TOLD = 20


class Settled(NamedTuple):
    """What a barrier came to."""

    point: Point
    busy: tuple[bytes, ...]
    """Files that are not in it as they are now, being written to all the time. Paths in the workspace."""
    reading: tuple[dict[str, Any], ...]
    """Large files that are not, as they are still being read, and were not needed: see `LargeFiles.described`."""


class LiveRecording:
    """The recording of one workspace. Methods are for the loop's thread."""

    def __init__(self, live: LiveWorkspace, surroundings: Surroundings) -> None:
        self._live = live
        self._around = surroundings
        self._noticed = Noticed(surroundings.owner, surroundings.tell_open, surroundings.being_written)
        self._maker = PointMaker(live, surroundings, self._noticed.outside.watch)
        self.points = self._maker.points
        self.session: str | None = None
        self.head: IndexedPoint | None = None
        self._settings = live.settings.sessions
        self._asked: Asked | None = None
        """What the next point is to be called, which there will be in any case."""
        self._mutex = live.recording_now
        self._ready = trio.Event()
        """The first recording was made, or tried."""
        self._again_s = math.inf
        """When to try once more, by the monotonic clock."""
        self._error: str | None = None
        self._left_out: dict[bytes, str] = {}
        self._behind = Behind()
        self._large = LargeFiles(self._failed, lambda: self._noticed.last_s, lambda: self._maker.pace.is_hurried)
        self._nursery: trio.Nursery | None = None
        self._ending = False
        """The large files too are read at once: nobody is left who would read them aside."""
        self._ended = False
        self._scanned_s = time.monotonic()

    def assembled(self) -> None:
        """The mount table, what an entry stands on, or the settings have changed."""
        if self._settings != self._live.settings.sessions:
            self._settings = self._live.settings.sessions
            self._maker.follow(self._settings)
            self._noticed.note_everything()
        self._noticed.assembled(self._live.entries, self._live.root_tree if self._settings.record else None)

    def describe(self) -> dict[str, Any]:
        """What `status --json` says of it."""
        state = "off" if not self._settings.record else "paused" if self._error else "recording"
        recording: dict[str, Any] = {"state": state, "error": self._error}
        if self._left_out:
            told = list(self._left_out.items())[:_PATHS_TOLD]
            recording["left_out"] = [{"path": os.fsdecode(path), "why": why} for path, why in told]
        reading = self._large.described(self._large.pending())
        if reading:
            recording["reading"] = reading[:_PATHS_TOLD]
        behind = self._behind.files()[:_PATHS_TOLD]
        if behind:
            recording["busy"] = [{"path": os.fsdecode(path), "since": point_name(ms)} for path, ms in behind]
        if self._noticed.outside.degraded:
            recording["degraded"] = "watches"
        head = self.head.oid.hex() if self.head is not None else None
        return {"session": self.session, "head": head, "recording": recording}

    # Running

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._noticed.follow)
            nursery.start_soon(self._look_around)
            while True:
                await self._follow_settings()
                await self._wait_for_work()
                await self._noticed.wait_for_quiet()
                if self.session is not None:
                    async with self._mutex:
                        await self._record_dirty(None, open_too=False)

    async def _follow_settings(self) -> None:
        """Begin or end, as `[sessions] record` says."""
        if self._settings.record and self.session is None:
            await self._begin()
        elif not self._settings.record and self.session is not None:
            await self._stop()
        self._ready.set()

    async def _wait_for_work(self) -> None:
        """Until something is dirty, or it is time to try again."""
        while (rest_s := self._again_s - time.monotonic()) > 0:
            if self._error is not None:
                await trio.sleep(rest_s)
                continue
            with trio.move_on_after(min(rest_s, _LONG_S)):
                await self._noticed.woken.wait()
            self._noticed.woken = trio.Event()
            if self._noticed.is_noted:
                break
        self._again_s = math.inf

    async def _look_around(self) -> None:
        """Where directories are not watched, look at them now and then; and save what is known of files."""
        while True:
            await trio.sleep(1.0)
            now = time.monotonic()
            if self._noticed.outside.degraded and now - self._scanned_s > _RESCAN_S:
                self._noticed.note_everything()
                self._noticed.note()
            if self._maker.is_cache_due():
                with suppress(OSError):
                    await trio.to_thread.run_sync(self._maker.save_cache)

    # Sessions

    async def _begin(self) -> None:
        """Start a session, whose first point is what there is now."""
        async with self._mutex:
            if self._ended or self.session is not None:
                return
            try:
                self.session = await trio.to_thread.run_sync(self._maker.start_session, None)
            except (OSError, ClivefsError) as error:
                self._failed(error)
                return
            self._noticed.note_everything()
            await self._record_dirty(Asked("command:mount", f"start of {self.session}"))

    async def _stop(self) -> None:
        """End the session: recording was turned off."""
        async with self._mutex:
            session, self.session = self.session, None
            self._error = None
            self._noticed.forget()
            if session is not None:
                with suppress(OSError, ClivefsError):
                    await trio.to_thread.run_sync(self._maker.end_session, session)

    async def new_session(self, name: str | None, *, tell: Tell | None = None) -> tuple[str, str]:
        """End the session and start another; the names of the new and the old one. ClivefsError."""
        await self.barrier(None, tell=tell)
        async with self._mutex:
            old = self.session

            def change() -> str:
                new = self._maker.start_session(name)
                if old is not None:
                    self._maker.end_session(old)
                return new

            self.session = await trio.to_thread.run_sync(change)
            await self._record_dirty(Asked("command:session", f"start of {self.session}"))
        return self.session, old or ""

    # The barrier

    async def barrier(
        self, message: str | None, *, needed: Collection[bytes] = _ALL, tell: Tell | None = None
    ) -> Settled:
        """Record all that is dirty; the newest point then, with *message* a new one. ClivefsError when it cannot be
        recorded. Large files that are at, below or above none of the *needed* paths are not waited for long. *tell* is
        told what is waited for. May be cancelled: it was no barrier then."""
        with self._maker.pace.hurried():
            await self._ready.wait()
            return await self._settle(Asked("command:snapshot", message) if message is not None else None, needed, tell)

    async def _settle(self, asked: Asked | None, needed: Collection[bytes], tell: Tell | None) -> Settled:
        self._around.tell_open()
        busy_from = time.monotonic() + _BUSY_S
        prepared = 0
        waiting: set[Dirty] | None = None
        """What was dirty at the first look, and could not be read yet."""
        while True:
            async with self._mutex:
                self._check_records()
                left = await self._record_dirty(asked, look=waiting is None)
                if self._error is not None:
                    raise ClivefsError(
                        f"it cannot be recorded now: {self._error}",
                        place=self._live.name,
                        remedy="nothing is lost; it goes on by itself when that has passed",
                    )
                asked = None
                left |= self._large.pending()
                waiting = left if waiting is None else waiting & left
                head = self.head
            reading = waiting & self._large.pending()
            now = time.monotonic()
            until_s = {each: self._patience(each, needed) for each in reading}
            wanted = {each for each in reading if until_s[each] > now}
            if prepared >= _PREPARED_MAX or (not wanted and (waiting == reading or now > busy_from)):
                break
            if not wanted:
                await trio.sleep(QUIET_S)
            elif await self._large.wait_for(wanted, min(until_s[each] for each in wanted), tell):
                prepared += 1
        assert head is not None
        put_off = reading - wanted
        described = self._large.described(put_off)
        point = await trio.to_thread.run_sync(self.points.load, head.oid)
        busy = sorted(join(each.prefix, each.path) for each in waiting - put_off)
        return Settled(point, tuple(busy), tuple(described))

    def _patience(self, dirty: Dirty, needed: Collection[bytes]) -> float:
        """Until when, by the monotonic clock, a barrier that needs these paths waits for a file that is being read."""
        if _is_around(needed, [join(dirty.prefix, dirty.path)]):
            return math.inf
        return self._large.since_s(dirty) + _PATIENCE_S

    def _check_records(self) -> None:
        if not self._settings.record:
            raise ClivefsError(
                "this workspace is not recorded",
                place=self._live.settings.file,
                remedy="take `record = false` out of [sessions]",
            )
        if self.session is None and self._error is None:
            raise ClivefsError("the recording has ended", place=self._live.name)

    # What others ask

    def is_still(self, oid: bytes, paths: Collection[bytes]) -> bool:
        """Whether the point *oid* is the newest, and nothing is known to have happened since at or around *paths*."""
        if self.head is None or self.head.oid != oid or _is_around(paths, self._being_read()):
            return False
        return self._noticed.is_still(paths)

    def unrecorded(self) -> set[bytes] | None:
        """The paths that have changed since the newest point, as far as is known by now; a directory stands for all
        that is in it. None: it may be anything."""
        dirty = self._noticed.unrecorded()
        return dirty | self._being_read() if self.head is not None and dirty is not None else None

    def _being_read(self) -> set[bytes]:
        return {join(each.prefix, each.path) for each in self._large.pending()}

    @property
    def recent(self) -> Recent:
        """The paths that were dirty lately."""
        return self._noticed.recent

    def hears_all(self) -> bool:
        """Whether all changes are heard of and recorded, but for what `left_out` names."""
        return not self._noticed.outside.degraded and self._settings.record

    def left_out(self) -> set[bytes]:
        """The paths that could not be recorded."""
        return set(self._left_out)

    def claim(self, oid: bytes, paths: Collection[bytes], origin: str, message: str) -> bool:
        """`is_still`; where it is so, what is recorded next, whoever has it recorded, was done by *origin* (as
        `command:restore`), and is a point in any case, called *message*."""
        if not self.is_still(oid, paths):
            return False
        self.expect(origin, message)
        return True

    def know(self, shown: Shown) -> None:
        """These files have just been shown, with this content."""
        self._maker.know(shown)

    def expect(self, origin: str, message: str) -> None:
        """What is recorded next was done by *origin*, as with `claim`."""
        self._asked = Asked(origin, message, did_it=True)

    @asynccontextmanager
    async def done_by(self, origin: str, message: str) -> AsyncIterator[None]:
        """What changes in this block was done by *origin*, and is in one point: what was changed before is recorded
        first, and nothing meanwhile. A block that fails was done by nobody; so is one that would have to wait long for
        a recording that is under way."""
        with self._maker.pace.hurried(), trio.move_on_after(_TURN_S) as waiting:
            await self._mutex.acquire()
            try:
                await self._record_dirty(None)
            except BaseException:
                self._mutex.release()
                raise
        if waiting.cancelled_caught:
            yield
            return
        try:
            yield
            if self.session is not None:
                self.expect(origin, message)
        finally:
            self._mutex.release()

    # One recording

    async def _record_dirty(self, asked: Asked | None, *, look: bool = False, open_too: bool = True) -> set[Dirty]:
        """Record what is dirty, or everything; what of it could not be read yet. Where *asked* there is a point in any
        case. *look*: also where nothing is known to be dirty, as what git tracks may be other files now. *open_too*:
        see `Noticed.take`. A failure is told in `describe`, and all is tried again later. To be called with the mutex
        held."""
        if self._ended or self.session is None:
            return set()
        work = self._noticed.take(open_too=open_too)
        claimed, self._asked = self._asked, None
        if not work and not look and asked is None and claimed is None:
            return set()
        if claimed is not None and asked is not None:
            asked = claimed._replace(message=asked.message)
        with self._noticed.parts_of(work) as (parts, live_parts):
            try:
                recorded, point = await trio.to_thread.run_sync(
                    partial(
                        self._maker.record,
                        parts,
                        None if work.whole else list(work.dirty),
                        self.session,
                        origin="mount" if work.by_mount else "outside",
                        asked=asked or claimed,
                        defer_bytes=None if self._ending and not self._large.pending() else DEFER_BYTES,
                    )
                )
            except BaseException as error:
                self._noticed.give_back(work)
                self._asked = self._asked or claimed
                if not isinstance(error, Exception):
                    raise
                self._failed(error)
                return set(work.dirty)
            self._succeeded(work, recorded, point)
            self._behind.looked(None if work.whole else work.dirty, (*recorded.again, *recorded.deferred))
            for each in recorded.deferred:
                if self._nursery is None or self._ending:
                    self._noticed.give_back(Work({each: None}, False, False, work.by_mount))
                else:
                    part = next(part for part in parts if part.prefix == each.prefix)
                    again = partial(self._noticed.note_path, each, by_mount=work.by_mount)
                    self._large.start(self._nursery, self._maker.recorder, each, live_parts[each.prefix], part, again)
        return {*recorded.again, *recorded.deferred}

    def _succeeded(self, work: Work, recorded: Recorded, point: IndexedPoint | None) -> None:
        if point is not None:
            self.head = point
        if self._error is not None:
            log.info("%s is recorded again", self._live.name)
        self._error = None
        self._note_left_out(recorded, None if work.whole else work.dirty)
        if work.whole:
            self._scanned_s = time.monotonic()
        if recorded.again:
            self._noticed.give_back(Work(dict.fromkeys(recorded.again), False, False, work.by_mount))
            self._try_again_in(_AGAIN_S)

    def _note_left_out(self, recorded: Recorded, dirty: Iterable[Dirty] | None) -> None:
        """Remember what cannot be recorded, as of the last look at it."""
        if dirty is None:
            self._left_out = {}
        elif self._left_out:
            looked_at = [join(each.prefix, each.path) for each in dirty]
            self._left_out = {path: why for path, why in self._left_out.items() if not within(looked_at, path)}
        for path, why in recorded.left_out.items():
            if len(self._left_out) < _LEFT_OUT_MAX:
                self._left_out[path] = why

    def _failed(self, error: Exception) -> None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            text = "the disk is full"
        elif isinstance(error, (OSError, ClivefsError)):
            text = str(error)
        else:
            log.error("recording %s failed", self._live.name, exc_info=error)
            text = f"{type(error).__name__}: {error}"
        if text != self._error:
            log.warning("%s is not recorded at the moment: %s", self._live.name, text)
        self._error = text
        self._try_again_in(_PAUSED_S)

    def _try_again_in(self, seconds: float) -> None:
        self._again_s = min(self._again_s, time.monotonic() + seconds)
        self._noticed.woken.set()  # whoever waits for a change waits no longer than that

    # The end

    async def end(self) -> None:
        """Record the rest and end the session."""
        with trio.CancelScope(shield=True), self._maker.pace.hurried():
            self._ending = True
            self._around.tell_open()
            if self.session is not None:
                with trio.move_on_after(_END_S), suppress(ClivefsError):
                    await self.barrier(None)
            async with self._mutex:
                if self._ended:
                    return
                await self._record_dirty(None)
                self._ended = True
                self._noticed.stop()

                def close() -> None:
                    if self.session is not None:
                        self._maker.end_session(self.session)
                    self._maker.save_cache()

                try:
                    await trio.to_thread.run_sync(close)
                except (OSError, ClivefsError) as error:
                    log.warning("the session of %s was not ended: %s", self._live.name, error)
                self._noticed.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()


def _is_around(paths: Collection[bytes], others: Collection[bytes]) -> bool:
    """Whether one of *others* is one of *paths*, or above or below one."""
    if not others:
        return False
    return any(within(paths, each) for each in others) or any(within(others, each) for each in paths)
