"""Which files the `patches` of a mount entry are, and what is in them: the series that is applied.

They are looked for in the workspace's own files as the mount shows them, not in what other entries show. A pattern
is a path with `*`, `?` and `[...]` within a component and `**` for any number of directories; as in a shell, none of
these stands for a name that begins with a dot. Links are followed as long as they stay inside; `**` enters none.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256

from clivefs.base.errors import ClivefsError
from clivefs.mounts.ownfiles import OwnFiles
from clivefs.mounts.ownwatch import Looked

PATCH_BYTES_MAX = 64 << 20
SERIES_BYTES_MAX = 256 << 20
PATCHES_MAX = 10_000
LINKS_MAX = 40
_MAGIC = re.compile(rb"[*?\[]")
_ANY_DEPTH = b"**"


@dataclass(frozen=True, slots=True)
class Series:
    """The patches of an entry, in order."""

    patches: tuple[tuple[str, bytes], ...] = ()
    """Name and content of each."""
    error: ClivefsError | None = None
    """Why the next one could not be read. It and those after it are not in `patches`."""
    looked: Looked | None = None
    """Where they were looked for; None where nothing was."""
    digest: bytes = b""
    """The same if, and only if, `patches` and `error` are."""


def read_series(files: OwnFiles, root: str, patterns: Sequence[str]) -> Series:
    """The patch files that *patterns* name: in the order of the patterns, those of one by name, none twice. *root* is
    the workspace's directory, for links that are written in full. For threads."""
    search = _Search(files, os.fsencode(root))
    patches: dict[str, bytes] = {}
    error: ClivefsError | None = None
    size = 0
    try:
        for pattern in patterns:
            for name, path in sorted(search.find(os.fsencode(pattern)).items()):
                shown = os.fsdecode(name)
                if shown in patches:
                    continue
                content = _content(files, shown, path)
                if content is None:
                    continue
                patches[shown] = content
                size += len(content)
                if len(patches) > PATCHES_MAX or size > SERIES_BYTES_MAX:
                    raise ClivefsError(
                        f"more than {PATCHES_MAX} patches, or {SERIES_BYTES_MAX} bytes of them",
                        place=pattern,
                        remedy="name fewer",
                    )
    except ClivefsError as why:
        error = why
    series = tuple(patches.items())
    looked = {directory: frozenset(names) for directory, names in search.looked.items()}
    return Series(series, error, looked, _digest(series, error))


def _digest(series: Sequence[tuple[str, bytes]], error: ClivefsError | None) -> bytes:
    hasher = sha256()
    for name, content in series:
        hasher.update(repr((name, len(content))).encode())
        hasher.update(content)
    hasher.update(repr(str(error) if error is not None else None).encode())
    return hasher.digest()


def _content(files: OwnFiles, shown: str, path: bytes) -> bytes | None:
    """None for a file that has gone again: who is told of that looks again."""
    try:
        content = files.read(path, PATCH_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClivefsError(f"the patch cannot be read: {error.strerror}", place=shown) from None
    if len(content) > PATCH_BYTES_MAX:
        raise ClivefsError(f"the patch is larger than {PATCH_BYTES_MAX} bytes", place=shown)
    return content


class _Search:
    """Finds files by patterns, and notes where it looked."""

    def __init__(self, files: OwnFiles, root: bytes) -> None:
        self._files = files
        self._root = root.rstrip(b"/") + b"/"
        self.looked: dict[bytes, set[bytes]] = {}

    def find(self, pattern: bytes) -> dict[bytes, bytes]:
        """Each file by the name that the pattern gives it, and its path without links. ClivefsError where the pattern
        names one file, and there is none."""
        found: dict[bytes, bytes] = {}
        self._walk(b"", b"", pattern.split(b"/"), found)
        if not found and not _MAGIC.search(pattern):
            raise ClivefsError("there is no such patch file", place=os.fsdecode(pattern), remedy="see `patches`")
        return found

    def _look(self, directory: bytes, name: bytes) -> None:
        self.looked.setdefault(directory, set()).add(name)

    def _walk(self, shown: bytes, path: bytes, parts: list[bytes], found: dict[bytes, bytes]) -> None:
        part, rest = parts[0], parts[1:]
        if part == _ANY_DEPTH:
            self._look(path, b"*")
            self._walk(shown, path, rest or [b"*"], found)
            for name, kind in self._entries(path):
                if kind == stat.S_IFDIR and not name.startswith(b"."):
                    self._walk(_join(shown, name), _join(path, name), parts, found)
        elif _MAGIC.search(part):
            self._look(path, part)
            for name, kind in self._entries(path):
                if fnmatchcase(name, part) and (part.startswith(b".") or not name.startswith(b".")):
                    self._step(_join(shown, name), _join(path, name), kind, rest, found)
        else:
            there = self._kind(path, part)
            if there is not None:
                self._step(_join(shown, part), _join(path, part), there, rest, found)

    def _step(self, shown: bytes, path: bytes, kind: int, rest: list[bytes], found: dict[bytes, bytes]) -> None:
        if kind == stat.S_IFLNK:
            resolved = self._resolve(shown, path)
            if resolved is None:
                return
            path, kind = resolved
        if rest:
            if kind == stat.S_IFDIR:
                self._walk(shown, path, rest, found)
        elif kind == stat.S_IFREG:
            found[shown] = path

    def _entries(self, directory: bytes) -> list[tuple[bytes, int]]:
        try:
            return [(entry.name, entry.kind) for entry in self._files.entries(directory)]
        except (FileNotFoundError, NotADirectoryError):
            return []  # gone meanwhile
        except OSError as error:
            place = os.fsdecode(directory) or "."
            raise ClivefsError(f"the directory of patches cannot be read: {error.strerror}", place=place) from None

    def _kind(self, directory: bytes, name: bytes) -> int | None:
        self._look(directory, name)
        try:
            return self._files.kind(_join(directory, name))
        except OSError:
            return None

    def _resolve(self, shown: bytes, link: bytes) -> tuple[bytes, int] | None:
        """Where the link *link* leads in the end, and what is there; None where nothing is."""
        todo = link.split(b"/")[::-1]
        path = b""
        links = 0
        while todo:
            name = todo.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                if not path:
                    raise self._outside(shown)
                path = path.rpartition(b"/")[0]
                continue
            kind = self._kind(path, name)
            if kind != stat.S_IFLNK:
                if kind is None or (todo and kind != stat.S_IFDIR):
                    return None
                path = _join(path, name)
                continue
            links += 1
            try:
                target = self._files.readlink(_join(path, name))
            except OSError:
                return None
            if links > LINKS_MAX:
                return None
            if target.startswith(b"/"):
                if not target.startswith(self._root):
                    raise self._outside(shown)
                target, path = target[len(self._root) :], b""
            todo += target.split(b"/")[::-1]
        return (path, self._files.kind(path)) if path else None

    @staticmethod
    def _outside(shown: bytes) -> ClivefsError:
        return ClivefsError("a patch must lie in the workspace", place=os.fsdecode(shown), remedy="copy it there")


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
