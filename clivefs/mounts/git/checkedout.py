"""The submodules of a checkout that are working trees: those that `git submodule update` has made."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.objects.errors import RepositoryError
from clivefs.objects.gitdirs import find_gitdir

DEPTH_MAX = 8
_MODULES = ".gitmodules"
_MODULES_BYTES_MAX = 1 << 20


def submodules(root: str, *, git: GitCommand | None = None) -> dict[str, str]:
    """The gitdirs of the submodules of the working tree *root*, and of theirs, by path below it. What cannot be read is
    left out, and so is what lies behind a symlink. For threads."""
    found: dict[str, str] = {}
    waiting = [("", 1)]
    while waiting:
        within, depth = waiting.pop()
        for path in _paths(os.path.join(root, within), git or GitCommand()):
            below = os.path.join(within, path)
            gitdir = _gitdir(root, below)
            if gitdir is not None and below not in found:
                found[below] = gitdir
                if depth < DEPTH_MAX:
                    waiting.append((below, depth + 1))
    return found


def _paths(top: str, git: GitCommand) -> Iterator[str]:
    """What the `.gitmodules` of the working tree *top* says."""
    try:
        fd = os.open(os.path.join(top, _MODULES), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            text = file.read(_MODULES_BYTES_MAX) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        listed = (
            git.run(["config", "--no-includes", "-z", "--file", "-", "--list"], stdin=text, cwd="/") if text else b""
        )
    except (OSError, GitFailed):
        return
    for item in os.fsdecode(listed).split("\0"):
        key, _, value = item.partition("\n")
        if key.startswith("submodule.") and key.endswith(".path") and value:
            path = value.strip("/")
            if {"", ".", "..", ".git"}.isdisjoint(path.split("/")):
                yield path


def _gitdir(root: str, path: str) -> str | None:
    at = root
    try:
        for name in (*path.split("/"), ".git"):
            at = os.path.join(at, name)
            if stat.S_ISLNK(os.lstat(at).st_mode):
                return None
        return find_gitdir(os.path.dirname(at))[0]
    except (OSError, RepositoryError):
        return None
