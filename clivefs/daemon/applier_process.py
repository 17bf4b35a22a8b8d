"""The applier: does through the mount what has happened behind the kernel's back (see `clivefs.daemon.applier`).

A program of its own, started by its path without any of our packages, so that it is there in a few milliseconds. It
must not be a thread of the daemon: one that waits for the daemon's own mount cannot be killed, and then neither can the
mount. While it waits for work it holds no descriptor of the mount, so that nothing keeps that from being taken away.

Messages are JSON, one a line; bytes are written as Latin-1.

    {"scan": DEVICE, "not": [PID, ...]}     -> {"watched": [INODE, ...] or null for "anything may be"}
    {"root": PATH, "device": MINOR, "acts": [...]}           -> {"failed": [[INDEX, ERRNO], ...]}
    {"root": PATH, "device": MINOR, "stranded": [[COMPONENT, ...], ...]}  -> {"failed": []}

An act is `[WHAT, [COMPONENT, ...], NAME, ...]`: `make` + kind, `remove` + kind, `move` + components and name of the new
place and, if it is new content for that place, what `modify` has; `modify` + whether it may be opened for writing,
`attr`, `folder`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import stat
import sys
from typing import Any

_libc = ctypes.CDLL(None, use_errno=True)
_UTIME_OMIT = (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_WATCHES = ("anon_inode:inotify", "anon_inode:[fanotify]")
_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_Times = _Timespec * 2
_CONTENT = _Times(_Timespec(0, _UTIME_OMIT), _Timespec(1, 0))
"""Its mtime alone: told as a change of content."""
_ATTRIBUTES = _Times(_Timespec(1, 0), _Timespec(1, 0))
_libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(_Timespec), ctypes.c_int]


def _touch(dir_fd: int, name: bytes, times: ctypes.Array[_Timespec]) -> None:
    if _libc.utimensat(dir_fd, name, times, _AT_SYMLINK_NOFOLLOW) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)


class _Directories:
    """Descriptors of directories in the mount, reached one component after the other."""

    def __init__(self, root: bytes, device: int) -> None:
        self._root = os.open(root, _PATH | os.O_DIRECTORY)
        self._device = os.fstat(self._root).st_dev
        if os.major(self._device) or os.minor(self._device) != device:
            os.close(self._root)
            raise OSError(errno.ENODEV, "it is not mounted any more")
        self._path: list[bytes] | None = None
        self._fd = -1

    def open(self, components: list[bytes]) -> int:
        """A descriptor of a directory, the caller's to close."""
        fd = os.dup(self._root)
        for each in components:
            below = os.open(each, _PATH | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        if os.fstat(fd).st_dev != self._device:  # something else is mounted there
            os.close(fd)
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return fd

    def at(self, components: list[bytes]) -> int:
        """A descriptor, kept while the same directory is asked for."""
        if self._path != components:
            self._drop()
            self._fd = self.open(components)
            self._path = components
        return self._fd

    def _drop(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._path, self._fd = None, -1

    def close(self) -> None:
        self._drop()
        os.close(self._root)


def _make(fd: int, name: bytes, kind: int) -> None:
    if kind == stat.S_IFDIR:
        os.mkdir(name, 0o700, dir_fd=fd)
    elif kind == stat.S_IFLNK:
        os.symlink(b"clivefs", name, dir_fd=fd)
    else:
        os.mknod(name, kind | 0o600, 0, dir_fd=fd)


def _remove(fd: int, name: bytes, kind: int) -> None:
    if kind == stat.S_IFDIR:
        os.rmdir(name, dir_fd=fd)
    else:
        os.unlink(name, dir_fd=fd)


def _modify(fd: int, name: bytes, opening: bool) -> None:
    try:
        _touch(fd, name, _CONTENT)
    except PermissionError:
        opening = True  # not ours: to be opened is all that we may do to it
    if not opening:
        return
    flags = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
    try:
        os.close(os.open(name, os.O_WRONLY | flags, dir_fd=fd))
    except PermissionError:
        os.close(os.open(name, os.O_RDONLY | flags, dir_fd=fd))
    except OSError:
        pass  # a program that runs; its time has been told of


def _act(directories: _Directories, what: str, components: list[bytes], name: bytes, *more: Any) -> None:
    fd = directories.at(components)
    if what == "make":
        _make(fd, name, more[0])
        if more[0] == stat.S_IFREG:
            _modify(fd, name, more[1])
    elif what == "remove":
        _remove(fd, name, more[0])
    elif what == "move":
        target = directories.open([_bytes(each) for each in more[0]])
        try:
            os.rename(name, _bytes(more[1]), src_dir_fd=fd, dst_dir_fd=target)
            if len(more) > 2:
                _modify(target, _bytes(more[1]), more[2])
        finally:
            os.close(target)
    elif what == "modify":
        _modify(fd, name, more[0])
    elif what == "attr":
        _touch(fd, name, _ATTRIBUTES)
    elif what == "folder":
        _folder(directories, components)


def _folder(directories: _Directories, components: list[bytes]) -> None:
    """At least one event on a directory."""
    try:
        _touch(directories.at(components), b".", _ATTRIBUTES)
    except OSError:
        os.close(os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directories.at(components)))


def _bytes(text: str) -> bytes:
    return text.encode("latin-1")


def _acts(root: str, device: int, acts: list[Any]) -> list[tuple[int, int]]:
    failed: list[tuple[int, int]] = []
    directories = _Directories(_bytes(root), device)
    try:
        for index, (what, components, name, *more) in enumerate(acts):
            place = [_bytes(each) for each in components]
            try:
                _act(directories, what, place, _bytes(name), *more)
            except OSError as error:
                failed.append((index, error.errno or errno.EIO))
    finally:
        directories.close()
    return failed


def _put_back(root: str, device: int, places: list[list[str]]) -> None:
    """Look up the directories *places*, for those who work in them."""
    directories = _Directories(_bytes(root), device)
    try:
        for place in places:
            with contextlib.suppress(OSError):  # it is gone in fact
                os.close(directories.open([_bytes(each) for each in place]))
    finally:
        directories.close()


def _watched(device: int, strangers: set[int]) -> list[int] | None:
    """The inodes of *device* that a process watches; None where one watches a whole mount or filesystem."""
    found: set[int] = set()
    for pid in os.listdir("/proc"):
        if not pid.isdigit() or int(pid) in strangers:
            continue
        directory = f"/proc/{pid}/fd"
        try:
            names = os.listdir(directory)
        except OSError:
            continue  # it ended, or is another user's
        for name in names:
            try:
                if os.readlink(f"{directory}/{name}") not in _WATCHES:
                    continue
                with open(f"/proc/{pid}/fdinfo/{name}") as file:
                    marks = [_mark(line) for line in file if line.startswith(("inotify ", "fanotify "))]
            except (OSError, ValueError):
                continue  # closed meanwhile
            if any(inode is None and of in (None, device) for inode, of in marks):
                return None
            found.update(inode for inode, of in marks if inode is not None and of == device)
    return sorted(found)


def _mark(line: str) -> tuple[int | None, int | None]:
    """(inode, device) of a line of fdinfo (proc(5)); an inode of None stands for all. The first line of a fanotify
    descriptor has neither: inode -1."""
    facts = dict(each.split(":", 1) for each in line.split() if ":" in each)
    if "ino" in facts:
        return int(facts["ino"], 16), int(facts["sdev"], 16)
    if "sdev" in facts:
        return None, int(facts["sdev"], 16)
    return (None, None) if "mnt_id" in facts else (-1, None)


def main() -> None:
    os.umask(0)
    for line in sys.stdin.buffer:
        asked = json.loads(line)
        if "scan" in asked:
            answer: dict[str, Any] = {"watched": _watched(asked["scan"], {os.getpid(), *asked["not"]})}
        else:
            try:
                if "stranded" in asked:
                    _put_back(asked["root"], asked["device"], asked["stranded"])
                    answer = {"failed": []}
                else:
                    answer = {"failed": _acts(asked["root"], asked["device"], asked["acts"])}
            except OSError as error:
                answer = {"failed": [[-1, error.errno]]}
        left = memoryview(json.dumps(answer).encode() + b"\n")
        try:
            while left:
                left = left[os.write(sys.stdout.fileno(), left) :]
        except BrokenPipeError:
            return  # the daemon was killed: nobody waits for the answer


if __name__ == "__main__":
    main()
