"""What a git tree is read from: objects, what a checkout makes of them, submodules; and one file of such a tree.

These are the parts that a `git.lower.GitLower` is put together from. Everything that makes one knows them, the
layer itself knows no maker.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from clivefs.mounts.git.trees import ST_MODES, ShownEntry
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.tree import Attr
from clivefs.objects.encode import MODE_TREE, TreeEntry
from clivefs.objects.interface import ObjectStore


class Objects(Protocol):
    """Where objects come from, by 20-byte name. `ObjectMissing` where one is not here."""

    def read(self, oid: bytes) -> tuple[str, bytes]: ...

    def header(self, oid: bytes) -> tuple[str, int]: ...

    def read_tree(self, oid: bytes) -> list[TreeEntry]: ...


class ObjectReader(Objects, Protocol):
    """A repository: large blobs can be written to a file named by their id."""

    def materialize(self, oid: bytes, directory: str) -> str: ...


Reader = ObjectReader | ObjectStore

Rules = tuple[tuple[bytes, bytes], ...]
"""The `.gitattributes` that bear on a directory, outermost first: (directory's path, blob)."""


class Converted(NamedTuple):
    """What a checkout makes of a blob: its size in bytes, and a file with it."""

    size: int
    path: str


class Converter(Protocol):
    """What a checkout does to content by `.gitattributes`."""

    @property
    def always(self) -> bool:
        """There are rules that do not come from the tree."""
        ...

    def find(
        self,
        reader: Reader,
        directory: bytes,
        rules: Rules,
        files: Callable[[], Mapping[bytes, bytes]],
        name: bytes,
    ) -> Converted | None:
        """What the file *name* of a directory is converted to; None if it is shown as it is stored. *files*
        gives all files of the directory (name -> blob). `Blocked` until it has been found out."""
        ...

    def forget(self, directory: bytes) -> None:
        """Convert again when next asked."""
        ...

    def close(self) -> None: ...


Fetcher = Callable[[Sequence[bytes]], None]
"""Get these objects, in one request; blocking. OSError(EIO) when they cannot be had."""


class Submodules(Protocol):
    """Where the content of submodules comes from."""

    def open(self, path: bytes, commit: bytes) -> tuple[TreeSpace, bytes] | str:
        """The space and root tree of the submodule at *path* below the root of the repository, or why it cannot be had.
        May be `Blocked`."""
        ...


@dataclass(frozen=True, slots=True)
class TreeSpace:
    """Objects that belong together: one repository at one commit."""

    reader: Reader
    layer: bytes
    """`git:COMMIT` or `submodule:COMMIT`, as `user.clive.layer` shows it."""
    commit_time_ns: int
    fetcher: Fetcher | None = None
    converter: Converter | None = None
    prefix: bytes = b""
    """Where in the repository the tree shown is (`subdir`)."""
    outer_rules: Rules = ()
    """The attribute files above that."""
    submodules: Submodules | None = None
    damage: Callable[[bytes, str], None] | None = None
    """Is told of an object that cannot be read and will not be fetched, and what is wrong with it: for `status`."""


class GitRef(LowerRef):
    """One file of a git tree. Equal to another of the same path with the same content."""

    __slots__ = ("attr", "entry", "name", "parent", "rules", "space", "tree")

    def __init__(self, entry: ShownEntry, parent: GitRef | None, name: bytes, space: TreeSpace) -> None:
        self.kind = stat.S_IFMT(ST_MODES[entry.mode])
        self.entry = entry
        self.parent = parent
        self.name = name
        self.space = space
        self.tree: bytes | None = entry.oid if entry.mode == MODE_TREE else None
        """A directory's tree; None for a submodule whose content was not had (yet)."""
        self.rules: Rules | None = None
        self.attr: Attr | None = None
        """Its attributes once they are known: they never change."""

    def __hash__(self) -> int:
        return hash((self.name, self.entry.oid))

    def __eq__(self, other: object) -> bool:
        one: GitRef | None = self
        two = other if isinstance(other, GitRef) else None
        while one is not two:
            if one is None or two is None or one.name != two.name or one.entry.oid != two.entry.oid:
                return False
            if one.entry.mode != two.entry.mode:
                return False
            one, two = one.parent, two.parent
        return True
