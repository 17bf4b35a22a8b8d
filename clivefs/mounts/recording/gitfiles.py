"""Small files that say what git would ignore: `.gitignore`, and the index and `info/exclude` of a part's git directory.

A `.git` that is a file leads elsewhere, in a linked worktree or a submodule (gitrepository-layout(5)). It is followed
with care: it may lead into a mount of ours, and a thread of the daemon must not wait for that.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress

from clivefs.mounts.recording.ignore import FILE_BYTES_MAX
from clivefs.mounts.recording.parts import HostLower, Part
from clivefs.mounts.resolve import open_resolved

_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DOT_GIT = b".git"
_SHARED = (b"info/exclude",)
"""What all worktrees of a repository have in common."""


def open_git_file(part: Part, path: str | None, name: bytes) -> int | None:
    """A descriptor of a file of the part's git directory: at *path*, or *name* in the one that `.git` is or leads to;
    None where there is none. OSError."""
    if path is not None:
        return os.open(path, _READ_FLAGS)
    tops = [part.upper.fd] if part.upper is not None else []
    if isinstance(part.lower, HostLower):
        tops.append(part.lower.fd)
    for top in tops:
        with suppress(OSError):
            return _in_git_directory(top, name)
    return None


def _in_git_directory(top: int, name: bytes) -> int:
    fd = os.open(_DOT_GIT, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            fd = -1
            fd = _led_to(top, name)
        return os.open(name, _READ_FLAGS, dir_fd=fd)
    finally:
        if fd >= 0:
            os.close(fd)


def _led_to(top: int, name: bytes) -> int:
    """The directory, of those that the file `.git` in *top* leads to, that *name* is in."""
    text = read_small(top, _DOT_GIT) or b""
    if not text.startswith(b"gitdir: "):
        raise OSError(errno.EINVAL, "this `.git` file leads to no repository")
    own = os.path.join(os.readlink(f"/proc/self/fd/{top}"), _path_in(text.removeprefix(b"gitdir: ")))
    fd = open_resolved(own)
    common = read_small(fd, b"commondir") if name in _SHARED else None
    if common is None:
        return fd
    os.close(fd)
    return open_resolved(os.path.join(own, _path_in(common)))


def _path_in(text: bytes) -> str:
    return os.fsdecode(text.rstrip(b"\r\n"))


def read_small(dir_fd: int, name: bytes) -> bytes | None:
    """What the plain file *name* says, up to `FILE_BYTES_MAX`; None where there is none. OSError."""
    try:
        fd = os.open(name, _READ_FLAGS, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        return read_plain(fd)
    finally:
        os.close(fd)


def read_plain(fd: int) -> bytes | None:
    """The same of an open file; None where it is no plain file."""
    return os.pread(fd, FILE_BYTES_MAX, 0) if stat.S_ISREG(os.fstat(fd).st_mode) else None
