"""Going back: restore, undo and redo, live, in one step, and over a crash."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import kill_at, planted, signal_at
from harness import Bench, fill_sample, until, write_files
from pastview import shown
from test_sessions import points, snapshot

_ALL = {"plain.txt": "one\n", "d/inner.txt": "inner\n", "over/one.txt": "edited\n", "lib/thing/src/a.c": "int b;\n"}


def contents(top: Path) -> dict[bytes, Any]:
    """What a tree shows, but for times."""
    return {path: (*facts[:3], *facts[4:]) for path, facts in shown(top).items()}


def edit(bench: Bench) -> None:
    """Make two states in all three kinds of entries of `fill_sample`'s; the first has the name `before`."""
    snapshot(bench)
    write_files(bench.live, _ALL)
    os.setxattr(bench.live / "plain.txt", "user.note", b"1")
    (bench.live / "d/inner.txt").chmod(0o755)
    os.symlink("inner.txt", bench.live / "d/link")
    (bench.live / "empty").mkdir()
    bench.cli("session", "new", "before")


@pytest.fixture
def edited(shop: Bench) -> Bench:
    """A mounted workspace with what `edit` makes."""
    edit(shop)
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
    snapshot(edited)
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


def test_times_of_files_that_differ_in_nothing_else(shop: Bench) -> None:
    write_files(shop.live, {"d/same": "same\n", "d/other": "then\n", "alone": "same\n"})
    for name, ns in (("d/same", 1), ("d/other", 2), ("d", 3), ("alone", 4)):
        os.utime(shop.live / name, ns=(ns * 10**17, ns * 10**17))
    then = snapshot(shop).name
    old = {name: os.stat(shop.live / name).st_mtime_ns for name in ("d/same", "d/other", "d", "alone")}
    write_files(shop.live, {"d/other": "now!\n"})
    os.utime(shop.live / "alone")
    os.utime(shop.live / "d/same")
    assert shop.cli("restore", ".", "--at", then).stdout.splitlines()[:-1] == ["M d/other"]
    shop.cli("restore", ".", "--at", then, "--times")
    assert {name: os.stat(shop.live / name).st_mtime_ns for name in old} == old
    assert "nothing differs" in shop.cli("restore", ".", "--at", then, "--times").stdout
    shop.check_sound()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes devices")
def test_a_device_is_the_same_device_again(shop: Bench) -> None:
    os.mknod(shop.root / "null", 0o20644, os.makedev(1, 3))
    then = snapshot(shop).name
    (shop.live / "null").unlink()
    shop.cli("restore", "null", "--at", then)
    assert os.stat(shop.live / "null").st_rdev == os.makedev(1, 3)
    shop.check_sound()


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


def test_what_is_not_recorded_is_not_overwritten(shop: Bench) -> None:
    """An ignored file stands where a recorded one stood once: nothing would bring it back."""
    write_files(shop.live, {"made/x.log": "recorded\n", "made/other": "then\n"})
    then = snapshot(shop).name
    write_files(shop.live, {".gitignore": "*.log\n", "made/other": "now\n"})
    snapshot(shop)
    (shop.live / "made/x.log").write_text("never recorded\n")
    done = shop.cli("restore", ".", "--at", then, check=False)
    assert done.returncode == 1
    assert "made/x.log: it is in the way" in done.stderr
    assert (shop.live / "made/x.log").read_text() == "never recorded\n"
    assert (shop.live / "made/other").read_text() == "now\n"
    (shop.live / "made/x.log").unlink()
    shop.cli("restore", ".", "--at", then)
    assert (shop.live / "made/x.log").read_text() == "recorded\n"
    shop.check_sound()


def test_a_clive_toml_that_cannot_be_in_force_is_a_file_like_others(shop: Bench) -> None:
    good = (shop.root / "Clive.toml").read_text()
    (shop.live / "Clive.toml").write_text("[mounts\n")
    broken = snapshot(shop).name
    (shop.live / "Clive.toml").write_text(good)
    (shop.live / "plain.txt").write_text("later\n")
    write_files(shop.base / "late", {"one": "1\n"})
    shop.cli("attach", "late", "../late")
    shop.cli("restore", ".", "--at", broken, check=False)
    assert (shop.live / "Clive.toml").read_text() == "[mounts\n"
    assert (shop.live / "plain.txt").read_text() == "plain\n"
    assert (shop.live / "late/one").read_text() == "1\n", "what is mounted stays"
    shop.cli("undo")
    assert (shop.live / "plain.txt").read_text() == "later\n"
    shop.cli("fsck", "--store", shop.store)


