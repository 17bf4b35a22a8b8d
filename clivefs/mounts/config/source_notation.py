"""Where a mount entry's content comes from, and how that is written on one line.

    git+URL[@REF][#subdir=D]     pypi:NAME==V[#sdist]     npm:NAME@V     archive:URL-or-path     a local path

Owned here: the one-line notation in both directions, and which locations git may be given at all. How
`@REF` is told from the rest of the location: it begins at the first `@` of the location's path that does
not begin a component of it. The path is what follows the host (`scheme://host/`) or the first colon
(`user@host:`); a plain path is all path. So the `@` of `git@host:x` and of `host/@scope/x` are parts of the
location, and a ref may hold `/` and `@` (`@scope/tool@1.0.0`). An `@` or `#` that belongs to the location is
written `%40`, `%23`. A URL as location is kept as it is written; in a plain path these two (and `%25`) are
decoded.
"""

from __future__ import annotations

import os
import re
from typing import Literal, NamedTuple, get_args
from urllib.parse import unquote, urlsplit

from clivefs.base.errors import UsageError
from clivefs.mounts.config.errors import BadValue, nearest, shorten

Kind = Literal["local", "git", "pypi", "npm", "archive"]
KINDS: tuple[Kind, ...] = get_args(Kind)

GIT_SCHEMES = ("https", "http", "ssh", "git", "file")
"""Transports that git is asked to use. Others (`ext::`, `fd::`, remote helpers) can run commands."""
ARCHIVE_SCHEMES = ("https", "http", "file")

COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.-]*::")
_SCP = re.compile(r"(?:[^/:@]+@)?(?:\[[^/\]]+\]|[^/:\[]+):(?!:)")
_USER_AT_HOST = re.compile(r"[^/:@]+@[^/:@]+:")
_NOT_A_PATH = re.compile(rf"git\+|[A-Za-z][A-Za-z0-9+]*:|{_USER_AT_HOST.pattern}")
"""What a local path must not begin with where it stands for a source; `./` goes before it."""
_GUESSES = {"pip": "pypi:", "tar": "archive:", "zip": "archive:"}
_AT = re.compile(r"(?<=[^/])@")
_ESCAPED = re.compile(r"%(?:40|23|25)")
_ESCAPED_MARK = re.compile(r"%(?=40|23|25)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REF_BAD = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|$)")
_STEPS = re.compile(r"(?:~\d*|\^\d*|\^\{[^{}\x00-\x1f\x7f]*\}|@\{[^{}\x00-\x1f\x7f]+\})+\Z")
"""What follows a name in a revision: `main~3`, `v1^{commit}`, `main@{yesterday}`."""
_PYPI = re.compile(r"([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)\s*==\s*([A-Za-z0-9][A-Za-z0-9.!+_-]*)")
_NPM = re.compile(r"(@[a-z0-9~-][a-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*@[0-9][A-Za-z0-9.+-]*")
_SDIST = "#sdist"
_LOCATION_BYTES_MAX = 4096

_SOURCE_REMEDY = (
    "write git+URL[@REF][#subdir=D], pypi:NAME==V[#sdist], npm:NAME@V, archive:URL-or-path, or a local path"
)


class Source(NamedTuple):
    """A source as a person named it, checked for form only."""

    kind: Kind
    location: str
    """A path as written (relative to the workspace's root), a URL, or `NAME==V`, `NAME@V`."""
    ref: str | None = None
    subdir: str | None = None
    sdist: bool = False
    """pypi: never a wheel."""

    def keys(self) -> dict[str, str | bool]:
        """The keys of `Clive.toml` that say the same."""
        keys: dict[str, str | bool] = {self.kind: self.location}
        if self.ref is not None:
            keys["ref"] = self.ref
        if self.subdir is not None:
            keys["subdir"] = self.subdir
        if self.sdist:
            keys["sdist"] = True
        return keys

    def __str__(self) -> str:
        return format_source(self)


# Reading


def parse_source(text: str, *, ref: str | None = None) -> Source:
    """The source that *text* writes; a *ref* given separately wins over one in *text*. UsageError otherwise."""
    try:
        source = _parse(text)
        if ref is not None:
            if source.kind != "git":
                raise BadValue(f"a ref belongs to a git source, and {shorten(text)} is none", "leave --ref out")
            source = source._replace(ref=check_ref(ref))
        return source
    except BadValue as error:
        raise UsageError(error.message, place="SOURCE", remedy=error.remedy or _SOURCE_REMEDY) from None


