"""The file `Clive.toml`: its bytes, safely read and written, and its TOML with places.

Reading follows no link and is bounded. Writing is whole or not at all (temporary file, fsync, rename,
fsync of the directory), keeps the mode, and never overwrites what somebody else wrote meanwhile: commands
of ours exclude each other by a lock on the directory, and an editor's save is noticed by comparing contents
last thing before the rename.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import tomllib
from contextlib import suppress
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS, Rng, SystemRng
from clivefs.base.syscalls import RENAME_NOREPLACE, rename_at
from clivefs.mounts.config.errors import ConfigError, Problem
from clivefs.mounts.config.scan import DEPTH_MAX, ScanError, Statement, TooDeep, scan

FILE_NAME = "Clive.toml"
FILE_BYTES_MAX = 1 << 20

_LINE = re.compile(r" ?\(at (?:line (\d+), column (\d+)|end of document)\)$")


# Reading


def read_at(dir_fd: int, name: str, *, file: str) -> bytes:
    """The bytes of a configuration file; links are not followed, and its size is bounded."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError as error:
        raise ClivefsError("there is no such file", place=file, remedy="`clivefs init` makes a workspace") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ClivefsError("is a symbolic link", place=file, remedy="put the file itself here") from error
        raise ClivefsError(f"{error.strerror}", place=file, remedy="make it a readable file") from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ClivefsError("is not a regular file", place=file, remedy="put the file itself here")
        data = b""
        while len(data) <= FILE_BYTES_MAX and (more := os.read(fd, FILE_BYTES_MAX + 1 - len(data))):
            data += more
        return data
    finally:
        os.close(fd)


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


def save(path: str | os.PathLike[str], old: str, new: str, *, rng: Rng | None = None) -> None:
    """Put *new* in the place of *old* in the file *path*. ClivefsError, and nothing written, when the file's
    content is not *old* any more."""
    dir_fd, name, file = _open_directory(path)
    try:
        save_at(dir_fd, name, old.encode(), new.encode(), file=file, rng=rng)
    finally:
        os.close(dir_fd)


def save_at(dir_fd: int, name: str, old: bytes, new: bytes, *, file: str, rng: Rng | None = None) -> None:
    """`save` for the file *name* of an open directory (not O_PATH). *file* is what messages call it."""
    fcntl.flock(dir_fd, fcntl.LOCK_EX)
    try:
        before = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        temporary = _write_temporary(dir_fd, name, new, rng or SystemRng(), like=before)
        try:
            if read_at(dir_fd, name, file=file) != old:
                remedy = "look at what changed, then give the command again"
                raise ClivefsError("the file was changed meanwhile; nothing was written", place=file, remedy=remedy)
            FAULTS.hit("config.save.rename")
            os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
        except BaseException:
            os.unlink(temporary, dir_fd=dir_fd)
            raise
        os.fsync(dir_fd)
    except FileNotFoundError as error:
        raise ClivefsError("there is no such file", place=file, remedy="`clivefs init` makes a workspace") from error
    finally:
        fcntl.flock(dir_fd, fcntl.LOCK_UN)


def create(path: str | os.PathLike[str], text: str, *, like: str | None = None, rng: Rng | None = None) -> None:
    """Make the file *path* with *text*, whole or not at all, with mode and owner of the file *like* beside it if there
    is that. FileExistsError when there is one."""
    dir_fd, name, _ = _open_directory(path)
    try:
        before = None
        if like is not None:
            with suppress(FileNotFoundError):
                before = os.stat(like, dir_fd=dir_fd, follow_symlinks=False)
        temporary = _write_temporary(dir_fd, name, text.encode(), rng or SystemRng(), like=before)
        try:
            _publish_new(dir_fd, temporary.encode(), os.fsencode(name))
        except BaseException:
            os.unlink(temporary, dir_fd=dir_fd)
            raise
        os.fsync(dir_fd)
    finally:
        os.close(dir_fd)


def _publish_new(dir_fd: int, temporary: bytes, name: bytes) -> None:
    try:
        rename_at(dir_fd, temporary, dir_fd, name, RENAME_NOREPLACE)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS):
            raise
        os.link(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)  # a filesystem without NOREPLACE
        os.unlink(temporary, dir_fd=dir_fd)


def _open_directory(path: str | os.PathLike[str]) -> tuple[int, str, str]:
    file = os.fspath(path)
    directory, name = os.path.split(file)
    try:
        return os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), name, file
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=directory, remedy="name a directory you can use") from error


def _write_temporary(dir_fd: int, name: str, data: bytes, rng: Rng, *, like: os.stat_result | None = None) -> str:
    """A new file beside *name* with *data*, on disk, with mode and owner of *like* as far as permitted; its name."""
    temporary = f".{name}.{rng.token(6).hex()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(temporary, flags, 0o666 if like is None else 0o600, dir_fd=dir_fd)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if like is not None:
                _take_after(fd, like)
            os.fsync(fd)
    except BaseException:
        os.unlink(temporary, dir_fd=dir_fd)
        raise
    return temporary


def _take_after(fd: int, like: os.stat_result) -> None:
    made = os.fstat(fd)
    if (made.st_uid, made.st_gid) != (like.st_uid, like.st_gid):
        with suppress(PermissionError):  # somebody else's file in a directory of ours becomes ours, as in any editor
            os.chown(fd, like.st_uid, like.st_gid)
    os.chmod(fd, stat.S_IMODE(like.st_mode) & 0o777)
