"""What `clivefs doctor` looks at. Each check is a function that answers with what it found and, if something is
amiss, the command that mends it."""

from __future__ import annotations

import importlib
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.cli import daemons, locate, mountpoint
from clivefs.daemon import recovery
from clivefs.mounts.resolve import FS_TYPE

PACKAGES = ("asyncssh", "lmdb", "msgspec", "pyfuse3", "pygit2", "trio", "urllib3") + (
    () if sys.version_info >= (3, 14) else ("backports.zstd",)
)
PYTHONS = ((3, 11), (3, 14))
COMPILES_PYFUSE3 = ("fuse3", "libfuse3-dev", "pkg-config", "gcc", "python3-dev")
GIT_MIN = (2, 39)
KERNEL_MIN = (5, 15)
MOUNT_TABLE = "/etc/mtab"
STORE_REMEDY = "choose another: --store DIR"
WATCHES_MIN = 65_536
OPEN_FILES_MIN = 4096


class Finding(NamedTuple):
    """What one check found."""

    check: str
    state: Literal["ok", "warning", "missing"]
    """`missing`: clivefs cannot work here. `warning`: something of it cannot."""
    detail: str
    remedy: str | None = None
    """The command that mends it."""


def examine(store: str, *, allow_other: bool) -> list[Finding]:
    """All findings, in the order in which things are needed."""
    checks: list[Callable[[], Finding]] = [
        _python,
        _packages,
        _kernel,
        _fuse_device,
        _libfuse,
        _fusermount,
        _git,
        _watches,
        _open_files,
        lambda: _store(store),
        lambda: _mounts(store),
    ]
    if allow_other:
        checks.append(_allow_other)
    return [check() for check in checks]


def _install(*packages: str) -> str:
    return mountpoint.privileged(f"apt-get install {' '.join(packages)}")


def _python() -> Finding:
    version = sys.version_info[:2]
    text = f"Python {sys.version.split()[0]} ({sys.executable})"
    if PYTHONS[0] <= version <= PYTHONS[1]:
        return Finding("python", "ok", text)
    if version > PYTHONS[1]:
        return Finding("python", "warning", f"{text} is newer than what clivefs is tested with")
    return Finding("python", "missing", f"{text} is older than 3.11", _install("python3"))


def _packages() -> Finding:
    problems = {}
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            problems[name] = str(error)
    if not problems:
        return Finding("packages", "ok", "all Python packages load")
    detail = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return Finding("packages", "missing", detail, _install_again(*problems))


def _install_again(*packages: str) -> str:
    """What installs Python packages, also where they are installed and do not load: a plain install passes those."""
    command = " ".join([sys.executable, "-m pip install --force-reinstall --no-cache-dir", *packages])
    return f"{_install(*COMPILES_PYFUSE3)} && {command}" if "pyfuse3" in packages else command


def _kernel() -> Finding:
    release = os.uname().release
    found = _version(release)
    if found is not None and found >= KERNEL_MIN:
        return Finding("kernel", "ok", f"Linux {release}")
    return Finding("kernel", "warning", f"Linux {release} is older than {_dotted(KERNEL_MIN)}", "update the kernel")


def _fuse_device() -> Finding:
    try:
        mountpoint.check_machine(allow_other=False)
    except ClivefsError as error:
        if error.place != mountpoint.FUSE_DEVICE:
            return Finding("/dev/fuse", "ok", "can be opened")
        return Finding("/dev/fuse", "missing", error.message, error.remedy)
    return Finding("/dev/fuse", "ok", "can be opened")


def _libfuse() -> Finding:
    # pyfuse3 is linked with it: if that loads, so did libfuse, and it is the one that counts.
    try:
        with open("/proc/self/maps") as maps:
            loaded = next((line.split()[-1] for line in maps if "/libfuse3.so" in line), None)
    except OSError:
        loaded = None
    if loaded is not None:
        return Finding("libfuse3", "ok", os.path.realpath(loaded))
    return Finding("libfuse3", "missing", "pyfuse3, which is linked with it, does not load", _install_again("pyfuse3"))


def _fusermount() -> Finding:
    path = shutil.which("fusermount3")
    is_root = os.geteuid() == 0
    if path is None:
        return Finding(
            "fusermount3",
            "warning" if is_root else "missing",
            "not installed" + (" (root mounts without it)" if is_root else ""),
            _install("fuse3"),
        )
    found = os.stat(path)
    if not (found.st_mode & stat.S_ISUID and found.st_uid == 0):
        return Finding(
            "fusermount3",
            "warning" if is_root else "missing",
            f"{path} is not set-user-ID root, so users cannot mount",
            f"{mountpoint.privileged(f'chown root {path}')} && {mountpoint.privileged(f'chmod u+s {path}')}",
        )
    if not is_root and not os.path.exists(MOUNT_TABLE):
        return Finding(
            "fusermount3",
            "warning",
            f"{path} unmounts nothing where there is no {MOUNT_TABLE}",
            mountpoint.privileged(f"ln -s /proc/self/mounts {MOUNT_TABLE}"),
        )
    return Finding("fusermount3", "ok", path)


