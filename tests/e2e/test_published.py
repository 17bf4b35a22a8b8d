"""Releases and archives in a mounted workspace: fetched by the real clients, killed half-way, on a full disk."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import WAIT_S, Bench, until
from modules import archive, index, sdist, wheel

from clivefs.objects.encode import hash_object
from clivefs.objects.store import Store

pytestmark = pytest.mark.mount


def toml(**entries: str) -> str:
    return '[workspace]\nname = "shop"\n' + "".join(f'[mounts."{path}"]\n{keys}\n' for path, keys in entries.items())


# Which file of a release


def test_the_sdist_rather_than_the_wheel(bench: Bench) -> None:
    modules = index(bench)
    wheel(modules, "thing", "1.0", {"thing.py": "V = 'wheel'\n"})
    digest = sdist(modules, "thing", "1.0", {"src/thing.py": "V = 'sdist'\n"})
    bench.write_toml(toml())
    bench.mount()
    bench.cli("attach", "built", "pypi:thing==1.0")
    bench.cli("attach", "source", "pypi:thing==1.0#sdist")
    assert (bench.live / "built/thing.py").read_text() == "V = 'wheel'\n"
    assert (bench.live / "source/src/thing.py").read_text() == "V = 'sdist'\n"
    assert "sdist = true" in (bench.root / "Clive.toml").read_text()
    entry = bench.entry("source")
    assert (entry["source"], entry["sha256"]) == ("pypi:thing==1.0#sdist", digest)
    layer = os.getxattr(bench.live / "source/src/thing.py", b"user.clive.layer")
    assert layer == b"pypi:thing==1.0"
    # Edits of the one are not edits of the other.
    (bench.live / "built/mine").write_text("mine\n")
    bench.cli("replace", "built", "pypi:thing==1.0#sdist")
    assert not (bench.live / "built/mine").exists()
    bench.cli("replace", "built", "pypi:thing==1.0")
    assert (bench.live / "built/mine").read_text() == "mine\n"
    assert "sdist" not in (bench.root / "Clive.toml").read_text().partition('[mounts."source"]')[0]
    # The lock says which of the two it is, also where nothing was fetched yet.
    bench.cli("lock")
    bench.unmount()
    until(lambda: not bench.daemons(), "the end of the daemon")
    shutil.rmtree(bench.store)
    bench.mount()
    assert bench.entry("source")["sha256"] == digest
    assert (bench.live / "source/src/thing.py").exists()
    assert (bench.live / "built/thing.py").exists()
    bench.check_sound()


def test_a_release_that_is_not(bench: Bench) -> None:
    modules = index(bench)
    for version in ("1.0", "1.1", "2.0"):
        wheel(modules, "thing", version, {"thing.py": ""})
    bench.write_toml(toml(lib='pypi = "thing==1.2"', other='pypi = "nothing==1.0"'))
    bench.mount(check=False)
    assert "Near it are 1.0, 1.1, 2.0" in bench.entry("lib")["error"]
    assert "there is no package nothing" in bench.entry("other")["error"]
    done = bench.cli("attach", "third", "pypi:thing==1.3", check=False)
    assert done.returncode == 1
    assert "Near it are" in done.stderr
    assert "third" not in (bench.root / "Clive.toml").read_text()
    bench.check_sound()


# What the clients leave, and when they end


def fake_npm(bench: Bench, script: str) -> None:
    """An `npm` that is found first, for what the real one does not do when it is asked to."""
    directory = bench.base / "bin"
    directory.mkdir()
    path = directory / "npm"
    path.write_text(f"#!/bin/sh\n{script}")
    path.chmod(0o755)
    bench.environment["PATH"] = f"{directory}:{os.environ['PATH']}"


def test_a_client_has_an_ordinary_umask(bench: Bench) -> None:
    fake_npm(bench, f"umask > {bench.base}/umask\nexit 1\n")
    bench.write_toml(toml(lib='npm = "thing@1.0.0"'))
    bench.mount(check=False)
    assert (bench.base / "umask").read_text().strip() == "0022"


def test_unmounting_ends_a_client_that_does_not_end(bench: Bench) -> None:
    fake_npm(bench, f"echo $$ > {bench.base}/pid\nsleep 600 & wait\n")
    bench.write_toml(toml())
    bench.mount()
    attach = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "attach", "lib", "npm:thing@1.0.0"],
        cwd=bench.root,
        env=bench.environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    )
    try:
        pid = int(until(lambda: (bench.base / "pid").exists() and (bench.base / "pid").read_text(), "npm runs"))
        bench.unmount()
        until(lambda: not bench.daemons(), "the end of the daemon")
        until(lambda: not Path(f"/proc/{pid}").exists(), "the end of npm")
        assert attach.wait(WAIT_S) == 1
    finally:
        attach.kill()
        attach.communicate()
    assert "lib" not in (bench.root / "Clive.toml").read_text()
    bench.check_sound()


# Interrupted, concurrent, full


def test_a_daemon_that_is_killed_while_it_unpacks(bench: Bench) -> None:
    files = {f"d{number // 100}/f{number}": f"{number}\n" * 50 for number in range(6000)}
    archive(bench.base / "big.tar.gz", files)
    bench.write_toml(toml(lib='archive = "../big.tar.gz"', other='archive = "../big.tar.gz"\nstrip = 0'))
    command = [sys.executable, "-m", "clivefs.cli", "mount", str(bench.root), "--at", str(bench.mountpoint)]
    killed = 0
    for pause_s in (0.0, 0.15, 0.3, 0.6, 1.0):  # from before it begins until it is done
        mount = subprocess.Popen(
            command, cwd=bench.root, env=bench.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pid = until(lambda m=mount: _daemon(bench) or m.poll() is not None, "the daemon")
        time.sleep(pause_s)
        if pid is not True and mount.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                killed += 1
        mount.wait(WAIT_S)
        if bench.is_mounted():
            bench.cli("unmount", bench.mountpoint, check=False)
        until(lambda: not bench.daemons(), "the end of the daemon")
        if (bench.store / "format").exists():  # not where it was killed before it made its store
            bench.cli("fsck")
    assert killed
    bench.mount()
    for path, content in list(files.items())[::500]:
        assert (bench.live / "lib" / path).read_text() == content
    assert len(list((bench.live / "other/thing/d59").iterdir())) == 100
    assert os.listdir(bench.store / "downloads") == []
    bench.check_sound(allowed="clearing the dead mount")


def _daemon(bench: Bench) -> int | None:
    found = bench.daemons()
    return found[0] if found else None


def test_many_who_fetch_one_release(bench: Bench) -> None:
    modules = index(bench)
    digest = wheel(modules, "thing", "1.0", {f"thing/{number}.py": f"{number}\n" for number in range(800)})
    roots = [bench.base / f"w{number}" for number in range(4)]
    for root in roots:
        root.mkdir()
        (root / "Clive.toml").write_text(toml(lib='pypi = "thing==1.0"'))
    command = [sys.executable, "-m", "clivefs.cli", "lock", "--json"]
    running = [
        subprocess.Popen(command, cwd=root, env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for root in roots
    ]
    for each in running:
        out, errors = each.communicate(timeout=120)
        assert each.returncode == 0, errors
        assert json.loads(out)["entries"][0]["found"]["sha256"] == digest
    assert len({(root / "Clive.lock").read_bytes() for root in roots}) == 1
    assert os.listdir(bench.store / "downloads") == []
    bench.cli("fsck")


@pytest.fixture
def small(bench: Bench) -> Iterator[Bench]:
    """A bench whose store lies on a filesystem of 24 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    bench.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "none", str(bench.store)], check=True)
    try:
        yield bench
    finally:
        bench.close()
        subprocess.run(["umount", "-l", str(bench.store)], check=True)


