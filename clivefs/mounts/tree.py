"""The vocabulary of a mounted tree: attributes, nodes, open files, and the interface of a tree.

Everything that serves files below some path of a view is a `Tree`: a host directory written through, an
overlay, a control directory. A view is an assembly of trees; `fuse/` translates kernel requests to
calls on it. All of this is synchronous: an operation runs without interruption, so it is atomic.

Two rules for every method of `Tree` and `OpenFile`:

1. A refusal is an `OSError` with the errno that the matching system call gives on ext4.
2. An operation that would have to wait (network, a large copy, a large hash) raises `Blocked` *before it
   has changed anything*. The caller runs the job in a thread and calls the operation again.
"""

from __future__ import annotations

import errno
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from clivefs.mounts.forks.keeping import Keeper
    from clivefs.mounts.journal import Journal

NAME_BYTES_MAX = 255


class Attr:
    """What stat(2) tells of one file, but for its inode number. Times in nanoseconds, sizes in bytes."""

    __slots__ = (
        "atime_ns",
        "blocks",
        "ctime_ns",
        "gid",
        "mode",
        "mtime_ns",
        "nlink",
        "rdev",
        "reply",
        "size",
        "uid",
        "unsized",
    )

    def __init__(
        self,
        mode: int,
        size: int,
        mtime_ns: int,
        *,
        uid: int,
        gid: int,
        nlink: int = 1,
        atime_ns: int | None = None,
        ctime_ns: int | None = None,
        rdev: int = 0,
        blocks: int | None = None,
        unsized: bool = False,
    ) -> None:
        self.mode = mode
        self.size = size
        self.mtime_ns = mtime_ns
        self.uid = uid
        self.gid = gid
        self.nlink = nlink
        self.atime_ns = mtime_ns if atime_ns is None else atime_ns
        self.ctime_ns = mtime_ns if ctime_ns is None else ctime_ns
        self.rdev = rdev
        self.blocks = (size + 511) // 512 if blocks is None else blocks
        """In units of 512 bytes."""
        self.unsized = unsized
        """The size is not known yet (a blob that was not fetched): must not be cached."""
        self.reply: object | None = None
        """What `fuse` last made of this very object. Who gives one out again must not have changed it."""

    @classmethod
    def of(cls, st: os.stat_result) -> Attr:
        """The same facts from a stat of the host."""
        self = cls.__new__(cls)
        self.mode = st.st_mode
        self.size = st.st_size
        self.mtime_ns = st.st_mtime_ns
        self.uid = st.st_uid
        self.gid = st.st_gid
        self.nlink = st.st_nlink
        self.atime_ns = st.st_atime_ns
        self.ctime_ns = st.st_ctime_ns
        self.rdev = st.st_rdev
        self.blocks = st.st_blocks
        self.unsized = False
        self.reply = None
        return self

    def tells_of(self, st: os.stat_result) -> bool:
        """Whether `of(st)` would be equal to this."""
        return (
            self.mtime_ns == st.st_mtime_ns
            and self.ctime_ns == st.st_ctime_ns
            and self.size == st.st_size
            and self.mode == st.st_mode
            and self.nlink == st.st_nlink
            and self.blocks == st.st_blocks
            and self.atime_ns == st.st_atime_ns
            and self.uid == st.st_uid
            and self.gid == st.st_gid
            and self.rdev == st.st_rdev
        )


class SetAttr(NamedTuple):
    """What a chmod, chown, truncate or utimensat asks for; None leaves a field alone."""

    mode: int | None = None
    """Permission bits (07777)."""
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class Owner(NamedTuple):
    """Who a new file belongs to: the caller of the request."""

    uid: int
    gid: int


class Blocked(Exception):
    """An operation must wait for *job*; nothing has changed. Run the job in a thread, then call again.

    The job raises an OSError when what it waits for cannot be had. It must be safe to run twice.
    """

    def __init__(
        self,
        job: Callable[[], None],
        what: str,
        *,
        timeout_s: float | None = None,
        until: Callable[[Callable[[], object]], None] | None = None,
    ) -> None:
        super().__init__(what)
        self.job = job
        self.what = what
        """For people, as in `fetching 31 blobs of lib/requests`."""
        self.timeout_s = timeout_s
        """After this long the caller is answered EIO; None waits for as long as the job takes."""
        self.until = until
        """For a job that does nothing but wait for the loop: it calls what it is given, in the loop's thread, when that
        is over. So however many wait, no thread has to."""


