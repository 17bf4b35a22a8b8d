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
from clivefs.objects.values import LARGE_BYTES

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
_PATCHED = 0x20
_UTF8 = 0x800
_HEADER = struct.Struct("<4s2xH18xHH")
"""Of a member: the magic, flags, and the lengths of what follows; the rest the directory says too."""
_ENTRY_BYTES = 46
"""The least that an entry of the directory takes."""
_TAIL_BYTES = (1 << 16) + 200
"""The last record with the longest comment, which is looked for in one piece."""
_METHODS = {9: "deflate64", 12: "bzip2", 14: "lzma", 93: "zstandard", 95: "xz"}


def is_zip(start: bytes) -> bool:
    """Whether a file that begins with *start* is a zip archive. (One with a program before it is not taken for one.)"""
    return start.startswith((b"PK\x03\x04", b"PK\x05\x06"))


def zip_members(file: BinaryIO, meter: Meter, place: str) -> Iterator[Member]:
    """The members of the zip archive *file*, in the order of its directory. ArchiveError where it cannot be read."""
    bounded = _Bounded(file, meter)
    try:
        archive = zipfile.ZipFile(bounded)
    except _PARSER_ERRORS as error:
        raise damaged(error, place) from error
    except OSError as error:
        if error.errno is not None and error.errno != errno.EINVAL:  # a directory that says it begins before the file
            raise
        raise damaged(error, place) from error
    bounded.opening = False
    with archive:
        for info in archive.infolist():
            yield _member(archive, info, place)


class _Bounded:
    """A file; while `opening`, no read of it takes more memory than the directory of an archive within the limits.

    `zipfile` reads the directory in one piece, as large as one of several records at the end says.
    """

    def __init__(self, file: BinaryIO, meter: Meter) -> None:
        self._file = file
        self._meter = meter
        self._size = file.seek(0, os.SEEK_END)
        self.opening = True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        size = left if size < 0 else min(size, left)
        if self.opening and size > _TAIL_BYTES:
            self._meter.announce_files(size // _ENTRY_BYTES)
        return self._file.read(size)


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
    if not info.file_size and info.CRC:
        raise damaged(f"{shown(path)} is empty by its size, and not by its checksum", place)
    reader = _Reader(archive, info, path, place)
    if kind == stat.S_IFLNK:
        if info.file_size > TARGET_BYTES_MAX:
            raise refuse_member(path, f"is a symbolic link of {info.file_size} bytes", place)
        return Member(path, MemberKind.SYMLINK, target=reader.read(TARGET_BYTES_MAX + 1))
    small = 0 < info.file_size <= LARGE_BYTES and info.compress_type == zipfile.ZIP_DEFLATED
    read_deflated = reader.read_deflated if small and info.compress_size <= LARGE_BYTES else None
    executable = bool(mode & 0o100)
    return Member(path, MemberKind.FILE, info.file_size, executable, _time_ns(info), b"", reader.read, read_deflated)


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

    def read_deflated(self) -> tuple[bytes, bytes]:
        """The content, and its deflate stream as it is in the archive: what `read` gives, without its cost."""
        info, file = self._info, self._archive.fp
        assert file is not None
        if info.header_offset < 0:  # as a damaged directory says
            raise self._damaged("it begins before the archive")
        file.seek(info.header_offset)
        header = file.read(_HEADER.size)
        if len(header) < _HEADER.size:
            raise self._damaged("it ends before its content")
        magic, flags, name_bytes, extra_bytes = _HEADER.unpack(header)
        if magic != b"PK\x03\x04" or flags & _ENCRYPTED or flags & _PATCHED:
            raise self._damaged("its own header is none, or says that it is not as listed")
        name = file.read(name_bytes).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        if name != info.orig_filename:
            raise self._damaged(f"its names in the directory and the header differ ({shown(name.encode())})")
        file.seek(extra_bytes, os.SEEK_CUR)
        deflated = file.read(info.compress_size)
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = stream.decompress(deflated, info.file_size + 1)
        except zlib.error as error:
            raise self._damaged(error) from error
        if len(data) != info.file_size or not stream.eof or stream.unused_data or zlib.crc32(data) != info.CRC:
            raise self._damaged("it is not what its size and its CRC say")
        return data, deflated

    def _damaged(self, why: object) -> Exception:
        return damaged(f"{shown(self._path)}: {why}", self._place)


def _time_ns(info: zipfile.ZipInfo) -> int:
    """The time in ns, taken for UTC: a zip archive does not say whose clock it was."""
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0)) * 1_000_000_000
    except (ValueError, OverflowError):
        return 0
