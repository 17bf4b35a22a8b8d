"""Edits of `Clive.toml` that touch nothing but the entry they are about.

`attach`, `detach` and `replace` take a text and return the new one: every other byte (comments, order,
spelling, line ends) stays. They work on the places that `config.scan` finds, whatever way the entry is
written: a table with a header, dotted keys, or an inline table. Each result is read again and compared with
what was meant, so that no layout, however odd, can be edited wrongly: it is refused instead.

Not here: whether the result is a good configuration. `config.parse` says that; call it before saving.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.errors import key_text, nearest
from clivefs.mounts.config.file import FILE_NAME, read_toml
from clivefs.mounts.config.scan import Statement
from clivefs.mounts.config.schema import MOUNT_KEYS
from clivefs.mounts.config.source_notation import COMMIT, KINDS, Source

_BARE = re.compile(r"[A-Za-z0-9_-]+")
_ESCAPES = {"\b": "\\b", "\t": "\\t", "\n": "\\n", "\f": "\\f", "\r": "\\r", '"': '\\"', "\\": "\\\\"}
_COMMENT_LINE = re.compile(r"[ \t]*#[^\n]*\n?")

_OF_THE_SOURCE = frozenset((*KINDS, "ref", "subdir", "sdist", "sha256"))
"""Keys that say what the content is: `replace` drops them all, and sets those that its SOURCE gives."""


def attach(
    text: str,
    path: str,
    source: Source,
    *,
    write: str | None = None,
    patches: Sequence[str] = (),
    file: str = FILE_NAME,
) -> str:
    """*text* with a new entry at *path*, as a table after the other entries. ClivefsError if there is one."""
    document, statements = _read(text, file)
    mounts = _entries(document)
    if path in mounts:
        raise ClivefsError(
            "there is a mount entry at this path already",
            place=f"{file}: {key_text(('mounts', path))}",
            remedy=f"`clivefs replace {path} SOURCE` gives it another source, `clivefs detach {path}` removes it",
        )
    keys: dict[str, Any] = dict(source.keys())
    if patches:
        keys["patches"] = list(patches)
    if write is not None:
        keys["write"] = write
    wanted = {**mounts, path: keys}
    inline = _inline_mounts(statements)
    if inline is not None:
        new = _with_value(text, inline, wanted)
    else:
        end_of_line = _end_of_line(text)
        lines = [f"[mounts.{toml_string(path)}]", *(f"{key} = {toml_value(value)}" for key, value in keys.items()), ""]
        new = _with_block(text, statements, end_of_line.join(lines), end_of_line)
    return _checked(new, document, wanted, file)


def detach(text: str, path: str, *, file: str = FILE_NAME) -> str:
    """*text* without the entry at *path*, and without the comment lines right above its header."""
    document, statements = _read(text, file)
    mounts = _entries(document)
    _must_have(mounts, path, file)
    wanted = {each: keys for each, keys in mounts.items() if each != path}
    inline = _inline_mounts(statements)
    if inline is not None:
        return _checked(_with_value(text, inline, wanted), document, wanted, file)
    place = ("mounts", path)
    runs: list[tuple[int, int]] = []
    previous: Statement | None = None
    for statement in statements:
        if statement.path[:2] == place:
            if previous is not None and previous.path[:2] == place:
                runs[-1] = (runs[-1][0], statement.end)
            else:
                start = statement.start if statement.value is not None else _comments_above(text, statement.start)
                runs.append((start, statement.end))
        previous = statement
    new = text
    for start, end in reversed(runs):
        new = _without(new, start, end)
    return _checked(new, document, wanted, file)


def replace(
    text: str,
    path: str,
    source: Source,
    *,
    write: str | None = None,
    patches: Sequence[str] | None = None,
    file: str = FILE_NAME,
) -> str:
    """*text* with another source for the entry at *path*.

    What says which content is shown (the source, `ref`, `subdir`, `sdist`, `sha256`) becomes exactly what *source*
    says. Every other key stays, unless it cannot go with the new kind of source: then it goes. *write* and
    *patches* are set where given.
    """
    document, statements = _read(text, file)
    mounts = _entries(document)
    _must_have(mounts, path, file)
    old = mounts[path] if isinstance(mounts[path], dict) else {}
    keys: dict[str, Any] = {**source.keys(), **_kept(old, source)}
    if write is not None:
        keys["write"] = write
    if patches is not None:
        keys.pop("patches", None)
        if patches:
            keys["patches"] = list(patches)
    return _put(text, document, statements, path, keys, file)


def update(text: str, path: str, changes: Mapping[str, Any], *, file: str = FILE_NAME) -> str:
    """*text* with other values for some keys of the entry at *path*; None takes a key away. All others stay."""
    document, statements = _read(text, file)
    mounts = _entries(document)
    _must_have(mounts, path, file)
    keys = {**mounts[path], **changes}
    return _put(
        text, document, statements, path, {key: value for key, value in keys.items() if value is not None}, file
    )


def _put(
    text: str,
    document: Mapping[str, Any],
    statements: list[Statement],
    path: str,
    keys: Mapping[str, Any],
    file: str,
) -> str:
    """*text* with exactly *keys* in the entry at *path*."""
    mounts = _entries(document)
    old = mounts[path] if isinstance(mounts[path], dict) else {}
    wanted = {**mounts, path: keys}
    inline = _inline_mounts(statements)
    own = next((s for s in statements if s.path == ("mounts", path) and s.value is not None), None)
    if inline is not None:
        new = _with_value(text, inline, wanted)
    elif own is not None:
        new = _with_value(text, own, keys)
    else:
        new = _with_keys(text, statements, path, old, keys)
    return _checked(new, document, wanted, file)


def _kept(old: Mapping[str, Any], source: Source) -> dict[str, Any]:
    """The keys of an entry that stay when its source becomes *source*."""
    foreign = {key.name for key in MOUNT_KEYS if key.kinds and source.kind not in key.kinds}
    kept = {key: value for key, value in old.items() if key not in _OF_THE_SOURCE and key not in foreign}
    if kept.get("write") == "through" and source.kind != "local":
        del kept["write"]
    if source.ref is not None and COMMIT.fullmatch(source.ref):
        kept.pop("follow", None)
    return kept


# Text


def _with_keys(
    text: str, statements: list[Statement], path: str, old: Mapping[str, Any], keys: Mapping[str, Any]
) -> str:
    """The entry's own lines changed from *old* to *keys*: the source's line in place, its other new keys after it."""
    own = {
        s.path[2]: s for s in statements if len(s.path) == 3 and s.path[:2] == ("mounts", path) and s.value is not None
    }
    header = next((s for s in statements if s.path == ("mounts", path)), None)
    kind = next(kind for kind in KINDS if kind in keys)
    place = next((own[each] for each in (kind, *KINDS) if each in own), None)
    end_of_line = _end_of_line(text)
    prefix = text[place.start : place.last_key_start] if place is not None else ""
    added = [key for key in keys if key not in own and key != kind]
    lines = [f"{prefix}{key} = {toml_value(keys[key])}" for key in added]
    edits: list[tuple[int, int, str]] = []
    for key, statement in own.items():
        if statement is place or statement.value is None:
            continue
        if key not in keys:
            edits.append((statement.start, statement.end, ""))
        elif old.get(str(key)) != keys[str(key)]:
            edits.append((statement.value.start, statement.value.end, toml_value(keys[str(key)])))
    if place is not None and place is own.get(kind) and old.get(kind) == keys[kind]:
        at = place.end
    elif place is not None and place.value is not None:
        edits.append((place.last_key_start, place.value.end, f"{kind} = {toml_value(keys[kind])}"))
        at = place.end
    elif header is not None:
        lines.insert(0, f"{kind} = {toml_value(keys[kind])}")
        at = header.end
    else:
        lines, at = [], 0  # the check that follows refuses this
    if lines:
        broken = "" if text[:at].endswith("\n") else end_of_line
        edits.append((at, at, broken + "".join(line + end_of_line for line in lines)))
    for start, end, put in sorted(edits, key=lambda edit: edit[:2], reverse=True):
        text = text[:start] + put + text[end:]
    return text


def _with_block(text: str, statements: list[Statement], block: str, end_of_line: str) -> str:
    """*text* with a table after the last section that has mount entries, or at the end."""
    at = len(text)
    last = max((index for index, s in enumerate(statements) if s.path[0] == "mounts"), default=None)
    if last is not None:
        while last + 1 < len(statements) and statements[last + 1].value is not None:
            last += 1
        at = _comments_below(text, statements[last].end)
    before, after = text[:at], text[at:]
    if before and not before.endswith("\n"):
        before += end_of_line
    if before and not re.search(r"(?:^|\n)[ \t]*\r?\n\Z", before):
        before += end_of_line
    if after and not re.match(r"[ \t]*\r?\n", after):
        block += end_of_line
    return before + block + after


def _with_value(text: str, statement: Statement, value: object) -> str:
    assert statement.value is not None
    return text[: statement.value.start] + toml_value(value) + text[statement.value.end :]


def _without(text: str, start: int, end: int) -> str:
    """*text* without [start, end), and without the blank lines that would now meet others."""
    before, after = text[:start], text[end:]
    if not after.strip(" \t\r\n") or re.match(r"[ \t]*\r?\n", after):
        kept = before.rstrip(" \t\r\n")
        before = kept + _end_of_line(text) if kept else ""
        if not before:
            after = re.sub(r"\A(?:[ \t]*\r?\n)+", "", after)
    return before + after


def _comments_above(text: str, start: int) -> int:
    """Where the comment lines right above *start* begin; those that open the file are the file's."""
    at = start
    while at > 0:
        above = text.rfind("\n", 0, at - 1) + 1
        if not _COMMENT_LINE.fullmatch(text, above, at):
            break
        at = above
    blank = at > 0 and re.search(r"(?:\A|\n)[ \t]*\r?\n\Z", text[:at]) is not None
    return at if blank else start


