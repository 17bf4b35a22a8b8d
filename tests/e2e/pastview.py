"""What a tree shows, to compare a live workspace with its past."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any


def shown(top: Path, *, ignored: Callable[[bytes], bool] = lambda path: False) -> dict[bytes, Any]:
    """Everything below *top* but `.git`: path -> (kind, permissions, content, mtime, attributes, other names of it).

    Of a directory neither time nor size count: its time changes with every name, and is recorded with the next point.
    """
    found: dict[bytes, Any] = {}
    groups: dict[int, list[bytes]] = {}
    _walk(os.fsencode(top), b"", found, groups, ignored)
    for paths in groups.values():
        for path in paths:
            found[path] = (*found[path], tuple(sorted(paths)))
    return found


def _walk(
    top: bytes, path: bytes, found: dict[bytes, Any], groups: dict[int, list[bytes]], ignored: Callable[[bytes], bool]
) -> None:
    here = os.path.join(top, path) if path else top
    for name in os.listdir(here):
        below = path + b"/" + name if path else name
        if name == b".git" or ignored(below):
            continue
        full = os.path.join(top, below)
        st = os.lstat(full)
        kind = stat.S_IFMT(st.st_mode)
        attributes = _attributes(full) if kind in (stat.S_IFREG, stat.S_IFDIR) else ()
        if kind == stat.S_IFDIR:
            found[below] = (kind, stat.S_IMODE(st.st_mode), None, None, attributes)
            _walk(top, below, found, groups, ignored)
            continue
        content: Any = None
        if kind == stat.S_IFREG:
            with open(full, "rb") as file:
                content = hashlib.file_digest(file, "sha1").hexdigest()
        elif kind == stat.S_IFLNK:
            content = os.readlink(full)
        found[below] = (kind, stat.S_IMODE(st.st_mode), content, st.st_mtime_ns, attributes)
        if st.st_nlink > 1:
            groups.setdefault(st.st_ino, []).append(below)


def _attributes(path: bytes) -> tuple[tuple[str, bytes], ...]:
    names = [name for name in os.listxattr(path, follow_symlinks=False) if name.startswith("user.")]
    return tuple(sorted((name, os.getxattr(path, name, follow_symlinks=False)) for name in names))
