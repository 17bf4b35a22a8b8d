"""Git's ignore rules, to the letter: gitignore(5), `dir.c` and `wildmatch.c`.

Everything that decides what a pattern matches is in this file. The result is asked for one name at a time, by
whoever walks a directory: a directory that is ignored is not entered, so that nothing below it can be
included again.

Patterns come from repositories that nobody vouches for, so none may take long: each `*` but the last of a
stretch is an atomic group that takes the first match, which is as good as any later one (what follows is
another `*`). Matching is then polynomial of a low degree, however many there are.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

FILE_BYTES_MAX = 1 << 20
"""Of a larger ignore file only this much counts."""

_BOM = b"\xef\xbb\xbf"
_GLOB_SPECIAL = frozenset(b"*?[\\")
_SLASH, _STAR, _BACKSLASH, _BRACKET = b"/*\\["


def _range(*bounds: tuple[int, int]) -> frozenset[int]:
    return frozenset(code for first, last in bounds for code in range(first, last + 1))


_UPPER, _LOWER, _DIGIT = _range((0x41, 0x5A)), _range((0x61, 0x7A)), _range((0x30, 0x39))
_SPACE = frozenset(b" \t\n\r")
_PUNCT = _range((0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E))
_CLASSES = {
    b"alnum": _UPPER | _LOWER | _DIGIT,
    b"alpha": _UPPER | _LOWER,
    b"blank": frozenset(b" \t"),
    b"cntrl": _range((0, 0x1F), (0x7F, 0x7F)),
    b"digit": _DIGIT,
    b"graph": _range((0x21, 0x7E)),
    b"lower": _LOWER,
    b"print": _range((0x20, 0x7E)),
    b"punct": _PUNCT,
    b"space": _SPACE,
    b"upper": _UPPER,
    b"xdigit": _DIGIT | _range((0x41, 0x46), (0x61, 0x66)),
}


# From a glob to a regular expression


class _Star(NamedTuple):
    """`*`, and `**` where it is no more than that."""


class _Anything(NamedTuple):
    """`**`: anything, slashes too. With `directories` it is `**/`, which may also be nothing."""

    directories: bool


_Item = bytes | _Star | _Anything
"""bytes: a regular expression that always takes the same number of bytes."""


def translate(glob: bytes, *, pathname: bool) -> bytes | None:
    """A regular expression for `fullmatch` (with DOTALL) of what wildmatch() matches; None: nothing at all.

    With *pathname* only `**` matches a slash (WM_PATHNAME).
    """
    items = _items(glob, pathname)
    return None if items is None else _assemble(items, b"[^/]" if pathname else b".")


def _items(glob: bytes, pathname: bool) -> list[_Item] | None:
    items: list[_Item] = []
    at, end = 0, len(glob)
    while at < end:
        byte = glob[at]
        if byte == _STAR:
            start = at
            while at < end and glob[at] == _STAR:
                at += 1
            alone = start == 0 or glob[start - 1] == _SLASH
            closed = at == end or glob[at] == _SLASH or glob[at : at + 2] == b"\\/"
            if pathname and at - start > 1 and alone and closed:
                directories = at < end and glob[at] == _SLASH
                items.append(_Anything(directories))
                at += directories
            else:
                items.append(_Star())
        elif byte == _BRACKET:
            found = _bracket(glob, at)
            if found is None:
                return None
            codes, at = found
            items.append(_one_of(codes - {_SLASH} if pathname else codes))
        elif byte == _BACKSLASH:
            if at + 1 == end:
                return None
            items.append(re.escape(glob[at + 1 : at + 2]))
            at += 2
        else:
            items.append((b"[^/]" if pathname else b".") if byte == 0x3F else re.escape(glob[at : at + 1]))
            at += 1
    return items


def _assemble(items: list[_Item], any_byte: bytes) -> bytes:
    """The items as one expression. A stretch between two `**` is atomic, as a stretch between two `*` is."""
    stretches: list[tuple[bytes, list[_Item]]] = [(b"", [])]
    for item in items:
        if isinstance(item, _Anything):
            stretches.append((b"(?:.*?/)??" if item.directories else b".*?", []))
        else:
            stretches[-1][1].append(item)
    parts = [_stretch(stretches[0][1], any_byte)]
    for opening, stretch in stretches[1:-1]:
        parts.append(b"(?>" + opening + _stretch(stretch, any_byte) + b")")
    if len(stretches) > 1:
        parts.append(stretches[-1][0] + _stretch(stretches[-1][1], any_byte))
    return b"".join(parts)


def _stretch(items: list[_Item], any_byte: bytes) -> bytes:
    pieces: list[list[bytes]] = [[]]
    for item in items:
        if isinstance(item, bytes):
            pieces[-1].append(item)
        else:
            pieces.append([])
    fixed = [b"".join(piece) for piece in pieces]
    parts = [fixed[0]]
    parts += [b"(?>" + any_byte + b"*?" + each + b")" for each in fixed[1:-1]]
    if len(fixed) > 1:
        parts.append(any_byte + b"*" + fixed[-1])
    return b"".join(parts)


def _one_of(codes: frozenset[int] | set[int]) -> bytes:
    if not codes:
        return b"(?!)"
    return b"[" + b"".join(b"\\x%02x" % code for code in sorted(codes)) + b"]"


def _bracket(glob: bytes, at: int) -> tuple[set[int], int] | None:
    """The bytes that the bracket expression at *at* matches, and where it ends; None when it is malformed."""
    codes: set[int] = set()
    end = len(glob)
    at += 1
    negated = at < end and glob[at] in b"!^"
    at += negated
    previous: int | None = None
    first = True
    while first or at >= end or glob[at] != 0x5D:
        first = False
        if at >= end:
            return None
        byte = glob[at]
        if byte == _BACKSLASH:
            at += 1
            if at >= end:
                return None
            byte = glob[at]
            codes.add(byte)
            previous = byte
        elif byte == 0x2D and previous is not None and at + 1 < end and glob[at + 1] != 0x5D:
            at += 1
            if glob[at] == _BACKSLASH:
                at += 1
                if at >= end:
                    return None
            codes.update(range(previous, glob[at] + 1))
            previous = None
        elif byte == _BRACKET and glob[at + 1 : at + 2] == b":":
            close = glob.find(b"]", at + 2)
            if close < 0:
                return None
            if close - 1 < at + 2 or glob[close - 1] != 0x3A:  # no `:]`: an ordinary `[`
                codes.add(byte)
                previous = byte
            else:
                named = _CLASSES.get(glob[at + 2 : close - 1])
                if named is None:
                    return None
                codes |= named
                at, previous = close, None
        else:
            codes.add(byte)
            previous = byte
        at += 1
    return (set(range(256)) - codes if negated else codes), at + 1


# The patterns of one file


class _Pattern(NamedTuple):
    regex: re.Pattern[bytes]
    negative: bool
    directory_only: bool
    whole_path: bool
    """It is matched against the path below the file's directory, not against the name alone."""


