"""What a job that reads or writes an LMDB environment is given; `environment` makes them and ends them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any


class ReadTransaction:
    """Reads of one state of the environment. Valid inside the call or block that handed it out."""

    __slots__ = ("_databases", "_transaction")

    def __init__(self, transaction: Any, databases: dict[str, Any]) -> None:
        self._transaction = transaction
        self._databases = databases

    def get(self, database: str, key: bytes) -> bytes | None:
        value: bytes | None = self._transaction.get(key, db=self._databases[database])
        return value

    def items(self, database: str, start: bytes = b"", prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Records in key order from *start* on, as long as keys begin with *prefix*."""
        with self._transaction.cursor(db=self._databases[database]) as cursor:
            more = cursor.set_range(max(start, prefix)) if start or prefix else cursor.first()
            while more:
                key, value = cursor.item()
                if not key.startswith(prefix):
                    return
                yield key, value
                more = cursor.next()

    def range(self, database: str, start: bytes, end: bytes, *, reverse: bool) -> Iterator[tuple[bytes, bytes]]:
        """Records with *start* <= key < *end* (neither empty) in key order, or against it."""
        with self._transaction.cursor(db=self._databases[database]) as cursor:
            if not reverse:
                if cursor.set_range(start):
                    yield from itertools.takewhile(lambda record: record[0] < end, cursor.iternext())
            elif cursor.prev() if cursor.set_range(end) else cursor.last():
                yield from itertools.takewhile(lambda record: record[0] >= start, cursor.iterprev())

    def keys(self, database: str, start: bytes, count: int) -> list[bytes]:
        """At most *count* keys in order from *start* on."""
        with self._transaction.cursor(db=self._databases[database]) as cursor:
            if not (cursor.set_range(start) if start else cursor.first()):
                return []
            return list(itertools.islice(cursor.iternext(keys=True, values=False), count))

    def pages(self, database: str) -> dict[str, int]:
        """How many pages it takes: `branch_pages`, `leaf_pages`, `overflow_pages`; `psize`: their bytes."""
        found: dict[str, int] = self._transaction.stat(self._databases[database])
        return found

    def count(self, database: str) -> int:
        """How many records there are."""
        return int(self._transaction.stat(self._databases[database])["entries"])


class WriteTransaction(ReadTransaction):
    """What a job of the writer thread is given. The job must not keep it."""

    __slots__ = ("dirty",)

    def __init__(self, transaction: Any, databases: dict[str, Any]) -> None:
        super().__init__(transaction, databases)
        self.dirty = False
        """Whether anything was changed."""

    def put(self, database: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        """Whether it was written: without *overwrite*, a record that exists stays."""
        self.dirty = True
        return bool(self._transaction.put(key, value, overwrite=overwrite, db=self._databases[database]))

    def delete(self, database: str, key: bytes) -> bool:
        """Whether there was such a record."""
        self.dirty = True
        return bool(self._transaction.delete(key, db=self._databases[database]))
