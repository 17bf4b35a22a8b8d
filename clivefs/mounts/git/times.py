"""The modification times of a mounted git tree, from its first mount on.

A file has the time of the commit that the entry was first mounted at. When the entry moves to another tree
(`follow`, another `ref`), the files whose content changes get the moment of the move and the others keep
their own: so make rebuilds what changed and nothing else. Kept in the file `times` beside the entry's upper,
replaced whole when the other tree is shown (`times.new` until then): msgpack of `_Record`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping

import msgspec

from clivefs.mounts.git.space import Objects
from clivefs.mounts.git.trees import visible
from clivefs.objects.encode import MODE_TREE

_NAME = "times"
_NEW = ".new"
_CHANGED_MAX = 1_000_000


class _Record(msgspec.Struct, array_like=True):
    """`version` 1. Times in ns since the epoch; `tree` is the one that is shown."""

    version: int
    tree: bytes
    base_ns: int
    changed: dict[bytes, int]


class GitTimes:
    """The times of one entry at one tree: call it with (path, object) for a time in ns."""

    def __init__(self, path: str, record: _Record | None) -> None:
        self._path = path
        self._record = record
        self._saved = True

    @classmethod
    def read(cls, directory: str) -> GitTimes:
        """The times kept in *directory*, the entry's in the store."""
        path = os.path.join(directory, _NAME)
        try:
            with open(path, "rb") as file:
                return cls(path, msgspec.msgpack.decode(file.read(), type=_Record))
        except FileNotFoundError:
            return cls(path, None)

    def __call__(self, path: bytes, oid: bytes) -> int:
        assert self._record is not None
        return self._record.changed.get(path, self._record.base_ns)

    @property
    def base_ns(self) -> int:
        """The time of every file that is not in `changed`."""
        assert self._record is not None
        return self._record.base_ns

    @property
    def changed(self) -> Mapping[bytes, int]:
        """The files that have a time of their own, in ns."""
        assert self._record is not None
        return self._record.changed

    def at(self, reader: Objects, tree: bytes, commit_time_ns: int, now_ns: int) -> GitTimes:
        """The times when *tree* is shown from *now_ns* on. For threads: compares the trees where they differ.

        These stay in force until the others are shown: `stage` those before, `commit` them then.
        """
        record = self._record
        if record is None:
            record = _Record(1, tree, commit_time_ns, {})
        elif record.tree != tree:
            changed = dict(record.changed)
            for path in changed_paths(reader, record.tree, tree):
                if len(changed) >= _CHANGED_MAX:
                    break
                changed[path] = now_ns
            record = _Record(1, tree, record.base_ns, changed)
        times = GitTimes(self._path, record)
        times._saved = record is self._record
        return times

    def keep(self, times_ns: Mapping[bytes, int]) -> None:
        """Show these paths with these times: their content has not changed, only where it lies."""
        if times_ns:
            assert self._record is not None
            self._record = msgspec.structs.replace(self._record, changed={**self._record.changed, **times_ns})
            self._saved = False

    def stage(self) -> None:
        """Write them aside, for `commit` to put in place. For threads."""
        if self._saved:
            return
        with open(self._path + _NEW, "wb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(msgspec.msgpack.encode(self._record))
            file.flush()
            os.fsync(file.fileno())

    def commit(self) -> None:
        """They are shown: keep them for the mounts to come. One rename, for the span that shows them."""
        if not self._saved:
            os.rename(self._path + _NEW, self._path)
            self._saved = True

    def discard(self) -> None:
        """What was staged is not shown."""
        if not self._saved:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path + _NEW)


def changed_paths(reader: Objects, old: bytes, new: bytes) -> Iterator[bytes]:
    """The paths of files that *new* has with another content than *old*, or that *old* has not. Equal subtrees are
    not entered, so the cost is that of the difference."""
    pending: list[tuple[bytes, bytes | None, bytes]] = [(b"", old, new)]
    while pending:
        directory, before, after = pending.pop()
        known = {}
        if before is not None:
            known = {entry.name: entry for entry in visible(reader.read_tree(before))[0]}
        for entry in visible(reader.read_tree(after))[0]:
            path = directory + entry.name
            other = known.get(entry.name)
            if other is not None and other.oid == entry.oid and other.mode == entry.mode:
                continue
            if entry.mode == MODE_TREE:
                below = other.oid if other is not None and other.mode == MODE_TREE else None
                pending.append((path + b"/", below, entry.oid))
            else:
                yield path
