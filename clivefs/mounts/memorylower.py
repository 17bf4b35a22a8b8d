"""A lower layer in memory: the twin of the real ones, with the same contract.

Used where a lower is small and made up (tests, empty layers). Directories are dicts from name to file.
"""

from __future__ import annotations

import errno
import stat
from hashlib import blake2b

from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.tree import Attr, Blocked, DirEntry, OpenFile, refuse


class MemoryFile(LowerRef):
    """One file: the reference is the file itself."""

    __slots__ = ("attributes", "children", "content", "fetched", "mode", "mtime_ns", "owner", "path")

    def __init__(self, mode: int, content: bytes = b"", *, mtime_ns: int = 0, owner: tuple[int, int] = (0, 0)) -> None:
        self.mode = mode
        self.kind = stat.S_IFMT(mode)
        self.content = content
        """The target, for a symlink."""
        self.mtime_ns = mtime_ns
        self.owner = owner
        self.attributes: dict[bytes, bytes] = {}
        self.children: dict[bytes, MemoryFile] = {}
        self.path = b""
        self.fetched = True

    def __hash__(self) -> int:
        return id(self)


class _MemoryOpenFile(OpenFile):
    __slots__ = ("_content",)
    keep_cache = True

    def __init__(self, content: bytes) -> None:
        self._content = content

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class MemoryLower(Lower):
    """A tree of `MemoryFile`s. `live` says whether a test will change it underneath."""

    def __init__(self, *, live: bool = False, mtime_ns: int = 0, owner: tuple[int, int] = (0, 0)) -> None:
        self.live = live
        self._mtime_ns = mtime_ns
        self._owner = owner
        self._root = MemoryFile(stat.S_IFDIR | 0o755, mtime_ns=mtime_ns, owner=owner)

    @property
    def root(self) -> MemoryFile:
        return self._root

    # Making it

    def add(self, path: bytes, mode: int, content: bytes = b"") -> MemoryFile:
        """Put a file (mode with its kind) at *path*; missing directories are made."""
        directory = self._root
        *ways, name = path.split(b"/")
        for way in ways:
            if way not in directory.children:
                self._put(directory, way, stat.S_IFDIR | 0o755, b"")
            directory = directory.children[way]
        return self._put(directory, name, mode, content)

    def _put(self, directory: MemoryFile, name: bytes, mode: int, content: bytes) -> MemoryFile:
        file = MemoryFile(mode, content, mtime_ns=self._mtime_ns, owner=self._owner)
        file.path = directory.path + b"/" + name if directory.path else name
        directory.children[name] = file
        return file

    def file(self, path: bytes, content: bytes = b"", mode: int = 0o644) -> MemoryFile:
        return self.add(path, stat.S_IFREG | mode, content)

    def directory(self, path: bytes, mode: int = 0o755) -> MemoryFile:
        return self.add(path, stat.S_IFDIR | mode)

    def symlink(self, path: bytes, target: bytes) -> MemoryFile:
        return self.add(path, stat.S_IFLNK | 0o777, target)

    def remove(self, path: bytes) -> None:
        head, _, name = path.rpartition(b"/")
        directory = self.find(head)
        assert isinstance(directory, MemoryFile)
        del directory.children[name]

    # The interface

    def child(self, directory: LowerRef, name: bytes) -> MemoryFile | None:
        return _file(directory).children.get(name)

    def entries(self, directory: LowerRef) -> list[DirEntry]:
        return [DirEntry(name, each.kind) for name, each in sorted(_file(directory).children.items())]

    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        file = _file(ref)
        if not file.fetched:
            if fetch:
                raise self._fetch(file)
            return Attr(file.mode, 0, file.mtime_ns, uid=file.owner[0], gid=file.owner[1], unsized=True)
        return Attr(file.mode, len(file.content), file.mtime_ns, uid=file.owner[0], gid=file.owner[1])

    def open(self, ref: LowerRef) -> OpenFile:
        file = _file(ref)
        if file.kind != stat.S_IFREG:
            raise refuse(errno.EISDIR if file.kind == stat.S_IFDIR else errno.EINVAL)
        if not file.fetched:
            raise self._fetch(file)
        return _MemoryOpenFile(file.content)

    def readlink(self, ref: LowerRef) -> bytes:
        file = _file(ref)
        if file.kind != stat.S_IFLNK:
            raise refuse(errno.EINVAL)
        return file.content

    def xattrs(self, ref: LowerRef) -> dict[bytes, bytes]:
        return dict(_file(ref).attributes)

    def identity(self, ref: LowerRef) -> bytes:
        file = _file(ref)
        if file.kind == stat.S_IFDIR:
            return b"d" + file.path
        return blake2b(b"%o %s\0%s" % (file.mode, file.path, file.content), digest_size=16).digest()

    def path(self, ref: LowerRef) -> bytes:
        return _file(ref).path

    def describe(self, ref: LowerRef) -> dict[str, bytes]:
        return {"layer": b"memory"}

    @staticmethod
    def _fetch(file: MemoryFile) -> Blocked:
        def job() -> None:
            file.fetched = True

        return Blocked(job, "fetching 1 blob")


def _file(ref: LowerRef) -> MemoryFile:
    assert isinstance(ref, MemoryFile)
    return ref
