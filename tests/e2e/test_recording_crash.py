"""Recording over crashes, a full disk and a clock that jumps: every acknowledged point is whole, nothing is lost."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from faults import Killer, planted
from harness import Bench, bench_in, fill_sample, until
from pastview import shown
from test_sessions import assert_recorded, points, snapshot

_POINTS = (
    "record.read",
    "record.hashed",
    "record.written",
    "record.publishing",
    "objects.environment.before-commit",
    "objects.environment.after-commit",
    "record.published",
)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("point", [*_POINTS, "objects.large.before-rename", "objects.large.after-rename"])
def test_a_crash_while_a_point_is_made(bench: Bench, point: str) -> None:
    killer = Killer(bench.base / "faults", [point])
    fill_sample(bench)
    bench.mount(env=killer.environment)
    snapshot(bench)
    acknowledged = {each["id"]: shown(bench.live / ".clive/at" / each["name"]) for each in points(bench)}
    pid = bench.daemon_pid()
    (bench.live / "plain.txt").write_bytes(b"closed\n")
    written = {"plain.txt": b"closed\n"}
    killer.at(point)
    try:
        for name, content in {"over/new": b"closed too\n", "lib/thing/README": b"3" * (2 << 20)}.items():
            (bench.live / name).write_bytes(content)
            written[name] = content
    except OSError as error:
        if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
            raise  # these two: on a slow machine the daemon has recorded the first of them by now, and died
    until(lambda: ended(pid), "the end of the daemon")
    bench.mount()
    assert_recorded(bench)
    past = bench.live / ".clive/at/latest"
    for name, content in written.items():
        assert (past / name).read_bytes() == content
    for each in points(bench):
        then = shown(bench.live / ".clive/at" / each["name"])
        assert acknowledged.get(each["id"], then) == then
    listed = points(bench)
    assert listed[0]["seq"] == len(listed)
    bench.check_sound(allowed="clearing the dead mount")


def test_killed_again_and_again(shop: Bench) -> None:
    """`kill -9` at moments that nobody chose, while files are saved: what `snapshot` said stays."""
    said: dict[str, str] = {}
    for turn in range(5):
        pid = shop.daemon_pid()
        writer = subprocess.Popen(
            ["sh", "-c", f"for i in $(seq 200); do echo {turn}-$i > over/f$i; echo {turn}-$i > g$i; done"],
            cwd=shop.live,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(0.05 * turn)
        name = snapshot(shop).name
        said[name] = repr(sorted(shown(shop.live / ".clive/at" / name).items()))
        os.kill(pid, signal.SIGKILL)
        writer.wait()
        shop.mount()
        for each, then in said.items():
            assert repr(sorted(shown(shop.live / ".clive/at" / each).items())) == then
    assert_recorded(shop)
    shop.check_sound(allowed="clearing the dead mount")


def test_a_clock_that_jumps_back(shop: Bench) -> None:
    """The next session begins with a clock that is an hour behind: points stay in their order."""
    snapshot(shop)
    shop.unmount()
    behind = "import time\nreal = time.time_ns\ntime.time_ns = lambda: real() - 3600 * 10**9"
    shop.mount(env=planted(shop.base / "clock", behind))
    for text in ("one", "two"):
        (shop.live / "plain.txt").write_text(text)
        snapshot(shop)
    listed = points(shop)
    names = [each["name"] for each in listed]
    assert names == sorted(names, reverse=True)
    assert [each["seq"] for each in listed] == list(range(len(listed), 0, -1))
    assert (shop.live / ".clive/at/latest/plain.txt").read_text() == "two"
    shop.check_sound()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small file system")
def test_a_full_disk(tmp_path: Path) -> None:
    """Recording pauses and says so, writes go on, and when there is room it catches up."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", small], check=True)
    try:
        with bench_in(tmp_path) as bench:
            bench.store = small / "store"
            bench.environment["CLIVEFS_STORE"] = str(bench.store)
            (bench.root / "plain.txt").write_text("plain\n")
            bench.write_toml('[workspace]\nname = "shop"\n')
            bench.mount()
            snapshot(bench)
            ballast = small / "ballast"
            with open(ballast, "wb") as file:
                room = os.statvfs(small)
                file.write(b"\0" * (room.f_bavail * room.f_frsize - (256 << 10)))
            for number in range(40):
                (bench.live / f"f{number}").write_bytes(os.urandom(64 << 10))

            def state() -> str:
                (workspace,) = bench.status()["workspaces"]
                return str(workspace["recording"]["state"])

            until(lambda: state() == "paused", "the pause")
            assert "the disk is full" in bench.cli("status", check=False).stdout
            (bench.live / "plain.txt").write_text("written while it is full\n")
            assert (bench.live / "plain.txt").read_text() == "written while it is full\n"
            refused = bench.cli("snapshot", check=False)
            assert refused.returncode == 1
            assert "the disk is full" in refused.stderr
            assert bench.cli("log").returncode == 0
            ballast.unlink()
            until(lambda: state() == "recording", "the recording to go on", 30)
            assert_recorded(bench)
            bench.check_sound(allowed="the disk is full")
    finally:
        subprocess.run(["umount", "-l", small], check=False)


def test_close_has_returned(shop: Bench) -> None:
    """Killed right after close(): the bytes are there, and in the first point of the next session."""
    snapshot(shop)
    for turn in range(4):
        with open(shop.live / "over/one.txt", "w") as file:
            file.write(f"turn {turn}\n")
        with open(shop.live / "plain.txt", "w") as file:
            file.write(f"turn {turn}\n")
        os.kill(shop.daemon_pid(), signal.SIGKILL)
        shop.mount()
        snapshot(shop)
        name = json.loads(shop.cli("session", "list", "--json").stdout)[0]["name"]
        for place in ("over/one.txt", "plain.txt"):
            assert (shop.live / ".clive/sessions" / name / "start" / place).read_text() == f"turn {turn}\n"
    shop.check_sound(allowed="clearing the dead mount")
