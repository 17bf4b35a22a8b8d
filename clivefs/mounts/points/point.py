"""A point as a git commit. Format 1.

The commit's tree is the whole tree of the view, its parent (if it has one) the point before. Author and committer are
`clivefs <clivefs@MACHINE>` at the point's second, in UTC. The message is a text for people and a last paragraph of
trailers as git-interpret-trailers(1) reads them:

    Clive-Seq: 17                               counts the points of a workspace; each is higher than those before
    Clive-Time: 2026-11-21T03:22:31.123Z        the point's name
    Clive-Machine: desk                         where it was recorded
    Clive-Session: 2026-11-21t03-20-00z
    Clive-Origin: mount                         or outside, rule:NAME, peer:NAME, command:NAME
    Clive-Meta: 3f2a...                         the metadata tree (see `metadata`); left out where there is none
    Clive-Path: src/a.py                        a path that changed; one line each, at most 100
    Clive-More-Paths: 12                        how many changed beyond those

A path is quoted as git quotes paths where it has bytes other than printable ASCII, a quote or a backslash, and where a
reader of trailers would lose a blank at its ends, or all of it. Trailers that are not known are passed over.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from clivefs.mounts.points.names import MS_MAX, is_session_name, parse_point_name, point_name
from clivefs.objects.encode import OID_BYTES, Commit, Signature, encode_commit, hash_object
from clivefs.objects.errors import CorruptObject

PATHS_MAX = 100
SEQ_MAX = (1 << 63) - 1

_SUBJECT_BYTES_MAX = 160
_MACHINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,253}")
_ORIGIN = re.compile(r"mount|outside|(?:rule|peer|command):[^\x00-\x1f\x7f]{1,200}")
_HEX = re.compile(r"[0-9a-f]{40}")
_PLAIN = re.compile(rb"(?! )[ !#-\[\]-~]+(?<! )")
_ESCAPES = {0x07: b"a", 0x08: b"b", 0x09: b"t", 0x0A: b"n", 0x0B: b"v", 0x0C: b"f", 0x0D: b"r", 0x22: b'"', 0x5C: b"\\"}
_UNESCAPES = {escape: bytes((byte,)) for byte, escape in _ESCAPES.items()}
_ESCAPED = re.compile(rb"\\([abtnvfr\"\\]|[0-3][0-7]{2})")
_QUOTED = re.compile(rb'"((?:[^"\\\n]|\\.)*)"')


class Point(NamedTuple):
    """One recorded state of a workspace. Made by `make_point`, or read by `read_point`."""

    oid: bytes
    """The commit."""
    ms: int
    """When: UTC, milliseconds since the epoch."""
    seq: int
    session: str
    machine: str
    origin: str
    tree: bytes
    meta: bytes | None
    parent: bytes | None
    paths: tuple[bytes, ...]
    """At most 100 of the paths that changed."""
    more_paths: int
    message: str
    """The text for people: its first line is the subject."""

    @property
    def name(self) -> str:
        return point_name(self.ms)

    def commit(self) -> Commit:
        """The commit that the point is: its name is `oid`."""
        return _commit(self)


def make_point(
    *,
    ms: int,
    seq: int,
    session: str,
    machine: str,
    origin: str,
    tree: bytes,
    meta: bytes | None,
    parent: bytes | None,
    paths: Sequence[bytes] = (),
    more_paths: int = 0,
    message: str = "",
) -> Point:
    """A new point. Of *paths* the first 100 are named, the others counted; without *message* they are its text.

    ValueError for what the format cannot hold.
    """
    named = tuple(paths[:PATHS_MAX])
    more = more_paths + len(paths) - len(named)
    text = _text(message) or _subject(named, more, session if parent is None else None)
    point = Point(b"", ms, seq, session, machine_name(machine), origin, tree, meta, parent, named, more, text)
    why = _wrong(point)
    if why is not None:
        raise ValueError(why)
    return point._replace(oid=hash_object("commit", encode_commit(_commit(point))))


def read_point(oid: bytes, commit: Commit) -> Point:
    """The point that *commit*, of the name *oid*, is. CorruptObject where it is none."""
    text, _, last = commit.message.removesuffix(b"\n").rpartition(b"\n\n")
    trailers: dict[bytes, list[bytes]] = {}
    for line in last.split(b"\n"):
        key, colon, value = line.partition(b": ")
        if colon:
            trailers.setdefault(key, []).append(value)

    def one(key: bytes, default: str | None = None) -> str:
        found = trailers.get(b"Clive-" + key)
        if found is None and default is not None:
            return default
        if found is None or len(found) != 1:
            raise CorruptObject(f"a point needs one Clive-{key.decode()}", oid=oid)
        return found[0].decode("utf-8", "surrogateescape")

    ms = parse_point_name(one(b"Time"))
    meta = one(b"Meta", "")
    if ms is None or (meta and not _HEX.fullmatch(meta)) or len(commit.parents) > 1:
        raise CorruptObject("this commit is not a point as we write them", oid=oid)
    point = Point(
        oid,
        ms,
        _number(one(b"Seq"), oid),
        one(b"Session"),
        one(b"Machine"),
        one(b"Origin"),
        commit.tree,
        bytes.fromhex(meta) if meta else None,
        commit.parents[0] if commit.parents else None,
        tuple(unquote_path(path, oid) for path in trailers.get(b"Clive-Path", ())),
        _number(one(b"More-Paths", "0"), oid),
        text.decode("utf-8", "surrogateescape"),
    )
    why = _wrong(point)
    if why is not None:
        raise CorruptObject(why, oid=oid)
    return point


def machine_name(host: str) -> str:
    """A host's name as points have it: what an address cannot hold becomes `-`."""
    found = re.sub(r"[^A-Za-z0-9._-]", "-", host)[:254].lstrip("._-")
    return found or "unknown"


