"""Strands: many versions of the same small objects, kept as what each differs by. For metadata trees and records, which
change with every save: stock git never asks for them, and its packs spend more on their names than on what changed.

A strand lies beside the pack that was made with it (see `sealed`).

Integers little-endian; `number` is 7 bits a byte, low ones first, the highest bit set on all but the last.

    magic       8 bytes   "clivest1"
    counts      blocks (4), objects (4)
    blocks      for each: where (8), how many bytes (4), the number of its first object (4)
    index       for each object, sorted: the first 8 bytes of its name, its number (4)
    bodies      each a zlib stream of its objects, one after the other
    digest      32 bytes  SHA-256 of all before

An object in a body: kind (1 byte: 2 tree, 3 blob), `number` base (0: none; N: the object N before, of the same body),
and operations until a 0:

    number 4 n + 1, number at     n bytes of the base from *at* on
    number 4 n + 2, bytes         these n bytes
    number 4 n + 3                the 20 bytes of the name of the object n before

So the names by which trees name what changed with them are not stored at all: they are computed from the content, and
the name of what is read is checked.
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
import zlib
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from typing import NamedTuple

from clivefs.objects.encode import OID_BYTES, hash_object
from clivefs.objects.errors import CorruptObject
from clivefs.objects.versions import alike, alike_at_end

BLOCK_OBJECTS = 4096
BLOCK_BYTES = 4 << 20
"""Of payload: what is held in memory to read one of its objects."""
SUFFIX = ".strand"
_MAGIC = b"clivest1"
_COUNTS = struct.Struct("<II")
_BLOCK = struct.Struct("<QII")
_ENTRY = struct.Struct("<8sI")
_DIGEST_BYTES = 32
_KINDS = {2: "tree", 3: "blob"}
_NUMBERS = {name: number for number, name in _KINDS.items()}
_COPY, _BYTES, _NAME = 1, 2, 3
_BLOCKS_HELD = 4
_BODY_BYTES_MAX = 512 << 20
_GAP = 4
"""Bytes that are alike between two that are not: fewer are not worth an operation."""


class StrandObject(NamedTuple):
    """One object to be kept, and what it is a version of."""

    oid: bytes
    kind: str
    payload: bytes
    version_of: bytes


# Writing


def write_strand(path: str, objects: Iterator[StrandObject]) -> int:
    """Write a strand of *objects* to the new file *path*, durably; how many bytes. OSError.

    None twice; what a tree names comes after it, as a walk from above finds it."""
    bodies: list[bytes] = []
    firsts: list[int] = []
    names: list[tuple[bytes, int]] = []
    block: list[StrandObject] = []
    size = 0

    def end_block() -> None:
        nonlocal size
        block.reverse()  # then everything that is referred to comes before
        firsts.append(len(names))
        names.extend((each.oid[:8], number) for number, each in enumerate(block, len(names)))
        bodies.append(zlib.compress(_encode(block), 9))
        block.clear()
        size = 0

    for each in objects:
        block.append(each)
        size += len(each.payload)
        if len(block) >= BLOCK_OBJECTS or size >= BLOCK_BYTES:
            end_block()
    if block:
        end_block()
    return _write(path, bodies, firsts, names)


def join_strands(path: str, strands: Sequence[Strand]) -> int:
    """Write one strand of all that *strands* have to the new file *path*, durably; how many bytes. Their bodies stay as
    they are, so this costs no more than copying. OSError."""
    bodies: list[bytes] = []
    firsts: list[int] = []
    names: list[tuple[bytes, int]] = []
    for each in strands:
        before = len(names)
        firsts += [before + first for first in each.firsts]
        bodies += each.bodies()
        names += [(start, before + number) for start, number in each.entries()]
    return _write(path, bodies, firsts, names)


def _write(path: str, bodies: Sequence[bytes], firsts: Sequence[int], names: list[tuple[bytes, int]]) -> int:
    names.sort()
    at = len(_MAGIC) + _COUNTS.size + len(bodies) * _BLOCK.size + len(names) * _ENTRY.size
    parts = [_MAGIC, _COUNTS.pack(len(bodies), len(names))]
    for body, first in zip(bodies, firsts, strict=True):
        parts.append(_BLOCK.pack(at, len(body), first))
        at += len(body)
    parts += [_ENTRY.pack(*entry) for entry in names]
    parts += bodies
    digest = sha256()
    with open(path, "xb") as file:
        for part in parts:
            digest.update(part)
            file.write(part)
        file.write(digest.digest())
        file.flush()
        os.fsync(file.fileno())
    return at + _DIGEST_BYTES


def _encode(block: Sequence[StrandObject]) -> bytes:
    parts: list[bytes] = []
    number_of: dict[bytes, int] = {}
    last_of: dict[tuple[str, bytes], int] = {}
    for number, each in enumerate(block):
        base = last_of.get((each.kind, each.version_of))
        parts.append(bytes((_NUMBERS[each.kind],)) + _number(number - base if base is not None else 0))
        old = block[base].payload if base is not None else b""
        operations = _of_tree(each.payload, old) if each.kind == "tree" else _of_bytes(each.payload, old)
        parts += _written(operations, number, number_of)
        parts.append(b"\0")
        number_of[each.oid] = number
        last_of[each.kind, each.version_of] = number
    return b"".join(parts)


_Operation = tuple[int, int, bytes]
"""(what, where in the base, bytes): copy *bytes* from there, these bytes, or a name."""


def _written(operations: list[_Operation], number: int, number_of: Mapping[bytes, int]) -> Iterator[bytes]:
    """Operations as they are stored; neighbours that can be one are."""
    merged: list[_Operation] = []
    for what, at, data in operations:
        if what == _NAME and data not in number_of:
            what = _BYTES
        if merged and what != _NAME and merged[-1][0] == what:
            _, before_at, before = merged[-1]
            if what == _BYTES or before_at + len(before) == at:
                merged[-1] = what, before_at, before + data
                continue
        merged.append((what, at, data))
    for what, at, data in merged:
        if what == _NAME:
            yield _number(4 * (number - number_of[data]) + _NAME)
        elif what == _COPY:
            yield _number(4 * len(data) + _COPY) + _number(at)
        else:
            yield _number(4 * len(data) + _BYTES) + data


def _entries(tree: bytes) -> Iterator[tuple[bytes, bytes, int]]:
    """(mode and name with the NUL, name of the object, where) of the entries of a tree."""
    at = 0
    while at < len(tree):
        end = tree.index(b"\0", at) + 1
        yield tree[at:end], tree[end : end + OID_BYTES], at
        at = end + OID_BYTES


def _of_tree(tree: bytes, base: bytes) -> list[_Operation]:
    old = {head: (oid, at) for head, oid, at in _entries(base)}
    operations: list[_Operation] = []
    for head, oid, _ in _entries(tree):
        known = old.get(head)
        if known is None:
            operations += [(_BYTES, 0, head), (_NAME, 0, oid)]
        elif known[0] == oid:
            operations.append((_COPY, known[1], head + oid))
        else:
            operations += [(_COPY, known[1], head), (_NAME, 0, oid)]
    return operations


def _of_bytes(data: bytes, base: bytes) -> list[_Operation]:
    if len(data) != len(base):
        start = alike(data, base)
        end = alike_at_end(data, base, start)
        operations = [
            (_COPY, 0, data[:start]),
            (_BYTES, 0, data[start : len(data) - end]),
            (_COPY, len(base) - end, data[len(data) - end :]),
        ]
        return [each for each in operations if each[2]]
    operations = []
    at = 0
    while at < len(data):
        same = alike(data[at:], base[at:])
        if same:
            operations.append((_COPY, at, data[at : at + same]))
            at += same
        end = at
        while end < len(data) and data[end : end + _GAP] != base[end : end + _GAP]:
            end += 1
        if end > at:
            operations.append((_BYTES, 0, data[at:end]))
        at = end
    return operations


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


# Reading


class Strand:
    """One strand on disk. Methods may be called from any thread."""

    def __init__(self, path: str) -> None:
        """OSError; CorruptObject for what is no strand."""
        self.path = path
        with open(path, "rb") as file:
            self._size = os.fstat(file.fileno()).st_size
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        try:
            if self._map[: len(_MAGIC)] != _MAGIC:
                raise CorruptObject("this is no strand", place=path)
            at = len(_MAGIC)
            blocks: int
            self._count: int
            blocks, self._count = _COUNTS.unpack_from(self._map, at)
            at += _COUNTS.size
            if len(self._map) < at + blocks * _BLOCK.size + self._count * _ENTRY.size + _DIGEST_BYTES:
                raise CorruptObject("this strand is cut short", place=path)
            self._blocks: list[tuple[int, int, int]] = [
                _BLOCK.unpack_from(self._map, at + each * _BLOCK.size) for each in range(blocks)
            ]
        except struct.error as error:
            raise CorruptObject("this strand is cut short", place=path) from error
        self.firsts = [first for _, _, first in self._blocks]
        """Of each body, the number of its first object."""
        self._index_at = at + blocks * _BLOCK.size
        self._held: OrderedDict[int, list[tuple[bytes, str, bytes]]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._count

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return self._size

    def __contains__(self, oid: bytes) -> bool:
        """Whether an object is here, by eight bytes of its name."""
        return next(self._numbers(oid), None) is not None

    def read(self, oid: bytes) -> tuple[str, bytes] | None:
        """(kind, payload), or None. CorruptObject."""
        for number in self._numbers(oid):
            name, kind, payload = self._object(number)
            if name == oid:
                return kind, payload
        return None

    def names(self) -> Iterator[bytes]:
        """The names of all objects. CorruptObject."""
        for number in range(self._count):
            yield self._object(number)[0]

    def bodies(self) -> Iterator[bytes]:
        """The bodies, as they are stored."""
        for at, length, _ in self._blocks:
            yield self._map[at : at + length]

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Of each object, the first 8 bytes of its name and its number."""
        for position in range(self._count):
            start, number = _ENTRY.unpack_from(self._map, self._index_at + position * _ENTRY.size)
            yield start, number

    def check(self) -> None:
        """CorruptObject unless every byte is as it was written."""
        digest = sha256()
        end = len(self._map) - _DIGEST_BYTES
        for at in range(0, end, 1 << 20):
            digest.update(self._map[at : min(at + (1 << 20), end)])
        if digest.digest() != self._map[end:]:
            raise CorruptObject("this strand is damaged", place=self.path)

    def _numbers(self, oid: bytes) -> Iterator[int]:
        """The numbers of objects whose names begin as *oid*."""
        start = oid[:8]
        found = bisect_left(range(self._count), start, key=self._prefix)
        while found < self._count and self._prefix(found) == start:
            number: int = _ENTRY.unpack_from(self._map, self._index_at + found * _ENTRY.size)[1]
            yield number
            found += 1

    def _prefix(self, position: int) -> bytes:
        at = self._index_at + position * _ENTRY.size
        return self._map[at : at + 8]

    def _object(self, number: int) -> tuple[bytes, str, bytes]:
        block = bisect_left(self.firsts, number + 1) - 1
        if block < 0:
            raise CorruptObject("this strand is damaged", place=self.path)
        with self._lock:
            held = self._held.get(block)
            if held is None:
                held = self._held[block] = self._decode(block)
                if len(self._held) > _BLOCKS_HELD:
                    self._held.popitem(last=False)
            else:
                self._held.move_to_end(block)
        try:
            found = held[number - self.firsts[block]]
        except IndexError:
            raise CorruptObject("this strand is damaged", place=self.path) from None
        return found

    def _decode(self, block: int) -> list[tuple[bytes, str, bytes]]:
        at, length, _ = self._blocks[block]
        try:
            # Nothing is larger than what was put into a block: one that exceeds it has one object.
            stream = zlib.decompressobj()
            body = stream.decompress(self._map[at : at + length], _BODY_BYTES_MAX)
            return _decode(body)
        except (zlib.error, IndexError, KeyError, ValueError) as error:
            raise CorruptObject(f"this strand is damaged ({error})", place=self.path) from error


