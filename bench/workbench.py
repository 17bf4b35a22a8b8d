"""A workspace with its daemon, as a person would have it: everything through the command line."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_GONE_S = 15.0


class Workbench:
    """A home, a store, a workspace directory and a mountpoint below *base*, which is made."""

    def __init__(self, base: Path) -> None:
        base.mkdir()
        self.base = base
        self.root = base / "shop"
        self.root.mkdir()
        self.mountpoint = base / "mnt"
        self._pid = 0
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "CLIVEFS_", "XDG_"))}
        self.environment = {
            **kept,
            "HOME": str(base),
            "CLIVEFS_STORE": str(base / "store"),
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C.UTF-8",
            "CLIVEFS_TRANSPORT": os.environ.get("CLIVEFS_TRANSPORT", ""),
        }

    @property
    def live(self) -> Path:
        """The workspace as it is mounted."""
        return self.mountpoint / "shop"

    def table(self, **mounts: str) -> None:
        """Write Clive.toml: NAME='git = "..."' for each entry."""
        text = '[workspace]\nname = "shop"\n'
        for name, value in mounts.items():
            text += f'\n[mounts."{name}"]\n{value}\n'
        (self.root / "Clive.toml").write_text(text)

    def cli(self, *args: object) -> str:
        """Run `clivefs ARGS` as it is installed; what it printed."""
        command = [sys.executable, "-P", "-m", "clivefs.cli", *map(str, args)]
        script = Path(sys.executable).with_name("clivefs")
        if script.exists():
            command = [str(script), *map(str, args)]
        environment = {**self.environment, "PYTHONPATH": os.getcwd()}
        done = subprocess.run(command, cwd=self.root, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} exited with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done.stdout

    def mount(self) -> None:
        self.cli("mount", self.root, "--at", self.mountpoint, "--allow")

    def unmount(self) -> None:
        """Unmount, and wait until the daemon has gone."""
        pid = self.pid()
        self.cli("unmount", self.mountpoint)
        deadline = time.monotonic() + _GONE_S
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    def pid(self) -> int:
        """The daemon's process id."""
        return int(self._daemon()["pid"])

    def known_files(self) -> int:
        """How many files the daemon keeps in mind."""
        return int(self._daemon()["nodes"])

    def _daemon(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.cli("status", "--json", "--at", self.mountpoint))
        daemon: dict[str, Any] = status["daemon"]
        return daemon

    def resident_mib(self) -> float:
        """The daemon's resident memory now, in MiB."""
        for line in Path(f"/proc/{self.pid()}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise SystemExit("the daemon has gone")

    def close(self) -> None:
        """Leave nothing behind."""
        for facts in (self.base / "store" / "run").glob("*.json"):
            with contextlib.suppress(OSError, ValueError, KeyError):
                os.kill(json.loads(facts.read_text())["pid"], signal.SIGTERM)
        subprocess.run(["fusermount3", "-uz", str(self.mountpoint)], check=False, capture_output=True)
        with contextlib.suppress(OSError):
            self.mountpoint.rmdir()
        if not os.path.ismount(self.mountpoint):
            shutil.rmtree(self.base, ignore_errors=True)
