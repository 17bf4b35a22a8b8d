"""What git's index knows: those paths are recorded though an ignore rule matches them.

The index is looked into only when something is ignored, and taken apart only when a plain search says that the
path may be in it. What is not tracked is kept in mind: `git checkout` writes the index after the files, and
`git add -f` nothing else. Formats: gitformat-index(5), versions 2 to 4. A split index is read as what it holds itself.
"""

from __future__ import annotations

import logging
import os
import stat
import struct
from collections.abc import Callable

log = logging.getLogger(__name__)

INDEX_BYTES_MAX = 512 << 20
_REFUSED_MAX = 4096
"""Paths that are kept in mind."""
_SEARCHED_BYTES_MAX = 64 << 20
"""For more to be searched through the index is taken apart, which takes as long."""
_HEADER = struct.Struct(">4sLL")
_STAT_BYTES = 60
_EXTENDED = 0x4000


class TrackedPaths:
    """The paths of one index file."""

    def __init__(self) -> None:
        self._open: Callable[[], int | None] = lambda: None
        self._fresh = False
        self._identity: tuple[int, ...] | None = None
        self._content = b""
        self._files: set[bytes] | None = None
        self._directories: set[bytes] = set()
        self._refused: dict[bytes, bool] = {}
        """What was asked for and is not tracked, to whether it is a directory."""
        self._refused_by: tuple[int, ...] | None = None
        """The index that said so."""

    def look_at(self, open_index: Callable[[], int | None]) -> TrackedPaths:
        """Look again when next asked; *open_index* gives a descriptor, or None where there is no index."""
        self._open = open_index
        self._fresh = False
        return self

    def has(self, path: bytes) -> bool:
        """Whether the file *path* is tracked."""
        return (self._may_have(path) and path in self._parsed()) or self._refuse(path, is_directory=False)

    def has_below(self, directory: bytes) -> bool:
        """Whether some file below *directory* is tracked."""
        if self._may_have(directory + b"/"):
            self._parsed()
            if directory in self._directories:
                return True
        return self._refuse(directory, is_directory=True)

    def _refuse(self, path: bytes, *, is_directory: bool) -> bool:
        if len(self._refused) >= _REFUSED_MAX and path not in self._refused:
            del self._refused[next(iter(self._refused))]
        self._refused[path] = is_directory
        return False

    def come(self) -> dict[bytes, bool]:
        """What was asked for, was not tracked, and is now, to whether it is a directory. Told once."""
        if not self._refused:
            return {}
        self._read()
        if self._identity == self._refused_by:
            return {}
        self._refused_by = self._identity
        known = self._files is not None or len(self._refused) * len(self._content) > _SEARCHED_BYTES_MAX
        if not known and not any(self._may_have(path) for path in self._refused):
            return {}
        files = self._parsed()
        come = {
            path: is_directory
            for path, is_directory in self._refused.items()
            if path in (self._directories if is_directory else files)
        }
        for path in come:
            del self._refused[path]
        return come

    def _may_have(self, text: bytes) -> bool:
        self._read()
        # Version 4 leaves out of a path what it has in common with the one before.
        return text in self._content or self._content[4:8] == b"\0\0\0\4"

    def _read(self) -> None:
        if self._fresh:
            return
        self._fresh = True
        try:
            fd = self._open()
        except OSError:
            fd = None
        if fd is None:
            self._identity, self._content, self._files = None, b"", None
            return
        try:
            st = os.fstat(fd)
            identity = (st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns)
            if identity == self._identity:
                return
            usable = stat.S_ISREG(st.st_mode) and st.st_size <= INDEX_BYTES_MAX
            self._content = _read_all(fd, st.st_size) if usable else b""
            self._identity, self._files = identity, None
        finally:
            os.close(fd)

    def _parsed(self) -> set[bytes]:
        if self._files is None:
            try:
                self._files = set(_paths(self._content))
            except (ValueError, IndexError, struct.error) as error:
                log.info("a git index cannot be read: %s", error)
                self._files = set()
            self._directories = set()
            for path in self._files:
                directory = path.rpartition(b"/")[0]
                while directory and directory not in self._directories:
                    self._directories.add(directory)
                    directory = directory.rpartition(b"/")[0]
        return self._files


def _read_all(fd: int, size: int) -> bytes:
    parts: list[bytes] = []
    at = 0
    while at < size and (data := os.pread(fd, size - at, at)):
        parts.append(data)
        at += len(data)
    return b"".join(parts)


def _paths(content: bytes) -> list[bytes]:
    """The paths in an index. ValueError, IndexError or struct.error when it is not one."""
    signature, version, count = _HEADER.unpack_from(content)
    if signature != b"DIRC" or version not in (2, 3, 4):
        raise ValueError(f"signature {signature!r}, version {version}")
    found: list[bytes] = []
    at = _HEADER.size
    previous = b""
    for _ in range(count):
        start = at
        extended = content[at + _STAT_BYTES] & (_EXTENDED >> 8)
        at += _STAT_BYTES + (4 if extended else 2)
        if version == 4:
            strip, at = _offset(content, at)
            end = content.index(b"\0", at)
            previous = previous[: len(previous) - strip] + content[at:end]
            at = end + 1
        else:
            end = content.index(b"\0", at)
            previous = content[at:end]
            at = start + ((end - start) // 8 + 1) * 8
        found.append(previous)
    return found


def _offset(content: bytes, at: int) -> tuple[int, int]:
    """The variable-width number at *at* (as in offset deltas of packs), and where it ends."""
    byte = content[at]
    value = byte & 0x7F
    while byte & 0x80:
        at += 1
        byte = content[at]
        value = ((value + 1) << 7) | (byte & 0x7F)
    return value, at + 1
