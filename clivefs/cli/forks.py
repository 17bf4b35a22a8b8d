"""What commands about forks say alike."""

from __future__ import annotations

from typing import Any


def commit_lines(commits: list[dict[str, Any]]) -> list[str]:
    """Where commits that were made in a fork are kept."""
    return [
        f"commits{' of ' + each['entry'] if each['entry'] else ''}: {each['ref']} in {each['repository']}"
        for each in commits
    ]
