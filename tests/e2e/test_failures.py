"""A full disk and a lost network: an error of what needs them, and nothing else."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import WAIT_S, Bench, until, write_files

pytestmark = pytest.mark.mount

TIMEOUT_S = 2
PATIENCE_S = 110


# A full disk


@pytest.fixture
def small(bench: Bench) -> Iterator[Bench]:
    """A bench whose store lies on a filesystem of 24 MiB; one overlay on a directory, one on a git ref."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small filesystem")
    bench.store.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "none", str(bench.store)], check=True)
    try:
        write_files(bench.base / "data", {"one.txt": "one\n", "big": b"b" * 3_000_000, "sub/two.txt": "two\n"})
        bench.repository("thing", {"README": "hello\n", "large.bin": os.urandom(2_000_000)})
        bench.write_toml(
            '[workspace]\nname = "shop"\n\n'
            '[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n\n'
            '[mounts."over"]\nlocal = "../data"\nwrite = "overlay"\n'
        )
        bench.mount()
        yield bench
    finally:
        bench.close()
        subprocess.run(["umount", "-l", str(bench.store)], check=True)


def fill(bench: Bench) -> Path:
    """Leave no byte in the store's filesystem, whatever was freed since it was filled last."""
    path = bench.store / "filler"
    with open(path, "ab", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"\0" * size)
    return path


def refused(bench: Bench, call: Callable[[], object]) -> None:
    """There is no room for *call*, and it says so."""
    fill(bench)
    with pytest.raises(OSError) as raised:
        call()
    assert raised.value.errno == errno.ENOSPC, raised.value


def append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:  # there may be room for some of it
            data = data[os.write(fd, data) :]
    finally:
        os.close(fd)


def test_a_full_disk_answers_enospc_and_keeps_what_is_there(small: Bench) -> None:
    over, thing = small.live / "over", small.live / "lib" / "thing"
    (over / "mine").write_text("mine\n")
    (over / "dir").mkdir()
    (thing / "mine").write_text("mine\n")
    small.cli("snapshot")  # or what is being recorded, and cannot be, makes room when its unfinished file is removed
    filler = fill(small)
    refused(small, lambda: append(over / "one.txt", b"more"))  # a copy-up of a little
    refused(small, lambda: append(over / "big", b"more"))  # and of much
    refused(small, lambda: os.truncate(over / "big", 10_000_000))
    refused(small, lambda: (over / "new").write_bytes(b"x" * 10_000))
    refused(small, lambda: (thing / "new").write_bytes(b"x" * 10_000))
    refused(small, lambda: append(thing / "large.bin", b"more"))
    refused(small, lambda: append(over / "mine", b"y" * 100_000))
    assert (over / "one.txt").read_text() == "one\n"
    assert (over / "big").stat().st_size == 3_000_000
    assert (over / "mine").read_bytes()[:5] == b"mine\n"
    assert (thing / "README").read_text() == "hello\n"
    assert sorted(each for each in os.listdir(over) if each != "new") == ["big", "dir", "mine", "one.txt", "sub"]
    # Many operations on names: each succeeds wholly, or says ENOSPC and has changed nothing.
    name = "sub"
    for number in range(600):
        before, new = set(os.listdir(over)), f"sub{number}"
        try:
            os.rename(over / name, over / new)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            assert set(os.listdir(over)) == before
            break
        assert set(os.listdir(over)) == before - {name} | {new}
        name = new
    (small.root / "outside.txt").write_text("the root is on another disk\n")
    assert (small.live / "outside.txt").read_text() == "the root is on another disk\n"
    (small.live / "inside.txt").write_text("as it is written through\n")
    # Removing makes room, so it must work.
    os.unlink(over / "mine")
    assert not (over / "mine").exists()
    filler.unlink()
    append(over / "one.txt", b"more\n")
    append(thing / "large.bin", b"more")
    (over / "new").write_bytes(b"x" * 10_000)
    os.rename(over / name, over / "moved")
    assert (over / "one.txt").read_text() == "one\nmore\n"
    assert (over / "moved" / "two.txt").read_text() == "two\n"
    assert (thing / "large.bin").stat().st_size == 2_000_004
    small.unmount()
    small.mount()
    assert (over / "one.txt").read_text() == "one\nmore\n"
    assert (over / "moved" / "two.txt").read_text() == "two\n"
    assert not (over / "mine").exists()
    small.cli("fsck")


