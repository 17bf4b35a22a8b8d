"""What can be wrong with a `Clive.toml`, said so that a person can mend it: file, line, key, remedy."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterable
from typing import NamedTuple

from clivefs.base.errors import ClivefsError

PROBLEMS_MAX = 50
"""More problems than this in one file are not collected."""

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60

KeyPath = tuple[str | int, ...]
"""Where a value is: keys of tables, indices of arrays."""


class Problem(NamedTuple):
    """One thing that is wrong."""

    file: str
    line: int
    """Counted from 1."""
    key: str
    """As TOML writes it, `mounts."lib/x".ref`; empty where no key is to blame."""
    message: str
    remedy: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}: {self.key}" if self.key else f"{self.file}:{self.line}"

    def __str__(self) -> str:
        text = f"{self.place}: {self.message}"
        return f"{text}\n  {self.remedy}" if self.remedy else text


class ConfigError(ClivefsError):
    """A `Clive.toml` that cannot be used. `problems` has everything that is wrong with it, in file order;
    `message`, `place` and `remedy` are those of the first, `also` has the others."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = tuple(problems)
        first = self.problems[0]
        also = [str(problem) for problem in self.problems[1:]]
        super().__init__(first.message, place=first.place, remedy=first.remedy or None, also=also)


class BadValue(Exception):
    """A value is not what its key takes. `inside` leads from the key's value to the part that is wrong."""

    def __init__(self, message: str, remedy: str = "", inside: KeyPath = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.inside = inside


def key_text(path: KeyPath) -> str:
    """*path* as TOML writes it: `mounts."lib/x".patches[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = part if _BARE_KEY.fullmatch(part) else '"' + shorten(part)[1:-1].replace('"', '\\"') + '"'
            text += f".{shown}" if text else shown
    return text


def shorten(value: object) -> str:
    """*value* for a message: quoted, control characters escaped, cut to some 60 characters."""
    return _SHORT.repr(value)


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that *word* probably meant."""
    if len(word) > 80:
        return None
    close = difflib.get_close_matches(word.lower(), list(choices), n=1, cutoff=0.6)
    return close[0] if close else None


def type_name(value: object) -> str:
    """What TOML calls the type of *value*, with its article."""
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, str):
        return "a string"
    if isinstance(value, int):
        return "an integer"
    if isinstance(value, float):
        return "a float"
    if isinstance(value, list):
        return "an array"
    if isinstance(value, dict):
        return "a table"
    return "a date or time"
