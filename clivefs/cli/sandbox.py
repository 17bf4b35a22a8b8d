"""Running a command so that it can write nowhere but in a fork, by bubblewrap (bwrap(1)).

Everything is there to be read, but for sockets that lead out (`/run`, the daemons' own): those could have others write
on the command's behalf. `/tmp`, `/var/tmp` and `/dev/shm` are empty and its own, and gone with it; so is its view of
processes. The network is not cut off, and with it abstract sockets; nor are sockets in the user's own directories. It
keeps its terminal, but cannot type on it for the shell that reads there next. As root the command has no capabilities,
and `/proc` is read-only: root may set the kernel's switches without any.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clivefs.base.errors import ClivefsError

_PROGRAM = "bwrap"
_RESET = "--default-signal=INT,QUIT"
_SCRATCH = ("/tmp", "/var/tmp")
_RUN = "/run"
_NAMES = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf")
"""Where name servers are told."""

_FIRST_FREE_FD = 3

_IOCTLS = (
    (0xC000003E, 16),  # x86_64
    (0xC000003E, 0x40000000 | 514),  # x32
    (0x40000003, 54),  # i386
    (0xC00000B7, 29),  # aarch64
    (0x40000028, 54),  # arm
    (0xC00000F3, 29),  # riscv64
)
"""AUDIT_ARCH_* of <linux/audit.h>, and the number of ioctl(2) there."""
_TIOCSTI, _TIOCLINUX = 0x5412, 0x541C
"""What types on a terminal, and what pastes into a console."""
_LOAD, _IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_REFUSE, _ALLOW = 0x00050000 | errno.EPERM, 0x7FFF0000


class Sandbox(NamedTuple):
    """How a command is run in one."""

    words: list[str]
    """What comes before the command's own words: bwrap and its options."""
    fd: int
    """A descriptor that bwrap must inherit."""
    keys_ignored: bool
    """bwrap is to be started with SIGINT and SIGQUIT ignored: Ctrl-C is the command's, which has them as usual."""


def make(
    directory: str, *, writable: Sequence[str], readable: Sequence[str], hidden: Sequence[str], path: str | None
) -> Sandbox:
    """*directory* is where the command runs; *writable* what it may write; *readable* what it must see, also where that
    lies in a scratch directory; *hidden* directories are empty. ClivefsError where there is no bwrap, or it cannot do
    this here."""
    program = shutil.which(_PROGRAM, path=path)
    if program is None:
        raise ClivefsError("--sandbox needs bubblewrap, which is not installed", remedy="apt install bubblewrap")
    made = os.memfd_create("clivefs-seccomp")
    os.write(made, _no_typing())
    filter_fd = fcntl.fcntl(made, fcntl.F_DUPFD, _FIRST_FREE_FD)  # standard input may be closed, and is not to be this
    os.close(made)
    words = [program, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--cap-drop", "ALL", "--seccomp", str(filter_fd)]
    words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", _RUN]
    if os.geteuid() == 0:
        words += ["--remount-ro", "/proc"]
    for scratch in _SCRATCH:
        if os.path.isdir(scratch) and not os.path.islink(scratch):
            words += ["--tmpfs", scratch]
    for each in _NAMES:
        words += ["--ro-bind-try", each, each]
    for each in readable:
        words += ["--ro-bind-try", each, each]
    for each in hidden:
        if _is_seen(each, (*readable, *writable)):
            words += ["--tmpfs", each]
    for each in writable:
        words += ["--bind-try", each, each]
    words += ["--chdir", directory, "--"]
    env = shutil.which("env", path=path)
    keys_ignored = env is not None and _resets_signals(env)
    if env is not None:  # also for the exit status where there is no such command
        words += [env, _RESET] if keys_ignored else [env]
    sandbox = Sandbox(words, filter_fd, keys_ignored)
    _check(sandbox)
    os.lseek(filter_fd, 0, os.SEEK_SET)
    return sandbox


def _is_seen(path: str, shown: Sequence[str]) -> bool:
    """Whether the command would see *path*: where all is empty, what is *shown* there and below."""

    def is_within(tops: Sequence[str]) -> bool:
        return any(path == top or path.startswith(top + "/") for top in tops)

    return not is_within((*_SCRATCH, _RUN, "/dev")) or is_within(shown)


def _resets_signals(env: str) -> bool:
    """Whether this env(1) can undo that a signal is ignored."""
    return (
        subprocess.run([env, _RESET, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode
        == 0
    )


def _no_typing() -> bytes:
    """A seccomp filter (seccomp(2), classic BPF) that refuses to put characters into a terminal's input."""
    lines: list[tuple[int, int, int, int]] = []
    for architecture, ioctl in _IOCTLS:
        lines += [
            (_LOAD, 0, 0, 4),  # seccomp_data.arch
            (_IF_EQUAL, 0, 6, architecture),
            (_LOAD, 0, 0, 0),  # seccomp_data.nr
            (_IF_EQUAL, 0, 4, ioctl),
            (_LOAD, 0, 0, 24),  # the lower half of seccomp_data.args[1]
            (_IF_EQUAL, 1, 0, _TIOCSTI),
            (_IF_EQUAL, 0, 1, _TIOCLINUX),
            (_RETURN, 0, 0, _REFUSE),
        ]
    lines.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *line) for line in lines)


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for it: what tools keep for later goes where it can."""
    scratch = _SCRATCH[0]
    return {
        **environ,
        "TMPDIR": scratch,
        "XDG_CACHE_HOME": f"{scratch}/.cache",
        "XDG_RUNTIME_DIR": scratch,
        "npm_config_cache": f"{scratch}/.npm",
    }


def _check(sandbox: Sandbox) -> None:
    os.lseek(sandbox.fd, 0, os.SEEK_SET)
    done = subprocess.run(
        [*sandbox.words, "true"], stdin=subprocess.DEVNULL, capture_output=True, pass_fds=(sandbox.fd,), check=False
    )
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip() or f"exit {done.returncode}"
        raise ClivefsError(
            f"bubblewrap cannot make a sandbox here: {said}",
            remedy="without root it needs user namespaces: see /proc/sys/kernel/unprivileged_userns_clone, "
            "and on Ubuntu the AppArmor profile of bwrap",
        )
