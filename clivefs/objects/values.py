"""How one object is laid out in the `objects` database: format 1 of the store, first part.

    key     the 20 bytes of the object's name
    value   tag (1 byte), size (8 bytes, little-endian), content

The low four bits of the tag are the kind, git's own numbers (1 commit, 2 tree, 3 blob, 4 tag); the high
four say how the content is kept:

    0x00    raw: the payload itself
    0x10    a zlib stream of the payload
    0x20    nothing here: the payload is the file `large/aa/bb...` named by the object's name

`size` is always the payload's, so that kind and size are known without reading the content.
"""

from __future__ import annotations

import re
import struct
import zlib
from hashlib import sha256

from clivefs.objects.encode import KINDS
from clivefs.objects.errors import CorruptObject, InvalidName

HEADER = struct.Struct("<BQ")
RAW = 0x00
ZLIB = 0x10
LARGE = 0x20
SEALED = -1
"""Never in a record: the object is in a pack."""

LARGE_BYTES = 1 << 20
"""Blobs above this size are files of their own."""
OBJECT_BYTES_MAX = 256 << 20
"""No tree, commit or tag may be larger: they are held in memory in one piece."""

_COMPRESS_BYTES_MIN = 256
_ZLIB_HEADER = b"\x78\x9c"
"""Deflate with a window of 32 KiB, no dictionary (RFC 1950)."""
_KIND_NUMBER = {kind: number for number, kind in enumerate(KINDS, 1)}
_KIND_NAME = dict(enumerate(KINDS, 1))


def kind_number(kind: str) -> int:
    return _KIND_NUMBER[kind]


def pack(kind: str, payload: bytes, deflated: bytes | None = None) -> bytes:
    """The value of an object that is kept in the database. *deflated*: a whole raw deflate stream (RFC 1951) that the
    caller has inflated to *payload*, which saves doing the reverse."""
    number = _KIND_NUMBER[kind]
    size = len(payload)
    if size >= _COMPRESS_BYTES_MIN:
        if deflated is None:
            packed = zlib.compress(payload, 1)
        else:
            packed = _ZLIB_HEADER + deflated + zlib.adler32(payload).to_bytes(4, "big")
        if len(packed) < size - size // 4:  # below that, the time to inflate is worth more than the space
            return HEADER.pack(ZLIB | number, size) + packed
    return HEADER.pack(RAW | number, size) + payload


def pack_large(size: int) -> bytes:
    """The value of a blob that is a file of its own."""
    return HEADER.pack(LARGE | _KIND_NUMBER["blob"], size)


def header(oid: bytes, value: bytes) -> tuple[str, int, int]:
    """(kind, size, how it is kept) of a value. CorruptObject."""
    if len(value) < HEADER.size:
        raise CorruptObject("the record is cut short", oid=oid)
    tag, size = HEADER.unpack_from(value)
    kind = _KIND_NAME.get(tag & 0x0F)
    tier = tag & 0xF0
    if kind is None or tier not in (RAW, ZLIB, LARGE):
        raise CorruptObject(f"the record has the unknown tag {tag:#x}", oid=oid)
    return kind, size, tier


def unpack(oid: bytes, value: bytes) -> tuple[str, bytes]:
    """(kind, payload) of a value that is not LARGE. CorruptObject; never inflates past the stated size."""
    kind, size, tier = header(oid, value)
    if tier == RAW:
        payload = value[HEADER.size :]
    elif size > OBJECT_BYTES_MAX:
        raise CorruptObject(f"the record claims {size} bytes", oid=oid)
    else:
        stream = zlib.decompressobj()
        try:
            payload = stream.decompress(value[HEADER.size :], size + 1)
        except zlib.error as error:
            raise CorruptObject(f"the record does not inflate ({error})", oid=oid) from error
    if len(payload) != size:
        raise CorruptObject(f"the record has {len(payload)} bytes, not the {size} it claims", oid=oid)
    return kind, payload


# The `meta` database: small records of (namespace, key).
#
#     key     namespace, NUL, 0x00, key                     where the whole fits into LMDB's 511 bytes
#             namespace, NUL, 0x01, SHA-256 of the key      where it does not
#     value   value                                         resp. length of the key (4 bytes, little-endian), key, value

_NAMESPACE = re.compile(r"[a-z0-9][a-z0-9.-]{0,63}")
RANGE_KEY_BYTES_MAX = 400
"""Records with longer keys are kept under a hash, and so in no order."""
_KEY_LENGTH = struct.Struct("<I")


def meta_prefix(namespace: str) -> bytes:
    """What all keys of a namespace begin with. InvalidName."""
    if not _NAMESPACE.fullmatch(namespace):
        raise InvalidName(f"{namespace!r} cannot name a namespace of records")
    return namespace.encode() + b"\0"


def meta_record(namespace: str, key: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The database's key and value of a record."""
    if len(key) <= RANGE_KEY_BYTES_MAX:
        return meta_prefix(namespace) + b"\0" + key, value
    return meta_prefix(namespace) + b"\1" + sha256(key).digest(), _KEY_LENGTH.pack(len(key)) + key + value


def meta_range(namespace: str, start: bytes, end: bytes | None) -> tuple[bytes, bytes]:
    """The database's keys [from, to) of the records in order with *start* <= key < *end* (None: to the last one)."""
    prefix = meta_prefix(namespace)
    return prefix + b"\0" + _bound(start), prefix + b"\1" if end is None else prefix + b"\0" + _bound(end)


def _bound(key: bytes) -> bytes:
    """*key*, or a key that LMDB can take and that divides the records in order just as *key* does."""
    return key if len(key) <= RANGE_KEY_BYTES_MAX else key[:RANGE_KEY_BYTES_MAX] + b"\0"


def meta_decode(namespace: str, stored_key: bytes, stored: bytes) -> tuple[bytes, bytes]:
    """(key, value) of a record as the database has it. CorruptObject."""
    at = len(namespace) + 1
    if stored_key[at : at + 1] == b"\0":
        return stored_key[at + 1 :], stored
    if len(stored) < _KEY_LENGTH.size:
        raise CorruptObject(f"a record of {namespace} is cut short")
    end = _KEY_LENGTH.size + _KEY_LENGTH.unpack_from(stored)[0]
    key = stored[_KEY_LENGTH.size : end]
    if stored_key[at:] != b"\1" + sha256(key).digest():
        raise CorruptObject(f"a record of {namespace} is not under its key")
    return key, stored[end:]