def _wrong(point: Point) -> str | None:
    """Why there can be no such point, or None."""
    if not 0 <= point.ms <= MS_MAX:
        return f"a point cannot be of the time {point.ms}"
    if not 0 < point.seq <= SEQ_MAX:
        return f"a point cannot have the number {point.seq}"
    if not is_session_name(point.session):
        return f"a point cannot be of a session {point.session!r}"
    if not _MACHINE.fullmatch(point.machine):
        return f"a point cannot be of a machine {point.machine!r}"
    if not _ORIGIN.fullmatch(point.origin):
        return f"a point cannot have the origin {point.origin!r}"
    if any(oid is not None and len(oid) != OID_BYTES for oid in (point.tree, point.meta, point.parent)):
        return "a point names something that is not an object"
    if not 0 <= point.more_paths <= SEQ_MAX or len(point.paths) > PATHS_MAX:
        return "a point names more paths than it may"
    if any(b"\0" in path for path in point.paths):
        return "a point names a path with a NUL in it"
    if not point.message:
        return "a point has no message"
    return None


def _number(text: str, oid: bytes) -> int:
    if not re.fullmatch(r"\d{1,19}", text, re.ASCII):
        raise CorruptObject(f"a point has the number {text[:40]!r}", oid=oid)
    return int(text)


def _commit(point: Point) -> Commit:
    who = Signature(b"clivefs", b"clivefs@" + point.machine.encode(), point.ms // 1000)
    trailers = [
        (b"Seq", b"%d" % point.seq),
        (b"Time", point.name.encode()),
        (b"Machine", point.machine.encode()),
        (b"Session", point.session.encode()),
        (b"Origin", point.origin.encode("utf-8", "surrogateescape")),
    ]
    if point.meta is not None:
        trailers.append((b"Meta", point.meta.hex().encode()))
    trailers += [(b"Path", quote_path(path)) for path in point.paths]
    if point.more_paths:
        trailers.append((b"More-Paths", b"%d" % point.more_paths))
    text = point.message.encode("utf-8", "surrogateescape")
    message = text + b"\n\n" + b"".join(b"Clive-%b: %b\n" % trailer for trailer in trailers)
    parents = (point.parent,) if point.parent is not None else ()
    return Commit(point.tree, parents, who, who, message)


def _text(message: str) -> str:
    """A message as a commit holds it: no NUL, no blanks at the end of a line, no empty lines around it."""
    lines = [line.rstrip() for line in message.replace("\0", "").splitlines()]
    return "\n".join(lines).strip("\n")


def _subject(paths: Sequence[bytes], more: int, session: str | None) -> str:
    """The first line of a point's text, from what changed; *session* where it is the first point of all."""
    if session is not None:
        return f"start of {session}"
    if not paths:
        return "nothing changed" if not more else f"{more} paths"
    others = len(paths) - 1 + more
    first = quote_path(min(paths, key=_is_aside)).decode()
    if len(first) > _SUBJECT_BYTES_MAX:
        first = "..." + first[-_SUBJECT_BYTES_MAX:]
    return f"{first} and {others} more" if others else first


def _is_aside(path: bytes) -> bool:
    """Whether a path is of what an editor keeps beside a file: others tell more of what a point is about."""
    name = path.rpartition(b"/")[2]
    return name.startswith(b".") or name.endswith(b"~")


def quote_path(path: bytes) -> bytes:
    """A path on one line: as it is, or in quotes with escapes as git's quote_c_style() writes them."""
    if _PLAIN.fullmatch(path):
        return path
    parts = [b'"']
    for byte in path:
        escape = _ESCAPES.get(byte)
        if escape is not None:
            parts.append(b"\\" + escape)
        elif 0x20 <= byte < 0x7F:
            parts.append(bytes((byte,)))
        else:
            parts.append(b"\\%03o" % byte)
    return b"".join(parts) + b'"'


def unquote_path(text: bytes, oid: bytes | None = None) -> bytes:
    """The path that `quote_path` wrote. CorruptObject, of the commit *oid*."""
    if not text.startswith(b'"'):
        return text
    match = _QUOTED.fullmatch(text)
    if match is None or b"\\" in _ESCAPED.sub(b"", match[1]):
        raise CorruptObject(f"a point has the path {text[:80]!r}", oid=oid)
    return _ESCAPED.sub(lambda found: _UNESCAPES.get(found[1]) or bytes((int(found[1], 8),)), match[1])
