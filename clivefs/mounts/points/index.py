"""The points and sessions of one workspace, found by time, number, name and id. Format 1.

In the store's small records (integers big-endian, so that keys are in the order of time):

    points      workspace id (16 hexadecimal digits), time in ms (8 bytes)
                -> the commit (20 bytes), Clive-Seq (8 bytes), the session's name
    sessions    workspace id, the session's name
                -> JSON: start_ms, end_ms (0 while it goes on), first_seq, last_ms (0: no point yet), points,
                mountpoint, machine

and refs `refs/clive/sessions/WORKSPACE/SESSION`, each at its session's newest point.

Invariants: in a workspace a later point has a higher number. Record, session and ref of a point are written in one
transaction, with or after its objects: what is found here is whole.
"""

from __future__ import annotations

import json
import os
import struct
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.names import MS_MAX, automatic_session_name, check_session_name, point_name
from clivefs.mounts.points.point import Point, read_point
from clivefs.objects.encode import OID_BYTES
from clivefs.objects.errors import CorruptObject, ObjectMissing
from clivefs.objects.interface import ANY, Batch, Changes, MetaChange, ObjectStore, RefChange

SESSION_REFS = "refs/clive/sessions/"

_POINTS = "points"
_SESSIONS = "sessions"
_MS = struct.Struct(">Q")
_RECORD = struct.Struct(f">{OID_BYTES}sQ")


class IndexedPoint(NamedTuple):
    """What the index tells of a point."""

    ms: int
    oid: bytes
    seq: int
    session: str

    @property
    def name(self) -> str:
        return point_name(self.ms)


class Session(NamedTuple):
    """One session, as of when it was asked for."""

    name: str
    start_ms: int
    end_ms: int
    """0 while it goes on, or when nobody ended it."""
    first_seq: int
    """0: it has no point yet."""
    last_ms: int
    """The time of its newest point; 0: it has none yet."""
    points: int
    mountpoint: str
    machine: str


