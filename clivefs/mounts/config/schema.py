"""Every table and key of `Clive.toml`: its type, its default, and how its value is read.

`TABLES` is the whole schema; `docs/clive-toml.md` must list exactly the same, and a test says so. Readers
take what `tomllib` gives and return the value that the frozen structures of `config.py` hold, or raise
`BadValue`.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

from clivefs.mounts.config.errors import BadValue, nearest, shorten, type_name
from clivefs.mounts.config.source_notation import (
    Kind,
    check_archive,
    check_git,
    check_local,
    check_npm,
    check_pypi,
    check_ref,
    check_relative,
    check_text,
    check_url,
)

Reader = Callable[[object], Any]

FOREVER: Final = None
"""What the duration `forever` is read as."""

_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_DURATION = re.compile(r"(?:\d{1,9}[smhdwy])+")
_UNIT_BYTES = {"B": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("KMGT", 1)
    for suffix, base in (("iB", 1024), ("B", 1000))
}
_SIZE = re.compile(r"(\d{1,15})\s*([KMGT]?i?B)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CONTROL_NAMES = frozenset((".git", ".clive", "git~1"))
"""Names that no path of an entry may hold, whatever their case: git refuses them in trees, or we answer them."""


_OWN_FILES = ("Clive.toml", "Clive.lock")


class Key(NamedTuple):
    """One key of a table."""

    name: str
    type: str
    """For people, as the reference has it."""
    read: Reader
    default: str = ""
    """For people; empty where there is none. The structures of `config.py` hold the values."""
    required: bool = False
    kinds: tuple[Kind, ...] = ()
    """The kinds of source that the key belongs to; empty for all."""
    example: str = ""
    """A value, as TOML."""

    @property
    def shown(self) -> str:
        """A line that has it, for errors."""
        return f"{self.name} = {self.example}"


# Readers


def text(check: Callable[[str], str]) -> Reader:
    """A string that *check* accepts."""

    def read(value: object) -> str:
        if not isinstance(value, str):
            raise BadValue(f"a string is needed here, not {type_name(value)}")
        return check(value)

    return read


def texts(check: Callable[[str], str], *, least: int = 0) -> Reader:
    """An array of at least *least* strings, each accepted by *check*; a tuple."""

    def read(value: object) -> tuple[str, ...]:
        if not isinstance(value, list):
            hint = f"write [{shorten(value)}]".replace("'", '"') if isinstance(value, str) else ""
            raise BadValue(f"an array of strings is needed here, not {type_name(value)}", hint)
        result = []
        for index, item in enumerate(value):
            if not isinstance(item, str):
                raise BadValue(f"a string is needed here, not {type_name(item)}", inside=(index,))
            try:
                result.append(check(item))
            except BadValue as error:
                raise BadValue(error.message, error.remedy, (index,)) from None
        if len(result) < least:
            raise BadValue("the array is empty", "name at least one, or remove the key")
        return tuple(result)

    return read


def choice(*choices: str) -> Reader:
    def check(value: str) -> str:
        if value not in choices:
            near = nearest(value, choices)
            hint = f'did you mean "{near}"?' if near else "write one of " + ", ".join(f'"{each}"' for each in choices)
            raise BadValue(f"{shorten(value)} is not one of {', '.join(choices)}", hint)
        return value

    return text(check)


def boolean(value: object) -> bool:
    if not isinstance(value, bool):
        raise BadValue(f"a boolean is needed here, not {type_name(value)}", "write true or false, without quotes")
    return value


def integer(least: int, most: int) -> Reader:
    def read(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise BadValue(f"an integer is needed here, not {type_name(value)}")
        if not least <= value <= most:
            raise BadValue(f"{value if abs(value) < 10**20 else 'the number'} is not between {least} and {most}")
        return value

    return read


def duration(*, forever: bool = False, at_least_s: int = 0) -> Reader:
    """Seconds; None for `forever` where that is allowed."""

    def check(value: str) -> int | None:
        if forever and value == "forever":
            return FOREVER
        if len(value) > 60 or not _DURATION.fullmatch(value):
            also = ', or "forever"' if forever else ""
            raise BadValue(f"{shorten(value)} is not a duration", f'write a number and s, m, h, d, w or y: "24h"{also}')
        found = sum(int(number) * _UNIT_SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhdwy])", value))
        if found < at_least_s:
            raise BadValue(f"{shorten(value)} is too short", f'write "{at_least_s}s" or more')
        return found

    return text(check)  # type: ignore[arg-type]


def size(value: object) -> int:
    """Bytes, from an integer or a string such as `8GiB`."""
    if isinstance(value, int) and not isinstance(value, bool):
        return int(integer(1, 1 << 60)(value))
    if isinstance(value, str):
        found = _SIZE.fullmatch(value)
        if found is not None and found.group(2) in _UNIT_BYTES:
            return int(integer(1, 1 << 60)(int(found.group(1)) * _UNIT_BYTES[found.group(2)]))
        raise BadValue(f"{shorten(value)} is not a size", 'write a number and B, KiB, MiB, GiB or TiB: "8GiB"')
    raise BadValue(f"a size is needed here, not {type_name(value)}", 'write a number of bytes, or as "8GiB"')


# Checks of strings


def check_component(value: str) -> str:
    """The workspace's name: one path component."""
    check_text(value, "the name")
    if value in (".", "..") or "/" in value:
        raise BadValue(f"{shorten(value)} is not a single path component")
    if len(value.encode("utf-8", "surrogateescape")) > 255:
        raise BadValue("the name is longer than 255 bytes")
    return value


