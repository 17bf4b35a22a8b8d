"""The answers to kernel requests, free of any binding.

`Operations` holds the handle tables and the caching policy, and translates between numbers and the
view's nodes. Every method is synchronous and raises `OSError`, or `Blocked` when it must wait; a transport
(`fuse/native.py`, `fuse/pyfuse3_transport.py`) carries requests here, runs the jobs of `Blocked` in threads and calls
again, so a method changes nothing before it raises.

How long the kernel may remember what it is told is decided here and nowhere else: for as long as it
likes where every change goes through us or is watched (we tell it when that ends), for a second
where changes go unnoticed, and not at all for a size that is not known yet.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from clivefs.fuse.listing import DOTS, DirHandle, Listing, OpenedDirectory, by_position, in_order
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.host.calls import IS_ROOT
from clivefs.mounts.tree import Attr, Blocked, Node, OpenFile, Owner, SetAttr, refuse
from clivefs.mounts.view import View, written

T = TypeVar("T")

CACHE_S = 86_400.0
DEGRADED_CACHE_S = 1.0
UNTOLD_CACHE_S = 0.1
LISTED_DIRECTORY_CACHE_S = 0.01
ABSENT_NAMES_MAX = 200_000


class Entry(NamedTuple):
    """One inode as a reply tells of it. Timeouts in seconds; `nodeid` 0 says that the name does not exist."""

    nodeid: int
    attr: Attr | None
    entry_timeout_s: float
    attr_timeout_s: float


class Opened(NamedTuple):
    """An open file as a reply tells of it."""

    handle: int
    keep_cache: bool
    direct_io: bool


class OpenHandle:
    """One open file description of the kernel."""

    __slots__ = ("file", "node", "untold", "written")

    def __init__(self, node: Node, file: OpenFile) -> None:
        self.node = node
        self.file = file
        self.written = False
        """Since the tree's journal was told of it."""
        self.untold = False
        """That was so when `tell_long_open` looked last, and the journal was not told since."""


class Statfs(NamedTuple):
    """statvfs(3) of the filesystem that new content goes to."""

    block_bytes: int
    fragment_bytes: int
    blocks: int
    blocks_free: int
    blocks_available: int
    files: int
    files_free: int


