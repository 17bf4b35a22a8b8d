"""Run by test_overlay_crash.py in a process of its own, to be killed: random operations on an overlay, told one by one.

    python overlay_crash_worker.py UPPER SEED FAULT COUNT

Writes `> N OPERATION` before and `< N FAILED` after each operation, unbuffered. With a FAULT, the process kills
itself the COUNTth time that this fault point is reached.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from clivefs.base.ports import FAULTS
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from tests.contract.driver import Failed, outcome
from tests.contract.tree_driver import TreeDriver
from tests.model.overlay_worlds import make_lower, random_operation


def main() -> None:
    upper, seed, fault, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    os.umask(0)
    left = count

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if fault:
        FAULTS.plant(fault, die)
    table = NodeTable()
    tree = OverlayTree(make_lower(), os.open(upper, os.O_RDONLY), table, entry=b"w/lib", source=b"src")
    driver = TreeDriver(tree, table)
    rng = random.Random(seed)
    for number in range(100_000):
        name, *args = random_operation(rng)
        os.write(1, b"> %d %r\n" % (number, (name, *args)))
        result = outcome(lambda name=name, args=args: getattr(driver, name)(*args))
        os.write(1, b"< %d %d\n" % (number, isinstance(result, Failed)))


main()
