"""Finding and asking a foreign repository: where its gitdir is, and what stock git says about it.

Refs are read by stock git alone, so that packed refs, worktrees, symbolic refs and reftables are its
business. Nothing here fetches, runs a hook, or writes. git is always told `--git-dir`: then it reads
repositories of other users too (its safe.directory check guards the *discovery* of a repository, whose
configuration might run commands; the commands used here run nothing that a configuration names).
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import IO

from clivefs.objects.errors import RepositoryError

_TIMEOUT_S = 60.0
_READ_ALWAYS = (("config",), ("packed-refs",), ("shallow",), ("objects", "info", "alternates"), ("info", "attributes"))


def find_gitdir(path: str) -> tuple[str, str]:
    """(gitdir, common directory) of the repository at *path*: a working tree, a linked worktree or
    submodule (`.git` file), or a bare repository. Looks nowhere above *path*. RepositoryError."""
    if not os.path.isdir(path):
        raise RepositoryError("there is no such directory", place=path)
    dot_git = os.path.join(path, ".git")
    if os.path.isdir(dot_git):
        gitdir = dot_git
    elif os.path.isfile(dot_git):
        gitdir = _read_gitfile(dot_git)
    else:
        gitdir = path
    if not os.path.lexists(os.path.join(gitdir, "HEAD")):
        raise RepositoryError("this is no git repository", place=path, remedy="Name a checkout or a bare repository.")
    common = gitdir
    pointer = os.path.join(gitdir, "commondir")
    if os.path.isfile(pointer):  # a pipe would keep us waiting
        with open(pointer, "rb") as file:
            common = os.path.join(gitdir, os.fsdecode(file.read(8192).rstrip(b"\r\n")))
    if not os.path.isdir(os.path.join(common, "objects")):
        raise RepositoryError("this is no git repository: it has no objects", place=path)
    if not os.access(os.path.join(common, "objects"), os.R_OK | os.X_OK):
        raise RepositoryError(
            "its objects may not be read by this user", place=path, remedy="Ask its owner for read permission."
        )
    _refuse_special_files(path, gitdir, common)
    return os.path.realpath(gitdir), os.path.realpath(common)


def _refuse_special_files(path: str, gitdir: str, common: str) -> None:
    """What is read without asking must be plain files: a pipe would keep whoever opens it waiting for ever."""
    read = [os.path.join(gitdir, "HEAD"), os.path.join(gitdir, "commondir")]
    read += [os.path.join(common, *name) for name in _READ_ALWAYS]
    for file in read:
        if os.path.exists(file) and not os.path.isfile(file):
            raise RepositoryError(f"its {os.path.relpath(file, common)} is not a regular file", place=path)


def _read_gitfile(path: str) -> str:
    with open(path, "rb") as file:
        text = file.read(8192)
    if not text.startswith(b"gitdir: "):
        raise RepositoryError("this `.git` file leads to no repository", place=path)
    gitdir = os.path.join(os.path.dirname(path), os.fsdecode(text.removeprefix(b"gitdir: ").rstrip(b"\r\n")))
    if not os.path.isdir(gitdir):
        raise RepositoryError(f"its `.git` file leads to {gitdir}, which does not exist", place=path)
    return gitdir


def git(
    gitdir: str, *arguments: str, stdout: int | IO[bytes] = subprocess.PIPE, also: Sequence[str] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run stock git on *gitdir*, reading only. The caller looks at the exit status. *also*: further objects
    directories. RepositoryError when git is missing or takes over a minute without network, which is never right."""
    # What the process inherited must not lead git elsewhere: this passes the environment on, it reads none of it.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment.update(GIT_NO_LAZY_FETCH="1", GIT_OPTIONAL_LOCKS="0", GIT_TERMINAL_PROMPT="0", LC_ALL="C")
    if also:
        environment["GIT_ALTERNATE_OBJECT_DIRECTORIES"] = ":".join(quoted_path(each) for each in also)
    command = ["git", "--no-pager", "-c", "core.fsmonitor=false", f"--git-dir={gitdir}", *arguments]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment,
            check=False,
            timeout=None if stdout != subprocess.PIPE else _TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise RepositoryError("git is not installed", remedy="Install git: `apt install git`.") from error
    except subprocess.TimeoutExpired as error:
        raise RepositoryError(f"`git {arguments[0]}` took over {_TIMEOUT_S:.0f} s", place=gitdir) from error


def quoted_path(path: str) -> str:
    """*path* as git's lists of objects directories can have it, whatever is in it (git(1),
    GIT_ALTERNATE_OBJECT_DIRECTORIES; gitrepository-layout(5), objects/info/alternates)."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def reason(result: subprocess.CompletedProcess[bytes]) -> str:
    """What git said of its failure, on one line."""
    lines = result.stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].removeprefix("fatal: ").removeprefix("error: ") if lines else f"exit {result.returncode}"
