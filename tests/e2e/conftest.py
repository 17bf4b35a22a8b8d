from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Bench, bench_in


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workspace that is not mounted yet."""
    with bench_in(tmp_path) as made:
        yield made


@pytest.fixture
def shop(bench: Bench) -> Bench:
    """A mounted workspace: a through root, `lib/thing` from a git ref, `over` an overlay on a local directory."""
    bench.repository(
        "thing", {"README": "hello\n", "src/a.c": "int a;\n", "src/deep/b.c": "int b;\n", "run.sh": "#!/bin/sh\n"}
    )
    data = bench.base / "data"
    (data / "sub").mkdir(parents=True)
    (data / "one.txt").write_text("one\n")
    (data / "sub" / "two.txt").write_text("two\n")
    bench.write_toml(
        '[workspace]\nname = "shop"\n\n'
        '[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n\n'
        '[mounts."over"]\nlocal = "../data"\nwrite = "overlay"\n'
    )
    (bench.root / "plain.txt").write_text("plain\n")
    bench.mount()
    return bench
