"""Binary content in git's patches: base 85, zlib, and deltas (git's base85.c, apply.c, patch-delta.c)."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

BINARY_BYTES_MAX = 256 << 20
_HEADER = re.compile(rb"(literal|delta) (\d{1,12})\r?\n?")


@dataclass(frozen=True, slots=True)
class BinaryHunk:
    """A file's new content, or a delta that makes it from the old."""

    line: int
    is_delta: bool
    data: bytes

    def apply(self, content: bytes) -> bytes:
        """The new content. ValueError when the delta was not made for *content*."""
        return apply_delta(content, self.data) if self.is_delta else self.data


def read_binary(lines: Sequence[bytes], at: int) -> tuple[BinaryHunk, int]:
    """The binary hunk that begins at index *at*, and where it ends with the reverse one. ValueError."""
    forward, at = _read_one(lines, at)
    if at < len(lines) and _HEADER.fullmatch(lines[at]):
        at = _read_one(lines, at)[1]
    return forward, at


def _read_one(lines: Sequence[bytes], at: int) -> tuple[BinaryHunk, int]:
    match = _HEADER.fullmatch(lines[at]) if at < len(lines) else None
    if match is None:
        raise ValueError("neither `literal` nor `delta` begins it")
    begin = at
    size = int(match[2])
    if size > BINARY_BYTES_MAX:
        raise ValueError(f"{size} bytes are more than the {BINARY_BYTES_MAX >> 20} MiB that are taken")
    packed = bytearray()
    at += 1
    while at < len(lines) and (line := lines[at].rstrip(b"\r\n")):
        packed += _decode_line(line)
        at += 1
    if at < len(lines):
        at += 1  # the blank line that ends it
    unpacker = zlib.decompressobj()
    try:
        data = unpacker.decompress(bytes(packed), size + 1)
        if not unpacker.eof and len(data) <= size:
            data += unpacker.flush()
    except zlib.error as error:
        raise ValueError(str(error)) from None
    if len(data) != size:
        raise ValueError(f"it does not unpack to the {size} bytes that it says")
    return BinaryHunk(begin + 1, match[1] == b"delta", data), at


def _decode_line(line: bytes) -> bytes:
    first = line[0]
    if 65 <= first <= 90:
        count = first - 64
    elif 97 <= first <= 122:
        count = first - 70
    else:
        raise ValueError(f"the line {line[:20]!r} has no length")
    try:
        data = base64.b85decode(line[1:])
    except ValueError as error:
        raise ValueError(f"the line {line[:20]!r} is not base 85 ({error})") from None
    if len(line) % 5 != 1 or not count <= len(data) < count + 4:
        raise ValueError(f"the line {line[:20]!r} has another length than it says")
    return data[:count]


def apply_delta(base: bytes, delta: bytes) -> bytes:
    """What a git delta makes of *base* (gitformat-pack(5), deltified representation). ValueError."""
    try:
        at, base_size = _size(delta, 0)
        at, size = _size(delta, at)
        if base_size != len(base):
            raise ValueError(f"the delta is for a file of {base_size} bytes, and this one has {len(base)}")
        if size > BINARY_BYTES_MAX:
            raise ValueError(f"the delta makes {size} bytes")
        made = bytearray()
        while at < len(delta):
            command = delta[at]
            at += 1
            if command & 0x80:
                offset = count = 0
                for bit in range(7):
                    if command & (1 << bit):
                        if bit < 4:
                            offset |= delta[at] << (8 * bit)
                        else:
                            count |= delta[at] << (8 * (bit - 4))
                        at += 1
                count = count or 0x10000
                if offset + count > len(base):
                    raise ValueError("the delta copies from beyond the end")
                made += base[offset : offset + count]
            elif command:
                if at + command > len(delta):
                    raise ValueError("the delta is cut off")
                made += delta[at : at + command]
                at += command
            else:
                raise ValueError("the delta has a command that git does not know")
            if len(made) > size:
                raise ValueError("the delta makes more than it says")
    except IndexError:
        raise ValueError("the delta is cut off") from None
    if len(made) != size:
        raise ValueError("the delta makes less than it says")
    return bytes(made)


def _size(delta: bytes, at: int) -> tuple[int, int]:
    size = shift = 0
    while True:
        byte = delta[at]
        at += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            return at, size
        if shift > 63:
            raise ValueError("the delta has no size")
