"""The store's twin in memory: the same behaviour with nothing on disk. For tests and simulators."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from clivefs.objects.encode import hash_object
from clivefs.objects.errors import InvalidName, MetaConflict, ObjectMissing, ObjectTooLarge, RefConflict
from clivefs.objects.interface import ANY, Changes, ObjectStore
from clivefs.objects.large import read_exactly
from clivefs.objects.refnames import check_ref_name
from clivefs.objects.values import LARGE_BYTES, RANGE_KEY_BYTES_MAX, meta_prefix


class MemoryStore(ObjectStore):
    """An object store of plain dicts. Staged objects are `KIND`, a blank, the payload."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[bytes, bytes] = {}
        self._refs: dict[str, bytes] = {}
        self._meta: dict[tuple[str, bytes], bytes] = {}
        self._sizes: dict[bytes, int] = {}

    # Objects

    def read(self, oid: bytes) -> tuple[str, bytes]:
        kind, payload = self._object(oid)
        if kind == "blob" and len(payload) > LARGE_BYTES:
            raise ObjectTooLarge(oid, len(payload))
        return kind, payload

    def header(self, oid: bytes) -> tuple[str, int]:
        kind, payload = self._object(oid)
        return kind, len(payload)

    def has(self, oid: bytes) -> bool:
        return oid in self._objects

    def open_large(self, oid: bytes) -> int | None:
        kind, payload = self._object(oid)
        if kind != "blob" or len(payload) <= LARGE_BYTES:
            return None
        fd = os.memfd_create(oid.hex(), os.MFD_CLOEXEC)
        try:
            os.pwrite(fd, payload, 0)
            return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        finally:
            os.close(fd)

    def names(self) -> Iterator[bytes]:
        yield from sorted(self._objects)

    def _object(self, oid: bytes) -> tuple[str, bytes]:
        value = self._objects.get(oid)
        if value is None:
            raise ObjectMissing(oid)
        kind, _, payload = value.partition(b" ")
        return kind.decode(), payload

    # Refs and records

    def get_ref(self, name: str) -> bytes | None:
        why = check_ref_name(name)
        if why is not None:
            raise InvalidName(f"{name!r} cannot be a ref: {why}")
        return self._refs.get(name)

    def refs(self, prefix: str = "refs/") -> dict[str, bytes]:
        with self._lock:
            names = [name for name in self._refs if name.startswith(prefix)]
            return {name: self._refs[name] for name in sorted(names, key=os.fsencode)}

    def meta_get(self, namespace: str, key: bytes) -> bytes | None:
        meta_prefix(namespace)
        return self._meta.get((namespace, key))

    def meta_items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        meta_prefix(namespace)
        with self._lock:
            records = [(key, value) for (space, key), value in sorted(self._meta.items()) if space == namespace]
        yield from records

    def meta_range(
        self, namespace: str, start: bytes, end: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        found = [
            (key, value)
            for key, value in self.meta_items(namespace)
            if start <= key and (end is None or key < end) and len(key) <= RANGE_KEY_BYTES_MAX
        ]
        return (found[::-1] if reverse else found)[:limit]

    def size_of(self, oid: bytes) -> int | None:
        return self._sizes.get(oid)

    # Writing

    def stage(self, oid: bytes, kind: str, payload: bytes, deflated: bytes | None = None) -> bytes:
        return kind.encode() + b" " + payload

    def stage_file(self, fd: int, size: int, seen: Callable[[int], None] = lambda count: None) -> tuple[bytes, bytes]:
        payload = read_exactly(fd, size)
        return hash_object("blob", payload), b"blob " + payload

    def apply(self, changes: Changes) -> Future[None]:
        future: Future[None] = Future()
        with self._lock:
            try:
                refs, meta = dict(self._refs), dict(self._meta)
                for name, new, old in changes.refs:
                    if old is not ANY and refs.get(name) != old:
                        raise RefConflict(name, old, refs.get(name))
                    _set(refs, name, new)
                for name in refs:
                    above = next((each for each in refs if name.startswith(each + "/")), None)
                    if above is not None:
                        raise InvalidName(f"{name!r} cannot be a ref: {above!r} is one")
                for namespace, key, new, old in changes.meta:
                    if old is not ANY and meta.get((namespace, key)) != old:
                        raise MetaConflict(namespace, key, meta.get((namespace, key)))
                    _set(meta, (namespace, key), new)
            except Exception as error:  # noqa: BLE001 - it goes to whoever waits for the future
                future.set_exception(error)
                return future
            self._objects.update(changes.objects)
            self._refs, self._meta = refs, meta
            self._sizes.update(changes.sizes)
        future.set_result(None)
        return future

    def close(self) -> None:
        """Nothing to release: what it holds goes with it."""


K = TypeVar("K")


def _set(records: dict[K, bytes], key: K, value: bytes | None) -> None:
    if value is None:
        records.pop(key, None)
    else:
        records[key] = value
