"""`./bench/run [--quick] [--only WORD]...`: the targets of the project, measured.

Everything runs on one CPU (the affinity that `taskset` sets, inherited by the daemon and every client): across
CPUs of a virtual machine a round trip costs five to ten times as much, and varies. "Cold" is a fresh mount
by a fresh daemon, whose kernel caches are empty; the disk's are warm on both sides. Ratios compare medians
of repeats taken in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import tempfile
from pathlib import Path

from bench import cases, measure


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench/run", description="Measure a mounted workspace.")
    parser.add_argument("--quick", action="store_true", help="a tenth of the files, fewer repeats")
    parser.add_argument("--only", action="append", metavar="CASE", choices=sorted(cases.CASES), help="one case")
    parser.add_argument("--cpu", type=int, default=max(os.sched_getaffinity(0)), help="the CPU everything runs on")
    parser.add_argument("--dir", type=Path, help="where to work (default: a temporary directory)")
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.cpu})
    size = cases.Size.quick() if args.quick else cases.Size.full()
    git = subprocess.run(["git", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"Linux {platform.release()}, Python {platform.python_version()}, {git}; all on CPU {args.cpu}\n")
    with tempfile.TemporaryDirectory(prefix="clivefs-bench-", dir=args.dir) as directory:
        rows: list[measure.Row] = []
        for name in args.only or [each for each in cases.CASES if each not in cases.ON_REQUEST]:
            done = cases.CASES[name](Path(directory), size)
            rows += done
            print(measure.table(done), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
