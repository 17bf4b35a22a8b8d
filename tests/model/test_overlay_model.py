"""An overlay over a populated lower does what a plain directory with the same files does, whatever is done to it,
warm or cold, and after any number of restarts; and inode numbers stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.model.overlay_worlds import CONTENTS, NAMES, NOW_NS, RENAME_FLAGS, World

paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=3).map(b"/".join)
content = st.sampled_from(CONTENTS)

operations = st.one_of(
    st.tuples(st.just("make"), paths, content),
    st.tuples(st.just("overwrite"), paths, content),
    st.tuples(st.just("write"), paths, content, st.sampled_from([0, 2, 9000])),
    st.tuples(st.just("append"), paths, content),
    st.tuples(st.just("truncate"), paths, st.sampled_from([0, 3, 8000])),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("symlink"), st.sampled_from([b"a", b"/etc/shadow"]), paths),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("unlink"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("rename"), paths, paths, st.sampled_from(RENAME_FLAGS)),
    st.tuples(st.just("chmod"), paths, st.sampled_from([0o600, 0o755, 0o700])),
    st.tuples(st.just("utime"), paths, st.just(5), st.just(NOW_NS + 7)),
    st.tuples(st.just("setxattr"), paths, st.just(b"user.k"), st.just(b"v")),
    st.tuples(st.just("listdir"), paths),
    st.tuples(st.just("remount")),
    st.tuples(st.just("forget")),
    st.tuples(st.just("reopen")),
)


@pytest.fixture(autouse=True)
def _umask() -> Any:
    old = os.umask(0)
    yield
    os.umask(old)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    done=st.lists(st.one_of(operations, st.tuples(st.just("open"), paths)), max_size=25),
    live=st.booleans(),
    remember=st.booleans(),
)
def test_as_a_plain_directory(tmp_path: Path, done: list[tuple[Any, ...]], live: bool, remember: bool) -> None:
    world = World(tmp_path / "world", live=live, remember=remember)
    for operation in done:
        world.do(operation)
    world.check()
    world.remount()
    world.check()
    world.unmount()
