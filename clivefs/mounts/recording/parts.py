"""What a workspace is made of, as the recorder sees it: plain values, made by whoever has the view.

A workspace is a list of parts: one for its own directory (prefix b"") and one for each mount entry. A part stands on
a host directory or on a git tree, and may have an upper over it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from clivefs.mounts.git.space import Objects
from clivefs.mounts.overlay.marks import Mark, split
from clivefs.mounts.tree import Owner


@dataclass(frozen=True, slots=True)
class HostLower:
    """A directory of the host that may change at any time: scanned and watched."""

    fd: int
    """An open directory; stays the caller's."""


@dataclass(frozen=True, slots=True, eq=False)
class TreeLower:
    """A git tree: what no upper covers is recorded by its ids and never looked at."""

    objects: Objects
    tree: bytes
    mtime_ns: int
    """The time that its files are shown with."""
    owner: Owner
    times: Mapping[bytes, int] = field(default_factory=dict)
    """The files that are shown with another time."""


@dataclass(frozen=True, slots=True, eq=False)
class UpperLayer:
    """The edits over a lower: plain files, and marks of what they hide."""

    fd: int
    """The upper's `tree/`; stays the caller's."""
    marks: Mark
    """As they were at one moment: see `copy_marks`."""
    copied: frozenset[bytes] | None = None
    """The paths that `copy_marks` was given; None: all marks were copied. Nothing else is looked at."""
    generation: int = 0
    """`generation_now()` at that moment."""
    generation_now: Callable[[], int] = lambda: 0
    """A number that is another one as soon as the marks are. Called from the recorder's thread."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One part of a workspace."""

    prefix: bytes
    """Where it is shown, without slashes at its ends; b"" for the workspace's own directory."""
    lower: HostLower | TreeLower | None
    upper: UpperLayer | None = None
    index: str | None = None
    """The index of the part's git working tree; None: `.git/index`, where `.git` is a plain directory of the part."""
    info_exclude: str | None = None
    """`info/exclude`, likewise."""


class Dirty(NamedTuple):
    """A path that may have changed. What happened is not said: the truth is a fresh look."""

    prefix: bytes
    """Of the part."""
    path: bytes
    """Below the part's root; b"" is the root itself."""
    recursive: bool = False
    """Look at everything below it too: for a directory that may be another than the one that was recorded here (a
    rename, an exchange), or of which nobody can tell what has changed in it. A directory that was not recorded yet
    is looked at with everything below it anyway."""


def join(directory: bytes, name: bytes) -> bytes:
    """The path of *name* in *directory*, each of which may be empty."""
    return directory + b"/" + name if directory and name else directory or name


def within(paths: Iterable[bytes], path: bytes) -> bool:
    """Whether *path* is one of *paths* or below one; b"" is above everything."""
    return any(not each or path == each or path.startswith(each + b"/") for each in paths)


def copy_marks(root: Mark, paths: Iterable[bytes] | None) -> Mark:
    """The marks that bear on *paths* (on everything when None), for another thread: those on the way to each path and
    those below it. Costs what it copies, so that a span of the loop can afford it."""
    copied = Mark()
    for path in [b""] if paths is None else paths:
        source: Mark | None = root
        target = copied
        _copy_one(root, target)
        for name in split(path):
            source = source.child(name) if source is not None else None
            if source is None:
                break
            target = target.make_child(name)
            _copy_one(source, target)
        if source is not None:
            _copy_below(source, target)
    return copied


def _copy_one(source: Mark, target: Mark) -> None:
    target.kind, target.target = source.kind, source.target


def _copy_below(source: Mark, target: Mark) -> None:
    waiting = [(source, target)]
    while waiting:
        one, other = waiting.pop()
        _copy_one(one, other)
        for name, each in (one.children or {}).items():
            waiting.append((each, other.make_child(name)))
