"""The interface of a lower layer: a tree of files that an overlay stands on and never writes.

Two kinds exist: a git tree (immutable, content perhaps not fetched yet) and a live host directory.
References are cheap and hashable, and outlive nothing: a live lower answers ENOENT or ESTALE for a
reference whose file has gone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable

from clivefs.mounts.tree import Attr, DirEntry, OpenFile


class LowerRef(Hashable):
    """One file of a lower layer. Implementations add what they need; `kind` is its S_IFMT bits."""

    __slots__ = ("kind",)
    kind: int


class Lower(ABC):
    """A read-only tree. Methods raise OSError as the system calls do, or `Blocked` where said."""

    live: bool
    """The files may change underneath: nothing that it answers may be remembered."""

    @property
    @abstractmethod
    def root(self) -> LowerRef: ...

    @abstractmethod
    def child(self, directory: LowerRef, name: bytes) -> LowerRef | None:
        """The file *name* of a directory, or None."""

    @abstractmethod
    def entries(self, directory: LowerRef) -> list[DirEntry]:
        """The names of a directory, sorted by their bytes. Fetches no blob."""

    def names(self, directory: LowerRef) -> list[bytes]:
        """The names of `entries` alone, in the same order."""
        return [entry.name for entry in self.entries(directory)]

    @abstractmethod
    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        """The attributes. Where the size is not known locally: `Blocked` if *fetch*, else `Attr.unsized`."""

    @abstractmethod
    def open(self, ref: LowerRef) -> OpenFile:
        """Open a regular file for reading; may be `Blocked`. `keep_cache` is true where content cannot change."""

    @abstractmethod
    def readlink(self, ref: LowerRef) -> bytes:
        """The target of a symlink; may be `Blocked`."""

    @abstractmethod
    def xattrs(self, ref: LowerRef) -> dict[bytes, bytes]:
        """The user extended attributes."""

    def link(self, ref: LowerRef) -> int:
        """Not 0: every name with this number leads to one and the same file."""
        return 0

    @abstractmethod
    def identity(self, ref: LowerRef) -> bytes:
        """What tells this file from every other of the same source, for `inode_number`: the same in every
        mount, another when the content behind the name is another (not so for directories)."""

    def host_inode(self, ref: LowerRef) -> int | None:
        """The inode number that the file has on its own file system; None where it has none."""
        return None

    @abstractmethod
    def path(self, ref: LowerRef) -> bytes:
        """The path below the root (empty for the root), by which `find` finds it again."""

    @abstractmethod
    def describe(self, ref: LowerRef) -> dict[str, bytes]:
        """`layer` and `oid` as `user.clive.*` shows them."""

    def find(self, path: bytes) -> LowerRef | None:
        """The file at *path* below the root, or None."""
        ref: LowerRef | None = self.root
        for name in path.split(b"/") if path else ():
            if ref is None:
                return None
            ref = self.child(ref, name)
        return ref

    def converts_alike(self, ref: LowerRef, other: Lower, other_ref: LowerRef) -> bool:
        """Whether the file *ref* is shown as *other_ref* of *other* is, where both have the same identity. May be
        `Blocked`."""
        return True

    def same_below(self, directory: LowerRef, other: Lower, other_directory: LowerRef) -> bool:
        """Whether everything below *directory* is known to be what is below *other_directory* of *other*, so that
        references of *other* to files in there are good here too, from `take_over` on."""
        return False

    def same_tree(self, directory: LowerRef, other: Lower, other_directory: LowerRef) -> bool:
        """Whether *directory* is known to have the same files as *other_directory* of *other*, wherever they are."""
        return False

    def take_over(self, other: Lower) -> None:  # noqa: B027 - nothing to do is a fine answer
        """This lower is shown in the place of *other* from now on."""

    degraded = False
    """Changes underneath are not noticed at once; see `Tree.degraded`."""

    def unwatch(self, directory: LowerRef) -> None:  # noqa: B027 - nothing to do is a fine answer
        """Nobody shows *directory* any more: its changes need not be told."""

    def close(self) -> None:  # noqa: B027 - nothing to do is a fine answer
        """Release what it holds."""