def check_entry_path(value: str) -> str:
    """The path of a mount entry, below the workspace's root."""
    check_relative(value, "the path")
    for part in value.split("/"):
        if part.lower() in _CONTROL_NAMES:
            raise BadValue(f"no entry can be mounted in {shorten(part)}", "choose another path")
    if value.split("/")[0] in _OWN_FILES:
        raise BadValue(f"an entry cannot take the place of {value.split('/')[0]}", "choose another path")
    return value


def check_label(value: str) -> str:
    """The name of a rule, a service or a peer."""
    if not _NAME.fullmatch(value):
        raise BadValue(f"{shorten(value)} cannot be a name here", "use 1 to 64 letters, digits, `.`, `_` and `-`")
    return value


def _check_subdir(value: str) -> str:
    return check_relative(value, "a subdirectory")


def _check_glob(value: str) -> str:
    return check_relative(value, "a pattern")


def _check_ignore(value: str) -> str:
    return check_text(value, "a pattern")


def _check_command(value: str) -> str:
    if not value.strip():
        raise BadValue("the command is empty")
    if "\0" in value:
        raise BadValue("the command has a NUL character")
    return value


def _check_sha256(value: str) -> str:
    if not re.fullmatch(r"[0-9A-Fa-f]{64}", value):
        raise BadValue(f"{shorten(value)} is not a SHA-256 digest", "write 64 hexadecimal digits")
    return value.lower()


def _check_peer_url(value: str) -> str:
    check_text(value, "a URL")
    scheme, mark, _ = value.partition("://")
    check_url(value, scheme if mark else "", ("ssh",))
    return value


