"""Which file has which content, so that what has not changed is not read again.

A cache: what it says counts only for a file whose inode number, size, mode, modification and change times are the
same, and only if the object is still in the store; losing it costs a reading of everything and nothing else.
A directory is known by its inode number, so that one that was renamed is still known.

Invariant: a row is kept only for a file that was *settled* when it was read: neither of its times as late as
the clock of its filesystem can tell apart from the moment before the reading. A write in the same tick would
leave the same times behind another content.

File `STORE/statcache/WORKSPACE`, format 1, integers little-endian, written whole and renamed into place:

    file       "clivefs stat cache 1\\n", directory*, crc32 of all before (4)
    directory  key (8): of part, layer and inode number, see `directory_key`; rows (4), bytes of the names (4),
               rows times row, the names, separated by NUL
    row        inode number (8), ctime (8), mtime (8), both in ns, size (8), st_mode (4), flags (1; bit 0: it has
               user extended attributes), object name (20)

A file that is damaged or of another format is as good as none.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from hashlib import blake2b
from typing import NamedTuple

log = logging.getLogger(__name__)

MAGIC = b"clivefs stat cache 1\n"
DECODED_ROWS_MAX = 50_000
BYTES_MAX = 512 << 20
TICK_NS = 20_000_000
"""Times of a filesystem that keeps nanoseconds advance with the kernel's tick, 10 ms at most."""
COARSE_TICK_NS = 2_000_000_000
"""Where times are whole seconds: FAT has two of them."""

_ROW = struct.Struct("<QqqQIB20s")
_INODE = struct.Struct("<Q")
_HEAD = struct.Struct("<QII")
_CRC = struct.Struct("<I")
_SECOND_NS = 1_000_000_000


class Row(NamedTuple):
    """A file as it was when its content was read."""

    ino: int
    ctime_ns: int
    mtime_ns: int
    size: int
    mode: int
    has_xattrs: int
    oid: bytes

    def tells_of(self, st: os.stat_result) -> bool:
        """Whether a file with this stat is the one that was read, unchanged."""
        return (
            self.ctime_ns == st.st_ctime_ns
            and self.mtime_ns == st.st_mtime_ns
            and self.size == st.st_size
            and self.ino == st.st_ino
            and self.mode == st.st_mode
        )


class Shown(NamedTuple):
    """Files that we made where nobody else can reach, with content that we know, and that were then shown by renames:
    `Applying.publish`. By (st_dev, st_ino): size, mtime in ns, and object name.

    The renames changed the change times, to between *from_ns* and *until_ns*. A file whose change time lies there has
    the content that we made it with, unless somebody has written to it in that very moment and set size and time back.
    Its attributes may be others: to set them changes neither."""

    from_ns: int
    until_ns: int
    files: dict[tuple[int, int], tuple[int, int, bytes]]


def is_settled(st: os.stat_result, read_at_ns: int) -> bool:
    """Whether a file with this stat, read from *read_at_ns* on, cannot change any more without a sign of it."""
    latest = st.st_mtime_ns if st.st_mtime_ns > st.st_ctime_ns else st.st_ctime_ns
    tick = TICK_NS if st.st_ctime_ns % _SECOND_NS else COARSE_TICK_NS
    return latest < read_at_ns - tick


def directory_key(prefix: bytes, layer: bytes, inode: int) -> int:
    """The key of a directory: *layer* tells an upper from what it stands on."""
    return int.from_bytes(blake2b(b"%s\0%s\0%d" % (prefix, layer, inode), digest_size=8).digest(), "little")