class Operations:
    """Requests about one mountpoint's view. *space_fd* is a directory of the filesystem that `df` shows."""

    def __init__(self, view: View, space_fd: int) -> None:
        self.view = view
        self._table = view.table
        self._space_fd = space_fd
        self._files: dict[int, OpenHandle] = {}
        self._directories: dict[int, DirHandle] = {}
        self._keeping: set[int] = set()
        """Numbers of the directories of which some handle `keeps`."""
        self._next_handle = 1
        self._absent_names: dict[int, set[bytes]] = {}
        self._absent_count = 0
        self.unsettled = False
        """The applier is at work (see `fuse.applied`): the kernel remembers nothing of what it is told meanwhile."""

    # Replies

    def _entry(self, node: Node, attr: Attr) -> Entry:
        """A reply that gives the kernel one more reference to *node*."""
        node.lookups += 1
        return self._shown(node, attr)

    def _shown(self, node: Node, attr: Attr) -> Entry:
        if self.unsettled:
            return Entry(node.nodeid, attr, 0.0, 0.0)
        if node.tree.degraded:
            return Entry(node.nodeid, attr, DEGRADED_CACHE_S, 0.0 if attr.unsized else DEGRADED_CACHE_S)
        if attr.unsized:
            return Entry(node.nodeid, attr, 0.0, 0.0)
        if (stat.S_ISDIR(attr.mode) or attr.nlink > 1) and not node.tree.told_of(node):
            return Entry(
                node.nodeid, attr, CACHE_S, LISTED_DIRECTORY_CACHE_S if stat.S_ISDIR(attr.mode) else UNTOLD_CACHE_S
            )
        return Entry(node.nodeid, attr, CACHE_S, CACHE_S)

    def _absent(self, directory: Node, name: bytes) -> Entry:
        """A reply that the kernel may remember as "there is no such name". Noted, so that it can be taken back
        when nobody knows any more what changed."""
        if self.unsettled:
            return Entry(0, None, 0.0, 0.0)
        if directory.tree.degraded:
            return Entry(0, None, DEGRADED_CACHE_S, 0.0)
        names = self._absent_names.get(directory.nodeid)
        if names is None or name not in names:
            if self._absent_count >= ABSENT_NAMES_MAX:
                self._forget_absent_of_the_dead()
                if self._absent_count >= ABSENT_NAMES_MAX:
                    return Entry(0, None, DEGRADED_CACHE_S, 0.0)
            self._absent_names.setdefault(directory.nodeid, set()).add(name)
            self._absent_count += 1
        return Entry(0, None, CACHE_S, 0.0)

    def _forget_absent_of_the_dead(self) -> None:
        for nodeid in [nodeid for nodeid in self._absent_names if self._table.find(nodeid) is None]:
            self._absent_count -= len(self._absent_names.pop(nodeid))

    def _made(self, parent: int, name: bytes, entry: Entry) -> Entry:
        """The reply about a file that was just made: its name is absent no more."""
        self._present(parent, name)
        return entry

    def _present(self, parent: int, name: bytes) -> None:
        names = self._absent_names.get(parent)
        if names is not None and name in names:
            names.remove(name)
            self._absent_count -= 1
            if not names:
                del self._absent_names[parent]

    @property
    def many_absent(self) -> bool:
        """So many names are remembered as absent that the kernel is better told to forget them."""
        return self._absent_count >= ABSENT_NAMES_MAX

    def take_absent_names(self) -> list[tuple[int, bytes]]:
        """(directory, name) of everything that the kernel may remember as absent; forgotten here."""
        self._forget_absent_of_the_dead()
        taken = [(nodeid, name) for nodeid, names in self._absent_names.items() for name in names]
        self._absent_names.clear()
        self._absent_count = 0
        return taken

    # Names

    def lookup(self, parent: int, name: bytes) -> Entry:
        directory = self._table.get(parent)
        try:
            node, attr = self.view.lookup(directory, name)
        except FileNotFoundError:
            return self._absent(directory, name)
        return self._entry(node, self._told(node, attr))

    def _told(self, node: Node, attr: Attr) -> Attr:
        """*attr*; from now on a change of a directory is noticed though nobody has looked into it yet: somebody may
        want to be told of it. What was only listed is not watched: it is asked for before it is used."""
        if not stat.S_ISDIR(attr.mode) or node.tree.told_of(node):
            return attr
        try:
            node.tree.watch(node)
            return self.view.getattr(node)
        except OSError:
            return attr

    def forget(self, nodeid: int, count: int) -> None:
        self._table.forget(nodeid, count)

    def mkdir(self, parent: int, name: bytes, mode: int, owner: Owner) -> Entry:
        return self._made(parent, name, self._entry(*self.view.mkdir(self._table.get(parent), name, mode, owner)))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, owner: Owner) -> Entry:
        return self._made(parent, name, self._entry(*self.view.mknod(self._table.get(parent), name, mode, rdev, owner)))

    def symlink(self, parent: int, name: bytes, target: bytes, owner: Owner) -> Entry:
        return self._made(parent, name, self._entry(*self.view.symlink(self._table.get(parent), name, target, owner)))

    def link(self, nodeid: int, parent: int, name: bytes) -> Entry:
        return self._made(
            parent, name, self._entry(*self.view.link(self._table.get(nodeid), self._table.get(parent), name))
        )

    def unlink(self, parent: int, name: bytes) -> None:
        self.view.unlink(self._table.get(parent), name)

    def rmdir(self, parent: int, name: bytes) -> None:
        self.view.rmdir(self._table.get(parent), name)

    def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        self.view.rename(self._table.get(parent), name, self._table.get(new_parent), new_name, flags)
        self._present(new_parent, new_name)

    def readlink(self, nodeid: int) -> bytes:
        return self.view.readlink(self._table.get(nodeid))

    # Attributes

    def getattr(self, nodeid: int) -> Entry:
        node = self._table.get(nodeid)
        if isinstance(node.tree, DetachedTree):
            for opened in self._files.values():
                if opened.node is node:
                    return self._shown(node, node.tree.getattr_open(node, opened.file))
        return self._shown(node, self._told(node, self.view.getattr(node)))

    def setattr(self, nodeid: int, change: SetAttr, handle: int | None, *, drop_privileges: bool = False) -> Entry:
        """*drop_privileges*: a file that is cut loses its set-user-ID. One that is given away does so by chown(2)."""
        node = self._table.get(nodeid)
        opened = self._files.get(handle) if handle is not None else None
        file = opened.file if opened is not None else None
        attr = self.view.setattr(node, change, file)
        if drop_privileges and change.size is not None and _privileges(attr.mode):
            attr = self.view.setattr(node, SetAttr(mode=stat.S_IMODE(attr.mode) & ~_privileges(attr.mode)), file)
        return self._shown(node, attr)

    def getxattr(self, nodeid: int, name: bytes) -> bytes:
        return self.view.getxattr(self._table.get(nodeid), name)

    def listxattr(self, nodeid: int) -> list[bytes]:
        return self.view.listxattr(self._table.get(nodeid))

    def setxattr(self, nodeid: int, name: bytes, value: bytes) -> None:
        self.view.setxattr(self._table.get(nodeid), name, value)

    def removexattr(self, nodeid: int, name: bytes) -> None:
        self.view.removexattr(self._table.get(nodeid), name)

    # Files

    def create(self, parent: int, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Opened, Entry]:
        try:
            node, attr, file = self.view.create(self._table.get(parent), name, mode, flags, owner)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            # Others have just made it outside: the kernel looks the name up again and opens it, if that is permitted.
            raise refuse(errno.ESTALE, name) from None
        opened = self._opened(node, file)
        self._files[opened.handle].written = True  # somebody is about to
        return opened, self._made(parent, name, self._entry(node, attr))

    def open(self, nodeid: int, flags: int, *, drop_privileges: bool = False) -> Opened:
        node = self._table.get(nodeid)
        file = self.view.open(node, flags)
        if drop_privileges:
            _drop_privileges(file)
        opened = self._opened(node, file)
        if flags & os.O_TRUNC:
            self._files[opened.handle].written = True
        return opened

    def _opened(self, node: Node, file: OpenFile) -> Opened:
        handle = self._next_handle
        self._next_handle += 1
        node.opens += 1
        self._files[handle] = OpenHandle(node, file)
        # What is made when it is read has no size that the kernel could go by.
        return Opened(handle, file.keep_cache, file.direct_io or node.tree is self.view.synthetic)

    def opened_for_nothing(self, nodeid: int, file: OpenFile) -> Opened:
        """A handle of *file*, which stands for the real one."""
        return self._opened(self._table.get(nodeid), file)

    def read(self, handle: int, offset: int, size: int) -> bytes:
        return self._file(handle).file.read(offset, size)

    def read_at_once(self, handle: int, offset: int, size: int) -> bytes | None:
        """What a read can answer without waiting for the disk; None where it would have to."""
        return self._file(handle).file.read_at_once(offset, size)

    def write(self, handle: int, offset: int, data: bytes, *, drop_privileges: bool = False) -> int:
        opened = self._file(handle)
        opened.written = True
        if drop_privileges:
            _drop_privileges(opened.file)
        return opened.file.write(offset, data)

    def flush(self, handle: int) -> None:
        opened = self._file(handle)
        opened.file.flush()
        self._tell(opened)

    def fsync(self, handle: int, data_only: bool) -> Callable[[], None]:
        """What does it, to be called once, in a thread."""
        opened = self._file(handle)
        self._tell(opened)
        return functools.partial(opened.file.fsync, data_only)

    def release(self, handle: int) -> None:
        opened = self._files.pop(handle)
        opened.node.opens -= 1
        self._tell(opened)  # a shared mapping is written after the last flush
        try:
            opened.file.close()
        finally:
            self._table.release(opened.node)

    def _file(self, handle: int) -> OpenHandle:
        try:
            return self._files[handle]
        except KeyError:
            raise refuse(errno.EBADF) from None

    @staticmethod
    def _tell(opened: OpenHandle) -> None:
        if opened.written:
            opened.written = opened.untold = False
            written(opened.node)

    def tell_open(self) -> None:
        """Tell the journals of what was written to files that are still open."""
        for opened in self._files.values():
            self._tell(opened)

    def tell_long_open(self) -> None:
        """The same, but for those that were first written to since this was last asked: a save is over soon, and told
        of whole."""
        for opened in self._files.values():
            if opened.untold:
                self._tell(opened)
            else:
                opened.untold = opened.written

    def being_written(self) -> list[Node]:
        """The files that are open and of which the journals were not told yet what was written."""
        return [opened.node for opened in self._files.values() if opened.written]

    # Directories

    def opendir(self, nodeid: int) -> int:
        """A handle whose listing the kernel does not keep."""
        return self._open_directory(DirHandle(nodeid))

    def opendir_kept(self, nodeid: int) -> OpenedDirectory:
        """A handle whose listing the kernel may keep, where changes of the directory are told."""
        node = self._table.get(nodeid)
        # What a directory of our own shows may come from a layer that is degraded.
        told = not node.tree.degraded and node.tree is not self.view.synthetic
        opened = DirHandle(nodeid, by_position=told)
        opened.keeps = told and nodeid not in self._keeping
        if opened.keeps:
            self._keeping.add(nodeid)
        # One that is not watched until it is listed: what was kept of it is not to be trusted.
        return OpenedDirectory(self._open_directory(opened), opened.keeps, told and node.tree.told_of(node))

    def _open_directory(self, opened: DirHandle) -> int:
        self._table.get(opened.nodeid).opens += 1
        handle = self._next_handle
        self._next_handle += 1
        self._directories[handle] = opened
        return handle

    def readdir(self, handle: int, offset: int, add: Callable[[bytes, Entry, int], bool]) -> None:
        """Give *add* the names from position *offset* on, with their attributes and the position after each,
        until it refuses one. Every accepted name but the dots is one more reference of the kernel; not so one
        without attributes (number 0), which cannot be had though the name is there."""
        directory, listing, first = self._rest(handle, offset)
        for name, node, position in _dots(directory, listing, first):
            if not add(name, Entry(node.nodeid, Attr(stat.S_IFDIR, 0, 0, uid=0, gid=0), 0.0, 0.0), position):
                return
        for name, found, position in _found(self.view.lister(directory), listing, first):
            if found is None:
                if not add(name, Entry(0, None, 0.0, 0.0), position):
                    return
                continue
            node, attr = found
            if not add(name, self._shown(node, attr), position):
                self._table.release(node)
                return
            node.lookups += 1

    def readdir_names(self, handle: int, offset: int, add: Callable[[bytes, int, int, int], bool]) -> None:
        """As `readdir`, for who wants no attributes: *add* gets name, inode number, mode (of which the file type
        counts) and position; number and mode are 0 where they cannot be had. No name is a reference."""
        directory, listing, first = self._rest(handle, offset)
        for name, node, position in _dots(directory, listing, first):
            if not add(name, node.nodeid, stat.S_IFDIR, position):
                return
        for name, found, position in _found(self.view.numberer(directory), listing, first):
            number, mode = found or (0, 0)
            if not add(name, number, mode, position):
                return

    def _rest(self, handle: int, offset: int) -> tuple[Node, Listing, int]:
        """An open directory, its listing, and where in that position *offset* is."""
        opened = self._directories[handle]
        directory = self._table.get(opened.nodeid)
        if opened.listing is None or offset == 0:
            names = self.view.names(directory)
            opened.listing = by_position(names) if opened.by_position else in_order(names)
        return directory, opened.listing, opened.listing.index_after(offset)

    def releasedir(self, handle: int) -> None:
        opened = self._directories.pop(handle)
        if opened.keeps:
            self._keeping.discard(opened.nodeid)
        node = self._table.find(opened.nodeid)
        if node is not None:
            node.opens -= 1
            self._table.release(node)

    def fsyncdir(self, handle: int) -> Callable[[], None]:
        """What does it, to be called once, in a thread."""
        return self.view.fsync_dir(self._table.get(self._directories[handle].nodeid))

    # The filesystem

    def statfs(self) -> Statfs:
        st = os.fstatvfs(self._space_fd)
        return Statfs(st.f_bsize, st.f_frsize, st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree)

    def close(self) -> None:
        """Close what the kernel still had open when the mount ended."""
        for opened in self._files.values():
            opened.file.close()
        self._files.clear()
        self._directories.clear()