def _parse(text: str) -> Source:
    if text.startswith("git+"):
        return _parse_git(text[4:])
    prefix, colon, rest = text.partition(":")
    if colon and prefix == "pypi":
        release = rest.removesuffix(_SDIST)
        return Source("pypi", check_pypi(release), sdist=release != rest)
    if colon and prefix == "npm":
        return Source("npm", check_npm(rest))
    if colon and prefix == "archive":
        rest, subdir = _split_subdir(rest)
        rest = _no_fragment(rest)
        return Source("archive", check_archive(rest if _URL.match(rest) else _decoded(rest)), None, subdir)
    if colon and prefix in ("session", "peer"):
        raise BadValue(f"{prefix} sources are not built yet", _SOURCE_REMEDY)
    if _URL.match(text):
        raise BadValue(f"{shorten(text)} may be a repository or an archive", f"write git+{text} or archive:{text}")
    if _USER_AT_HOST.match(text):
        raise BadValue(f"{shorten(text)} looks like a repository", f"write git+{text}, or ./{text} for a path")
    if colon and re.fullmatch(r"[A-Za-z][A-Za-z0-9+]*", prefix):
        near = _GUESSES.get(prefix) or nearest(prefix, ("pypi:", "npm:", "archive:", "git+"))
        hint = f"did you mean `{near}`? " if near else ""
        raise BadValue(f"there is no kind of source called {shorten(prefix)}", f"{hint}For a path write ./{text}")
    return Source("local", check_local(text))


def _parse_git(text: str) -> Source:
    text, subdir = _split_subdir(text)
    start = _path_start(text)
    at = _AT.search(text[start:])
    ref = None
    if at is not None:
        text, ref = text[: start + at.start()], check_ref(text[start + at.end() :])
    text = _no_fragment(text)
    return Source("git", check_git(text if _is_remote(text) else _decoded(text)), ref, subdir)


def _decoded(path: str) -> str:
    return _ESCAPED.sub(lambda found: unquote(found.group()), path)


def _split_subdir(text: str) -> tuple[str, str | None]:
    text, mark, subdir = text.partition("#subdir=")
    return text, check_relative(subdir, "a subdirectory") if mark else None


def _no_fragment(location: str) -> str:
    before, mark, fragment = location.partition("#")
    if mark:
        raise BadValue(f"#{shorten(fragment)[1:-1]} is not understood", "only #subdir=D can follow; write # as %23")
    return before


def _path_start(text: str) -> int:
    """Where the path of a git location begins."""
    url = _URL.match(text)
    if url is not None:
        slash = text.find("/", url.end())
        return slash if slash >= 0 else len(text)
    scp = _SCP.match(text)
    return scp.end() if scp is not None else 0


def _is_remote(text: str) -> bool:
    return _path_start(text) > 0


# Writing


def format_source(source: Source) -> str:
    """*source* in the one-line notation; `parse_source` reads it back."""
    location = source.location
    if source.kind == "local":
        return f"./{location}" if _NOT_A_PATH.match(location) else location
    if source.kind == "archive":
        text = "archive:" + (location if _URL.match(location) else _ESCAPED_MARK.sub("%25", location)).replace(
            "#", "%23"
        )
    elif source.kind == "git":
        text = "git+" + _escaped(location)
        if source.ref is not None:
            text = f"{text.rstrip('/')}@{source.ref}"
    else:
        return f"{source.kind}:{location}{_SDIST if source.sdist else ''}"
    return f"{text}#subdir={source.subdir}" if source.subdir is not None else text


def _escaped(location: str) -> str:
    start = _path_start(location)
    host, path = location[:start], location[start:]
    if not start:
        path = _ESCAPED_MARK.sub("%25", path)
    return host + _AT.sub("%40", path).replace("#", "%23")


# What each kind accepts; all raise BadValue


def check_text(text: str, what: str) -> str:
    """A string for a person's eyes and for system calls: not empty, no control characters, bounded."""
    if not text.strip():
        raise BadValue(f"{what} is empty")
    if _CONTROL.search(text):
        raise BadValue(f"{what} has a control character: {shorten(text)}")
    if len(text.encode("utf-8", "surrogateescape")) > _LOCATION_BYTES_MAX:
        raise BadValue(f"{what} is longer than {_LOCATION_BYTES_MAX} bytes")
    return text


def check_relative(text: str, what: str) -> str:
    """A normal path that stays inside: relative, no `..`, no `//`, components of at most 255 bytes."""
    check_text(text, what)
    if text.startswith("/"):
        raise BadValue(f"{what} must be relative, not {shorten(text)}", "remove the leading slash")
    parts = text.split("/")
    if ".." in parts:
        raise BadValue(f"{what} must not leave by `..`: {shorten(text)}")
    normal = "/".join(part for part in parts if part not in ("", "."))
    if normal != text:
        raise BadValue(f"{what} is not in its shortest form: {shorten(text)}", f'write "{normal}"' if normal else "")
    for part in parts:
        if len(part.encode("utf-8", "surrogateescape")) > 255:
            raise BadValue(f"{what} has a component of more than 255 bytes: {shorten(part)}")
    return text


def _check_path(text: str, what: str) -> str:
    check_text(text, what)
    if text == "~" or text.startswith("~/"):
        raise BadValue("`~` is not expanded here", "write an absolute path, or ./~ for a directory of that name")
    named = False
    for part in text.split("/"):
        named = named or part not in ("", ".", "..")
        if part == ".." and named:
            raise BadValue(f"`..` after a name in {shorten(text)}", f'write "{os.path.normpath(text)}"')
        if len(part.encode("utf-8", "surrogateescape")) > 255:
            raise BadValue(f"{what} has a component of more than 255 bytes: {shorten(part)}")
    return text


