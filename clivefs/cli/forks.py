"""What commands about forks say alike, and commands that are given in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.cli.locate import Workspace

_FORKS = ".clive/forks/"
_PATHS_SHOWN = 5


def commit_lines(commits: list[dict[str, Any]]) -> list[str]:
    """Where commits that were made in a fork are kept."""
    return [
        f"commits{' of ' + each['entry'] if each['entry'] else ''}: {each['ref']} in {each['repository']}"
        for each in commits
    ]


def first_of(paths: Sequence[str]) -> str:
    """Some of *paths*, and how many there are besides."""
    more = len(paths) - _PATHS_SHOWN
    return ", ".join(paths[:_PATHS_SHOWN]) + (f" and {more} more" if more > 0 else "")


def fork_at(path: str) -> str | None:
    """The fork that *path*, of a workspace, lies in."""
    return path.removeprefix(_FORKS).partition("/")[0] if path.startswith(_FORKS) else None


def refuse_in_a_fork(place: Workspace, why: str) -> None:
    """ClivefsError, which begins with *why*, where the command was given in a fork and would not be about that."""
    name = fork_at(place.directory)
    if name is not None:
        raise ClivefsError(
            f"{why}, and you are in the fork {name}",
            remedy=f"if the live view is meant, say so: -w {place.name}",
        )
