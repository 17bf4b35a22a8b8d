"""Where HEAD of a private gitdir is, read from its files without starting git (gitrepository-layout(5)).

A private gitdir keeps refs in files, as git makes it. One whose user chose another format has no answer here.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

_HEX = re.compile(rb"[0-9a-f]{40}")
_BRANCH = re.compile(rb"ref: (refs/heads/[^\0\n]+)")
_PACKED = "packed-refs"

Facts = tuple[int, int, int, int]
"""(inode, size, mtime, ctime) of a file: what changes when it is written."""


class Head(NamedTuple):
    """HEAD, and the commit that it stands for."""

    text: bytes
    """The content of HEAD."""
    ref: str
    """The file that says the commit, below the gitdir: `refs/heads/main`, or `HEAD` when it is detached."""
    commit: bytes | None
    """None where there is none yet."""
    packed: Facts | None
    """The facts of packed-refs, where the commit is said there."""


def read_head(gitdir: str) -> Head | None:
    """HEAD as the files say it; None where they do not."""
    try:
        text = _read(os.path.join(gitdir, "HEAD"))
        if _HEX.fullmatch(text):
            return Head(text, "HEAD", bytes.fromhex(text.decode()), None)
        match = _BRANCH.fullmatch(text)
        if match is None or b".." in match[1] or os.path.isdir(os.path.join(gitdir, "reftable")):
            return None
        ref = os.fsdecode(match[1])
        try:
            oid = _read(os.path.join(gitdir, ref))
            return Head(text, ref, bytes.fromhex(oid.decode()), None) if _HEX.fullmatch(oid) else None
        except (FileNotFoundError, IsADirectoryError):
            packed = facts(os.path.join(gitdir, _PACKED))
            return Head(text, ref, _packed_value(gitdir, match[1]), packed)
    except OSError:
        return None


def is_still(gitdir: str, head: Head) -> bool:
    """Whether HEAD is where it was. Reads no long file: for the loop."""
    try:
        if _read(os.path.join(gitdir, "HEAD")) != head.text:
            return False
        if head.ref == "HEAD":
            return True
        try:
            oid = _read(os.path.join(gitdir, head.ref))
        except (FileNotFoundError, IsADirectoryError):
            return (head.packed is not None or head.commit is None) and facts(
                os.path.join(gitdir, _PACKED)
            ) == head.packed
        return head.packed is None and head.commit is not None and oid == head.commit.hex().encode()
    except OSError:
        return False


def facts(path: str) -> Facts | None:
    """What tells that *path* was written to; None where there is no such file."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _packed_value(gitdir: str, ref: bytes) -> bytes | None:
    try:
        with open(os.path.join(gitdir, _PACKED), "rb") as file:
            before, found, _ = (b"\n" + file.read()).partition(b" " + ref + b"\n")
    except FileNotFoundError:
        return None
    oid = before[-40:]
    return bytes.fromhex(oid.decode()) if found and _HEX.fullmatch(oid) else None


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096).strip()
