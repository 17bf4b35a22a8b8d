"""What an archive consists of, whatever its format, and how much of it is accepted.

The readers (`published.tar`, `published.zip`) only translate: they yield `Member` values and raise `ArchiveError`
for what cannot be read. What may become part of a tree is decided in `published.tree`, how much of it by `Meter`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import NamedTuple

from clivefs.base.errors import ClivefsError

UNJUDGED_BYTES = 16 << 20
"""Until so much is unpacked the ratio is not looked at: small archives of very regular content harm nobody."""
_ENTRY_BYTES_RATIO = 8
"""How much longer than the shortest an entry of an archive's directory usually is, at most."""
_SHOWN_BYTES_MAX = 160


class ArchiveLimits(NamedTuple):
    """How much an archive may unpack to; the defaults are those of `[limits]` in `Clive.toml`."""

    size: int = 8 << 30
    """Bytes, unpacked."""
    files: int = 1_000_000
    """Files, links and directories."""
    ratio: int = 1000
    """Unpacked bytes for each packed one."""


class ArchiveError(ClivefsError):
    """An archive that is not unpacked: it is hostile, damaged, too large, or no archive at all."""


class MemberKind(enum.Enum):
    FILE = "regular file"
    DIRECTORY = "directory"
    SYMLINK = "symbolic link"
    HARDLINK = "hard link"


class Member(NamedTuple):
    """One member as the archive describes it; nothing of it has been checked."""

    path: bytes
    kind: MemberKind
    size: int = 0
    """Bytes of a file."""
    executable: bool = False
    mtime_ns: int = 0
    target: bytes = b""
    """Of a link: what it says."""
    read: Callable[[int], bytes] | None = None
    """The next bytes of a file, at most so many; empty at the end. Only until the next member is asked for."""
    read_deflated: Callable[[], tuple[bytes, bytes]] | None = None
    """Where it can be had at once, and instead of `read`: a file's content, and the raw deflate stream of it."""


class Meter:
    """Counts what an archive unpacks to and refuses more than the limits. Owned by one `unpack`."""

    def __init__(self, limits: ArchiveLimits, packed_bytes: int, place: str) -> None:
        self._limits = limits
        self._packed_bytes = max(packed_bytes, 1)
        self._place = place
        self._stream_bytes = 0
        self.files = 0
        self.bytes = 0

    def count_file(self, path: bytes) -> None:
        self.files += 1
        if self.files > self._limits.files:
            raise self._too_many(f"; {shown(path)} is one too many")

    def announce_files(self, most: int) -> None:
        """The archive cannot hold more than *most* members, and may hold some tenths of them."""
        if most > self._limits.files * _ENTRY_BYTES_RATIO:
            raise self._too_many("")

    def _too_many(self, what: str) -> ArchiveError:
        return ArchiveError(
            f"it holds more than {self._limits.files} files{what}",
            place=self._place,
            remedy="If you trust it, raise `archive_files` under [limits] in Clive.toml.",
        )

    def announce(self, path: bytes, size: int) -> None:
        """A member says that it has *size* bytes: refused before anything of it is read."""
        if self.bytes + size > self._limits.size:
            raise self._too_large(path)
        self._check_ratio(self.bytes + size, path)

    def count_bytes(self, path: bytes, size: int) -> None:
        """*size* bytes of a file were unpacked."""
        self.bytes += size
        if self.bytes > self._limits.size:
            raise self._too_large(path)
        self._check_ratio(self.bytes, path)

    def count_stream(self, size: int) -> None:
        """*size* bytes came out of the decompressor, headers and padding among them."""
        self._stream_bytes += size
        if self._stream_bytes > 2 * self._limits.size + UNJUDGED_BYTES:
            raise self._too_large(None)
        self._check_ratio(self._stream_bytes, None)

    def _too_large(self, path: bytes | None) -> ArchiveError:
        return ArchiveError(
            f"{_with(path)}it unpacks to more than {self._limits.size} bytes",
            place=self._place,
            remedy="If you trust it, raise `archive_size` under [limits] in Clive.toml.",
        )

    def _check_ratio(self, unpacked: int, path: bytes | None) -> None:
        if unpacked > UNJUDGED_BYTES and unpacked > self._packed_bytes * self._limits.ratio:
            raise ArchiveError(
                f"{_with(path)}it unpacks to more than {self._limits.ratio} times its {self._packed_bytes} bytes",
                place=self._place,
                remedy="If you trust it, raise `archive_ratio` under [limits] in Clive.toml.",
            )


def _with(path: bytes | None) -> str:
    return "" if path is None else f"with {shown(path)} "


def shown(path: bytes) -> str:
    """A member's name for a message: quoted, control characters escaped, cut to a readable length."""
    cut = path if len(path) <= _SHOWN_BYTES_MAX else path[: _SHOWN_BYTES_MAX // 2] + b"..." + path[-60:]
    text = cut.decode("utf-8", "backslashreplace")
    return "`" + "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text) + "`"


def refuse_member(path: bytes, why: str, place: str) -> ArchiveError:
    """The error for a member that makes its whole archive unwanted."""
    return ArchiveError(
        f"the member {shown(path)} {why}; nothing of the archive is used",
        place=place,
        remedy="Use another archive, or unpack this one yourself and name the directory.",
    )


def damaged(reason: object, place: str) -> ArchiveError:
    """The error for content that its format does not allow."""
    text = str(reason).strip() or type(reason).__name__
    return ArchiveError(f"the archive is damaged: {text[:300]}", place=place, remedy="Fetch it again.")
