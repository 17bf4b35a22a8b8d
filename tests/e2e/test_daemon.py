"""The daemon's life: joining, leaving, stopping, and that nothing of it stays behind or grows."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import signal_at
from harness import WAIT_S, Bench, fill_sample, until, write_files

pytestmark = pytest.mark.mount


def add_workspace(bench: Bench, name: str, *, entries: str = "") -> Path:
    root = bench.base / name
    root.mkdir()
    (root / "Clive.toml").write_text(f'[workspace]\nname = "{name}"\n{entries}')
    (root / "file").write_text(f"{name}\n")
    return root


def names(bench: Bench) -> list[str]:
    return sorted(each["name"] for each in bench.status()["workspaces"])


def gone(pid: int) -> None:
    until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of process {pid}")


def test_a_second_mount_joins_and_one_workspace_leaves(shop: Bench) -> None:
    pid = shop.daemon_pid()
    other = add_workspace(shop, "other")
    said = shop.cli("mount", other, "--at", shop.mountpoint, "--allow").stdout
    assert str(shop.mountpoint / "other") in said
    assert shop.daemon_pid() == pid
    assert names(shop) == ["other", "shop"]
    assert sorted(os.listdir(shop.mountpoint)) == ["other", "shop"]
    assert (shop.mountpoint / "other" / "file").read_text() == "other\n"
    assert "already mounted" in shop.cli("mount", other, "--at", shop.mountpoint).stdout
    fd = os.open(shop.mountpoint / "other" / "file", os.O_RDONLY)
    try:
        left = json.loads(shop.cli("unmount", "other", "--json").stdout)
        assert left["left"] == ["shop"]
        assert os.listdir(shop.mountpoint) == ["shop"]
        assert not (shop.mountpoint / "other").exists()
        assert os.read(fd, 100) == b"other\n"  # an open file goes on
    finally:
        os.close(fd)
    assert (shop.live / "lib" / "thing" / "README").read_text() == "hello\n"
    # It can be mounted elsewhere now, and come back.
    shop.cli("mount", other, "--at", shop.base / "m2")
    try:
        assert (shop.base / "m2" / "other" / "file").exists()
    finally:
        shop.cli("unmount", shop.base / "m2")
    shop.cli("mount", other, "--at", shop.mountpoint)
    assert (shop.mountpoint / "other" / "file").read_text() == "other\n"
    # By its directory in the mount, too; the last one ends the daemon.
    shop.cli("unmount", shop.mountpoint / "other")
    assert names(shop) == ["shop"]
    shop.cli("unmount", "shop")
    gone(pid)
    assert not shop.is_mounted()


def test_two_daemons_of_one_store(shop: Bench) -> None:
    other = add_workspace(shop, "other")
    second = shop.base / "m2"
    shop.cli("mount", other, "--at", second)
    try:
        several = shop.cli("status", check=False)
        assert str(second) in several.stdout
        assert str(shop.mountpoint) in several.stdout
        assert shop.cli("status", "--json", check=False, cwd=shop.base).returncode == 2
        assert shop.cli("unmount", check=False, cwd=shop.base).returncode == 2
        (second / "other" / "new").write_text("new\n")
        assert (other / "new").read_text() == "new\n"
        assert shop.cli("fsck").returncode == 0
    finally:
        shop.cli("unmount", second)
    assert (shop.live / "plain.txt").read_text() == "plain\n"


def test_a_directory_is_mounted_by_one_daemon_whatever_the_store(shop: Bench) -> None:
    """Also after an editor has put another Clive.toml in the place of the one that was there."""
    text = (shop.root / "Clive.toml").read_text()
    (shop.root / "new").write_text(text)
    os.rename(shop.root / "new", shop.root / "Clive.toml")
    second = ["mount", shop.root, "--at", shop.base / "m2", "--store", shop.base / "store2"]
    refused = shop.cli(*second, check=False)
    assert refused.returncode == 1
    for named in (f"at {shop.mountpoint} with the store {shop.store}", f"process {shop.daemon_pid()}", "--store"):
        assert named in refused.stderr
    assert sorted(os.listdir(shop.root)) == ["Clive.toml", "plain.txt"]
    shop.cli("attach", "again", "../data")  # what is written here is not held up by it
    os.kill(shop.daemon_pid(), signal.SIGKILL)
    until(lambda: not shop.daemons(), "the end of the daemon")
    try:
        shop.cli(*second, "--allow")
        assert (shop.base / "m2/shop/plain.txt").read_text() == "plain\n"
    finally:
        shop.cli("unmount", shop.base / "m2", "--store", shop.base / "store2")


def test_concurrent_mounts_start_one_daemon(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    command = [sys.executable, "-m", "clivefs.cli", "mount", str(bench.root), "--at", str(bench.mountpoint)]
    several = [
        subprocess.Popen(command, env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    said = [each.communicate(timeout=WAIT_S) for each in several]
    assert any(each.returncode == 0 for each in several), said
    assert all(each.returncode in (0, 1) for each in several)
    assert not any("Traceback" in err or "internal" in err for _, err in said), said
    assert names(bench) == ["shop"]
    mounted = [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {bench.mountpoint} " in line
    ]
    assert len(mounted) == 1
    bench.unmount()
    assert not bench.is_mounted()


@pytest.mark.parametrize("transport", ["native", "pyfuse3"])
def test_unmount_names_who_is_still_there(bench: Bench, transport: str) -> None:
    """And does not wait for him; nothing is left to complain of."""
    bench.environment["CLIVEFS_TRANSPORT"] = transport
    fill_sample(bench)
    bench.mount()
    sleeper = subprocess.Popen(["sleep", "600"], cwd=bench.live / "over")
    try:
        pid = bench.daemon_pid()
        done = bench.cli("unmount", bench.mountpoint)
        assert f"sleep ({sleeper.pid})" in done.stderr
        gone(pid)
        assert not bench.is_mounted()
        bench.check_sound()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_unmount_from_outside_ends_the_daemon(shop: Bench) -> None:
    pid = shop.daemon_pid()
    subprocess.run(["fusermount3", "-u", str(shop.mountpoint)], check=True)
    gone(pid)
    shop.mount()
    assert (shop.live / "plain.txt").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_all_that_it_acknowledged(shop: Bench, number: int) -> None:
    """Writers go on until they get an error; what they were told is written is there."""
    pid = shop.daemon_pid()
    acknowledged: dict[str, int] = {}

    def write(area: str) -> None:
        at = 0
        try:
            while True:
                path = shop.live / area / f"n{at}"
                path.write_bytes(b"%d\n" % at * 500)
                acknowledged[area] = at
                at += 1
        except OSError:
            return

    threads = [threading.Thread(target=write, args=(area,)) for area in ("over", "lib/thing", ".")]
    for thread in threads:
        thread.start()
    until(lambda: len(acknowledged) == 3 and min(acknowledged.values()) > 20, "some writes")
    os.kill(pid, number)
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    gone(pid)
    assert not shop.is_mounted()
    shop.mount()
    for area, last in acknowledged.items():
        for at in range(last + 1):
            assert (shop.live / area / f"n{at}").read_bytes() == b"%d\n" % at * 500
    assert list(shop.store.glob("run/*.sock")) != []
    shop.cli("fsck")


def test_sighup_does_not_end_a_daemon_in_the_background(shop: Bench) -> None:
    os.kill(shop.daemon_pid(), signal.SIGHUP)
    assert (shop.live / "plain.txt").read_text() == "plain\n"
    assert names(shop) == ["shop"]


# --foreground


@pytest.fixture
def notify(bench: Bench) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(bench.base / "notify"))
        listener.settimeout(WAIT_S)
        yield listener


def test_foreground_for_systemd(bench: Bench, notify: socket.socket) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    process = subprocess.Popen(
        [sys.executable, "-m", "clivefs.cli", "mount", str(bench.root), "--at", str(bench.mountpoint), "--foreground"],
        env={**bench.environment, "NOTIFY_SOCKET": str(bench.base / "notify")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert notify.recv(1000) == b"READY=1"
        assert (bench.live / "Clive.toml").exists()
        assert bench.daemon_pid() == process.pid
        assert not list(bench.store.glob("run/*.log"))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT_S)
        assert process.returncode == 0
        assert str(bench.mountpoint) in out
        assert "serving" in err
        assert "Traceback" not in err
        assert not bench.is_mounted()
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_right_after_the_mount_takes_it_away_again(bench: Bench, tmp_path: Path, number: int) -> None:
    """The signal is there before the daemon has begun to serve: a fault point has it sent to itself."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    done = bench.mount("--foreground", env=signal_at(tmp_path / "planted", "daemon.mounted", number), timeout=30)
    assert "mounted shop" in done.stdout
    assert not bench.is_mounted()