class Patterns:
    """The patterns of one ignore file."""

    __slots__ = ("_all", "_literals", "_names", "_paths", "_suffixes")

    def __init__(self, content: bytes) -> None:
        self._all: list[_Pattern] = []
        """In the order that they are asked in: the last line first."""
        self._literals: set[bytes] = set()
        suffixes: list[bytes] = []
        names: list[bytes] = []
        paths: list[bytes] = []
        for line in _lines(content):
            self._add(line, suffixes, names, paths)
        self._all.reverse()
        # What decides most names at once: none of the patterns can match.
        self._suffixes = tuple(suffixes)
        self._names = re.compile(b"|".join(names), re.DOTALL) if names else None
        self._paths = re.compile(b"|".join(paths), re.DOTALL) if paths else None

    def _add(self, line: bytes, suffixes: list[bytes], names: list[bytes], paths: list[bytes]) -> None:
        negative = line.startswith(b"!")
        glob = line[1:] if negative else line
        ends_with = glob.startswith(b"*") and not _GLOB_SPECIAL & set(glob[1:])
        directory_only = glob.endswith(b"/")
        if directory_only:
            glob = glob[:-1]
        whole_path = b"/" in glob
        if whole_path:
            glob = glob.removeprefix(b"/")
        plain = next((at for at, byte in enumerate(glob) if byte in _GLOB_SPECIAL), len(glob))
        # git compares what stands before the first wildcard, and starts anew behind it.
        rest = translate(glob[plain:], pathname=True) if whole_path else translate(glob, pathname=False)
        if not glob or rest is None:
            return
        if whole_path:
            source = re.escape(glob[:plain]) + rest
            paths.append(source)
        elif plain == len(glob):
            source = re.escape(glob)
            self._literals.add(glob)
        elif ends_with:
            source = b".*" + re.escape(glob[1:])
            suffixes.append(glob[1:])
        else:
            source = rest
            names.append(source)
        self._all.append(_Pattern(re.compile(source, re.DOTALL), negative, directory_only, whole_path))

    def __bool__(self) -> bool:
        return bool(self._all)

    def decide(self, prefix: bytes, name: bytes, is_dir: bool) -> bool | None:
        """Whether *name* is ignored, as the last pattern that matches says; None where none does. *prefix* is the
        way from the file's directory to the name's, empty or with a slash at its end."""
        if (
            name not in self._literals
            and not name.endswith(self._suffixes)
            and (self._names is None or self._names.fullmatch(name) is None)
            and (self._paths is None or self._paths.fullmatch(prefix + name) is None)
        ):
            return None
        for regex, negative, directory_only, whole_path in self._all:
            if directory_only and not is_dir:
                continue
            if regex.fullmatch(prefix + name if whole_path else name) is not None:
                return not negative
        return None


