"""Completion scripts, run by the shells that are here."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from clivefs.cli.completions import SHELLS
from clivefs.cli.parser import build_parser


def _complete(*words: str) -> set[str]:
    """What bash offers for the last of *words*."""
    script = SHELLS["bash"](build_parser(complete=True))
    quoted = " ".join(f"'{word}'" for word in words)
    script += f"""
COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}
compopt() {{ :; }}
_clivefs
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return set(result.stdout.split())


def test_bash_completes() -> None:
    assert {"mount", "attach", "overlay"} <= _complete("clivefs", "")
    assert _complete("clivefs", "unm") == {"unmount"}
    assert _complete("clivefs", "overlay", "") == {
        "diff", "export", "commit", "rebase", "resolve", "reset",
    }  # fmt: skip
    assert "--dry-run" in _complete("clivefs", "overlay", "reset", "--")
    assert "--dry-run" not in _complete("clivefs", "overlay", "diff", "--")
    assert _complete("clivefs", "attach", "--write", "") == set()
    assert _complete("clivefs", "completion", "") == {"bash", "fish", "zsh"}
    assert "--json" in _complete("clivefs", "status", "-w", "mount", "--js")


@pytest.mark.parametrize("name", ["zsh", "fish"])
def test_others_parse(name: str) -> None:
    shell = shutil.which(name)
    if shell is None:
        pytest.skip(f"{name} is not installed")
    script = SHELLS[name](build_parser(complete=True))
    subprocess.run([shell, "-n"], input=script, text=True, check=True)
