"""Commands without a daemon: what they do to files, and what they ask of a daemon that is there."""

from __future__ import annotations

import base64
import json
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.cli import checkup, mountpoint, spawn
from clivefs.cli.completions import SHELLS


def _facts(root: Path, *mounts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "daemon": {"pid": 1, "mountpoint": "/mnt/point", "transport": "test", "version": "0"},
        "workspaces": [{"name": "shop", "root": str(root), "mounts": list(mounts), **more}],
    }


def _answers(**results: Any) -> Any:
    return lambda command, args: [{"ok": True, "result": results[command]}]


# init, allow, the mount table


def test_init(shell: Any) -> None:
    root = shell.base / "new"
    result = shell("init", str(root), "--name", "shop", "--json")
    assert result.code == 0
    assert result.json == {"root": str(root), "name": "shop", "written": [str(root / "Clive.toml")]}
    again = shell("init", str(root))
    assert again.code == 1
    assert "is a workspace already" in again.err


def test_attach_replace_detach_without_a_daemon(shell: Any, workspace: Path) -> None:
    (shell.base / "data").mkdir()
    (workspace / "sub").mkdir()
    before = (workspace / "Clive.toml").read_text()
    shell.cd(workspace / "sub")

    dry = shell("attach", "d", "../../data", "--write", "overlay", "--dry-run", "--json")
    assert dry.json["source"] == "../data"
    assert (workspace / "Clive.toml").read_text() == before

    result = shell("attach", "d", "../../data", "--write", "overlay", "--json")
    assert result.code == 0
    assert result.json == {
        "path": "sub/d",
        "source": "../data",
        "write": "overlay",
        "state": "not-mounted",
        "error": None,
        "excluded_in": None,
    }
    text = (workspace / "Clive.toml").read_text()
    assert text.startswith(before.rstrip("\n"))
    assert '[mounts."sub/d"]' in text
    assert "already" in shell("attach", "d", "../../data").err
    # What the user attached is allowed.
    shell.cd(workspace)
    assert shell("allow", "--json").json["allowed"] == []

    assert shell("replace", "sub/d", "git+../data@v1").code == 0
    text = (workspace / "Clive.toml").read_text()
    assert 'git = "../data"' in text
    assert 'ref = "v1"' in text
    assert shell("detach", "sub/d").code == 0
    assert (workspace / "Clive.toml").read_text() == before
    assert shell("detach", "sub/d").code == 1


def test_the_root_is_no_entry(shell: Any, workspace: Path) -> None:
    assert "no mount entry" in shell("detach", ".").err


def test_allow_names_what_it_allows(shell: Any, workspace: Path) -> None:
    toml = workspace / "Clive.toml"
    toml.write_text(toml.read_text() + '\n[mounts."etc"]\nlocal = "/etc"\n')
    result = shell("allow")
    assert result.code == 0
    assert "/etc" in result.out
    assert shell("allow").out == "allowed: nothing in it needs it\n"


