"""What is to be done to a live tree so that it shows other content, and what was: the words of `applying`."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from clivefs.mounts.tree import Node

STAGING = b".clive-new-"
"""What the names of staging directories begin with."""


class Wanted(NamedTuple):
    """What is to be at a path below the tree's root."""

    path: bytes
    mode: int
    """As in st_mode, with the kind; 0: nothing."""
    mtime_ns: int | None = None
    """None: the moment of applying."""
    uid: int | None = None
    gid: int | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    is_new: bool = False
    """Nothing is known to be there; what is, is in the way."""
    rdev: int = 0
    """Of a device."""
    link: int = 0
    """Not 0: all names with this number that are to be alike are to be one file."""
    had_links: bool = False
    """What is there has other names, of which some may get another file too."""

    @property
    def owner(self) -> tuple[int, int] | None:
        """User and group; None: whoever applies it."""
        return (self.uid, self.gid) if self.uid is not None and self.gid is not None else None


class Step(msgspec.Struct, array_like=True, frozen=True):
    """One change of `publish`. `staged`: the name of the new file in the staging directory, if one was made; `inode`:
    its number on the host, if a thread made it there; `xattrs`, `owner`: of a directory, all attributes that it is to
    have, and its user and group; `had_links`: the old file has more names, and its change time, which changes with each
    that it loses, tells nothing of what others do."""

    path: bytes
    mode: int
    mtime_ns: int | None
    staged: bytes
    inode: int = 0
    xattrs: tuple[tuple[bytes, bytes], ...] | None = None
    owner: tuple[int, int] | None = None
    had_links: bool = False


class Steps(msgspec.Struct, array_like=True, frozen=True):
    """What `publish` does, for `msgspec.msgpack`; version 1."""

    version: int
    staging: bytes
    steps: tuple[Step, ...]


class Affected(NamedTuple):
    """A name that may mean something else now: the kernel must forget it."""

    parent: Node
    name: bytes
    node: Node | None = None
