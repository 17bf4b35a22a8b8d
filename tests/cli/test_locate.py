"""Which workspace and which path a command means."""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.errors import UsageError
from clivefs.cli import entries, locate
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon
from clivefs.cli.output import Output
from clivefs.cli.surroundings import Surroundings

DAEMON = Daemon("/run", "/mnt/point", 1)
PLACE = locate.Workspace("/src/shop", "shop", DAEMON, "lib/deep")


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("x", "lib/deep/x"),
        ("../x", "lib/x"),
        ("../..", ""),
        (".", "lib/deep"),
        ("./a//b/../c", "lib/deep/a/c"),
        ("/src/shop/a", "a"),
        ("/src/shop", ""),
        ("/mnt/point/shop/a/b", "a/b"),
    ],
)
def test_paths_are_relative_to_where_one_stands(path: str, inside: str) -> None:
    assert PLACE.inside(path) == inside


@pytest.mark.parametrize(
    "path", ["../../..", "../../../x", "/src/shopping", "/etc", "/mnt/point/other", "/src/shop/../x"]
)
def test_paths_outside_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match="outside the workspace"):
        PLACE.inside(path)


def test_an_empty_path_is_not_everything() -> None:
    with pytest.raises(UsageError, match="an empty path names nothing"):
        PLACE.inside("")


def test_enclosing_root(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert locate.enclosing_root(str(deep)) is None
    (tmp_path / "a" / "Clive.toml").touch()
    assert locate.enclosing_root(str(deep)) == str(tmp_path / "a")


def test_by_the_current_directory(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    from_conftest = _serving(("shop", workspace), detach={"path": "sub/x"})
    daemon = scripted("/mnt/point", from_conftest)
    (workspace / "sub").mkdir()
    shell.cd(workspace / "sub")
    assert shell("detach", "x").code == 0
    assert daemon.asked[-1] == ("detach", {"workspace": "shop", "path": "sub/x", "dry_run": False, "ref": None})


def test_by_name(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    daemon = scripted("/mnt/point", _serving(("shop", workspace), detach={"path": "x"}))
    shell.cd(shell.base)
    assert shell("detach", "x", "-w", "shop").code == 0
    assert daemon.asked[-1][1]["path"] == "x"
    result = shell("detach", "x", "-w", "shpo")
    assert result.code == 1
    assert "did you mean shop?" in result.err


def test_a_name_at_two_mountpoints(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    for mountpoint in ("/mnt/a", "/mnt/b"):
        scripted(mountpoint, _serving(("shop", workspace), detach={"path": "x"}))
    result = shell("detach", "x", "-w", "shop")
    assert result.code == 2
    assert "--at" in result.err
    assert shell("detach", "x", "-w", "shop", "--at", "/mnt/b").code == 0
    result = shell("detach", "x", "--at", "/mnt/c")
    assert result.code == 1
    assert "nothing of clivefs is mounted there" in result.err


def test_a_daemon_with_several_workspaces_wants_a_name(
    shell: Any, workspace: Path, scripted: Callable[..., Any]
) -> None:
    scripted("/mnt/a", _serving(("shop", workspace), ("other", shell.base)))
    result = shell("detach", "x", "--at", "/mnt/a")
    assert result.code == 2
    assert "shop, other" in result.err


def _serving(*args: Any, **more: Any) -> Any:
    facts = {
        "daemon": {"pid": 1, "mountpoint": "/mnt/point", "transport": "test", "version": "0"},
        "workspaces": [{"name": name, "root": str(root), "mounts": []} for name, root in args],
    }
    return lambda command, _: [{"ok": True, "result": facts if command == "status" else more[command]}]


def test_sources_are_named_from_where_one_stands(tmp_path: Path) -> None:
    place = locate.Workspace("/src/shop", "shop", DAEMON, "lib")
    around = Surroundings({}, "/home/me", "/mnt/point/shop/lib", 0)
    call = Call(argparse.Namespace(), around, Output(io.StringIO(), io.StringIO(), as_json=False))
    # Below the mounted workspace it is the workspace's own directory that is meant ...
    assert entries.source(call, place, "vendor", None) == "lib/vendor"
    assert entries.source(call, place, "git+../repo@v1", None) == "git+repo@v1"
    assert entries.source(call, place, "/mnt/point/shop/x", None) == "/src/shop/x"
    # ... also on the way out of it, since in the mount nothing but workspaces lies beside one ...
    assert entries.source(call, place, "../../../else", None) == "../../else"
    assert entries.source(call, place, "git+~/repo@v1", None) == "git+/home/me/repo@v1"
    assert entries.source(call, place, "/data", None) == "/data"
    assert entries.source(call, place, "git+https://example.org/x.git", "main") == "git+https://example.org/x.git@main"
    assert entries.patch(call, place, "../p.patch") == "p.patch"
    assert entries.patch(call, place, "/src/shop/patches/p.patch") == "patches/p.patch"
