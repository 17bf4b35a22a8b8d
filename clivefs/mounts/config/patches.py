"""Adding one pattern to the `patches` of an entry: the array stays as it is written, comments and line breaks too."""

from __future__ import annotations

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.edit import toml_string, update
from clivefs.mounts.config.file import FILE_NAME, read_toml
from clivefs.mounts.config.scan import Value


def add_pattern(text: str, path: str, pattern: str, *, file: str = FILE_NAME) -> str:
    """*text* with *pattern* as the last of the `patches` of the entry at *path*. ClivefsError."""
    document, statements = read_toml(text, file=file)
    old = document.get("mounts", {}).get(path, {}).get("patches")
    wanted = [*(old or ()), pattern]
    plain = update(text, path, {"patches": wanted}, file=file)
    own = next((each for each in statements if each.path == ("mounts", path, "patches")), None)
    if not old or own is None or own.value is None:
        return plain
    new = _appended(text, own.value, pattern)
    # Whatever odd layout this did not understand: what is said counts.
    try:
        found, _ = read_toml(new, file=file)
    except ClivefsError:  # not TOML any more
        return plain
    return new if found == read_toml(plain, file=file)[0] else plain


def _appended(text: str, value: Value, pattern: str) -> str:
    body = text[value.start : value.end]
    last = _last_element(body)
    comma = "" if body[last - 1] in ",[" else ","
    line_end = body.find("\n", last)
    item = toml_string(pattern)
    if line_end < 0:  # nothing but the bracket follows on this line
        added = body[:last] + f"{comma} {item}" + body[last:]
    else:
        line_start = body.rfind("\n", 0, last) + 1
        indent = body[line_start : line_start + len(body[line_start:]) - len(body[line_start:].lstrip(" \t"))]
        if not line_start:
            indent = "    "
        added = body[:last] + comma + body[last : line_end + 1] + f"{indent}{item},\n" + body[line_end + 1 :]
    return text[: value.start] + added + text[value.end :]


def _last_element(body: str) -> int:
    """Where in an array's text, which ends with its bracket, the last thing ends that is no space and no comment."""
    at = last = 1
    while at < len(body) - 1:
        char = body[at]
        if char == "#":
            at = body.find("\n", at)
            continue
        if char in "\"'":
            at = _string_end(body, at)
            last = at
            continue
        at += 1
        if char not in " \t\r\n":
            last = at
    return last


def _string_end(body: str, at: int) -> int:
    quote = body[at]
    mark = quote * 3 if body.startswith(quote * 3, at) else quote
    at += len(mark)
    while not body.startswith(mark, at):
        at += 2 if quote == '"' and body[at] == "\\" else 1
    return at + len(mark)