def test_a_directory_has_its_attributes_again(shop: Bench) -> None:
    (shop.live / "d").mkdir()
    os.setxattr(shop.live / "d", "user.note", b"then")
    then = snapshot(shop).name
    os.setxattr(shop.live / "d", "user.note", b"now")
    os.setxattr(shop.live / "d", "user.more", b"now")
    snapshot(shop)
    shop.cli("restore", "d", "--at", then)
    assert os.listxattr(shop.live / "d") == ["user.note"]
    assert os.getxattr(shop.live / "d", "user.note") == b"then"
    assert "nothing differs" in shop.cli("restore", "d", "--at", then).stdout
    shop.check_sound()


def test_a_name_that_there_never_was_is_told_beside_others(edited: Bench) -> None:
    spoil(edited)
    done = edited.cli("restore", "plain.txt", "nosuch", "--at", "before/start", check=False)
    assert done.returncode == 1
    assert "nosuch" in done.stderr
    assert (edited.live / "plain.txt").read_text() == "other\n"
    told = json.loads(edited.cli("restore", ".", "--at", "before/start", "--dry-run", "--json").stdout)
    assert {each["path"]: each["status"] for each in told["changes"]}["d/link"] == "T"


def test_a_file_that_is_ignored_now_but_the_same_is_in_nobodys_way(shop: Bench) -> None:
    (shop.live / "a.log").write_text("recorded\n")
    snapshot(shop)
    shop.put(".gitignore", "*.log\n")
    snapshot(shop)
    shop.cli("undo")
    assert not (shop.live / ".gitignore").exists()
    assert (snapshot(shop) / "a.log").read_text() == "recorded\n"
    shop.check_sound()


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
        ("apply.swept", True),
        ("apply.finished", True),
        ("apply.published record.hashed", True),
        ("apply.published record.written", True),
        ("apply.published record.publishing", True),
        ("apply.published objects.environment.before-commit", True),
        ("apply.published record.published", True),
    ],
)
def test_a_crash_in_a_restore(bench: Bench, point: str, goes_on: bool) -> None:
    """Killed anywhere: at the next mount all is as before or all is restored, nothing is left over or lost."""
    fill_sample(bench)
    bench.mount(env=kill_at(bench.base / "faults", point))
    edit(bench)
    then = contents(bench.live)
    spoil(bench)
    snapshot(bench)
    now = contents(bench.live)
    pid = bench.daemon_pid()
    bench.cli("restore", ".", "--at", "before/start", check=False)
    until(lambda: not _runs(pid), "the end of the daemon")
    bench.mount()
    assert contents(bench.live) == (then if goes_on else now)
    for top in (bench.root, bench.live, bench.live / "over", bench.live / "lib/thing"):
        assert not [name for name in os.listdir(top) if name.startswith(".clive-new-")]
    assert contents(snapshot(bench)) == (then if goes_on else now)
    assert not [each for each in points(bench) for path in each["paths"] if ".clive-new-" in path]
    if goes_on:
        bench.cli("undo")
        assert contents(bench.live) == now
    bench.check_sound(allowed="clearing the dead mount")


def test_when_restore_has_ended_the_old_files_are_out_of_sight_and_go(edited: Bench) -> None:
    spoil(edited)
    (edited.live / "plain.txt").read_text()  # a file that the kernel knows
    edited.cli("restore", ".", "--at", "before/start")
    for top in (edited.root, edited.live, edited.live / "over", edited.live / "lib/thing"):
        assert not [name for name in os.listdir(top) if name.startswith(".clive-new-")]
    until(lambda: os.listdir(edited.store / "trash") == [], "the removal of the old files")


def test_what_is_written_right_after_a_restore_is_recorded_as_it_is(shop: Bench) -> None:
    """The recorder knows what restore has made, and reads what anybody has touched since."""
    count = 300
    for number in range(count):
        (shop.live / f"f{number}").write_text(f"old {number:06}\n")
    then = snapshot(shop).name
    for number in range(count):
        (shop.live / f"f{number}").write_text(f"mid {number:06}\n")
    shop.cli("restore", ".", "--at", then)
    for number in range(0, count, 3):  # of the same size, through the mount and beside it
        top = shop.live if number % 2 else shop.root
        with open(top / f"f{number}", "r+") as file:
            file.write("new")
    point = snapshot(shop)
    for number in range(count):
        word = "new" if number % 3 == 0 else "old"
        assert (point / f"f{number}").read_text() == f"{word} {number:06}\n"


