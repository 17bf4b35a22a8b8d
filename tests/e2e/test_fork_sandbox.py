"""`run --fork --sandbox` with commands that mean harm."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from forkbench import HAS_BWRAP
from harness import Bench, until, write_files

pytestmark = [pytest.mark.mount, pytest.mark.skipif(not HAS_BWRAP, reason="bubblewrap is not installed")]

GITDIR = "D=$(git rev-parse --absolute-git-dir); "
LIMIT_S = 60
"""For what hangs where it is wrong."""


@pytest.fixture
def work(bench: Bench) -> Bench:
    """A mounted workspace: a checkout."""
    write_files(bench.root, {"main.c": "int main;\n", ".gitignore": "*.o\n"})
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.git("init", "-q", "-b", "main", cwd=bench.root)
    bench.git("add", "-A", cwd=bench.root)
    bench.git("commit", "-q", "-m", "first", cwd=bench.root)
    bench.mount()
    return bench


def boxed(bench: Bench, script: str, name: str = "boxed", stdin: str = "") -> subprocess.CompletedProcess[str]:
    """Run *script* in a sandbox; a file that has *stdin* is its standard input."""
    given = bench.base / "given"
    given.write_text(stdin)
    words = ["run", "--fork", "--name", name, "--sandbox", "--", "sh", "-c", script]
    with given.open("rb") as file:
        return subprocess.run(
            [sys.executable, "-m", "clivefs.cli", *words],
            cwd=bench.live,
            env=bench.environment,
            stdin=file,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )


def forks(bench: Bench) -> list[str]:
    return [each["name"] for each in json.loads(bench.cli("fork", "--list", "--json", cwd=bench.live).stdout)]


def test_others_come_and_go_and_its_fork_stays_mounted(work: Bench) -> None:
    go, made = work.live / "go", work.live / ".clive/forks/boxed"
    script = (
        f"echo 1 > begun; until test -e {go}; do sleep 0.05; done; cd / && cd {made} && pwd -P && echo 2 > {made}/end"
    )
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(boxed, work, script)
        until((made / "begun").exists, "the command to begin")
        work.cli("fork", "other")
        work.cli("attach", "lib/data", work.home, "--write", "overlay")
        work.cli("fork", "--drop", "other")
        work.cli("detach", "lib/data")
        go.write_text("")
        done = running.result()
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{made}\n"
    assert (work.live / "end").read_text() == "2\n"
    work.check_sound()


def test_daemons_of_other_stores_are_out_of_its_reach(work: Bench) -> None:
    other = work.base / "store" / "other"  # in what it may read
    (work.base / "second").mkdir()
    (work.base / "second/Clive.toml").write_text('[workspace]\nname = "second"\n')
    at = ["--store", other, "--at", work.base / "mnt2"]
    work.cli("mount", work.base / "second", "--allow", *at)
    try:
        assert work.run(f"ls {other}/run").stdout.count(".sock") == 1
        done = boxed(work, f"ls {other} > listed; ls {other}/run")
        assert "run\n" in (work.live / "listed").read_text()
        assert (done.returncode, done.stdout) == (0, "")
        if str(work.base).startswith("/tmp/"):  # what it would not see anyway is not made for it to see
            given = ["run", "--fork", "--sandbox", "--store", other, "--at", work.base / "mnt2", "-w", "second", "--"]
            done = work.cli(*given, "ls", "-A", work.store, cwd=work.base / "mnt2/second")
            assert done.stdout == "other\n"
    finally:
        work.cli("unmount", work.base / "mnt2", "--store", other)
    work.check_sound()


def test_its_standard_input_is_only_read(work: Bench) -> None:
    done = boxed(work, "cat > copy; (echo pwned > /proc/self/fd/0) 2> /dev/null; true", stdin="given\n" * 100_000)
    assert done.returncode == 0, done.stderr
    assert (work.base / "given").read_text() == "given\n" * 100_000
    assert (work.live / "copy").read_text() == "given\n" * 100_000
    assert boxed(work, "true", stdin="nobody reads it\n" * 100_000).returncode == 0
    work.check_sound()


def test_its_standard_input_may_be_closed(work: Bench) -> None:
    command = f"{sys.executable} -m clivefs.cli run --fork --sandbox -- sh -c 'echo made > made' <&-"
    assert work.run(command).returncode == 0
    assert (work.live / "made").read_text() == "made\n"


def test_git_works_without_a_word(work: Bench) -> None:
    done = boxed(work, "git status --short; git commit -q --allow-empty -m made; git log --format=%s")
    assert done.returncode == 0
    assert done.stdout.startswith("made\nfirst\n")
    assert "error" not in done.stderr
    work.check_sound()


def test_what_is_known_of_its_gitdir_is_out_of_its_reach(work: Bench) -> None:
    done = boxed(
        work, GITDIR + "for i in places 0.start 0.borrowed new; do (echo x > $D/../$i) && echo wrote; done; true"
    )
    assert done.returncode == 0
    assert "wrote" not in done.stdout
    assert done.stderr.count("Read-only") == 4
    work.check_sound()


@pytest.mark.parametrize("name", ["HEAD", "packed-refs", "refs/heads/pipe", "objects/pack/pack-1.idx"])
def test_a_pipe_in_its_gitdir_keeps_nobody_waiting(work: Bench, name: str) -> None:
    done = boxed(work, GITDIR + f"echo x > made; rm -f $D/{name}; mkfifo $D/{name}")
    assert done.returncode == 125
    assert f"its {name} is not what is expected" in done.stderr
    assert (work.live / "made").read_text() == "x\n"  # only its commits are in doubt
    assert "committed, and the fork stays" in done.stderr
    assert forks(work) == ["boxed"]
    refused = work.cli("fork", "--drop", "boxed", cwd=work.live, check=False, timeout=LIMIT_S)
    assert refused.returncode == 1
    assert "--force" in refused.stderr
    work.cli("fork", "--drop", "boxed", "--force", cwd=work.live)
    assert forks(work) == []
    work.check_sound()


EVIL = """
import hashlib, os, subprocess, sys, zlib
gitdir, escaped = sys.argv[1:]
subprocess.run("git checkout -q -b side; mkfifo pipe.o", shell=True, check=True)
with open(f"{gitdir}/evil", "w") as file:
    file.write(f"#!/bin/sh\\ntouch {escaped}\\n")
