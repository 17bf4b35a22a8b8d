"""What an archive has been unpacked to so far, kept away from the store until the whole of it has been accepted.

A store gives nothing back of a batch that fails half-way: its objects stay until the next collection. So they wait
here, each once: in memory at first, then in a nameless file. `release` hands them over; nobody else ever sees them.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterable
from typing import NamedTuple

from clivefs.objects.encode import TreeEntry, encode_tree, hash_object, object_hasher
from clivefs.objects.errors import InvalidName
from clivefs.objects.interface import Batch, ObjectStore
from clivefs.objects.values import OBJECT_BYTES_MAX

_MEMORY_BYTES_MAX = 32 << 20
_COPY_BYTES = 1 << 20


class _Object(NamedTuple):
    offset: int
    size: int
    is_staged: bool
    """It is what the store's `stage` made of it; else the bytes of a large blob."""


class SizeDiffers(Exception):
    """The pieces of a blob were more or fewer bytes than announced; the argument is how many. Internal."""


class HeldObjects:
    """Objects on their way. Used by one thread; closed once."""

    def __init__(self, store: ObjectStore, spool_dir: str | None) -> None:
        """*spool_dir*: where the nameless file is made, if there is need of one."""
        self._store = store
        self._spool_dir = spool_dir
        self._spool = tempfile.SpooledTemporaryFile(_MEMORY_BYTES_MAX, dir=spool_dir)  # noqa: SIM115 - `close` does
        self._end = 0
        self._objects: dict[bytes, _Object] = {}

    def __enter__(self) -> HeldObjects:
        return self

    def __exit__(self, *_: object) -> None:
        self._spool.close()

    def blob(self, data: bytes, deflated: bytes | None = None) -> bytes:
        """Hold a blob of at most LARGE_BYTES; its name. *deflated*: see `objects.values.pack`."""
        return self._hold("blob", data, deflated)

    def tree(self, entries: Iterable[TreeEntry]) -> bytes:
        """Hold a tree; its name. InvalidName."""
        payload = encode_tree(entries)
        if len(payload) > OBJECT_BYTES_MAX:
            raise InvalidName(f"a directory of {len(payload)} bytes is larger than the store takes")
        return self._hold("tree", payload)

    def blob_pieces(self, pieces: Iterable[bytes], size: int) -> bytes:
        """Hold a blob of *size* bytes, more than LARGE_BYTES, that comes in pieces; its name. SizeDiffers."""
        hasher = object_hasher("blob", size)
        self._spool.seek(self._end)
        written = 0
        for piece in pieces:
            self._spool.write(piece)
            hasher.update(piece)
            written += len(piece)
        if written != size:
            raise SizeDiffers(written)
        oid = hasher.digest()
        if oid not in self._objects:
            self._objects[oid] = _Object(self._end, size, False)
            self._end += size
        return oid

    def _hold(self, kind: str, payload: bytes, deflated: bytes | None = None) -> bytes:
        oid = hash_object(kind, payload)
        if oid not in self._objects:
            staged = self._store.stage(oid, kind, payload, deflated)
            self._spool.seek(self._end)
            self._spool.write(staged)
            self._objects[oid] = _Object(self._end, len(staged), True)
            self._end += len(staged)
        return oid

    def release(self, batch: Batch) -> None:
        """Put all of it into *batch*, one of the store. OSError of the disk."""
        for oid, (offset, size, is_staged) in self._objects.items():
            self._spool.seek(offset)
            if is_staged:
                batch.put_staged(oid, self._spool.read(size))
                continue
            with tempfile.TemporaryFile(dir=self._spool_dir, buffering=0) as file:
                _copy(self._spool, file, size)
                batch.blob_file(file.fileno())


def _copy(source: tempfile.SpooledTemporaryFile[bytes], target: io.FileIO, size: int) -> None:
    while size:
        piece = memoryview(source.read(min(size, _COPY_BYTES)))
        size -= len(piece)
        while piece:
            piece = piece[target.write(piece) :]
