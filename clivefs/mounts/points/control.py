"""What a workspace's `.clive` shows of its past.

    sessions/                    the sessions
    sessions/SESSION/            its points, oldest first, after `start` and `latest`, symlinks to two of them
    sessions/SESSION/POINT/      the tree of a point
    at/EXPRESSION                a symlink to what the expression means now (see `expressions`)
    revisions/ENTRY@COMMIT/      the tree of a commit of a git mount entry, where `at/ENTRY:REVISION` leads

The last two answer lookups and are never listed.

Names are looked up in the index when they are asked for: nothing is kept for points that nobody uses, and a listing
looks into none. What changes as points are recorded is `degraded`, so the kernel asks again; the trees of points are
not. A large listing is made in a thread.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import re
import stat
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Protocol

from clivefs.base.errors import ClivefsError
from clivefs.mounts.inodenumbers import inode_number
from clivefs.mounts.lower import Lower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.points.expressions import GitRevision, find, needs_a_search
from clivefs.mounts.points.index import IndexedPoint, Points, Session
from clivefs.mounts.points.names import is_session_name, parse_point_name
from clivefs.mounts.points.past import PastTop, PastTree
from clivefs.mounts.points.point import Point
from clivefs.mounts.tree import Attr, Blocked, DirEntry, Node, OpenFile, Owner, Tree, refuse
from clivefs.objects.errors import CorruptObject, ObjectMissing

log = logging.getLogger(__name__)

LISTED_INLINE = 500
"""A session with more points takes over a millisecond to list: that is done in a thread."""
LINKS = (b"start", b"latest")
_REVISION = re.compile(r"(.+)@([0-9a-f]{40})", re.DOTALL)
_MS = 1_000_000
_NUMBERS = (1 << 63) - 2
_SPREAD = 0x9E3779B97F4A7C15
"""2^64 divided by the golden ratio: multiples of it lie apart."""
_SEARCHED_MAX = 100


class Revisions(Protocol):
    """The repositories of a workspace's git mount entries."""

    def entries(self) -> Collection[str]:
        """The paths of the git mount entries."""
        ...

    def resolve(self, entry: str, revision: str) -> bytes:
        """The commit that *revision* is in the repository of *entry*. ClivefsError; may be `Blocked`."""
        ...

    def open(self, entry: str, commit: bytes) -> Lower:
        """What the mount entry would show at that commit. OSError; may be `Blocked`."""
        ...


class _Directory(Node):
    """A directory of ours. `session` is set for that of a session."""

    __slots__ = ("first_number", "session")

    def __init__(self, tree: Tree, parent: Node | None, name: bytes, session: str = "", first_number: int = 0) -> None:
        super().__init__(tree, parent, name)
        self.session = session
        self.first_number = first_number

    def number_of(self, ms: int) -> int:
        """The inode number of the point of that time: another for every one, and cheap, as listings are long."""
        return (self.first_number + ms * _SPREAD) % _NUMBERS + 2


class _Link(Node):
    """A symlink of ours, resolved whenever it is read."""

    __slots__ = ("target",)

    def __init__(self, tree: Tree, parent: Node, name: bytes, target: Callable[[], bytes]) -> None:
        super().__init__(tree, parent, name)
        self.target = target