def _comments_below(text: str, end: int) -> int:
    """Where the comment lines right below *end* are over, if a blank line or the end of the file follows."""
    at = end
    while (found := _COMMENT_LINE.match(text, at)) is not None and found.end() > at:
        at = found.end()
    return at if at == len(text) or re.compile(r"[ \t]*\r?(?:\n|\Z)").match(text, at) else end


def _end_of_line(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


# Values


def toml_string(text: str) -> str:
    """*text* as a TOML basic string."""
    return '"' + re.sub(r'[\x00-\x1f\x7f"\\]', _escape, text) + '"'


def _escape(found: re.Match[str]) -> str:
    return _ESCAPES.get(found.group()) or f"\\u{ord(found.group()):04x}"


def toml_value(value: object) -> str:
    """*value* (what `tomllib` gives, but for dates) on one line of TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return toml_string(value)
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        pairs = (
            f"{key if _BARE.fullmatch(key) else toml_string(key)} = {toml_value(each)}" for key, each in value.items()
        )
        return f"{{ {', '.join(pairs)} }}" if value else "{}"
    return str(value)  # dates and times, as TOML writes them


# Before and after


def _read(text: str, file: str) -> tuple[dict[str, Any], list[Statement]]:
    return read_toml(text, file=file)


def _entries(document: Mapping[str, Any]) -> dict[str, Any]:
    mounts = document.get("mounts", {})
    return dict(mounts) if isinstance(mounts, dict) else {}


def _must_have(mounts: Mapping[str, Any], path: str, file: str) -> None:
    if path not in mounts:
        near = nearest(path, mounts)
        known = f"did you mean `{near}`?" if near else "the entries are " + (", ".join(mounts) or "none")
        raise ClivefsError(f"there is no mount entry at {path}", place=file, remedy=known)


def _inline_mounts(statements: list[Statement]) -> Statement | None:
    """The statement `mounts = { ... }`, which no header can add to."""
    return next((s for s in statements if s.path == ("mounts",) and s.value is not None), None)


def _checked(text: str, document: Mapping[str, Any], mounts: Mapping[str, Any], file: str) -> str:
    """*text*, if it says *document* with *mounts*."""
    wanted = {key: value for key, value in document.items() if key != "mounts"}
    found, _ = read_toml(text, file=file)
    if _entries(found) != dict(mounts) or {k: v for k, v in found.items() if k != "mounts"} != wanted:
        raise ClivefsError(
            "this file is written in a way that cannot be edited safely",
            place=file,
            remedy='edit it by hand; a table for each entry, [mounts."PATH"], can be edited',
        )
    return text


def normal_path(path: str) -> str:
    """A path that a person typed, as an entry writes it: `./lib//x/` is `lib/x`. It may still be a bad one."""
    normal = os.path.normpath(path) if path else path
    return normal if not path.startswith("//") else "/" + normal.lstrip("/")
