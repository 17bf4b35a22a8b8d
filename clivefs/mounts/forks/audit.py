"""What was read and written in a fork: noted at its own nodes, which nobody has looked at before, so the kernel's
caches hide nothing. Kept as JSON after the fork is gone (`describe`; docs/json.md).
"""

from __future__ import annotations

import os
from typing import Any

from clivefs.mounts.tree import Node

PATHS_MAX = 100_000
"""Of each kind; more are counted."""


class _Paths:
    __slots__ = ("found", "more")

    def __init__(self) -> None:
        self.found: set[bytes] = set()
        self.more = 0

    def add(self, path: bytes) -> None:
        if len(self.found) < PATHS_MAX:
            self.found.add(path)
        elif path not in self.found:
            self.more += 1


class Audit:
    """Of one fork. Paths are below it."""

    def __init__(self) -> None:
        self._kinds = {kind: _Paths() for kind in ("read", "listed", "missing", "written", "removed")}

    def note(self, kind: str, directory: Node, name: bytes) -> None:
        """*name* in *directory* was read, looked for in vain (`missing`), written or removed."""
        above = directory.path()
        self._kinds[kind].add(above + b"/" + name if above else name)

    def node(self, kind: str, node: Node) -> None:
        """The file *node* was read or written, the directory listed."""
        self._kinds[kind].add(node.path())

    def describe(self) -> dict[str, Any]:
        """All of it, for JSON."""
        facts: dict[str, Any] = {
            kind: [os.fsdecode(path) for path in sorted(paths.found)] for kind, paths in self._kinds.items()
        }
        facts["more"] = sum(paths.more for paths in self._kinds.values())
        return facts