class PastControl(Tree):
    """The directories `sessions`, `at` and `revisions` of the workspace whose points are *points*."""

    writable = False
    degraded = True

    def __init__(
        self,
        points: Points,
        table: NodeTable,
        *,
        identity: bytes,
        owner: Owner,
        now_ms: Callable[[], int],
        open_point: Callable[[Point], Lower],
        revisions: Revisions | None = None,
    ) -> None:
        """*identity* tells the workspace from every other, for inode numbers. *open_point*: the layer of a point, as
        `lower.lower_of_point` makes it (OSError). The three directories are put into `.clive` by the view."""
        self._points = points
        self._table = table
        self._identity = identity
        self._owner = owner
        self._now_ms = now_ms
        self._open_point = open_point
        self._revisions_of = revisions
        self._listings: dict[str, list[bytes]] = {}
        self._searched: dict[str, IndexedPoint | None] = {}
        self.sessions = self._root(b"sessions")
        self.at = self._root(b"at")
        self.revisions = self._root(b"revisions")
        self.root = self.sessions
        self.past = PastTree(self.root, table, owner)
        """The trees of points and revisions."""

    def directories(self) -> dict[bytes, Node]:
        """What belongs into `.clive`, by name."""
        found: dict[bytes, Node] = {b"sessions": self.sessions, b"at": self.at}
        if self._revisions_of is not None:
            found[b"revisions"] = self.revisions
        return found

    def _root(self, name: bytes) -> _Directory:
        node = _Directory(self, None, name)
        self._table.add(node, inode_number(b"past", self._identity, name), pin=True)
        return node

    # Names

    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        return self._get(directory, name, listed=False)

    def listed(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        return self._get(directory, name, listed=True)

    def lister(self, directory: Node) -> Callable[[bytes], tuple[Node, Attr]]:
        return functools.partial(self.listed, directory)

    def numberer(self, directory: Node) -> Callable[[bytes], tuple[int, int]] | None:
        assert isinstance(directory, _Directory)
        if not directory.session:
            return None
        known = directory.children or {}

        def number(name: bytes) -> tuple[int, int]:
            ms = parse_point_name(name.decode()) if name not in known and name not in LINKS else None
            if ms is not None:
                return directory.number_of(ms), stat.S_IFDIR
            node, attr = self.listed(directory, name)
            told = node.nodeid, attr.mode
            self._table.release(node)
            return told

        return number

    def _get(self, directory: Node, name: bytes, *, listed: bool) -> tuple[Node, Attr]:
        """The child of that name. *listed*: it was just found in the index."""
        assert isinstance(directory, _Directory)
        try:
            text = name.decode()
        except UnicodeDecodeError:
            raise refuse(errno.ENOENT, name) from None
        if directory is self.at:
            return self._link(directory, name, functools.partial(self._meaning, text))
        if directory is self.revisions:
            return self._opened(self._revision(directory, name, text))
        if directory is self.sessions:
            if not is_session_name(text) or self._points.session(text) is None:
                raise refuse(errno.ENOENT, name)
            node = self._child(directory, name)
            if node is None:
                first = inode_number(b"points", self._identity, name)
                node = self._add(_Directory(self, directory, name, text, first))
            return node, self.getattr(node)
        if name in LINKS:
            return self._link(directory, name, functools.partial(self._end_of, directory.session, text))
        ms = parse_point_name(text)
        if ms is None or not (listed or self._is_of(ms, directory.session)):
            raise refuse(errno.ENOENT, name)
        known = self._child(directory, name)
        if known is None:
            known = self.past.top(directory, name, directory.number_of(ms), ms * _MS, functools.partial(self._open, ms))
        assert isinstance(known, PastTop)
        return (known, self.past.glance(known)) if listed else self._opened(known)

    def _opened(self, top: PastTop) -> tuple[Node, Attr]:
        """A top and its attributes, which takes a look into it."""
        try:
            return top, self.past.getattr(top)
        except BaseException:
            self._table.release(top)
            raise

    def _child(self, directory: _Directory, name: bytes) -> Node | None:
        return directory.children.get(name) if directory.children else None

    def _add(self, node: Node) -> Node:
        parent = node.parent
        assert parent is not None
        above = parent.nodeid.to_bytes(8, "little")
        self._table.add(node, inode_number(b"past", above, node.name))
        if parent.children is None:
            parent.children = {}
        parent.children[node.name] = node
        return node

    def _link(self, directory: _Directory, name: bytes, target: Callable[[], bytes]) -> tuple[Node, Attr]:
        length = len(target())  # ENOENT for one that leads nowhere; may be `Blocked`
        node = self._child(directory, name) or self._add(_Link(self, directory, name, target))
        return node, self._link_attr(length)

    def _is_of(self, ms: int, session: str) -> bool:
        found = self._points.get(ms)
        return found is not None and found.session == session

    def _open(self, ms: int) -> Lower:
        found = self._points.get(ms)
        if found is None:  # thinned since it was listed
            raise refuse(errno.ESTALE)
        try:
            point = self._points.load(found.oid)
        except (ObjectMissing, CorruptObject) as error:
            log.warning("point %s cannot be shown: %s", found.name, error)
            raise refuse(errno.EIO) from error
        return self._open_point(point)

    def _revision(self, directory: _Directory, name: bytes, text: str) -> PastTop:
        match = _REVISION.fullmatch(text)
        entries = self._revisions_of.entries() if self._revisions_of is not None else ()
        entry = next((each for each in entries if match is not None and each.replace("/", ":") == match[1]), None)
        if entry is None or match is None or self._revisions_of is None:
            raise refuse(errno.ENOENT, name)
        known = self._child(directory, name)
        if isinstance(known, PastTop):
            return known
        commit = bytes.fromhex(match[2])
        number = inode_number(b"revision", self._identity, name)
        return self.past.top(directory, name, number, 0, functools.partial(self._revisions_of.open, entry, commit))

    # Where the links lead

    def _end_of(self, session: str, word: str) -> bytes:
        found = self._points.first_of(session) if word == "start" else self._points.latest_of(session)
        if found is None:
            raise refuse(errno.ENOENT)
        return found.name.encode()

    def _meaning(self, text: str) -> bytes:
        """The target of `at/TEXT`. ENOENT where it means nothing; may be `Blocked`."""
        found: IndexedPoint | GitRevision
        try:
            found = self._searched_for(text) if needs_a_search(self._points, text) else self._find(text)
        except ClivefsError as error:
            raise refuse(errno.ENOENT, os.fsencode(text)) from error
        if isinstance(found, IndexedPoint):
            return f"../sessions/{found.session}/{found.name}".encode()
        assert self._revisions_of is not None
        try:
            commit = self._revisions_of.resolve(found.path, found.revision)
        except ClivefsError as error:
            raise refuse(errno.ENOENT, os.fsencode(text)) from error
        return os.fsencode(f"../revisions/{found.path.replace('/', ':')}@{commit.hex()}")

    def _find(self, text: str) -> IndexedPoint | GitRevision:
        entries = self._revisions_of.entries() if self._revisions_of is not None else ()
        return find(self._points, text, now_ms=self._now_ms(), in_path=True, entries=entries)

    def _searched_for(self, text: str) -> IndexedPoint:
        """`_find` of a point's id, in a thread; remembered as long as the point is there."""
        if text in self._searched:
            answer = self._searched[text]
            if answer is not None and self._points.get(answer.ms) == answer:
                return answer
            del self._searched[text]
            if answer is None:
                raise refuse(errno.ENOENT, text.encode())

        def search() -> None:
            found: IndexedPoint | None = None
            with suppress(ClivefsError):
                answer = self._find(text)
                found = answer if isinstance(answer, IndexedPoint) else None
            if len(self._searched) >= _SEARCHED_MAX:
                self._searched.clear()
            self._searched[text] = found

        raise Blocked(search, f"looking for point {text}")

    # Listings

    def names(self, directory: Node) -> list[bytes]:
        assert isinstance(directory, _Directory)
        if directory is self.sessions:
            return [each.name.encode() for each in self._points.sessions()]
        if not directory.session:
            return []
        session = self._points.session(directory.session)
        if session is None or not session.points:
            return []
        return [*LINKS, *self._point_names(session)]

    def _point_names(self, session: Session) -> list[bytes]:
        if session.points <= LISTED_INLINE:
            return _encoded(self._points.names(session.name))
        found = self._listings.pop(session.name, None)
        if found is None:

            def make() -> None:
                self._listings.clear()  # of a caller that was killed
                self._listings[session.name] = _encoded(self._points.names(session.name))

            raise Blocked(make, f"listing {session.points} points of {session.name}")
        return found

    def entries(self, directory: Node) -> list[DirEntry]:
        return [DirEntry(name, stat.S_IFLNK if name in LINKS else stat.S_IFDIR) for name in self.names(directory)]

    # Attributes

    def getattr(self, node: Node) -> Attr:
        if isinstance(node, _Link):
            return self._link_attr(len(node.target()))
        assert isinstance(node, _Directory)
        mtime_ns = 0
        if node.session:
            session = self._points.session(node.session)
            if session is None:
                raise refuse(errno.ESTALE, node.name)
            mtime_ns = (session.last_ms or session.start_ms) * _MS
        elif node is not self.revisions:
            head = self._points.head()
            mtime_ns = head.ms * _MS if head is not None else 0
        return Attr(stat.S_IFDIR | 0o755, 0, mtime_ns, uid=self._owner.uid, gid=self._owner.gid)

    def _link_attr(self, length: int) -> Attr:
        return Attr(stat.S_IFLNK | 0o777, length, self._now_ms() * _MS, uid=self._owner.uid, gid=self._owner.gid)

    def readlink(self, node: Node) -> bytes:
        if not isinstance(node, _Link):
            raise refuse(errno.EINVAL, node.name)
        return node.target()

    def open(self, node: Node, flags: int) -> OpenFile:
        raise refuse(errno.ELOOP if isinstance(node, _Link) else errno.EISDIR, node.name)

    def describe(self, node: Node) -> dict[str, bytes]:
        return {"layer": b"control"}

    def close(self) -> None:
        for each in (self.sessions, self.at, self.revisions):
            self._table.unpin(each)


def _encoded(names: list[str]) -> list[bytes]:
    return [name.encode() for name in names]
