"""`Clive.lock`: which content the entries of a workspace had when they were locked. Format 1, the whole of it:

    version = 1
    [mounts."PATH"]
    source = "..."      the source in the one-line notation; the entry counts only while Clive.toml says the same
    version = "..."     pypi, npm: the release
    sha256 = "..."      pypi, npm, archive: of the archive file
    integrity = "..."   npm: the registry's own digest
    commit = "..."      git: what the ref was
    tree = "..."        git's name of the whole tree: the archive's after `strip`, or the commit's; without `subdir`

Sorted by path, so that it merges well, and without host names beyond those that Clive.toml has itself: it can be used
with any mirror. Only `clivefs lock` writes it. A file of a newer format is neither used nor written over.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.edit import toml_string
from clivefs.mounts.config.file import FILE_NAME as CONFIG_NAME
from clivefs.mounts.config.file import create, decode, read_at, save_at

FILE_NAME = "Clive.lock"
FORMAT = 1
_HEADER = "# Written by `clivefs lock`: what the entries of Clive.toml were then. Commit it beside Clive.toml.\n"
_DIGITS = {"sha256": 64, "commit": 40, "tree": 40}
_KINDS = ("git+", "pypi:", "npm:", "archive:")


class Locked(NamedTuple):
    """What an entry is locked to, or what was found for it: digests in hexadecimal."""

    source: str
    tree: str
    version: str | None = None
    sha256: str | None = None
    integrity: str | None = None
    commit: str | None = None


class Lock(NamedTuple):
    """A whole lock file."""

    file: str
    """What messages call it."""
    entries: Mapping[str, Locked]
    """By the path of the mount entry."""

    def entry(self, path: str, source: str) -> Locked | None:
        """What the entry at *path* is locked to; None if it is not, or was when it had another source."""
        found = self.entries.get(path)
        return found if found is not None and found.source == source else None

    def updated(self, found: Mapping[str, Locked], paths: Iterable[str]) -> Lock:
        """The lock with *found* in it and nothing but *paths*: what `clivefs lock` writes."""
        entries = {**self.entries, **found}
        return Lock(self.file, {path: entries[path] for path in paths if path in entries})


# Reading


def read(root: str) -> Lock:
    """The lock of the workspace at *root*; an empty one if there is none. ClivefsError for what it cannot be."""
    file = os.path.join(root, FILE_NAME)
    try:
        dir_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=root, remedy="Name the directory of a workspace.") from error
    try:
        raw = _read(dir_fd, file)
    finally:
        os.close(dir_fd)
    return Lock(file, {}) if raw is None else parse(decode(raw, file=file), file=file)


def parse(text: str, *, file: str = FILE_NAME) -> Lock:
    """The lock that *text* is. ClivefsError."""
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise _bad(file, f"it is no TOML: {error}") from error
    version = document.get("version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise _bad(file, "it has no `version`")
    if version > FORMAT:
        raise ClivefsError(
            f"it has format {version}, and this clivefs knows {FORMAT}", place=file, remedy="Use a newer clivefs."
        )
    mounts = document.get("mounts", {})
    if not isinstance(mounts, dict):
        raise _bad(file, "`mounts` is no table")
    return Lock(file, {path: _entry(file, path, facts) for path, facts in mounts.items()})


def _entry(file: str, path: str, facts: Any) -> Locked:
    if not isinstance(facts, dict):
        raise _bad(file, f"the entry {path!r} is no table")
    values: dict[str, str | None] = {}
    for key in Locked._fields:
        value = facts.get(key)
        if value is None:
            if key in ("source", "tree"):
                raise _bad(file, f"the entry {path!r} has no `{key}`")
            continue
        digits = _DIGITS.get(key)
        if not isinstance(value, str) or (digits and not re.fullmatch(rf"[0-9a-f]{{{digits}}}", value)):
            what = f"{digits} hexadecimal digits" if digits else "a string"
            raise _bad(file, f"`{key}` of the entry {path!r} is not {what}")
        values[key] = value
    locked = Locked(**values)  # type: ignore[arg-type]
    needed = "commit" if locked.source.startswith("git+") else "sha256"
    if locked.source.startswith(_KINDS) and getattr(locked, needed) is None:
        raise _bad(file, f"the entry {path!r} has no `{needed}`")
    return locked


def _bad(file: str, why: str) -> ClivefsError:
    return ClivefsError(why, place=file, remedy="`clivefs lock` writes it anew once you have removed it.")


def _read(dir_fd: int, file: str) -> bytes | None:
    try:
        os.stat(FILE_NAME, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return read_at(dir_fd, FILE_NAME, file=file)


# Writing


def format_lock(lock: Lock) -> str:
    """The text of *lock*: the same for equal locks, byte for byte."""
    lines = [_HEADER, f"version = {FORMAT}\n"]
    for path in sorted(lock.entries):
        lines.append(f"\n[mounts.{toml_string(path)}]\n")
        for key, value in lock.entries[path]._asdict().items():
            if value is not None:
                lines.append(f"{key} = {toml_string(value)}\n")
    return "".join(lines)


def write(root: str, lock: Lock, *, before: Lock | None = None) -> bool:
    """Make *lock* the lock file of the workspace at *root*, whole or not at all; whether anything changed.

    ClivefsError where there is one of a newer format, where it is not *before* any more, or where the directory cannot
    be written. One that cannot be read is replaced only after a person has removed it.
    """
    file = os.path.join(root, FILE_NAME)
    text = format_lock(lock)
    try:
        dir_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            old = _read(dir_fd, file)
            there = Lock(file, {}) if old is None else parse(decode(old, file=file), file=file)
            if before is not None and there.entries != before.entries:
                raise changed_meanwhile(file)
            if old is None:
                try:
                    create(file, text, like=CONFIG_NAME)
                except FileExistsError:
                    raise changed_meanwhile(file) from None
                return True
            if old == text.encode():
                return False
            save_at(dir_fd, FILE_NAME, old, text.encode(), file=file)
            return True
        finally:
            os.close(dir_fd)
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=file, remedy="Make the directory writable.") from error


def changed_meanwhile(file: str) -> ClivefsError:
    remedy = "Look at what changed, then give the command again."
    return ClivefsError("the file was changed meanwhile; nothing was written", place=file, remedy=remedy)


# Comparing


def verify(path: str, locked: Locked, found: Locked, *, file: str = FILE_NAME) -> None:
    """ClivefsError unless *found* is what the entry at *path* is locked to; it names both digests."""
    for key, what in (
        ("sha256", "the SHA-256"),
        ("integrity", "the integrity"),
        ("commit", "the commit"),
        ("tree", "the tree"),
    ):
        expected, actual = getattr(locked, key), getattr(found, key)
        if expected is not None and actual is not None and expected != actual:
            raise ClivefsError(
                f"{found.source} has {what} {actual}, and the lock says {expected}",
                place=f"{file}: mounts.{toml_string(path)}",
                remedy="Find out why it changed; if it is meant to, `clivefs lock` takes the new one.",
            )
