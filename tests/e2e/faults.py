"""Ends a test's daemon at a named fault point, as `kill -9` does: `kill_at` gives the environment that asks for it."""

from __future__ import annotations

import os
from pathlib import Path

_PLANT = """
import os, signal, sys

if "clivefs.daemon" in sys.orig_argv and "CLIVEFS_TEST_KILL_AT" in os.environ:
    from clivefs.base.ports import FAULTS

    points = os.environ["CLIVEFS_TEST_KILL_AT"].split()

    def plant():
        point, *rest = points
        points[:] = rest
        FAULTS.plant(point, plant if rest else lambda: os.kill(os.getpid(), signal.SIGKILL))

    plant()
"""


def kill_at(directory: Path, point: str) -> dict[str, str]:
    """The environment of a daemon that dies at *point*; *directory* gets the module that sees to it. Of several points,
    with blanks between, the next one counts from when the one before was hit."""
    directory.mkdir(exist_ok=True)
    (directory / "sitecustomize.py").write_text(_PLANT)
    path = os.pathsep.join(each for each in (str(directory), os.environ.get("PYTHONPATH", "")) if each)
    return {"PYTHONPATH": path, "CLIVEFS_TEST_KILL_AT": point}
