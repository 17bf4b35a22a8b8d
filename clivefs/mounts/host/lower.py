"""A live host directory as the lower layer of an overlay: read, never written.

Others change it at any time, so nothing that it answers is remembered, and a reference is verified by
device and inode number whenever it is used (ESTALE when its place holds another file).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Hashable, Iterable

from clivefs.base.syscalls import IN_ATTRIB
from clivefs.mounts.host.calls import DirFds, HostFile, open_directory, scan_kinds, stat_at, xattr_path
from clivefs.mounts.host.watch import CONTENT_MASK, NAME_MASK, Kind, Outside, Watcher
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.tree import Attr, DirEntry, OpenFile, refuse

_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class LocalRef(LowerRef):
    """A file of a live directory: where it was found, and which inode it was. Equal if both are."""

    __slots__ = ("hidden", "identity", "name", "parent")

    def __init__(
        self, parent: LocalRef | None, name: bytes, identity: tuple[int, int], kind: int, *, hidden: bool = False
    ) -> None:
        self.parent = parent
        self.name = name
        self.identity = identity
        self.kind = kind
        self.hidden = hidden
        """One of our own mountpoints: an empty directory that is never touched."""

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, LocalRef)
            and self.identity == other.identity
            and self.name == other.name
            and self.kind == other.kind
            and (self.parent and self.parent.identity) == (other.parent and other.parent.identity)
        )

    def __hash__(self) -> int:
        return hash(self.identity)


class LocalLower(Lower):
    """The files below *root_fd*, which it owns from now on. `hidden` as for `HostTree`.

    With a *watcher* it reports what changes in every directory that was looked into: `Outside.tree` is
    this lower, `directory` a `LocalRef`, `node` None. `degraded` says that something is not watched.
    """

    live = True

    def __init__(
        self,
        root_fd: int,
        *,
        hidden: Callable[[tuple[int, int], bytes], bool],
        watcher: Watcher | None = None,
    ) -> None:
        self._hidden = hidden
        self._root_fd = open_directory(root_fd, b".")
        os.close(root_fd)
        st = os.fstat(self._root_fd)
        self._root = LocalRef(None, b"", (st.st_dev, st.st_ino), stat.S_IFDIR)
        self._hidden_attr = Attr(stat.S_IFDIR | 0o555, 0, st.st_mtime_ns, uid=st.st_uid, gid=st.st_gid, nlink=2)
        self._fds: DirFds[tuple[int, int]] = DirFds()
        self._watched: dict[tuple[int, int], list[LocalRef]] = {}
        """By identity: where watched directories were found. Others may rename them as often as they like."""
        self.degraded = True
        self._watcher = watcher
        if watcher is not None:
            watcher.join(self)

    @property
    def root(self) -> LocalRef:
        return self._root

    @property
    def root_fd(self) -> int:
        """A descriptor of the root, which stays this layer's."""
        return self._root_fd

    # Reaching files

    def _dir_fd(self, ref: LocalRef) -> int:
        """A descriptor of a directory, opened step by step from the nearest one that is open. ESTALE."""
        chain: list[LocalRef] = []
        current = ref
        while True:
            fd = self._root_fd if current.parent is None else self._fds.get(current.identity)
            if fd is not None:
                break
            chain.append(current)
            assert current.parent is not None
            current = current.parent
        for step in reversed(chain):
            fd = self._fds.put(step.identity, self._open_below(fd, step))
        return fd

    @staticmethod
    def _open_below(dir_fd: int, ref: LocalRef) -> int:
        if ref.kind != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, ref.name)
        try:
            fd = open_directory(dir_fd, ref.name)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise refuse(errno.ESTALE, ref.name) from None
            raise
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != ref.identity:
            os.close(fd)
            raise refuse(errno.ESTALE, ref.name)
        return fd

    def _looked_into(self, ref: LocalRef) -> int:
        """The descriptor of a directory whose names are about to be looked at: watched from now on."""
        fd = self._dir_fd(ref)
        if self._watcher is not None and not self._watcher.watches(self, ref):
            self._watch(self._watcher, ref, fd)
        return fd

    def _watch(self, watcher: Watcher, ref: LocalRef, fd: int) -> None:
        """Watch a directory at the place where it was found, and no more at those that it has left."""
        places = self._watched.setdefault(ref.identity, [])
        if ref not in places:
            places.append(ref)
        watcher.watch(self, ref, fd)  # first: the watch, which is the inode's, goes on
        for old in places[:-1]:
            if not self._is_at(old):
                self.unwatch(old)

    def _is_at(self, ref: LocalRef) -> bool:
        try:
            self._place(ref)
        except OSError:
            return False
        return True

    def _forget_place(self, ref: LocalRef) -> None:
        places = self._watched.get(ref.identity)
        if places is not None and ref in places:
            places.remove(ref)
            if not places:
                del self._watched[ref.identity]

    def _place(self, ref: LocalRef) -> tuple[int, bytes, os.stat_result]:
        """The directory's descriptor, the name and what stat says, verified. ENOENT, ESTALE."""
        if ref.parent is None:
            return self._root_fd, b".", os.fstat(self._root_fd)
        fd = self._dir_fd(ref.parent)
        st = stat_at(fd, ref.name)
        if (st.st_dev, st.st_ino) != ref.identity or stat.S_IFMT(st.st_mode) != ref.kind:
            raise refuse(errno.ESTALE, ref.name)
        return fd, ref.name, st

    # The layer

    def child(self, directory: LowerRef, name: bytes) -> LocalRef | None:
        assert isinstance(directory, LocalRef)
        if directory.hidden or directory.kind != stat.S_IFDIR:
            return None
        if self._hidden(directory.identity, name):
            return LocalRef(directory, name, (0, 0), stat.S_IFDIR, hidden=True)
        fd = self._looked_into(directory)
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return LocalRef(directory, name, (st.st_dev, st.st_ino), stat.S_IFMT(st.st_mode))

    def entries(self, directory: LowerRef) -> list[DirEntry]:
        assert isinstance(directory, LocalRef)
        if directory.hidden:
            return []
        fd = self._looked_into(directory)
        return scan_kinds(fd, lambda name: self._hidden(directory.identity, name))

    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        assert isinstance(ref, LocalRef)
        return self._hidden_attr if ref.hidden else Attr.of(self._place(ref)[2])

    def open(self, ref: LowerRef) -> OpenFile:
        assert isinstance(ref, LocalRef)
        if ref.kind != stat.S_IFREG or ref.parent is None:
            raise refuse(errno.EISDIR if ref.kind == stat.S_IFDIR else errno.EOPNOTSUPP)
        fd = os.open(ref.name, _OPEN_FLAGS, dir_fd=self._dir_fd(ref.parent))
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != ref.identity:
            os.close(fd)
            raise refuse(errno.ESTALE, ref.name)
        return HostFile(fd)

    def readlink(self, ref: LowerRef) -> bytes:
        assert isinstance(ref, LocalRef)
        dir_fd, name, _ = self._place(ref)
        return os.readlink(name, dir_fd=dir_fd)

    def xattrs(self, ref: LowerRef) -> dict[bytes, bytes]:
        assert isinstance(ref, LocalRef)
        if ref.hidden:
            return {}
        dir_fd, name, _ = self._place(ref)
        path = xattr_path(dir_fd, name)
        found: dict[bytes, bytes] = {}
        try:
            for attribute in map(os.fsencode, os.listxattr(path, follow_symlinks=False)):
                if attribute.startswith(b"user."):
                    found[attribute] = os.getxattr(path, attribute, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.ENODATA):
                raise
        return found

    def identity(self, ref: LowerRef) -> bytes:
        assert isinstance(ref, LocalRef)
        if ref.hidden:
            return b"hidden:" + self.path(ref)
        return b"local:%d:%d" % ref.identity

    def host_inode(self, ref: LowerRef) -> int | None:
        assert isinstance(ref, LocalRef)
        return None if ref.hidden else ref.identity[1]

    def path(self, ref: LowerRef) -> bytes:
        assert isinstance(ref, LocalRef)
        parts: list[bytes] = []
        current: LocalRef | None = ref
        while current is not None and current.parent is not None:
            parts.append(current.name)
            current = current.parent
        return b"/".join(reversed(parts))

    def describe(self, ref: LowerRef) -> dict[str, bytes]:
        return {"layer": b"local"}

    # Watching

    def watch(self, directory: LowerRef) -> None:
        """Watch *directory* now, though nobody has looked into it yet."""
        assert isinstance(directory, LocalRef)
        if not directory.hidden:
            self._looked_into(directory)

    def watches(self, directory: LowerRef) -> bool:
        """Whether what changes in *directory* is told of."""
        return self._watcher is not None and self._watcher.watches(self, directory)

    def unwatch(self, directory: LowerRef) -> None:
        """The overlay has forgotten what it showed of *directory*: its changes are of no interest any more."""
        assert isinstance(directory, LocalRef)
        self._forget_place(directory)
        if self._watcher is not None:
            self._watcher.drop(self, directory)

    def set_degraded(self, degraded: bool) -> None:
        self.degraded = degraded

    def examine(self, directory: Hashable, names: dict[bytes, int]) -> Iterable[Outside]:
        """Nothing is written through here, so every event is somebody else's."""
        found: list[Outside] = []
        for name, mask in names.items():
            if mask & NAME_MASK:
                found.append(Outside("name", self, directory, name, None, mask))
            if mask & CONTENT_MASK:
                found.append(Outside("content", self, directory, name, None, mask))
            elif mask & IN_ATTRIB:
                found.append(Outside("attr", self, directory, name or None, None, mask))
        if any(each.kind == "name" for each in found):
            found.append(Outside("attr", self, directory, None, None))
            found += [Outside("attr", self, directory, name, None) for name in self._linked_to(directory, names)]
        return found

    def _linked_to(self, directory: Hashable, names: dict[bytes, int]) -> list[bytes]:
        """The other names in *directory* of the files that are new there: they have one more link than before."""
        assert isinstance(directory, LocalRef)
        try:
            fd = os.dup(self._dir_fd(directory))
        except OSError:
            return []
        try:
            linked: set[int] = set()
            for name in [name for name, mask in names.items() if name and mask & NAME_MASK]:
                with contextlib.suppress(OSError):  # gone again
                    st = stat_at(fd, name)
                    if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
                        linked.add(st.st_ino)
            if not linked:
                return []
            with os.scandir(fd) as listing:
                known = [os.fsencode(entry.name) for entry in listing if entry.inode() in linked]
            return [name for name in known if name not in names]
        except OSError:
            return []
        finally:
            os.close(fd)

    def examine_all(self, directory: Hashable) -> Iterable[Outside]:
        assert isinstance(directory, LocalRef)
        try:
            fd = self._looked_into(directory)
            watched = self._watcher is not None and self._watcher.watches(self, directory)
            names = os.listdir(fd) if watched else []
        except OSError:
            return []
        if not watched:
            return []
        every = NAME_MASK | CONTENT_MASK | IN_ATTRIB
        return self.examine(directory, {b"": IN_ATTRIB} | {os.fsencode(name): every for name in names})

    def named(self, kind: Kind, directory: Hashable, name: bytes) -> Outside:
        return Outside(kind, self, directory, name, None)

    def vanished(self, directory: Hashable) -> Iterable[Outside]:
        assert isinstance(directory, LocalRef)
        self._forget_place(directory)
        found = [Outside("gone", self, directory, None, None)]
        if directory.parent is not None:
            found.append(Outside("name", self, directory.parent, directory.name, None))
        return found

    def mistrust(self) -> None:
        """Nothing is remembered."""

    def take_noticed(self) -> list[Outside]:
        return []

    def close(self) -> None:
        if self._watcher is not None:
            self._watcher.leave(self)
            self._watcher = None
        self._fds.close()
        fd, self._root_fd = self._root_fd, -1
        if fd >= 0:
            os.close(fd)
