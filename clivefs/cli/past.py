"""The recorded past of a workspace, as its command line reads it: straight from the store, mounted or not."""

from __future__ import annotations

import contextlib
import difflib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass

from clivefs.base.errors import ClivefsError
from clivefs.cli import locate, moments
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon
from clivefs.cli.locate import Workspace
from clivefs.cli.output import visible
from clivefs.cli.report import how_far
from clivefs.mounts import identity
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points import expressions
from clivefs.mounts.points.compare import State
from clivefs.mounts.points.history import beside_patch
from clivefs.mounts.points.index import IndexedPoint, Points
from clivefs.mounts.points.objects import kept_repositories, past_objects
from clivefs.mounts.points.point import Point
from clivefs.objects.errors import StoreError
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store

_NAMED_MAX = 3


@dataclass(frozen=True, slots=True)
class Past:
    """A workspace's points, and where their objects are."""

    place: Workspace
    store: Store
    workspace_id: str
    points: Points
    reader: JoinedObjects
    repositories: tuple[Repository, ...]
    scratch: str

    def find(self, text: str) -> Point:
        """The point that an expression means, zoneless times in this machine's zone. ClivefsError that says what would
        have been right."""
        found = expressions.find_moment(self.points, moments.moment(text))
        assert isinstance(found, IndexedPoint)
        return self.points.load(found.oid)

    def head(self) -> Point:
        """The newest point. ClivefsError where there is none."""
        return self.find("now")

    def below(self, path: str) -> bytes:
        """*path* as a person names it, below the workspace; empty for all of it. ClivefsError in a fork."""
        return moments.below(self.place, path)

    def check_session(self, name: str) -> None:
        """ClivefsError that says which sessions there are, where there is none called *name*."""
        known = [each.name for each in self.points.sessions()]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3) or known[-5:][::-1]
            raise ClivefsError(f"there is no session {name!r}", remedy=f"Sessions: {', '.join(near)}.")


@contextlib.contextmanager
def opened(call: Call, *, fresh: bool = True, reading: bool = True) -> Iterator[Past]:
    """The past of the workspace that the call means; with *fresh* everything that was saved before is in it. While it
    is open for *reading* no collection removes anything."""
    place = locate.find(call)
    if fresh and place.daemon is not None:
        _settle(call, place, place.daemon)
    with opened_at(call, place) as found, found.store.reading() if reading else contextlib.nullcontext():
        yield found


@contextlib.contextmanager
def opened_at(call: Call, place: Workspace) -> Iterator[Past]:
    """The past of a workspace that has been found already, whatever became of it meanwhile."""
    try:
        store = Store.open(call.store, create=False)
    except StoreError as error:
        raise ClivefsError(
            "nothing has been recorded yet", place=place.root, remedy=f"clivefs mount {place.root}"
        ) from error
    with store:
        number = identity.workspace_id(store, place.root)
        repositories = kept_repositories(store)
        reader = past_objects(store, repositories)
        yield Past(place, store, number, Points(store, number), reader, repositories, scratch_directory(store.path))


def _settle(call: Call, place: Workspace, daemon: Daemon) -> None:
    """Have everything recorded; what cannot be now, or takes long, is no reason not to show the past."""
    try:
        point = daemon.ask("snapshot", workspace=place.name, needed=[])
    except ClivefsError as error:
        call.out.note(f"what was changed last is not in it: {error.message}")
        return
    reading = [f"{visible(each['path'])} ({how_far(each)})" for each in point.get("reading", ())]
    if reading:
        more = f" and {len(reading) - _NAMED_MAX:,} more" if reading[_NAMED_MAX:] else ""
        call.out.note(f"not recorded yet as it is now, so not in it: {', '.join(reading[:_NAMED_MAX])}{more}")


def line_of(point: Point) -> str:
    """A point on one line, for people; the time is this machine's."""
    return f"@{point.seq:<6} {local_time(point.ms)}  {point.oid.hex()[:12]}  {point.origin:<8}  {subject_of(point)}"


def tell_beside(call: Call, found: Past, between: tuple[State, State], path: bytes = b"") -> None:
    """Tell of what a patch cannot hold: a line each, with a letter of what happened."""
    differs = beside_patch(found.reader, *between, path)
    call.out.lines(f"{each.status} {os.fsdecode(each.path)}" for each in differs)


def subject_of(point: Point) -> str:
    """The first line of a point's text."""
    return point.message.partition("\n")[0]


def local_time(ms: int) -> str:
    """A time in ms in this machine's zone, with its milliseconds."""
    seconds, rest = divmod(ms, 1000)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) + f".{rest:03d}"