def test_a_daemon_starts_and_ends_on_a_full_disk(small: Bench) -> None:
    (small.live / "over" / "mine").write_text("mine\n")
    small.unmount()
    filler = fill(small)
    done = small.mount(check=False, timeout=60)
    assert "Traceback" not in done.stderr
    if done.returncode == 0:
        assert (small.live / "over" / "mine").read_text() == "mine\n"
        small.unmount()
    else:
        assert "space" in done.stderr, done.stderr
        if small.is_mounted():
            small.unmount()
    filler.unlink()
    small.mount()
    assert (small.live / "over" / "mine").read_text() == "mine\n"
    assert small.entry("over")["state"] == "mounted"


def test_a_kill_on_a_full_disk_loses_nothing(small: Bench) -> None:
    over = small.live / "over"
    (over / "mine").write_text("mine\n")
    fill(small)
    renamed = True
    try:
        os.rename(over / "one.txt", over / "two.txt")
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        renamed = False
    pid = small.daemon_pid()
    os.kill(pid, 9)
    until(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    (small.store / "filler").unlink()
    small.mount()
    assert (over / "mine").read_text() == "mine\n"
    assert (over / ("two.txt" if renamed else "one.txt")).read_text() == "one\n"
    assert not (over / ("one.txt" if renamed else "two.txt")).exists()


def test_commands_on_a_full_disk_say_so(small: Bench) -> None:
    filler = fill(small)
    other = small.base / "other"
    other.mkdir()
    done = small.cli("init", other, check=False)
    assert "Traceback" not in done.stderr
    done = small.cli("attach", "more", small.base / "data", check=False)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    filler.unlink()
    small.cli("attach", "again", small.base / "data")
    assert (small.live / "again" / "one.txt").read_text() == "one\n"


# A lost network


@pytest.fixture
def remote(bench: Bench) -> Bench:
    """A bench with a file: URL as source, `far`, and a short network timeout."""
    path = bench.repository("far", {f"d{at}/f{at}": f"content {at}\n" for at in range(6)})
    bench.git("config", "uploadpack.allowFilter", "true", cwd=path)
    bench.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=path)
    bench.write_toml(
        f'[workspace]\nname = "shop"\n\n[limits]\nnetwork_timeout = "{TIMEOUT_S}s"\n\n'
        f'[mounts."far"]\ngit = "file://{path}"\nref = "main"\nblobs = "lazy"\n'
    )
    bench.mount()
    return bench


def test_a_source_that_goes_away_and_comes_back(remote: Bench) -> None:
    far = remote.live / "far"
    assert (far / "d0" / "f0").read_text() == "content 0\n"
    shutil.move(remote.base / "far", remote.base / "away")
    assert sorted(os.listdir(far / "d1")) == ["f1"]  # trees are here
    with pytest.raises(OSError) as raised:
        (far / "d1" / "f1").read_text()
    assert raised.value.errno == errno.EIO
    assert "far" in remote.entry("far")["error"]
    assert remote.cli("status", check=False).returncode == 1
    assert (far / "d0" / "f0").read_text() == "content 0\n"
    (far / "d0" / "f0").write_text("changed\n")
    assert (far / "d0" / "f0").read_text() == "changed\n"
    (far / "d1" / "new").write_text("new\n")
    shutil.move(remote.base / "away", remote.base / "far")

    def readable() -> bool:
        with contextlib.suppress(OSError):
            return (far / "d1" / "f1").read_text() == "content 1\n"
        return False

    until(readable, "the content, without anybody's help")
    assert remote.entry("far")["error"] is None
    assert remote.cli("status").returncode == 0


