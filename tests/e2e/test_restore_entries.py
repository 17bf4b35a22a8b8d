"""Going back over changes of the mount table: what lies in an entry is its source's."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from harness import Bench, write_files
from test_restore import contents
from test_sessions import points, snapshot


def entries(bench: Bench) -> dict[str, str]:
    """The source of each entry that is shown."""
    return {each["path"]: each["source"] for each in bench.status()["workspaces"][0]["mounts"]}


def id_of(bench: Bench) -> str:
    snapshot(bench)
    return str(points(bench)[0]["id"])


@pytest.fixture
def attached(bench: Bench) -> Bench:
    """A workspace; afterwards a checkout was attached and written to through the mount."""
    bench.repository("thing", {"README": "hello\n"})
    write_files(bench.base / "mine", {"work.txt": "mine\n", "sub/more.txt": "more\n"})
    bench.write_toml('[workspace]\nname = "shop"\n')
    write_files(bench.root, {"plain.txt": "one\n"})
    bench.mount()
    bench.start = id_of(bench)  # type: ignore[attr-defined]
    bench.cli("attach", "data/mine", bench.base / "mine", cwd=bench.root)
    bench.cli("attach", "lib/thing", "git+../thing", cwd=bench.root)
    write_files(bench.live, {"data/mine/new.txt": "new\n", "lib/thing/README": "edited\n", "plain.txt": "two\n"})
    return bench


def mine(bench: Bench) -> dict[bytes, Any]:
    return contents(bench.base / "mine")


def test_a_checkout_that_was_attached_since_is_left_alone(attached: Bench) -> None:
    then, files, all_then = id_of(attached), mine(attached), contents(attached.live)
    told = json.loads(attached.cli("restore", ".", "--at", attached.start, "--json").stdout)  # type: ignore[attr-defined]
    assert told["refused"] == []
    assert {each["path"] for each in told["changes"]} >= {"Clive.toml", "plain.txt"}
    assert mine(attached) == files
    assert entries(attached) == {}
    assert sorted(os.listdir(attached.live)) == ["Clive.toml", "plain.txt"]
    assert sorted(os.listdir(attached.root)) == ["Clive.toml", "plain.txt"]
    attached.cli("undo")
    assert entries(attached).keys() == {"data/mine", "lib/thing"}
    assert contents(attached.live) == all_then
    assert mine(attached) == files
    attached.cli("redo")
    assert entries(attached) == {}
    assert mine(attached) == files
    attached.cli("restore", ".", "--at", then)
    assert contents(attached.live) == all_then
    assert mine(attached) == files
    assert (attached.root / "plain.txt").read_text() == "two\n"
    assert not (attached.root / "data/mine/work.txt").exists()
    attached.check_sound()


def test_an_attach_can_be_undone(bench: Bench) -> None:
    write_files(bench.base / "mine", {"work.txt": "mine\n"})
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    snapshot(bench)
    files = mine(bench)
    bench.cli("attach", "mine", bench.base / "mine", cwd=bench.root)
    bench.cli("undo")
    assert mine(bench) == files
    assert entries(bench) == {}
    bench.cli("redo")
    assert mine(bench) == files
    assert entries(bench).keys() == {"mine"}
    assert (bench.live / "mine/work.txt").read_text() == "mine\n"
    bench.check_sound()


def test_a_checkout_that_took_the_place_of_another_source_is_left_alone(attached: Bench) -> None:
    before, then = id_of(attached), contents(attached.live)
    files = mine(attached)
    attached.cli("detach", "data/mine", cwd=attached.root)
    attached.cli("replace", "lib/thing", attached.base / "mine", cwd=attached.root)
    snapshot(attached)
    attached.cli("restore", ".", "--at", before)
    assert mine(attached) == files
    assert contents(attached.live) == then
    attached.cli("undo")
    assert mine(attached) == files
    assert entries(attached).keys() == {"lib/thing"}
    assert (attached.live / "lib/thing/work.txt").read_text() == "mine\n"
    attached.check_sound()


def test_what_lies_in_an_entry_of_then_is_brought_back_in_one_command(attached: Bench) -> None:
    """What it showed then differs from what its source is when it is mounted again."""
    before, then = id_of(attached), contents(attached.live)
    attached.cli("detach", "data/mine", cwd=attached.root)
    (attached.base / "mine/work.txt").write_text("changed while nobody looked\n")
    told = json.loads(attached.cli("restore", ".", "--at", before, "--json").stdout)
    assert contents(attached.live) == then
    assert {"path": "data/mine/work.txt", "status": "M"} in told["changes"]
    assert (attached.base / "mine/work.txt").read_text() == "mine\n"
    for command in ("undo", "redo", "undo"):
        attached.cli(command)
        assert entries(attached).keys() == ({"lib/thing"} if command == "undo" else {"data/mine", "lib/thing"})
    attached.cli("redo")
    (attached.live / "plain.txt").write_text("later\n")
    snapshot(attached)
    attached.cli("undo")
    assert contents(attached.live) == then
    attached.cli("undo")
    assert entries(attached).keys() == {"lib/thing"}
    attached.check_sound()


def test_permissions_of_the_config_come_back(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    then = id_of(bench)
    (bench.live / "Clive.toml").chmod(0o600)
    snapshot(bench)
    bench.cli("restore", ".", "--at", then)
    assert (bench.root / "Clive.toml").stat().st_mode & 0o777 == 0o644
    assert "nothing differs" in bench.cli("restore", ".", "--at", then).stdout
    bench.check_sound()


def test_a_path_in_an_entry_that_was_not_there_is_refused(attached: Bench) -> None:
    files = mine(attached)
    ran = attached.cli("restore", "data", "--at", attached.start, check=False)  # type: ignore[attr-defined]
    assert ran.returncode == 1
    assert "data/mine was no mount entry then" in ran.stderr
    assert mine(attached) == files
    attached.check_sound()


def test_one_path_that_nobody_knows_is_said(attached: Bench) -> None:
    ran = attached.cli("restore", "plain.txt", "plian.txt", "--at", attached.start, check=False)  # type: ignore[attr-defined]
    assert ran.returncode == 1
    assert "plian.txt: it is not recorded now" in ran.stderr
    assert (attached.live / "plain.txt").read_text() == "two\n"
    attached.check_sound()


def test_the_way_to_an_entry_goes_with_it(bench: Bench) -> None:
    """In a workspace whose own directory is not written to: `lib` is there for the entry alone."""
    write_files(bench.base / "mine", {"work.txt": "mine\n"})
    bench.write_toml('[workspace]\nname = "shop"\nwrite = "overlay"\n')
    bench.mount()
    start = id_of(bench)
    bench.cli("attach", "lib/mine", bench.base / "mine")
    snapshot(bench)
    bench.cli("restore", ".", "--at", start)
    newest = points(bench)[0]
    assert (newest["origin"], newest["paths"]) == ("command:restore", ["Clive.toml", "lib", "lib/mine"])
    bench.cli("undo")
    assert (bench.live / "lib/mine/work.txt").read_text() == "mine\n"
    bench.check_sound()
