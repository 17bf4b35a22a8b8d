"""Running a command so that it can write nowhere but in a fork, by bubblewrap (bwrap(1)).

Everything is there to be read, but for sockets that lead out (`/run`, the daemons' own): those could have others write
on the command's behalf. `/tmp`, `/var/tmp` and `/dev/shm` are empty and its own, and gone with it; so is its view of
processes. The network is not cut off. As root the command has no capabilities.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence

from clivefs.base.errors import ClivefsError

_PROGRAM = "bwrap"
_SCRATCH = ("/tmp", "/var/tmp")
_NAMES = ("/run/systemd/resolve", "/run/resolvconf", "/run/NetworkManager/resolv.conf")
"""Where name servers are told."""


def arguments(
    directory: str, *, writable: Sequence[str], readable: Sequence[str], hidden: Sequence[str], path: str | None
) -> list[str]:
    """The words before the command's own: bwrap and its options. *directory* is where it runs; *writable* what it may
    write; *readable* what it must see, also where that lies in a scratch directory; *hidden* directories are empty.
    ClivefsError where there is no bwrap, or it cannot do this here."""
    program = shutil.which(_PROGRAM, path=path)
    if program is None:
        raise ClivefsError("--sandbox needs bubblewrap, which is not installed", remedy="apt install bubblewrap")
    words = [program, "--die-with-parent", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
    words += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/run"]
    for scratch in _SCRATCH:
        if os.path.isdir(scratch) and not os.path.islink(scratch):
            words += ["--tmpfs", scratch]
    for each in _NAMES:
        words += ["--ro-bind-try", each, each]
    for each in readable:
        words += ["--ro-bind-try", each, each]
    for each in hidden:
        words += ["--tmpfs", each]
    for each in writable:
        words += ["--bind-try", each, each]
    words += ["--chdir", directory, "--"]
    _check(words)
    return words


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


def _check(words: list[str]) -> None:
    done = subprocess.run([*words, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip() or f"exit {done.returncode}"
        raise ClivefsError(
            f"bubblewrap cannot make a sandbox here: {said}",
            remedy="without root it needs user namespaces: see /proc/sys/kernel/unprivileged_userns_clone, "
            "and on Ubuntu the AppArmor profile of bwrap",
        )
