"""Where each statement, key and value of a TOML text stands.

`tomllib` gives values without places; this scanner gives places without values. It is only for text that
`tomllib` has accepted, so it needs to know TOML's outline (strings, brackets, comments) and may take
everything else for granted. Lines count from 1; offsets are into the text, line ends as they are.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass, field

from clivefs.mounts.config.errors import KeyPath

DEPTH_MAX = 16
"""More parts in one key, or brackets within brackets, than this are refused: `tomllib` takes quadratic time
for the one and a stack frame each for the other."""

_SPACE = re.compile(r"[ \t]*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}\r\n#]*")
_REST_OF_LINE = re.compile(r"[^\n]*\n?")
_KEY_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"""{1,3}(?!")|' + r"'''.*?'''{1,3}(?!')|" + r'"(?:[^"\\\n]|\\.)*"|' + r"'[^'\n]*'",
    re.DOTALL,
)


@dataclass(slots=True)
class Value:
    """A value: text[start:end]. `parts` are what an array or an inline table holds: (path within, line)."""

    start: int
    end: int = 0
    table: bool = False
    parts: list[tuple[KeyPath, int]] = field(default_factory=list)


@dataclass(slots=True)
class Statement:
    """One `[table]` header (`value` is None) or one `key = value`, with the whole lines that it takes."""

    path: KeyPath
    """The full path, from the top of the document."""
    line: int
    start: int
    """Offset of the beginning of its first line."""
    key_start: int
    last_key_start: int
    """Offset of the last part of its key."""
    end: int = 0
    """Offset after the line that it ends on."""
    value: Value | None = None


class ScanError(Exception):
    """The text is not TOML after all."""


class TooDeep(Exception):
    """A key of more than DEPTH_MAX parts, or a value nested deeper, on line *line*."""

    def __init__(self, line: int) -> None:
        super().__init__(line)
        self.line = line


def scan(text: str) -> list[Statement]:
    """The statements of *text*, in order. Raises ScanError for what is not TOML, and TooDeep."""
    return _Scanner(text).document()


def lines_of(statements: list[Statement]) -> dict[KeyPath, int]:
    """The line of every table, key and array element. A table without a header has its first key's."""
    lines: dict[KeyPath, int] = {}
    headers: set[KeyPath] = set()
    for statement in statements:
        path = statement.path
        for length in range(len(path) - 1, 0, -1):
            if path[:length] in lines:
                break  # and then every shorter one
            lines[path[:length]] = statement.line
        if statement.value is None and path not in headers:
            headers.add(path)
            lines[path] = statement.line
        lines.setdefault(path, statement.line)
        if statement.value is not None:
            for part, line in statement.value.parts:
                for length in range(1, len(part) + 1):
                    lines.setdefault(path + part[:length], line)
    return lines


class _Scanner:
    def __init__(self, text: str) -> None:
        self._text = text
        self._pos = 0
        self._line = 1
        self._counted = 0

    def _line_at(self, offset: int) -> int:
        """The line of *offset*; asked for in ascending order."""
        self._line += self._text.count("\n", self._counted, offset)
        self._counted = offset
        return self._line

    def _peek(self) -> str:
        return self._text[self._pos : self._pos + 1]

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._text, self._pos)
        if found is not None:
            self._pos = found.end()

    def _expect(self, mark: str) -> None:
        if not self._text.startswith(mark, self._pos):
            raise ScanError(f"{mark!r} expected at offset {self._pos}")
        self._pos += len(mark)

    def document(self) -> list[Statement]:
        statements: list[Statement] = []
        prefix: KeyPath = ()
        counts: dict[KeyPath, int] = {}
        while True:
            self._skip(_BLANK)
            if self._pos >= len(self._text):
                return statements
            key_start = self._pos
            line_start = self._text.rfind("\n", 0, key_start) + 1
            line = self._line_at(key_start)
            if self._peek() == "[":
                array = self._text.startswith("[[", self._pos)
                self._expect("[[" if array else "[")
                keys, last = self._key()
                self._expect("]]" if array else "]")
                prefix = ()
                for index, key in enumerate(keys):
                    prefix = (*prefix, key)
                    if array and index == len(keys) - 1:
                        counts[prefix] = counts.get(prefix, -1) + 1
                    if prefix in counts:
                        prefix = (*prefix, counts[prefix])
                statement = Statement(prefix, line, line_start, key_start, last)
            else:
                keys, last = self._key()
                statement = Statement(prefix + keys, line, line_start, key_start, last)
                self._expect("=")
                self._skip(_SPACE)
                statement.value = Value(self._pos)
                self._value(statement.value, ())
                statement.value.end = self._pos
            self._skip(_REST_OF_LINE)
            statement.end = self._pos
            statements.append(statement)

    def _key(self) -> tuple[tuple[str, ...], int]:
        """A dotted key and the offset of its last part."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            last = self._pos
            if self._peek() in ('"', "'"):
                parts.append(self._string())
            else:
                found = _BARE.match(self._text, self._pos)
                if found is None:
                    raise ScanError(f"a key expected at offset {self._pos}")
                self._pos = found.end()
                parts.append(found.group())
            self._skip(_SPACE)
            if self._peek() != ".":
                return tuple(parts), last
            if len(parts) == DEPTH_MAX:
                raise TooDeep(self._line_at(last))
            self._pos += 1

    def _string(self) -> str:
        """A quoted part of a key."""
        found = _KEY_STRING.match(self._text, self._pos)
        if found is None:
            raise ScanError(f"a key expected at offset {self._pos}")
        try:
            part = str(tomllib.loads("k=" + found.group())["k"])
        except tomllib.TOMLDecodeError as error:
            raise ScanError(str(error)) from None
        self._pos = found.end()
        return part

    def _value(self, value: Value, inside: KeyPath) -> None:
        """Step over a value, noting in *value* where what it holds stands."""
        if len(inside) > DEPTH_MAX:
            raise TooDeep(self._line_at(self._pos))
        mark = self._peek()
        if mark in ('"', "'"):
            found = _STRING.match(self._text, self._pos)
            if found is None:
                raise ScanError(f"a string expected at offset {self._pos}")
            self._pos = found.end()
        elif mark == "[":
            self._pos += 1
            self._skip(_BLANK)
            index = 0
            while self._peek() != "]":
                value.parts.append(((*inside, index), self._line_at(self._pos)))
                self._value(value, (*inside, index))
                self._next("]")
                index += 1
            self._pos += 1
        elif mark == "{":
            value.table = value.table or not inside
            self._pos += 1
            self._skip(_BLANK)
            while self._peek() != "}":
                line = self._line_at(self._pos)
                keys, _ = self._key()
                self._expect("=")
                self._skip(_SPACE)
                value.parts.append((inside + keys, line))
                self._value(value, inside + keys)
                self._next("}")
            self._pos += 1
        else:
            found = _SCALAR.match(self._text, self._pos)
            length = len(found.group().rstrip()) if found is not None else 0
            if not length:
                raise ScanError(f"a value expected at offset {self._pos}")
            self._pos += length

    def _next(self, closing: str) -> None:
        """Step over the comma between two elements; stand at the next element or at *closing*."""
        self._skip(_BLANK)
        if self._peek() == ",":
            self._pos += 1
            self._skip(_BLANK)
        elif self._peek() != closing:
            raise ScanError(f"{closing!r} expected at offset {self._pos}")
