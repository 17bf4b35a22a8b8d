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
