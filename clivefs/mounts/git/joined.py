"""Objects from several places as one: what we made is in the store, what it was made of in a foreign repository.

A patched tree is such a thing: its changed trees and blobs are in the store, all others where the source keeps
them. `JoinedObjects` is a `git.lower.ObjectReader`.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, TypeVar

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.space import Fetcher, Reader
from clivefs.objects.encode import Commit, TreeEntry, decode_commit
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge
from clivefs.objects.interface import ObjectStore
from clivefs.objects.large import CHUNK_BYTES, read_exactly

T = TypeVar("T")

CONTENT_BYTES_MAX = 256 << 20
"""No larger blob is read into memory."""


class JoinedObjects:
    """The objects of *readers*, asked in this order, but first who had the last one. *scratch*: a directory where large
    blobs become plain files. *fetch*: gets what `want` asks for and nobody has."""

    def __init__(self, readers: Sequence[Reader], scratch: str, fetch: Fetcher | None = None) -> None:
        self._readers = tuple(readers)
        self._scratch = scratch
        self._fetch = fetch
        self._likely: dict[str, Reader] = {}
        """Who had what was asked for last, by the question, if that was not the first. Any thread may change it."""

    def want(self, oids: Iterable[bytes]) -> None:
        """Get those of these blobs that are not here, in one request, before they are read. Asks the network, so for
        threads. ClivefsError where a remote that may have them does not answer."""
        if self._fetch is None:
            return
        missing = [oid for oid in dict.fromkeys(oids) if not self._has(oid)]
        if not missing:
            return
        try:
            self._fetch(missing)
        except OSError as error:
            raise ClivefsError(
                f"{len(missing)} files that were never read cannot be had: {error.strerror}",
                remedy="try again when their source can be reached",
            ) from error

    def _has(self, oid: bytes) -> bool:
        try:
            self.header(oid)
        except ObjectMissing:
            return False
        return True

    def read(self, oid: bytes) -> tuple[str, bytes]:
        """(kind, payload). ObjectMissing where none has it; ObjectTooLarge for a blob over 1 MiB."""
        return self._first(oid, "read", lambda reader: reader.read(oid))

    def header(self, oid: bytes) -> tuple[str, int]:
        """(kind, size in bytes). ObjectMissing."""
        return self._first(oid, "header", lambda reader: reader.header(oid))

    def read_tree(self, oid: bytes) -> list[TreeEntry]:
        """The entries of a tree, unchecked. ObjectMissing, CorruptObject."""
        return self._first(oid, "read_tree", lambda reader: reader.read_tree(oid))

    def materialize(self, oid: bytes, directory: str) -> str:
        """The path of a file in *directory*, named by the blob's id, with its content. ObjectMissing."""
        return self._first(oid, "materialize", lambda reader: _materialize(reader, oid, directory))

    def content(self, oid: bytes) -> bytes:
        """A blob's content, also of one over 1 MiB. ObjectMissing; ObjectTooLarge over 256 MiB."""
        try:
            return self.read(oid)[1]
        except ObjectTooLarge as error:
            if error.size > CONTENT_BYTES_MAX:
                raise
        with tempfile.TemporaryDirectory(prefix="blob-", dir=self._scratch) as directory:
            path = self.materialize(oid, directory)
            with open(path, "rb") as file:
                return file.read()

    def read_commit(self, oid: bytes) -> Commit:
        """ObjectMissing, CorruptObject."""
        kind, payload = self.read(oid)
        if kind != "commit":
            raise CorruptObject(f"it is a {kind}, not a commit", oid=oid)
        return decode_commit(payload)

    @contextmanager
    def opened(self, oid: bytes) -> Iterator[BinaryIO]:
        """A blob of any size, to be read from its start. ObjectMissing."""
        with (
            tempfile.TemporaryDirectory(prefix="blob-", dir=self._scratch) as directory,
            open(self.materialize(oid, directory), "rb") as file,
        ):
            yield file

    def _first(self, oid: bytes, what: str, question: Callable[[Reader], T]) -> T:
        # Files of one directory are mostly in one place, and asking for what is not there costs more than an answer.
        likely = self._likely.get(what)
        if likely is not None:
            with suppress(ObjectMissing, CorruptObject):  # another may have it whole
                return question(likely)
        missing = ObjectMissing(oid)
        for reader in self._readers:
            try:
                found = question(reader)
            except ObjectMissing as error:
                missing = error
                continue
            if reader is not self._readers[0]:
                self._likely[what] = reader
            elif likely is not None:
                self._likely.pop(what, None)
            return found
        raise missing


def _materialize(reader: Reader, oid: bytes, directory: str) -> str:
    if not isinstance(reader, ObjectStore):
        return reader.materialize(oid, directory)
    path = os.path.join(directory, oid.hex())
    temporary = os.path.join(directory, f"new-{oid.hex()}-{os.urandom(6).hex()}")
    size = reader.header(oid)[1]
    with suppress(FileNotFoundError):
        if os.stat(path, follow_symlinks=False).st_size == size:
            return path
    source = reader.open_large(oid)
    target = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
    try:
        try:
            _write(target, source, reader, oid, size)
        finally:
            os.close(target)
            if source is not None:
                os.close(source)
        os.rename(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    return path


def _write(target: int, source: int | None, reader: ObjectStore, oid: bytes, size: int) -> None:
    with open(target, "wb", closefd=False) as file:
        if source is None:
            file.write(reader.read(oid)[1])
            return
        for start in range(0, size, CHUNK_BYTES):
            file.write(os.pread(source, min(CHUNK_BYTES, size - start), start))


def blob_content(reader: Reader | JoinedObjects, oid: bytes) -> bytes:
    """A blob's content, up to 256 MiB, from whatever reader. ObjectMissing; ObjectTooLarge."""
    if isinstance(reader, JoinedObjects):
        return reader.content(oid)
    try:
        return reader.read(oid)[1]
    except ObjectTooLarge as error:
        if error.size > CONTENT_BYTES_MAX or not isinstance(reader, ObjectStore):
            raise
        fd = reader.open_large(oid)
        assert fd is not None
        try:
            return read_exactly(fd, error.size)
        finally:
            os.close(fd)
