"""Ends a test's daemon at a named fault point, as `kill -9` does, or sends it another signal there.

`kill_at` gives the environment that asks for it; a `Killer` is told the point while the daemon runs. `planted` has it
run whatever code a test needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_PLANT = """
import os, signal, sys
from functools import partial
from pathlib import Path

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def kill_if_told(point):
    if Path(os.environ["CLIVEFS_TEST_KILL_FILE"]).read_text() == point:
        kill()

if "clivefs.daemon" in sys.orig_argv and "CLIVEFS_TEST_KILL_FILE" in os.environ:
    from clivefs.base.ports import FAULTS

    for point in os.environ["CLIVEFS_TEST_KILL_POINTS"].split():
        FAULTS.plant(point, partial(kill_if_told, point))

if os.environ.get("CLIVEFS_TEST_KILL_IN") in sys.orig_argv and "CLIVEFS_TEST_KILL_AT" in os.environ:
    from clivefs.base.ports import FAULTS

    points = os.environ["CLIVEFS_TEST_KILL_AT"].split()

    def plant():
        if points:  # not when an earlier point is hit once more
            point, *rest = points
            points[:] = rest
            FAULTS.plant(point, plant if rest else kill)

    plant()

if "clivefs.daemon" in sys.orig_argv and "CLIVEFS_TEST_SIGNAL" in os.environ:
    from clivefs.base.ports import FAULTS

    number = int(os.environ["CLIVEFS_TEST_SIGNAL"])
    FAULTS.plant(os.environ["CLIVEFS_TEST_SIGNAL_AT"], partial(os.kill, os.getpid(), number))
"""


def kill_at(directory: Path, point: str, *, program: str = "clivefs.daemon") -> dict[str, str]:
    """The environment of a daemon, or another *program* of ours, that dies at *point*; *directory* gets the module that
    sees to it. Of several points, with blanks between, the next one counts from when the one before was hit."""
    return {
        "PYTHONPATH": _planted(directory),
        "CLIVEFS_TEST_KILL_AT": point,
        "CLIVEFS_TEST_KILL_IN": program,
    }


def signal_at(directory: Path, point: str, number: int) -> dict[str, str]:
    """As `kill_at`, with another signal, which the daemon gets at *point*."""
    return {
        "PYTHONPATH": _planted(directory),
        "CLIVEFS_TEST_SIGNAL_AT": point,
        "CLIVEFS_TEST_SIGNAL": str(int(number)),
    }


class Killer:
    """Kills daemons that were started with its `environment` at any of *points*, one after the other: whoever is to die
    at many need not be set up anew for each."""

    def __init__(self, directory: Path, points: Iterable[str]) -> None:
        self._file = directory / "point"
        self.environment = {
            "PYTHONPATH": _planted(directory),
            "CLIVEFS_TEST_KILL_FILE": str(self._file),
            "CLIVEFS_TEST_KILL_POINTS": " ".join(points),
        }
        self.at("")

    def at(self, point: str) -> None:
        """Kill at *point* from now on; at none when it is empty."""
        self._file.write_text(point)


def _planted(directory: Path) -> str:
    """The PYTHONPATH with the module that sees to it, in *directory*."""
    return _path_with(directory, _PLANT)


def planted(directory: Path, code: str) -> dict[str, str]:
    """The environment of a daemon that runs *code* before it begins; *directory* gets the module that does it."""
    only_there = "".join(f"    {line}\n" for line in code.splitlines())
    return {"PYTHONPATH": _path_with(directory, f"import sys\nif 'clivefs.daemon' in sys.orig_argv:\n{only_there}")}


def _path_with(directory: Path, module: str) -> str:
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(module)
    return os.pathsep.join(each for each in (str(directory), os.environ.get("PYTHONPATH", "")) if each)
