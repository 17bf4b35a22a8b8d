"""`kill -9` of the daemon: what was acknowledged is there after the next `mount`, and nobody hangs."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import storm
from harness import WAIT_S, Bench, until, write_files

pytestmark = pytest.mark.mount

ROUNDS = int(os.environ.get("CLIVEFS_CRASH_ROUNDS", "10"))
AREAS = ("over/w0", "over/w1", "lib/thing/w2", "w3")
GONE = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO)


def starting_files(prefix: str) -> dict[str, str | bytes]:
    return {f"{prefix}/d{at % 3}/f{at}": f"{prefix} {at}\n" * (at + 1) for at in range(12)}


@pytest.fixture
def stormy(bench: Bench) -> Bench:
    """A through root, an overlay on a directory and one on a git ref, with files in each."""
    bench.repository("thing", starting_files("w2"))
    data = bench.base / "data"
    write_files(data, {**starting_files("w0"), **starting_files("w1")})
    write_files(bench.root, starting_files("w3"))
    bench.write_toml(
        '[workspace]\nname = "shop"\n\n'
        '[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n\n'
        '[mounts."over"]\nlocal = "../data"\nwrite = "overlay"\n'
    )
    bench.mount()
    return bench


def kill(bench: Bench) -> int:
    pid = bench.daemon_pid()
    os.kill(pid, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the daemon")
    return pid


class Writer:
    """A storm process and what it has said."""

    def __init__(self, area: Path, seed: int) -> None:
        self.area = area
        self.start = storm.read_model(str(area))
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, storm.__file__, str(area), str(seed)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(iter(self.process.stdout.readline, ""))

    def end(self) -> str:
        """Wait until it has failed, which it must; its last words."""
        code = self.process.wait(WAIT_S)
        self._reader.join()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        said = self.process.stderr.read()
        self.process.stdout.close()
        self.process.stderr.close()
        assert code == 1, said
        return said

    def abandon(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self._reader.join()


def test_a_storm_survives_kill_9_again_and_again(stormy: Bench) -> None:
    seed = int(os.environ.get("CLIVEFS_CRASH_SEED", "1"))
    rng = random.Random(seed)
    acknowledged = 0
    for number in range(ROUNDS):
        writers = [Writer(stormy.live / area, seed * 1000 + number * 10 + at) for at, area in enumerate(AREAS)]
        try:
            wanted = rng.randrange(20, 1200)
            until(lambda: sum(len(each.lines) for each in writers) >= wanted, f"{wanted} lines of the writers")  # noqa: B023
            os.kill(stormy.daemon_pid(), signal.SIGKILL)
            for writer in writers:
                said = writer.end()
                assert any(f": {code} " in said for code in GONE), said
        finally:
            for writer in writers:
                writer.abandon()
        stormy.mount(timeout=WAIT_S)
        for writer in writers:
            expected, flying = storm.replay(writer.start, writer.lines)
            acknowledged += sum(line == "{}\n" for line in writer.lines)
            wrong = storm.explain(storm.read_model(str(writer.area)), expected, flying)
            assert wrong is None, f"round {number} of seed {seed}, {writer.area.name}: {wrong}"
    assert acknowledged > ROUNDS
    stormy.cli("fsck")
    assert all(each["state"] == "mounted" for each in stormy.status()["workspaces"][0]["mounts"])


def test_an_open_file_of_a_dead_mount_answers_an_error(stormy: Bench) -> None:
    fd = os.open(stormy.live / "over/w0/new", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        assert os.write(fd, b"acknowledged") == 12
        kill(stormy)
        with pytest.raises(OSError) as raised:
            os.write(fd, b"lost")
        assert raised.value.errno in GONE
        with pytest.raises(OSError) as raised:
            os.stat(stormy.live)
        assert raised.value.errno in GONE
        stormy.mount(timeout=WAIT_S)
        with pytest.raises(OSError):
            os.write(fd, b"lost")
    finally:
        with contextlib.suppress(OSError):  # close(2) says it as well, and has closed
            os.close(fd)
    assert (stormy.live / "over/w0/new").read_bytes() == b"acknowledged"


def test_whoever_waits_in_the_mount_is_let_go_when_its_daemon_dies(stormy: Bench) -> None:
    """A stopped daemon leaves a reader waiting; killed then, it must not wait on."""
    pid = stormy.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    reader = subprocess.Popen(
        ["cat", str(stormy.live / "over/w0/d1/f1")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        until(
            lambda: Path(f"/proc/{reader.pid}/wchan").read_text() not in ("", "0") or reader.poll() is not None,
            "a wait",
        )
        os.kill(pid, signal.SIGKILL)
        _, said = reader.communicate(timeout=WAIT_S)
        assert reader.returncode == 1, said
    finally:
        reader.kill()
        reader.wait()
    stormy.mount(timeout=WAIT_S)
    assert (stormy.live / "over/w0/d1/f1").read_text() == "w0 1\n" * 2


def test_a_dead_mount_that_somebody_works_in_is_cleared(stormy: Bench) -> None:
    """A shell's directory in the mount and an open file keep it busy: a plain umount would fail."""
    sleeper = subprocess.Popen(["sleep", "60"], cwd=stormy.live / "over")
    try:
        fd = os.open(stormy.live / "over/w0/d1/f1", os.O_RDONLY)
        try:
            kill(stormy)
            stormy.mount(timeout=WAIT_S)
            assert (stormy.live / "over/w0/d1/f1").exists()
        finally:
            with contextlib.suppress(OSError):
                os.close(fd)
        mounts = [
            line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {stormy.mountpoint} " in line
        ]
        assert len(mounts) == 1
    finally:
        sleeper.kill()
        sleeper.wait()


