"""Where a repository is: which texts are URLs and which are paths.

As git reads them (git-clone(1), GIT URLS), but for remote helpers (`transport::address`), which run a
program of the location's choice and are refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.command import check_argument

_ALTERNATES_DEPTH = 5
_ALTERNATES_BYTES_MAX = 1 << 20
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_SCHEMES = frozenset(("https", "http", "ssh", "git", "file", "git+ssh", "ssh+git"))
_SCP_LIKE = re.compile(r"(?:[^/:@]+@)?(?:\[[^/\]]+\]|[^/:\[]+):.*")


@dataclass(frozen=True, slots=True)
class Location:
    """A URL that is fetched, or the absolute path of a repository that is used in place."""

    given: str
    url: str | None
    path: str | None

    @property
    def remote(self) -> str:
        """What `remote.origin.url` of a clone would be."""
        return self.url if self.url is not None else self.path or ""


def parse_location(text: str, base_dir: str) -> Location:
    """Read *text* as git does; a relative path is completed by *base_dir*. ClivefsError."""
    check_argument(text, "a git repository")
    scheme = _SCHEME.match(text)
    if scheme is not None:
        if scheme[1].lower() not in _SCHEMES:
            raise _refused(text, f"{scheme[1]} is not a transport that can be used")
        if text[scheme.end() :].split("/")[0].rpartition("@")[2].startswith("-"):
            raise _refused(text, "the host name begins with `-`")
        return Location(text, text, None)
    if "::" in text.split("/")[0] and "[" not in text:
        raise _refused(text, "remote helpers are not used")
    if _SCP_LIKE.fullmatch(text) and not text.startswith((".", "/")):
        if text.split(":")[0].rpartition("@")[2].startswith("-"):
            raise _refused(text, "the host name begins with `-`")
        return Location(text, text, None)
    return Location(text, None, os.path.normpath(os.path.join(base_dir, text)))


def borrowed(objects: str) -> list[str]:
    """The objects directories that the one at *objects* borrows from, directly or not (gitrepository-layout(5),
    objects/info/alternates). Reads as git does, five deep; what cannot be read is left out."""
    found: dict[str, None] = {}
    newest = [objects]
    for _ in range(_ALTERNATES_DEPTH):
        lines: list[tuple[str, str]] = []
        for directory in newest:
            path = os.path.join(directory, "info", "alternates")
            if not os.path.isfile(path):
                continue
            try:
                with open(path, "rb") as file:
                    text = os.fsdecode(file.read(_ALTERNATES_BYTES_MAX))
            except OSError:
                continue
            lines += [(directory, line) for line in text.splitlines() if line and not line.startswith("#")]
        newest = [os.path.normpath(os.path.join(directory, line.strip('"'))) for directory, line in lines]
        newest = [each for each in dict.fromkeys(newest) if each not in found]
        found.update(dict.fromkeys(newest))
    return list(found)


def relative_to(text: str, parent: str) -> str:
    """The URL of a submodule that its superproject, cloned from *parent*, gives as `./x` or `../x`
    (gitsubmodules(7)); any other *text* as it is."""
    if not text.startswith(("./", "../")):
        return text
    base = parent.rstrip("/")
    while text.startswith(("./", "../")):
        if text.startswith("../"):
            head, slash, _ = base.rpartition("/")
            if not slash:
                head, slash, _ = base.rpartition(":")
                base = head + slash if slash else base
                return base + text[3:]
            base = head
            text = text[3:]
        else:
            text = text[2:]
    return f"{base}/{text}"


def _refused(text: str, why: str) -> ClivefsError:
    return ClivefsError(why, place=text, remedy="Use an https, ssh, git or file URL, or a path.")
