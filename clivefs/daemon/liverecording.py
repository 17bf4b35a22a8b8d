"""Recording one workspace: from changed paths to points, quickly and without holding anybody up.

    a change    the view notes it in the tree's journal, or the recorder's own inotify descriptor tells of it
    quiet       after 25 ms without another, at most 250 ms after the first, whatever is dirty is taken
    record      in a thread: fresh looks, hashes, trees (`mounts.recording`)
    publish     objects, point, session and ref in one transaction of the store

Invariants
----------
- There is one recording at a time. Whoever holds `_mutex` may record.
- What is dirty stays known until it is in a durable point: `_dirty` and the journals have what is to be looked at,
  `_being_recorded` what somebody looks at now. What could not be read or written goes back to `_dirty`.
- A failure (a full disk, most likely) pauses the recording and nothing else.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.applying import within
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.assembly.recorded import LivePart, live_part
from clivefs.mounts.journal import Journal
from clivefs.mounts.points.clock import HybridClock
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.objects import kept_repositories
from clivefs.mounts.points.point import Point, make_point
from clivefs.mounts.recording.layers import Hidden
from clivefs.mounts.recording.outside import OutsideWatch
from clivefs.mounts.recording.parts import Dirty, Part, join
from clivefs.mounts.recording.recorder import DEFER_BYTES, Recorded, Recorder
from clivefs.mounts.recording.statcache import StatCache
from clivefs.mounts.tree import Owner, Tree
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

QUIET_S = 0.025
BEHIND_S = 0.25
_AGAIN_S = 0.25
_PAUSED_S = 5.0
_LONG_S = 3600.0
_RESCAN_S = 10.0
"""How often everything is looked at where directories are not watched."""
_CACHE_S = 300.0
_BUSY_S = 5.0
"""How long a barrier waits for a file that is written to all the time."""
_PREPARED_MAX = 3
"""How often a barrier has a large file read that changed meanwhile."""
_END_S = 600.0
"""How long the end of a session waits for large files that are being read; the next mount records what is left."""
_IDLE_S = 0.2
"""Without a change for so long, large files are read."""
_READERS = 2
"""Large files of a workspace that are read at a time."""
_LEFT_OUT_MAX = 1000
_PATHS_TOLD = 20


class Surroundings(NamedTuple):
    """What all recordings of a daemon have in common."""

    store: Store
    owner: Owner
    mountpoint: str
    machine: str
    hidden: Hidden
    tell_open: Callable[[], None]
    """Has the journals told of what was written to files that are still open."""


class Settled(NamedTuple):
    """What a barrier came to."""

    point: Point
    busy: tuple[bytes, ...]
    """Files that are not in it as they are now, being written to all the time. Paths in the workspace."""


class LiveRecording:
    """The recording of one workspace. Methods are for the loop's thread."""

    def __init__(self, live: LiveWorkspace, surroundings: Surroundings) -> None:
        self._live = live
        self._around = surroundings
        self._store = surroundings.store
        self.points = Points(self._store, live.id)
        self.session: str | None = None
        self.head: IndexedPoint | None = None
        self._newest: Point | None = None
        """The point that `head` is. For whoever records."""
        self._parts: dict[bytes, LivePart] = {}
        self._outside = OutsideWatch()
        self._cache = StatCache()
        self._cache_file = os.path.join(self._store.directory("statcache"), live.id)
        self._cache_loaded = False
        self._settings = live.settings.sessions
        self._recorder = self._make_recorder()
        self._dirty: dict[Dirty, None] = {}
        """Known to be dirty, beside what the journals and the watch have."""
        self._by_mount = False
        """Some of `_dirty` came through the mount."""
        self._being_recorded: Iterable[Dirty] = ()
        self._everything = True
        self._scanning = False
        """Everything is being looked at."""
        self._rearranged = False
        """Mount entries went."""
        self._origin: str | None = None
        self._message: str | None = None
        """What the next point is to be called, which there will be in any case."""
        self._mutex = live.recording_now
        self._ready = trio.Event()
        """The first recording was made, or tried."""
        self._changed = trio.Event()
        self._noted = False
        self._first_s = 0.0
        self._last_s = 0.0
        self._again_s = math.inf
        """When to try once more, by the monotonic clock."""
        self._error: str | None = None
        self._left_out: dict[bytes, str] = {}
        self._deferred: set[Dirty] = set()
        """Large files that are being read."""
        self._readers = trio.CapacityLimiter(_READERS)
        self._read = trio.Event()
        """Set when one of them has been; then there is another event for the next."""
        self._waiting_barriers = 0
        self._nursery: trio.Nursery | None = None
        self._ending = False
        """The large files too are read at once: nobody is left who would read them aside."""
        self._ended = False
        self._cache_saved_s = time.monotonic()
        self._scanned_s = time.monotonic()

    def _make_recorder(self) -> Recorder:
        return Recorder(
            self._store,
            self._cache,
            exclude=self._settings.exclude,
            ignored=self._settings.ignored,
            hidden=self._around.hidden,
            watch=self._outside.watch,
            kept=partial(kept_repositories, self._store),
        )

    # What there is to record

    def assembled(self) -> None:
        """The mount table, what an entry stands on, or the settings have changed."""
        if self._settings != self._live.settings.sessions:
            self._settings = self._live.settings.sessions
            self._recorder = self._make_recorder()
            self._everything = True
        trees: dict[bytes, tuple[Tree, Mounted | None]] = {}
        if self._settings.record:
            trees[b""] = self._live.root_tree, None
            trees.update((os.fsencode(path), (entry.tree, entry)) for path, entry in self._live.entries.items())
        old, self._parts = self._parts, {}
        for prefix, (tree, mounted) in trees.items():
            known = old.pop(prefix, None)
            if known is not None and known.is_of(tree, mounted):
                self._parts[prefix] = known
                continue
            if known is not None:
                self._drop(prefix, known, replaced=known.tree is tree)
            if tree.journal is None:
                tree.journal = Journal(self.note)
            self._parts[prefix] = live_part(prefix, tree, self._around.owner, mounted)
            self._dirty[Dirty(prefix, b"", True)] = None
        for prefix, part in old.items():
            self._drop(prefix, part, replaced=False)
            self._rearranged = True
        self.note()

    def _drop(self, prefix: bytes, part: LivePart, *, replaced: bool) -> None:
        """*replaced*: the same tree is shown, on something else."""
        if not replaced:
            part.tree.journal = None
            self._outside.forget(prefix)
        part.close()

    def note(self) -> None:
        """Something is dirty."""
        now = time.monotonic()
        if not self._noted:
            self._noted = True
            self._first_s = now
        self._last_s = now
        self._changed.set()

    def describe(self) -> dict[str, Any]:
        """What `status --json` says of it."""
        state = "off" if not self._settings.record else "paused" if self._error else "recording"
        recording: dict[str, Any] = {"state": state, "error": self._error}
        if self._left_out:
            told = list(self._left_out.items())[:_PATHS_TOLD]
            recording["left_out"] = [{"path": os.fsdecode(path), "why": why} for path, why in told]
        if self._outside.degraded:
            recording["degraded"] = "watches"
        head = self.head.oid.hex() if self.head is not None else None
        return {"session": self.session, "head": head, "recording": recording}

    # Running

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._hear)
            nursery.start_soon(self._look_around)
            while True:
                await self._follow_settings()
                await self._wait_for_work()
                await self._wait_for_quiet()
                if self.session is not None:
                    async with self._mutex:
                        await self._record_dirty(None)

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
                await self._changed.wait()
            self._changed = trio.Event()
            if self._noted:
                break
        self._again_s = math.inf

    async def _wait_for_quiet(self) -> None:
        while self._noted:
            now = time.monotonic()
            until = min(self._first_s + BEHIND_S, self._last_s + QUIET_S)
            if now >= until:
                return
            await trio.sleep(until - now)

    async def _hear(self) -> None:
        """Wake when something changes outside."""
        while True:
            await trio.lowlevel.wait_readable(self._outside.fileno())
            self._hear_now()
            await trio.sleep(0.005)  # let a burst gather

    def _hear_now(self) -> None:
        heard = self._outside.read()
        if heard.lost:
            self._everything = True
        if heard.dirty or heard.lost:
            self._dirty.update(dict.fromkeys(heard.dirty))
            # While something comes through the mount, what is heard is most likely its echo: no reason to wait longer.
            if not (self._noted and any(part.tree.journal for part in self._parts.values())):
                self.note()

    async def _look_around(self) -> None:
        """Where directories are not watched, look at them now and then; and save what is known of files."""
        while True:
            await trio.sleep(1.0)
            now = time.monotonic()
            if self._outside.degraded and now - self._scanned_s > _RESCAN_S:
                self._everything = True
                self.note()
            if self._cache.changed and now - self._cache_saved_s > _CACHE_S:
                self._cache_saved_s = now
                with suppress(OSError):
                    await trio.to_thread.run_sync(self._cache.save, self._cache_file)

    # Sessions

    async def _begin(self) -> None:
        """Start a session, whose first point is what there is now."""
        async with self._mutex:
            if self._ended or self.session is not None:
                return
            try:
                self.session = await trio.to_thread.run_sync(self._start_session, None)
            except (OSError, ClivefsError) as error:
                self._failed(error)
                return
            self._everything = True
            await self._record_dirty(f"start of {self.session}")

    def _start_session(self, name: str | None) -> str:
        """In a thread: a new session; its name. ClivefsError, OSError."""
        if not self._cache_loaded:
            self._cache.load(self._cache_file)
            self._cache_loaded = True
        head = self.points.head()
        start_ms = max(_now_ms(), head.ms + 1) if head is not None else _now_ms()
        around = self._around
        return self.points.start_session(start_ms, mountpoint=around.mountpoint, machine=around.machine, name=name).name

    async def _stop(self) -> None:
        """End the session: recording was turned off."""
        async with self._mutex:
            session, self.session = self.session, None
            self._error = None
            self._dirty.clear()
            if session is not None:
                with suppress(OSError, ClivefsError):
                    await trio.to_thread.run_sync(self.points.end_session, session, _now_ms())

    async def new_session(self, name: str | None) -> tuple[str, str]:
        """End the session and start another; the names of the new and the old one. ClivefsError."""
        await self.barrier(None)
        async with self._mutex:
            old = self.session

            def change() -> str:
                new = self._start_session(name)
                if old is not None:
                    self.points.end_session(old, _now_ms())
                return new

            self.session = await trio.to_thread.run_sync(change)
            await self._record_dirty(f"start of {self.session}")
        return self.session, old or ""

    # The barrier

    async def barrier(self, message: str | None) -> Settled:
        """Record all that is dirty; the newest point then, with *message* a new one. ClivefsError when it cannot be
        recorded."""
        await self._ready.wait()
        self._waiting_barriers += 1
        try:
            return await self._settle(message)
        finally:
            self._waiting_barriers -= 1

    async def _settle(self, message: str | None) -> Settled:
        self._around.tell_open()
        busy_from = time.monotonic() + _BUSY_S
        prepared = 0
        waiting: set[Dirty] | None = None
        """What was dirty at the first look, and could not be read yet."""
        while True:
            async with self._mutex:
                self._check_records()
                self._hear_now()
                left = await self._record_dirty(message)
                if self._error is not None:
                    raise ClivefsError(
                        f"it cannot be recorded now: {self._error}",
                        place=self._live.name,
                        remedy="nothing is lost; it goes on by itself when that has passed",
                    )
                message = None
                left |= self._deferred
                waiting = left if waiting is None else waiting & left
                head = self.head
            reading = waiting & self._deferred
            if not waiting or (not reading and time.monotonic() > busy_from) or prepared >= _PREPARED_MAX:
                break
            if reading:
                while waiting & self._deferred:
                    await self._read.wait()
                prepared += 1
            else:
                await trio.sleep(QUIET_S)
        assert head is not None
        point = await trio.to_thread.run_sync(self.points.load, head.oid)
        return Settled(point, tuple(sorted(join(each.prefix, each.path) for each in waiting)))

    def _check_records(self) -> None:
        if not self._settings.record:
            raise ClivefsError(
                "this workspace is not recorded",
                place=self._live.settings.file,
                remedy="take `record = false` out of [sessions]",
            )
        if self.session is None and self._error is None:
            raise ClivefsError("the recording has ended", place=self._live.name)

    def is_still(self, oid: bytes, paths: Collection[bytes]) -> bool:
        """Whether the point *oid* is the newest, and nothing is known to have happened since at or around *paths*."""
        dirty = self.unrecorded()
        if dirty is None or self.head is None or self.head.oid != oid:
            return False
        if not dirty:
            return True
        wanted = set(paths)
        return not any(each in wanted or within(dirty, each) for each in wanted) and not any(
            within(wanted, each) for each in dirty
        )

    def unrecorded(self) -> set[bytes] | None:
        """The paths that have changed since the newest point, as far as is known by now; a directory stands for all
        that is in it. None: it may be anything."""
        self._around.tell_open()
        self._hear_now()
        if self.head is None or self._everything or self._scanning:
            return None
        dirty = {join(each.prefix, each.path) for each in (*self._dirty, *self._being_recorded)}
        for prefix, part in self._parts.items():
            if part.tree.journal:
                taken = part.tree.journal.peek()
                if taken.everything:
                    return None
                dirty |= {join(prefix, path) for path in taken.paths}
        return dirty

    def hears_all(self) -> bool:
        """Whether all changes are heard of and recorded, but for what `left_out` names."""
        return not self._outside.degraded and self._settings.record

    def left_out(self) -> set[bytes]:
        """The paths that could not be recorded."""
        return set(self._left_out)

    def claim(self, oid: bytes, paths: Collection[bytes], origin: str, message: str) -> bool:
        """`is_still`; where it is so, what is recorded next, whoever has it recorded, was done by *origin* (as
        `command:restore`), and is a point in any case, called *message*."""
        if not self.is_still(oid, paths):
            return False
        self._origin, self._message = origin, message
        return True

    # One recording

    async def _record_dirty(self, message: str | None) -> set[Dirty]:
        """Record what is dirty, or everything; what of it could not be read yet. With *message* there is a point in any
        case. A failure is told in `describe`, and all is tried again later. To be called with the mutex held."""
        if self._ended or self.session is None:
            return set()
        self._hear_now()  # so that the echo of what the journals tell of is not looked at once more
        self._noted = False
        dirty = self._take()
        if not self._everything and not dirty and not self._rearranged and message is None and self._message is None:
            return set()
        whole, self._everything = self._everything, False
        rearranged, self._rearranged = self._rearranged, False
        by_mount, self._by_mount = self._by_mount, False
        origin, self._origin = self._origin, None
        asked, self._message = self._message, None
        live_parts = dict(self._parts)
        parts = self._parts_now(None if whole else dirty)
        for part in live_parts.values():
            part.hold()
        self._being_recorded, self._scanning = dirty, whole
        try:
            recorded, point = await trio.to_thread.run_sync(
                self._record,
                parts,
                None if whole else list(dirty),
                origin or ("mount" if by_mount else "outside"),
                message or asked,
            )
        except Exception as error:
            if not isinstance(error, (OSError, ClivefsError)):
                log.exception("recording %s failed", self._live.name)
            self._dirty.update(dict.fromkeys(dirty))
            self._everything |= whole
            self._rearranged |= rearranged
            self._by_mount |= by_mount
            self._origin = self._origin or origin
            self._message = self._message or asked
            self._failed(error)
            return set(dirty)
        finally:
            self._being_recorded, self._scanning = (), False
            for part in live_parts.values():
                part.release()
        if self._error is not None:
            log.info("%s is recorded again", self._live.name)
        self._error = None
        self._note_left_out(recorded, None if whole else dirty)
        if whole:
            self._scanned_s = time.monotonic()
        if point is not None:
            self.head, self._newest = point
        if recorded.again:
            self._dirty.update(dict.fromkeys(recorded.again))
            self._by_mount |= by_mount
            self._try_again_in(_AGAIN_S)
        for each in recorded.deferred:
            self._start_reading(each, live_parts[each.prefix], parts)
        return {*recorded.again, *recorded.deferred}

    def _take(self) -> dict[Dirty, None]:
        """What is dirty now."""
        if self._dirty:
            self._around.tell_open()  # what was heard of a file that is open may have come through the mount
        taken, self._dirty = self._dirty, {}
        for prefix, part in self._parts.items():
            journal = part.tree.journal
            if not journal:
                continue
            self._by_mount = True
            changes = journal.take()
            for path in changes.paths:
                taken[Dirty(prefix, path, path in changes.names)] = None
            if changes.everything:
                taken[Dirty(prefix, b"", True)] = None
        return taken

    def _parts_now(self, dirty: dict[Dirty, None] | None) -> list[Part]:
        paths: dict[bytes, list[bytes]] = {}
        for prefix, path, _ in dirty or ():
            paths.setdefault(prefix, []).append(path)
        return [
            part.now(None if dirty is None or b"" in paths.get(prefix, ()) else paths.get(prefix, []))
            for prefix, part in self._parts.items()
        ]

    def _record(
        self, parts: list[Part], dirty: list[Dirty] | None, origin: str, message: str | None
    ) -> tuple[Recorded, tuple[IndexedPoint, Point] | None]:
        """In a thread. What was recorded, and the new point if there is one."""
        assert self.session is not None
        head = self.points.head()
        before: Point | None = None
        if head is not None:
            known = self._newest
            before = known if known is not None and known.oid == head.oid else self.points.load(head.oid)
        base = (before.tree, before.meta) if before is not None else (EMPTY_TREE, None)
        with self._store.batch() as batch:
            defer_bytes = None if self._ending and not self._deferred else DEFER_BYTES
            recorded = self._recorder.record(parts, dirty, batch, base=base, defer_bytes=defer_bytes)
            if not recorded.changed and message is None:
                return recorded, None
            for prefix in recorded.sources:
                self._keep(prefix)
            session = self.points.session(self.session)
            assert session is not None
            point = make_point(
                ms=HybridClock(head.ms if head is not None else 0).tick(max(_now_ms(), session.start_ms)),
                seq=head.seq + 1 if head is not None else 1,
                session=self.session,
                machine=self._around.machine,
                origin=origin,
                tree=recorded.tree,
                meta=recorded.meta,
                parent=head.oid if head is not None else None,
                paths=recorded.paths,
                more_paths=recorded.more_paths,
                message=message or "",
            )
            self.points.publish(batch, point)
            FAULTS.hit("record.publishing")
        FAULTS.hit("record.published")
        return recorded, (IndexedPoint(point.ms, point.oid, point.seq, point.session), point)

    def _keep(self, prefix: bytes) -> None:
        """What a point names of another repository must be in the store before the point is."""
        mounted = self._live.entries.get(os.fsdecode(prefix))
        if mounted is not None and mounted.source is not None and not mounted.source.is_kept:
            mounted.keep()

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
            text = f"{type(error).__name__}: {error}"
        if text != self._error:
            log.warning("%s is not recorded at the moment: %s", self._live.name, text)
        self._error = text
        self._try_again_in(_PAUSED_S)

    def _try_again_in(self, seconds: float) -> None:
        self._again_s = min(self._again_s, time.monotonic() + seconds)
        self._changed.set()  # whoever waits for a change waits no longer than that

    # Large files

    def _start_reading(self, dirty: Dirty, live_part: LivePart, parts: list[Part]) -> None:
        """Read a large file aside; it is recorded when that is done."""
        if dirty in self._deferred:
            return
        if self._nursery is None or self._ending:
            self._dirty[dirty] = None
            return
        self._deferred.add(dirty)
        part = next(each for each in parts if each.prefix == dirty.prefix)
        live_part.hold()

        async def read() -> None:
            try:
                await self._wait_for_idle()
                await trio.to_thread.run_sync(self._recorder.prepare, part, dirty.path, limiter=self._readers)
            except (OSError, ClivefsError) as error:
                self._failed(error)
            except Exception:
                log.exception("reading %r aside failed", dirty.path)
            finally:  # also when cancelled: no await in here
                live_part.release()
                self._deferred.discard(dirty)
                self._dirty[dirty] = None
                self.note()
                self._read.set()
                self._read = trio.Event()

        self._nursery.start_soon(read)

    async def _wait_for_idle(self) -> None:
        """While much is being written, reading a large file would slow that down. Nobody waits long for it."""
        latest_s = time.monotonic() + _BUSY_S
        while not self._waiting_barriers and not self._ending:
            now = time.monotonic()
            if now >= min(latest_s, self._last_s + _IDLE_S):
                return
            await trio.sleep(_IDLE_S / 4)

    # The end

    async def end(self) -> None:
        """Record the rest and end the session."""
        with trio.CancelScope(shield=True):
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
                for part in self._parts.values():
                    part.tree.journal = None
                    part.close()
                self._parts = {}

                def close() -> None:
                    if self.session is not None:
                        self.points.end_session(self.session, _now_ms())
                    self._cache.save(self._cache_file)

                try:
                    await trio.to_thread.run_sync(close)
                except (OSError, ClivefsError) as error:
                    log.warning("the session of %s was not ended: %s", self._live.name, error)
                self._outside.close()
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
