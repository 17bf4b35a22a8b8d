"""Calls of the command line in this process, in surroundings of their own."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from clivefs.cli import daemons, main


class Result(NamedTuple):
    """What a call did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Shell:
    """Calls `clivefs` as a person in a directory would."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self.base = base
        self.store = base / "store"
        self._monkeypatch = monkeypatch
        self._capfd = capfd
        monkeypatch.setenv("HOME", str(base / "home"))
        monkeypatch.setenv("CLIVEFS_STORE", str(self.store))
        monkeypatch.delenv("XDG_DATA_HOME", raising=False)
        self.cd(base)

    def cd(self, directory: Path) -> None:
        self._monkeypatch.chdir(directory)

    def __call__(self, *words: str) -> Result:
        self._capfd.readouterr()
        code = main(list(words))
        out, err = self._capfd.readouterr()
        return Result(code, out, err)


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shell:
    (tmp_path / "home").mkdir()
    return Shell(tmp_path, monkeypatch, capfd)


@pytest.fixture
def workspace(shell: Shell) -> Path:
    """An empty workspace called shop, with the shell in it."""
    root = shell.base / "shop"
    assert shell("init", str(root)).code == 0
    shell.cd(root)
    return root


Answer = Callable[[str, dict[str, Any]], list[dict[str, Any]]]


class ScriptedDaemon:
    """The twin of a daemon: its socket and its facts, with answers by the test. Remembers what it was asked."""

    def __init__(self, store: Path, mountpoint: str, answer: Answer) -> None:
        self.mountpoint = mountpoint
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self._answer = answer
        run = store / "run"
        run.mkdir(parents=True, exist_ok=True)
        facts = {"pid": os.getpid(), "mountpoint": mountpoint, "version": "0"}
        (run / f"{daemons.key_of(mountpoint)}.json").write_text(json.dumps(facts))
        self._listener = socket.socket(socket.AF_UNIX)
        fd = os.open(run, os.O_PATH)
        self._listener.bind(f"/proc/self/fd/{fd}/{daemons.socket_name(mountpoint)}")
        os.close(fd)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                for line in stream:
                    request = json.loads(line)
                    self.asked.append((request["command"], request["args"]))
                    for answer in self._answer(request["command"], request["args"]):
                        stream.write(json.dumps(answer).encode() + b"\n")
                    stream.flush()

    def die(self) -> None:
        """Go without a word: the socket and the facts stay."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def scripted(shell: Shell) -> Iterator[Callable[..., ScriptedDaemon]]:
    """Starts scripted daemons in the shell's store; ended with the test."""
    started: list[ScriptedDaemon] = []

    def start(mountpoint: str, answer: Answer) -> ScriptedDaemon:
        started.append(ScriptedDaemon(shell.store, mountpoint, answer))
        return started[-1]

    yield start
    for daemon in started:
        if daemon._thread.is_alive():
            daemon.die()
