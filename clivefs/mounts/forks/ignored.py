"""What a fork takes for ignored, and so for inherited where its point has nothing: by the ignore rules of its point.

These are the `.gitignore` files that the point has, and what was in force beside them (`RulesOfThen`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from clivefs.mounts.forks.inherited import RulesOfThen
from clivefs.mounts.forks.ref import ForkRef
from clivefs.mounts.git.space import Reader
from clivefs.mounts.points.lower import PointLower
from clivefs.mounts.recording.ignore import FILE_BYTES_MAX, Exclude, Rules
from clivefs.mounts.recording.layers import GITIGNORE, is_never
from clivefs.mounts.recording.parts import join
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge


class Ignored:
    """The ignored names of a fork on *point*. May be used where `PointLower` may."""

    def __init__(self, then: RulesOfThen, point: PointLower, reader: Reader, entries: Iterable[bytes]) -> None:
        """*entries*: the paths where ignore rules start anew."""
        self._then = then
        self._point = point
        self._reader = reader
        self._anew = frozenset(entries)
        self._exclude = Exclude("\n".join(then.exclude).encode("utf-8", "surrogateescape"))

    def ignores(self, directory: ForkRef, name: bytes, kind: int) -> bool:
        """Whether nothing is recorded at *name*."""
        if is_never(name) or join(directory.at, name) in self._anew:
            return False
        return directory.ignored or self._rules(directory).ignores(name, kind == stat.S_IFDIR)

    def may_be(self, directory: ForkRef, name: bytes) -> bool:
        """Whether *name* is ignored, if it is a directory or if it is a file."""
        return self.ignores(directory, name, stat.S_IFDIR) or self.ignores(directory, name, stat.S_IFREG)

    def has_any(self, directory: ForkRef) -> bool:
        """Whether anything in *directory* can be."""
        return directory.ignored or bool(self._rules(directory))

    def _rules(self, directory: ForkRef) -> Rules:
        if directory.rules is not None:
            return directory.rules
        gitignore = self._gitignore(directory)
        if directory.parent is None or directory.at in self._anew:
            way = directory.at + b"/" if directory.at else b""
            info_exclude = self._then.info_exclude.get(os.fsdecode(directory.at), "") if self._then.obey else ""
            found = Rules.at_root(self._exclude, way, info_exclude.encode("latin-1") or None, gitignore)
        elif directory.ignored:
            found = Rules()
        else:
            found = self._rules(directory.parent).enter(directory.name, gitignore)
        directory.rules = found
        return found

    def _gitignore(self, directory: ForkRef) -> bytes | None:
        if directory.point is None or not self._then.obey:
            return None
        found = self._point.child(directory.point, GITIGNORE)
        if found is None or found.kind != stat.S_IFREG or found.git is None:
            return None
        try:
            return self._reader.read(found.git.entry.oid)[1][:FILE_BYTES_MAX]
        except (ObjectMissing, CorruptObject, ObjectTooLarge):
            return None
