"""Going back: restore, undo and redo, live, in one step, and over a crash."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from faults import kill_at
from harness import Bench, until, write_files
from pastview import shown
from test_sessions import points, snapshot

_ALL = {"plain.txt": "one\n", "d/inner.txt": "inner\n", "over/one.txt": "edited\n", "lib/thing/src/a.c": "int b;\n"}


def contents(top: Path) -> dict[bytes, Any]:
    """What a tree shows, but for times."""
    return {path: (*facts[:3], *facts[4:]) for path, facts in shown(top).items()}


@pytest.fixture
def edited(shop: Bench) -> Bench:
    """Two states in all three kinds of entries; the first has the name `before`."""
    snapshot(shop)
    write_files(shop.live, _ALL)
    os.setxattr(shop.live / "plain.txt", "user.note", b"1")
    (shop.live / "d/inner.txt").chmod(0o755)
    os.symlink("inner.txt", shop.live / "d/link")
    (shop.live / "empty").mkdir()
    shop.cli("session", "new", "before")
    return shop


def spoil(bench: Bench) -> None:
    """Other content, kinds and names in all entries."""
    write_files(bench.live, {"plain.txt": "other\n", "new/file": "n\n", "over/sub/x": "x\n", "lib/thing/new": "n\n"})
    os.removexattr(bench.live / "plain.txt", "user.note")
    (bench.live / "d/inner.txt").unlink()
    (bench.live / "d/inner.txt").mkdir()
    (bench.live / "d/inner.txt/deep").write_text("was a file\n")
    (bench.live / "d/link").unlink()
    (bench.live / "d/link").write_text("was a link\n")
    (bench.live / "empty").rmdir()
    (bench.live / "empty").write_text("was a directory\n")
    (bench.live / "over/one.txt").unlink()
    os.rename(bench.live / "lib/thing/src", bench.live / "lib/thing/moved")


def test_restore_of_everything_is_one_step_back(edited: Bench) -> None:
    then = contents(edited.live)
    spoil(edited)
    now = contents(edited.live)
    assert now != then
    result = json.loads(edited.cli("restore", ".", "--at", "before/start", "--json").stdout)
    assert result["refused"] == []
    assert contents(edited.live) == then
    newest = points(edited)[0]
    assert newest["origin"] == "command:restore"
    edited.cli("undo")
    assert contents(edited.live) == now
    edited.cli("redo")
    assert contents(edited.live) == then
    assert not [name for name in os.listdir(edited.root) if name.startswith(".clive-new-")]
    edited.check_sound()


def test_a_dry_run_changes_nothing(edited: Bench) -> None:
    spoil(edited)
    now = shown(edited.live)
    count = len(points(edited))
    told = edited.cli("restore", ".", "--at", "before/start", "--dry-run").stdout
    assert "plain.txt" in told
    assert shown(edited.live) == now
    assert len(points(edited)) == count
    edited.check_sound()


def test_restore_of_paths(edited: Bench) -> None:
    spoil(edited)
    edited.cli("restore", "plain.txt", "over", "--at", "before/start")
    assert (edited.live / "plain.txt").read_text() == "one\n"
    assert (edited.live / "over/one.txt").read_text() == "edited\n"
    assert (edited.live / "new/file").exists()
    # as typed in a directory of the mount
    edited.cli("restore", "../d/inner.txt", "--at", "before/start", cwd=edited.live / "new")
    assert (edited.live / "d/inner.txt").read_text() == "inner\n"
    wrong = edited.cli("restore", "no/such", "--at", "before/start", check=False)
    assert wrong.returncode == 1
    assert "not recorded" in wrong.stderr
    edited.check_sound()


def test_times(edited: Bench) -> None:
    """New content has the present moment; what does not differ keeps its own; `--times` brings the old ones."""
    old = os.stat(edited.live / "plain.txt").st_mtime_ns
    kept = os.stat(edited.live / "d/inner.txt").st_mtime_ns
    (edited.live / "plain.txt").write_text("other\n")
    before = time.time_ns()
    edited.cli("restore", ".", "--at", "before/start")
    assert os.stat(edited.live / "plain.txt").st_mtime_ns > before - 20_000_000
    assert os.stat(edited.live / "d/inner.txt").st_mtime_ns == kept
    (edited.live / "plain.txt").write_text("other\n")
    edited.cli("restore", ".", "--at", "before/start", "--times")
    assert os.stat(edited.live / "plain.txt").st_mtime_ns == old
    edited.check_sound()


def test_a_through_entry_is_really_changed_and_a_read_only_one_left_alone(bench: Bench) -> None:
    write_files(bench.base / "data", {"f": "1\n"})
    write_files(bench.base / "shown", {"g": "1\n"})
    bench.write_toml(
        '[workspace]\nname = "shop"\n[mounts.data]\nlocal = "../data"\n'
        '[mounts.none]\nlocal = "../shown"\nwrite = "none"\n'
    )
    bench.mount()
    snapshot(bench)
    (bench.live / "data/f").write_text("2\n")
    (bench.base / "shown/g").write_text("2\n")
    done = bench.cli("restore", ".", "--at", "start", check=False)
    assert done.returncode == 1
    assert "none/g" in done.stderr
    assert (bench.base / "data/f").read_text() == "1\n"
    assert (bench.base / "shown/g").read_text() == "2\n"
    bench.check_sound()


def test_open_files_keep_what_they_opened(edited: Bench) -> None:
    spoil(edited)
    with open(edited.live / "plain.txt") as held:
        edited.cli("restore", ".", "--at", "before/start")
        assert held.read() == "other\n"
    assert (edited.live / "plain.txt").read_text() == "one\n"
    edited.check_sound()


def test_undo_and_redo_as_in_an_editor(shop: Bench) -> None:
    file = shop.live / "plain.txt"
    snapshot(shop)
    for text in ("1", "2", "3"):
        file.write_text(text)
        snapshot(shop)
    said = []
    for command in ("undo", "undo", "redo", "redo", "undo", "undo", "undo"):
        back = {"undo": "redo", "redo": "undo"}[command]
        assert f"`clivefs {back}` takes it back" in shop.cli(command).stdout
        said.append(file.read_text())
    assert said == ["2", "1", "2", "3", "2", "1", "plain\n"]
    assert "`clivefs undo 3` takes it back" in shop.cli("redo", "3").stdout
    assert file.read_text() == "3"
    shop.cli("undo", "2")
    assert file.read_text() == "1"
    file.write_text("new")
    wrong = shop.cli("redo", check=False)
    assert wrong.returncode == 1
    assert "nothing to redo" in wrong.stderr
    shop.cli("undo")
    assert file.read_text() == "1"
    shop.check_sound()


def test_what_is_written_meanwhile_is_never_lost(shop: Bench) -> None:
    """A writer that never stops: whatever restore wins over is in a point."""
    file = shop.live / "counter"
    file.write_text("0")
    snapshot(shop)
    writer = subprocess.Popen(
        ["sh", "-c", "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i > counter; sleep 0.01; done"], cwd=shop.live
    )
    results = [shop.cli("restore", "counter", "--at", "start", check=False).returncode for _ in range(4)]
    assert writer.wait() == 0
    assert set(results) <= {0, 1}
    assert file.read_text().strip() == "300"
    shop.check_sound()


def test_ignored_files_in_the_way_stay(shop: Bench) -> None:
    write_files(shop.live, {".gitignore": "*.o\n"})
    snapshot(shop)
    write_files(shop.live, {"made/x.o": "ignored\n", "made/x.c": "c\n"})
    shop.cli("restore", ".", "--at", "start", check=False)
    assert (shop.live / "made/x.o").read_text() == "ignored\n"
    assert not (shop.live / "made/x.c").exists()
    shop.check_sound()


@pytest.mark.parametrize(
    ("point", "goes_on"),
    [
        ("apply.staged", False),
        ("apply.recorded", False),
        ("apply.begun", True),
        ("apply.cleared", True),
        ("apply.put", True),
        ("apply.published", True),
        ("apply.finished", True),
        ("apply.published record.hashed", True),
        ("apply.published record.written", True),
        ("apply.published record.publishing", True),
        ("apply.published objects.environment.before-commit", True),
        ("apply.published record.published", True),
    ],
)
def test_a_crash_in_a_restore(edited: Bench, point: str, goes_on: bool) -> None:
    """Killed anywhere: at the next mount all is as before or all is restored, nothing is left over or lost."""
    then = contents(edited.live)
    spoil(edited)
    snapshot(edited)
    now = contents(edited.live)
    edited.unmount()
    kept = dict(edited.environment)
    edited.environment |= kill_at(edited.base / "faults", point)
    edited.mount()
    pid = edited.daemon_pid()
    edited.environment = kept
    edited.cli("restore", ".", "--at", "before/start", check=False)
    until(lambda: not _runs(pid), "the end of the daemon")
    edited.mount()
    assert contents(edited.live) == (then if goes_on else now)
    for top in (edited.root, edited.live, edited.live / "over", edited.live / "lib/thing"):
        assert not [name for name in os.listdir(top) if name.startswith(".clive-new-")]
    assert contents(snapshot(edited)) == (then if goes_on else now)
    assert not [each for each in points(edited) for path in each["paths"] if ".clive-new-" in path]
    if goes_on:
        edited.cli("undo")
        assert contents(edited.live) == now
    edited.check_sound(allowed="clearing the dead mount")


def test_what_was_written_after_the_crash_is_kept(edited: Bench) -> None:
    """The checkout was edited while nothing was mounted: the rest of an interrupted restore leaves that alone."""
    spoil(edited)
    snapshot(edited)
    edited.unmount()
    kept = dict(edited.environment)
    edited.environment |= kill_at(edited.base / "faults", "apply.begun")
    edited.mount()
    pid = edited.daemon_pid()
    edited.environment = kept
    edited.cli("restore", ".", "--at", "before/start", check=False)
    until(lambda: not _runs(pid), "the end of the daemon")
    (edited.root / "plain.txt").write_text("after the crash\n")
    edited.mount()
    assert (edited.live / "plain.txt").read_text() == "after the crash\n"
    assert (edited.live / "over/one.txt").read_text() == "edited\n"
    edited.check_sound(allowed="clearing the dead mount")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