def check_local(text: str) -> str:
    """A path of this machine, relative to the workspace's root or absolute."""
    if _URL.match(text):
        raise BadValue(f"{shorten(text)} is a URL, not a path", "use `git` or `archive` for it")
    return _check_path(text, "a local path")


def check_git(text: str) -> str:
    """A repository that git can be asked for: a path, a URL of a known transport, or host:path."""
    check_text(text, "a repository")
    if text.startswith("-"):
        raise BadValue(f"a repository cannot begin with `-`: {shorten(text)}", "write ./ before it")
    if "#" in text[: _path_start(text)]:
        raise BadValue(f"{shorten(text)} names no host", "write ./ before it for a path")
    if _HELPER.match(text):
        raise BadValue(f"git's remote helpers are not used: {shorten(text)}", _transports(GIT_SCHEMES))
    url = _URL.match(text)
    if url is not None:
        check_url(text, url.group(1), GIT_SCHEMES)
    elif (scp := _SCP.match(text)) is not None:
        host = scp.group()[:-1].rpartition("@")[2]
        if host.startswith("-") or not host or not text[scp.end() :]:
            raise BadValue(f"{shorten(text)} names no repository of a host", "write user@host:path, or ./ for a path")
    else:
        _check_path(text, "a repository")
    return text


def check_url(text: str, scheme: str, schemes: tuple[str, ...]) -> None:
    if scheme.lower() not in schemes:
        raise BadValue(f"{shorten(scheme + '://')} is not a transport that is used here", _transports(schemes))
    try:
        parts = urlsplit(text)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BadValue(f"{shorten(text)} is not a URL: {error}") from None
    if scheme.lower() == "file":
        if host not in (None, "localhost") or not parts.path.startswith("/") or "\0" in unquote(parts.path):
            raise BadValue(f"{shorten(text)} names no file of this machine", "write file:///path")
    elif not host or host.startswith("-") or (parts.username or "").startswith("-"):
        raise BadValue(f"{shorten(text)} names no host")


def _transports(schemes: tuple[str, ...]) -> str:
    return f"use a path or {', '.join(scheme + '://' for scheme in schemes)}"


def check_archive(text: str) -> str:
    """A path or URL of an archive."""
    check_text(text, "an archive")
    url = _URL.match(text)
    if url is not None:
        check_url(text, url.group(1), ARCHIVE_SCHEMES)
        return text
    return _check_path(text, "an archive")


def check_pypi(text: str) -> str:
    """`NAME==VERSION`."""
    found = _PYPI.fullmatch(text.strip())
    if found is None:
        raise BadValue(f"{shorten(text)} is not NAME==VERSION", 'pin one release, as in "six==1.16.0"')
    return f"{found.group(1)}=={found.group(2)}"


def check_npm(text: str) -> str:
    """`NAME@VERSION` or `@SCOPE/NAME@VERSION`."""
    if _NPM.fullmatch(text) is None or len(text) > 300:
        raise BadValue(f"{shorten(text)} is not NAME@VERSION", 'pin one release, as in "left-pad@1.3.0"')
    return text


def check_ref(text: str) -> str:
    """A branch, tag or commit (git's check-ref-format, and nothing that git would take for an option), or another
    revision that begins with one (gitrevisions(7))."""
    if not text or len(text.encode("utf-8", "surrogateescape")) > 1024:
        raise BadValue(f"{shorten(text)} is not a ref", "name a branch, a tag or a commit")
    steps = _STEPS.search(text)
    name = text[: steps.start()] if steps is not None else text
    if name == "@" or (not name and text.startswith("@")):
        return text
    bad = _REF_BAD.search(name)
    if bad or not name or name.startswith(("-", "/", ".")) or name.endswith(("/", ".")):
        why = f"has {shorten(bad.group())}" if bad else "begins or ends wrongly"
        raise BadValue(f"{shorten(text)} is not a ref: it {why}", "name a branch, a tag or a commit")
    return text


def host_path(source: Source, root: str) -> str | None:
    """The absolute path of what *source* names on this machine, links not followed; None where it is remote."""
    if source.kind == "local":
        path = source.location
    elif source.kind in ("git", "archive"):
        url = _URL.match(source.location)
        if url is not None:
            if url.group(1).lower() != "file":
                return None
            path = unquote(urlsplit(source.location).path, errors="surrogateescape")
        elif source.kind == "git" and _is_remote(source.location):
            return None
        else:
            path = source.location
    else:
        return None
    return "/" + os.path.normpath(os.path.join(root, path)).lstrip("/")


def anchor(source: Source, directory: str, root: str) -> Source:
    """*source*, which a person in *directory* named, as a workspace at *root* says it: a relative path becomes
    relative to *root*. Both are absolute and without links."""
    if source.kind not in ("local", "git", "archive") or os.path.isabs(source.location):
        return source
    path = host_path(source, directory)
    if path is None or _URL.match(source.location):
        return source
    relative = os.path.relpath(path, root)
    return source._replace(location=f"./{relative}" if ":" in relative or relative[0] in "-~" else relative)
