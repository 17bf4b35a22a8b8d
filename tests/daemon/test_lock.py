"""Who holds a mountpoint or a workspace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clivefs.daemon.lock import Held, Lock


def test_the_second_is_told_who_holds_it(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "lock")
    first = Lock(path, {"pid": 1234, "mountpoint": "/somewhere"})
    with pytest.raises(Held) as held:
        Lock(path, {"pid": 1})
    assert held.value.holder == {"pid": 1234, "mountpoint": "/somewhere"}
    first.release()
    Lock(path, {"pid": 1}).release()


def test_a_lock_goes_with_its_process(tmp_path: Path) -> None:
    path = os.fspath(tmp_path / "lock")
    code = (
        "import os, sys, signal\n"
        "from clivefs.daemon.lock import Lock\n"
        "Lock(sys.argv[1], {'pid': os.getpid()})\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, path], check=False)
    assert done.returncode == -9
    Lock(path, {"pid": 1}).release()


def test_garbage_in_the_file_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_bytes(b"\xff{not json")
    holder = Lock(os.fspath(path), {})
    path.write_bytes(b"[1, 2]")
    with pytest.raises(Held) as held:
        Lock(os.fspath(path), {})
    assert held.value.holder == {}
    holder.release()


def test_a_directory_is_locked_by_whichever_store(tmp_path: Path) -> None:
    directory = tmp_path / "workspace"
    directory.mkdir(mode=0o555)
    facts = {"pid": os.getpid(), "mountpoint": "/somewhere", "store": "/a"}
    first, second = Lock(os.fspath(tmp_path / "a.lock"), facts), Lock(os.fspath(tmp_path / "b.lock"), {})
    first.hold_directory(os.fspath(directory))
    assert os.listdir(directory) == []
    (tmp_path / "link").symlink_to(directory)
    for path in (directory, tmp_path / "link"):
        with pytest.raises(Held) as held:
            second.hold_directory(os.fspath(path))
        assert held.value.holder == facts
    directory.chmod(0o755)
    directory.rename(tmp_path / "moved")
    with pytest.raises(Held):
        second.hold_directory(os.fspath(tmp_path / "moved"))
    first.release()
    second.hold_directory(os.fspath(tmp_path / "moved"))
    second.release()


def test_a_directory_that_no_daemon_has_locked_names_the_process(tmp_path: Path) -> None:
    ready, told = os.pipe()
    code = "import fcntl, os, sys; fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), 2); os.write(1, b'x'); os.read(0, 1)"
    other = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdin=subprocess.PIPE, stdout=told)
    lock = Lock(os.fspath(tmp_path / "lock"), {})
    try:
        os.read(ready, 1)
        with pytest.raises(Held) as held:
            lock.hold_directory(os.fspath(tmp_path))
        assert held.value.holder == {"pid": other.pid}
    finally:
        other.communicate()
        os.close(ready)
        os.close(told)
    lock.hold_directory(os.fspath(tmp_path))
    lock.release()