def _dots(directory: Node, listing: Listing, first: int) -> Iterator[tuple[bytes, Node, int]]:
    """The dots of a listing from index *first* on, the directories that they are, and the positions after them."""
    for index, node in enumerate((directory, directory.parent or directory)):
        if index >= first:
            yield listing.names[index], node, listing.positions[index]


def _found(look: Callable[[bytes], T], listing: Listing, first: int) -> Iterator[tuple[bytes, T | None, int]]:
    """The other names from index *first* on, what *look* tells of each, and the positions after them. None: there is
    nothing to be had though the name is there. Raises `Blocked` for the first name, and ends before a later one."""
    names, positions = listing
    for index in range(max(first, len(DOTS)), len(names)):
        found: T | None
        try:
            found = look(names[index])
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ESTALE):
                continue  # gone since the listing was made
            found = None  # in a directory that may be read but not searched, for one
        except Blocked:
            if index == first:
                raise
            return  # what was told is sent; the rest is asked for again
        yield names[index], found, positions[index]


def _privileges(mode: int) -> int:
    """The bits of *mode* that a file loses when it is written to, as on any Linux filesystem. Without the right of the
    group to execute, set-group-ID means something else (mandatory locks), and stays."""
    return mode & (stat.S_ISUID | stat.S_ISGID if mode & stat.S_IXGRP else stat.S_ISUID)


def _drop_privileges(file: OpenFile) -> None:
    """Do what the host does for a writer who has no right to keep them (CAP_FSETID), but does not do for us. Its file
    capabilities go whoever writes."""
    fd = file.fileno()
    if not IS_ROOT or fd is None:
        return
    mode = os.fstat(fd).st_mode
    if _privileges(mode):
        os.fchmod(fd, stat.S_IMODE(mode) & ~_privileges(mode))
        file.changed()
