"""A workspace of its own for each test: real command line, real daemon, real mount."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from clivefs.cli import main as cli_main

WAIT_S = 60.0
"""For what comes in a moment: so long that no machine is too slow for it."""


def until(condition: Callable[[], Any], what: str, limit_s: float = WAIT_S) -> Any:
    """The first true value of *condition*; fails when there is none in time."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {limit_s} s: {what}")
        time.sleep(0.005)


class Bench:
    """A home, a store, a workspace directory and a mountpoint under one temporary directory."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.store = base / "store"
        self.root = base / "shop"
        self.mountpoint = base / "mnt"
        for each in (self.home, self.root):
            each.mkdir()
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "CLIVEFS_", "XDG_"))},
            "HOME": str(self.home),
            "CLIVEFS_STORE": str(self.store),
            "GIT_AUTHOR_NAME": "A U Thor",
            "GIT_AUTHOR_EMAIL": "author@example.org",
            "GIT_COMMITTER_NAME": "C O Mitter",
            "GIT_COMMITTER_EMAIL": "committer@example.org",
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C.UTF-8",
            "CLIVEFS_TRANSPORT": os.environ.get("CLIVEFS_TRANSPORT", ""),
        }

    @property
    def live(self) -> Path:
        """The workspace as it is mounted."""
        return self.mountpoint / "shop"

    def write_toml(self, text: str) -> None:
        (self.root / "Clive.toml").write_text(text)

    def cli(
        self, *args: object, check: bool = True, cwd: Path | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run `clivefs ARGS`."""
        # -P: the current directory may hold Python's own library, to be mounted and not to be imported.
        command = [sys.executable, "-P", "-m", "clivefs.cli", *map(str, args)]
        return self.run(command, check=check, cwd=cwd or self.root, **more)

    def run(
        self,
        command: list[Any] | str,
        *,
        check: bool = True,
        cwd: Path | None = None,
        timeout: float = 120,
        **more: Any,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command, in the mounted workspace unless said otherwise; a string goes to bash."""
        words = (
            ["bash", "-euo", "pipefail", "-c", command] if isinstance(command, str) else [str(each) for each in command]
        )
        done = subprocess.run(
            words,
            cwd=cwd or self.live,
            env={**self.environment, **more.pop("env", {})},
            stdin=subprocess.DEVNULL if "input" not in more else None,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            check=False,
            **more,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{command!r} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done

    def git(self, *args: object, cwd: Path | None = None, check: bool = True) -> str:
        return self.run(["git", *args], cwd=cwd, check=check).stdout

    def mount(self, *args: object, **more: Any) -> subprocess.CompletedProcess[str]:
        return self.cli("mount", self.root, "--at", self.mountpoint, "--allow", *args, **more)

    def unmount(self) -> None:
        self.cli("unmount", self.mountpoint)

    def status(self) -> dict[str, Any]:
        value = json.loads(self.cli("status", "--json", "--at", self.mountpoint, check=False).stdout)
        assert isinstance(value, dict)
        return value

    def entry(self, path: str) -> dict[str, Any]:
        """The mount entry at *path* as `status` tells of it."""
        (workspace,) = self.status()["workspaces"]
        (found,) = [each for each in workspace["mounts"] if each["path"] == path]
        assert isinstance(found, dict)
        return found

    def daemon_pid(self) -> int:
        return int(self.status()["daemon"]["pid"])

    def is_mounted(self) -> bool:
        wanted = f" {self.mountpoint} "
        return any(wanted in line for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def put(self, name: str, text: str) -> None:
        """Have a file in the workspace's own directory that comes whole, in one change. One that is made and then
        written may be recorded empty first."""
        (self.base / "put").write_text(text)
        (self.base / "put").rename(self.root / name)

    def repository(self, name: str, files: dict[str, str | bytes], *, message: str = "first") -> Path:
        """A git repository beside the workspace with one commit of *files*."""
        path = self.base / name
        path.mkdir()
        self.git("init", "-q", "-b", "main", cwd=path)
        write_files(path, files)
        self.git("add", "-A", cwd=path)
        self.git("commit", "-q", "-m", message, cwd=path)
        return path

    def check_sound(self, *, allowed: str = "") -> None:
        """Nothing unexpected in the daemon's log, and a store in which `fsck` finds nothing. Unmounts."""
        if self.is_mounted():
            self.unmount()
        until(lambda: not self.daemons(), "the end of the daemon")
        for log in self.store.glob("run/*.log"):
            lines = [line for line in log.read_text().splitlines() if " INFO " not in line and " DEBUG " not in line]
            unexpected = [line for line in lines if not (allowed and re.search(allowed, line))]
            assert not unexpected, "\n".join(unexpected)
        # In this process: to start another for each test costs more than to look at its small store.
        assert cli_main(["fsck", "--store", str(self.store)]) == 0

    def daemons(self) -> list[int]:
        """The process numbers of this bench's daemons that run, whether they answer or not."""
        found = []
        for facts in self.store.glob("run/*.lock"):
            with contextlib.suppress(ValueError, KeyError, OSError):
                pid = int(json.loads(facts.read_text())["pid"])
                if b"clivefs.daemon" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(pid)
        return found

    def close(self) -> None:
        """Leave no mount and no daemon behind, whatever the test did."""
        if self.is_mounted():
            with contextlib.suppress(Exception):
                self.cli("unmount", self.mountpoint, check=False, timeout=30)
        for _ in range(5):
            if not self.is_mounted():
                break
            subprocess.run(["fusermount3", "-uz", str(self.mountpoint)], check=False, capture_output=True)
        for facts in self.store.glob("run/*.lock"):
            with contextlib.suppress(ValueError, KeyError, ProcessLookupError):
                pid = int(json.loads(facts.read_text())["pid"])
                command = Path(f"/proc/{pid}/cmdline")
                if command.exists() and b"clivefs.daemon" in command.read_bytes():
                    os.kill(pid, signal.SIGTERM)
                    _gone(pid)


def _gone(pid: int) -> None:
    try:
        until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of process {pid}", 10)
    except AssertionError:
        os.kill(pid, signal.SIGKILL)


def write_files(root: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def bench_in(base: Path) -> Iterator[Bench]:
    made = Bench(base)
    try:
        yield made
    finally:
        made.close()


SOURCE_FILES: dict[str, str | bytes] = {
    "README": "hello\n",
    "src/a.c": "int a;\n",
    "src/deep/b.c": "int b;\n",
    "run.sh": "#!/bin/sh\n",
}
SAMPLE_TOML = (
    '[workspace]\nname = "shop"\n\n'
    '[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n\n'
    '[mounts."over"]\nlocal = "../data"\nwrite = "overlay"\n'
)
SOURCE_TESTS = (
    "test_source_file_is_changed_in_place",
    "test_unlinked_source_file_goes_on",
    "test_replaced_file_serves_its_holders",
    "test_reader_opened_before_the_first_write_sees_it",
    "test_mmap_shared_of_a_source_file",
    "test_attributes_of_source_files",
    "test_chown",
    "test_directory_of_a_source_gets_new_times",
    "test_user_xattrs",
    "test_rename_of_source_entries",
    "test_hard_link_to_a_source_file",
)
"""Tests that get files of their own in every source."""


def fill_sample(bench: Bench, own: Mapping[str, str | bytes] = MappingProxyType({})) -> None:
    """Write a workspace: a through root, `lib/thing` from a git ref, `over` an overlay on a local directory. All three
    have the files *own* as well."""
    bench.repository("thing", {**SOURCE_FILES, **own})
    write_files(bench.base / "data", {"one.txt": "one\n", "sub/two.txt": "two\n", **own})
    write_files(bench.root, {"plain.txt": "plain\n", **own})
    bench.write_toml(SAMPLE_TOML)


@contextlib.contextmanager
def sample_workspace(base: Path) -> Iterator[Bench]:
    """The workspace of `fill_sample`, mounted, with files of their own for `SOURCE_TESTS`."""
    own: dict[str, str | bytes] = {}
    for test in SOURCE_TESTS:
        own |= {f"tests/{test}/one": "one\n", f"tests/{test}/two": "two\n", f"tests/{test}/tree/deep/leaf": "leaf\n"}
    with bench_in(base) as bench:
        fill_sample(bench, own)
        bench.mount()
        yield bench
        bench.check_sound()
