"""The file `Clive.toml`: its bytes, safely read and written, and its TOML with places.

Reading follows no link and is bounded. Writing is whole or not at all (`wholefile`), keeps the mode, and never
overwrites what somebody else wrote meanwhile: commands of ours exclude each other by a lock on the file, and an
editor's save is noticed by comparing contents last thing before the rename.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.config.errors import ConfigError, Problem
from clivefs.mounts.config.scan import DEPTH_MAX, ScanError, Statement, TooDeep, scan
from clivefs.mounts.wholefile import new_file

FILE_NAME = "Clive.toml"
FILE_BYTES_MAX = 1 << 20

_LINE = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)$")


# Reading


def read_at(dir_fd: int, name: str, *, file: str) -> bytes:
    """The bytes of a configuration file; links are not followed, and its size is bounded."""
    fd = _open_at(dir_fd, name, file=file)
    try:
        data = b""
        while len(data) <= FILE_BYTES_MAX and (more := os.read(fd, FILE_BYTES_MAX + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(fd)


def _open_at(dir_fd: int, name: str, *, file: str) -> int:
    """A descriptor of the regular file *name*. ClivefsError."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise ClivefsError("there is no such file", place=file, remedy="`clivefs init` makes a workspace") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ClivefsError("is a symbolic link", place=file, remedy="put the file itself here") from error
        raise ClivefsError(f"{error.strerror}", place=file, remedy="make it a readable file") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ClivefsError("is not a regular file", place=file, remedy="put the file itself here")
    return fd


def decode(data: bytes, *, file: str) -> str:
    """The text of a file's bytes; ConfigError when it is too large or not UTF-8. Line ends stay as they are."""
    if len(data) > FILE_BYTES_MAX:
        raise ConfigError([Problem(file, 1, "", f"the file is larger than {FILE_BYTES_MAX} bytes", "make it smaller")])
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        problem = Problem(file, line, "", f"byte 0x{data[error.start]:02x} is not UTF-8", "save the file as UTF-8")
        raise ConfigError([problem]) from None


def read_toml(text: str, *, file: str) -> tuple[dict[str, Any], list[Statement]]:
    """The plain values of *text*, and where its statements stand; ConfigError where it is not TOML, or
    absurdly large or deep."""

    def fail(line: int, message: str, remedy: str = "mend the TOML here") -> ConfigError:
        return ConfigError([Problem(file, line, "", message, remedy)])

    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise fail(text.count("\n", 0, error.start) + 1, "not UTF-8", "save the file as UTF-8") from None
    if size > FILE_BYTES_MAX:
        raise fail(1, f"the file is larger than {FILE_BYTES_MAX} bytes", "make it smaller")
    if text.startswith("\ufeff"):
        raise fail(1, "the file begins with a byte order mark", "save it as UTF-8 without one")
    statements: list[Statement] = []
    try:
        statements = scan(text)  # first, because tomllib takes quadratic time for what this refuses
    except TooDeep as error:
        raise fail(error.line, f"nested deeper than {DEPTH_MAX}", "write it flatter") from None
    except ScanError:
        pass  # tomllib says it better
    try:
        return tomllib.loads(text), statements
    except (ValueError, RecursionError) as error:
        message = str(error)
        found = _LINE.search(message)
        line = text.rstrip().count("\n") + 1
        if found is not None:
            message = message[: found.start()]
            line = int(found.group(1)) if found.group(1) else line
        elif not isinstance(error, tomllib.TOMLDecodeError):
            line, message = 1, "a number or a nesting beyond all bounds"
        raise fail(line, f"not valid TOML: {message[:200]}") from None


# Writing


def save(path: str | os.PathLike[str], old: str, new: str) -> None:
    """Put *new* in the place of *old* in the file *path*. ClivefsError, and nothing written, when the file's
    content is not *old* any more."""
    dir_fd, name, file = _open_directory(path)
    try:
        save_at(dir_fd, name, old.encode(), new.encode(), file=file)
    finally:
        os.close(dir_fd)


def save_at(dir_fd: int, name: str, old: bytes, new: bytes, *, file: str) -> None:
    """`save` for the file *name* of an open directory (not O_PATH). *file* is what messages call it."""
    with _alone(dir_fd, name, file=file) as before, new_file(dir_fd, os.fsencode(name), new, like=before) as made:
        if read_at(dir_fd, name, file=file) != old:
            remedy = "look at what changed, then give the command again"
            raise ClivefsError("the file was changed meanwhile; nothing was written", place=file, remedy=remedy)
        FAULTS.hit("config.save.rename")
        made.replace()
        os.fsync(dir_fd)


@contextmanager
def _alone(dir_fd: int, name: str, *, file: str) -> Iterator[os.stat_result]:
    """No other command writes the file *name* in this block: by a lock on the file, as one on the directory says that
    it is mounted. Whoever waited for it may find that the name leads to another file by then. Where a filesystem has
    no such locks the comparison of contents is all there is."""
    while True:
        fd = _open_at(dir_fd, name, file=file)
        try:
            with suppress(OSError):
                fcntl.flock(fd, fcntl.LOCK_EX)
            before = os.fstat(fd)
            if _leads_to(dir_fd, name, before):
                yield before
                return
        finally:
            os.close(fd)


def _leads_to(dir_fd: int, name: str, found: os.stat_result) -> bool:
    try:
        return os.path.samestat(found, os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except FileNotFoundError:
        return False


def create(path: str | os.PathLike[str], text: str, *, like: str | None = None) -> None:
    """Make the file *path* with *text*, whole or not at all, with mode and owner of the file *like* beside it if there
    is that. FileExistsError when there is one."""
    dir_fd, name, _ = _open_directory(path)
    try:
        before = None
        if like is not None:
            with suppress(FileNotFoundError):
                before = os.stat(like, dir_fd=dir_fd, follow_symlinks=False)
        with new_file(dir_fd, os.fsencode(name), text.encode(), like=before) as made:
            made.appear()
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)


def _open_directory(path: str | os.PathLike[str]) -> tuple[int, str, str]:
    file = os.fspath(path)
    directory, name = os.path.split(file)
    try:
        return os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name, file
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=directory, remedy="name a directory you can use") from error