class Points:
    """The points of the workspace *workspace_id* in *store*. May be used from any thread; one at a time publishes."""

    def __init__(self, store: ObjectStore, workspace_id: str) -> None:
        self._store = store
        self._id = workspace_id
        self._prefix = workspace_id.encode()

    # Points

    def head(self) -> IndexedPoint | None:
        """The newest point of all."""
        return self.at(MS_MAX)

    def first(self) -> IndexedPoint | None:
        """The oldest point that is left."""
        return next(iter(self.between(0, MS_MAX, limit=1)), None)

    def at(self, ms: int) -> IndexedPoint | None:
        """The newest point at *ms* or before."""
        return next(iter(self.between(0, ms, reverse=True, limit=1)), None)

    def get(self, ms: int) -> IndexedPoint | None:
        """The point of exactly that time."""
        value = self._store.meta_get(_POINTS, self._key(ms)) if 0 <= ms <= MS_MAX else None
        return None if value is None else _decode(ms, value)

    def between(
        self, start_ms: int, end_ms: int, *, reverse: bool = False, limit: int | None = None
    ) -> list[IndexedPoint]:
        """The points from *start_ms* to *end_ms*, both included, oldest first or with *reverse* newest first."""
        return [_decode(ms, value) for ms, value in self._records(start_ms, end_ms, reverse, limit)]

    def before(self, point: Point) -> Point | None:
        """The point before *point* in time that is left: its parent, unless that was thinned."""
        found = self.at(point.ms - 1)
        return self.load(found.oid) if found is not None else None

    def has_gaps(self) -> bool:
        """Whether points were thinned: then not every one's parent is there. 0.2 s for 100,000."""
        numbers = [each.seq for each in self.between(0, MS_MAX)]
        return bool(numbers) and (numbers[0] != 1 or numbers[-1] != len(numbers))

    def by_seq(self, seq: int) -> IndexedPoint | None:
        """The point with this number; None where it is gone or is yet to be."""
        first, last = self.first(), self.head()
        if first is None or last is None:
            return None
        low, high = first.ms, last.ms
        while low < high:  # numbers are in the order of times
            middle = (low + high) // 2
            found = self.at(middle)
            if found is not None and found.seq >= seq:
                high = found.ms
            else:
                low = middle + 1
        found = self.get(low)
        return found if found is not None and found.seq == seq else None

    def by_id(self, prefix: str, *, limit: int = 10) -> list[IndexedPoint]:
        """At most *limit* points whose id begins with these hexadecimal digits. Looks at all: 0.1 s for 100,000."""
        start = bytes.fromhex(prefix[: len(prefix) // 2 * 2])
        found: list[IndexedPoint] = []
        for ms, value in self._records(0, MS_MAX, False, None):
            if value.startswith(start) and value[:OID_BYTES].hex().startswith(prefix):
                found.append(_decode(ms, value))
                if len(found) == limit:
                    break
        return found

    def by_oid(self, oid: bytes) -> list[IndexedPoint]:
        """The point that is the commit *oid*, if it is one of these."""
        try:
            ms = self.load(oid).ms
        except (ObjectMissing, CorruptObject):
            return []
        found = self.get(ms)
        return [found] if found is not None and found.oid == oid else []

    def load(self, oid: bytes) -> Point:
        """The point that the commit *oid* is. ObjectMissing; CorruptObject."""
        return read_point(oid, self._store.read_commit(oid))

    def _records(self, start_ms: int, end_ms: int, reverse: bool, limit: int | None) -> list[tuple[int, bytes]]:
        end_ms = min(end_ms, MS_MAX)
        if end_ms < max(start_ms, 0):
            return []
        start, end = self._key(max(start_ms, 0)), self._key(end_ms + 1)
        found = self._store.meta_range(_POINTS, start, end, reverse=reverse, limit=limit)
        at = len(self._prefix)
        return [(_MS.unpack_from(key, at)[0], value) for key, value in found]

    def _key(self, ms: int) -> bytes:
        return self._prefix + _MS.pack(ms)

    # Sessions

    def sessions(self) -> list[Session]:
        """All sessions, oldest first."""
        found = self._store.meta_range(_SESSIONS, self._prefix, self._prefix + b"\x7f")
        at = len(self._prefix)
        return sorted((_session(key[at:].decode(), value) for key, value in found), key=lambda each: each.start_ms)

    def session(self, name: str) -> Session | None:
        """The session of that name."""
        value = self._session_record(name)
        return None if value is None else _session(name, value)

    def names(self, session: str) -> list[str]:
        """The names of all points of a session, oldest first. 0.3 s for 100,000."""
        found = self.session(session)
        if found is None or not found.points:
            return []
        # Sessions of one workspace may overlap: what a peer recorded, say.
        wanted = session.encode()
        records = self._records(found.start_ms, found.last_ms, False, None)
        return [point_name(ms) for ms, value in records if value[_RECORD.size :] == wanted]

    def first_of(self, session: str) -> IndexedPoint | None:
        """The oldest point of a session that is left."""
        found = self.session(session)
        if found is None or not found.points:
            return None
        start = found.start_ms
        while records := self.between(start, found.last_ms, limit=64):
            mine = next((each for each in records if each.session == session), None)
            if mine is not None:
                return mine
            start = records[-1].ms + 1
        return None

    def latest_of(self, session: str) -> IndexedPoint | None:
        """The newest point of a session."""
        found = self.session(session)
        return self.get(found.last_ms) if found is not None and found.last_ms else None

    def start_session(self, start_ms: int, *, mountpoint: str, machine: str, name: str | None = None) -> Session:
        """Start a session, called *name* or by its start; durable. ClivefsError: the name is taken, or none."""
        if name is None:
            name = automatic_session_name(start_ms, {each.name for each in self.sessions()})
        check_session_name(name)
        taken = self.session(name)
        if taken is not None:
            raise ClivefsError(
                f"there is already a session {name!r}, of {point_name(taken.start_ms)}", remedy="Choose another name."
            )
        session = Session(name, start_ms, 0, 0, 0, 0, mountpoint, machine)
        with self._store.batch() as batch:
            batch.meta_put(_SESSIONS, self._session_key(name), _session_value(session), None)
        return session

    def end_session(self, name: str, end_ms: int) -> None:
        """Note that a session ended; durable. One that has ended stays as it is. ClivefsError where there is none."""
        value = self._session_record(name)
        if value is None:
            raise ClivefsError(f"there is no session {name!r}", remedy="`clivefs session list` shows which there are.")
        session = _session(name, value)
        if not session.end_ms:
            with self._store.batch() as batch:
                ended = session._replace(end_ms=max(end_ms, session.last_ms))
                batch.meta_put(_SESSIONS, self._session_key(name), _session_value(ended), value)

    def _session_key(self, name: str) -> bytes:
        return self._prefix + os.fsencode(name)

    def _session_record(self, name: str) -> bytes | None:
        return self._store.meta_get(_SESSIONS, self._session_key(name))

    # Publishing

    def publish(self, batch: Batch, point: Point) -> None:
        """Put the point's commit, its record, its session's and the ref into *batch*, which has its other objects.

        The batch must have ended before the next point is published. A Conflict at its end: somebody else
        published meanwhile. ValueError for a point that is not newer than all others, or whose session there is not.
        """
        head = self.head()
        if head is not None and (point.ms <= head.ms or point.seq <= head.seq):
            raise ValueError(f"point {point.seq} of {point.name} is not newer than {head.seq} of {head.name}")
        value = self._session_record(point.session)
        if value is None:
            raise ValueError(f"there is no session {point.session!r}")
        old = _session(point.session, value)
        if point.ms < old.start_ms:
            raise ValueError(f"point {point.seq} of {point.name} is older than its session")
        new = old._replace(first_seq=old.first_seq or point.seq, last_ms=point.ms, points=old.points + 1)
        record = _RECORD.pack(point.oid, point.seq) + point.session.encode()
        ref = f"{SESSION_REFS}{self._id}/{point.session}"
        if batch.commit(point.commit()) != point.oid:
            raise ValueError("a point has not the id of its commit")
        batch.meta_put(_POINTS, self._key(point.ms), record, None)
        batch.meta_put(_SESSIONS, self._session_key(point.session), _session_value(new), value)
        batch.set_ref(ref, point.oid, self._store.get_ref(ref))

    # Forgetting

    def forget(self, gone: Sequence[IndexedPoint]) -> None:
        """Remove the records of points, and adjust those of their sessions: one that has ended and has none left goes
        too. Durable, in one transaction. Only behind the store's gate (`gc.alone`), where nobody publishes."""
        changes = Changes()
        times = {each.ms for each in gone}
        changes.meta += [MetaChange(_POINTS, self._key(ms), None, ANY) for ms in times]
        for name, count in Counter(each.session for each in gone).items():
            value = self._session_record(name)
            if value is None:
                continue
            old = _session(name, value)
            ref = f"{SESSION_REFS}{self._id}/{name}"
            newest = self._nearest(old, times, reverse=True)
            oldest = self._nearest(old, times, reverse=False)
            if newest is None or oldest is None:
                new = old._replace(first_seq=0, last_ms=0, points=0)
            else:
                left = max(1, old.points - count)
                new = old._replace(first_seq=oldest.seq, last_ms=newest.ms, points=left)
            is_over = newest is None and bool(old.end_ms)
            changes.meta.append(
                MetaChange(_SESSIONS, self._session_key(name), None if is_over else _session_value(new), value)
            )
            if self._store.get_ref(ref) is not None:
                changes.refs.append(RefChange(ref, newest.oid if newest is not None else None, ANY))
        self._store.apply(changes).result()

    def rewrite(self, changes: Changes, ids: Mapping[bytes, bytes]) -> int:
        """Add to *changes* that every point of *ids* is another commit of the same time and number; how many."""
        count = 0
        for each in self.between(0, MS_MAX):
            new = ids.get(each.oid)
            if new is not None and new != each.oid:
                record = _RECORD.pack(new, each.seq) + each.session.encode()
                changes.meta.append(MetaChange(_POINTS, self._key(each.ms), record, ANY))
                count += 1
        prefix = f"{SESSION_REFS}{self._id}/"
        for name, oid in self._store.refs(prefix).items():
            changes.refs.append(RefChange(name, ids.get(oid, oid), oid))
        return count

    def _nearest(self, session: Session, without: Container[int], *, reverse: bool) -> IndexedPoint | None:
        """The newest (or oldest) point of *session* whose time is not among *without*."""
        start, end = session.start_ms, session.last_ms
        while records := self.between(start, end, reverse=reverse, limit=64):
            mine = (each for each in records if each.session == session.name and each.ms not in without)
            found = next(mine, None)
            if found is not None:
                return found
            start, end = (start, records[-1].ms - 1) if reverse else (records[-1].ms + 1, end)
        return None


def record_of(key: bytes, value: bytes) -> IndexedPoint:
    """The point that a record of `points` tells of; *key* without the workspace. CorruptObject."""
    if len(key) != _MS.size:
        raise CorruptObject("the record of a point has no time")
    return _decode(_MS.unpack(key)[0], value)


def _decode(ms: int, value: bytes) -> IndexedPoint:
    if len(value) <= _RECORD.size:
        raise CorruptObject(f"the record of the point {point_name(ms)} is cut short")
    oid, seq = _RECORD.unpack_from(value)
    return IndexedPoint(ms, oid, seq, value[_RECORD.size :].decode("ascii", "replace"))


def _session(name: str, value: bytes) -> Session:
    try:
        return Session(name=name, **json.loads(value))
    except (ValueError, TypeError) as error:
        raise CorruptObject(f"the record of the session {name!r} is malformed ({error})") from error


def _session_value(session: Session) -> bytes:
    fields = session._asdict()
    del fields["name"]
    return json.dumps(fields).encode()
