"""What a user is told who may not do a thing. Nothing is mounted here."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, bench_in
from test_cli_errors import PLAIN, refused


@pytest.fixture
def nobody_bench() -> Iterator[tuple[Bench, int]]:
    """A bench in a directory that the user nobody can enter and write."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    uid = pwd.getpwnam("nobody").pw_uid
    base = Path("/tmp") / f"clivefs-nobody-{os.getpid()}"
    base.mkdir(mode=0o755)
    try:
        with bench_in(base) as made:
            for path in (base, made.home, made.root):
                os.chown(path, uid, uid)
            yield made, uid
    finally:
        shutil.rmtree(base)


def needs_readable_code(uid: int) -> None:
    command = [sys.executable, "-c", "import clivefs.cli"]
    try:
        readable = subprocess.run(command, user=uid, cwd="/", check=False, capture_output=True).returncode == 0
    except PermissionError:
        readable = False
    if not readable:
        pytest.skip("this interpreter or checkout cannot be read by another user")


def test_a_user_who_may_not_open_the_device(nobody_bench: tuple[Bench, int]) -> None:
    bench, uid = nobody_bench
    if os.stat("/dev/fuse").st_mode & 0o006 == 0o006:
        pytest.skip("/dev/fuse is everybody's here")
    bench.write_toml(PLAIN)
    needs_readable_code(uid)
    refused(bench.mount(check=False, user=uid, group=uid), "/dev/fuse", "chmod 666")


def test_a_mountpoint_or_store_that_may_not_be_written(nobody_bench: tuple[Bench, int]) -> None:
    bench, uid = nobody_bench
    bench.write_toml(PLAIN)
    bench.store.mkdir(mode=0o700)
    needs_readable_code(uid)
    refused(bench.cli("status", check=False, user=uid, group=uid), str(bench.store))
    refused(bench.cli("fsck", check=False, user=uid, group=uid), str(bench.store))
