"""What a fork stands on: the tree of its point, and below that the ignored files of the live view.

The point decides first. Where it has nothing, and its own ignore rules (those of `RulesOfThen` and of its `.gitignore`
files) say that nothing is recorded there, the live view's file shows through, unless it came later. What the live view
is about to change is kept before (`keeping`), so an inherited file is what it was; only who changes one behind the
mount's back changes it here too.

References are by path and find out anew where an inherited file lies, each time that they are used.
"""

from __future__ import annotations

import copy
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from clivefs.mounts.forks.ignored import Ignored
from clivefs.mounts.forks.inherited import Inherited
from clivefs.mounts.forks.livefiles import GONE, LiveFiles, Trees, host_xattrs, tree_xattrs
from clivefs.mounts.forks.ref import ForkRef
from clivefs.mounts.git.space import Reader
from clivefs.mounts.host.calls import HostFile
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.points.lower import PointLower
from clivefs.mounts.recording.parts import join
from clivefs.mounts.tree import Attr, Blocked, DirEntry, Node, OpenFile, Tree, refuse

DOT_GIT = b".git"
_CONTEXTS_MAX = 4096
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


Look = Callable[[], tuple[Tree, Node, Attr] | None]
"""What finds a file of the live view."""


class ForkLower(Lower):
    """The point *point* with what *inherited* and the live view add. For the loop's thread."""

    live = False

    def __init__(
        self,
        point: PointLower,
        reader: Reader,
        inherited: Inherited,
        table: NodeTable,
        live: Trees,
        *,
        entries: Iterable[bytes] = (),
        git: Mapping[bytes, bytes] | None = None,
        made_ns: int = 0,
        unfinished: Mapping[bytes, Callable[[], None]] | None = None,
    ) -> None:
        """It owns *point* and *inherited*. *entries*: the paths where ignore rules start anew. *git*: the content of
        the `.git` file in each git working tree; *made_ns*: their time; *unfinished*: what is to be done before
        somebody reads it, in a thread."""
        self._point = point
        self.inherited = inherited
        self._live = LiveFiles(table, live)
        self._ignored = Ignored(inherited.rules, point, reader, entries)
        self._git = {path: _GitFile(content) for path, content in (git or {}).items()}
        self._unfinished = dict(unfinished or {})
        self._made_ns = made_ns
        self._contexts: OrderedDict[bytes, ForkRef | None] = OrderedDict()
        self._open: dict[bytes, list[InheritedFile]] = {}
        self._root: ForkRef | None = None

    @property
    def root(self) -> ForkRef:
        if self._root is None:
            self._root = ForkRef(stat.S_IFDIR, None, b"", b"", self._point.root, ignored=False)
        return self._root

    # Rules

    def ignores(self, directory: ForkRef, name: bytes, kind: int) -> bool:
        """Whether nothing is recorded at *name*."""
        return self._ignored.ignores(directory, name, kind)

    def ignores_at(self, names: list[bytes]) -> bool:
        """Whether no directory at the path *names* is recorded, going by the rules of the point."""
        at: ForkRef | None = self.root
        for name in names:
            if at is None:
                return False
            if self.ignores(at, name, stat.S_IFDIR):
                return True
            at = self.child(at, name)
        return False

    # Names

    def child(self, directory: LowerRef, name: bytes) -> ForkRef | None:
        own = _own(directory)
        if own.kind != stat.S_IFDIR or not name:
            return None
        found = self._point.child(own.point, name) if own.point is not None else None
        at = join(own.at, name)
        if name == DOT_GIT and found is None:
            return ForkRef(stat.S_IFREG, own, name, at, None, ignored=True) if own.at in self._git else None
        if found is not None:
            ignored = found.kind == stat.S_IFDIR and self.ignores(own, name, stat.S_IFDIR)
            return ForkRef(found.kind, own, name, at, found, ignored=ignored)
        if not self._ignored.may_be(own, name):
            return None
        attr = self._kept(at) or self._shown_by_live(at)
        if attr is None or not self.ignores(own, name, stat.S_IFMT(attr.mode)):
            return None
        return ForkRef(stat.S_IFMT(attr.mode), own, name, at, None, ignored=True)

    def entries(self, directory: LowerRef) -> list[DirEntry]:
        own = _own(directory)
        if own.kind != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, own.name)
        found = self._point.entries(own.point) if own.point is not None else []
        if own.at in self._git:
            found = sorted([*found, DirEntry(DOT_GIT, stat.S_IFREG)])
        if not self._ignored.has_any(own):
            return found
        added = dict(self._live_entries(own))
        added.update(self.inherited.names(own.at))
        there = {entry.name for entry in found}
        inherited = [
            DirEntry(name, kind) for name, kind in added.items() if name not in there and self.ignores(own, name, kind)
        ]
        return sorted(found + inherited) if inherited else found

    def names(self, directory: LowerRef) -> list[bytes]:
        return [entry.name for entry in self.entries(directory)]

    def _live_entries(self, directory: ForkRef) -> Iterator[tuple[bytes, int]]:
        """What the live view shows of a directory, but for what came later."""
        inherited = self.inherited
        if inherited.is_absent(directory.at):
            return
        for name in inherited.moved_names(directory.at):
            attr = self._shown_by_live(join(directory.at, name))
            if attr is not None:
                yield name, stat.S_IFMT(attr.mode)
        found = self.in_live(directory.at)
        if found is None or not stat.S_ISDIR(found[2].mode):
            return
        tree, node, _ = found
        try:
            entries = tree.entries(node)
        except OSError as error:
            if error.errno not in GONE:
                raise
            return
        top = self._live_path(directory.at)
        for name, kind in entries:
            at = join(directory.at, name)
            if top is not None and inherited.own_path(join(top, name)) == at and not inherited.is_absent(at):
                yield name, kind

    # Where an inherited file lies

    def _kept(self, at: bytes) -> Attr | None:
        directory = self.inherited.directory_attr(at)
        if directory is not None:
            return directory
        found = self.inherited.stat(at)
        if found is None:
            return None
        attr = Attr.of(found)
        attr.nlink = 1
        return attr

    def _live_path(self, at: bytes) -> bytes | None:
        return self.inherited.live_path(at)

    def _shown_by_live(self, at: bytes) -> Attr | None:
        if self.inherited.is_absent(at):
            return None
        found = self.in_live(at)
        if found is None:
            return None
        attr = copy.copy(found[2])
        attr.nlink = 1
        attr.reply = None
        return attr

    def in_live(self, at: bytes) -> tuple[Tree, Node, Attr] | None:
        """What the live view has of the path *at*; None where it has nothing. May be `Blocked`."""
        path = self._live_path(at)
        return self._live.find(path) if path is not None else None

    # Files

    def _git_file(self, ref: ForkRef) -> _GitFile | None:
        if ref.name != DOT_GIT or ref.parent is None:
            return None
        return self._git.get(ref.parent.at)

    def _finish(self, dot_git: ForkRef) -> None:
        """See that what a `.git` file leads to is whole; may be `Blocked`."""
        at = dot_git.parent.at if dot_git.parent is not None else b""
        finish = self._unfinished.get(at)
        if finish is None:
            return

        def job() -> None:
            finish()
            self._unfinished.pop(at, None)

        raise Blocked(job, "making a fork's git index")

    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        own = _own(ref)
        if own.point is not None:
            return self._point.attr(own.point, fetch=fetch)
        git = self._git_file(own)
        if git is not None:
            top = self._point.attr(self._point.root, fetch=fetch)
            return Attr(stat.S_IFREG | 0o644, len(git.content), self._made_ns, uid=top.uid, gid=top.gid)
        if own.kind == stat.S_IFDIR:
            attr = self.inherited.directory_attr(own.at) or self._shown_by_live(own.at)
        else:
            attr = self._kept(own.at) or self._shown_by_live(own.at)
        if attr is None or stat.S_IFMT(attr.mode) != own.kind:
            raise refuse(errno.ESTALE, own.name)
        return attr

    def link(self, ref: LowerRef) -> int:
        own = _own(ref)
        return self._point.link(own.point) if own.point is not None else 0

    def open(self, ref: LowerRef) -> OpenFile:
        own = _own(ref)
        if own.point is not None:
            return self._point.open(own.point)
        git = self._git_file(own)
        if git is not None:
            self._finish(own)
            return git
        if self.inherited.stat(own.at) is not None:
            fd, name = self.inherited.place(own.at)
            return HostFile(os.open(name, _FILE_FLAGS, dir_fd=fd))
        found = None if self.inherited.is_absent(own.at) else self.in_live(own.at)
        if found is None or stat.S_IFMT(found[2].mode) != own.kind:
            raise refuse(errno.ESTALE, own.name)
        opened = self._open_live(found[0], found[1])
        if opened is None:
            raise refuse(errno.ESTALE, own.name)
        file = InheritedFile(opened, self, own.at)
        self._open.setdefault(own.at, []).append(file)
        return file

    @staticmethod
    def _open_live(tree: Tree, node: Node) -> int | None:
        """A descriptor of its own of a file of the live view; None where it has none."""
        file = tree.open(node, os.O_RDONLY)
        try:
            fd = file.fileno()
            return os.dup(fd) if fd is not None else None
        finally:
            file.close()

    def closed(self, file: InheritedFile) -> None:
        """*file* is open no more. May be called from a thread."""
        files = self._open.get(file.at, [])
        with suppress(ValueError):
            files.remove(file)
        if not files:
            self._open.pop(file.at, None)

    def readlink(self, ref: LowerRef) -> bytes:
        own = _own(ref)
        if own.point is not None:
            return self._point.readlink(own.point)
        if self.inherited.stat(own.at) is not None:
            fd, name = self.inherited.place(own.at)
            return os.readlink(name, dir_fd=fd)
        found = None if self.inherited.is_absent(own.at) else self.in_live(own.at)
        if found is None:
            raise refuse(errno.ESTALE, own.name)
        return found[0].readlink(found[1])

    def xattrs(self, ref: LowerRef) -> dict[bytes, bytes]:
        own = _own(ref)
        if own.point is not None:
            return self._point.xattrs(own.point)
        if self.inherited.stat(own.at) is not None:
            fd, name = self.inherited.place(own.at)
            return host_xattrs(fd, name)
        if self._git_file(own) is not None:
            return {}
        found = None if self.inherited.is_absent(own.at) else self.in_live(own.at)
        return tree_xattrs(found[0], found[1]) if found is not None else {}

    # About

    def identity(self, ref: LowerRef) -> bytes:
        own = _own(ref)
        if own.point is not None:
            return self._point.identity(own.point)
        return own.at if own.kind == stat.S_IFDIR else b"inherited\0" + own.at

    def path(self, ref: LowerRef) -> bytes:
        return _own(ref).at

    def describe(self, ref: LowerRef) -> dict[str, bytes]:
        own = _own(ref)
        return self._point.describe(own.point) if own.point is not None else {"layer": b"inherited"}

    def close(self) -> None:
        self._live.close()
        self._contexts.clear()
        self.inherited.close()
        self._point.close()

    # Keeping: paths here are the live view's

    def context(self, live: bytes) -> tuple[ForkRef, bytes] | None:
        """The directory and the name that the fork has what the live view has at *live* under, if it may have inherited
        that. Cheap, as every change of the live view asks."""
        at = self.inherited.own_path(live)
        if not at or self.inherited.is_absent(at):
            return None
        head, _, name = at.rpartition(b"/")
        directory = self._context(head)
        if directory is None or not self._ignored.may_be(directory, name):
            return None
        return directory, name

    def _context(self, path: bytes) -> ForkRef | None:
        if not path:
            return self.root
        if path in self._contexts:
            self._contexts.move_to_end(path)
            return self._contexts[path]
        head, _, name = path.rpartition(b"/")
        above = self._context(head)
        found = self.child(above, name) if above is not None else None
        if found is not None and found.kind != stat.S_IFDIR:
            found = None
        if found is not None:
            self._contexts[path] = found
            while len(self._contexts) > _CONTEXTS_MAX:
                self._contexts.popitem(last=False)
        return found

    def inherits_now(self, live: bytes, look: Look) -> tuple[ForkRef, Tree, Node, Attr] | None:
        """The file at *live* of the live view, if the fork shows this very file. *look* finds it; may be `Blocked`."""
        context = self.context(live)
        if context is None:
            return None
        directory, name = context
        at = join(directory.at, name)
        kept = self.inherited.stat(at)
        if self._in_point(directory, name) or (kept is not None and not _may_be_shared(kept)):
            return None
        found = look()
        kind = stat.S_IFMT(found[2].mode) if found is not None else 0
        if found is None or not self.ignores(directory, name, kind):
            return None
        if kept is not None and not self._is_file(found[0], found[1], kept):
            return None
        return (ForkRef(kind, directory, name, at, None, ignored=True), *found)

    def _is_file(self, tree: Tree, node: Node, kept: os.stat_result) -> bool:
        """Whether what was *kept* is a link to this file of the live view, which was to go and could not."""
        if not stat.S_ISREG(tree.getattr(node).mode):
            return False
        fd = self._open_live(tree, node)
        if fd is None:
            return False
        try:
            return os.path.samestat(os.fstat(fd), kept)
        finally:
            os.close(fd)

    def has(self, directory: ForkRef, name: bytes, look: Look) -> bool:
        """Whether the fork has *name* in *directory*, of which `context` told. *look* finds the live view's."""
        at = join(directory.at, name)
        return self._in_point(directory, name) or self.inherited.stat(at) is not None or look() is not None

    def _in_point(self, directory: ForkRef, name: bytes) -> bool:
        return directory.point is not None and self._point.child(directory.point, name) is not None

    def found_in_live(self, live: bytes) -> tuple[Tree, Node, Attr] | None:
        """What the live view has at *live*. May be `Blocked`."""
        return self._live.find(live)

    def ways(self, ref: ForkRef, *, whole: bool = False) -> list[tuple[Attr, dict[bytes, bytes]]]:
        """The attributes of the directories above *ref*, from the top on; none where they are kept, unless *whole*."""
        found: list[tuple[Attr, dict[bytes, bytes]]] = []
        if not whole and ref.parent is not None and self.inherited.directory_attr(ref.parent.at) is not None:
            return found
        at = ref.parent
        while at is not None and at.parent is not None:
            found.append((self.attr(at, fetch=True), self.xattrs(at)))
            at = at.parent
        return found[::-1]

    def kept(self, ref: ForkRef) -> None:
        """The old version of *ref* is kept now: who has it open reads that from now on."""
        files = self._open.pop(ref.at, [])
        if not files:
            return
        dir_fd, name = self.inherited.place(ref.at)
        fd = os.open(name, _FILE_FLAGS, dir_fd=dir_fd)
        try:
            for file in files:
                os.dup2(fd, file.fd, inheritable=False)
        finally:
            os.close(fd)


def _may_be_shared(kept: os.stat_result) -> bool:
    """Whether what was kept may be a link to something else."""
    return stat.S_ISREG(kept.st_mode) and kept.st_nlink > 1


class _GitFile(OpenFile):
    """The `.git` file of a git working tree."""

    __slots__ = ("content",)
    keep_cache = True

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]


class InheritedFile(HostFile):
    """An open file of the live view."""

    __slots__ = ("_lower", "at")

    def __init__(self, fd: int, lower: ForkLower, at: bytes) -> None:
        super().__init__(fd)
        self._lower = lower
        self.at = at

    def close(self) -> None:
        self._lower.closed(self)
        super().close()


def _own(ref: LowerRef) -> ForkRef:
    assert isinstance(ref, ForkRef)
    return ref
