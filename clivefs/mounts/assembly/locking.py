"""`clivefs lock`: what the entries of a workspace are now, and whether that is what Clive.lock says.

Two questions, which network and time answer differently. Locking looks each source up anew: where a branch is now,
what was published. Checking asks only for what is locked: a branch that has moved on since is no difference.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.assembly.git import GitEntries
from clivefs.mounts.assembly.places import Places
from clivefs.mounts.assembly.published import PublishedEntries
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.config.errors import nearest
from clivefs.mounts.config.lockfile import Lock, Locked

Progress = Callable[[str], None]


class What(enum.StrEnum):
    """What `clivefs lock` finds for an entry."""

    SAME = "same"
    NEW = "new"
    """It was not locked, or had another source then."""
    CHANGED = "changed"
    GONE = "gone"
    """It is locked, and Clive.toml has it no more."""
    NOT_LOCKED = "not-locked"
    """Only of a check."""
    DIFFERS = "differs"
    """Only of a check: what is locked cannot be had, or is something else."""


class Finding(NamedTuple):
    """What was found for one entry."""

    path: str
    what: What
    source: str | None
    """None of an entry that is gone."""
    found: Locked | None = None
    was: Locked | None = None
    error: str | None = None

    def describe(self) -> dict[str, Any]:
        """Its object of `lock --json`."""
        return {
            "path": self.path,
            "what": str(self.what),
            "source": self.source,
            "found": _facts(self.found),
            "was": _facts(self.was),
            "error": self.error,
        }


class LockPlan(NamedTuple):
    """What `clivefs lock` would write, and why."""

    lock: Lock
    findings: list[Finding]


def look_up(
    places: Places,
    settings: Workspace,
    old: Lock,
    paths: Collection[str],
    refused: Mapping[str, str],
    progress: Progress,
) -> LockPlan:
    """What the entries at *paths* (all, where there are none) are now. Changes nothing but the store. Blocks.
    *old*: the lock as it is; *refused*: why entries may not be looked at (`trust.not_allowed`).

    ClivefsError where one cannot be had, naming each that cannot: a lock is never written half.
    """
    lockable = [entry for entry in settings.mounts if entry.kind != "local"]
    findings: list[Finding] = []
    failures: list[str] = []
    for entry in _chosen(settings, lockable, paths):
        progress(f"{entry.path}: {entry.source}")
        was = old.entry(entry.path, entry.source)
        try:
            _refuse(entry, refused)
            found = _anew(places, entry, progress)
        except (ClivefsError, OSError) as error:
            failures.append(f"{entry.path}: {_why(error)}")
            continue
        what = What.NEW if was is None else What.SAME if was == found else What.CHANGED
        findings.append(Finding(entry.path, what, entry.source, found, was))
    if failures:
        raise ClivefsError("\n".join(failures), place=old.file, remedy="Nothing was written.")
    findings += _gone(old, lockable)
    new = old.updated(
        {each.path: each.found for each in findings if each.found is not None}, [entry.path for entry in lockable]
    )
    return LockPlan(new, findings)


def check(
    places: Places,
    settings: Workspace,
    lock: Lock,
    paths: Collection[str],
    refused: Mapping[str, str],
    progress: Progress,
) -> list[Finding]:
    """Whether the entries at *paths* (all, where there are none) can be had as *lock* says. Blocks."""
    places.lock = lock
    lockable = [entry for entry in settings.mounts if entry.kind != "local"]
    findings: list[Finding] = []
    for entry in _chosen(settings, lockable, paths):
        progress(f"{entry.path}: {entry.source}")
        was = lock.entry(entry.path, entry.source)
        if was is None:
            other = lock.entries.get(entry.path)
            why = "it is not locked" if other is None else f"it was locked as {other.source}"
            findings.append(Finding(entry.path, What.NOT_LOCKED, entry.source, None, other, why))
            continue
        try:
            _refuse(entry, refused)
            _as_locked(places, entry, progress)
        except (ClivefsError, OSError) as error:
            findings.append(Finding(entry.path, What.DIFFERS, entry.source, None, was, _why(error)))
        else:
            findings.append(Finding(entry.path, What.SAME, entry.source, was, was))
    return findings if paths else [*findings, *_gone(lock, lockable)]


def _chosen(settings: Workspace, lockable: list[MountEntry], paths: Collection[str]) -> Iterator[MountEntry]:
    for path in paths:
        if any(entry.path == path for entry in lockable):
            continue
        if settings.entry(path) is not None:
            remedy = "A local directory is what it is: only sources with versions are locked."
            raise ClivefsError("the entry is a local directory", place=path, remedy=remedy)
        near = nearest(path, [entry.path for entry in lockable])
        hint = f"Did you mean {near}?" if near else "`clivefs status` lists the entries."
        raise ClivefsError("there is no mount entry at this path", place=path, remedy=hint)
    for entry in lockable:
        if not paths or entry.path in paths:
            yield entry


def _gone(lock: Lock, lockable: list[MountEntry]) -> list[Finding]:
    there = {entry.path for entry in lockable}
    return [Finding(path, What.GONE, None, None, was) for path, was in lock.entries.items() if path not in there]


def _refuse(entry: MountEntry, refused: Mapping[str, str]) -> None:
    if entry.path in refused:
        raise ClivefsError(refused[entry.path])


def _anew(places: Places, entry: MountEntry, progress: Progress) -> Locked:
    if entry.kind == "git":
        return GitEntries(places).look_up(entry, progress)
    return PublishedEntries(places).open(entry, None, progress).locked(entry.source)


def _as_locked(places: Places, entry: MountEntry, progress: Progress) -> None:
    pin = places.pin(entry)
    assert pin is not None
    if entry.kind == "git":
        GitEntries(places).locked(entry, pin, progress)
    else:
        PublishedEntries(places).open(entry, pin, progress)


def _facts(locked: Locked | None) -> dict[str, Any] | None:
    if locked is None:
        return None
    return {key: value for key, value in locked._asdict().items() if key != "source" and value is not None}


def _why(error: ClivefsError | OSError) -> str:
    return str(error) if isinstance(error, ClivefsError) else error.strerror or str(error)
