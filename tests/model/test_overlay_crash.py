"""`kill -9` of an overlay in the midst of random operations, at any moment and at every named fault point.

Afterwards everything that was acknowledged is there, and the one operation that was not is there wholly or not at all.
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from tests.contract.driver import outcome
from tests.contract.plain_driver import PlainDriver
from tests.contract.tree_driver import TreeDriver
from tests.model.overlay_worlds import ENTRY, copy_to, make_lower

WORKER = Path(__file__).with_name("overlay_crash_worker.py")
FAULT_POINTS = [
    f"overlay.{operation}.{step}"
    for operation in ("copyup", "unlink", "rmdir", "rename", "exchange")
    for step in ("logged", "done")
] + ["overlay.make.before", "overlay.make.done", "overlay.link.done", "marks.append", "overlay.copyup.content"]


@pytest.fixture(autouse=True)
def _umask() -> Any:
    old = os.umask(0)
    yield
    os.umask(old)


def run_worker(upper: Path, seed: int, fault: str, count: int, lines_max: int) -> tuple[list[Any], Any]:
    """The acknowledged operations of a killed worker, and the one that was under way, if any."""
    command = [sys.executable, str(WORKER), str(upper), str(seed), fault, str(count)]
    acknowledged: list[Any] = []
    under_way: Any = None
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        for number, line in enumerate(worker.stdout):
            kind, _, rest = line.rstrip("\n").split(" ", 2)
            if kind == ">":
                under_way = ast.literal_eval(rest)
            else:
                acknowledged.append((under_way, rest == "1"))
                under_way = None
            if number == lines_max:
                worker.kill()  # what it wrote until the signal came is read on
    assert worker.returncode == -9
    return acknowledged, under_way


def tree_at(upper: Path) -> dict[bytes, Any]:
    table = NodeTable()
    fd = os.open(upper, os.O_RDONLY)
    tree = OverlayTree(make_lower(), fd, table, entry=ENTRY, source=b"src")
    os.close(fd)
    try:
        return TreeDriver(tree, table).tree_of()
    finally:
        tree.close()


def check(tmp_path: Path, seed: int, fault: str, count: int, lines_max: int) -> None:
    upper = tmp_path / "upper"
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    upper.mkdir()
    acknowledged, under_way = run_worker(upper, seed, fault, count, lines_max)
    copy_to(make_lower(), tmp_path / "plain")
    plain = PlainDriver(tmp_path / "plain")
    for (name, *args), failed in acknowledged:
        result = outcome(lambda name=name, args=args: getattr(plain, name)(*args))
        assert ("Failed" in repr(result)) == failed
    without = plain.tree_of()
    possible = [without]
    if under_way is not None:
        name, *args = under_way
        outcome(lambda: getattr(plain, name)(*args))
        possible.append(plain.tree_of())
    found = tree_at(upper)
    assert found in possible, f"after {len(acknowledged)} operations, in the midst of {under_way}"
    assert tree_at(upper) == found
    assert os.listdir(upper / "work") == []


@pytest.mark.parametrize("fault", FAULT_POINTS)
def test_killed_at(tmp_path: Path, fault: str) -> None:
    for seed in range(2):
        check(tmp_path, seed, fault, random.Random(f"{fault} {seed}").randint(1, 5), 4_000)


@pytest.mark.parametrize("seed", range(6))
def test_killed_at_any_moment(tmp_path: Path, seed: int) -> None:
    check(tmp_path, seed, "", 0, random.Random(seed).randint(1, 800))
