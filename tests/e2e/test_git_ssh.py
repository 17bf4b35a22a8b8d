"""Refs of remotes over SSH, by the ssh that the user's git is set to. Without the marker of mount tests: there need be
no sshd where they run."""

from __future__ import annotations

import getpass
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, until

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
pytestmark = pytest.mark.skipif(
    SSHD is None or shutil.which("ssh") is None or not os.path.exists("/dev/fuse"), reason="needs sshd, ssh, /dev/fuse"
)

TIMEOUT_S = 3


class Ssh:
    """An sshd on the loopback that knows one key, and how to get in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        for name in ("host", "client"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(command, check=True)
        shutil.copy(directory / "client.pub", directory / "authorized")
        (directory / "known").write_text(f"[127.0.0.1]:{self.port} {(directory / 'host.pub').read_text()}")
        (directory / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1:{self.port}\nHostKey {directory}/host\n"
            f"AuthorizedKeysFile {directory}/authorized\nStrictModes no\nUsePAM no\nPidFile none\n"
            "PasswordAuthentication no\nPermitRootLogin prohibit-password\n"
            "AcceptEnv GIT_PROTOCOL\n"
        )
        (directory / "ssh_config").write_text(
            f"Host far\n\tHostName 127.0.0.1\n\tPort {self.port}\n\tUser {getpass.getuser()}\n"
            f"\tIdentityFile {directory}/client\n\tIdentitiesOnly yes\n\tUserKnownHostsFile {directory}/known\n"
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def command(self) -> str:
        """For GIT_SSH_COMMAND."""
        return f"ssh -F {self.directory}/ssh_config"

    def start(self) -> None:
        assert SSHD is not None
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        command = [SSHD, "-D", "-e", "-f", str(self.directory / "sshd_config")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self._answers, "sshd")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Take connections, and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False


@pytest.fixture
def ssh(bench: Bench) -> Iterator[Ssh]:
    directory = bench.base / "ssh"
    directory.mkdir(mode=0o700)
    made = Ssh(directory)
    yield made
    if made._process is not None:
        made.go_on()
    made.stop()


@pytest.fixture
def origin(bench: Bench) -> Path:
    files: dict[str, str | bytes] = {
        f"{directory}/{name}": f"{directory} {name}\n" for directory in ("one", "two") for name in "ab"
    }
    path = bench.repository("thing", files)
    for option in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        bench.git("config", option, "true", cwd=path)
    return path


def mount(bench: Bench, url: str, more: str = "", *, check: bool = True) -> Path:
    bench.write_toml(
        f'[workspace]\nname = "shop"\n\n[limits]\nnetwork_timeout = "{TIMEOUT_S}s"\n\n'
        f'[mounts.far]\ngit = "{url}"\nref = "main"\n{more}'
    )
    bench.mount(check=check)
    return bench.live / "far"


def reads(path: Path) -> bool:
    """Whether *path* has its content."""
    try:
        return path.read_text() == f"{path.parent.name} {path.name}\n"
    except OSError:
        return False


@pytest.mark.parametrize("form", ["ssh://far{path}", "far:{path}"])
def test_a_ref_over_ssh(bench: Bench, ssh: Ssh, origin: Path, form: str) -> None:
    bench.environment["GIT_SSH_COMMAND"] = ssh.command
    tree = mount(bench, form.format(path=origin))
    assert reads(tree / "one/a")
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    (tree / "one/a").write_text("mine\n")
    bench.git("commit", "-qam", "mine", cwd=tree)
    bench.git("push", "-q", "origin", "HEAD:refs/heads/mine", cwd=tree)
    assert bench.git("log", "-1", "--format=%s", "mine", cwd=origin) == "mine\n"
    bench.check_sound()


def test_a_key_that_is_refused_is_said_and_nobody_is_asked(bench: Bench, ssh: Ssh, origin: Path) -> None:
    (ssh.directory / "authorized").write_text("")
    bench.environment["GIT_SSH_COMMAND"] = ssh.command
    mount(bench, f"ssh://far{origin}", check=False)
    entry = bench.entry("far")
    assert entry["state"] == "error"
    assert "Permission denied" in entry["error"] or "Could not read" in entry["error"]


def test_a_host_that_is_silent_or_gone(bench: Bench, ssh: Ssh, origin: Path) -> None:
    bench.environment["GIT_SSH_COMMAND"] = ssh.command
    tree = mount(bench, f"ssh://far{origin}", 'blobs = "lazy"\n')
    assert reads(tree / "one/a")
    ssh.pause()
    with pytest.raises(OSError, match="Input/output error"):
        (tree / "two/a").read_text()
    assert reads(tree / "one/b")
    ssh.go_on()
    until(lambda: reads(tree / "two/a"), "the content once the host speaks")
    ssh.stop()
    assert reads(tree / "two/b")
    bench.check_sound(allowed="gave up waiting: fetching")
