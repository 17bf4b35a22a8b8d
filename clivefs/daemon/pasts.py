"""The past of each mounted workspace as directories: `.clive/sessions`, `.clive/at`."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Collection, Sequence

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.promised import PromisedObjects
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.lower import Lower
from clivefs.mounts.points.control import PastControl
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.lower import lower_of_point
from clivefs.mounts.points.objects import kept_repositories, past_objects
from clivefs.mounts.points.pins import Pins
from clivefs.mounts.points.point import Point
from clivefs.mounts.tree import Blocked
from clivefs.mounts.view import View
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

_MEANING_S = 1.0
"""How long a name such as `main~3` is taken for what it was when it was looked up."""


class Pasts:
    """Shows them. Methods are for the loop's thread."""

    def __init__(self, store: Store, view: View, unpacked: str, pins: Pins) -> None:
        """*pins* tell other processes which points somebody is in."""
        self._store = store
        self._pins = pins
        self._view = view
        self._unpacked = unpacked
        self._shown: dict[str, PastControl] = {}
        self._promised: dict[str, PromisedObjects] = {}
        """By the ids of workspaces."""
        self._objects: JoinedObjects | None = None
        self._repositories: tuple[Repository, ...] = ()
        self._objects_of = 0

    def show(self, live: LiveWorkspace) -> None:
        """Let the past of *live* be in its control directory, if it is not yet."""
        if live.control is None or live.id in self._shown:
            return
        make_directories(self._unpacked)
        control = PastControl(
            Points(self._store, live.id),
            self._view.table,
            identity=live.id.encode(),
            owner=self._view.owner,
            now_ms=lambda: time.time_ns() // 1_000_000,
            open_point=functools.partial(self._open, live),
            revisions=_Revisions(live),
        )
        self._view.show_in_control(live.control, control.directories())
        self._shown[live.id] = control

    def hide(self, live: LiveWorkspace) -> None:
        """*live* has left."""
        self._promised.pop(live.id, None)
        control = self._shown.pop(live.id, None)
        if control is not None:
            DetachedTree(control.past, self._view.table, control.past.close)
            DetachedTree(control, self._view.table, control.close)

    def _open(self, live: LiveWorkspace, point: Point) -> Lower:
        self._pins.pin(point.oid)
        try:
            lower = lower_of_point(
                point,
                self.reader(),
                owner=self._view.owner,
                cache_dir=self._unpacked,
                promised=self.promised(live),
            )
        except BaseException:
            self._pins.unpin(point.oid)
            raise
        lower.on_close = functools.partial(self._pins.unpin, point.oid)
        return lower

    def promised(self, live: LiveWorkspace) -> PromisedObjects:
        """What gets the objects of the workspace's points that are not here."""
        timeout_s = live.assembly.network_timeout_s
        known = self._promised.get(live.id)
        if known is None or known.answer_timeout_s != timeout_s:

            def repositories() -> Sequence[Repository]:
                return self._repositories

            known = self._promised[live.id] = PromisedObjects(
                functools.partial(_sources, live), repositories, answer_timeout_s=timeout_s
            )
        return known

    def reader(self) -> JoinedObjects:
        """All that a point can name. Repositories come with entries that are new: then they are looked for again."""
        try:
            changed = os.stat(os.path.join(self._store.path, "repositories")).st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if self._objects is None or changed != self._objects_of:
            self._repositories = kept_repositories(self._store)
            self._objects = past_objects(self._store, self._repositories)
            self._objects_of = changed
        return self._objects


def _sources(live: LiveWorkspace) -> list[GitSource]:
    return [mounted.source for mounted in list(live.entries.values()) if mounted.source is not None]


class _Revisions:
    """The repositories of the git mount entries of one workspace."""

    def __init__(self, live: LiveWorkspace) -> None:
        self._live = live
        self._meanings: dict[tuple[str, str], tuple[float, bytes | ClivefsError]] = {}
        self._resolved: dict[tuple[str, bytes], tuple[GitSource, Resolved]] = {}

    def entries(self) -> Collection[str]:
        return [path for path, mounted in self._live.entries.items() if mounted.source is not None]

    def resolve(self, entry: str, revision: str) -> bytes:
        known = self._meanings.get((entry, revision))
        if known is not None and time.monotonic() - known[0] < _MEANING_S:
            if isinstance(known[1], ClivefsError):
                raise known[1]
            return known[1]
        mounted = self._live.entries[entry]

        def look() -> None:
            found: bytes | ClivefsError
            try:
                source, resolved = self._live.assembly.revision(mounted, revision)
                self._resolved[entry, resolved.commit] = source, resolved
                found = resolved.commit
            except ClivefsError as error:
                found = error
            self._meanings[entry, revision] = time.monotonic(), found

        raise Blocked(look, f"looking for {revision} of {entry}")

    def open(self, entry: str, commit: bytes) -> Lower:
        known = self._resolved.get((entry, commit))
        if known is None:
            self.resolve(entry, commit.hex())
            known = self._resolved[entry, commit]
        return self._live.assembly.revision_lower(*known)
