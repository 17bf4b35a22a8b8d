"""The members of a zip archive or a wheel, as its directory lists them.

Stored and deflated members only: these are what wheels and nearly all zip files have, and what Python can inflate
within a bound of memory.
"""

from __future__ import annotations

import calendar
import errno
import io
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from clivefs.mounts.published.member import Member, MemberKind, Meter, damaged, refuse_member, shown
from clivefs.mounts.published.tree import TARGET_BYTES_MAX

_UNIX = 3
_MAC = 19
"""Systems whose members have Unix modes, as `create_system` says."""
_ENCRYPTED = 0x1
_PARSER_ERRORS = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    RuntimeError,
    MemoryError,
)
_ENTRY_BYTES = 46
"""The least that an entry of the directory takes."""
_TAIL_BYTES = (1 << 16) + 200
"""The records at the end, with the longest comment."""
_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}


def is_zip(start: bytes) -> bool:
    """Whether a file that begins with *start* is a zip archive. (One with a program before it is not taken for one.)"""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def zip_members(file: BinaryIO, meter: Meter, place: str) -> Iterator[Member]:
    """The members of the zip archive *file*, in the order of its directory. ArchiveError where it cannot be read."""
    meter.announce_files(_directory_bytes(file) // _ENTRY_BYTES)
    try:
        archive = zipfile.ZipFile(file)
    except _PARSER_ERRORS as error:
        raise damaged(error, place) from error
    except OSError as error:
        if error.errno is not None and error.errno != errno.EINVAL:  # a directory that says it begins before the file
            raise
        raise damaged(error, place) from error
    with archive:
        for info in archive.infolist():
            yield _member(archive, info, place)


def _directory_bytes(file: BinaryIO) -> int:
    """How large the archive says that its directory is; 0 if it does not. `zipfile` reads all of it into memory."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _TAIL_BYTES))
    tail = file.read(_TAIL_BYTES)
    file.seek(0)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) < end + 16:
        return 0
    directory_bytes = int.from_bytes(tail[end + 12 : end + 16], "little")
    end = tail.rfind(b"PK\x06\x06", 0, end)
    if directory_bytes == 0xFFFFFFFF and end >= 0:
        directory_bytes = int.from_bytes(tail[end + 40 : end + 48], "little")
    return min(directory_bytes, size)


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, place: str) -> Member:
    path = _encoded(info.orig_filename, place)
    if b"\0" in path:
        raise refuse_member(path, "has a NUL in its name", place)
    if info.flag_bits & _ENCRYPTED:
        raise refuse_member(path, "is encrypted", place)
    mode = info.external_attr >> 16 if info.create_system in (_UNIX, _MAC) else 0
    kind = stat.S_IFMT(mode)
    if path.endswith(b"/") or kind == stat.S_IFDIR:
        return Member(path, MemberKind.DIRECTORY)
    if kind not in (0, stat.S_IFREG, stat.S_IFLNK):
        what = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket"}.get(kind, "device node")
        raise refuse_member(path, f"is a {what}", place)
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
        raise refuse_member(path, f"is compressed with {method}, which is not unpacked", place)
    reader = _Reader(archive, info, path, place)
    if kind == stat.S_IFLNK:
        if info.file_size > TARGET_BYTES_MAX:
            raise refuse_member(path, f"is a symbolic link of {info.file_size} bytes", place)
        return Member(path, MemberKind.SYMLINK, target=reader.read(TARGET_BYTES_MAX + 1))
    return Member(path, MemberKind.FILE, info.file_size, bool(mode & 0o100), _time_ns(info), read=reader.read)


def _encoded(name: str, place: str) -> bytes:
    try:
        return name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise damaged(error, place) from error


class _Reader:
    """The content of one member, opened when it is first read."""

    def __init__(self, archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: bytes, place: str) -> None:
        self._archive = archive
        self._info = info
        self._path = path
        self._place = place
        self._content: io.BufferedIOBase | None = None

    def read(self, count: int) -> bytes:
        try:
            if self._content is None:
                self._content = self._archive.open(self._info)  # type: ignore[assignment]
            assert self._content is not None
            return self._content.read(count)
        except _PARSER_ERRORS as error:
            raise damaged(f"{shown(self._path)}: {error}", self._place) from error
        except OSError as error:
            if error.errno is not None and error.errno != errno.EINVAL:
                raise
            raise damaged(f"{shown(self._path)}: {error}", self._place) from error


def _time_ns(info: zipfile.ZipInfo) -> int:
    """The time in ns, taken for UTC: a zip archive does not say whose clock it was."""
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0)) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0
