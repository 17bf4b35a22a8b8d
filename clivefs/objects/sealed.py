"""The sealed tier: old history in delta-compressed packs, made by `sealing`. Format 1 of the store, third part.

    STORE/packs/sealed.git/                       a bare repository as stock git has them, without refs
    .../objects/pack/pack-HASH.pack, .idx         git's own formats
    .../objects/pack/pack-HASH.strand             what is kept as a strand, see `strands`; git leaves it alone
    .../objects/pack/pack-HASH.beside             names (20 bytes each, in order) of large blobs that objects of this
                                                  pack lead to: they stay files of their own, see `large`
    .../objects/pack/pack-HASH.paths              zlib: of each object that is no delta a line `NAME PATH`, NAME in
                                                  hexadecimal; a hint for packing again, see `sealing`

Invariants: whatever a sealed object leads to is sealed, or beside it, or a repository's. An object leaves the database
only when a pack with it has its name, durably; a pack goes only when another has all of it that is still wanted.

Looking for an object that is not here must be cheap, as most are not: the indexes are searched by ourselves.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from contextlib import suppress

from clivefs.objects.encode import OID_BYTES
from clivefs.objects.errors import CorruptObject, ObjectMissing, RepositoryError
from clivefs.objects.repository import Repository
from clivefs.objects.strands import Strand

DIRECTORY = "packs/sealed.git"
SUFFIXES = (".idx", ".pack", ".beside", ".strand", ".paths")
"""Of one pack's files; without the first it is none."""
_MAGIC = b"\xfftOc\0\0\0\2"
_FANOUT = struct.Struct(">256I")
_NAMES_AT = len(_MAGIC) + _FANOUT.size
_FAR = 1 << 31
"""An offset from here on is the number of one of 8 bytes."""
_OFFSET = struct.Struct(">Q")
_TICK_NS = 50_000_000
_DELTAS = (6, 7)
"""Kinds of entries of a pack that stand on others."""


