"""`run --fork`: a command as a transaction."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forkbench import FILES, HAS_BWRAP, listed, mount_checkout
from harness import WAIT_S, Bench, until

pytestmark = pytest.mark.mount

SANDBOX = pytest.mark.skipif(not HAS_BWRAP, reason="bubblewrap is not installed")


@pytest.fixture
def work(bench: Bench) -> Bench:
    mount_checkout(bench)
    return bench


def run_fork(bench: Bench, *words: object, check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
    return bench.cli("run", "--fork", *words, check=check, cwd=more.pop("cwd", bench.live), **more)


def test_a_command_commits_all_or_nothing(work: Bench) -> None:
    run_fork(work, "--", "sh", "-c", "echo a > a; rm other; test $(basename $PWD) = src", cwd=work.live / "src")
    assert (work.root / "src/a").read_text() == "a\n"
    assert not (work.root / "src/other").exists()
    failed = run_fork(work, "--", "sh", "-c", "echo b > b; exit 7", check=False)
    assert failed.returncode == 7
    dry = run_fork(work, "--dry-run", "--", "sh", "-c", "echo b > b")
    assert "+b" in dry.stdout
    assert not (work.live / "b").exists()
    assert run_fork(work, "--", "sh", "-c", "kill -9 $$", check=False).returncode == 137
    assert work.cli("run", "--", "sh", "-c", "mkdir by-live; exit 4", cwd=work.live, check=False).returncode == 4
    assert (work.live / "by-live").exists()
    assert listed(work) == {}
    assert "run: sh -c" in work.cli("log", cwd=work.live).stdout
    work.cli("undo", "2", cwd=work.live)
    assert (work.live / "src/other").exists()
    work.check_sound()


@pytest.mark.parametrize("sandboxed", [False, pytest.param(True, marks=SANDBOX)])
def test_what_cannot_be_run_is_told_as_env_does(work: Bench, sandboxed: bool) -> None:
    (work.live / "plain").write_text("exit 3\n")
    (work.live / "script").write_text("echo made > made\nexit 4\n")
    (work.live / "script").chmod(0o755)
    given = ["--sandbox"] if sandboxed else []
    for words, status in {
        ("no-such-command",): 127,
        ("./none",): 127,
        ("./plain",): 126,
        ("./plain/none",): 126,
        ("./src",): 126,
        ("./script",): 4,
    }.items():
        done = run_fork(work, *given, "--", *words, check=False)
        assert done.returncode == status, (words, done.stderr)
        assert f"the command failed ({status})" in done.stderr
    assert work.cli("run", "--", "./none", cwd=work.live, check=False).returncode == 127
    assert listed(work) == {}
    work.check_sound()


def test_the_second_of_two_who_wrote_the_same_is_refused(work: Bench) -> None:
    first = "echo first > src/other; echo f > first"
    second = f"{sys.executable} -m clivefs.cli run --fork -- sh -c '{first}' && echo second > src/other && echo s > s"
    done = run_fork(
        work,
        "--name",
        "second",
        "--",
        "sh",
        "-c",
        f"cd {work.live} && "
        + second.replace("&& echo second", f"&& cd {work.live}/.clive/forks/second && echo second"),
        check=False,
    )
    assert done.returncode == 125, done.stderr
    assert "src/other" in done.stderr
    assert (work.live / "src/other").read_text() == "first\n"
    assert not (work.live / "s").exists()
    kept = work.live / ".clive/forks/second"
    assert (kept / "src/other").read_text() == "second\n"
    assert listed(work)["second"]["kept"]
    merged = work.cli("merge", "second", cwd=work.live, check=False)
    assert merged.returncode == 1
    assert (work.live / "s").read_text() == "s\n"
    work.check_sound()


def test_two_who_counted_up_from_the_same_number(work: Bench) -> None:
    (work.live / "count").write_text("0\n")
    count = "echo $(($(cat count) + 1)) > count"
    other = f"(cd {work.live} && {sys.executable} -m clivefs.cli run --fork -- sh -c '{count}')"
    done = run_fork(work, "--name", "second", "--json", "--", "sh", "-c", f"{other} && {count}", check=False)
    assert done.returncode == 125
    assert json.loads(done.stdout)["conflicts"] == ["count"]
    assert (work.live / "count").read_text() == "1\n"
    assert listed(work)["second"]["conflicts"] == []
    work.check_sound()


def test_ignored_files_that_stay_behind_are_named(work: Bench) -> None:
    done = run_fork(work, "--", "sh", "-c", "echo o > main.o; echo m > node_modules/top.js; echo t > text")
    assert "committed 1 path;" in done.stderr
    assert "ignored files are not brought back: main.o, node_modules\n" in done.stderr
    assert (work.live / "main.o").read_text() == "stale\n"
    told = json.loads(run_fork(work, "--json", "--", "sh", "-c", "echo o > main.o").stdout)
    assert told["ignored"] == ["main.o"]
    assert told["changes"] == []
    work.check_sound()


def test_others_never_see_half_of_a_transaction(work: Bench) -> None:
    script = "; ".join(f"echo new > file{number}" for number in range(200))
    names = [work.live / f"file{number}" for number in range(200)]
    runner = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "run", "--fork", "--", "sh", "-c", script],
        cwd=work.live,
        env=work.environment,
    )
    seen: set[int] = set()
    while runner.poll() is None:
        seen.add(sum(name.startswith("file") for name in os.listdir(work.live)))
    assert runner.returncode == 0
    assert all(name.exists() for name in names)
    assert seen <= {0, 200}
    work.check_sound()


def test_a_runner_that_is_killed_leaves_its_fork(work: Bench) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "run", "--fork", "--name", "left", "--", "sleep", "60"],
        cwd=work.live,
        env=work.environment,
        stderr=subprocess.DEVNULL,
    )
    children = Path(f"/proc/{runner.pid}/task/{runner.pid}/children")

    def commands() -> list[int]:
        found = []
        for pid in children.read_text().split():
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):
                    found.append(int(pid))
        return found

    (child,) = until(commands, "the command to run")
    runner.kill()
    runner.wait()
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    assert listed(work)["left"]["command"] == "sleep 60"
    work.cli("fork", "--drop", "left", cwd=work.live)
    work.check_sound()


def test_a_terminated_runner_ends_its_command_and_drops(work: Bench) -> None:
    runner = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "run", "--fork", "--", "sh", "-c", "echo x > x; exec sleep 60"],
        cwd=work.live,
        env=work.environment,
        stderr=subprocess.DEVNULL,
    )
    until(lambda: list((work.live / ".clive/forks").glob("*/x")), "the command to write")
    runner.terminate()
    assert runner.wait(WAIT_S) == 128 + signal.SIGTERM
    assert listed(work) == {}
    assert not (work.live / "x").exists()
    work.check_sound()


def test_a_sandbox_without_bubblewrap_says_how_to_get_it(work: Bench) -> None:
    done = run_fork(work, "--sandbox", "--", "true", check=False, env={"PATH": "/nonexistent"})
    assert done.returncode == 125
    assert "apt install bubblewrap" in done.stderr
    assert listed(work) == {}


@SANDBOX
def test_a_sandboxed_command_writes_nowhere_else(work: Bench) -> None:
    outside = work.home / "escaped"
    script = (
        f"cat main.c > copy; ls src; cat missing; echo x > {outside}; echo x > {work.live}/escaped;"
        f" echo x > {work.root}/escaped; ls {work.store}/run/*.sock; echo t > /tmp/t && git commit -qm x --allow-empty;"
        " rm src/other; true"
    )
    run_fork(work, "--name", "boxed", "--sandbox", "--", "sh", "-c", script)
    assert (work.live / "copy").read_text() == FILES["main.c"]
    for escaped in (outside, work.live / "escaped", work.root / "escaped"):
        assert not escaped.exists()
    audit = json.loads(work.cli("fork", "show", "boxed", "--audit", "--json", cwd=work.live).stdout)
    assert "main.c" in audit["read"]
    assert "src" in audit["listed"]
    assert "missing" in audit["missing"]
    assert "copy" in audit["written"]
    assert audit["removed"] == ["src/other"]
    assert audit["status"] == 0
    assert listed(work) == {}
    work.cli("fork", "--drop", "boxed", cwd=work.live)
    assert work.cli("fork", "show", "boxed", "--audit", cwd=work.live, check=False).returncode == 1
    work.check_sound()
