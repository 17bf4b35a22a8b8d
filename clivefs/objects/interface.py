"""The interface of an object store, and the batch by which anything is written to one.

Two implementations stand behind it: `store.Store` on disk and its twin `memory.MemoryStore`;
`tests/contract/test_store_contract.py` runs on both.

A batch writes objects first and publishes refs last, in one step: whoever sees a ref sees every object
that the batch put before it. A batch of more than a few hundred objects hands them on in pieces while it
is being filled (so its memory is bounded); its refs and records always go in one transaction at the end.
"""

from __future__ import annotations

import enum
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Final, NamedTuple, Self

from clivefs.objects.encode import (
    Commit,
    TreeEntry,
    decode_commit,
    decode_tag,
    decode_tree,
    encode_commit,
    encode_tree,
    hash_object,
)
from clivefs.objects.errors import CorruptObject, InvalidName
from clivefs.objects.large import file_size, read_exactly
from clivefs.objects.refnames import check_ref_name
from clivefs.objects.values import LARGE_BYTES, OBJECT_BYTES_MAX, meta_prefix

_SPILL_OBJECTS = 512
_SPILL_BYTES = 2 << 20


class Anything(enum.Enum):
    ANY = "any"


ANY: Final = Anything.ANY
"""As the old value of a compare-and-swap: whatever is there."""


class RefChange(NamedTuple):
    """A ref's new value (None removes it), if it now is *old* (None: absent)."""

    name: str
    new: bytes | None
    old: bytes | Anything | None


class MetaChange(NamedTuple):
    """A record's new value (None removes it), if it now is *old* (None: absent)."""

    namespace: str
    key: bytes
    new: bytes | None
    old: bytes | Anything | None


class Changes:
    """What a batch hands to its store, to be applied whole or not at all."""

    __slots__ = ("after", "meta", "object_bytes", "objects", "refs", "sizes")

    def __init__(self) -> None:
        self.objects: dict[bytes, bytes] = {}
        """Object name to what `ObjectStore.stage` made of it."""
        self.object_bytes = 0
        self.refs: list[RefChange] = []
        self.meta: list[MetaChange] = []
        self.sizes: dict[bytes, int] = {}
        self.after: list[Future[None]] = []
        """Earlier parts: if one of them failed, these must not be applied."""

    def check_after(self) -> None:
        """Raise what an earlier part failed with. Called where all earlier parts are in or done."""
        for earlier in self.after:
            if earlier.done():
                earlier.result()