class PackIndex:
    """The names in one pack, by its .idx file (git's Documentation/gitformat-pack, version 2)."""

    def __init__(self, path: str) -> None:
        """OSError; CorruptObject for what is no such index."""
        self._path = path
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        if self._map[: len(_MAGIC)] != _MAGIC or len(self._map) < _NAMES_AT:
            raise CorruptObject("this is no index of a pack", place=path)
        self._offsets: array[int] | None = None
        self._ends: array[int] = array("Q")
        self._fanout: tuple[int, ...] = (0, *_FANOUT.unpack_from(self._map, len(_MAGIC)))
        if list(self._fanout) != sorted(self._fanout) or len(self._map) < _NAMES_AT + len(self) * OID_BYTES:
            raise CorruptObject("this index of a pack is damaged", place=path)

    def __len__(self) -> int:
        return self._fanout[-1]

    def __contains__(self, oid: bytes) -> bool:
        return self._find(oid) is not None

    def names(self) -> Iterator[bytes]:
        """All of them, in order."""
        return map(self._name, range(len(self)))

    def size_of(self, oid: bytes) -> int:
        """What the object takes in the pack; 0 where it is not in it. OSError without the pack."""
        found = self._find(oid)
        if found is None:
            return 0
        if self._offsets is None:
            offsets = self._read_offsets()
            pack_bytes = os.path.getsize(self._path.removesuffix(".idx") + ".pack")
            self._ends = array("Q", sorted((*offsets, pack_bytes - OID_BYTES)))
            self._offsets = offsets
        offset = self._offsets[found]
        return self._ends[bisect_right(self._ends, offset)] - offset

    def _read_offsets(self) -> array[int]:
        """Where each object begins in the pack. CorruptObject."""
        at = _NAMES_AT + len(self) * (OID_BYTES + 4)
        near = struct.unpack_from(f">{len(self)}I", self._map, at)
        if not near or max(near) < _FAR:
            return array("Q", near)
        far_at = at + 4 * len(self)
        try:
            return array(
                "Q",
                (
                    each if each < _FAR else _OFFSET.unpack_from(self._map, far_at + 8 * (each - _FAR))[0]
                    for each in near
                ),
            )
        except struct.error as error:
            raise CorruptObject(f"an index of a pack is damaged ({error})") from error

    def whole(self, pack: str) -> Iterator[bytes]:
        """The names of the objects that are no deltas in the file *pack*. OSError; CorruptObject."""
        offsets = self._read_offsets()
        with open(pack, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as content:
            for number, offset in enumerate(offsets):
                if offset < len(content) and content[offset] >> 4 & 7 not in _DELTAS:
                    yield self._name(number)

    def _find(self, oid: bytes) -> int | None:
        """Its number in the order of names."""
        slot = oid[0]
        low, high = self._fanout[slot], self._fanout[slot + 1]
        names = self._map
        while low < high:
            middle = (low + high) // 2
            at = _NAMES_AT + middle * OID_BYTES
            name = names[at : at + OID_BYTES]
            if name < oid:
                low = middle + 1
            elif name == oid:
                return middle
            else:
                high = middle
        return None

    def _name(self, number: int) -> bytes:
        at = _NAMES_AT + number * OID_BYTES
        return self._map[at : at + OID_BYTES]


class Sealed:
    """The sealed tier of a store. Methods may be called from any thread."""

    def __init__(self, store_path: str) -> None:
        self._store_path = store_path
        self.path = os.path.join(store_path, DIRECTORY)
        self.packs = os.path.join(self.path, "objects", "pack")
        self._seen = 0
        self._indexes: dict[str, PackIndex] = {}
        self._strands: dict[str, Strand] = {}
        self._repository: Repository | None = None

    def __contains__(self, oid: bytes) -> bool:
        self._look()
        return any(oid in index for index in self._indexes.values()) or any(
            oid in strand for strand in self._strands.values()
        )

    def read(self, oid: bytes) -> tuple[str, bytes]:
        """(kind, payload). ObjectMissing, CorruptObject."""
        self._look()
        if any(oid in index for index in self._indexes.values()):
            return self._opened(oid).read_whole(oid)
        for strand in self._strands.values():
            found = strand.read(oid)
            if found is not None:
                return found
        raise ObjectMissing(oid, self._store_path)

    def header(self, oid: bytes) -> tuple[str, int]:
        """(kind, size in bytes). ObjectMissing, CorruptObject."""
        self._look()
        if any(oid in index for index in self._indexes.values()):
            return self._opened(oid).header(oid)
        kind, payload = self.read(oid)
        return kind, len(payload)

    def names(self) -> Iterator[bytes]:
        """The names of all sealed objects; one that is in two packs twice."""
        self._look()
        for index in self._indexes.values():
            yield from index.names()
        for strand in self._strands.values():
            with suppress(CorruptObject):  # fsck tells of it by itself
                yield from strand.names()

    def beside(self) -> Iterator[bytes]:
        """The large blobs that sealed objects lead to."""
        self._look()
        return self.beside_of(self._indexes)

    def beside_of(self, packs: Iterable[str]) -> Iterator[bytes]:
        """The large blobs that the objects of *packs* lead to."""
        for name in packs:
            with suppress(FileNotFoundError), open(os.path.join(self.packs, name + ".beside"), "rb") as file:
                names = file.read()
                for at in range(0, len(names), OID_BYTES):
                    yield names[at : at + OID_BYTES]

    def count(self) -> tuple[int, int, int]:
        """(packs, objects, bytes on disk)."""
        self._look()
        size = 0
        for name in self._indexes:
            for suffix in SUFFIXES:
                with suppress(FileNotFoundError):
                    size += os.path.getsize(os.path.join(self.packs, name + suffix))
        objects = sum(map(len, self._indexes.values())) + sum(map(len, self._strands.values()))
        return len(self._indexes), objects, size

    def size_of(self, oid: bytes) -> int:
        """What a sealed object takes; 0 where it is not here."""
        self._look()
        for index in self._indexes.values():
            with suppress(FileNotFoundError):  # the pack goes this very moment
                size = index.size_of(oid)
                if size:
                    return size
        for strand in self._strands.values():
            if oid in strand:
                return strand.size // len(strand)  # what one takes by itself nobody can tell
        return 0

    def pack_names(self) -> list[str]:
        """The packs, without suffix."""
        self._look()
        return sorted(self._indexes)

    def problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with the files of this tier, as (place, message)."""
        with suppress(FileNotFoundError):
            present = set(os.listdir(self.packs))
            for name in sorted(present):
                if name.endswith(".strand"):
                    try:
                        Strand(os.path.join(self.packs, name)).check()
                    except (CorruptObject, ValueError, OSError) as error:
                        yield f"{DIRECTORY}/objects/pack/{name}", str(error)
                if name.endswith(".idx"):
                    try:
                        PackIndex(os.path.join(self.packs, name))
                    except (CorruptObject, ValueError, OSError) as error:
                        yield f"{DIRECTORY}/objects/pack/{name}", str(error)
                    if name.removesuffix(".idx") + ".pack" not in present:
                        yield f"{DIRECTORY}/objects/pack/{name}", "its pack is missing"

    def _look(self) -> None:
        """See packs that have come or gone: another process may seal."""
        try:
            changed = os.stat(self.packs).st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if changed == self._seen:
            return
        found: dict[str, PackIndex] = {}
        strands: dict[str, Strand] = {}
        for file in os.listdir(self.packs) if changed else ():
            name, dot, suffix = file.rpartition(".")
            if dot and suffix == "idx":
                known = self._indexes.get(name)
                with suppress(FileNotFoundError, CorruptObject, ValueError):  # fsck tells of a damaged one
                    path = os.path.join(self.packs, name)
                    index = known if known is not None else PackIndex(path + ".idx")
                    with suppress(FileNotFoundError):
                        old = self._strands.get(name)
                        strands[name] = old if old is not None else Strand(path + ".strand")
                    found[name] = index
        self._strands = strands
        self._indexes = found
        # Only a look that is later than the clock's tick of the change is sure to have seen it all.
        self._seen = changed if changed and _is_past(changed) else 0
        if self._repository is not None:
            self._repository.refresh()

    def _opened(self, oid: bytes) -> Repository:
        if self._repository is None:
            try:
                self._repository = Repository(self.path)
            except RepositoryError as error:
                raise CorruptObject(error.message, oid=oid, place=self.path) from error
        return self._repository


def _is_past(changed_ns: int) -> bool:
    return time.time_ns() - changed_ns > _TICK_NS
