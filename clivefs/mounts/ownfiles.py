"""A workspace's own files as its mount shows them, for threads: what `Clive.toml` and the patches are read from.

Without a layer of edits over it that is the workspace's directory itself. With one (`[workspace] write = "overlay"`)
the mounted tree is asked, on the loop: only it knows what the edits hide, redirect and replace. What a mount entry
shows is never looked at, so no entry can depend on another.

Paths are relative to the workspace, of bytes, without links, `.` or `..`.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import RENAME_NOREPLACE
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, open_directory, scan_kinds, stat_at
from clivefs.mounts.tree import Blocked, DirEntry, Node, OpenFile, Owner, Tree, refuse
from clivefs.mounts.wholefile import is_temporary, one_of_many_beside, temporary_beside

T = TypeVar("T")

_BLOCK_BYTES = 1 << 20
_NEW_MODE = 0o644
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Hidden = Callable[[tuple[int, int], bytes], bool]
"""Whether a name in the host directory (st_dev, st_ino) is a clivefs mountpoint, not to be touched."""


class Place(NamedTuple):
    """A host directory in which something changes when something changes in a directory of `OwnFiles`."""

    layer: str
    path: bytes


class OwnFiles(ABC):
    """Looking into the files. OSError as the system calls have it."""

    @abstractmethod
    def entries(self, directory: bytes) -> list[DirEntry]:
        """The names of a directory, sorted."""

    @abstractmethod
    def kind(self, path: bytes) -> int:
        """S_IFMT bits of the file."""

    @abstractmethod
    def readlink(self, path: bytes) -> bytes: ...

    @abstractmethod
    def read(self, path: bytes, limit: int) -> bytes:
        """The content of a regular file, but no more than *limit* bytes."""

    @abstractmethod
    def places(self, directory: bytes) -> list[Place]:
        """Where changes of *directory* can be seen; some may not exist."""

    @abstractmethod
    def open_place(self, place: Place) -> int:
        """A descriptor of the host directory."""


class HostFiles(OwnFiles):
    """Those of the host directory *root*."""

    def __init__(self, root: str, hidden: Hidden) -> None:
        self._root = root
        self._hidden = hidden

    def _open(self, directory: bytes) -> int:
        fd = os.open(self._root, DIRECTORY_FLAGS)
        try:
            for name in directory.split(b"/") if directory else ():
                self._refuse_hidden(fd, name)
                inner = open_directory(fd, name)
                os.close(fd)
                fd = inner
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _refuse_hidden(self, fd: int, name: bytes) -> None:
        st = os.fstat(fd)
        if self._hidden((st.st_dev, st.st_ino), name):
            raise refuse(errno.ENOENT, name)

    def _at(self, path: bytes, look: Callable[[int, bytes], T]) -> T:
        parent, _, name = path.rpartition(b"/")
        fd = self._open(parent)
        try:
            self._refuse_hidden(fd, name)
            return look(fd, name)
        finally:
            os.close(fd)

    def entries(self, directory: bytes) -> list[DirEntry]:
        fd = self._open(directory)
        try:
            st = os.fstat(fd)
            hidden: set[bytes] = set()

            def hide(name: bytes) -> bool:
                if self._hidden((st.st_dev, st.st_ino), name):
                    hidden.add(name)
                return name in hidden

            return [entry for entry in scan_kinds(fd, hide) if entry.name not in hidden]
        finally:
            os.close(fd)

    def kind(self, path: bytes) -> int:
        return stat.S_IFMT(self._at(path, stat_at).st_mode)

    def readlink(self, path: bytes) -> bytes:
        return self._at(path, lambda fd, name: os.readlink(name, dir_fd=fd))

    def read(self, path: bytes, limit: int) -> bytes:
        file = self._at(path, lambda fd, name: os.open(name, _FILE_FLAGS, dir_fd=fd))
        with open(file, "rb") as content:
            if not stat.S_ISREG(os.fstat(file).st_mode):
                raise refuse(errno.EINVAL, path)
            return content.read(limit)

    def places(self, directory: bytes) -> list[Place]:
        return [Place("own", directory)]

    def open_place(self, place: Place) -> int:
        return self._open(place.path)


class TreeFiles(OwnFiles):
    """Those of the mounted *tree*: the files of *host* with the edits of the upper in *upper* over them."""

    def __init__(
        self,
        tree: Tree,
        host: HostFiles,
        upper: str,
        hidden: Hidden,
        owner: Owner,
        on_loop: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """*owner* gets what is written; *on_loop* runs a call on the loop's thread and waits for its result."""
        self._tree = tree
        self._owner = owner
        self._host = host
        self._upper = HostFiles(upper, hidden)
        self._on_loop = on_loop

    def _ask(self, call: Callable[[], T]) -> T:
        while True:
            try:
                answer: T = self._on_loop(call)
            except Blocked as blocked:
                blocked.job()
            else:
                return answer

    def _node(self, path: bytes) -> Node:
        node = self._tree.root
        for name in path.split(b"/") if path else ():
            node = self._tree.lookup(node, name)[0]
        return node

    def entries(self, directory: bytes) -> list[DirEntry]:
        return sorted(self._ask(lambda: self._tree.entries(self._node(directory))))

    def kind(self, path: bytes) -> int:
        def look() -> int:
            parent, _, name = path.rpartition(b"/")
            return stat.S_IFMT(self._tree.lookup(self._node(parent), name)[1].mode)

        return self._ask(look)

    def readlink(self, path: bytes) -> bytes:
        return self._ask(lambda: self._tree.readlink(self._node(path)))

    def read(self, path: bytes, limit: int) -> bytes:
        def open_file() -> tuple[Node, OpenFile]:
            node = self._node(path)
            file = self._tree.open(node, os.O_RDONLY)
            node.opens += 1
            return node, file

        def close() -> None:
            node.opens -= 1
            file.close()

        node, file = self._ask(open_file)
        parts: list[bytes] = []
        size = 0
        try:
            while size < limit and (part := file.read(size, min(_BLOCK_BYTES, limit - size))):
                parts.append(part)
                size += len(part)
        finally:
            self._ask(close)
        return b"".join(parts)

    def replace(self, name: bytes, old: bytes | None, new: bytes) -> None:
        """Let the file *name* of the root have the content *new*, whole or not at all, and have it recorded. ESTALE
        when it has not *old*; EEXIST where *old* is None and there is one."""
        tree, root = self._tree, self._tree.root
        temporary = one_of_many_beside(name)

        def create() -> OpenFile:
            mode = tree.lookup(root, name)[1].mode & 0o777 if old is not None else _NEW_MODE
            return tree.create(root, temporary, mode, os.O_WRONLY | os.O_EXCL, self._owner)[2]

        def publish() -> None:
            if old is None:
                tree.rename(root, temporary, root, name, RENAME_NOREPLACE)
            else:
                take_place(old)
            if tree.journal is not None:
                tree.journal.name(root, name)

        def take_place(old: bytes) -> None:
            file = tree.open(tree.lookup(root, name)[0], os.O_RDONLY)
            try:
                content = file.read(0, len(old) + 1)
            finally:
                file.close()
            if content != old:
                raise refuse(errno.ESTALE, name)
            tree.rename(root, temporary, root, name, 0)

        file = self._ask(create)
        try:
            try:
                file.write(0, new)
                file.fsync(False)
            finally:
                self._ask(file.close)
            FAULTS.hit("ownfiles.publish")
            self._ask(publish)
        except BaseException:
            self._ask(lambda: tree.unlink(root, temporary))
            raise
        self._ask(lambda: tree.fsync_dir(root))()

    def sweep(self) -> None:
        """Remove what a killed daemon has left of `replace`."""
        for entry in self.entries(b""):
            if is_temporary(entry.name):
                self.remove(entry.name)

    def put(self, path: bytes, content: bytes) -> None:
        """Let the file *path* have *content*, whole or not at all, durable; directories on the way are made."""
        tree = self._tree
        temporary = temporary_beside(path).rpartition(b"/")[2]
        self.remove(temporary_beside(path))

        def create() -> tuple[Node, bytes, OpenFile]:
            directory = tree.root
            *head, name = path.split(b"/")
            for part in head:
                try:
                    directory = tree.lookup(directory, part)[0]
                except FileNotFoundError:
                    directory = tree.mkdir(directory, part, 0o755, self._owner)[0]
            try:
                mode = tree.lookup(directory, name)[1].mode & 0o777
            except FileNotFoundError:
                mode = _NEW_MODE
            directory.opens += 1
            return directory, name, tree.create(directory, temporary, mode, os.O_WRONLY | os.O_EXCL, self._owner)[2]

        def done() -> None:
            directory.opens -= 1

        directory, name, file = self._ask(create)
        try:
            try:
                file.write(0, content)
                file.fsync(False)
            finally:
                self._ask(file.close)
            FAULTS.hit("patch.rename")
            self._ask(lambda: tree.rename(directory, temporary, directory, name, 0))
        except BaseException:
            self._ask(lambda: tree.unlink(directory, temporary))
            raise
        finally:
            self._ask(done)
        self._sync(path)

    def remove(self, path: bytes) -> None:
        """Let there be no file *path*, durably."""
        parent, _, name = path.rpartition(b"/")
        try:
            self._ask(lambda: self._tree.unlink(self._node(parent), name))
        except (FileNotFoundError, NotADirectoryError):
            return
        self._sync(path)

    def link(self, path: bytes, new: bytes) -> None:
        """Give the file *path* the name *new* too, durably. EEXIST."""
        parent, _, name = new.rpartition(b"/")
        self._ask(lambda: self._tree.link(self._node(path), self._node(parent), name))
        self._sync(new)

    def _sync(self, path: bytes) -> None:
        parent = path.rpartition(b"/")[0]
        self._ask(lambda: self._tree.fsync_dir(self._node(parent)))()

    def places(self, directory: bytes) -> list[Place]:
        # What is removed or renamed leaves its mark in the upper's own directory.
        return [Place("own", directory), Place("edits", b"tree/" + directory if directory else b"tree"), MARKS]

    def open_place(self, place: Place) -> int:
        return (self._host if place.layer == "own" else self._upper).open_place(place)


MARKS = Place("edits", b"")
"""Where an upper notes what it hides. Any change there may be one of any directory."""
