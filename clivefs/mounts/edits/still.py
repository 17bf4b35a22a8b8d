"""Whether an upper has stood still: how a step that takes long notices that somebody has written meanwhile.

`look` before reading the edits, and again in the span that builds on them: what is equal in both was not written in
between, if the first look was `settled`. The kernel's file times advance in ticks, so a write within the tick of the
last one could go unseen; an upper that was written to a moment ago is not settled yet.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Collection
from typing import NamedTuple

from clivefs.mounts.host.calls import stat_at
from clivefs.mounts.overlay.marks import Edit, EditKind
from clivefs.mounts.overlay.upper import PathFds, Upper, list_directory

TICK_NS = 20_000_000
"""Longer than a tick of any kernel (10 ms)."""


class Look(NamedTuple):
    """What an upper was like."""

    files: dict[bytes, tuple[int, ...]]
    """What a write changes of each file; a directory's is told by what is in it."""
    marks: frozenset[Edit]
    settled: bool
    """Its last write is longer ago than the kernel's times can blur."""

    def same_as(self, other: Look) -> bool:
        """Nothing was written between the two."""
        return self.files == other.files and self.marks == other.marks

    def written(self, other: Look) -> frozenset[bytes]:
        """The paths whose files differ."""
        paths = self.files.keys() | other.files.keys()
        return frozenset(path for path in paths if self.files.get(path) != other.files.get(path))


UNSEEN = Look({}, frozenset(), settled=False)


def look(upper: Upper) -> Look:
    """The present state of *upper*: every name and time of a file, and the marks. Reads no content; any thread."""
    now_ns = time.time_ns()
    files: dict[bytes, tuple[int, ...]] = {}
    latest = 0
    fds = PathFds(upper.tree_fd)
    waiting = [b""]
    try:
        while waiting:
            directory = waiting.pop()
            try:
                names = [name for name, _ in list_directory(fds.open(directory))]
            except (FileNotFoundError, NotADirectoryError):
                continue  # gone meanwhile: what was in it tells
            for name in names:
                path = directory + b"/" + name if directory else name
                try:
                    found = stat_at(fds.open(directory), name)
                except (FileNotFoundError, NotADirectoryError):
                    continue
                latest = max(latest, found.st_ctime_ns)
                if stat.S_ISDIR(found.st_mode):
                    waiting.append(path)
                    files[path] = (found.st_mode, found.st_uid, found.st_gid)
                else:
                    files[path] = _facts(found)
    finally:
        fds.close()
    # Inode numbers come with every copy-up; they hide and redirect nothing.
    marks = frozenset(edit for edit in upper.log.marks.snapshot() if edit.kind is not EditKind.ORIGIN)
    return Look(files, marks, latest < now_ns - TICK_NS)


def _facts(found: os.stat_result) -> tuple[int, ...]:
    return (
        found.st_ino,
        found.st_mode,
        found.st_size,
        found.st_mtime_ns,
        found.st_ctime_ns,
        found.st_uid,
        found.st_gid,
        found.st_nlink,
    )


def touches(written: Collection[bytes], concerned: Collection[bytes]) -> bool:
    """Whether one of the paths *written* is at, above or below one of *concerned*."""
    above = {prefix for path in concerned for prefix in _with_prefixes(path)}
    below = set(concerned)
    return any(path in above or not below.isdisjoint(_with_prefixes(path)) for path in written)


def _with_prefixes(path: bytes) -> list[bytes]:
    found = [path]
    while path := path.rpartition(b"/")[0]:
        found.append(path)
    return found