def _check_peer_key(value: str) -> str:
    kind, _, rest = value.strip().partition(" ")
    blob = rest.split(" ")[0]
    try:
        decoded = base64.b64decode(blob, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if kind != "ssh-ed25519" or len(decoded) != 51 or not decoded.startswith(b"\0\0\0\x0bssh-ed25519\0\0\0 "):
        raise BadValue(f"{shorten(value)} is not an ed25519 public key", 'write it as "ssh-ed25519 AAAA..."')
    return f"{kind} {blob}"


def _one_of(*choices: str) -> Callable[[str], str]:
    read = choice(*choices)
    return lambda value: str(read(value))


# The schema

_SOURCED: tuple[Kind, ...] = ("git", "pypi", "npm", "archive")

MOUNT_KEYS: tuple[Key, ...] = (
    Key("local", "path", text(check_local), kinds=("local",), example='"../data"'),
    Key("git", "path or URL", text(check_git), kinds=("git",), example='"https://example.org/requests.git"'),
    Key("pypi", "`NAME==VERSION`", text(check_pypi), kinds=("pypi",), example='"six==1.16.0"'),
    Key("npm", "`NAME@VERSION`", text(check_npm), kinds=("npm",), example='"left-pad@1.3.0"'),
    Key("archive", "path or URL", text(check_archive), kinds=("archive",), example='"../zlib-1.3.1.tar.gz"'),
    Key("ref", "branch, tag or commit", text(check_ref), "the repository's HEAD", kinds=("git",), example='"main"'),
    Key("subdir", "path", text(_check_subdir), "the whole tree", kinds=_SOURCED, example='"src"'),
    Key("patches", "array of globs", texts(_check_glob), "`[]`", example='["patches/*.patch"]'),
    Key(
        "write",
        '`"through"`, `"overlay"` or `"none"`',
        choice("through", "overlay", "none"),
        '`"through"` for local, else `"overlay"`',
        example='"overlay"',
    ),
    Key("follow", "boolean", boolean, "`false`", kinds=("git",), example="true"),
    Key("git_dir", "boolean", boolean, "`true`", kinds=("git",), example="false"),
    Key(
        "blobs",
        '`"lazy"` or `"all"`',
        choice("lazy", "all"),
        '`"all"` for URLs with `git_dir`, else `"lazy"`',
        kinds=("git",),
        example='"lazy"',
    ),
    Key(
        "strip",
        "integer",
        integer(0, 100),
        "`1` if there is a single top directory, else `0`",
        kinds=("archive",),
        example="1",
    ),
    Key(
        "sha256",
        "64 hexadecimal digits",
        text(_check_sha256),
        "not checked",
        kinds=("archive",),
        example='"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"',
    ),
    Key("sdist", "boolean", boolean, "`false`", kinds=("pypi",), example="true"),
)

KEEP_KEYS: tuple[Key, ...] = (
    Key("all", "duration", duration(forever=True), '`"24h"`', example='"24h"'),
    Key("hourly", "duration", duration(forever=True), '`"30d"`', example='"30d"'),
    Key("daily", "duration", duration(forever=True), '`"1y"`', example='"1y"'),
    Key("yearly", "duration", duration(forever=True), '`"forever"`', example='"forever"'),
)

TABLES: Mapping[str, tuple[Key, ...]] = {
    "workspace": (
        Key("name", "string", text(check_component), "the directory's name", example='"shop"'),
        Key(
            "write",
            '`"through"`, `"overlay"` or `"none"`',
            choice("through", "overlay", "none"),
            '`"through"`',
            example='"overlay"',
        ),
    ),
    "mounts.PATH": MOUNT_KEYS,
    "rules.NAME": (
        Key("foreach", "glob", text(_check_glob), example='"proto/*.proto"'),
        Key("inputs", "array of globs", texts(_check_glob, least=1), example='["proto/**"]'),
        Key("outputs", "array of paths", texts(_check_glob, least=1), required=True, example='["gen/{stem}.py"]'),
        Key("run", "shell command", text(_check_command), required=True, example='"make gen"'),
        Key("mode", '`"eager"` or `"lazy"`', choice("eager", "lazy"), '`"eager"`', example='"lazy"'),
    ),
    "services.NAME": (
        Key("run", "shell command", text(_check_command), required=True, example='"make gen"'),
        Key("inputs", "array of globs", texts(_check_glob), "`[]`", example='["proto/**"]'),
    ),
    "sessions": (
        Key("record", "boolean", boolean, "`true`", example="false"),
        Key("exclude", "array of ignore patterns", texts(_check_ignore), "`[]`", example='["*.tmp"]'),
        Key("ignored", "boolean", boolean, "`false`", example="true"),
        Key("keep", "table", lambda value: value, "see below", example='{ all = "24h" }'),
        Key("gc", "boolean", boolean, "`true`", example="false"),
    ),
    "sessions.keep": KEEP_KEYS,
    "peers.NAME": (
        Key("url", "`ssh://HOST[:PORT]`", text(_check_peer_url), example='"ssh://desk.local:7420"'),
        Key(
            "key",
            "ed25519 public key",
            text(_check_peer_key),
            required=True,
            example='"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"',
        ),
        Key("allow", 'array of `"read"`, `"write"`', texts(_one_of("read", "write")), '`["read"]`', example='["read"]'),
    ),
    "reactor": (
        Key("enabled", "boolean", boolean, "`true`", example="false"),
        Key("jobs", "integer", integer(0, 1024), "`0`: one per CPU", example="2"),
    ),
    "limits": (
        Key("network_timeout", "duration", duration(at_least_s=1), '`"30s"`', example='"30s"'),
        Key("archive_size", "size", size, '`"8GiB"`', example='"8GiB"'),
        Key("archive_files", "integer", integer(1, 1 << 31), "`1000000`", example="1000000"),
        Key("archive_ratio", "integer", integer(1, 1 << 31), "`1000`", example="1000"),
    ),
}
