"""What can go wrong in the store, as types: a caller that knows what to do catches one of these."""

from __future__ import annotations

from clivefs.base.errors import ClivefsError


class StoreError(ClivefsError):
    """The store itself cannot be used: not a store, a newer format, another user's, or closed."""


class ObjectMissing(ClivefsError):
    """No object of that name is here. In a partial clone it may be fetched."""

    def __init__(self, oid: bytes, place: str | None = None) -> None:
        super().__init__(f"object {oid.hex()} is missing", place=place)
        self.oid = oid


class ObjectTooLarge(ClivefsError):
    """The object is larger than what may be held in memory in one piece: stream it instead."""

    def __init__(self, oid: bytes, size: int, place: str | None = None) -> None:
        super().__init__(f"object {oid.hex()} has {size} bytes and must be streamed", place=place)
        self.oid = oid
        self.size = size


class CorruptObject(ClivefsError):
    """Bytes that are not the object that they are said to be."""

    def __init__(self, message: str, *, oid: bytes | None = None, place: str | None = None) -> None:
        named = f"object {oid.hex()}: {message}" if oid is not None else message
        super().__init__(named, place=place, remedy="Run `clivefs fsck` to see what else is damaged.")
        self.oid = oid


class ContentChanged(ClivefsError):
    """A file was written to while it was being stored: nothing was stored, try again."""


class InvalidName(ClivefsError):
    """A name that the format cannot hold: of a ref, of a tree entry, of a namespace."""


class Conflict(ClivefsError):
    """A compare-and-swap found another value than expected. Nothing of the batch was written."""


class RefConflict(Conflict):
    """A ref was not where the batch expected it."""

    def __init__(self, name: str, expected: bytes | None, found: bytes | None) -> None:
        super().__init__(f"ref {name} is {_oid_text(found)}, expected {_oid_text(expected)}")
        self.name = name
        self.expected = expected
        self.found = found


class MetaConflict(Conflict):
    """A metadata record was not what the batch expected."""

    def __init__(self, namespace: str, key: bytes, found: bytes | None) -> None:
        super().__init__(f"record {key!r} of {namespace} has changed meanwhile")
        self.namespace = namespace
        self.key = key
        self.found = found


class RepositoryError(ClivefsError):
    """A foreign repository cannot be used: none is there, its format is unknown, or git failed on it."""


class UnknownRef(ClivefsError):
    """A repository has no such branch, tag or commit; `near` are names that look like it."""

    def __init__(self, ref: str, place: str, near: list[str], why: str | None = None) -> None:
        message = why or f"there is no branch, tag or commit {ref!r}"
        remedy = f"Did you mean {' or '.join(near)}?" if near else None
        super().__init__(message, place=place, remedy=remedy)
        self.ref = ref
        self.near = near


def _oid_text(oid: bytes | None) -> str:
    return "absent" if oid is None else oid.hex()
