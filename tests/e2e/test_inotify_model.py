"""Whatever is done outside, whatever the kernel knows of it: at least one event on the file or its directory, and the
mount shows what the host has."""

from __future__ import annotations

import itertools
import os
import select
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from harness import WAIT_S, Bench, sample_workspace, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.base.syscalls import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_DELETE_SELF,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    RENAME_EXCHANGE,
    inotify_add,
    inotify_open,
    inotify_parse,
    rename_at,
)

pytestmark = pytest.mark.mount

MASK = IN_ATTRIB | IN_CLOSE_WRITE | IN_CREATE | IN_DELETE | IN_DELETE_SELF | IN_MODIFY | IN_MOVED_FROM | IN_MOVED_TO
MARK = "mark"
DIRECTORIES = ("one", "two")
NAMES = st.sampled_from(["a", "b", "c"])
PLACES = st.builds(os.path.join, st.sampled_from(DIRECTORIES), NAMES)
LOOKS = st.sampled_from(["none", "stat", "read", "list", "miss"])
CHANGES = st.sampled_from(
    ["write", "append", "replace", "remove", "rename", "exchange", "mkdir", "symlink", "link", "chmod", "touch"]
)
STEPS = st.lists(st.tuples(CHANGES, PLACES, PLACES, LOOKS), min_size=1, max_size=8)
counter = itertools.count()


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with sample_workspace(tmp_path_factory.mktemp("inotify")) as made:
        yield made


class Watches:
    """Events of some directories, which are *outside* there where they are changed."""

    def __init__(self, directories: list[Path], outside: list[Path]) -> None:
        self.fd = inotify_open()
        self.outside = outside
        self.numbers = {inotify_add(self.fd, os.fsencode(each), MASK) for each in directories}

    def wait(self, what: str) -> None:
        assert select.select([self.fd], [], [], WAIT_S)[0], f"no event for {what}"

    def settle(self, after: str) -> None:
        """Take all events of what was done so far: what is undone before it was told of is no change.

        What happens to a name in a directory is told of with all that was known of the directory by then, so twice is
        enough."""
        for act, mask in ((Path.touch, IN_CREATE | IN_MOVED_TO), (Path.unlink, IN_DELETE | IN_MOVED_FROM)):
            for each in self.outside:
                act(each / MARK)
            waiting = set(self.numbers)
            while waiting:
                self.wait(f"a mark after {after}; of {len(waiting)} directories")
                for number, what, _, name in inotify_parse(os.read(self.fd, 1 << 16)):
                    if (what & mask and os.fsdecode(name) == MARK) or not name:  # or something in the directory
                        waiting.discard(number)

    def close(self) -> None:
        os.close(self.fd)


def state(path: Path) -> object:
    """What can be seen of a path; None where nothing is."""
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return (found.st_mode, found.st_ino, found.st_size, found.st_mtime_ns, content)


def shown(directory: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for each in sorted(directory.rglob("*")):
        mode = each.lstat().st_mode
        plain = each.is_file() and not each.is_symlink()
        found[str(each.relative_to(directory))] = (mode, each.read_bytes() if plain else None)
    return found


def look(path: Path, how: str) -> None:
    with suppress(OSError):
        if how == "stat":
            path.lstat()
        elif how == "read":
            path.read_bytes()
        elif how == "list":
            os.listdir(path.parent)
        elif how == "miss":
            (path.parent / "absent").lstat()


def change(what: str, path: Path, other: Path, text: str) -> None:
    if what == "write":
        path.write_text(text)
    elif what == "append":
        with path.open("a") as file:
            file.write(text)
    elif what == "replace":
        temporary = path.parent.parent / "aside"
        temporary.write_text(text)
        temporary.rename(path)
    elif what == "remove":
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink()
    elif what == "rename":
        path.rename(other)
    elif what == "exchange":
        here = os.open(path.parent.parent, os.O_RDONLY)
        try:
            ends = [os.fsencode(os.path.join(each.parent.name, each.name)) for each in (path, other)]
            rename_at(here, ends[0], here, ends[1], RENAME_EXCHANGE)
        finally:
            os.close(here)
    elif what == "mkdir":
        path.mkdir()
    elif what == "symlink":
        path.symlink_to(text)
    elif what == "link":
        os.link(path, other, follow_symlinks=False)
    elif what == "chmod":
        path.chmod(0o600 if path.stat().st_mode & 0o077 else 0o644)
    elif what == "touch":
        os.utime(path, ns=(1, time.time_ns()), follow_symlinks=False)


@pytest.mark.parametrize("where", ["through", "overlay"])
@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(steps=STEPS)
def test_every_change_outside_causes_an_event(
    mounted: Bench, where: str, steps: list[tuple[str, str, str, str]]
) -> None:
    name = f"case-{next(counter)}"
    outside, inside = (
        (mounted.root / name, mounted.live / name)
        if where == "through"
        else (mounted.base / "data" / name, mounted.live / "over" / name)
    )
    for each in DIRECTORIES:
        (outside / each).mkdir(parents=True)
    until(lambda: all((inside / each).is_dir() for each in DIRECTORIES), "the directories in the mount")
    watches = Watches([inside / each for each in DIRECTORIES], [outside / each for each in DIRECTORIES])
    try:
        for number, (what, at, to, how) in enumerate(steps):
            watches.settle(f"{number} of {steps}")
            look(inside / at, how)
            before = state(outside / at), state(outside / to)
            with suppress(OSError):
                change(what, outside / at, outside / to, f"text {number}")
            if (state(outside / at), state(outside / to)) != before:
                watches.wait(f"step {number} of {steps}")
        until(lambda: shown(inside) == shown(outside), f"what the host has after {steps}")
    finally:
        watches.close()
