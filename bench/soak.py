"""A soak: many processes work in a mount for minutes and check what they see, and the daemon must not grow.

`./bench/run --only soak` (5 minutes; `--quick`: 40 seconds). What grows is judged between the end of the first third
and the end: by then every cache has its size. The daemon's own memory is counted (RssAnon), not the store that it maps.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from bench import inputs
from bench.measure import Row
from bench.workbench import Workbench

_LOOK_S = 2.0
_END_S = 180.0
_GROWTH_MIB = 24
_GROWTH_FDS = 40
_GROWTH_FILES = 3000


class _Size(NamedTuple):
    """What the daemon holds."""

    anonymous_mib: float
    fds: int
    files: int


def soak(base: Path, seconds: float) -> list[Row]:
    """The rows of a soak of *seconds*. Ends the program when a checker found something wrong."""
    os.sched_setaffinity(0, range(os.cpu_count() or 1))  # who waits for whom must vary
    repository = inputs.standard_library(base / "soak-library", 400)
    (base / "under" / "list").mkdir(parents=True)
    checkout = base / "checkout"
    shutil.copytree(repository, checkout)
    bench = Workbench(base / "soak")
    try:
        bench.table(
            ref=f'git = "{repository}"\nref = "main"',
            over=f'local = "{base / "under"}"\nwrite = "overlay"',
            checkout=f'local = "{checkout}"\nwrite = "through"',
        )
        bench.mount()
        for place in (bench.live / "over" / "list", checkout / "list"):
            place.mkdir(exist_ok=True)
            for number in range(2000):
                (place / f"stays{number}").touch()
        sizes, counted = _run(bench, _processes(bench, base, seconds), seconds)
        rows = _judged(sizes)
        met = counted[0] == counted[1]
        rows.append(
            Row(f"counted under locks: {counted[0]}, by the processes' own account {counted[1]}", 0, None, "equal", met)
        )
        bench.unmount()
    finally:
        bench.close()
    return rows


def _processes(bench: Workbench, base: Path, seconds: float) -> list[subprocess.Popen[str]]:
    live = bench.live
    wanted: list[tuple[object, ...]] = [
        *(("names", live / place, seed) for seed, place in enumerate((".", "over", "ref", "checkout"))),
        *(("churn", live / place / "list", seed) for seed, place in enumerate(("over", "checkout"))),
        ("churn", base / "checkout" / "list", 2),
        *(
            ("listings", live / place / "list", seed)
            for seed, place in enumerate(("over", "over", "checkout", "checkout"))
        ),
        ("maps", live / "checkout", 1, base / "checkout"),
        ("maps", live / "over", 2),
        *(("records", live / "ref", seed) for seed in (1, 2, 3)),
        *(("flocks", live / "over", seed) for seed in (4, 5, 6)),
        ("git", live / "over", 1, base / "soak-library"),
        ("git", live / "checkout", 2, base / "soak-library"),
        ("compile", live / "over", 1),
        *(
            ("outsider", live / place, seed, base / under)
            for seed, place, under in ((1, "checkout", "checkout"), (2, "over", "under"))
        ),
    ]
    started = []
    for kind, place, seed, *outside in wanted:
        command = [sys.executable, "-P", "-m", "bench.soakers", kind, place, seconds, seed, *outside]
        environment = {**bench.environment, "PYTHONPATH": os.getcwd()}
        started.append(
            subprocess.Popen(
                list(map(str, command)), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return started


def _run(
    bench: Workbench, processes: list[subprocess.Popen[str]], seconds: float
) -> tuple[list[_Size], tuple[int, int]]:
    """What the daemon held over time; the count under locks, in the file and by the processes."""
    sizes: list[_Size] = []
    pid = bench.pid()
    deadline = time.monotonic() + seconds + _END_S
    try:
        while any(each.poll() is None for each in processes):
            for each in processes:
                if each.poll():
                    raise SystemExit(each.communicate()[1])
            if time.monotonic() > deadline:
                hung = [str(each.args) for each in processes if each.poll() is None]
                raise SystemExit("still running after their time:\n" + "\n".join(hung))
            sizes.append(_size(bench, pid))
            time.sleep(_LOOK_S)
        counts = 0
        for each in processes:
            said, complaint = each.communicate()
            if each.returncode:
                raise SystemExit(complaint)
            counts += int(said or 0)
        sizes.append(_size(bench, pid))
    finally:
        for each in processes:
            each.kill()
            each.wait()
    counters = [(bench.live / place / "counter").read_bytes() for place in ("ref", "over")]
    return sizes, (sum(struct.unpack("<Q", each)[0] for each in counters), counts)


def _size(bench: Workbench, pid: int) -> _Size:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            anonymous = int(line.split()[1]) / 1024
    return _Size(anonymous, len(os.listdir(f"/proc/{pid}/fd")), bench.known_files())


def _judged(sizes: list[_Size]) -> list[Row]:
    early, late = sizes[len(sizes) // 3], sizes[-1]
    rows: list[Row] = []
    for what, before, after, most, unit in (
        ("memory of its own", early.anonymous_mib, late.anonymous_mib, _GROWTH_MIB, "MiB"),
        ("descriptors", early.fds, late.fds, _GROWTH_FDS, ""),
        ("files in mind", early.files, late.files, _GROWTH_FILES, ""),
    ):
        top = max(each[len(rows)] for each in sizes)
        told = f"soak: the daemon's {what} in the end; after a third (at most {top:.0f})"
        rows.append(Row(told, after, before, f"+ {most} at most", after - before <= most, unit))
    return rows
