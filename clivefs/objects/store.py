"""The store on disk. Format 1, the whole of it:

    STORE/format     the text `clivefs store 1` and a newline; written first, never changed within a format
    STORE/db.*       locks: who has `db` open (see `presence`); `db.new-*` while it is written anew
    STORE/db/        one LMDB environment (file format of LMDB 0.9), with the databases
                       objects   object name -> object, see `values`
                       refs      name of the ref -> 20-byte object name
                       meta      small records by namespace and key, see `values`
                       sizes     object name -> size (8 bytes, little-endian) of blobs that are kept elsewhere
    STORE/large/     blobs over 1 MiB, see `large`
    STORE/packs/     history that was sealed, see `sealed`
    STORE/gc.lock    empty; who relies on what is there, see `gcgate`

Other packages keep what is theirs in directories of their own beside these (`Store.directory`).
Everything is accessible to its owner alone. Several processes may have a store open.

A change that an older clivefs could not read, or would damage by writing, raises the number in `format`.
`tests/formats/` keeps a store of every format that was released.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import re
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import NamedTuple

from clivefs import __version__
from clivefs.base.ports import FAULTS
from clivefs.objects import values
from clivefs.objects.encode import OID_BYTES
from clivefs.objects.environment import Environment, open_environment
from clivefs.objects.errors import (
    CorruptObject,
    InvalidName,
    MetaConflict,
    ObjectTooLarge,
    RefConflict,
    StoreError,
)
from clivefs.objects.gcgate import Gate
from clivefs.objects.interface import ANY, Changes, ObjectStore
from clivefs.objects.large import LargeFiles
from clivefs.objects.refnames import check_ref_name
from clivefs.objects.sealed import Sealed
from clivefs.objects.transactions import ReadTransaction, WriteTransaction

FORMAT = 1
_DATABASES = ("objects", "refs", "meta", "sizes")
_FORMAT_LINE = re.compile(rb"clivefs store (\d{1,9})\n")
_SIZE = struct.Struct("<Q")
_ANOTHER = "Choose another with --store or CLIVEFS_STORE."
_FREE_BYTES_MIN = 4 << 20
"""With less, the file is not written anew."""


class Removed(NamedTuple):
    """What was removed: objects, and their bytes as they were kept."""

    objects: int
    bytes: int


class Store(ObjectStore):
    """A store on disk. Open it with `Store.open`; every open is closed once."""

    def __init__(self, path: str, environment: Environment, large: LargeFiles, gate: Gate) -> None:
        self.path = path
        self._environment = environment
        self._large = large
        self.gate = gate
        self._sealed = Sealed(path)
        self._closed = False

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, create: bool = True) -> Store:
        """Open the store at *path*; with *create*, make one there if there is nothing yet. StoreError."""
        real = os.path.realpath(path)
        fd = _open_directory(real, create)
        try:
            _check_format(fd, real, create)
            for name in ("db", "large"):
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=fd)
            large = LargeFiles(fd)
            gate = Gate(fd)
        finally:
            os.close(fd)
        try:
            large.sweep()
            environment = open_environment(os.path.join(real, "db"), _DATABASES)
        except BaseException:
            large.close()
            gate.close()
            raise
        return cls(real, environment, large, gate)

    def directory(self, name: str) -> str:
        """The path of a directory of the store for its own user (`repositories`, `run` ...), made if need be."""
        path = self.path
        for part in name.split("/"):
            path = os.path.join(path, part)
            with suppress(FileExistsError):
                os.mkdir(path, 0o700)
        return path

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._environment.close()
            self._large.close()
            self.gate.close()

    def reader_check(self) -> int:
        """Free what killed readers hold; how many there were. Worth calling now and then."""
        return self._environment.reader_check()

    # Objects

    def read(self, oid: bytes) -> tuple[str, bytes]:
        value = self._environment.get("objects", oid)
        if value is None:
            return self._sealed.read(oid)
        kind, size, tier = values.header(oid, value)
        if tier == values.LARGE:
            raise ObjectTooLarge(oid, size, self.path)
        return kind, values.unpack(oid, value)[1]

    def header(self, oid: bytes) -> tuple[str, int]:
        kind, size, _ = self._header(oid)
        return kind, size

    def has(self, oid: bytes) -> bool:
        return self._environment.peek("objects", oid, 0) is not None or oid in self._sealed

    def open_large(self, oid: bytes) -> int | None:
        _, size, tier = self._header(oid)
        if tier != values.LARGE:
            return None
        fd = self._large.open(oid)
        if fd is None:
            raise CorruptObject("its file is gone", oid=oid, place=self.path)
        if os.fstat(fd).st_size != size:
            os.close(fd)
            raise CorruptObject(f"its file has not the {size} bytes that it should have", oid=oid, place=self.path)
        return fd

    def names(self) -> Iterator[bytes]:
        sealed = {*self._sealed.names()}
        if not sealed:
            return self._environment.scan_keys("objects")
        # What is sealed meanwhile is still in the database, or in both.
        return heapq.merge((oid for oid in self.hot_names() if oid not in sealed), sorted(sealed))

    def _header(self, oid: bytes) -> tuple[str, int, int]:
        start = self._environment.peek("objects", oid, values.HEADER.size)
        if start is None:
            return (*self._sealed.header(oid), values.SEALED)
        return values.header(oid, start)

    # Refs and records

    def get_ref(self, name: str) -> bytes | None:
        _valid_ref(name)
        return self._environment.get("refs", _raw(name))

    def refs(self, prefix: str = "refs/") -> dict[str, bytes]:
        raw = _raw(prefix)

        def collect(transaction: ReadTransaction) -> dict[str, bytes]:
            return {name.decode("utf-8", "surrogateescape"): oid for name, oid in transaction.items("refs", prefix=raw)}

        return self._environment.read(collect)

    def meta_get(self, namespace: str, key: bytes) -> bytes | None:
        stored_key, _ = values.meta_record(namespace, key, b"")
        stored = self._environment.get("meta", stored_key)
        return None if stored is None else values.meta_decode(namespace, stored_key, stored)[1]

    def meta_items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        for stored_key, stored in self._environment.scan("meta", prefix=values.meta_prefix(namespace)):
            yield values.meta_decode(namespace, stored_key, stored)

    def meta_range(
        self, namespace: str, start: bytes, end: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        first, last = values.meta_range(namespace, start, end)
        at = len(values.meta_prefix(namespace)) + 1

        def collect(transaction: ReadTransaction) -> list[tuple[bytes, bytes]]:
            found = transaction.range("meta", first, last, reverse=reverse)
            return [(key[at:], value) for key, value in itertools.islice(found, limit)]

        return self._environment.read(collect)

    def size_of(self, oid: bytes) -> int | None:
        stored = self._environment.get("sizes", oid)
        return None if stored is None else int(_SIZE.unpack(stored)[0])

    # Writing

    def stage(self, oid: bytes, kind: str, payload: bytes, deflated: bytes | None = None) -> bytes:
        if kind == "blob" and len(payload) > values.LARGE_BYTES:
            self._large.put_bytes(payload)
            return values.pack_large(len(payload))
        return values.pack(kind, payload, deflated)

    def stage_file(self, fd: int, size: int, seen: Callable[[int], None] = lambda count: None) -> tuple[bytes, bytes]:
        return self._large.put_file(fd, size, seen), values.pack_large(size)

    def apply(self, changes: Changes) -> Future[None]:
        def job(transaction: WriteTransaction) -> None:
            changes.check_after()
            _check_refs(transaction, changes)
            _check_meta(transaction, changes)
            for oid, value in changes.objects.items():
                transaction.put("objects", oid, value, overwrite=False)
            for ref in changes.refs:
                _write(transaction, "refs", _raw(ref.name), ref.new)
            for record in changes.meta:
                key, stored = values.meta_record(record.namespace, record.key, record.new or b"")
                _write(transaction, "meta", key, None if record.new is None else stored)
            for oid, size in changes.sizes.items():
                transaction.put("sizes", oid, _SIZE.pack(size))

        return self._environment.submit(job, cost=changes.object_bytes)

    def hold(self) -> None:
        if self._closed:
            raise StoreError("the store is closed", place=self.path)
        self.gate.enter()

    def let_go(self) -> None:
        self.gate.leave()

    # Collecting, for `gc` alone

    def hot_names(self) -> Iterator[bytes]:
        """The names of the objects of the database, in order: not of what is sealed."""
        return self._environment.scan_keys("objects")

    def measure(self, oid: bytes) -> tuple[int, bool]:
        """(size of the payload in bytes, whether the object is a file of its own). ObjectMissing."""
        _, size, tier = self._header(oid)
        return size, tier == values.LARGE

    def hot_bytes(self, oid: bytes) -> int:
        """What an object of the database takes, with its file; 0 where it is not there."""
        found = self._environment.measure("objects", oid, values.HEADER.size)
        if found is None:
            return 0
        start, size = found
        return len(oid) + size + (values.header(oid, start)[1] if _is_large(start) else 0)

    def kept_bytes(self, oid: bytes) -> int:
        """What an object takes, in whatever tier; 0 where it is not here."""
        return self.hot_bytes(oid) or self._sealed.size_of(oid)

    def counts(self) -> dict[str, int]:
        """How many records each database has."""

        def count(transaction: ReadTransaction) -> dict[str, int]:
            return {name: transaction.count(name) for name in _DATABASES}

        return self._environment.read(count)

    def large_bytes(self) -> tuple[int, int]:
        """(files, bytes) of the large blobs."""
        return self._large.usage()

    def remove(self, oids: Sequence[bytes]) -> Removed:
        """Remove objects from the database, and the files of large ones; durable."""

        def job(transaction: WriteTransaction) -> tuple[int, int, list[bytes]]:
            count = size = 0
            files: list[bytes] = []
            for oid in oids:
                value = transaction.get("objects", oid)
                if value is None:
                    continue
                transaction.delete("objects", oid)
                count += 1
                size += _kept_bytes(oid, value)
                if _is_large(value):
                    files.append(oid)
            return count, size, files

        count, size, files = self._environment.write(job)
        FAULTS.hit("store.removed")
        for oid in files:
            self._large.remove(oid)
        return Removed(count, size)

    def sweep_large(self, age_s: float) -> int:
        """Remove the files of large blobs that no record names and that are older than *age_s*; how many."""
        return self._large.sweep_orphans(lambda oid: self._environment.peek("objects", oid, 0) is not None, age_s)

    def last_change(self) -> int:
        """Another number after every change of the database, whoever made it."""
        return self._environment.last_change()

    @property
    def sealed(self) -> Sealed:
        """The sealed tier."""
        return self._sealed

    def is_sealed(self, oid: bytes) -> bool:
        """Whether an object is in the sealed tier, with all that it leads to."""
        return oid in self._sealed

    def beside_sealed(self) -> Iterator[bytes]:
        """The objects of the database that sealed ones lead to."""
        return self._sealed.beside()

    def compact(self, *, used_max: int | None = None, always: bool = False) -> int | None:
        """Give disk back to the system where that is worth it, or *always*; how many bytes. None: others have the store
        open. *used_max*: more than that is not copied, as writers wait meanwhile. OSError."""
        size, used = self.usage()
        if always:
            return self._environment.compact()
        if size - used < max(_FREE_BYTES_MIN, size // 4) or (used_max is not None and used > used_max):
            return 0
        return self._environment.compact()

    def is_alone(self) -> bool:
        """Whether no other process has the store open at this moment."""
        return self._environment.is_alone()

    def usage(self) -> tuple[int, int]:
        """(bytes of the database's file, bytes of it that hold something)."""
        return self._environment.usage()

    def tier_problems(self) -> Iterator[tuple[str, str]]:
        for name in self._large.strangers():
            yield f"large/{name}", "this file has no place there"
        yield from self._sealed.problems()
        for key, value in self._environment.scan("sizes"):
            if len(key) != OID_BYTES or len(value) != _SIZE.size:
                yield "db: sizes", f"the record {key.hex()} is malformed"


def _is_large(value: bytes) -> bool:
    return bool(value) and value[0] & 0xF0 == values.LARGE


def _kept_bytes(oid: bytes, value: bytes) -> int:
    """What a record takes, with its file."""
    return len(oid) + len(value) + (values.header(oid, value)[1] if _is_large(value) else 0)


def _write(transaction: WriteTransaction, database: str, key: bytes, value: bytes | None) -> None:
    if value is None:
        transaction.delete(database, key)
    else:
        transaction.put(database, key, value)


def _check_refs(transaction: ReadTransaction, changes: Changes) -> None:
    """RefConflict unless every ref is where the batch expects it, counting the batch's own earlier changes.

    As in git, `refs/a` and `refs/a/b` cannot both be: InvalidName.
    """
    after: dict[str, bytes | None] = {}
    for name, new, old in changes.refs:
        if old is not ANY:
            found = after[name] if name in after else transaction.get("refs", _raw(name))
            if found != old:
                raise RefConflict(name, old, found)
        after[name] = new
    for name, new in after.items():
        if new is None:
            continue
        parts = name.split("/")
        for end in range(2, len(parts)):
            above = "/".join(parts[:end])
            there = after[above] if above in after else transaction.get("refs", _raw(above))
            if there is not None:
                raise InvalidName(f"{name!r} cannot be a ref: {above!r} is one")
        for raw, _ in transaction.items("refs", prefix=_raw(name) + b"/"):
            below = raw.decode("utf-8", "surrogateescape")
            if after.get(below, b"") is not None:
                raise InvalidName(f"{name!r} cannot be a ref: {below!r} is one")


def _check_meta(transaction: ReadTransaction, changes: Changes) -> None:
    after: dict[bytes, bytes | None] = {}
    for namespace, key, new, old in changes.meta:
        stored_key, _ = values.meta_record(namespace, key, b"")
        if old is not ANY:
            if stored_key in after:
                found = after[stored_key]
            else:
                stored = transaction.get("meta", stored_key)
                found = None if stored is None else values.meta_decode(namespace, stored_key, stored)[1]
            if found != old:
                raise MetaConflict(namespace, key, found)
        after[stored_key] = new


def _valid_ref(name: str) -> None:
    why = check_ref_name(name)
    if why is not None:
        raise InvalidName(f"{name!r} cannot be a ref: {why}")


def _raw(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _open_directory(path: str, create: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        if create:
            with suppress(FileExistsError):
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.mkdir(path, 0o700)
        fd = os.open(path, flags)
    except FileNotFoundError as error:
        raise StoreError("there is no store", place=path, remedy="`clivefs mount` makes one.") from error
    except NotADirectoryError as error:
        raise StoreError("a store is a directory, and this is none", place=path, remedy=_ANOTHER) from error
    except OSError as error:
        raise StoreError(f"the store cannot be opened ({error.strerror})", place=path, remedy=_ANOTHER) from error
    st = os.fstat(fd)
    if st.st_uid != os.geteuid():
        os.close(fd)
        raise StoreError(
            f"the store belongs to user {st.st_uid}", place=path, remedy="Run as that user, or use another store."
        )
    if stat.S_IMODE(st.st_mode) & 0o077:
        os.fchmod(fd, 0o700)
    return fd


def _check_format(fd: int, path: str, create: bool) -> None:
    """StoreError unless this is a store of a format we know; an empty directory becomes one."""
    try:
        found = _read_format(fd)
        if found is None:
            # Two processes may be making the same store: the second finds it made.
            fcntl.flock(fd, fcntl.LOCK_EX)
            found = _read_format(fd)
            if found is None:
                # `run` comes first: who starts a daemon has its log there before the store is opened.
                others = [name for name in os.listdir(fd) if name != "run" and not name.startswith("format.new-")]
                if others or not create:
                    raise StoreError(
                        "this directory is not a clivefs store",
                        place=path,
                        remedy="Name an empty or a new directory, or an existing store.",
                    )
                found = _write_format(fd)
            fcntl.flock(fd, fcntl.LOCK_UN)
    except OSError as error:
        raise StoreError(f"the store cannot be opened ({error.strerror})", place=path, remedy=_ANOTHER) from error
    match = _FORMAT_LINE.fullmatch(found)
    if match is None:
        raise StoreError("this directory is not a clivefs store: its `format` is something else", place=path)
    if int(match[1]) != FORMAT:
        raise StoreError(
            f"the store has format {int(match[1])}, and clivefs {__version__} knows format {FORMAT} only",
            place=path,
            remedy="Use the newer clivefs that wrote it, or another store (`--store DIR`).",
        )


def _read_format(fd: int) -> bytes | None:
    try:
        file = os.open("format", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=fd)
    except FileNotFoundError:
        return None
    try:
        return os.read(file, 100)
    finally:
        os.close(file)


def _write_format(fd: int) -> bytes:
    line = b"clivefs store %d\n" % FORMAT
    for name in os.listdir(fd):  # left by a process that died here; we hold the lock
        if name.startswith("format.new-"):
            os.unlink(name, dir_fd=fd)
    temporary = f"format.new-{os.getpid()}"
    file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
    try:
        os.write(file, line)
        os.fsync(file)
    finally:
        os.close(file)
    os.rename(temporary, "format", src_dir_fd=fd, dst_dir_fd=fd)
    os.fsync(fd)
    return line
