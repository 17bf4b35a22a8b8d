"""What the two drivers of a tree have in common: `TreeDriver` asks a `Tree` as the kernel would, `PlainDriver` does the
same to a plain directory.

Both have the same methods with the same results, so that a test calls both and compares:

    tree = TreeDriver(make_tree(table), table)
    plain = PlainDriver(tmp_path / "plain")
    assert both(tree, plain, "rename", b"a", b"b")

Paths are bytes below the root, `b""` is the root itself. No symlink is followed. Errors are `OSError`s;
`outcome()` turns a call into a value that can be compared. The umask must be 0 (`umask_zero` fixture),
since the kernel hands a filesystem modes to which it has applied the umask already.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from clivefs.mounts.tree import Attr


@dataclass(frozen=True)
class Facts:
    """What stat tells that must be equal in a tree and in a plain directory."""

    mode: int
    size: int | None
    """None for directories: their size is the filesystem's business."""
    nlink: int | None
    """None for directories: an overlay may answer 1."""
    uid: int
    gid: int
    mtime_ns: int | None
    """None unless asked for."""
    rdev: int


def facts(st: Attr | os.stat_result, *, times: bool = False) -> Facts:
    attr = Attr.of(st) if isinstance(st, os.stat_result) else st
    is_dir = stat.S_ISDIR(attr.mode)
    return Facts(
        attr.mode,
        None if is_dir else attr.size,
        None if is_dir else attr.nlink,
        attr.uid,
        attr.gid,
        attr.mtime_ns if times else None,
        attr.rdev,
    )


@dataclass(frozen=True)
class Failed:
    """A call ended with this errno."""

    name: str


def outcome(call: Callable[[], Any]) -> Any:
    """The value of *call*, or `Failed` with the errno's name."""
    try:
        return call()
    except OSError as error:
        return Failed(errno.errorcode.get(error.errno or 0, str(error.errno)))


def both(tree: Driver, plain: Driver, method: str, *args: Any, **kwargs: Any) -> Any:
    """Call *method* on both, assert that both say the same, and return what they say."""
    want = outcome(lambda: getattr(plain, method)(*args, **kwargs))
    got = outcome(lambda: getattr(tree, method)(*args, **kwargs))
    assert got == want, f"{method}{args}: tree {got!r}, plain directory {want!r}"
    return want


class File(ABC):
    """A file that a driver has open."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes: ...

    @abstractmethod
    def write(self, offset: int, data: bytes) -> int: ...

    @abstractmethod
    def stat(self) -> Facts: ...

    @abstractmethod
    def truncate(self, size: int) -> None: ...

    @abstractmethod
    def fsync(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class Driver(ABC):
    """Files by paths: what is made of the few calls that differ. Subclasses have more, named as system calls are."""

    @abstractmethod
    def stat(self, path: bytes, *, times: bool = False) -> Facts: ...

    @abstractmethod
    def listdir(self, path: bytes) -> list[tuple[bytes, int]]:
        """Sorted names with their kinds (S_IFMT bits)."""

    @abstractmethod
    def inode(self, path: bytes) -> int:
        """`st_ino`; not to be compared with the other driver's."""

    @abstractmethod
    def readlink(self, path: bytes) -> bytes: ...

    @abstractmethod
    def open(self, path: bytes, flags: int = os.O_RDONLY) -> File: ...

    @abstractmethod
    def create(self, path: bytes, mode: int = 0o644, flags: int = os.O_RDWR) -> File:
        """open(O_CREAT | O_EXCL)."""

    def read(self, path: bytes) -> bytes:
        file = self.open(path, os.O_RDONLY)
        try:
            return file.read(0, 1 << 26)
        finally:
            file.close()

    def tree_of(self, path: bytes = b"") -> dict[bytes, Any]:
        """Everything below *path*: facts, and content or target. Iterative."""
        found: dict[bytes, Any] = {}
        waiting = [path]
        while waiting:
            directory = waiting.pop()
            for name, kind in self.listdir(directory):
                place = directory + b"/" + name if directory else name
                found[place] = (self.stat(place), self._content(place, kind))
                if kind == stat.S_IFDIR:
                    waiting.append(place)
        return found

    def _content(self, place: bytes, kind: int) -> bytes | None:
        if kind == stat.S_IFREG:
            return self.read(place)
        return self.readlink(place) if kind == stat.S_IFLNK else None

    def write(self, path: bytes, data: bytes, offset: int = 0) -> int:
        """Write into an existing file."""
        file = self.open(path, os.O_RDWR)
        try:
            return file.write(offset, data)
        finally:
            file.close()

    def make(self, path: bytes, data: bytes = b"", mode: int = 0o644) -> None:
        """Create a file that must not exist, with content."""
        file = self.create(path, mode)
        try:
            if data:
                file.write(0, data)
        finally:
            file.close()

    def overwrite(self, path: bytes, data: bytes) -> None:
        """open(O_TRUNC) of an existing file, and write."""
        file = self.open(path, os.O_WRONLY | os.O_TRUNC)
        try:
            file.write(0, data)
        finally:
            file.close()