class StatCache:
    """The rows of one workspace. Methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._packed: dict[int, bytes] = {}
        self._bytes = 0
        self._decoded: OrderedDict[int, dict[bytes, Row]] = OrderedDict()
        self._rows = 0
        self._shown = Shown(0, 0, {})
        self.changed = False
        """There is something that was not saved."""

    # Rows

    def rows(self, key: int) -> dict[bytes, Row]:
        """The rows of a directory by name, to be looked up in: others may note more of them meanwhile."""
        with self._lock:
            return self._get(key)

    def replace(self, key: int, rows: dict[bytes, Row]) -> None:
        """The directory has these rows and no others. They are the cache's from now on."""
        with self._lock:
            if self._get(key) != rows:
                self._put(key, rows)

    def note(self, key: int, name: bytes, row: Row | None) -> None:
        """The directory's file *name* has this row; None: nothing is known of it."""
        with self._lock:
            rows = self._get(key)
            if rows.get(name) == row:
                return
            rows = self._decoded.setdefault(key, rows)  # there may have been nothing of this directory
            before = len(rows)
            if row is None:
                del rows[name]
            else:
                rows[name] = row
            self._rows += len(rows) - before
            self.changed = True
            self._make_room()

    def has_more_rows(self, known: Mapping[int, int]) -> bool:
        """Whether there are more rows of one of these inodes than is *known*."""
        counts = dict.fromkeys(known, 0)
        with self._lock:
            for rows in self._decoded.values():
                for row in rows.values():
                    if row.ino in counts:
                        counts[row.ino] += 1
            for packed in self._packed.values():
                for row in _unpack(packed).values() if any(_INODE.pack(ino) in packed for ino in counts) else ():
                    if row.ino in counts:
                        counts[row.ino] += 1
        return any(count > known[ino] for ino, count in counts.items())

    def retain(self, keys: set[int]) -> None:
        """Forget all directories but these: a whole scan has seen no others."""
        with self._lock:
            for key in [each for each in self._decoded if each not in keys]:
                self._rows -= len(self._decoded.pop(key))
                self.changed = True
            for key in [each for each in self._packed if each not in keys]:
                self._bytes -= len(self._packed.pop(key))
                self.changed = True

    def know(self, shown: Shown) -> None:
        """These were just shown. What is still known of others before them is forgotten."""
        with self._lock:
            self._shown = shown

    def shown(self, st: os.stat_result) -> Row | None:
        """The row of a file with this stat that was just shown, but for its attributes; told once."""
        shown = self._shown
        if not shown.files or not shown.from_ns <= st.st_ctime_ns <= shown.until_ns:
            return None
        with self._lock:
            known = shown.files.pop((st.st_dev, st.st_ino), None)
        if known is None or (st.st_size, st.st_mtime_ns) != known[:2] or st.st_nlink != 1:
            return None
        return Row(st.st_ino, st.st_ctime_ns, st.st_mtime_ns, st.st_size, st.st_mode, 0, known[2])

    def _get(self, key: int) -> dict[bytes, Row]:
        rows = self._decoded.get(key)
        if rows is not None:
            self._decoded.move_to_end(key)
            return rows
        packed = self._packed.pop(key, None)
        if packed is None:
            return {}
        self._bytes -= len(packed)
        rows = _unpack(packed)
        self._remember(key, rows)
        return rows

    def _put(self, key: int, rows: dict[bytes, Row]) -> None:
        old = self._decoded.pop(key, None)
        if old is not None:
            self._rows -= len(old)
        packed = self._packed.pop(key, None)
        if packed is not None:
            self._bytes -= len(packed)
        self.changed = True
        if rows:
            self._remember(key, rows)

    def _remember(self, key: int, rows: dict[bytes, Row]) -> None:
        self._decoded[key] = rows
        self._rows += len(rows)
        self._make_room()

    def _make_room(self) -> None:
        """Pack what was looked at longest ago."""
        while self._rows > DECODED_ROWS_MAX and len(self._decoded) > 1:
            old_key, old = self._decoded.popitem(last=False)
            self._rows -= len(old)
            packed = _pack(old)
            if self._bytes + len(packed) <= BYTES_MAX:
                self._packed[old_key] = packed
                self._bytes += len(packed)

    # The file

    def load(self, path: str) -> None:
        """Know what the file at *path* says, if it can be read."""
        try:
            with open(path, "rb") as file:
                content = file.read(BYTES_MAX + 1)
        except FileNotFoundError:
            return
        except OSError as error:
            log.info("the stat cache %s cannot be read: %s", path, error.strerror)
            return
        try:
            packed = dict(_directories(content))
        except (ValueError, struct.error) as error:
            log.info("the stat cache %s is not used: %s", path, error)
            return
        with self._lock:
            self._packed, self._bytes = packed, sum(map(len, packed.values()))
            self._decoded.clear()
            self._rows = 0
            self.changed = False

    def save(self, path: str) -> None:
        """Write everything to *path*, whole or not at all. OSError. For threads."""
        with self._lock:
            blocks = dict(self._packed)
            decoded = [(key, dict(rows)) for key, rows in self._decoded.items()]
            self.changed = False
        blocks |= {key: _pack(rows) for key, rows in decoded if rows}
        temporary = f"{path}.new"
        try:
            with open(temporary, "wb", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o600)) as file:
                crc = 0
                for part in _file_parts(blocks):
                    file.write(part)
                    crc = zlib.crc32(part, crc)
                file.write(_CRC.pack(crc))
            # Not synced: after a power loss the checksum tells, and nothing but time is lost.
            os.rename(temporary, path)
        except BaseException:
            self.changed = True
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise


def _file_parts(blocks: dict[int, bytes]) -> Iterator[bytes]:
    yield MAGIC
    for key, packed in blocks.items():
        yield key.to_bytes(8, "little") + packed


def _pack(rows: dict[bytes, Row]) -> bytes:
    """All of a directory but its key."""
    pack = _ROW.pack
    names = b"\0".join(rows)
    return b"".join([_HEAD.pack(0, len(rows), len(names))[8:], *(pack(*row) for row in rows.values()), names])


def _unpack(packed: bytes) -> dict[bytes, Row]:
    count, _ = struct.unpack_from("<II", packed)
    end = 8 + count * _ROW.size
    return dict(zip(packed[end:].split(b"\0"), map(Row._make, _ROW.iter_unpack(packed[8:end])), strict=True))


def _directories(content: bytes) -> Iterator[tuple[int, bytes]]:
    """(key, all but the key) of each directory. ValueError or struct.error when the file is not whole."""
    if not content.startswith(MAGIC):
        raise ValueError("it is of another format")
    end = len(content) - _CRC.size
    if len(content) > BYTES_MAX or end < len(MAGIC) or _CRC.unpack_from(content, end)[0] != zlib.crc32(content[:end]):
        raise ValueError("its checksum is wrong")
    at = len(MAGIC)
    while at < end:
        key, count, names = _HEAD.unpack_from(content, at)
        stop = at + _HEAD.size + count * _ROW.size + names
        if stop > end or content.count(b"\0", stop - names, stop) != max(count - 1, 0):
            raise ValueError("a directory is cut short")
        yield key, content[at + 8 : stop]
        at = stop
