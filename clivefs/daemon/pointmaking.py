"""Making the points of one workspace: objects, point, session and ref in one transaction of the store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple

from clivefs.base.ports import FAULTS
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.config.config import Sessions
from clivefs.mounts.git.userignore import user_ignore
from clivefs.mounts.points.clock import HybridClock
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.objects import kept_repositories
from clivefs.mounts.points.point import Point, make_point
from clivefs.mounts.recording.layers import Hidden
from clivefs.mounts.recording.pace import Pace
from clivefs.mounts.recording.parts import Dirty, Part
from clivefs.mounts.recording.recorder import Recorded, Recorder
from clivefs.mounts.recording.scan import Watch
from clivefs.mounts.recording.statcache import Shown, StatCache
from clivefs.mounts.tree import Node, Owner
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.store import Store

_CACHE_S = 300.0


class Surroundings(NamedTuple):
    """What all recordings of a daemon have in common."""

    store: Store
    owner: Owner
    mountpoint: str
    machine: str
    hidden: Hidden
    tell_open: Callable[[], None]
    """Has the journals told of what was written to files that are still open."""
    being_written: Callable[[], Iterable[Node]]
    """Which files those are."""
    asked_s: Callable[[], float]
    """When somebody last asked the mount something, by the monotonic clock."""
    user_ignore: str
    """The file of what git ignores everywhere, where none is configured; empty for none."""


class Asked(NamedTuple):
    """Why there is to be a point in any case."""

    origin: str
    """Who asked: `command:NAME`."""
    message: str
    did_it: bool = False
    """What is recorded was done by *origin*, too; otherwise that is said only of a point that changes nothing."""


class PointMaker:
    """Makes points, and starts and ends sessions. One thread at a time."""

    def __init__(self, live: LiveWorkspace, around: Surroundings, watch: Watch) -> None:
        """*watch* is told of each host directory before it is looked into."""
        self._live = live
        self._around = around
        self._store = around.store
        self._watch = watch
        self.points = Points(self._store, live.id)
        self._newest: Point | None = None
        self.pace = Pace(around.asked_s)
        self._cache = StatCache()
        self._cache_file = os.path.join(self._store.directory("statcache"), live.id)
        self._cache_loaded = False
        self._cache_saved_s = time.monotonic()
        self.follow(live.settings.sessions)

    def follow(self, settings: Sessions) -> None:
        """Record as *settings* say."""
        self.recorder = Recorder(
            self._store,
            self._cache,
            exclude=settings.exclude,
            ignored=settings.ignored,
            user_ignore=lambda: self._live.user_ignore,
            hidden=self._around.hidden,
            watch=self._watch,
            kept=partial(kept_repositories, self._store),
            pace=self.pace,
        )

    def know(self, shown: Shown) -> None:
        """Files that were just shown need not be read."""
        self._cache.know(shown)

    def is_cache_due(self) -> bool:
        """Whether it is time for `save_cache`."""
        return self._cache.changed and time.monotonic() - self._cache_saved_s > _CACHE_S

    # What follows is for threads.

    def save_cache(self) -> None:
        """Save what is known of files. OSError."""
        self._cache_saved_s = time.monotonic()
        self._cache.save(self._cache_file)

    def start_session(self, name: str | None) -> str:
        """A new session, called *name* or by its start; its name. ClivefsError, OSError."""
        if not self._cache_loaded:  # the first of this mount
            if self._around.user_ignore:
                self._live.user_ignore = user_ignore(self._live.root, self._around.user_ignore)
            self._cache.load(self._cache_file)
            self._cache_loaded = True
        around = self._around
        head = self.points.head()
        start_ms = max(_now_ms(), head.ms + 1) if head is not None else _now_ms()
        return self.points.start_session(start_ms, mountpoint=around.mountpoint, machine=around.machine, name=name).name

    def end_session(self, name: str) -> None:
        """End it. ClivefsError, OSError."""
        self.points.end_session(name, _now_ms())

    def record(
        self,
        parts: Sequence[Part],
        dirty: Sequence[Dirty] | None,
        session: str,
        *,
        origin: str,
        asked: Asked | None,
        defer_bytes: int | None,
    ) -> tuple[Recorded, IndexedPoint | None]:
        """Look at *dirty*, at everything when None: what was recorded, and the new point if there is one. *origin*: who
        made what changed. ClivefsError, OSError."""
        head = self.points.head()
        before: Point | None = None
        if head is not None:
            known = self._newest
            before = known if known is not None and known.oid == head.oid else self.points.load(head.oid)
        base = (before.tree, before.meta) if before is not None else (EMPTY_TREE, None)
        with self._store.batch() as batch:
            recorded = self.recorder.record(parts, dirty, batch, base=base, defer_bytes=defer_bytes)
            if not recorded.changed and asked is None:
                return recorded, None
            for prefix in recorded.sources:
                self._keep(prefix)
            started = self.points.session(session)
            assert started is not None
            if asked is not None and (asked.did_it or not recorded.paths):
                origin = asked.origin
            point = make_point(
                ms=HybridClock(head.ms if head is not None else 0).tick(max(_now_ms(), started.start_ms)),
                seq=head.seq + 1 if head is not None else 1,
                session=session,
                machine=self._around.machine,
                origin=origin,
                tree=recorded.tree,
                meta=recorded.meta,
                parent=head.oid if head is not None else None,
                paths=recorded.paths,
                more_paths=recorded.more_paths,
                message=asked.message if asked is not None else "",
            )
            self.points.publish(batch, point)
            FAULTS.hit("record.publishing")
        FAULTS.hit("record.published")
        self._newest = point
        return recorded, IndexedPoint(point.ms, point.oid, point.seq, point.session)

    def _keep(self, prefix: bytes) -> None:
        """What a point names of another repository must be in the store before the point is."""
        mounted = self._live.entries.get(os.fsdecode(prefix))
        if mounted is not None and mounted.source is not None and not mounted.source.is_kept:
            mounted.keep()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