class ObjectStore(ABC):
    """Objects by name, refs, and small records. All methods may be called from any thread."""

    # Objects

    @abstractmethod
    def read(self, oid: bytes) -> tuple[str, bytes]:
        """(kind, payload). ObjectMissing; CorruptObject; ObjectTooLarge for a blob that is a file of its
        own (see `open_large`)."""

    @abstractmethod
    def header(self, oid: bytes) -> tuple[str, int]:
        """(kind, size in bytes) without reading the payload. ObjectMissing."""

    @abstractmethod
    def has(self, oid: bytes) -> bool: ...

    @abstractmethod
    def open_large(self, oid: bytes) -> int | None:
        """A descriptor for reading a blob over 1 MiB, which the caller closes; None for any other object.
        ObjectMissing."""

    @abstractmethod
    def names(self) -> Iterator[bytes]:
        """The names of all objects, in order; those written meanwhile may or may not be among them."""

    def read_tree(self, oid: bytes) -> list[TreeEntry]:
        """The entries of a tree, unchecked (`encode.check_tree_entry`). ObjectMissing, CorruptObject."""
        return decode_tree(_expect("tree", oid, self.read(oid)))

    def read_commit(self, oid: bytes) -> Commit:
        """ObjectMissing, CorruptObject."""
        return decode_commit(_expect("commit", oid, self.read(oid)))

    def put_large(self, source: int | str | bytes | os.PathLike[str]) -> bytes:
        """Store a file's content as a blob, streaming; its name, durable. See `Batch.blob_file`."""
        with self.batch() as batch:
            return batch.blob_file(source)

    # Refs and records

    @abstractmethod
    def get_ref(self, name: str) -> bytes | None:
        """The object a ref points to. InvalidName for what can never be a ref."""

    @abstractmethod
    def refs(self, prefix: str = "refs/") -> dict[str, bytes]:
        """All refs whose names begin with *prefix*, sorted by name."""

    @abstractmethod
    def meta_get(self, namespace: str, key: bytes) -> bytes | None: ...

    @abstractmethod
    def meta_items(self, namespace: str) -> Iterator[tuple[bytes, bytes]]:
        """All records of a namespace."""

    @abstractmethod
    def meta_range(
        self, namespace: str, start: bytes, end: bytes | None, *, reverse: bool = False, limit: int | None = None
    ) -> list[tuple[bytes, bytes]]:
        """The records with *start* <= key < *end* (None: to the last one) in the order of their keys, or with *reverse*
        from the last one on; the first *limit* of them. All as of one moment.

        Only records with keys up to `values.RANGE_KEY_BYTES_MAX` are found: longer ones are kept in no order.
        """

    @abstractmethod
    def size_of(self, oid: bytes) -> int | None:
        """The size noted with `Batch.note_size` for a blob that is kept elsewhere."""

    # Writing

    def batch(self, *, wait: bool = True) -> Batch:
        """Collect objects and changes of refs; all of it is durable when the with-block ends.

        With *wait* false the block ends at once and `Batch.future` resolves when it is durable. Errors
        (Conflict, OSError of a full disk) come from the end of the block resp. the future. If the block
        itself raises, no ref and no record changes.
        """
        return Batch(self, wait)

    @abstractmethod
    def stage(self, oid: bytes, kind: str, payload: bytes, deflated: bytes | None = None) -> bytes:
        """Prepare an object for `apply`: compressed, or already in a file of its own. *deflated*: see `values.pack`."""

    @abstractmethod
    def stage_file(self, fd: int, size: int, seen: Callable[[int], None] = lambda count: None) -> tuple[bytes, bytes]:
        """(object name, what `apply` wants) of a blob over 1 MiB, streamed from *fd* from its start. *seen* is told now
        and then how much of it has been read."""

    @abstractmethod
    def apply(self, changes: Changes) -> Future[None]:
        """Check every expectation, then write everything, as one step."""

    # Relying on what is there

    def hold(self) -> None:  # noqa: B027 - a store in memory removes nothing
        """Until `let_go`, no object is removed. Every batch does this by itself; may be nested, from any thread."""

    def let_go(self) -> None:  # noqa: B027
        """The end of a `hold`."""

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Whoever reads much of what is recorded does so in here: a collection waits until the block has ended."""
        self.hold()
        try:
            yield
        finally:
            self.let_go()

    # Life

    def tier_problems(self) -> Iterator[tuple[str, str]]:
        """What is wrong with how the store keeps things, as (place, message); for fsck."""
        yield from ()

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Batch:
    """Collects what one transaction writes. Used by one thread. Made by `ObjectStore.batch`."""

    def __init__(self, store: ObjectStore, wait: bool) -> None:
        self._store = store
        self._wait = wait
        self._changes = Changes()
        self._spilled: list[Future[None]] = []
        self.future: Future[None] | None = None
        """Set when the with-block has ended."""

    # Objects

    def blob(self, data: bytes) -> bytes:
        """Put a blob; its name."""
        return self.put("blob", data)

    def tree(self, entries: Iterable[TreeEntry]) -> bytes:
        """Put a tree; its name. InvalidName."""
        return self.put("tree", encode_tree(entries))

    def commit(self, commit: Commit) -> bytes:
        """Put a commit; its name. InvalidName."""
        return self.put("commit", encode_commit(commit))

    def put(self, kind: str, payload: bytes, *, expect: bytes | None = None) -> bytes:
        """Put an object; its name. With *expect*, from somebody we do not trust: CorruptObject unless it
        has that name and can be decoded as what it says it is."""
        oid = hash_object(kind, payload)
        if expect is not None:
            if oid != expect:
                raise CorruptObject(f"its content has the name {oid.hex()}", oid=expect)
            check_payload(kind, oid, payload)
        if kind != "blob" and len(payload) > OBJECT_BYTES_MAX:
            raise InvalidName(f"a {kind} of {len(payload)} bytes is larger than the store takes")
        if oid not in self._changes.objects and not self._store.has(oid):
            self._add(oid, self._store.stage(oid, kind, payload))
        return oid

    def put_staged(self, oid: bytes, staged: bytes) -> None:
        """Put an object that `ObjectStore.stage` of this store has prepared. Nothing is checked."""
        if oid not in self._changes.objects and not self._store.has(oid):
            self._add(oid, staged)

    def blob_file(
        self, source: int | str | bytes | os.PathLike[str], seen: Callable[[int], None] = lambda count: None
    ) -> bytes:
        """Put the whole content of a regular file (a path, or a descriptor whose offset stays), streaming;
        its name. ContentChanged when it is written to meanwhile. *seen*: see `ObjectStore.stage_file`."""
        if not isinstance(source, int):
            fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                return self.blob_file(fd, seen)
            finally:
                os.close(fd)
        size = file_size(source)
        if size <= LARGE_BYTES:
            return self.blob(read_exactly(source, size))
        oid, staged = self._store.stage_file(source, size, seen)
        if not self._store.has(oid):
            self._add(oid, staged)
        return oid

    def note_size(self, oid: bytes, size: int) -> None:
        """Remember the size of a blob that is kept elsewhere."""
        self._changes.sizes[oid] = size

    # Refs and records

    def set_ref(self, name: str, new: bytes | None, old: bytes | Anything | None = ANY) -> None:
        """Point a ref at an object, or remove it; if it now is *old*. RefConflict when the batch ends."""
        why = check_ref_name(name)
        if why is not None:
            raise InvalidName(f"{name!r} cannot be a ref: {why}")
        self._changes.refs.append(RefChange(name, new, old))

    def meta_put(self, namespace: str, key: bytes, value: bytes | None, old: bytes | Anything | None = ANY) -> None:
        """Write a record, or remove it; if it now is *old*. MetaConflict when the batch ends."""
        meta_prefix(namespace)
        self._changes.meta.append(MetaChange(namespace, key, value, old))

    # The end

    def __enter__(self) -> Self:
        # What a batch finds in the store it does not write again: it must still be there when the refs are published.
        self._store.hold()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._store.let_go()
            return
        self._changes.after = self._spilled
        try:
            self.future = self._store.apply(self._changes)
        except BaseException:
            self._store.let_go()
            raise
        self.future.add_done_callback(lambda _: self._store.let_go())
        if self._wait:
            self.future.result()

    def _add(self, oid: bytes, staged: bytes) -> None:
        changes = self._changes
        changes.objects[oid] = staged
        changes.object_bytes += len(staged)
        if len(changes.objects) >= _SPILL_OBJECTS or changes.object_bytes >= _SPILL_BYTES:
            part = Changes()
            part.objects, changes.objects = changes.objects, {}
            part.object_bytes, changes.object_bytes = changes.object_bytes, 0
            # Finished parts that succeeded need not be remembered: the list stays as short as the queue.
            self._spilled = [each for each in self._spilled if not (each.done() and each.exception() is None)]
            self._spilled.append(self._store.apply(part))


def check_payload(kind: str, oid: bytes, payload: bytes) -> None:
    """CorruptObject unless the payload can be read as a *kind*."""
    try:
        if kind == "tree":
            decode_tree(payload)
        elif kind == "commit":
            decode_commit(payload)
        elif kind == "tag":
            decode_tag(payload)
    except CorruptObject as error:
        raise CorruptObject(error.message, oid=oid) from error


def _expect(kind: str, oid: bytes, found: tuple[str, bytes]) -> bytes:
    if found[0] != kind:
        raise CorruptObject(f"it is a {found[0]}, not a {kind}", oid=oid)
    return found[1]