@lru_cache(maxsize=1024)
def parse(content: bytes) -> Patterns:
    """The patterns of an ignore file's content."""
    return Patterns(content[:FILE_BYTES_MAX])


def _lines(content: bytes) -> list[bytes]:
    found: list[bytes] = []
    for line in content.removeprefix(_BOM).split(b"\n"):
        if line.startswith(b"#") or not line:
            continue
        line = _without_trailing_blanks(line.partition(b"\0")[0].removesuffix(b"\r"))
        if line:
            found.append(line)
    return found


def _without_trailing_blanks(line: bytes) -> bytes:
    end = None
    at = 0
    while at < len(line):
        if line[at] == 0x20:
            end = at if end is None else end
        else:
            end = None
            if line[at] == _BACKSLASH:
                at += 1
                if at >= len(line):
                    return line
        at += 1
    return line if end is None else line[:end]


# The rules of a directory


class Rules:
    """What is ignored in one directory: all the files that bear on it."""

    __slots__ = ("_files",)

    def __init__(self, files: tuple[tuple[Patterns, bytes], ...] = ()) -> None:
        self._files = files
        """In the order of precedence, each with the way from its directory to this one."""

    @classmethod
    def at_root(cls, exclude: Exclude, way: bytes, info_exclude: bytes | None, gitignore: bytes | None) -> Rules:
        """The rules of a part's root, which lies at *way* (empty or with a slash at its end) below the directory that
        *exclude* is written for: that goes before all others. `.git/info/exclude` comes after `.gitignore`."""
        files: list[tuple[Patterns, bytes]] = [(exclude, way)]
        files += [(parse(content), b"") for content in (gitignore, info_exclude) if content]
        return cls(tuple((patterns, prefix) for patterns, prefix in files if patterns))

    def enter(self, name: bytes, gitignore: bytes | None) -> Rules:
        """The rules of the directory *name*, whose own `.gitignore` has this content."""
        inner = [(patterns, prefix + name + b"/") for patterns, prefix in self._files]
        if gitignore:
            own = parse(gitignore)
            if own:
                inner.insert(self._own_place(), (own, b""))
        return Rules(tuple(inner)) if inner else _NO_RULES

    def _own_place(self) -> int:
        """Behind `[sessions] exclude`, before everything else."""
        return 1 if self._files and isinstance(self._files[0][0], Exclude) else 0

    def __bool__(self) -> bool:
        return bool(self._files)

    def ignores(self, name: bytes, is_dir: bool) -> bool:
        for patterns, prefix in self._files:
            decided = patterns.decide(prefix, name, is_dir)
            if decided is not None:
                return decided
        return False


def after(first: bytes | None, then: bytes | None) -> bytes | None:
    """The content of one ignore file that decides as *then* and, where that says nothing, *first* would."""
    return first + b"\n" + then.removeprefix(_BOM) if first and then else first or then


class Exclude(Patterns):
    """The patterns of `[sessions] exclude`, which go before every file's."""

    __slots__ = ()


_NO_RULES = Rules()
