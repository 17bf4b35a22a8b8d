"""The workspace that the tests of forks begin with, and the commands that they all give."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from harness import Bench, write_files

HAS_BWRAP = shutil.which("bwrap") is not None

DEAD = r"clearing the dead mount|applier_process|Traceback|^ +main\(\)|flush\(\)|BrokenPipeError"
"""In the log of a daemon that was killed: the applier finds nobody to answer."""

FILES: dict[str, str | bytes] = {
    ".gitignore": "node_modules\n__pycache__/\n*.o\nprog\n",
    "Makefile": "prog: main.o\n\tcc -o prog main.o\nmain.o: main.c\n\tcc -c main.c\n",
    "main.c": "int main(void) { return 0; }\n",
    "src/text": "".join(f"line {number}\n" for number in range(30)),
    "src/other": "other\n",
}


def mount_checkout(bench: Bench, **more: Any) -> None:
    """Mount a workspace (*more* as for `Bench.mount`): a checkout of `FILES` with ignored files, and `lib/thing` from a
    git ref."""
    bench.repository("thing", {"README": "hello\n", "src/a.c": "int a;\n"})
    write_files(bench.root, FILES)
    bench.write_toml('[workspace]\nname = "shop"\n\n[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n')
    bench.git("init", "-q", "-b", "main", cwd=bench.root)
    (bench.root / ".git/info/exclude").write_text("/lib/\n")
    bench.git("add", "-A", cwd=bench.root)
    bench.git("commit", "-q", "-m", "first", cwd=bench.root)
    write_files(
        bench.root, {"node_modules/m/index.js": "module\n", "node_modules/top.js": "top\n", "main.o": "stale\n"}
    )
    os.utime(bench.root / "main.o", (1_000_000_000, 1_000_000_000))
    bench.mount(**more)


def fork(bench: Bench, name: str = "try", *args: str) -> Path:
    """Make a fork; where it is."""
    result = json.loads(bench.cli("fork", name, *args, "--json", cwd=bench.live).stdout)
    path = Path(result["path"])
    assert path == bench.live / ".clive/forks" / name
    return path


def listed(bench: Bench) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in json.loads(bench.cli("fork", "--list", "--json", cwd=bench.live).stdout)}
