"""Having git ask a mount which files have changed: what `clivefs doctor --fix fsmonitor` installs.

The hook reads one file of the mount (`.clive/changed/TOKEN`, see `mounts.points.changed`): a program in Python would
take longer to start than `git status` takes without it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import NamedTuple

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import locate
from clivefs.cli.call import Call

HOOK = "fsmonitor-clivefs"
_NAME_BYTES_MAX = 128
_SCRIPT = """\
#!/bin/sh
# git's fsmonitor hook (githooks(5)): asks the clivefs mount which files have changed.
# Written by `clivefs doctor --fix fsmonitor`. Where the mount is not there, git looks for itself.
[ "$1" = 2 ] || exit 1
exec timeout 5 cat -- {directory}/"${{2:-none}}"{suffix} 2>/dev/null
"""


class Installed(NamedTuple):
    """What was installed."""

    repository: str
    hook: str


def install(call: Call) -> Installed:
    """Install the hook in the repository of the current directory. ClivefsError where no mounted workspace shows it."""
    place = locate.find(call)
    place.served("the hook asks its mount")
    top = _git(call, "--show-toplevel")
    git_dir = _git(call, "--absolute-git-dir")
    if os.path.realpath(os.path.join(top, _git(call, "--git-common-dir", directory=top))) != os.path.realpath(git_dir):
        raise ClivefsError(
            "this is a linked working tree, whose configuration is that of others too",
            place=top,
            remedy="set it there: git config --worktree core.fsmonitor 'clivefs fsmonitor'",
        )
    inside = place.inside(top)
    assert place.shown_at is not None
    suffix = "@" + inside.replace("/", ":") if inside else ""
    if ":" in inside or "@" in inside or len(os.fsencode(suffix)) > _NAME_BYTES_MAX:
        raise UsageError("the hook cannot name this directory", place=top, remedy="rename it, without `:` and `@`")
    hook = os.path.join(git_dir, "hooks", HOOK)
    _write(hook, _SCRIPT.format(directory=shlex.quote(f"{place.shown_at}/.clive/changed"), suffix=shlex.quote(suffix)))
    # git runs it in the top directory: so it is found in the mount and in the checkout itself, mounted or not.
    command = os.path.relpath(hook, top) if os.path.dirname(git_dir) == top else hook
    for key, value in (
        ("core.fsmonitor", command),
        ("core.fsmonitorHookVersion", "2"),
        ("core.untrackedCache", "true"),
        ("fsmonitor.allowRemote", "true"),
    ):
        _run(["git", "-C", top, "config", "--local", key, value])
    return Installed(top, hook)


def _git(call: Call, question: str, directory: str | None = None) -> str:
    """What `git rev-parse` says. ClivefsError outside of a repository."""
    return _run(["git", "-C", directory or call.around.directory, "rev-parse", question]).rstrip("\n")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            check=False,
        )
    except OSError as error:
        raise ClivefsError(f"git: {error.strerror}", remedy="clivefs doctor") from None
    if done.returncode != 0:
        raise ClivefsError(f"git says: {done.stderr.strip()}", remedy="change to a git working tree in the workspace")
    return done.stdout


def _write(path: str, text: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)
    os.chmod(temporary, 0o755)
    os.rename(temporary, path)
