"""What a person or a program reads: lines, tables, JSON, progress, errors.

Owned here: how names that are not UTF-8 or hold control characters are written. On a terminal control
characters are escaped (a file's name must not steer it); in JSON a name that is not UTF-8 becomes
`KEY_b64`, as docs/json.md says.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

from clivefs.base.errors import ClivefsError

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")


class Output:
    """Standard output and error of one call."""

    def __init__(self, stdout: TextIO, stderr: TextIO, *, as_json: bool) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.as_json = as_json
        self._progress_shown = False

    def line(self, text: str = "") -> None:
        """A line of the result for people; nothing where JSON is asked for."""
        if not self.as_json:
            self.stdout.write(visible(text) + "\n")

    def lines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.line(text)

    def raw(self, data: bytes) -> None:
        """Bytes as they are, for a patch or a script."""
        self.stdout.flush()
        self.stdout.buffer.write(data)
        self.stdout.buffer.flush()

    def json(self, value: Any) -> None:
        """The result for programs; nothing where it is not asked for."""
        if self.as_json:
            json.dump(portable(value), self.stdout, indent=2, ensure_ascii=False)
            self.stdout.write("\n")

    def note(self, text: str) -> None:
        """Lines beside the result: on standard error, also with JSON."""
        self._end_progress()
        self.stderr.write(_each_line(text) + "\n")

    def progress(self, text: str) -> None:
        """How far long work is; only on a terminal, each text over the last."""
        if self.stderr.isatty():
            self.stderr.write(f"\r\x1b[K{visible(text)[:120]}")
            self.stderr.flush()
            self._progress_shown = True

    def _end_progress(self) -> None:
        if self._progress_shown:
            self.stderr.write("\r\x1b[K")
            self._progress_shown = False

    def error(self, error: ClivefsError) -> None:
        """Say what was wrong, where, and what to do."""
        self._end_progress()
        self.stderr.write(f"clivefs: {_each_line(str(error))}\n")

    def flush(self) -> None:
        self._end_progress()
        self.stdout.flush()
        self.stderr.flush()


def standard(*, as_json: bool) -> Output:
    """The process's own output, made fit for names in any encoding."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")
    return Output(sys.stdout, sys.stderr, as_json=as_json)


def _each_line(text: str) -> str:
    return "\n".join(visible(line) for line in text.split("\n"))


def visible(text: str) -> str:
    r"""*text* with control characters written as `\xNN`; other bytes are kept."""
    return _CONTROL.sub(lambda found: f"\\x{ord(found.group()):02x}", text)


def portable(value: Any) -> Any:
    """*value* as JSON can hold it: a string that is not Unicode under KEY becomes base64 under `KEY_b64`."""
    if isinstance(value, Mapping):
        result = {}
        for key, item in value.items():
            if isinstance(item, str) and not _is_unicode(item):
                result[f"{key}_b64"] = base64.b64encode(os.fsencode(item)).decode()
            else:
                result[key] = portable(item)
        return result
    if isinstance(value, (list, tuple)):
        return [portable(item) for item in value]
    if isinstance(value, str) and not _is_unicode(value):
        return {"b64": base64.b64encode(os.fsencode(value)).decode()}
    return value


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def size(count: int) -> str:
    """*count* bytes, for people."""
    value, unit = float(count), "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{count} bytes" if unit == "bytes" else f"{value:.1f} {unit}"


def table(rows: Sequence[Sequence[str]], *, indent: str = "") -> list[str]:
    """*rows* as lines whose columns stand below each other."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