def test_foreground_that_fails_says_why_and_exits(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mountpoint.mkdir()
    (bench.mountpoint / "something").touch()
    done = bench.mount("--foreground", check=False, timeout=30)
    assert done.returncode == 1
    assert "not empty" in done.stderr
    assert "Traceback" not in done.stderr


# What it leaves, and for whom


def test_only_the_owner_gets_at_it(shop: Bench) -> None:
    for directory in (shop.store, shop.store / "run", *shop.store.glob("uppers"), *shop.store.glob("gitdirs")):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
    for path in (shop.store / "run").iterdir():
        assert stat.S_IMODE(path.lstat().st_mode) == 0o600, path
    (line,) = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {shop.mountpoint} " in line]
    assert "nosuid" in line
    assert "nodev" in line
    assert "allow_other" not in line
    if os.geteuid() == 0:
        for command in (["ls", str(shop.mountpoint)], ["ls", str(shop.store / "run")]):
            assert subprocess.run(command, user=65534, group=65534, capture_output=True, check=False).returncode != 0


def test_status_is_what_its_readers_expect(shop: Bench) -> None:
    facts = shop.status()
    assert facts["daemon"].keys() >= {"pid", "mountpoint", "transport", "version"}
    assert facts["daemon"]["mountpoint"] == str(shop.mountpoint)
    (workspace,) = facts["workspaces"]
    assert workspace.keys() >= {"name", "root", "session", "head", "mounts"}
    assert workspace["root"] == str(shop.root)
    for each in workspace["mounts"]:
        assert each.keys() >= {"path", "source", "write", "state", "error"}
        assert (each["state"], each["error"]) == ("mounted", None)
    assert [(each["path"], each["write"]) for each in workspace["mounts"]] == [
        ("lib/thing", "overlay"),
        ("over", "overlay"),
    ]
    assert json.loads((shop.live / ".clive" / "status").read_text()) == workspace
    nothing = json.loads(shop.cli("status", "--json", "--store", shop.base / "no-store", cwd=shop.base).stdout)
    assert nothing == {"daemon": None, "workspaces": []}


def test_it_logs_to_a_file(shop: Bench) -> None:
    path = Path(shop.status()["daemon"]["log"])
    assert path.parent == shop.store / "run"
    text = path.read_text()
    assert "serving" in text
    assert "WARNING" not in text
    assert "ERROR" not in text


def test_coming_and_going_leaks_nothing(shop: Bench) -> None:
    """Fifty times a workspace with an overlay and a git ref joins, is used, and leaves."""
    pid = shop.daemon_pid()
    write_files(shop.base / "more", {f"d{at}/f{at}": f"{at}\n" for at in range(30)})
    other = add_workspace(
        shop,
        "other",
        entries='[mounts."over"]\nlocal = "../more"\nwrite = "overlay"\n[mounts."thing"]\ngit = "../thing"\n',
    )
    (path,) = list(shop.store.glob("run/*.sock"))
    run_fd = os.open(path.parent, os.O_PATH)

    def ask(command: str, **args: object) -> None:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_S)
            client.connect(f"/proc/self/fd/{run_fd}/{path.name}")
            client.sendall(json.dumps({"command": command, "args": args}).encode() + b"\n")
            answers = client.makefile("rb")
            while "progress" in (answer := json.loads(answers.readline())):
                pass
        assert answer["ok"], answer

    def facts() -> tuple[int, int, int]:
        status = Path(f"/proc/{pid}/status").read_text()
        numbers = {line.split(":")[0]: line.split()[1] for line in status.splitlines() if line.split(":")[1].strip()}
        return len(os.listdir(f"/proc/{pid}/fd")), int(numbers["Threads"]), int(numbers["VmRSS"])

    def come_and_go() -> None:
        ask("mount", root=str(other), allow=True)
        live = shop.mountpoint / "other"
        for directory, _, found in os.walk(live):
            for name in found:
                Path(directory, name).read_bytes()
        (live / "over" / "d1" / "f1").write_text("changed\n")
        (live / "thing" / "README").write_text("changed\n")
        (live / "thing" / "README").unlink()
        (live / "over" / "made").write_text("made\n")
        ask("leave", name="other")
        assert not live.exists()

    try:
        for _ in range(10):
            come_and_go()
        fds, threads, resident = facts()
        for _ in range(40):
            come_and_go()

        def back() -> bool:  # the kernel gives inodes back in its own time, and idle threads end in theirs
            now = facts()
            return now[0] <= fds + 8 and now[1] <= threads + 4

        until(back, f"at most {fds + 8} descriptors and {threads + 4} threads")
        assert facts()[2] - resident < 20_000  # KiB
    finally:
        os.close(run_fd)
    text = Path(shop.status()["daemon"]["log"]).read_text()
    assert "Traceback" not in text