def test_a_disk_that_is_full_while_an_archive_is_unpacked(small: Bench) -> None:
    archive(small.base / "big.tar.gz", {f"f{number}": os.urandom(500_000) for number in range(120)})
    archive(small.base / "little.tar.gz", {"f": "little\n"})
    small.write_toml(toml(big='archive = "../big.tar.gz"', little='archive = "../little.tar.gz"'))
    small.mount(check=False)
    assert "No space left" in small.entry("big")["error"]
    assert (small.live / "little/f").read_text() == "little\n"
    free = os.statvfs(small.store)
    assert free.f_bavail * free.f_bsize > 10 << 20  # what was unpacked until then is given back
    (small.live / "little/mine").write_text("mine\n")
    archive(small.base / "big.tar.gz", {"f": "smaller\n"})
    small.cli("replace", "big", "archive:../big.tar.gz", "--json")
    assert (small.live / "big/f").read_text() == "smaller\n"
    small.check_sound()


def test_an_archive_that_is_hostile_leaves_the_others_alone(bench: Bench) -> None:
    archive(bench.base / "bad.tar.gz", {**{f"f{n}": "x" * n for n in range(2000)}, "../../escape": "bad\n"})
    archive(bench.base / "good.tar.gz", {"f": "good\n"})
    bench.write_toml(toml(bad='archive = "../bad.tar.gz"', good='archive = "../good.tar.gz"'))
    bench.mount(check=False)
    assert "`thing/../../escape`" in bench.entry("bad")["error"]
    assert os.listdir(bench.live / "bad") == []
    assert (bench.live / "good/f").read_text() == "good\n"
    bench.check_sound()
    with Store.open(bench.store, create=False) as store:
        assert store.has(hash_object("blob", b"good\n"))
        assert not any(store.has(hash_object("blob", b"x" * number)) for number in range(1, 2000))


# The real thing


@pytest.mark.network
def test_real_modules_are_locked_and_run_from_the_mount(bench: Bench) -> None:
    bench.write_toml(
        toml(**{"vendor/six": 'pypi = "six==1.16.0"', "src/markupsafe": 'pypi = "MarkupSafe==2.1.5"\nsdist = true'})
    )
    bench.mount()
    bench.cli("lock")
    assert bench.cli("lock", "--check").returncode == 0
    text = (bench.root / "Clive.lock").read_text()
    assert "://" not in text
    assert (bench.live / "src/markupsafe/src/markupsafe/_speedups.c").exists()
    done = bench.run(
        [sys.executable, "-c", "import six; print(six.__file__)"],
        env={"PYTHONPATH": str(bench.live / "vendor/six"), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.stdout.startswith(str(bench.live))
    bench.check_sound()


@pytest.mark.network
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_real_packages_of_npm_run_from_the_mount(bench: Bench) -> None:
    bench.write_toml(toml(**{"vendor/left-pad": 'npm = "left-pad@1.3.0"', "vendor/yallist": 'npm = "yallist@4.0.0"'}))
    bench.mount()
    bench.cli("lock")
    assert "integrity" in (bench.root / "Clive.lock").read_text()
    script = f"console.log(require('{bench.live}/vendor/left-pad')('7', 3, '0'))"
    assert bench.run(["node", "-e", script]).stdout == "007\n"
    bench.check_sound()
