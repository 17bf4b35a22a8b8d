"""What a rebase needs to be undone, and what of it is not solved yet. Everything that is kept of one is decided here.

    ref     refs/clive/rebase/ENTRY         the upper as it was before (`edits.saved`)
    record  namespace `rebase`, key ENTRY   JSON, see `Rebase`

Both are written in one transaction before anything changes (`begin`) and go in one when all is solved or taken back
(`end`). So after a crash the record tells that a rebase was under way, and `edits.takeback` brings back exactly what
was there. Making a patch of the edits (`overlay export --as-layer`) goes the same way: it is a rebase onto the same
release with one more patch.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.edits.saved import save_upper
from clivefs.mounts.overlay.upper import Upper
from clivefs.objects.interface import ANY, ObjectStore

NAMESPACE = "rebase"
STARTED = "started"
"""The files may be anything between before and after; so may the upper, if it has the file `saved.MOVING`. They are
to be taken back."""
UNSOLVED = "unsolved"
"""It is done but for its conflicts."""
ABORTING = "aborting"
"""It is being taken back."""


@dataclass(frozen=True, slots=True)
class Unsolved:
    """A conflict that waits for a person. Paths are relative to the entry, undecodable bytes surrogate-escaped."""

    path: str
    kind: str
    aside: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PatchChange:
    """A patch file that it writes, removes or makes: content in base 64, None where there is no file."""

    path: str
    """Relative to the workspace."""
    before: str | None
    after: str | None

    @classmethod
    def of(cls, path: str, before: bytes | None, after: bytes | None) -> PatchChange:
        return cls(path, *(base64.b64encode(each).decode() if each is not None else None for each in (before, after)))

    @property
    def old(self) -> bytes | None:
        return base64.b64decode(self.before) if self.before is not None else None

    @property
    def new(self) -> bytes | None:
        return base64.b64decode(self.after) if self.after is not None else None


@dataclass(frozen=True, slots=True)
class GitMove:
    """A private gitdir whose HEAD, index and base move with it; commits in hexadecimal."""

    gitdir: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Rebase:
    """One rebase that is not over."""

    entry: str
    """`key` of the mount entry."""
    before: str
    """The entry's source in the one-line notation, before and after."""
    after: str
    state: str
    """STARTED, UNSOLVED or ABORTING."""
    conflicts: tuple[Unsolved, ...] = ()
    patches: tuple[PatchChange, ...] = ()
    path: str = ""
    """The entry's path in the workspace."""
    uppers: tuple[str, str] = ("", "")
    """The names of the upper's directory before and after: a published version has one of its own."""
    toml: tuple[str, str] = ("", "")
    """The text of Clive.toml before and after."""
    times: str | None = None
    """The entry's kept times before (base 64), see `git.times`."""
    git: GitMove | None = None


def key(workspace_id: str, path: str) -> str:
    """What tells the mount entry at *path* of a workspace from all others."""
    return f"{workspace_id}-{sha256(path.encode('utf-8', 'surrogateescape')).hexdigest()[:16]}"


def ref_name(entry: str) -> str:
    return f"refs/clive/rebase/{entry}"


def load(store: ObjectStore, entry: str) -> Rebase | None:
    """The rebase of *entry* that is not over, if there is one."""
    record = store.meta_get(NAMESPACE, entry.encode())
    return _decode(record) if record is not None else None


def of_workspace(store: ObjectStore, workspace_id: str) -> Iterator[Rebase]:
    """Those of all entries of a workspace."""
    for name, record in list(store.meta_items(NAMESPACE)):
        if name.startswith(workspace_id.encode() + b"-"):
            yield _decode(record)


def begin(store: ObjectStore, rebase: Rebase, upper: Upper) -> None:
    """Keep the upper and the record, durable. ClivefsError when one is under way; OSError."""
    if load(store, rebase.entry) is not None:
        raise ClivefsError(
            "a rebase is under way already",
            place=rebase.path or rebase.entry,
            remedy="Finish it (`clivefs overlay resolve`), or take it back with `clivefs overlay rebase PATH --abort`.",
        )
    saved = save_upper(upper, store)
    with store.batch() as batch:
        batch.set_ref(ref_name(rebase.entry), saved, None)
        batch.meta_put(NAMESPACE, rebase.entry.encode(), _encode(rebase), None)
    FAULTS.hit("rebase.begun")


def save_again(store: ObjectStore, rebase: Rebase, upper: Upper) -> None:
    """Keep *upper* as it is now, in place of what `begin` kept."""
    kept = save_upper(upper, store)
    with store.batch() as batch:
        batch.set_ref(ref_name(rebase.entry), kept)


def update(store: ObjectStore, rebase: Rebase) -> None:
    """Keep *rebase* in place of what is recorded of it; one without conflicts to solve is over."""
    if rebase.state == UNSOLVED and not rebase.conflicts:
        end(store, rebase.entry)
        return
    with store.batch() as batch:
        batch.meta_put(NAMESPACE, rebase.entry.encode(), _encode(rebase))


def solved(store: ObjectStore, entry: str, path: str) -> Rebase | None:
    """Note that the conflict at *path* is solved; what is left of the rebase, None when it is over. ClivefsError."""
    rebase = load(store, entry)
    if rebase is None or all(conflict.path != path for conflict in rebase.conflicts):
        waiting = ", ".join(conflict.path for conflict in rebase.conflicts) if rebase is not None else ""
        raise ClivefsError(
            "there is no conflict in this file", place=path, remedy=f"Unsolved are: {waiting}" if waiting else None
        )
    left = tuple(conflict for conflict in rebase.conflicts if conflict.path != path)
    rebase = dataclasses.replace(rebase, conflicts=left)
    update(store, rebase)
    return rebase if left else None


def end(store: ObjectStore, entry: str) -> None:
    """Forget it, and what was kept for taking it back."""
    with store.batch() as batch:
        batch.set_ref(ref_name(entry), None, ANY)
        batch.meta_put(NAMESPACE, entry.encode(), None)


def _encode(rebase: Rebase) -> bytes:
    return json.dumps(dataclasses.asdict(rebase)).encode()


def _decode(record: bytes) -> Rebase:
    facts = json.loads(record)
    facts["conflicts"] = tuple(
        Unsolved(each["path"], each["kind"], tuple(each["aside"])) for each in facts["conflicts"]
    )
    facts["patches"] = tuple(PatchChange(**each) for each in facts["patches"])
    facts["git"] = GitMove(**facts["git"]) if facts["git"] is not None else None
    for name in ("uppers", "toml"):
        facts[name] = tuple(facts[name])
    return Rebase(**facts)