def test_attach_through_a_daemon(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    entry = {"path": "lib", "source": "../lib", "write": "through", "state": "error", "error": "no such\n  remedy"}
    daemon = scripted("/mnt/point", _answers(status=_facts(workspace), attach=entry))
    result = shell("attach", "lib", "../lib", "--patch", "a.patch", "../b.patch")
    assert result.code == 1
    assert "! no such" in result.out
    assert daemon.asked[-1][1] == {
        "workspace": "shop",
        "path": "lib",
        "source": "../lib",
        "patches": ["a.patch", "../b.patch"],
        "write": None,
        "dry_run": False,
        "ref": None,
    }


def test_a_bad_source_is_wrong_usage(shell: Any, workspace: Path) -> None:
    result = shell("attach", "x", "https://example.org/x")
    assert result.code == 2
    assert "git+https://example.org/x" in result.err


def test_overlay(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    assert "not mounted" in shell("overlay", "diff", "lib").err
    patch = b"--- a\n+++ b\xff\n"
    answers = _answers(
        status=_facts(workspace),
        overlay_diff={"path": "lib", "patch": base64.b64encode(patch).decode(), "ignored": []},
        overlay_reset={
            "path": "lib",
            "files": ["a", "b"],
            "changes": [{"path": "a", "what": "added"}, {"path": "b", "what": "deleted"}],
            "dry_run": True,
        },
    )
    daemon = scripted("/mnt/point", answers)
    result = shell("overlay", "diff", "lib", "--json")
    assert base64.b64decode(result.json["patch_b64"]) == patch
    assert shell("overlay", "reset", "lib", "a", "b", "--dry-run").out == (
        "would undo a (added)\nwould undo b (deleted)\n"
    )
    assert daemon.asked[-1][1]["files"] == ["a", "b"]


def test_relink_of_what_was_never_seen(shell: Any, workspace: Path) -> None:
    result = shell("relink", str(shell.base / "nowhere"), str(workspace))
    assert result.code == 1
    assert "no workspace was seen there" in result.err


# status, unmount


def test_status(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    assert shell("status") == (0, "nothing is mounted\n", "")
    entry = {"path": "lib", "source": "../lib", "write": "through", "state": "not-allowed", "error": "say so"}
    facts = _facts(workspace, entry)
    scripted("/mnt/point", _answers(status=facts))
    result = shell("status")
    assert result.code == 1
    assert "lib  ../lib  through  not-allowed" in result.out
    assert "! lib: say so" in result.out
    assert shell("status", "--json").json == facts
    assert shell("status", "-w", "shop", "--json").json == facts
    assert "no workspace called none" in shell("status", "-w", "none").err


def test_status_of_several_mountpoints_as_json(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    for point in ("/mnt/a", "/mnt/b"):
        facts = _facts(workspace)
        facts["daemon"]["mountpoint"] = point
        scripted(point, _answers(status=facts))
    assert shell("status", "--json").code == 2
    assert shell("status", "--json", "--at", "/mnt/b").json["daemon"]["mountpoint"] == "/mnt/b"
    assert shell("status").out.count("shop") >= 2


def test_unmount_of_nothing(shell: Any) -> None:
    assert shell("unmount").err.startswith("clivefs: nothing is mounted")
    assert "no clivefs mount" in shell("unmount", "nothing").err


def test_unmount_of_one_workspace(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    facts = _facts(workspace)
    facts["workspaces"].append({"name": "other", "root": "/other", "mounts": []})
    daemon = scripted("/mnt/point", _answers(status=facts, leave={"name": "shop", "left": ["other"]}))
    assert shell("unmount", "shop").out == "unmounted shop; other stay at /mnt/point\n"
    assert daemon.asked[-1] == ("leave", {"name": "shop"})


def test_unmount_forgets_a_dead_daemon(shell: Any, workspace: Path, scripted: Callable[..., Any]) -> None:
    scripted("/mnt/point", _answers()).die()
    assert shell("unmount", "/mnt/point").code == 0
    assert shell("status").out == "nothing is mounted\n"


# What is refused before anything is mounted


def test_mount_of_what_is_no_workspace(shell: Any) -> None:
    assert "clivefs init" in shell("mount").err
    assert "there is no such directory" in shell("mount", "gone").err
    (shell.base / "file").touch()
    assert "not a directory" in shell("mount", "file").err
    assert "clivefs init" in shell("mount", ".").err
    assert not shell.store.exists()


def test_a_store_in_the_workspace(shell: Any, workspace: Path) -> None:
    result = shell("mount", "--store", "inside")
    assert result.code == 1
    assert "lies in the workspace" in result.err
    assert not (workspace / "inside").exists()


def test_a_store_of_a_newer_format(shell: Any, workspace: Path) -> None:
    (shell.store / "format").write_text("clivefs store 99\n")
    result = shell("fsck")
    assert result.code == 1
    assert "Traceback" not in result.err
    findings = {each["check"]: each for each in shell("doctor", "--json").json}
    assert findings["store"]["state"] == "missing"


@pytest.mark.parametrize(
    "filesystems, remedy", [("nodev\tproc\n\text4\n", "modprobe fuse"), ("nodev\tfuse\n\tfuseblk\n", "mknod -m 666")]
)
def test_no_device(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, shell: Any, workspace: Path, filesystems: str, remedy: str
) -> None:
    """Without the kernel's part the device cannot be; without the node alone, no module needs loading."""
    (tmp_path / "filesystems").write_text(filesystems)
    monkeypatch.setattr(mountpoint, "FILESYSTEMS", str(tmp_path / "filesystems"))
    monkeypatch.setattr(mountpoint, "FUSE_DEVICE", str(tmp_path / "fuse"))
    result = shell("mount")
    assert result.code == 1
    assert mountpoint.privileged(remedy) in result.err
    assert "--device /dev/fuse" in result.err


# doctor, fsck, xattr, completion


def test_doctor(shell: Any) -> None:
    findings = shell("doctor", "--json").json
    assert [each["check"] for each in findings][:3] == ["python", "packages", "kernel"]
    assert all(each["remedy"] for each in findings if each["state"] == "missing")
    assert not shell.store.exists()


def test_doctor_exits_1_when_something_is_missing(shell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    result = shell("doctor")
    assert result.code == 1
    assert "MISSING" in result.out
    assert f"-> {mountpoint.privileged('apt-get install git')}\n" in result.out


@pytest.mark.parametrize("uid, command", [(0, "apt-get install fuse3"), (1000, "sudo apt-get install fuse3")])
def test_a_remedy_can_be_typed_by_who_reads_it(monkeypatch: pytest.MonkeyPatch, uid: int, command: str) -> None:
    """A bare machine has no sudo, and root needs none."""
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    monkeypatch.setenv("PATH", "/nowhere")
    assert checkup._fusermount().remedy == command


def test_packages_that_do_not_load_are_named_and_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    finding = checkup._packages()
    assert finding.state == "missing"
    assert finding.detail.startswith("lmdb: ")
    assert finding.remedy is not None
    assert finding.remedy.startswith(f"{sys.executable} -m pip install ")
    assert finding.remedy.endswith(" lmdb")


def test_what_pyfuse3_is_compiled_with_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyfuse3", None)
    remedy = checkup._packages().remedy
    assert remedy is not None
    assert remedy.startswith(mountpoint.privileged("apt-get install fuse3 libfuse3-dev"))
    assert remedy.endswith(" pyfuse3")


@pytest.mark.parametrize("store, problem", [("file", "is not a directory"), ("file/below", "is not a directory")])
def test_a_store_that_cannot_be(tmp_path: Path, store: str, problem: str) -> None:
    (tmp_path / "file").touch()
    finding = checkup._store(str(tmp_path / store))
    assert (finding.state, finding.detail) == ("missing", f"{tmp_path / 'file'} {problem}")
    assert finding.remedy is not None


def test_a_directory_that_is_no_store_has_a_remedy(shell: Any) -> None:
    shell.store.mkdir()
    (shell.store / "format").write_text("something else\n")
    findings = {each["check"]: each for each in shell("doctor", "--json").json}
    assert findings["store"]["state"] == "missing"
    assert findings["store"]["remedy"]


def test_a_fusermount_without_its_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fusermount3"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert not program.stat().st_mode & stat.S_ISUID
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = checkup._fusermount()
    assert finding.state == ("warning" if os.geteuid() == 0 else "missing")
    assert finding.remedy is not None
    assert f"chmod u+s {program}" in finding.remedy


def test_fsck(shell: Any, workspace: Path) -> None:
    result = shell("fsck", "--json")
    assert result.code == 0
    assert result.json["problems"] == []
    assert "there is no store" in shell("fsck", "--store", "nowhere").err


def test_xattr_outside_a_mount(shell: Any) -> None:
    assert "not in a mounted workspace" in shell("xattr", "/etc/passwd").err


@pytest.mark.parametrize("name", sorted(SHELLS))
def test_completion_names_every_command(shell: Any, name: str) -> None:
    result = shell("completion", name)
    assert result.code == 0
    for word in ("unmount", "overlay", "reset", "--allow-other", "completion"):
        assert word.removeprefix("--") in result.out


def test_mount_brings_back_what_a_dead_daemon_served(
    shell: Any, workspace: Path, scripted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    point = shell.base / "point"
    point.mkdir()
    scripted(str(point), _answers()).die()
    (facts,) = (shell.store / "run").glob("*.json")
    gone = str(shell.base / "gone")
    facts.write_text(json.dumps({"pid": 1, "mountpoint": str(point), "roots": [str(workspace), gone]}))
    started: list[dict[str, Any]] = []

    def refuse(config: dict[str, Any], log: str, progress: object) -> dict[str, Any]:
        started.append(config)
        raise ClivefsError("enough")

    monkeypatch.setattr(spawn, "in_background", refuse)
    monkeypatch.setattr(mountpoint, "check_machine", lambda allow_other: None)
    shell.cd(shell.base)
    assert shell("mount", "--at", str(point)).code == 1
    assert [each["root"] for each in started[0]["workspaces"]] == [str(workspace)]
    assert started[0]["mountpoint"] == str(point)