def test_a_mount_without_its_network(remote: Bench) -> None:
    """What was fetched before is there also when the daemon starts without network."""
    far = remote.live / "far"
    assert (far / "d0" / "f0").read_text() == "content 0\n"
    remote.unmount()
    shutil.move(remote.base / "far", remote.base / "away")
    remote.mount(timeout=60)
    assert (far / "d0" / "f0").read_text() == "content 0\n"
    with pytest.raises(OSError):
        (far / "d2" / "f2").read_text()


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_repository_that_lacks_an_object(bench: Bench, how: str) -> None:
    """Whoever looks there gets EIO, and `status` the reason, until the object can be read again."""
    path = bench.repository("thing", {"README": "hello\n", "sub/deep/file": "x\n"})
    oid = bench.git("rev-parse", "HEAD:sub/deep", cwd=path).strip()
    stored = path / ".git/objects" / oid[:2] / oid[2:]
    sound = stored.read_bytes()
    if how == "missing":
        stored.unlink()
    else:
        stored.chmod(0o644)
        stored.write_bytes(b"not zlib")
    bench.write_toml('[workspace]\nname = "shop"\n\n[mounts.lib]\ngit = "../thing"\nref = "main"\n')
    bench.mount()
    assert (bench.live / "lib/README").read_text() == "hello\n"
    assert bench.entry("lib")["error"] is None
    with pytest.raises(OSError) as raised:
        os.listdir(bench.live / "lib/sub/deep")
    assert raised.value.errno == errno.EIO
    told = bench.cli("status", check=False)
    assert told.returncode == 1
    for named in ("lib: ../thing", f"object {oid} is {how}", f"git -C {path} fsck"):
        assert named in told.stdout
    assert oid in (bench.live / ".clive/status").read_text()
    # Whatever the daemon reads it from: the store has linked what there was.
    for each in (stored, *bench.store.glob(f"repositories/*.git/objects/{oid[:2]}/{oid[2:]}")):
        each.unlink(missing_ok=True)
    stored.write_bytes(sound)
    until(lambda: bench.entry("lib")["error"] is None, "that all is well")
    assert (bench.live / "lib/sub/deep/file").read_text() == "x\n"
    assert bench.cli("status").returncode == 0


