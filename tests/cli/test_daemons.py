"""The conversation with a daemon, seen from the command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import daemons


def _daemon(store: Path, mountpoint: str) -> daemons.Daemon:
    found = daemons.daemon_at(str(store), mountpoint)
    assert found is not None
    return found


def test_progress_then_result(shell: Any, scripted: Callable[..., Any]) -> None:
    twin = scripted("/mnt/a", lambda command, args: [{"progress": "1"}, {"progress": "2"}, {"ok": True, "result": [7]}])
    heard: list[str] = []
    assert _daemon(shell.store, "/mnt/a").ask("anything", heard.append, x=1) == [7]
    assert heard == ["1", "2"]
    assert twin.asked == [("anything", {"x": 1})]


@pytest.mark.parametrize(("code", "kind"), [(1, ClivefsError), (2, UsageError)])
def test_a_failure_is_the_error_that_it_was(
    shell: Any, scripted: Callable[..., Any], code: int, kind: type[ClivefsError]
) -> None:
    failure = {"ok": False, "message": "m", "place": "p", "remedy": "r", "exit_code": code}
    scripted("/mnt/a", lambda command, args: [failure])
    with pytest.raises(ClivefsError) as caught:
        _daemon(shell.store, "/mnt/a").ask("x")
    assert type(caught.value) is kind
    assert (caught.value.message, caught.value.place, caught.value.remedy) == ("m", "p", "r")


def test_a_socket_longer_than_a_socket_address(shell: Any, tmp_path: Path) -> None:
    from_long = tmp_path / ("x" * 120)
    run = from_long / "run"
    run.mkdir(parents=True)
    (run / f"{daemons.key_of('/m')}.json").write_text('{"pid": 1, "mountpoint": "/m"}')
    daemon = _daemon(from_long, "/m")
    assert len(os.fsencode(str(run / daemons.socket_name("/m")))) > 107
    assert not daemon.alive()


def test_a_dead_daemon_is_one_message_with_the_remedy(shell: Any, scripted: Callable[..., Any]) -> None:
    scripted("/mnt/a", lambda command, args: []).die()
    with pytest.raises(daemons.DaemonGone) as caught:
        _daemon(shell.store, "/mnt/a").ask("status")
    assert "clivefs mount --at /mnt/a" in str(caught.value)
    result = shell("status")
    assert result.code == 1
    assert "its daemon" in result.err
    assert shell("status", "--json").json == {"daemon": None, "workspaces": []}


def test_a_daemon_that_breaks_off(shell: Any, scripted: Callable[..., Any]) -> None:
    scripted("/mnt/a", lambda command, args: [{"progress": "1"}, []])
    with pytest.raises(daemons.DaemonGone, match="broke off"):
        _daemon(shell.store, "/mnt/a").ask("x")


def test_daemons_of_a_store(shell: Any, scripted: Callable[..., Any]) -> None:
    assert daemons.daemons(str(shell.store)) == []
    scripted("/mnt/b", lambda command, args: [])
    scripted("/mnt/a", lambda command, args: [])
    run = shell.store / "run"
    (run / "0123456789abcdef.json").write_text("not json")
    (run / "fedcba9876543210.json").write_text('{"pid": 1, "mountpoint": "/elsewhere"}')
    assert [each.mountpoint for each in daemons.daemons(str(shell.store))] == ["/mnt/a", "/mnt/b"]
    daemons.forget(str(shell.store), "/mnt/a")
    assert [each.mountpoint for each in daemons.daemons(str(shell.store))] == ["/mnt/b"]