def test_mounting_and_unmounting_leaves_nothing_behind(shop: Bench) -> None:
    pids = set()
    for _ in range(5):
        pids.add(shop.daemon_pid())
        shop.unmount()
        assert not shop.is_mounted()
        assert os.listdir(shop.mountpoint) == []
        assert not list(shop.store.glob("run/*.sock"))
        assert not list(shop.store.glob("run/*.json"))
        shop.mount()
    assert len(pids) == 5
    for pid in pids:
        gone(pid)


def test_a_moved_workspace_is_told_how_to_go_on(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    assert "moved_from" not in bench.status()["workspaces"][0]
    bench.unmount()
    old, new = bench.root, bench.base / "new place"
    old.rename(new)
    bench.root = new
    told = bench.cli("mount", new, "--at", bench.mountpoint).stdout
    assert f"relink {old} '{new}'" in told
    assert bench.status()["workspaces"][0]["moved_from"] == str(old)
    refused = bench.cli("relink", old, new, check=False)  # or two daemons could show it
    assert refused.returncode == 1
    assert str(bench.mountpoint) in refused.stderr
    assert "moved_from" in bench.status()["workspaces"][0]
    bench.cli("unmount", bench.mountpoint)
    bench.cli("relink", old, new)
    told = bench.cli("mount", new, "--at", bench.mountpoint).stdout
    assert "relink" not in told
    assert "moved_from" not in bench.status()["workspaces"][0]


@pytest.mark.parametrize("transport", ["native", "pyfuse3"])
def test_a_broken_libfuse_stops_only_the_transport_that_needs_it(bench: Bench, transport: str) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    broken = bench.base / "broken"
    broken.mkdir()
    (broken / "pyfuse3.py").write_text("raise ImportError('libfuse3.so.3: cannot open shared object file')\n")
    path = os.pathsep.join([str(broken), str(Path(__file__).parents[2])])
    env = {"CLIVEFS_TRANSPORT": transport, "PYTHONPATH": path}
    done = bench.mount(check=False, env=env)
    if transport == "native":
        assert done.returncode == 0, done.stderr
        assert (bench.live / "Clive.toml").exists()
        return
    assert done.returncode == 1
    assert "the transport pyfuse3 cannot be loaded: libfuse3.so.3" in done.stderr
    assert "clivefs doctor" in done.stderr
