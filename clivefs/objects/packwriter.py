"""Objects as a git pack, for stock git to take in: `git index-pack --stdin`, `git unpack-objects`.

The format is git's Documentation/gitformat-pack, version 2. Objects are written whole, without deltas: whoever wants
them small lets git repack what it has taken in.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha1
from typing import Protocol

from clivefs.objects.encode import EMPTY_TREE, MODE_GITLINK, TreeEntry
from clivefs.objects.errors import ObjectTooLarge

_KINDS = {"commit": 1, "tree": 2, "blob": 3, "tag": 4}
_HEAD = struct.Struct(">4sII")
_COMPRESSION = 1


class Source(Protocol):
    """Where the objects are."""

    def read(self, oid: bytes) -> tuple[str, bytes]:
        """(kind, payload). ObjectMissing; ObjectTooLarge for a blob that `chunks` has."""
        ...

    def read_tree(self, oid: bytes) -> list[TreeEntry]: ...

    def chunks(self, oid: bytes) -> Iterator[bytes]:
        """A large blob's content, piece by piece."""
        ...


class Known(Protocol):
    """A set of names that need not be sent; with each goes all that is below it."""

    def __contains__(self, oid: object, /) -> bool: ...

    def add(self, oid: bytes, /) -> None: ...


def write_pack(source: Source, oids: Sequence[bytes], write: Callable[[bytes], object]) -> int:
    """Write the objects *oids* (none twice) of *source* as one pack; its size in bytes. ObjectMissing."""
    digest = sha1(usedforsecurity=False)
    size = 0

    def put(data: bytes) -> None:
        nonlocal size
        digest.update(data)
        write(data)
        size += len(data)

    put(_HEAD.pack(b"PACK", 2, len(oids)))
    for oid in oids:
        try:
            kind, payload = source.read(oid)
        except ObjectTooLarge as large:
            put(_object_head("blob", large.size))
            compressor = zlib.compressobj(_COMPRESSION)
            for chunk in source.chunks(oid):
                put(compressor.compress(chunk))
            put(compressor.flush())
            continue
        put(_object_head(kind, len(payload)) + zlib.compress(payload, _COMPRESSION))
    trailer = digest.digest()
    write(trailer)
    return size + len(trailer)


def _object_head(kind: str, size: int) -> bytes:
    """An object's kind and size: four bits of the size beside the kind, then seven in each byte."""
    byte = _KINDS[kind] << 4 | size & 0x0F
    size >>= 4
    head = bytearray()
    while size:
        head.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    head.append(byte)
    return bytes(head)


def tree_objects(source: Source, tree: bytes, known: Known) -> Iterator[bytes]:
    """The names of *tree* and everything below it, but for what is in *known* (with all below that), to which they
    are added. Submodules are named by a tree, not part of it."""
    waiting = [tree]
    while waiting:
        oid = waiting.pop()
        if oid in known:
            continue
        known.add(oid)
        yield oid
        if oid == EMPTY_TREE:
            continue
        for entry in source.read_tree(oid):
            if entry.oid in known or entry.mode == MODE_GITLINK:
                continue
            if entry.is_tree:
                waiting.append(entry.oid)
            else:
                known.add(entry.oid)
                yield entry.oid


def new_trees(source: Source, tree: bytes, before: bytes | None, known: Known) -> Iterator[bytes]:
    """As `tree_objects`, where whoever gets them has all of the tree *before*: the cost is that of the difference."""
    if before is None:
        yield from tree_objects(source, tree, known)
        return
    waiting: list[tuple[bytes, bytes]] = [(tree, before)]
    while waiting:
        oid, other = waiting.pop()
        if oid == other or oid in known:
            continue
        known.add(oid)
        yield oid
        old = {entry.name: entry for entry in source.read_tree(other)} if other != EMPTY_TREE else {}
        for entry in source.read_tree(oid) if oid != EMPTY_TREE else ():
            beside = old.get(entry.name)
            if beside is not None and beside.oid == entry.oid:
                continue
            if entry.oid in known or entry.mode == MODE_GITLINK:
                continue
            if entry.is_tree:
                if beside is not None and beside.is_tree:
                    waiting.append((entry.oid, beside.oid))
                else:
                    yield from tree_objects(source, entry.oid, known)
            else:
                known.add(entry.oid)
                yield entry.oid