def _git() -> Finding:
    path = shutil.which("git")
    if path is None:
        return Finding("git", "missing", "not installed", _install("git"))
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout.strip()
    found = _version(said)
    if found is not None and found >= GIT_MIN:
        return Finding("git", "ok", said)
    return Finding("git", "warning", f"{said} is older than {_dotted(GIT_MIN)}", _install("git"))


def _watches() -> Finding:
    limit = _proc_number("/proc/sys/fs/inotify/max_user_watches")
    if limit is None:
        return Finding("inotify", "warning", "the limit of watches cannot be read")
    text = f"{limit} watches of directories"
    if limit >= WATCHES_MIN:
        return Finding("inotify", "ok", text)
    return Finding(
        "inotify",
        "warning",
        f"only {text}: edits in larger checkouts are noticed late",
        f"echo fs.inotify.max_user_watches=524288 | {mountpoint.privileged('tee /etc/sysctl.d/60-clivefs.conf')} && "
        + mountpoint.privileged("sysctl --system"),
    )


def _open_files() -> Finding:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= OPEN_FILES_MIN:
        return Finding("open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard}")
    return Finding(
        "open files",
        "warning",
        f"only {hard} at once",
        f"echo '* hard nofile {OPEN_FILES_MIN * 16}' | "
        f"{mountpoint.privileged('tee /etc/security/limits.d/60-clivefs.conf')}; then log in again",
    )


def _store(path: str) -> Finding:
    """Looks, and makes nothing."""
    try:
        mountpoint.check_store(path, ())
        nearest = path
        while not os.path.lexists(nearest):
            nearest = os.path.dirname(nearest)
        if not os.path.isdir(nearest):
            return Finding("store", "missing", f"{nearest} is not a directory", STORE_REMEDY)
        if not os.access(nearest, os.W_OK | os.X_OK):
            return Finding("store", "missing", f"{nearest} cannot be written", STORE_REMEDY)
        if nearest != path:
            return Finding("store", "ok", f"{path} will be made")
        _open_store(path)
    except ClivefsError as error:
        place = f"{error.place}: " if error.place else ""
        return Finding("store", "missing", place + error.message, error.remedy or STORE_REMEDY)
    return Finding("store", "ok", path)


def _mounts(store: str) -> Finding:
    """Mounts that nobody serves any more: whoever looks into one gets an error."""
    known = daemons.daemons(store)
    ours = {daemon.mountpoint for daemon in known}
    dead = {daemon.mountpoint: f" ({', '.join(daemon.names)})" for daemon in known if not daemon.alive()}
    for mount in recovery.mounts():
        if mount.fs_type == FS_TYPE and mount.mountpoint not in ours and not locate.answers(mount.mountpoint):
            dead[mount.mountpoint] = ""
    if not dead:
        return Finding("mounts", "ok", "every mount is served")
    return Finding(
        "mounts",
        "warning",
        f"the daemon has died that served {', '.join(point + names for point, names in dead.items())}",
        "; ".join(
            f"`clivefs mount --at {point}` brings it back, `clivefs unmount {point}` clears it" for point in dead
        ),
    )


def _open_store(path: str) -> None:
    try:
        store = importlib.import_module("clivefs.objects.store").Store
    except ImportError:
        return  # `packages` says which is missing
    if os.path.lexists(os.path.join(path, "format")):
        store.open(path, create=False).close()


def _allow_other() -> Finding:
    if os.geteuid() == 0 or mountpoint.others_allowed():
        return Finding("--allow-other", "ok", "permitted")
    return Finding(
        "--allow-other",
        "missing",
        f"{mountpoint.FUSE_CONF} does not permit it to users",
        f"echo user_allow_other | sudo tee -a {mountpoint.FUSE_CONF}",
    )


def _proc_number(path: str) -> int | None:
    try:
        with open(path) as file:
            return int(file.read())
    except (OSError, ValueError):
        return None


def _version(text: str) -> tuple[int, int] | None:
    found = re.search(r"(\d+)\.(\d+)", text)
    return (int(found.group(1)), int(found.group(2))) if found else None


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"
