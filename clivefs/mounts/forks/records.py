"""The forks of one workspace, as the store knows them. Format 1.

In the store's small records, namespace `forks`: workspace id (16 hexadecimal digits) and the fork's name
-> JSON: version 1, and the fields of `ForkRecord` (ids of points in hexadecimal). With it goes the ref
`refs/clive/forks/WORKSPACE/NAME`, at the point `base`, whose history has the point `start`: so both are kept. What is
written in the fork lies in `uppers/WORKSPACE/UPPER`.

Record and ref are written and removed in one transaction. An upper `fork-*` without a record is of a fork that was
never finished, or was dropped.
"""

from __future__ import annotations

import msgspec

from clivefs.base.errors import ClivefsError
from clivefs.mounts.points.names import RESERVED, is_session_name
from clivefs.mounts.points.point import Point
from clivefs.objects.errors import CorruptObject
from clivefs.objects.interface import ObjectStore

FORK_REFS = "refs/clive/forks/"
UPPER_PREFIX = "fork-"
_NAMESPACE = "forks"
_VERSION = 1
_WORDS = (*RESERVED, "show", "list", "drop", "diff", "path")
"""What would be taken for something else where a fork is named."""


class ForkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One fork. Ids are those of points, in hexadecimal."""

    version: int = _VERSION
    name: str
    upper: str
    """The directory below `uppers/WORKSPACE` in which its changes are."""
    made_ms: int
    start: str
    """The point that it stands on."""
    base: str
    """What a merge compares it with: `start`, or what the fork was when it was last merged."""
    base_before: str = ""
    """What `base` was before the last merge; empty where there was none."""
    merged_from: str = ""
    """The live view's point before the last merge, and"""
    merged_to: str = ""
    """after it: where the live view went back to the former in all that differs, the merge was undone."""
    entries: tuple[str, ...] = ()
    """The mount entries of the workspace when it was made: ignore rules start anew there."""
    command: str = ""
    """The command of `run --fork` that it was made for; such a fork goes when that ends."""
    kept: str = ""
    """Why a fork of `run --fork` is still there."""


class Forks:
    """The forks of the workspace *workspace_id*. May be used from any thread."""

    def __init__(self, store: ObjectStore, workspace_id: str) -> None:
        self._store = store
        self._id = workspace_id
        self._prefix = workspace_id.encode()

    def all(self) -> list[ForkRecord]:
        """All forks, by name."""
        found = self._store.meta_range(_NAMESPACE, self._prefix, self._prefix + b"\x7f")
        return [_decode(value) for _, value in found]

    def find(self, name: str) -> ForkRecord | None:
        """The fork of that name."""
        value = self._store.meta_get(_NAMESPACE, self._key(name))
        return None if value is None else _decode(value)

    def get(self, name: str) -> ForkRecord:
        """The fork of that name. ClivefsError where there is none."""
        found = self.find(name)
        if found is None:
            known = ", ".join(each.name for each in self.all()) or "none"
            raise ClivefsError(f"there is no fork {name!r} (there are: {known})", remedy="`clivefs fork --list`")
        return found

    def add(self, record: ForkRecord) -> None:
        """Remember a new fork; durable. MetaConflict where the name is taken."""
        with self._store.batch() as batch:
            batch.meta_put(_NAMESPACE, self._key(record.name), msgspec.json.encode(record), None)
            batch.set_ref(self._ref(record.name), bytes.fromhex(record.base))

    def update(self, old: ForkRecord, new: ForkRecord, base: Point | None = None) -> None:
        """Let *new* be what is known of the fork *old*; durable. *base*: the point `new.base`, where it is new.
        MetaConflict when it is not *old* any more."""
        with self._store.batch() as batch:
            if base is not None:
                batch.commit(base.commit())
                batch.set_ref(self._ref(new.name), base.oid)
            batch.meta_put(_NAMESPACE, self._key(new.name), msgspec.json.encode(new), msgspec.json.encode(old))

    def drop(self, record: ForkRecord) -> None:
        """Forget a fork; durable."""
        with self._store.batch() as batch:
            batch.meta_put(_NAMESPACE, self._key(record.name), None)
            batch.set_ref(self._ref(record.name), None)

    def _key(self, name: str) -> bytes:
        return self._prefix + name.encode("utf-8", "surrogateescape")

    def _ref(self, name: str) -> str:
        return f"{FORK_REFS}{self._id}/{name}"


def _decode(value: bytes) -> ForkRecord:
    try:
        record = msgspec.json.decode(value, type=ForkRecord)
    except msgspec.MsgspecError as error:
        raise CorruptObject(f"the record of a fork is malformed ({error})") from error
    if record.version != _VERSION:
        raise CorruptObject(f"the record of the fork {record.name!r} has the unknown version {record.version}")
    return record


def check_fork_name(name: str) -> None:
    """ClivefsError unless a fork may be called so: the names of sessions."""
    if not is_session_name(name) or name in _WORDS or name.startswith("-"):
        raise ClivefsError(
            f"a fork cannot be called {name!r}",
            remedy="Use 1 to 64 of a-z, 0-9, `.`, `_` and `-`, no dot at either end, not two in a row, "
            f"no `-` at the start, no `.lock` at the end, and none of {', '.join(_WORDS)}.",
        )
