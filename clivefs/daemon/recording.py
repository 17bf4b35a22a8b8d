"""Recording: which workspaces of a daemon are recorded, from when to when. `liverecording` does it for one of them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.largefiles import Tell
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.liverecording import LiveRecording, Settled
from clivefs.daemon.pointmaking import Surroundings
from clivefs.mounts.points import expressions
from clivefs.mounts.points.index import IndexedPoint
from clivefs.mounts.points.moments import Moment
from clivefs.mounts.points.point import Point
from clivefs.mounts.recording.layers import Hidden
from clivefs.mounts.tree import Node, Owner
from clivefs.objects.store import Store

_OPEN_S = 1.5
"""How often files are looked for that somebody goes on writing to. What was written is recorded at the second look, or
when the file is closed."""


class Recording:
    """Records the workspaces of one daemon. Methods are for the loop's thread."""

    def __init__(
        self,
        store: Store,
        owner: Owner,
        mountpoint: str,
        *,
        hidden: Hidden,
        tell_open: Callable[[], None],
        tell_long_open: Callable[[], None],
        being_written: Callable[[], Iterable[Node]],
        asked_s: Callable[[], float],
        user_ignore: str,
    ) -> None:
        """*hidden*: see `HostTree`. *tell_open*: has the journals told of what was written to files still open;
        *tell_long_open*: the same, but for what is new since it was last asked; *being_written*: which files those are.
        *asked_s*: when somebody last asked the mount something, by the monotonic clock. *user_ignore*: see
        `Settings`."""
        self._surroundings = Surroundings(
            store, owner, mountpoint, socket.gethostname(), hidden, tell_open, being_written, asked_s, user_ignore
        )
        self._tell_long_open = tell_long_open
        self._of: dict[str, LiveRecording] = {}
        self._nursery: trio.Nursery | None = None

    def assembled(self, live: LiveWorkspace) -> None:
        """The trees of *live*, or its settings, are others now."""
        recording = self._of.get(live.id)
        if recording is None:
            recording = self._of[live.id] = LiveRecording(live, self._surroundings)
            live.recording = recording.describe
            if self._nursery is not None:
                self._nursery.start_soon(recording.run)
        recording.assembled()

    async def run(self) -> None:
        """Until cancelled: record."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for recording in self._of.values():
                nursery.start_soon(recording.run)
            nursery.start_soon(self._look_at_open_files)

    async def _look_at_open_files(self) -> None:
        while True:
            await trio.sleep(_OPEN_S)
            self._tell_long_open()

    def of(self, live: LiveWorkspace) -> LiveRecording:
        """What records *live*. ClivefsError once it has left, or the daemon ends."""
        try:
            return self._of[live.id]
        except KeyError:
            raise ClivefsError("the recording has ended", place=live.name) from None

    def head_of(self, live: LiveWorkspace) -> IndexedPoint | None:
        """The newest point of *live*; None where there is none, or it has left."""
        recording = self._of.get(live.id)
        return recording.head if recording is not None else None

    async def snapshot(
        self, live: LiveWorkspace, *, needed: Collection[bytes] = (b"",), tell: Tell | None = None
    ) -> Point:
        """The barrier: a durable point in which everything is that was written before this call, but for files that
        are written to all the time, and large ones not around *needed*: see `LiveRecording.barrier`."""
        return (await self.settle(live, needed=needed, tell=tell)).point

    async def settle(
        self,
        live: LiveWorkspace,
        message: str | None = None,
        *,
        needed: Collection[bytes] = (b"",),
        tell: Tell | None = None,
    ) -> Settled:
        """The same, and what is not in it."""
        return await self.of(live).barrier(message, needed=needed, tell=tell)

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Whoever reads the past for long, or what nothing leads to yet, does so in here: no collection removes it."""
        await trio.to_thread.run_sync(self._surroundings.store.hold)
        try:
            yield
        finally:
            self._surroundings.store.let_go()

    async def chosen(self, live: LiveWorkspace, point: str) -> Point:
        """The point of this id, which somebody has found before; within `reading` it stays. ClivefsError where a
        collection was quicker."""

        def load() -> Point:
            points = self.of(live).points
            if not points.by_oid(oid):
                raise ClivefsError(
                    f"the point {point[:12]} is not there any more: it was thinned out",
                    remedy="`clivefs log` shows which there are",
                )
            return points.load(oid)

        oid = bytes.fromhex(point)
        return await trio.to_thread.run_sync(load)

    async def found(
        self,
        live: LiveWorkspace,
        moment: Moment,
        *,
        needed: Collection[bytes] = (b"",),
        tell: Tell | None = None,
    ) -> Point:
        """The point that is meant, now that everything is recorded (see `snapshot`); within `reading` it stays.
        ClivefsError that says what would have been right."""
        await self.snapshot(live, needed=needed, tell=tell)

        def load() -> Point:
            points = self.of(live).points
            found = expressions.find_moment(points, moment)
            assert isinstance(found, IndexedPoint)  # no mount entries were given
            return points.load(found.oid)

        return await trio.to_thread.run_sync(load)

    async def leave(self, live: LiveWorkspace) -> None:
        """Record what is not recorded yet, and end the session. The workspace must still be shown."""
        recording = self._of.pop(live.id, None)
        if recording is not None:
            await recording.end()

    async def finish(self) -> None:
        """The same for all of them."""
        for recording in list(self._of.values()):
            await recording.end()
        self._of.clear()
