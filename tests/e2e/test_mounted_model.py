"""Random operations in a real mount and in a plain directory: every result and every errno is the same.

What `tests/model/test_tree_model.py` does to trees in memory, through the kernel: its caches, its checks
and its idea of open files are part of it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import Bench, bench_in
from hypothesis import HealthCheck, settings
from hypothesis.stateful import invariant, run_state_machine_as_test

from tests.contract.plain_driver import PlainDriver
from tests.contract.tree_rules import TreeRules

pytestmark = pytest.mark.mount

INITIAL = {b"a": b"file a", b"b/a": b"deep", b"b/c/d": b"deeper", b"c": b"x" * 5000}


def fill(root: Path) -> None:
    for path, content in INITIAL.items():
        file = root / os.fsdecode(path)
        for directory in reversed(file.relative_to(root).parents[:-1]):
            (root / directory).mkdir(mode=0o755, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o644)


class MountedModel(TreeRules):
    """Works in a directory of the mount that *fresh* makes anew for each run."""

    fresh: Callable[[], Path]

    def __init__(self) -> None:
        super().__init__()
        self._umask = os.umask(0)
        self._place = tempfile.TemporaryDirectory()
        plain = Path(self._place.name) / "plain"
        plain.mkdir()
        fill(plain)
        self.tree = PlainDriver(type(self).fresh())
        self.plain = PlainDriver(plain)

    @invariant()
    def top_is_the_same(self) -> None:
        self.both("listdir", b"")

    def teardown(self) -> None:
        self.close_all()
        assert self.tree.tree_of() == self.plain.tree_of()
        os.umask(self._umask)
        self._place.cleanup()


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with bench_in(tmp_path_factory.mktemp("model")) as made:
        initial = {f"n{number}/{os.fsdecode(path)}": text for number in range(60) for path, text in INITIAL.items()}
        made.repository("thing", dict(initial))
        made.write_toml('[workspace]\nname = "shop"\n[mounts."lib/thing"]\ngit = "../thing"\ngit_dir = false\n')
        made.mount()
        yield made


def check(fresh: Callable[[], Path], examples: int) -> None:
    model = type("Model", (MountedModel,), {"fresh": staticmethod(fresh)})
    run_state_machine_as_test(
        model,
        settings=settings(
            max_examples=examples, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )


def test_a_git_ref_under_an_overlay(mounted: Bench) -> None:
    numbers = iter(range(60))

    def fresh() -> Path:
        try:
            return mounted.live / "lib" / "thing" / f"n{next(numbers)}"
        except StopIteration:  # while shrinking a failure: what was born in the upper will do
            return in_upper()

    def in_upper() -> Path:
        made = Path(tempfile.mkdtemp(dir=mounted.live / "lib" / "thing"))
        fill(made)
        return made

    check(fresh, 40)


def test_a_checkout_written_through(mounted: Bench) -> None:
    def fresh() -> Path:
        made = Path(tempfile.mkdtemp(dir=mounted.live))
        fill(made)
        return made

    check(fresh, 40)
