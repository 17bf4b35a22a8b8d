"""What is told of forks is of trees that nothing leads to: no collection comes in between."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from faults import planted, signal_at
from harness import Bench, until

from clivefs.objects.gcgate import Gate

pytestmark = pytest.mark.mount


def _is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def _may_collect(store: Path) -> bool:
    """Whether a collection could remove something at this moment."""
    fd = os.open(store, os.O_RDONLY | os.O_DIRECTORY)
    try:
        gate = Gate(fd)
    finally:
        os.close(fd)
    try:
        with gate.alone() as alone:
            return alone
    finally:
        gate.close()


@pytest.mark.parametrize("words", [["--list"], ["show", "try"], ["--diff", "try"]], ids=["list", "show", "diff"])
def test_no_collection_while_forks_are_told_of(bench: Bench, tmp_path: Path, words: list[str]) -> None:
    """The daemon is stopped, by a fault point, where it has looked at a fork and has not told of it yet."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    (bench.root / "a").write_text("one\n")
    bench.mount(env=signal_at(tmp_path / "planted", "fork.looked-at", signal.SIGSTOP))
    bench.cli("fork", "try")
    (bench.live / ".clive/forks/try/a").write_text("two\n")
    pid = bench.daemon_pid()
    command = [sys.executable, "-m", "clivefs.cli", "fork", *words]
    with subprocess.Popen(command, cwd=bench.root, env=bench.environment, stdout=subprocess.PIPE, text=True) as told:
        try:
            until(lambda: _is_stopped(pid), "the daemon to be stopped")
            assert not _may_collect(bench.store)
        finally:
            os.kill(pid, signal.SIGCONT)
        out, _ = told.communicate(timeout=60)
        assert told.returncode == 0
        assert "try" in out or "+two" in out
    until(lambda: _may_collect(bench.store), "the end of the reading")
    bench.check_sound()


LATE = """
import trio
from clivefs.daemon.forks.listing import Listing
facts = Listing._facts
async def late(self, live, shown, *rest):
    open({begun!r}, "w").close()
    while shown in self._shown.of(live):
        await trio.sleep(0.01)
    return await facts(self, live, shown, *rest)
Listing._facts = late
"""
"""Lets nobody tell of a fork before it is dropped."""


@pytest.mark.parametrize("words, told", [(["--list"], ""), (["show", "try"], "try: it was dropped meanwhile")])
def test_a_fork_that_is_dropped_while_it_is_told_of(bench: Bench, tmp_path: Path, words: list[str], told: str) -> None:
    begun = tmp_path / "begun"
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount(env=planted(tmp_path / "planted", LATE.format(begun=str(begun))))
    bench.cli("fork", "try")
    (bench.live / ".clive/forks/try/a").write_text("two\n")
    command = [sys.executable, "-m", "clivefs.cli", "fork", *words]
    with subprocess.Popen(command, cwd=bench.root, env=bench.environment, stderr=subprocess.PIPE, text=True) as telling:
        until(begun.exists, "somebody to look at the fork")
        bench.cli("fork", "--drop", "try")
        _, err = telling.communicate(timeout=60)
        assert told in err
        assert telling.returncode == bool(told)
    bench.check_sound()
