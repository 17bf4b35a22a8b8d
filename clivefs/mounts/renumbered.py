"""Inode numbers that directories have in spite of the number that would be derived for them.

A directory on the way to a mount entry has a number before any layer has it; once it is made in a layer it keeps that,
also in the next mount, where it is there from the start.

Format of `STORE/numbers`: records of 16 bytes, only appended: the derived number and the one that is shown, each u64,
little-endian. A record that is not whole is cut off at start.
"""

from __future__ import annotations

import os
import struct

_RECORD = struct.Struct("<QQ")


class Renumbered:
    """The open file. Several daemons may have it open and append to it."""

    def __init__(self, dir_fd: int, name: bytes = b"numbers") -> None:
        """Open or make the file *name* in *dir_fd*, which stays the caller's."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        self._fd = os.open(name, flags, 0o600, dir_fd=dir_fd)

    def read(self) -> dict[int, int]:
        """Derived number to shown number."""
        size = os.fstat(self._fd).st_size
        whole = size - size % _RECORD.size
        if whole != size:
            os.ftruncate(self._fd, whole)
        return dict(_RECORD.iter_unpack(os.pread(self._fd, whole, 0)))

    def add(self, derived: int, shown: int) -> None:
        """Keep it. After a power loss it may be lost, and the directory has another number then."""
        os.write(self._fd, _RECORD.pack(derived, shown))

    def close(self) -> None:
        os.close(self._fd)
