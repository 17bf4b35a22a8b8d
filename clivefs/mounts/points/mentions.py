"""What says something of a purged path, or of its content, without being it: points' messages, command lines, audits.

Text is taken for a mention where it has the path as words of their own, or a line of the content, or the value of such
a line (after `=` or `:`), of some length.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Any

_TEXT_CHARS_MIN = 8
"""Shorter pieces of content are in many texts that do not know it."""
_CONTENT_BYTES_MAX = 1 << 16
"""Larger contents are no secret that somebody types."""
_VALUE = re.compile(r"""[=:]\s*["']?([^"']*)""")
_KINDS = ("read", "listed", "missing", "written", "removed")
"""The lists of an audit (`forks.audit`)."""
_WROTE = ("written", "removed")


class Mentions:
    """Of one path, and of *contents* that were there."""

    def __init__(self, path: bytes, contents: Iterable[bytes] = ()) -> None:
        self._path = os.fsdecode(path)
        self._words = re.compile(rf"(?<!\w){re.escape(self._path)}(?!\w)")
        self._pieces: set[str] = set()
        for content in contents:
            if len(content) <= _CONTENT_BYTES_MAX:
                self._add(content)

    def _add(self, content: bytes) -> None:
        for line in content.decode("utf-8", "surrogateescape").splitlines():
            pieces = [line.strip(), *(found.strip() for found in _VALUE.findall(line))]
            self._pieces.update(piece for piece in pieces if len(piece) >= _TEXT_CHARS_MIN)

    def in_text(self, text: str) -> bool:
        """Whether *text* is a mention."""
        return self._words.search(text) is not None or any(piece in text for piece in self._pieces)

    def covers(self, path: str) -> bool:
        """Whether *path* is the purged one, or below it."""
        return path == self._path or path.startswith(self._path + "/")

    def without(self, audit: dict[str, Any]) -> dict[str, Any]:
        """An audit without the path; without its command, too, where that wrote there or is a mention."""
        kept = dict(audit)
        for kind in _KINDS:
            kept[kind] = [path for path in audit.get(kind, ()) if not self.covers(path)]
        wrote = any(len(kept[kind]) != len(audit.get(kind, ())) for kind in _WROTE)
        if wrote or self.in_text(str(audit.get("command", ""))):
            kept["command"] = ""
        return kept
