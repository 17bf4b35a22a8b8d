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
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE
from tests.contract.tree_driver import Failed, PlainDriver, PlainFile, both, outcome

pytestmark = pytest.mark.mount

NAMES = st.sampled_from([b"a", b"b", b"c", b"d"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
DIRECTORIES = st.lists(NAMES, min_size=0, max_size=2).map(b"/".join)
DATA = st.binary(min_size=1, max_size=6000)
MODES = st.sampled_from([0o600, 0o644, 0o755, 0o777, 0o400])
OPEN_FLAGS = st.sampled_from([os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_TRUNC])
INITIAL = {b"a": b"file a", b"b/a": b"deep", b"b/c/d": b"deeper", b"c": b"x" * 5000}


def fill(root: Path) -> None:
    for path, content in INITIAL.items():
        file = root / os.fsdecode(path)
        for directory in reversed(file.relative_to(root).parents[:-1]):
            (root / directory).mkdir(mode=0o755, exist_ok=True)
        file.write_bytes(content)
        file.chmod(0o644)


class MountedModel(RuleBasedStateMachine):
    """Works in a directory of the mount that *fresh* makes anew for each run."""

    fresh: Callable[[], Path]

    def __init__(self) -> None:
        super().__init__()
        self._umask = os.umask(0)
        self._place = tempfile.TemporaryDirectory()
        plain = Path(self._place.name) / "plain"
        plain.mkdir()
        fill(plain)
        self.mounted = PlainDriver(type(self).fresh())
        self.plain = PlainDriver(plain)
        self.files: list[tuple[PlainFile, PlainFile]] = []

    def both(self, method: str, *args: object) -> object:
        return both(self.mounted, self.plain, method, *args)

    @rule(path=PATHS, data=DATA, mode=MODES)
    def make(self, path: bytes, data: bytes, mode: int) -> None:
        self.both("make", path, data, mode)

    @rule(path=PATHS, data=DATA, offset=st.integers(0, 9000))
    def write(self, path: bytes, data: bytes, offset: int) -> None:
        self.both("write", path, data, offset)

    @rule(path=PATHS, data=DATA)
    def append(self, path: bytes, data: bytes) -> None:
        self.both("append", path, data)

    @rule(path=PATHS, data=DATA)
    def overwrite(self, path: bytes, data: bytes) -> None:
        self.both("overwrite", path, data)

    @rule(path=PATHS, size=st.integers(0, 9000))
    def truncate(self, path: bytes, size: int) -> None:
        self.both("truncate", path, size)

    @rule(path=PATHS)
    def read(self, path: bytes) -> None:
        self.both("read", path)
        self.both("stat", path)

    @precondition(lambda self: len(self.files) < 4)
    @rule(path=PATHS, flags=OPEN_FLAGS)
    def open(self, path: bytes, flags: int) -> None:
        mine = outcome(lambda: self.mounted.open(path, flags))
        theirs = outcome(lambda: self.plain.open(path, flags))
        if isinstance(mine, Failed) or isinstance(theirs, Failed):
            assert mine == theirs
        else:
            self.files.append((mine, theirs))

    def _each(self, index: int, call: Callable[[PlainFile], object]) -> None:
        mine, theirs = self.files[index % len(self.files)]
        assert outcome(lambda: call(mine)) == outcome(lambda: call(theirs))

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9), offset=st.integers(0, 9000))
    def read_open(self, index: int, offset: int) -> None:
        self._each(index, lambda file: file.read(offset, 5000))

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9), offset=st.integers(0, 9000), data=DATA)
    def write_open(self, index: int, offset: int, data: bytes) -> None:
        self._each(index, lambda file: file.write(offset, data))

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9))
    def stat_open(self, index: int) -> None:
        self._each(index, lambda file: file.stat())

    @precondition(lambda self: self.files)
    @rule(index=st.integers(0, 9))
    def close(self, index: int) -> None:
        for file in self.files.pop(index % len(self.files)):
            file.close()

    @rule(path=PATHS, mode=MODES)
    def mkdir(self, path: bytes, mode: int) -> None:
        self.both("mkdir", path, mode)

    @rule(path=PATHS, content=st.sampled_from([b"a", b"../x"]))
    def symlink(self, path: bytes, content: bytes) -> None:
        self.both("symlink", content, path)

    @rule(old=PATHS, new=PATHS)
    def link(self, old: bytes, new: bytes) -> None:
        self.both("link", old, new)

    @rule(path=PATHS)
    def unlink(self, path: bytes) -> None:
        self.both("unlink", path)

    @rule(path=PATHS)
    def rmdir(self, path: bytes) -> None:
        self.both("rmdir", path)

    @rule(old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]))
    def rename(self, old: bytes, new: bytes, flags: int) -> None:
        self.both("rename", old, new, flags)

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: bytes, mode: int) -> None:
        self.both("chmod", path, mode)

    @rule(path=DIRECTORIES)
    def listdir(self, path: bytes) -> None:
        self.both("listdir", path)

    @invariant()
    def top_is_the_same(self) -> None:
        self.both("listdir", b"")

    def teardown(self) -> None:
        for pair in self.files:
            for file in pair:
                file.close()
        for directory, _, names in os.walk(self._place.name + "/plain"):
            below = os.fsencode(os.path.relpath(directory, self._place.name + "/plain"))
            below = b"" if below == b"." else below
            self.both("listdir", below)
            for name in names:
                self.both("read", below + b"/" + os.fsencode(name) if below else os.fsencode(name))
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
