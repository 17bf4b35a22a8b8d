"""What a daemon shows at the moment and no ref leads to: points of the past that somebody is in, trees that mount
entries stand on. Told to the collections of other processes by a file beside the daemon's lock.

    run/HASH.pins   lines `+OID` and `-OID`, OID in hexadecimal: one use more, one less. Written anew when it grows.

The daemon holds the file by flock(2) as long as it lives; the pins of a dead one count for nothing. A line is written
before what it names is used.
"""

from __future__ import annotations

import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress

SUFFIX = ".pins"
_LINES_MAX = 20_000


class Pins:
    """The pins of this process, in the file *path*. For one thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._uses: Counter[bytes] = Counter()
        self._lines = 0
        self._fd = -1
        self._write_anew()

    def pin(self, oid: bytes) -> None:
        """*oid* is used once more."""
        self._uses[oid] += 1
        self._append(b"+", oid)

    def unpin(self, oid: bytes) -> None:
        """It is used once less."""
        self._uses[oid] -= 1
        if self._uses[oid] <= 0:
            del self._uses[oid]
        self._append(b"-", oid)

    def replace(self, old: Sequence[bytes], new: Sequence[bytes]) -> None:
        """*new* are used instead of *old*."""
        for oid in new:
            self.pin(oid)
        for oid in old:
            self.unpin(oid)

    def _append(self, sign: bytes, oid: bytes) -> None:
        if self._fd < 0:
            return
        if self._lines >= _LINES_MAX and self._lines > 4 * self._uses.total():
            self._write_anew()
            return
        os.write(self._fd, sign + oid.hex().encode() + b"\n")
        self._lines += 1

    def _write_anew(self) -> None:
        temporary = self._path + ".new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(temporary, flags, 0o600)
        text = b"".join(b"+%b\n" % oid.hex().encode() for oid in self._uses.elements())
        fcntl.flock(fd, fcntl.LOCK_EX)  # nobody looks at it before it has its name
        with open(fd, "wb", closefd=False) as file:
            file.write(text)
        os.rename(temporary, self._path)
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._lines = self._uses.total()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            with suppress(FileNotFoundError):
                os.unlink(self._path)


def pinned(run: str) -> Iterator[bytes]:
    """What the daemons that run pin, of the store with the run directory *run*."""
    try:
        names = os.listdir(run)
    except FileNotFoundError:
        return
    for name in names:
        if not name.endswith(SUFFIX):
            continue
        with suppress(FileNotFoundError), open(os.path.join(run, name), "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                yield from _used(file.read())


def _used(lines: bytes) -> Iterator[bytes]:
    uses: Counter[bytes] = Counter()
    for line in lines.splitlines():
        with suppress(ValueError):
            uses[bytes.fromhex(line[1:].decode("ascii", "replace"))] += 1 if line[:1] == b"+" else -1
    yield from (oid for oid, count in uses.items() if count > 0)