def _decode(body: bytes) -> list[tuple[bytes, str, bytes]]:
    """(name, kind, payload) of the objects of a body. IndexError, KeyError, ValueError for what is none."""
    found: list[tuple[bytes, str, bytes]] = []
    at = 0
    total = 0
    while at < len(body):
        kind = _KINDS[body[at]]
        back, at = _read_number(body, at + 1)
        base = found[_back(len(found), back)][2] if back else b""
        parts: list[bytes] = []
        while True:
            operation, at = _read_number(body, at)
            if not operation:
                break
            what, count = operation & 3, operation >> 2
            if what == _COPY:
                start, at = _read_number(body, at)
                if start + count > len(base):
                    raise ValueError("it copies what is not there")
                parts.append(base[start : start + count])
            elif what == _BYTES:
                if at + count > len(body):
                    raise ValueError("it is cut short")
                parts.append(body[at : at + count])
                at += count
            elif what == _NAME:
                parts.append(found[_back(len(found), count)][0])
            else:
                raise ValueError("it has an unknown operation")
        payload = b"".join(parts)
        total += len(payload)
        if total > _BODY_BYTES_MAX:
            raise ValueError("it is too large")
        found.append((hash_object(kind, payload), kind, payload))
    return found


def _back(number: int, count: int) -> int:
    if not 0 < count <= number:
        raise ValueError("it refers to what is not there")
    return number - count


def _read_number(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number has no end")