def test_what_was_written_after_the_crash_is_kept(bench: Bench) -> None:
    """The checkout was edited while nothing was mounted: the rest of an interrupted restore leaves that alone."""
    fill_sample(bench)
    bench.mount(env=kill_at(bench.base / "faults", "apply.begun"))
    edit(bench)
    spoil(bench)
    snapshot(bench)
    pid = bench.daemon_pid()
    bench.cli("restore", ".", "--at", "before/start", check=False)
    until(lambda: not _runs(pid), "the end of the daemon")
    (bench.root / "plain.txt").write_text("after the crash\n")
    bench.mount()
    assert (bench.live / "plain.txt").read_text() == "after the crash\n"
    assert (bench.live / "over/one.txt").read_text() == "edited\n"
    bench.check_sound(allowed="clearing the dead mount")


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


_UNTIL_LEFT = """
import os, select, stat
from pathlib import Path
from clivefs.base.ports import FAULTS

def wait():
    watched = select.poll()
    for name in os.listdir("/proc/self/fd"):
        try:
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                watched.register(int(name), select.POLLRDHUP)
        except OSError:
            continue
    Path({reached!r}).touch()
    watched.poll(60_000)

FAULTS.plant({point!r}, wait)
"""
"""Has the daemon wait at a point until one who has asked it for something asks no more."""


def _interrupted(bench: Bench, environment: dict[str, str], is_there: Callable[[], bool]) -> tuple[int, str, str]:
    """The exit code and the output of a restore that gets Ctrl-C when its daemon *is_there*."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    write_files(bench.root, {f"many/{number}": f"{number}\n" for number in range(300)})
    bench.mount(env=environment)
    bench.cli("session", "new", "before")
    shutil.rmtree(bench.live / "many")
    snapshot(bench)
    waiting = subprocess.Popen(
        [sys.executable, "-P", "-m", "clivefs.cli", "restore", ".", "--at", "before/start"],
        cwd=bench.root,
        env=bench.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until(is_there, "the daemon to be there")
    waiting.send_signal(signal.SIGINT)
    told, noted = waiting.communicate(timeout=60)
    return waiting.returncode, told, noted


def _interrupted_at(bench: Bench, point: str) -> tuple[int, str, str]:
    """The same of a daemon that waits at *point* until the command has told it that nobody wants this any more."""
    reached = bench.base / "reached"
    code = _UNTIL_LEFT.format(reached=str(reached), point=point)
    return _interrupted(bench, planted(bench.base / "faults", code), reached.exists)


def test_who_leaves_before_anything_is_shown_has_changed_nothing(bench: Bench) -> None:
    code, told, noted = _interrupted_at(bench, "apply.staged")
    assert (code, told, noted) == (130, "", "stopped; nothing was changed\n\n")
    assert sorted(os.listdir(bench.live)) == ["Clive.toml"]
    until(lambda: os.listdir(bench.root) == ["Clive.toml"], "the end of the staging directory")
    assert points(bench)[0]["origin"] != "command:restore"
    bench.check_sound()


def test_who_leaves_too_late_is_told_what_was_done(bench: Bench) -> None:
    code, told, noted = _interrupted_at(bench, "apply.published")
    assert (code, noted) == (130, "\n")
    assert told.endswith("301 paths; `clivefs undo` takes it back\n")
    assert len(os.listdir(bench.live / "many")) == 300
    bench.check_sound()


def test_who_leaves_a_daemon_that_does_not_answer(bench: Bench) -> None:
    def is_stopped() -> bool:
        pids = bench.daemons()
        return bool(pids) and Path(f"/proc/{pids[0]}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    environment = signal_at(bench.base / "faults", "apply.published", signal.SIGSTOP)
    try:
        code, told, noted = _interrupted(bench, environment, is_stopped)
    finally:
        for pid in bench.daemons():
            os.kill(pid, signal.SIGCONT)
    assert (code, told) == (130, "")
    assert noted == "the daemon has not said whether it has stopped; if not, `clivefs undo` takes it back\n\n"
    until(lambda: (bench.live / "many").is_dir() and len(os.listdir(bench.live / "many")) == 300, "the restore")
    bench.check_sound()