class OpenFile(ABC):
    """An open file. Reads and writes are positional; offsets and sizes are in bytes."""

    __slots__ = ()
    keep_cache = False
    """Whether the kernel may keep the pages it has of this inode from before this open."""
    direct_io = False
    """Whether it is to be read whatever size its attributes tell."""

    @abstractmethod
    def read(self, offset: int, size: int) -> bytes:
        """At most *size* bytes from *offset*; fewer only at the end of the file."""

    def read_at_once(self, offset: int, size: int) -> bytes | None:
        """As `read`, or None where that might have to wait for a disk: it is then to be called in a thread."""
        return self.read(offset, size)

    def write(self, offset: int, data: bytes) -> int:
        """Write all of *data* at *offset*; the number of bytes written."""
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def fileno(self) -> int | None:
        """The host file behind it, if there is one."""
        return None

    def changed(self) -> None:  # noqa: B027 - nothing to do is a fine answer
        """The caller has changed the file through `fileno()`."""

    def flush(self) -> None:  # noqa: B027 - nothing to do is a fine answer
        """One close(2) of a descriptor of this open file; there may be several."""

    def fsync(self, data_only: bool) -> None:  # noqa: B027 - nothing to do is a fine answer
        """Make what was written survive a power loss."""

    def close(self) -> None:  # noqa: B027 - nothing to do is a fine answer
        """The last descriptor is gone."""


class Node:
    """One file of a view: an inode. A tree's own nodes are subclasses with what the tree needs.

    `nodeid` is both the number that the kernel knows the inode by and `st_ino`. A file with several hard
    links is one node; `parent` and `name` are then one of its places.
    """

    __slots__ = ("children", "lookups", "mounts", "name", "nodeid", "opens", "parent", "removed", "tree")

    def __init__(self, tree: Tree, parent: Node | None, name: bytes) -> None:
        self.tree = tree
        self.parent = parent
        self.name = name
        self.nodeid = 0
        self.lookups = 0
        """References that the kernel holds (see `fuse_lowlevel.h`, forget)."""
        self.opens = 0
        self.removed = False
        """No name leads here any more; it lives while somebody holds it."""
        self.children: dict[bytes, Node] | None = None
        """The nodes known below this directory; None where none is. Never a full listing."""
        self.mounts: dict[bytes, Node] | None = None
        """Names in this directory that a mount entry (or the way to one) takes; kept by the view."""

    def places(self) -> Iterable[tuple[Node, bytes]]:
        """Every (directory, name) that is known to lead here."""
        return [(self.parent, self.name)] if self.parent is not None and not self.removed else []

    def path(self) -> bytes:
        """The path below the root of its tree, without a leading slash; for messages and journals."""
        parts: list[bytes] = []
        node: Node | None = self
        while node is not None and node.parent is not None and node.tree is self.tree:
            parts.append(node.name)
            node = node.parent
        return b"/".join(reversed(parts))


class DirEntry(NamedTuple):
    """One name of a directory. `kind` is the file type bits of st_mode (S_IFREG ...)."""

    name: bytes
    kind: int


