"""Two versions of some files as a git patch.

The patch is made by stock git from two commits that hold nothing but the files in question, in a scratch
repository: so renames are found, binary files included, and names quoted exactly as `git apply` expects.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from clivefs.base.syscalls import make_directories
from clivefs.mounts.git.command import GitCommand


class Version(NamedTuple):
    """A file as git sees it: mode bits and content (a symlink's is its target)."""

    mode: int
    content: bytes


class Changed(NamedTuple):
    """A path before and after; None where it does not exist. Directories are only seen by what is in them."""

    path: bytes
    before: Version | None
    after: Version | None


def git_mode(mode: int) -> int | None:
    """The mode that git gives a file of *mode*; None for what git cannot hold (devices, sockets, fifos)."""
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        return 0o120000
    if kind == stat.S_IFREG:
        return 0o100755 if mode & 0o100 else 0o100644
    return None


class FileStat(NamedTuple):
    """How much of one file changed, as `git diff --numstat` counts it."""

    path: bytes
    added: int | None
    """Lines; None for a binary file."""
    removed: int | None


def patch_of(changes: Iterable[Changed], scratch: str) -> bytes:
    """The changes as a patch with `a/` and `b/` prefixes that `git apply` takes. *scratch*: an existing directory
    for temporary files."""
    return _diff(changes, scratch, ("-p", "--binary", "--full-index", "-M"))


def stat_of(changes: Iterable[Changed], scratch: str) -> list[FileStat]:
    """How much of each file changed, by path."""
    found = []
    for line in _diff(changes, scratch, ("--numstat", "-z", "--no-renames")).split(b"\0"):
        if line:
            added, removed, path = line.split(b"\t", 2)
            counts = [int(each) if each != b"-" else None for each in (added, removed)]
            found.append(FileStat(path, *counts))
    return sorted(found)


def _diff(changes: Iterable[Changed], scratch: str, options: Sequence[str]) -> bytes:
    before: dict[bytes, Version] = {}
    after: dict[bytes, Version] = {}
    for change in changes:
        if change.before is not None:
            before[change.path] = change.before
        if change.after is not None:
            after[change.path] = change.after
    if before == after:
        return b""
    with tempfile.TemporaryDirectory(prefix="diff-", dir=scratch) as directory:
        git = GitCommand()
        git.run(["init", "--quiet", "--bare", "--initial-branch=main", directory])
        stream = b"".join(_commit(b"refs/heads/before", before)) + b"".join(_commit(b"refs/heads/after", after))
        git.run(["fast-import", "--quiet"], git_dir=directory, stdin=stream + b"done\n")
        return git.run(
            [
                "-c", "core.quotePath=true", "-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false",
                "-c", "diff.algorithm=myers",
                "diff-tree", "-r", *options, "--no-color", "--no-ext-diff", "--no-textconv",
                "refs/heads/before", "refs/heads/after",
            ],
            git_dir=directory,
        )  # fmt: skip


def _commit(ref: bytes, files: dict[bytes, Version]) -> Iterable[bytes]:
    """One commit of *files* in the language of git-fast-import(1)."""
    yield b"feature done\n" if ref.endswith(b"/before") else b""
    yield b"commit %s\ncommitter clivefs <> 0 +0000\ndata 0\n" % ref
    for path, version in files.items():
        yield b"M %o inline %s\ndata %d\n" % (version.mode, _quoted(path), len(version.content))
        yield version.content
        yield b"\n"
    yield b"\n"


def _quoted(path: bytes) -> bytes:
    """A path as fast-import reads it: always quoted, odd bytes in octal."""
    return b'"' + b"".join(_escape(byte) for byte in path) + b'"'


def _escape(byte: int) -> bytes:
    if byte in b'"\\' or byte < 0x20 or byte > 0x7E:
        return b"\\%03o" % byte
    return bytes([byte])


SCRATCH = "scratch"


def scratch_directory(store: str) -> str:
    """The store's folder for such temporary files, made if it is missing."""
    path = os.path.join(store, SCRATCH)
    make_directories(path)
    return path
