"""Whether a mounted ref can move to another commit without hiding what that commit changes.

An edit in the upper layer covers the lower one. If the new commit changes the same file, the edit would look
like one that takes the commit's change back, and the user's next `git commit -a` would. `git pull` refuses
to overwrite such files; so do we, and the entry is `behind` until the edit is committed or stashed. A copy
in the upper layer that is no edit (git wrote it back: a stash, a switch to and fro) has to go, as it covers too.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from clivefs.mounts.edits.diff import git_mode
from clivefs.mounts.git.space import ObjectReader
from clivefs.mounts.git.times import changed_paths
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, stat_at
from clivefs.mounts.overlay.upper import PathFds
from clivefs.objects.encode import MODE_TREE, hash_object

_HASHED_BYTES_MAX = 64 << 20

_Version = tuple[int | None, bytes]
"""git's mode and the object's name; (None, b"") for what git cannot hold."""


class Copy(NamedTuple):
    """A file of the upper layer that is what the old commit has, and how to tell that it was not touched since."""

    path: bytes
    facts: tuple[int, int, int, int]


class InTheWay(NamedTuple):
    """What the upper layer has of the paths that a move changes."""

    edit: bytes | None
    """The first that is an edit: the move must wait."""
    copies: list[Copy]
    """Those that are not."""


def in_the_way(upper: str, reader: ObjectReader, old: bytes, new: bytes) -> InTheWay:
    """What the overlay kept in the directory *upper* has of the paths that differ between the trees *old* and *new*.
    For threads: hashes files."""
    copies: list[Copy] = []
    if not os.path.isdir(os.path.join(upper, "tree")):
        return InTheWay(None, [])
    with _Directories(upper) as directories:
        for path in {
            **dict.fromkeys(changed_paths(reader, old, new)),
            **dict.fromkeys(changed_paths(reader, new, old)),
        }:
            own = _own_version(directories, path)
            if own is None or own == _at(reader, new, path):
                continue
            if own != _at(reader, old, path):
                return InTheWay(path, [])
            try:
                copies.append(Copy(path, _facts(directories, path)))
            except OSError:
                continue  # gone meanwhile
    return InTheWay(None, copies)


def untouched(upper: str, copies: Iterable[Copy]) -> Iterator[bytes]:
    """The paths of those copies that are still what they were."""
    with _Directories(upper) as directories:
        for copy in copies:
            try:
                if _facts(directories, copy.path) == copy.facts:
                    yield copy.path
            except OSError:
                continue


class _Directories:
    """The directories below *upper*`/tree`."""

    def __init__(self, upper: str) -> None:
        self._upper = upper

    def __enter__(self) -> PathFds:
        self._fd = os.open(os.path.join(self._upper, "tree"), DIRECTORY_FLAGS)
        self._paths = PathFds(self._fd)
        return self._paths

    def __exit__(self, *_: object) -> None:
        self._paths.close()
        os.close(self._fd)


def _facts(directories: PathFds, path: bytes) -> tuple[int, int, int, int]:
    parent, _, name = path.rpartition(b"/")
    st = stat_at(directories.open(parent), name)
    return st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


def _own_version(directories: PathFds, path: bytes) -> _Version | None:
    """What the upper layer has at *path*; None where that is nothing."""
    parent, _, name = path.rpartition(b"/")
    try:
        fd = directories.open(parent)
        found = stat_at(fd, name)
        mode = git_mode(found.st_mode)
        if stat.S_ISLNK(found.st_mode):
            return mode, hash_object("blob", os.readlink(name, dir_fd=fd))
        if not stat.S_ISREG(found.st_mode) or found.st_size > _HASHED_BYTES_MAX:
            return None, b""
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
        with open(file, "rb") as content:
            return mode, hash_object("blob", content.read())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError:
        return None, b""


def _at(reader: ObjectReader, tree: bytes, path: bytes) -> _Version | None:
    """What *tree* has at *path*."""
    *parents, last = path.split(b"/")
    for part in parents:
        below = next((each for each in reader.read_tree(tree) if each.name == part and each.mode == MODE_TREE), None)
        if below is None:
            return None
        tree = below.oid
    return next(((each.mode, each.oid) for each in reader.read_tree(tree) if each.name == last), None)
