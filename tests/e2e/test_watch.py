"""`clivefs watch`: the journal as JSON lines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import WAIT_S, Bench, until

pytestmark = pytest.mark.mount


class Watch:
    """A running `clivefs watch`."""

    def __init__(self, bench: Bench, said: Path, *args: str) -> None:
        self.said = said
        command = [sys.executable, "-m", "clivefs.cli", "watch", *args]
        with said.open("wb") as out, said.with_suffix(".errors").open("wb") as errors:
            self.process = subprocess.Popen(
                command,
                cwd=bench.root,
                env=bench.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=errors,
            )

    def records(self) -> list[dict[str, Any]]:
        lines = self.said.read_text().split("\n")[:-1]
        return [json.loads(line) for line in lines]

    def changes(self) -> list[tuple[str, str, str | None]]:
        return [(each["kind"], each["path"], each["old_path"]) for each in self.records()]

    def has(self, *changes: tuple[str, str, str | None]) -> None:
        until(lambda: set(changes) <= set(self.changes()), f"{changes} in {self.said}")


@pytest.fixture
def mounted(bench: Bench) -> Iterator[Bench]:
    (bench.root / "a.txt").write_text("one\n")
    (bench.root / "src").mkdir()
    (bench.root / "src" / "main.c").write_text("int main;\n")
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    yield bench
    bench.check_sound()


def begun(bench: Bench, said: Path, *args: str) -> Watch:
    """A watch that has printed its first change."""
    watch = Watch(bench, said, *args)
    count = 0

    def heard() -> bool:
        nonlocal count
        count += 1
        (bench.live / "src" / "probe").write_text(str(count))
        return bool(watch.records())

    until(heard, "the first change")
    return watch


def test_changes_as_they_happen(mounted: Bench, tmp_path: Path) -> None:
    watch = begun(mounted, tmp_path / "said")
    (mounted.live / "a.txt").write_text("two\n")
    watch.has(("modify", "a.txt", None))
    (mounted.live / "src" / "main.c").rename(mounted.live / "src" / "moved.c")
    watch.has(("rename", "src/moved.c", "src/main.c"))
    (mounted.live / "a.txt").chmod(0o600)
    watch.has(("attributes", "a.txt", None))
    (mounted.root / "outside").write_text("x")
    watch.has(("create", "outside", None))
    (mounted.live / "outside").unlink()
    watch.has(("delete", "outside", None))
    (outside,) = (each for each in watch.records() if (each["kind"], each["path"]) == ("create", "outside"))
    assert outside["origin"] == "outside"
    assert outside["view"] == "shop"
    assert mounted.cli("show", outside["point"], cwd=mounted.root).returncode == 0
    numbers = [each["seq"] for each in watch.records()]
    assert numbers == sorted(numbers)
    watch.process.send_signal(signal.SIGINT)
    assert watch.process.wait(WAIT_S) == 130
    assert "Traceback" not in watch.said.with_suffix(".errors").read_text()


def test_goes_on_where_it_was(mounted: Bench, tmp_path: Path) -> None:
    for number in range(3):
        (mounted.live / f"f{number}").write_text(str(number))
        mounted.cli("snapshot")
    everything = Watch(mounted, tmp_path / "all", "--since", "0")
    everything.has(("create", "a.txt", None), ("create", "src/main.c", None), ("create", "f2", None))
    records = everything.records()
    second = next(each["seq"] for each in records if each["path"] == "f1")
    mounted.unmount()
    assert everything.process.wait(WAIT_S) == 0  # ends with the mount
    mounted.mount()
    rest = Watch(mounted, tmp_path / "rest", "--since", str(second))
    rest.has(("create", "f2", None))
    after = [each for each in records if each["seq"] > second]
    until(lambda: len(rest.records()) >= len(after), "the rest of what was told")
    assert rest.records()[: len(after)] == after
    (mounted.live / "later").write_text("x")
    rest.has(("create", "later", None))
    mounted.unmount()
    assert rest.process.wait(WAIT_S) == 0


def test_paths(mounted: Bench, tmp_path: Path) -> None:
    watch = begun(mounted, tmp_path / "said", "src")
    (mounted.live / "a.txt").write_text("elsewhere\n")
    (mounted.live / "src" / "main.c").write_text("changed\n")
    watch.has(("modify", "src/main.c", None))
    assert all(path.startswith("src/") for _, path, _ in watch.changes())
    watch.process.kill()
    watch.process.wait()


def test_what_is_not_mounted_and_names_that_are_not_text(mounted: Bench) -> None:
    (mounted.live / os.fsdecode(b"caf\xe9")).write_text("x")
    mounted.unmount()
    done = mounted.cli("watch", "--since", "0")
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["path_b64"] for each in records if "path_b64" in each} == {"Y2Fm6Q=="}
    assert "not mounted" in done.stderr
    assert mounted.cli("watch").stdout == ""


def test_a_number_that_is_yet_to_be(mounted: Bench) -> None:
    mounted.cli("snapshot")
    mounted.unmount()
    (record,) = (json.loads(line) for line in mounted.cli("watch", "--since", "999999").stdout.splitlines())
    assert (record["kind"], record["path"]) == ("overflow", None)
    for wrong in ("x", "-5"):
        assert mounted.cli("watch", "--since", wrong, check=False).returncode == 2


def test_in_a_fork_nothing_is_recorded(mounted: Bench) -> None:
    """Whoever stands in one would wait for ever for changes of it."""
    mounted.cli("fork", "try")
    fork = mounted.live / ".clive" / "forks" / "try"
    refused = mounted.cli("watch", check=False, cwd=fork, timeout=30)
    assert refused.returncode == 1
    assert "you are in the fork try" in refused.stderr
    assert "-w shop" in refused.stderr
    subdirectory = mounted.cli("watch", "--since", "0", check=False, cwd=fork / "src", timeout=30)
    assert (subdirectory.returncode, subdirectory.stdout) == (1, "")