@pytest.mark.parametrize("command", ["mount", "unmount"])
def test_a_daemon_that_dies_when_it_is_asked(stormy: Bench, command: str) -> None:
    """It takes the connection, as one that is being killed does for a moment, and never answers."""
    pid, name = stormy.daemon_pid(), next(stormy.store.glob("run/*.sock")).name

    def connections() -> int:
        return sum(line.endswith(f"/{name}") for line in Path("/proc/net/unix").read_text().splitlines()) - 1

    until(lambda: connections() == 0, "the end of earlier questions")
    os.kill(pid, signal.SIGSTOP)
    words = [sys.executable, "-P", "-m", "clivefs.cli", command]
    words += [str(stormy.root), "--at", str(stormy.mountpoint)] if command == "mount" else [str(stormy.mountpoint)]
    asking = subprocess.Popen(
        words, env=stormy.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=stormy.root
    )
    try:
        until(lambda: connections() >= 2 or asking.poll() is not None, "a question after a first connection")
        os.kill(pid, signal.SIGKILL)
        told, wrong = asking.communicate(timeout=WAIT_S)
    finally:
        asking.kill()
        asking.wait()
    assert asking.returncode == 0, wrong
    assert ("mounted: " if command == "mount" else "cleared the dead mount") in told
    assert stormy.is_mounted() == (command == "mount")


def test_unmount_clears_a_dead_mount(stormy: Bench) -> None:
    kill(stormy)
    status = stormy.cli("status", check=False)
    assert status.returncode == 1
    assert "has died" in status.stderr
    assert "cleared" in stormy.cli("unmount", stormy.mountpoint).stdout
    assert not stormy.is_mounted()
    assert os.listdir(stormy.mountpoint) == []
    assert list(stormy.store.glob("run/*.sock")) == []


def test_a_dead_mount_is_known_by_its_workspaces_names(stormy: Bench) -> None:
    """Whoever names a workspace means the mount that it was in, and is told what became of it."""
    other = stormy.base / "other"
    other.mkdir()
    (other / "Clive.toml").write_text('[workspace]\nname = "other"\n')
    stormy.cli("mount", other, "--at", stormy.mountpoint)
    kill(stormy)
    for about in (["status"], ["status", "-w", "shop"], ["log", "-w", "shop"]):
        told = stormy.cli(*about, check=False)
        assert told.returncode == 1
        assert f"clivefs unmount {stormy.mountpoint}" in told.stderr, told
    assert "shop, other" in stormy.cli("status", check=False).stderr
    (finding,) = [
        each for each in json.loads(stormy.cli("doctor", "--json", check=False).stdout) if each["check"] == "mounts"
    ]
    assert finding["state"] == "warning"
    assert str(stormy.mountpoint) in finding["detail"]
    assert f"clivefs unmount {stormy.mountpoint}" in finding["remedy"]
    cleared = stormy.cli("unmount", "shop").stdout
    assert f"clivefs mount {other} --at {stormy.mountpoint}" in cleared
    assert not stormy.is_mounted()
    refused = stormy.cli("unmount", "shop", check=False)
    assert "nothing is mounted" in refused.stderr


def test_inode_numbers_are_the_same_after_a_crash(stormy: Bench) -> None:
    (stormy.live / "over/w0/made").write_text("new\n")
    os.rename(stormy.live / "over/w0/d0", stormy.live / "over/w0/moved")
    os.chmod(stormy.live / "over/w1/d1/f1", 0o600)

    def numbers() -> dict[str, int]:
        found = {}
        for directory, _, names in os.walk(stormy.live):
            for name in names:
                path = os.path.join(directory, name)
                found[os.path.relpath(path, stormy.live)] = os.lstat(path).st_ino
        return found

    before = numbers()
    kill(stormy)
    stormy.mount(timeout=WAIT_S)
    assert numbers() == before


def test_a_kill_while_it_starts(stormy: Bench) -> None:
    """Start-up is recovery: whatever a start that was killed left, the next one goes on from."""
    os.rename(stormy.live / "over/w0/d0", stormy.live / "over/w0/moved")
    (stormy.live / "over/w0/d1/f1").unlink()
    (stormy.live / "lib/thing/new").write_text("new\n")
    kill(stormy)
    rng = random.Random(3)
    for _ in range(8):
        starting = subprocess.Popen(
            [sys.executable, "-m", "clivefs.cli", "mount", str(stormy.root), "--at", str(stormy.mountpoint)],
            env=stormy.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

        def children(parent: int = starting.pid) -> list[str]:
            try:
                return Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
            except OSError:
                return []

        try:
            until(lambda: children() or starting.poll() is not None, "the daemon")  # noqa: B023
            found = children()
            time.sleep(rng.random() * 0.5)  # any moment of the start is a good one
            for pid in found:
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    if b"clivefs.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)
        finally:
            _, said = starting.communicate(timeout=WAIT_S)
        assert "Traceback" not in said
    for pid in stormy.daemons():  # the last one may have come up, or not
        os.kill(pid, signal.SIGKILL)
        until(lambda: not stormy.daemons(), "the end of the daemon")
    stormy.mount(timeout=WAIT_S)
    assert (stormy.live / "over/w0/moved/f0").read_text() == "w0 0\n"
    assert not (stormy.live / "over/w0/d1/f1").exists()
    assert (stormy.live / "lib/thing/new").read_text() == "new\n"
    assert all(each["state"] == "mounted" for each in stormy.status()["workspaces"][0]["mounts"])
    stormy.cli("fsck")
