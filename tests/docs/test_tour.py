"""The tour of the README prints what the README says."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tour import Shell, normal, steps

README = Path(__file__).parents[2] / "README.md"


@pytest.mark.mount
def test_every_command_prints_what_is_written(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    shell = Shell(home)
    blocks = steps(README.read_text())
    assert sum(len(block) for block in blocks) > 20
    try:
        for step in (step for block in blocks for step in block):
            printed = shell.run(step.command).replace(str(home), "/home/you")
            assert normal(printed) == normal(step.output), step.command
    finally:
        shell.run("cd; clivefs unmount")
        shell.close()
