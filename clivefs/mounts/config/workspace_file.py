"""Making a directory a workspace: its first `Clive.toml`, and a line in its `.gitignore`."""

from __future__ import annotations

import os
import re
import stat
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.config import parse
from clivefs.mounts.config.edit import toml_string
from clivefs.mounts.config.errors import BadValue
from clivefs.mounts.config.file import FILE_BYTES_MAX, FILE_NAME, create, read_at, save_at
from clivefs.mounts.config.schema import check_component

_IGNORED = re.compile(rb"^/?\.clive/?[ \t]*\r?$", re.MULTILINE)

_TEMPLATE = """\
# A clivefs workspace. `clivefs mount` shows it as one directory tree; saving this file takes effect at once.
# Every key: docs/clive-toml.md

[workspace]
name = {name}

# What is mounted where. `clivefs attach PATH SOURCE` adds such a table; or write one:
#
#   [mounts."lib/requests"]
#   git = "https://example.org/requests.git"     # or a path, or an ssh URL
#   ref = "v2.32.3"                              # branch, tag or commit
#   write = "overlay"                            # your edits stay in an overlay; "none": read-only
#
#   [mounts."data"]
#   local = "../data"                            # a directory of this machine, written through
"""


class Made(NamedTuple):
    """What `init_workspace` did."""

    root: str
    name: str
    written: tuple[str, ...]
    """The files that were made or changed."""


def init_workspace(directory: str, name: str | None = None) -> Made:
    """Make *directory* (itself made if missing) a workspace. ClivefsError if it is one, or *name* is no name."""
    try:
        os.makedirs(directory, exist_ok=True)
        root = os.path.realpath(directory)
        name = os.path.basename(root) if name is None else name
        file = os.path.join(directory, FILE_NAME)
        try:
            text = _TEMPLATE.format(name=toml_string(check_component(name)))
            text.encode()
        except (BadValue, UnicodeEncodeError) as error:
            reason = error.message if isinstance(error, BadValue) else "the directory's name is not UTF-8"
            raise ClivefsError(reason, place=directory, remedy="give the workspace another name") from None
        parse(text, file=file, root=root)
        try:
            create(file, text)
        except FileExistsError:
            raise ClivefsError("is a workspace already", place=file, remedy="`clivefs mount` mounts it") from None
        written = [file]
        if ignore_control_directory(directory):
            written.append(os.path.join(directory, ".gitignore"))
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=directory, remedy="name a directory you can write to") from error
    return Made(root, name, tuple(written))


def ignore_control_directory(directory: str) -> bool:
    """Add `.clive/` to the `.gitignore` of *directory*, if there is one without it (a file, no link); whether it
    was added."""
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    file = os.path.join(directory, ".gitignore")
    try:
        try:
            found = os.stat(".gitignore", dir_fd=dir_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not stat.S_ISREG(found.st_mode) or found.st_size > FILE_BYTES_MAX:
            return False  # a link is somebody else's file; the entry is a courtesy
        old = read_at(dir_fd, ".gitignore", file=file)
        if _IGNORED.search(old):
            return False
        end_of_line = b"\r\n" if b"\r\n" in old else b"\n"
        broken = b"" if not old or old.endswith(b"\n") else end_of_line
        save_at(dir_fd, ".gitignore", old, old + broken + b".clive/" + end_of_line, file=file)
        return True
    finally:
        os.close(dir_fd)
