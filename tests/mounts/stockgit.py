"""Stock git, as one user on a machine without any configuration."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
    **{f"GIT_{who}_{what}": f"{who}@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
}


def git(
    cwd: Path,
    *arguments: str,
    environment: Mapping[str, str] = ENVIRONMENT,
    under: Sequence[str] = (),
    check: bool = True,
) -> str:
    """What `git ARGUMENTS` says in *cwd*, without the line ends at its end. *under*: a command that runs it.
    AssertionError where it fails, if that is to be *check*ed."""
    command = [*under, "git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, env=environment, check=False)
    assert not check or done.returncode == 0, done.stderr
    return os.fsdecode(done.stdout).rstrip("\n")
