"""The intent log that keeps an upper's marks, written before each change of names.

Everything that decides the format of `STORE/uppers/W/E/marks` is in this file, with the numbers of `EditKind` and
`ActionKind`.

Invariants
----------
1. A change of names is appended to the log *before* it is made in `tree/`, in one write(2).
2. While an intent is the last record of the log, no other change of names happens in `tree/`. So at most
   the last intent can be unfinished after a `kill -9`, and to look whether its files are still where they
   were is enough to tell: it is then carried out (`pending`). `settle` ends this state with a DONE record;
   every later record ends it as well.
3. An intent that failed is followed by ABORT: replay leaves it out. Room for it is reserved before the
   intent is written, so that a full disk cannot come between the two.
4. A tail that is short, or whose checksum or sequence number is wrong, is cut off at start.

Format, version 1 (little-endian)
---------------------------------
    file    = "clivefs marks 1\\n" record* zero*
    record  = u32 length of payload, u32 crc32 of the rest, u64 sequence number (previous + 1), u8 kind, payload
    kind    = 1 INTENT | 2 ABORT (the record before it did not happen) | 3 DONE
    INTENT  = u16 number of edits, edit*, u8 number of actions (0 or 1), action*
    edit    = u8 tag, field, field            action = u8 tag, field, field, u64 inode, u32 flags, u32 mode
    field   = u32 length, bytes               (numbers are u64)

Paths are relative to the root of the tree (edits) or to the upper's directory (actions).
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.overlay.marks import Action, ActionKind, Edit, EditKind, Mark, Marks

MAGIC = b"clivefs marks 1\n"
_MAGIC_ANY = b"clivefs marks "
_HEAD = struct.Struct("<IIQB")
_U64 = struct.Struct("<Q")
_ACTION = struct.Struct("<QII")
_PAYLOAD_BYTES_MAX = 16 << 20
_RESERVE_BYTES = 64 << 10
_EDITS_A_RECORD = 500
COMPACT_BYTES_MIN = 4 << 20
COMPACT_FACTOR = 4

_INTENT, _ABORT, _DONE = 1, 2, 3

_NUMBERED = (EditKind.ORIGIN, EditKind.UNORIGIN)


def _field(data: bytes) -> bytes:
    return len(data).to_bytes(4, "little") + data


def encode_intent(edits: list[Edit], action: Action | None) -> bytes:
    """The payload of an INTENT record."""
    parts = [len(edits).to_bytes(2, "little")]
    for edit in edits:
        parts.append(bytes([edit.kind]))
        if edit.kind in _NUMBERED:
            parts.append(_field(_U64.pack(edit.inode)) + _field(_U64.pack(edit.number)))
        else:
            parts.append(_field(edit.path) + _field(edit.other))
    if action is None:
        parts.append(b"\0")
    else:
        parts.append(bytes([1, action.kind]) + _field(action.path) + _field(action.other))
        parts.append(_ACTION.pack(action.inode, action.flags, action.mode))
    return b"".join(parts)


def decode_intent(payload: bytes) -> tuple[list[Edit], Action | None]:
    """The edits and the action of an INTENT record. ValueError or struct.error when it is not one."""
    at = 2

    def take() -> bytes:
        nonlocal at
        end = at + 4 + int.from_bytes(payload[at : at + 4], "little")
        if end > len(payload):
            raise ValueError("field beyond the end")
        data = payload[at + 4 : end]
        at = end
        return data

    edits: list[Edit] = []
    for _ in range(int.from_bytes(payload[:2], "little")):
        kind = EditKind(payload[at])
        at += 1
        first, second = take(), take()
        if kind in _NUMBERED:
            edits.append(Edit(kind, inode=_U64.unpack(first)[0], number=_U64.unpack(second)[0]))
        else:
            edits.append(Edit(kind, first, second))
    count = payload[at]
    at += 1
    if not count:
        return edits, None
    tag = ActionKind(payload[at])
    at += 1
    path, other = take(), take()
    inode, flags, mode = _ACTION.unpack_from(payload, at)
    return edits, Action(tag, path, other, inode, flags, mode)


class _Record(NamedTuple):
    sequence: int
    kind: int
    payload: bytes
    end: int


def _records(data: bytes) -> Iterator[_Record]:
    """The records up to the first that is not whole."""
    at = len(MAGIC)
    expected: int | None = None
    while at + _HEAD.size <= len(data):
        length, crc, sequence, kind = _HEAD.unpack_from(data, at)
        end = at + _HEAD.size + length
        if not kind or length > _PAYLOAD_BYTES_MAX or end > len(data) or zlib.crc32(data[at + 8 : end]) != crc:
            return
        if expected is not None and sequence != expected:
            return
        expected = sequence + 1
        yield _Record(sequence, kind, data[at + _HEAD.size : end], end)
        at = end


class IntentLog:
    """The open log of one upper. Not safe for several threads, but for `sync`."""

    def __init__(self, dir_fd: int, name: bytes = b"marks") -> None:
        """Open or make the log *name* in *dir_fd* (which stays the caller's) and replay it.

        Raises ClivefsError when it is of another format.
        """
        self._dir_fd = dir_fd
        self._name = name
        self.marks = Marks()
        self.pending: Action | None = None
        """What the last record announced, if nothing after it says that it was done."""
        self._unsettled = False
        self._abort_owed = False
        self._sequence = 0
        self._compacted_bytes = 0
        self.unsynced = True  # whoever wrote what is there may not have come to it
        self._fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=dir_fd)
        try:
            self._load()
        except BaseException:
            os.close(self._fd)
            raise

    def _load(self) -> None:
        data = _read_all(self._fd)
        if len(data) < len(MAGIC) and MAGIC.startswith(data.rstrip(b"\0")):
            data = MAGIC
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, data, 0)
            os.fsync(self._fd)
            os.fsync(self._dir_fd)
        if not data.startswith(MAGIC):
            known = data.startswith(_MAGIC_ANY)
            raise ClivefsError(
                "the overlay's marks are of a newer format" if known else "the overlay's marks are not readable",
                place=os.fsdecode(self._name),
                remedy="Use a newer clivefs." if known else "The files themselves are in `tree/` beside it.",
            )
        self._end = self._replay(data)
        tail = data[self._end :].rstrip(b"\0")
        if len(tail) > _RESERVE_BYTES:
            # A kill leaves less than one record. This much after a bad one is a damaged disk: keep it for rescue.
            self._keep_damaged(data)
        os.ftruncate(self._fd, self._end)
        self._reserved = self._end

    def _replay(self, data: bytes) -> int:
        """Apply every record but those that were aborted; the end of the last good one."""
        end = len(MAGIC)
        waiting: tuple[list[Edit], Action | None] | None = None
        for record in _records(data):
            if record.kind == _ABORT:
                waiting = None
            elif waiting is not None:
                self.marks.apply(waiting[0])
                waiting = None
            if record.kind == _INTENT:
                try:
                    waiting = decode_intent(record.payload)
                except (ValueError, IndexError, struct.error):
                    break
            end, self._sequence = record.end, record.sequence
        if waiting is not None:
            self.marks.apply(waiting[0])
            self.pending = waiting[1]
            self._unsettled = True
        return end

    def _keep_damaged(self, data: bytes) -> None:
        copy = os.open(self._name + b".damaged", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=self._dir_fd)
        try:
            _write_all(copy, data, 0)
        finally:
            os.close(copy)

    # Writing

    def begin(self, edits: list[Edit], action: Action | None) -> None:
        """Append an intent. Nothing has changed if this raises (OSError: the disk is full or broken)."""
        self._pay_abort()
        self._append(_INTENT, encode_intent(edits, action))
        self._unsettled = True

    def abort(self) -> None:
        """The intent that was just begun did not happen. If even this cannot be written, it is before
        anything else is."""
        self._abort_owed = True
        try:
            self._pay_abort()
        except OSError:
            return  # room was reserved, so the disk is broken: `begin` and `settle` go on trying

    def settle(self) -> None:
        """From here on, changes that need no intent may happen."""
        self._pay_abort()
        if self._unsettled:
            self._append(_DONE, b"")
            self._unsettled = False

    def roll_back_pending(self) -> None:
        """The pending action cannot be carried out (the disk is full): it did not happen."""
        self._unsettled = False
        self.pending = None
        self._append(_ABORT, b"")
        self.marks.root = Mark()
        self.marks.origins.clear()
        self._sequence = 0
        self._end = self._replay(_read_all(self._fd)[: self._end])

    def _pay_abort(self) -> None:
        if self._abort_owed:
            self._append(_ABORT, b"")
            self._abort_owed = False
            self._unsettled = False

    def _append(self, kind: int, payload: bytes) -> None:
        body = _U64.pack(self._sequence + 1) + bytes([kind]) + payload
        record = len(payload).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
        self._reserve(len(record) + (2 * _HEAD.size if kind == _INTENT else 0))
        FAULTS.hit("marks.append")
        written = os.pwrite(self._fd, record, self._end)
        if written != len(record):
            _write_all(self._fd, record[written:], self._end + written)
        self._end += len(record)
        self._sequence += 1
        self.unsynced = True

    def _reserve(self, size: int) -> None:
        if self._end + size > self._reserved:
            more = self._end + size + _RESERVE_BYTES - self._reserved
            os.posix_fallocate(self._fd, self._reserved, more)
            self._reserved += more

    # Keeping it short, and durable

    @property
    def sequence(self) -> int:
        """Of the newest record: another number as soon as the marks are others."""
        return self._sequence

    @property
    def long(self) -> bool:
        """Whether compacting is worth while."""
        return self._end > COMPACT_BYTES_MIN and self._end > COMPACT_FACTOR * self._compacted_bytes

    def compact(self) -> None:
        """Replace the log by one that says the same in fewest records, durably. Nothing may be pending."""
        self.settle()
        temporary = self._name + b".new"
        fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._dir_fd)
        old = self._fd, self._end, self._reserved, self._sequence
        self._fd, self._end, self._reserved = fd, len(MAGIC), 0
        try:
            _write_all(fd, MAGIC, 0)
            batch: list[Edit] = []
            for edit in self.marks.snapshot():
                batch.append(edit)
                if len(batch) == _EDITS_A_RECORD:
                    self._append(_INTENT, encode_intent(batch, None))
                    batch = []
            if batch:
                self._append(_INTENT, encode_intent(batch, None))
            os.fsync(fd)
            FAULTS.hit("marks.compacted")
            os.rename(temporary, self._name, src_dir_fd=self._dir_fd, dst_dir_fd=self._dir_fd)
        except BaseException:
            os.close(fd)
            self._fd, self._end, self._reserved, self._sequence = old
            raise
        os.dup2(fd, old[0], inheritable=False)  # a thread may be about to sync it: the number stays
        os.close(fd)
        self._fd = old[0]
        self._compacted_bytes = self._end
        self._unsettled = False
        self.unsynced = False
        os.fsync(self._dir_fd)

    def sync(self) -> None:
        """Everything that was appended survives a power loss."""
        if self.unsynced:
            self.unsynced = False
            try:
                os.fdatasync(self._fd)
            except BaseException:
                self.unsynced = True
                raise

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _read_all(fd: int) -> bytes:
    parts: list[bytes] = []
    at = 0
    while chunk := os.pread(fd, 1 << 20, at):
        parts.append(chunk)
        at += len(chunk)
    return b"".join(parts)


def _write_all(fd: int, data: bytes, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, at)
        view = view[written:]
        at += written
