"""The members of a tar archive: read in one pass, decompressed as it goes.

Python's `tarfile` parses; what it would let pass is caught here: it takes a damaged header after the first for the
end of the archive, reads extended headers of any size into memory, searches them (before 3.11.10, 3.12.6) in a time
that is quadratic in a row of digits, holding up every thread, and follows the map of a sparse file wherever it leads,
to the end of the numbers. Decompressors are bounded in memory: each
call gives at most what was asked for, and no dictionary or window is larger than `_WINDOW_BYTES_MAX`.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from tarfile import BLOCKSIZE, TarFile, TarInfo
from typing import Any, BinaryIO, Protocol, Self, cast

from clivefs.mounts.published.member import Member, MemberKind, Meter, damaged, refuse_member, shown

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_WINDOW_BYTES_MAX = 192 << 20
"""`xz -9` needs 65 MiB, `zstd --ultra -22` 128 MiB."""
_ZSTD_WINDOW_LOG_MAX = 27
_CHUNK_BYTES = 1 << 16
_EXTENDED_HEADER_BYTES_MAX = 1 << 20
"""Of a pax header or a long name. Real ones have some hundred bytes."""
_GLOBAL_HEADER_BYTES_MAX = 16 << 10
_GLOBAL_KEYS_MAX = 1000
"""Every member gets a copy of what the global headers say."""
_HEADERS_BYTES_MAX = 4 << 20
"""Of all headers of one member: a sparse file can have a chain of any length."""
_DIGITS_MAX = 256
"""In a row, in a pax header."""
_DIGITS = re.compile(rb"[0-9]{%d}" % (_DIGITS_MAX + 1))
_EMPTY_READS_MAX = 16
_GLOBAL = tarfile.XGLTYPE
_PAX = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENDED = (*_PAX, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
_PARSER_ERRORS = (
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    zstd.ZstdError,
    EOFError,
    ValueError,
    ArithmeticError,
    LookupError,
    AttributeError,
    TypeError,
    RecursionError,
    MemoryError,
)
"""What the parser and the decompressors raise for content that is not what it should be."""
_MAGICS = (
    (b"\x1f\x8b", "gz"),
    (b"BZh", "bz2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zst"),
)
MAGIC_BYTES = 512


def tar_compression(start: bytes) -> str | None:
    """How the tar archive that begins with *start* (512 bytes) is compressed: `gz`, `bz2`, `xz`, `zst`, or `` for
    not at all; None if it does not look like one."""
    for magic, name in _MAGICS:
        if start.startswith(magic):
            return name
    if len(start) == tarfile.BLOCKSIZE and (start[257:262] == b"ustar" or _has_checksum(start)):
        return ""
    return None


def _has_checksum(block: bytes) -> bool:
    """Whether this is a header of the oldest format, which has no magic; or the zeros of an empty archive."""
    field = block[148:156].strip(b" \0")
    if not field:
        return not any(block)
    try:
        return int(field, 8) == 256 + sum(block[:148]) + sum(block[156:])
    except ValueError:
        return False


def tar_members(file: BinaryIO, compression: str, meter: Meter, place: str) -> Iterator[Member]:
    """The members of the tar archive *file*, in order. ArchiveError where it cannot be read."""
    parse = _Guard(place)
    with parse:
        stream = _Metered(_decompressed(file, compression), meter)
        stream.read_max(_HEADERS_BYTES_MAX)  # opening reads the first member's
        tar = tarfile.open(  # noqa: SIM115 - it holds nothing but `stream`
            fileobj=cast(BinaryIO, stream),
            mode="r|",
            bufsize=_CHUNK_BYTES,
            tarinfo=_TarInfo if compression else _PlainTarInfo,
            encoding="utf-8",
            errors="surrogateescape",
        )
    while True:
        with parse:
            # What is left of the member before, then headers: these are held in memory, content is not.
            stream.read_max(max(0, tar.offset) + _HEADERS_BYTES_MAX)
            info = tar.next()
            stream.read_max(None)
            if info is None:
                break
            member = _member(tar, info, parse, place)
            tar.members.clear()  # type: ignore[attr-defined]  # it would keep every member that it has ever seen
        yield member
    with parse:
        stream.drain()  # checksums come at the end


def _member(tar: tarfile.TarFile, info: tarfile.TarInfo, parse: _Guard, place: str) -> Member:
    path = info.name.encode("utf-8", "surrogateescape")
    target = info.linkname.encode("utf-8", "surrogateescape")
    mtime = info.mtime
    mtime_ns = int(mtime * 1_000_000_000) if math.isfinite(mtime) else 0
    if info.isdir():
        return Member(path, MemberKind.DIRECTORY)
    if info.issym():
        return Member(path, MemberKind.SYMLINK, target=target)
    if info.islnk():
        return Member(path, MemberKind.HARDLINK, target=target)
    if info.isreg():
        size = info.size
        if size < 0:
            raise damaged(f"{shown(path)} has a size of {size}", place)
        _check_sparse(path, info, place)
        content = tar.extractfile(info) if size else None
        read = content.read if content is not None else _nothing

        def guarded(count: int) -> bytes:
            with parse:
                return read(count)

        return Member(path, MemberKind.FILE, size, bool(info.mode & 0o100), mtime_ns, read=guarded)
    kinds = {tarfile.CHRTYPE: "device node", tarfile.BLKTYPE: "device node", tarfile.FIFOTYPE: "named pipe"}
    kind = kinds.get(info.type)
    why = f"is a {kind}" if kind else f"is of the type {info.type!r}, which is not unpacked"
    raise refuse_member(path, why, place)


def _check_sparse(path: bytes, info: tarfile.TarInfo, place: str) -> None:
    """ArchiveError unless the data of a sparse file come in order, one after another, within its size."""
    pieces = cast("list[tuple[int, int]]", info.sparse or [])
    end = 0
    for offset, size in pieces:
        if not size:  # they fill up the header
            continue
        if offset < end or size < 0:
            raise damaged(f"{shown(path)} is a sparse file whose map goes back", place)
        end = offset + size
    if end > max(info.size, 0):
        raise damaged(f"{shown(path)} is a sparse file whose map goes beyond its {info.size} bytes", place)


def _nothing(_: int) -> bytes:
    return b""


class _TarInfo(tarfile.TarInfo):
    """Headers, read strictly."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except (_INVALID, _TRUNCATED) as error:
            # `TarFile.next` would take it for the end of the archive, and the rest would be missing unnoticed.
            raise ValueError(str(error)) from error

    def _proc_member(self, tarfile: TarFile) -> TarInfo | None:
        # The library's own place to step in, see the comment above `TarInfo._proc_member`.
        limit = _EXTENDED_HEADER_BYTES_MAX if self.type != _GLOBAL else _GLOBAL_HEADER_BYTES_MAX
        if self.type in _EXTENDED and not 0 <= self.size <= limit:
            raise ValueError(f"an extended header claims {self.size} bytes")
        if len(tarfile.pax_headers) > _GLOBAL_KEYS_MAX:
            raise ValueError("the global headers have too many keys")
        if self.size < 0:
            raise ValueError(f"a header claims {self.size} bytes")
        if self.type in _PAX:
            stream = cast(Readable, tarfile.fileobj)
            blocks = -(-self.size // BLOCKSIZE) * BLOCKSIZE
            header = stream.read(blocks)
            if _DIGITS.search(header):
                raise ValueError(f"an extended header has more than {_DIGITS_MAX} digits in a row")
            tarfile.fileobj = cast(BinaryIO, _Again(header, stream))
            try:
                return cast("TarInfo | None", super()._proc_member(tarfile))  # type: ignore[misc]
            finally:
                tarfile.fileobj = cast(BinaryIO, stream)
        return cast("TarInfo | None", super()._proc_member(tarfile))  # type: ignore[misc]


class _Again:
    """A stream whose last *piece* is to be read once more; nobody can see the difference but by `read`."""

    def __init__(self, piece: bytes, stream: Any) -> None:
        self._piece = piece
        self._stream = stream

    def read(self, size: int) -> bytes:
        if not self._piece:
            return cast(bytes, self._stream.read(size))
        piece, self._piece = self._piece, b""
        return piece

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _PlainTarInfo(_TarInfo):
    """Headers of an archive that is not compressed: only the marker at its end tells that it is whole."""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        try:
            return super().fromtarfile(tarfile)
        except _EMPTY as error:
            raise ValueError("it ends without the marker of its end") from error


_INVALID: type[Exception] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
_EMPTY: type[Exception] = tarfile.EmptyHeaderError  # type: ignore[attr-defined]
_TRUNCATED: type[Exception] = tarfile.TruncatedHeaderError  # type: ignore[attr-defined]


class _Guard:
    """Within it, what a parser raises for bad content becomes an ArchiveError."""

    def __init__(self, place: str) -> None:
        self._place = place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _PARSER_ERRORS) or (isinstance(error, OSError) and error.errno is None):
            raise damaged(error, self._place) from error


class Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Metered:
    """A stream whose every byte is counted."""

    def __init__(self, source: Readable, meter: Meter) -> None:
        self._source = source
        self._meter = meter
        self._total = 0
        self._end: int | None = None
        self._empty = 0
        """Reads one after another that gave nothing."""

    def read_max(self, end: int | None) -> None:
        """Nothing beyond the offset *end* may be read until further notice."""
        self._end = end

    def read(self, size: int) -> bytes:
        if self._end is not None and self._total >= self._end:
            raise ValueError("the headers of a member have no end")
        data = self._source.read(size)
        self._empty = self._empty + 1 if size and not data else 0
        if self._empty > _EMPTY_READS_MAX:  # `tarfile` seeks by reading, to the end of the numbers if it is told to
            raise EOFError("it ends before a member does")
        self._total += len(data)
        self._meter.count_stream(len(data))
        return data

    def drain(self) -> None:
        while self.read(_CHUNK_BYTES):
            pass


def _decompressed(file: BinaryIO, compression: str) -> Readable:
    if compression == "gz":
        return cast(Readable, gzip.GzipFile(fileobj=file, mode="rb"))
    if compression == "bz2":
        return bz2.BZ2File(file, "rb")
    if compression == "xz":
        return _Xz(file, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_WINDOW_BYTES_MAX))
    if compression == "zst":
        options: dict[int, int] = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG_MAX}
        return cast(Readable, zstd.ZstdFile(file, "r", options=options))
    return file


class _Xz:
    """An xz stream, or several one after the other; as `lzma.LZMAFile`, which knows no limit of memory."""

    def __init__(self, file: BinaryIO, make: Callable[[], lzma.LZMADecompressor]) -> None:
        self._file = file
        self._make = make
        self._decompressor: lzma.LZMADecompressor | None = make()

    def read(self, size: int) -> bytes:
        while self._decompressor is not None:
            decompressor = self._decompressor
            if decompressor.eof:
                self._next_stream(decompressor.unused_data)
                continue
            data = b""
            if decompressor.needs_input:
                data = self._file.read(io.DEFAULT_BUFFER_SIZE)
                if not data:
                    raise EOFError("it ends before its end was marked")
            data = decompressor.decompress(data, size)
            if data:
                return data
        return b""

    def _next_stream(self, rest: bytes) -> None:
        while not rest.lstrip(b"\0"):  # padding between streams
            rest = self._file.read(io.DEFAULT_BUFFER_SIZE)
            if not rest:
                self._decompressor = None
                return
        self._decompressor = self._make()
        self._file.seek(-len(rest.lstrip(b"\0")), io.SEEK_CUR)
