"""Collections of a store that is in use: nothing that somebody sees, forks or can undo goes, and disk comes back."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults import kill_at, signal_at
from harness import WAIT_S, Bench, until

from clivefs.objects.store import Store

KEEP_NOTHING = '\n[sessions]\nkeep = { all = "0s", hourly = "0s", daily = "0s", yearly = "0s" }\n'


def points(bench: Bench) -> list[dict[str, Any]]:
    found = json.loads(bench.cli("log", "--json").stdout)
    assert isinstance(found, list)
    return found


def snapshot(bench: Bench) -> str:
    return str(json.loads(bench.cli("snapshot", "--json").stdout)["name"])


def keep_nothing(bench: Bench) -> None:
    config = bench.root / "Clive.toml"
    config.write_text(config.read_text() + KEEP_NOTHING)
    snapshot(bench)


def save(bench: Bench, text: str) -> str:
    """Save `plain.txt`; the name of the point."""
    (bench.live / "plain.txt").write_text(text)
    return snapshot(bench)


def collect(bench: Bench, *more: str) -> Any:
    return json.loads(bench.cli("gc", "--json", *more).stdout)


def test_a_collection_thins_what_is_old_and_the_rest_is_as_it_was(shop: Bench) -> None:
    names = [save(shop, f"{number}\n" * 50) for number in range(6)]
    assert collect(shop)["points"][0]["dropped"] == 0
    keep_nothing(shop)
    before = len(points(shop))
    told = collect(shop, "--dry-run")
    assert len(points(shop)) == before
    done = collect(shop)
    assert told["points"] == done["points"]
    assert done["points"][0] == {"workspace": done["points"][0]["workspace"], "dropped": before - 1, "kept": 1}
    assert done["objects"]["removed"] > 0
    assert (shop.live / "plain.txt").read_text() == "5\n" * 50
    (left,) = points(shop)
    session = shop.live / ".clive/sessions" / left["session"]
    assert sorted(os.listdir(session)) == sorted(["start", "latest", left["name"]])
    assert not (session / names[0]).exists()
    assert (session / "start/plain.txt").read_text() == "5\n" * 50
    shop.check_sound()


def test_a_point_that_somebody_is_in_stays(shop: Bench) -> None:
    old = save(shop, "old\n")
    other = save(shop, "other\n")
    save(shop, "new\n")
    keep_nothing(shop)
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; print('in', flush=True); sys.stdin.read(); print(open('plain.txt').read())",
        ],
        cwd=shop.live / ".clive/at" / old,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "in\n"
    collect(shop)
    kept = {each["name"] for each in points(shop)}
    assert old in kept
    assert other not in kept
    assert reader.communicate("", timeout=WAIT_S)[0] == "old\n\n"
    shop.check_sound()


@pytest.mark.parametrize(
    ("point", "command"),
    [
        ("apply.staged", ("restore", ".", "--at", "start")),
        ("apply.staged", ("undo",)),
        ("fork.upper", ("fork", "try", "--at", "start")),
        ("apply.staged", ("merge", "made")),
    ],
)
def test_nothing_is_removed_beside_who_goes_back_or_forks(
    shop: Bench, tmp_path: Path, point: str, command: tuple[str, ...]
) -> None:
    """Stopped in the middle: the gate of the store is closed to a collection until it has ended."""
    save(shop, "one\n")
    shop.cli("fork", "made")
    (shop.live / ".clive/forks/made/new.txt").write_text("of the fork\n")
    shop.unmount()
    shop.mount(env=signal_at(tmp_path / "planted", point, signal.SIGSTOP))
    pid = shop.daemon_pid()
    save(shop, "two\n")
    child = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", *command],
        env=shop.environment,
        cwd=shop.root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: b"State:\tT" in Path(f"/proc/{pid}/status").read_bytes(), "the daemon to stop")
        assert not _can_collect(shop)
    finally:
        os.kill(pid, signal.SIGCONT)
        code = child.wait(WAIT_S)
    assert code == 0
    until(lambda: _can_collect(shop), "the gate to open")
    shop.check_sound()


def _can_collect(shop: Bench) -> bool:
    with (shop.store / "gc.lock").open("rb") as gate:
        try:
            fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def test_what_undo_leads_to_stays(shop: Bench) -> None:
    save(shop, "one\n")
    save(shop, "two\n")
    keep_nothing(shop)
    save(shop, "three\n")
    shop.cli("undo")
    assert (shop.live / "plain.txt").read_text() == "two\n"
    collect(shop)
    shop.cli("redo")
    assert (shop.live / "plain.txt").read_text() == "three\n"
    shop.check_sound()


def test_a_point_can_be_kept_by_name(shop: Bench) -> None:
    first = save(shop, "one\n")
    save(shop, "two\n")
    keep_nothing(shop)
    collect(shop, "--keep", first, "-w", "shop")
    assert first in {each["name"] for each in points(shop)}
    collect(shop)
    assert first not in {each["name"] for each in points(shop)}


def test_a_killed_collection_leaves_a_sound_store(shop: Bench) -> None:
    keep_nothing(shop)
    for turn in range(5):
        for number in range(4):
            save(shop, f"{turn} {number}\n" * 100)
        child = subprocess.Popen(
            [sys.executable, "-m", "clivefs.cli", "gc"],
            env=shop.environment,
            cwd=shop.root,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            child.wait(0.15 + 0.1 * turn)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
        assert (shop.live / "plain.txt").read_text() == f"{turn} 3\n" * 100
        shop.cli("fsck")
    until(lambda: collect(shop)["points"][0]["kept"] == 1, "the last one finishes")
    shop.check_sound()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_collection_that_is_ended_says_so(shop: Bench, number: signal.Signals) -> None:
    save(shop, "one\n")
    with Store.open(shop.store) as store, store.reading():  # it waits for us
        child = subprocess.Popen(
            [sys.executable, "-m", "clivefs.cli", "gc"],
            env=shop.environment,
            cwd=shop.root,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # whoever runs us may ignore it, as nohup does
        )
        until(lambda: is_collecting(shop), "it has begun")
        child.send_signal(number)
        said = child.communicate(timeout=WAIT_S)[1]
    assert child.returncode == 128 + number
    assert f"ended by {number.name}" in said
    assert "what was done stays done" in said
    shop.cli("gc")
    shop.check_sound()


def is_collecting(bench: Bench) -> bool:
    with open(bench.store / "gc.run", "ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def test_disk_comes_back_while_it_is_mounted(shop: Bench, tmp_path: Path) -> None:
    noise = tmp_path / "noise"
    for number in range(24):
        noise.write_bytes(os.urandom(900_000))
        (shop.live / "noise.bin").write_bytes(noise.read_bytes())
        save(shop, f"{number}\n")
    (shop.live / "noise.bin").unlink()
    keep_nothing(shop)
    done = collect(shop)
    assert done["bytes"]["removed"] > 20_000_000
    assert done["bytes"]["database_before"] - done["bytes"]["database"] > 10_000_000
    save(shop, "and it goes on\n")
    shop.check_sound()
    shop.mount()
    assert (shop.live / "plain.txt").read_text() == "and it goes on\n"


def test_a_list_of_sessions_tells_what_each_holds(shop: Bench) -> None:
    shop.cli("snapshot")  # the first point, of what there was
    save(shop, "one\n" * 10_000)
    shop.cli("session", "new", "second")
    (shop.live / "more").write_bytes(os.urandom(50_000))
    save(shop, "two\n")
    assert not any("bytes" in each for each in json.loads(shop.cli("session", "list", "--json").stdout))
    second, first = json.loads(shop.cli("session", "list", "--size", "--json").stdout)
    assert (second["name"], first["points"] > 1) == ("second", True)
    assert 50_000 < second["bytes"] < 60_000
    assert 0 < first["bytes"] < 50_000
    assert " KiB " in shop.cli("session", "list", "--size").stdout
    shop.check_sound()


def test_stats_tell_what_history_costs(shop: Bench) -> None:
    for number in range(5):
        save(shop, f"{number}\n" * 500)
    found = json.loads(shop.cli("stats", "--json").stdout)
    assert found["points"] == len(points(shop))
    assert sum(each["points"] for each in found["sessions"]) == found["points"]
    assert sum(each["bytes"] for each in found["sessions"]) == found["bytes"]
    (plain,) = [each for each in found["paths"] if each["path"] == "plain.txt"]
    assert plain["versions"] >= 5
    assert "plain.txt" in shop.cli("stats").stdout


# Purging


SECRET = "the password is hunter2-" + "correct-horse" * 3


def holds(bench: Bench, text: str) -> list[str]:
    """The files of the store whose bytes have *text*."""
    found = []
    for folder, _, names in os.walk(bench.store):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and text.encode() in Path(path).read_bytes():
                found.append(os.path.relpath(path, bench.store))
    return found


def leak(bench: Bench) -> str:
    """Save a secret, and go on; the name of a point that has it. There is one version of each of its files: they come
    whole."""
    (bench.live / "conf").mkdir()
    (bench.live / "conf/other").write_text("kept\n")
    save(bench, "before\n")
    for path, content in (("conf/key", SECRET), ("conf/large", SECRET * 30_000)):
        bench.put(path, content)
    name = save(bench, "with it\n")
    (bench.live / "conf/key").unlink()
    (bench.live / "conf/large").unlink()
    save(bench, "after\n")
    return name


def having(bench: Bench, path: str) -> int:
    """How many points have *path*."""
    return sum((bench.live / ".clive/at" / each["name"] / path).exists() for each in points(bench))


def test_what_is_purged_is_nowhere_any_more(shop: Bench) -> None:
    name = leak(shop)
    shop.cli("fork", "try", "--at", name)
    assert (shop.live / ".clive/at" / name / "conf/key").read_text() == SECRET
    shop.cli("git", "log", "--oneline")
    refused = shop.cli("purge", "conf/key", "--yes", check=False)
    assert refused.returncode == 1
    assert "unmount" in refused.stderr
    told = json.loads(shop.cli("purge", "conf/key", "--dry-run", "--json").stdout)
    have = {path: having(shop, path) for path in ("conf/key", "conf/large")}
    assert told["points"] == have["conf/key"] >= 1
    before = points(shop)
    shop.unmount()
    assert holds(shop, SECRET)
    assert shop.cli("purge", "conf/key", check=False).returncode == 2
    for path, count in have.items():
        done = json.loads(shop.cli("purge", path, "--yes", "--json").stdout)
        assert (done["points"], done["versions"], done["left"]) == (count, 1, [])
    assert holds(shop, SECRET) == []
    nothing = shop.cli("purge", "conf/key", "--yes", check=False)
    assert nothing.returncode == 1
    assert nothing.stdout.startswith("no recorded point has")
    shop.mount()
    after = points(shop)
    assert [each["name"] for each in after[-len(before) :]] == [each["name"] for each in before]
    past = shop.live / ".clive/at" / name
    assert sorted(os.listdir(past / "conf")) == ["other"]
    assert (past / "plain.txt").read_text() == "with it\n"
    assert (shop.live / ".clive/forks/try/plain.txt").read_text() == "with it\n"
    assert not (shop.live / ".clive/forks/try/conf/key").exists()
    export = shop.base / "export.git"
    shop.cli("export", "--git", export)
    commits = shop.run(["git", f"--git-dir={export}", "rev-list", "--all"]).stdout.split()
    assert len(commits) == len(points(shop))
    grep = shop.run(["git", f"--git-dir={export}", "grep", "-q", "hunter2", *commits], check=False)
    assert grep.returncode == 1
    shop.check_sound()


def test_an_empty_directory_can_be_purged_by_its_name(shop: Bench) -> None:
    (shop.live / f"d{SECRET.strip()}").mkdir()
    name = save(shop, "with it\n")
    assert f"d{SECRET.strip()}" in os.listdir(shop.live / ".clive/at" / name)
    (shop.live / f"d{SECRET.strip()}").rmdir()
    save(shop, "without\n")
    have = having(shop, f"d{SECRET.strip()}")
    shop.unmount()
    assert holds(shop, SECRET.strip())
    done = json.loads(shop.cli("purge", f"d{SECRET.strip()}", "--yes", "--json").stdout)
    assert done["points"] == have >= 1
    assert holds(shop, SECRET.strip()) == []
    shop.check_sound()


def test_commands_that_had_the_secret_are_purged_as_well(shop: Bench) -> None:
    token = "hunter2-correct"
    script = f"mkdir conf; echo key={token} > conf/key; sleep 0.1"
    shop.cli("run", "--fork", "--", "sh", "-c", script, cwd=shop.live)
    shop.cli(
        "run", "--fork", "--name", "told", "--", "sh", "-c", f"echo {token} > /dev/null; echo 1 > made", cwd=shop.live
    )
    (shop.live / "taken").write_text("by the live view\n")
    sandboxed = ["--sandbox"] if shutil.which("bwrap") else []
    words = ["--", "sh", "-c", f"cat conf/key > copy; echo {token} | cmp - copy; rm copy"]
    assert shop.cli("run", "--fork", "--name", "boxed", *sandboxed, *words, cwd=shop.live).returncode == 0
    (shop.live / "conf/key").unlink()
    snapshot(shop)
    shop.unmount()
    assert holds(shop, token)
    count = 3 + len(sandboxed)  # two commands, the point that removed it, an audit
    assert json.loads(shop.cli("purge", "conf/key", "--dry-run", "--json").stdout)["mentions"] == count
    done = shop.cli("purge", "conf/key", "--yes")
    assert f"mentioned it: {count}\n" in done.stdout
    assert holds(shop, token) == []
    assert shop.cli("purge", "conf/key", "--yes", check=False).returncode == 1
    shop.mount()
    if sandboxed:
        audit = json.loads(shop.cli("fork", "show", "boxed", "--audit", "--json", cwd=shop.live).stdout)
        assert (audit["command"], audit["removed"]) == ("", ["copy"])
        assert "conf/key" not in audit["read"]
    assert (shop.live / "made").read_text() == "1\n"
    shop.check_sound()


def copies(bench: Bench) -> set[Path]:
    """The repositories of the store in which something is kept."""
    return {each.parent for each in bench.store.glob("repositories/*.git/packed-refs")}


def test_a_copy_of_the_repository_that_has_it_goes_as_well(shop: Bench) -> None:
    before = until(lambda: copies(shop), "a copy for the mount entry")
    shop.git("init", "-q", "-b", "main", cwd=shop.root)
    for name in ("key", "another"):
        (shop.root / name).write_text(f"{SECRET}{name}")
    shop.git("add", "key", "another")
    shop.git("commit", "-q", "-m", "not a good idea")
    snapshot(shop)
    shop.cli("fork", "try")
    (copy,) = until(lambda: copies(shop) - before, "a copy for the fork")
    for name in ("key", "another"):
        (shop.root / name).unlink()
    shop.unmount()
    left = json.loads(shop.cli("purge", "another", "--yes", "--json").stdout)["left"]
    assert left == [
        f"{copy} has it, and stays: a fork, or a git working tree of the store, borrows from it",
        f"your own repository has it: {shop.root}/.git",
    ]
    shop.mount()
    shop.cli("fork", "--drop", "try")
    shop.unmount()
    for command in ("update-ref -d HEAD", "read-tree --empty", "reflog expire --expire=now --all", "gc -q --prune=now"):
        shop.git(*command.split(), cwd=shop.root)
    assert json.loads(shop.cli("purge", "key", "--yes", "--json").stdout)["left"] == []
    assert copies(shop) == before
    shop.mount()
    shop.check_sound()


@pytest.mark.parametrize("point", ["purge.written", "purge.published", "purge.swept"])
def test_a_killed_purge_has_changed_nothing_or_can_be_finished(shop: Bench, tmp_path: Path, point: str) -> None:
    name = leak(shop)
    shop.unmount()
    environment = kill_at(tmp_path / "planted", point, program="clivefs.cli")
    killed = shop.cli("purge", "conf/key", "--yes", check=False, env=environment)
    assert killed.returncode == -signal.SIGKILL
    shop.cli("fsck")
    again = json.loads(shop.cli("purge", "conf/key", "--yes", "--json").stdout)
    assert bool(again["points"]) == (point == "purge.written")
    shop.cli("purge", "conf/large", "--yes")
    assert holds(shop, SECRET) == []
    shop.mount()
    assert os.listdir(shop.live / ".clive/at" / name / "conf") == ["other"]
    shop.check_sound()
