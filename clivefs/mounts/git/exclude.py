"""Telling the git repository around a workspace to leave a mount entry alone.

A mount entry stands in the workspace's directory only while it is mounted. Without this, `git status` of the
enclosing repository would call it untracked and `git clean` would empty it.
"""

from __future__ import annotations

import contextlib
import os

from clivefs.objects.errors import RepositoryError
from clivefs.objects.gitdirs import find_gitdir

_SPECIAL = b"\\*?[]!# "


def exclude(root: str, path: str) -> str | None:
    """Add the entry *path* of the workspace *root* to `info/exclude` of the repository around it; the file that
    was changed, None where there is no repository or the line was there. OSError when it cannot be written."""
    found = _enclosing(root)
    if found is None:
        return None
    work_tree, common = found
    relative = os.path.relpath(os.path.join(root, path), work_tree)
    line = b"/" + _escaped(os.fsencode(relative)) + b"\n"
    info = os.path.join(common, "info")
    file = os.path.join(info, "exclude")
    with contextlib.suppress(FileExistsError):
        os.mkdir(info, 0o755)
    # The mode is said here: the daemon's umask is 0.
    with open(file, "a+b", opener=lambda name, flags: os.open(name, flags | os.O_CLOEXEC, 0o644)) as opened:
        opened.seek(0)
        lines = opened.read()
        if line in lines.splitlines(keepends=True):
            return None
        opened.write((b"" if not lines or lines.endswith(b"\n") else b"\n") + line)
    return file


def _enclosing(root: str) -> tuple[str, str] | None:
    """(work tree, common directory) of the repository that *root* is in."""
    at = root
    while True:
        if os.path.lexists(os.path.join(at, ".git")):
            try:
                return at, find_gitdir(at)[1]
            except (RepositoryError, OSError):
                return None
        above = os.path.dirname(at)
        if above == at:
            return None
        at = above


def _escaped(path: bytes) -> bytes:
    """A path as a pattern of gitignore(5) that means it literally."""
    return b"".join(b"\\" + bytes([byte]) if byte in _SPECIAL else bytes([byte]) for byte in path)