class Silent:
    """A server that accepts connections, reads what comes, and never answers."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.accepted: list[socket.socket] = []
        self.thread = threading.Thread(target=self._accept)
        self.thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self.accepted.append(self.listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        """Hang up, and take no more connections."""
        if self.thread.is_alive():
            self.listener.shutdown(socket.SHUT_RDWR)
            self.thread.join()
            self.listener.close()
        for each in self.accepted:
            each.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    made = Silent()
    yield made
    made.close()


@pytest.mark.parametrize("scheme", ["git", "http"])
def test_a_server_that_never_answers_when_mounting(bench: Bench, silent: Silent, scheme: str) -> None:
    (bench.root / "plain.txt").write_text("plain\n")
    bench.write_toml(
        f'[workspace]\nname = "shop"\n\n[limits]\nnetwork_timeout = "{TIMEOUT_S}s"\n\n'
        f'[mounts."far"]\ngit = "{scheme}://127.0.0.1:{silent.port}/x.git"\nref = "main"\n'
    )
    done = bench.mount(check=False, timeout=WAIT_S)
    assert done.returncode == 1
    assert "no answer" in done.stderr
    assert silent.accepted
    assert (bench.live / "plain.txt").read_text() == "plain\n"
    assert bench.entry("far")["state"] == "error"


@pytest.mark.parametrize("scheme", ["git", "http"])
def test_a_server_that_stops_answering(remote: Bench, silent: Silent, scheme: str) -> None:
    """Unfetched content is EIO in bounded time, and meanwhile nobody else is held up."""
    (config,) = remote.store.glob("repositories/*.git/config")
    url = f"{scheme}://127.0.0.1:{silent.port}/x.git"
    remote.git("config", "--file", config, "remote.origin.url", url, cwd=remote.base)
    far = remote.live / "far"
    begun = time.monotonic()
    readers = [subprocess.Popen(["cat", str(far / f"d{at}" / f"f{at}")], stderr=subprocess.PIPE) for at in range(1, 6)]
    try:
        until(lambda: silent.accepted, "a connection")
        # A request of the mount's own, of every kind that could wait behind the readers.
        (remote.live / "new").write_text("new\n")
        with open(remote.live / "new", "r+") as file:
            file.write("again")
            os.fsync(file.fileno())
        assert "far" in os.listdir(remote.live)
        remote.cli("status", check=False)
        assert readers[0].poll() is None or time.monotonic() - begun > TIMEOUT_S
        for reader in readers:
            _, said = reader.communicate(timeout=TIMEOUT_S * len(readers) + WAIT_S)
            assert reader.returncode == 1
            assert b"Input/output error" in said
    finally:
        for reader in readers:
            reader.kill()
            reader.wait()
    until(lambda: remote.entry("far")["error"], "the reason in status")


def be_patient(remote: Bench) -> None:
    """Mount it anew, so that whoever waits for the network waits for most of two minutes."""
    remote.write_toml((remote.root / "Clive.toml").read_text().replace(f'"{TIMEOUT_S}s"', f'"{PATIENCE_S}s"'))
    remote.unmount()
    remote.mount()


def test_many_who_wait_for_the_network_hold_up_nobody(remote: Bench, silent: Silent) -> None:
    """More readers than the daemon has threads, or requests under way, for ordinary work."""
    be_patient(remote)
    (config,) = remote.store.glob("repositories/*.git/config")
    remote.git("config", "--file", config, "remote.origin.url", f"git://127.0.0.1:{silent.port}/x.git", cwd=remote.base)
    far = remote.live / "far"
    paths = [far / f"d{at % 5 + 1}" / f"f{at % 5 + 1}" for at in range(300)]

    def read(path: Path) -> None:
        with pytest.raises(OSError):
            path.read_text()

    threads = [threading.Thread(target=read, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    until(lambda: silent.accepted, "a connection")
    try:
        fd = os.open(remote.live / "new", os.O_RDWR | os.O_CREAT)
        os.write(fd, b"new")
        os.fsync(fd)  # takes a thread
        os.close(fd)
        assert (remote.live / "new").read_bytes() == b"new"
        assert all(thread.is_alive() for thread in threads)
    finally:
        silent.close()
        for thread in threads:
            thread.join(WAIT_S)
    assert not any(thread.is_alive() for thread in threads)


def test_unmount_does_not_wait_for_the_network(remote: Bench, silent: Silent) -> None:
    """Somebody waits for a server that never answers, with most of two minutes to go: the daemon ends all the same."""
    be_patient(remote)
    (config,) = remote.store.glob("repositories/*.git/config")
    remote.git("config", "--file", config, "remote.origin.url", f"git://127.0.0.1:{silent.port}/x.git", cwd=remote.base)
    reader = subprocess.Popen(["cat", str(remote.live / "far" / "d3" / "f3")], stderr=subprocess.PIPE)
    try:
        until(lambda: silent.accepted, "a connection")
        begun = time.monotonic()
        pid = remote.daemon_pid()
        remote.unmount()
        until(lambda: not Path(f"/proc/{pid}").exists(), "the end of the daemon")
        assert time.monotonic() - begun < PATIENCE_S / 2
        _, said = reader.communicate(timeout=WAIT_S)
        assert reader.returncode == 1, said
    finally:
        reader.kill()
        reader.wait()
    assert not remote.is_mounted()
    # The git that it had started does not outlive it: the connection is closed from the other side.
    connection = silent.accepted[0]
    connection.settimeout(WAIT_S)
    while connection.recv(65536):
        pass
