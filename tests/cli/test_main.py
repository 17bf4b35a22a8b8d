"""Parsing, exit codes, and what a person is told when something fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clivefs import __version__
from clivefs.cli import main, table

NAMES = [command.name for command in table.COMMANDS]


def test_version(shell: Any) -> None:
    assert shell("--version") == (0, f"clivefs {__version__}\n", "")


def test_help_lists_every_command(shell: Any) -> None:
    result = shell("--help")
    assert result.code == 0
    assert all(f"    {name}" in result.out for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_help_of_each_command_has_examples(shell: Any, name: str) -> None:
    result = shell(name, "--help")
    assert result.code == 0
    assert "examples:" in result.out
    assert name in result.out.partition("examples:")[2]


@pytest.mark.parametrize("words", [[], ["bogus"], ["attach", "only-a-path"], ["status", "--bogus"], ["overlay"]])
def test_wrong_usage_exits_2(shell: Any, words: list[str]) -> None:
    result = shell(*words)
    assert result.code == 2
    assert "usage: clivefs" in result.err


def test_an_error_says_what_where_and_what_to_do(shell: Any) -> None:
    result = shell("attach", "lib", "../lib")
    assert result.code == 1
    assert result.err == (
        f"clivefs: {shell.base}: there is no Clive.toml here or above\n"
        "  change to a workspace, name one with -w, or make one: clivefs init\n"
    )


def test_an_error_as_json(shell: Any) -> None:
    result = shell("detach", "lib", "--json")
    assert result.code == 1
    assert result.json["error"]["place"] == str(shell.base)


def _failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(call: object) -> int:
        raise error

    implementation = SimpleNamespace(DESCRIPTION="", EXAMPLES="", configure=lambda parser: None, run=fail)
    monkeypatch.setattr(table, "load", lambda name: implementation)


def test_the_unforeseen_is_one_line_and_its_traceback_is_kept(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (shell.store / "run").mkdir(parents=True)
    _failing(monkeypatch, ValueError("so\nodd"))
    result = shell("status")
    assert result.code == 1
    assert result.err.startswith("clivefs: internal error: ValueError: so odd\n")
    kept = shell.store / "run" / "command-error.log"
    assert str(kept) in result.err
    assert "Traceback" in kept.read_text()
    assert "Traceback" not in result.err
    assert "Traceback" in shell("--debug", "status").err
    assert "Traceback" in shell("status", "--debug").err


def test_an_oserror_is_an_answer(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, PermissionError(13, "Permission denied", "/some/where"))
    assert shell("status") == (1, "", "clivefs: /some/where: Permission denied\n")


def test_ctrl_c_is_quiet(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _failing(monkeypatch, KeyboardInterrupt())
    assert shell("status") == (130, "", "\n")


def test_a_reader_that_went_away_is_no_error(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "clivefs.cli", "completion", "bash"],
            stdout=write,
            stderr=subprocess.PIPE,
            env={**os.environ, "HOME": str(tmp_path)},
            check=False,
        )
    finally:
        os.close(write)
    assert (result.returncode, result.stderr) == (141, b"")


def test_help_loads_no_more_than_it_needs() -> None:
    """Start-up is quick because nothing heavy is imported; a clock would only say so on an idle machine."""
    script = "import sys; from clivefs.cli import main; main(['--help']); print(*sys.modules, file=sys.stderr)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stderr.split())
    assert not loaded & {"trio", "msgspec", "lmdb", "pygit2", "pyfuse3", "asyncssh", "socket", "subprocess"}


@pytest.mark.parametrize("command", ["snapshot", "restore", "undo", "redo", "fork", "merge", "run", "attach", "status"])
def test_who_only_asks_the_daemon_loads_neither_the_store_nor_libgit2(command: str) -> None:
    script = f"import sys, clivefs.cli.main, clivefs.cli.commands.{command}; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(result.stdout.split())
    assert not loaded & {"trio", "msgspec", "lmdb", "pygit2", "pyfuse3", "asyncssh", "urllib3", "clivefs.objects.store"}


def test_a_current_directory_that_is_gone(shell: Any) -> None:
    gone = shell.base / "gone"
    gone.mkdir()
    shell.cd(gone)
    gone.rmdir()
    result = shell("status")
    assert result.code == 1
    assert "the current directory cannot be used" in result.err


def test_main_is_what_the_package_hands_out() -> None:
    assert callable(main)
