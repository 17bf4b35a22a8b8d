from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from harness import Bench, bench_in, fill_sample


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """A workspace that is not mounted yet."""
    with bench_in(tmp_path) as made:
        yield made


@pytest.fixture
def shop(bench: Bench) -> Bench:
    """The workspace of `fill_sample`, mounted."""
    fill_sample(bench)
    bench.mount()
    return bench
