"""While a large file is being read aside: who needs it waits and is told, who does not goes on, and both may leave."""

from __future__ import annotations

import json
import os
import threading
from typing import Any

import pytest
from faults import planted
from harness import Bench, until, write_files
from test_sessions import points, snapshot

from clivefs.cli.daemons import Daemon, daemons
from clivefs.mounts.recording.recorder import DEFER_BYTES

pytestmark = pytest.mark.mount

_HELD = """
import time
from pathlib import Path
from clivefs.base.ports import FAULTS

def wait():
    latest_s = time.monotonic() + 60
    while not Path({gate!r}).exists() and time.monotonic() < latest_s:
        time.sleep(0.01)

FAULTS.plant("objects.large.before-rename", wait)
"""
"""Has no large file be read to its end before there is a gate."""


class Enough(Exception):
    """Whoever asked goes away."""


class Held:
    """A workspace with two points of `a`, and a large file that is not recorded before the gate opens."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._gate = bench.base / "gate"
        bench.write_toml('[workspace]\nname = "shop"\n')
        write_files(bench.root, {"a": "1\n"})
        bench.mount(env=planted(bench.base / "faults", _HELD.format(gate=str(self._gate))))
        bench.cli("session", "new", "before")
        (bench.live / "a").write_text("2\n")
        snapshot(bench)
        self.write_large(b"x")

    def write_large(self, byte: bytes) -> None:
        (self.bench.live / "large").write_bytes(byte * (DEFER_BYTES + 1))
        until(lambda: self.reading() == ["large"], "the file to be being read")

    def reading(self) -> list[str]:
        """What `status` says is being read."""
        (workspace,) = self.bench.status()["workspaces"]
        return [each["path"] for each in workspace["recording"].get("reading", ())]

    def open_gate(self) -> None:
        self._gate.touch()

    def daemon(self) -> Daemon:
        (daemon,) = daemons(self.bench.environment["CLIVEFS_STORE"])
        return daemon

    def leave(self, command: str, **args: Any) -> str:
        """Ask for it, and go away when the first is told of how far it is, which is returned."""
        told: list[str] = []

        def go(text: str) -> None:
            told.append(text)
            raise Enough

        with pytest.raises(Enough):
            self.daemon().ask(command, go, workspace="shop", dry_run=False, **args)
        return told[0]


@pytest.fixture
def held(bench: Bench) -> Held:
    return Held(bench)


def test_who_reads_the_past_goes_on_without_it_and_says_so(held: Held) -> None:
    for command in (("log",), ("show", "now:a"), ("diff", "--stat"), ("session", "list")):
        done = held.bench.cli(*command)
        assert done.stderr.startswith("not recorded yet as it is now, so not in it: large ("), command
    assert points(held.bench, "a")[0]["paths"] == ["a"]
    assert "large is not recorded yet: " in held.bench.cli("status").stdout
    held.open_gate()
    assert (snapshot(held.bench) / "large").stat().st_size == DEFER_BYTES + 1
    assert held.reading() == []
    assert held.bench.cli("log").stderr == ""
    held.bench.check_sound()


def test_another_path_is_restored_meanwhile(held: Held) -> None:
    held.bench.cli("restore", "a", "--at", "before/start")
    assert (held.bench.live / "a").read_text() == "1\n"
    assert held.reading() == ["large"]
    held.open_gate()
    snapshot(held.bench)
    assert [each["origin"] for each in points(held.bench)[:2]] == ["mount", "command:restore"]
    held.bench.check_sound()


def test_what_would_be_overwritten_is_recorded_first(held: Held) -> None:
    told: list[str] = []
    asking = threading.Thread(
        target=held.daemon().ask,
        args=("restore", told.append),
        kwargs={
            "workspace": "shop",
            "paths": [""],
            "moment": {"text": "before/start", "ms": None},
            "dry_run": False,
        },
    )
    asking.start()
    until(lambda: told, "to be told what is waited for")
    assert told[0] == "waiting for large to be recorded: 100% read"
    assert (held.bench.live / "a").read_text() == "2\n"
    held.open_gate()
    asking.join(60)
    assert sorted(os.listdir(held.bench.live)) == ["Clive.toml", "a"]
    restored, wrote = points(held.bench)[:2]
    assert (restored["origin"], wrote["paths"]) == ("command:restore", ["large"])
    held.bench.cli("undo")
    assert (held.bench.live / "large").read_bytes() == b"x" * (DEFER_BYTES + 1)
    held.bench.check_sound()


@pytest.mark.parametrize("command", ["undo", "redo", "fork"])
def test_who_went_away_meanwhile_gets_nothing(held: Held, command: str) -> None:
    assert held.leave(command, name="mine").startswith("waiting for large to be recorded")
    held.bench.cli("restore", "a", "--at", "before/start")  # its turn comes: nobody waits before it
    held.open_gate()
    snapshot(held.bench)
    assert [each["origin"] for each in points(held.bench)[:2]] == ["mount", "command:restore"]
    assert (held.bench.live / "large").exists()
    assert json.loads(held.bench.cli("fork", "--list", "--json").stdout) == []
    held.bench.check_sound()