class Tree(ABC):
    """Files below one path of a view. Every node it is given is one that it made.

    Name arguments are single components: not empty, no `/`, not `.` or `..`, at most 255 bytes (the
    view has checked). The tree keeps `Node.children`, `parent`, `name` and `removed` true for its
    nodes, and registers every node that it makes with the view's `NodeTable`.
    """

    root: Node
    writable: bool
    degraded = False
    """Changes made underneath are not noticed at once: the kernel must ask again every second."""

    journal: Journal | None = None
    """Where the view notes what changes, if somebody wants to know."""

    keeper: Keeper | None = None
    """Who is to be asked before anything changes; may raise `Blocked`."""

    # Looking

    @abstractmethod
    def lookup(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        """The node behind a name, and its attributes. ENOENT, ENOTDIR, ESTALE; may be `Blocked`."""

    @abstractmethod
    def entries(self, directory: Node) -> list[DirEntry]:
        """All names of a directory but `.` and `..`, in the order in which they are listed. Never `Blocked`
        by content: listing a directory fetches no blob."""

    def names(self, directory: Node) -> list[bytes]:
        """The names of `entries` alone, in the same order."""
        return [entry.name for entry in self.entries(directory)]

    def listed(self, directory: Node, name: bytes) -> tuple[Node, Attr]:
        """As `lookup`, for a name that a listing shows: fetches nothing, so the size may be unknown
        (`Attr.unsized`)."""
        return self.lookup(directory, name)

    def lister(self, directory: Node) -> Callable[[bytes], tuple[Node, Attr]]:
        """`listed` for many names of *directory*, to be used within one span."""
        return functools.partial(self.listed, directory)

    def numberer(self, directory: Node) -> Callable[[bytes], tuple[int, int]] | None:
        """Where a tree can tell them without making nodes: the inode number and the file type (`S_IFMT`) of names of
        *directory*, to be used within one span."""
        return None

    @abstractmethod
    def getattr(self, node: Node) -> Attr:
        """The attributes of a node, also of a removed one that somebody holds. ESTALE when it is gone."""

    def told_of(self, node: Node) -> bool:
        """Whether a change of the attributes of *node* underneath would be noticed. Those of a directory change with
        the names in it, which are watched only once somebody has looked at them; the link count of a file with names in
        other directories."""
        return True

    def watch(self, directory: Node) -> None:  # noqa: B027 - nothing to do is a fine answer
        """Watch *directory* from now on, though nobody has looked into it yet, if changes underneath are watched."""

    @abstractmethod
    def readlink(self, node: Node) -> bytes: ...

    @abstractmethod
    def open(self, node: Node, flags: int) -> OpenFile:
        """Open a regular file. *flags* as open(2), without O_CREAT and O_EXCL."""

    # Changing: every one answers EROFS unless the tree says otherwise

    def create(self, directory: Node, name: bytes, mode: int, flags: int, owner: Owner) -> tuple[Node, Attr, OpenFile]:
        """Make and open a regular file. EEXIST when the name is taken."""
        raise _read_only()

    def mknod(self, directory: Node, name: bytes, mode: int, rdev: int, owner: Owner) -> tuple[Node, Attr]:
        raise _read_only()

    def mkdir(self, directory: Node, name: bytes, mode: int, owner: Owner) -> tuple[Node, Attr]:
        raise _read_only()

    def symlink(self, directory: Node, name: bytes, target: bytes, owner: Owner) -> tuple[Node, Attr]:
        raise _read_only()

    def link(self, node: Node, directory: Node, name: bytes) -> tuple[Node, Attr]:
        raise _read_only()

    def unlink(self, directory: Node, name: bytes) -> None:
        raise _read_only()

    def rmdir(self, directory: Node, name: bytes) -> None:
        raise _read_only()

    def rename(self, src: Node, name: bytes, dst: Node, new_name: bytes, flags: int) -> None:
        """rename(2) within this tree; *flags* are RENAME_NOREPLACE or RENAME_EXCHANGE."""
        raise _read_only()

    def setattr(self, node: Node, change: SetAttr, file: OpenFile | None) -> Attr:
        """Apply *change* (through *file*, if the caller has it open) and return the new attributes."""
        raise _read_only()

    # Extended attributes: names with their namespace, as in `user.comment`

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """ENODATA when the node has no such attribute."""
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    def listxattr(self, node: Node) -> list[bytes]:
        return []

    def setxattr(self, node: Node, name: bytes, value: bytes) -> None:
        raise _read_only()

    def removexattr(self, node: Node, name: bytes) -> None:
        raise _read_only()

    def describe(self, node: Node) -> dict[str, bytes]:
        """The `user.clive.*` attributes of a node without that prefix: `layer`, `oid`, ..."""
        return {}

    # Durability and life

    def fsync_dir(self, directory: Node) -> Callable[[], None]:
        """What makes the names in a directory, and how they came to be, survive a power loss: to be called
        once, in a thread."""
        return _nothing

    def adopt(self, directory: Node, name: bytes, make: Callable[[int, bytes], bool]) -> Node | None:
        """Have *make* put a directory called *name*, that was made elsewhere, into *directory*, whose descriptor it is
        told; None where the tree is none of the host's, or where what is made in that would be other than what is
        made here, or where *make* says no."""
        return None

    def host_directory(self, directory: Node) -> int | None:
        """A descriptor, the caller's to close, of the host directory that *directory* is, for a tree that takes in what
        others make there; None where names are more than what the host has."""
        return None

    def dropped(self, node: Node) -> None:  # noqa: B027 - nothing to do is a fine answer
        """The table has forgotten *node*: release what is held for it."""

    def close(self) -> None:  # noqa: B027 - nothing to do is a fine answer
        """Release what the tree holds. Open files go on working."""


def refuse(code: int, name: bytes | None = None) -> OSError:
    """The `OSError` for *code*, to be raised."""
    return OSError(code, os.strerror(code), name)


def _nothing() -> None:
    return None


def _read_only() -> OSError:
    return refuse(errno.EROFS)


def check_name(name: bytes) -> None:
    """Refuse a name component that no file can have."""
    if len(name) > NAME_BYTES_MAX:
        raise refuse(errno.ENAMETOOLONG, name)
    if not name or name in (b".", b"..") or b"/" in name or b"\0" in name:
        raise refuse(errno.EINVAL, name)
