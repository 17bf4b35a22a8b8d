"""Submodules as working trees, wherever their workspace is mounted.

When `git submodule update` makes a submodule a working tree it writes two paths, each relative to where the other is:
`gitdir:` in the submodule's `.git` file, and `core.worktree` in its gitdir. Both lead out of the mount and through the
store's place, so at another mountpoint they lead nowhere, and git fails in the superproject too. Here the first is made
absolute, as gitdirs stay where they are, and the second is taken away: git then takes the directory that has the `.git`
file, as it does with every clone.
"""

from __future__ import annotations

import logging
import os
import re
import stat
from contextlib import suppress

from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.leftover import gitdirs_in
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, open_directory

log = logging.getLogger(__name__)

_WORKTREE = re.compile(rb"(?im)^\s*worktree\s*=")
_CONFIG_BYTES_MAX = 1 << 20
_DOT_GIT_BYTES_MAX = 65536
_PREFIX = b"gitdir: "


def free(gitdir: str, tree: str, git: GitCommand | None = None) -> None:
    """See that the submodules of the private *gitdir* are found from any mountpoint. *tree*: the files of the entry's
    upper, which nobody shows yet. For threads; what cannot be mended is logged and stays as it is."""
    git = git or GitCommand()
    for module in list(gitdirs_in(gitdir))[1:]:
        config = os.path.join(module, "config")
        try:
            with open(os.open(config, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                if not _WORKTREE.search(file.read(_CONFIG_BYTES_MAX)):
                    continue
            worktree = git.run(["config", "--file", config, "--get", "core.worktree"], cwd="/").removesuffix(b"\n")
            if _name_gitdir(os.fsencode(module), worktree, tree):
                git.run(["config", "--file", config, "--unset-all", "core.worktree"], cwd="/")
        except (FileNotFoundError, NotADirectoryError):
            continue  # no gitdir
        except (OSError, GitFailed) as error:
            log.warning("%s is not found from another mountpoint: %s", module, error)


def _name_gitdir(module: bytes, worktree: bytes, tree: str) -> bool:
    """Let the `.git` file of the working tree of *module* name it by its whole path; whether there is such a file. The
    working tree was at the path *worktree* from there, so the end of that is a path below *tree*."""
    try:
        top = os.open(tree, DIRECTORY_FLAGS)
    except FileNotFoundError:
        return False
    try:
        names = [name for name in worktree.split(b"/") if name not in (b"", b".", b"..")]
        for start in range(len(names)):
            with suppress(FileNotFoundError, NotADirectoryError):
                if _name_gitdir_in(top, names[start:], module):
                    return True
        return False
    finally:
        os.close(top)


def _name_gitdir_in(top: int, names: list[bytes], module: bytes) -> bool:
    directory = os.dup(top)
    try:
        for name in names:
            inner = open_directory(directory, name)
            os.close(directory)
            directory = inner
        fd = os.open(b".git", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return False
        old = os.pread(fd, _DOT_GIT_BYTES_MAX, 0)
        named = old.removeprefix(_PREFIX).rstrip(b"\r\n")
        way = [name for name in named.split(b"/") if name not in (b"", b".", b"..")]
        if not old.startswith(_PREFIX) or not way or module.split(b"/")[-len(way) :] != way:
            return False  # another repository's
        new = _PREFIX + module + b"\n"
        # In one write, so that whatever ends us leaves a file that git understands: line ends at its end do not count.
        os.pwrite(fd, new.ljust(len(old), b"\n"), 0)
        os.ftruncate(fd, len(new))
        os.fsync(fd)
        return True
    finally:
        os.close(fd)