os.chmod(f"{gitdir}/evil", 0o755)
with open(f"{gitdir}/config", "a") as file:
    file.write(f"[include]\\npath = {os.getcwd()}/pipe.o\\n[extensions]\\npartialClone = evil\\n")
    file.write(f'[remote "evil"]\\nurl = /\\npromisor = true\\nuploadpack = {gitdir}/evil\\n')
# Its parent is missing: what asks for it would be fetched from the "remote".
payload = b"tree %040d\\nparent %040d\\nauthor a <a> 1 +0000\\ncommitter a <a> 1 +0000\\n\\nx\\n" % (1, 2)
whole = b"commit %d\\0" % len(payload) + payload
name = hashlib.sha1(whole).hexdigest()
os.makedirs(f"{gitdir}/objects/{name[:2]}", exist_ok=True)
with open(f"{gitdir}/objects/{name[:2]}/{name[2:]}", "wb") as file:
    file.write(zlib.compress(whole))
with open(f"{gitdir}/refs/heads/side", "w") as file:
    file.write(name + "\\n")
"""


def test_settings_of_its_gitdir_are_not_ours(work: Bench) -> None:
    """Neither run nor waited for: commits are kept through a repository that has none of them."""
    escaped = work.home / "escaped"
    boxed(work, "git checkout -q -b side; git commit -q --allow-empty -m one")
    done = boxed(work, GITDIR + f"python3 - $D {escaped}", stdin=EVIL)
    assert done.returncode == 125, done.stderr
    assert "cannot be kept" in done.stderr
    assert not escaped.exists()
    work.cli("fork", "--drop", "boxed", "--force", cwd=work.live)
    work.check_sound()
