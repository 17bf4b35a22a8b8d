"""Which workspace, and which daemon, a command means: by `-w`, `--at`, or the current directory.

Owned here: that nothing is looked up through a mount that may be dead. /proc/self/mountinfo says where the
mounts are; a path below a clivefs mount is only ever taken apart as text.
"""

from __future__ import annotations

import difflib
import os
import subprocess
from typing import Any, NamedTuple

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon, DaemonGone, daemon_at, daemons
from clivefs.daemon import recovery
from clivefs.mounts.resolve import FS_TYPE

CONFIG_NAME = "Clive.toml"
ANSWER_S = 5
"""How long a mount may take to answer statfs(2), in seconds."""


class Workspace(NamedTuple):
    """The workspace that a command acts on."""

    root: str
    """Its own directory."""
    name: str | None
    """Its name in the mounted tree; None where no daemon serves it."""
    daemon: Daemon | None
    directory: str
    """Where in it the command was called: a path inside the workspace, empty for its top."""

    @property
    def shown_at(self) -> str | None:
        """Its directory in the mounted tree."""
        return os.path.join(self.daemon.mountpoint, self.name) if self.daemon and self.name else None

    def served(self, why: str) -> Daemon:
        """Its daemon, for a command that needs one: *why* ends the sentence "it is not mounted, and ..."."""
        if self.daemon is None:
            raise ClivefsError(
                f"this workspace is not mounted, and {why}", place=self.root, remedy=f"clivefs mount {self.root}"
            )
        return self.daemon

    def inside(self, path: str) -> str:
        """*path* as a person names it from where he stands, as a path inside the workspace. UsageError for one outside,
        and for an empty one: a script's variable without a value must not stand for everything."""
        if not path:
            raise UsageError("an empty path names nothing", remedy="`.` is the current directory")
        text = path
        if os.path.isabs(path):
            tops = [top for top in (self.root, self.shown_at) if top is not None]
            normal = os.path.normpath(path)
            text = next((os.path.relpath(normal, top) for top in tops if is_below(normal, top)), "..")
        else:
            text = os.path.normpath(os.path.join(self.directory, path))
        if text == ".." or text.startswith("../"):
            raise UsageError("this path is outside the workspace", place=path, remedy=f"the workspace is {self.root}")
        return "" if text == "." else text


def is_below(path: str, top: str) -> bool:
    """*path* is *top* or lies below it; both absolute, compared as text."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def enclosing_root(directory: str) -> str | None:
    """The nearest directory at or above *directory* that has a `Clive.toml`."""
    while True:
        if os.path.lexists(os.path.join(directory, CONFIG_NAME)):
            return directory
        parent = os.path.dirname(directory)
        if parent == directory:
            return None
        directory = parent


def mount_over(path: str) -> recovery.Mount | None:
    """The clivefs mount that *path* (absolute) is or lies in."""
    return recovery.clive_mount_over(path)


def is_mountpoint(path: str) -> bool:
    """A clivefs is mounted at *path*."""
    mount = recovery.mounted_at(path)
    return mount is not None and mount.fs_type == FS_TYPE


def answers(mountpoint: str) -> bool:
    """Somebody serves the mount at *mountpoint*, to tell a living one of another store from a dead one.

    Asked by a process of its own with a limit: where the daemon hangs, so does whoever asks.
    """
    try:
        asked = subprocess.run(
            ["stat", "--file-system", "--", mountpoint],
            env={"LC_ALL": "C", "PATH": os.defpath},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=ANSWER_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    return asked.returncode == 0 or b"Transport endpoint" not in asked.stderr


def at_root(call: Call, root: str) -> Workspace:
    """The workspace whose own directory is *root*, mounted or not."""
    return _serving_root(call.store, root) or Workspace(root, None, None, "")


def workspaces_of(daemon: Daemon) -> list[dict[str, Any]]:
    """What the daemon says it serves, as in `status --json`."""
    return list(daemon.ask("status")["workspaces"])


def find(call: Call) -> Workspace:
    """The workspace that the call means. Raises ClivefsError where there is none."""
    name: str | None = call.args.workspace
    here = call.around.directory
    mount = mount_over(here)
    if call.args.at is not None:
        daemon = serving(call, call.absolute(call.args.at))
        return _named(name, [daemon]) if name else _only(daemon, here)
    if name is not None:
        return _named(name, daemons(call.store))
    if mount is not None:
        return in_mount(call, mount)
    root = enclosing_root(here)
    if root is None:
        raise ClivefsError(
            f"there is no {CONFIG_NAME} here or above",
            place=here,
            remedy="change to a workspace, name one with -w, or make one: clivefs init",
        )
    return at_root(call, root)._replace(directory=_below(here, root))


def in_mount(call: Call, mount: recovery.Mount) -> Workspace:
    """The workspace whose directory in *mount* the current directory is in."""
    here = call.around.directory
    daemon = serving(call, mount.mountpoint)
    if here == mount.mountpoint:
        return _only(daemon, here)
    first, _, rest = os.path.relpath(here, mount.mountpoint).partition("/")
    return _named(first, [daemon])._replace(directory=rest)


def _below(path: str, top: str) -> str:
    text = os.path.relpath(path, top)
    return "" if text == "." else text


def serving(call: Call, mountpoint: str) -> Daemon:
    """The daemon of *mountpoint*, which must be one of ours and alive."""
    daemon = daemon_at(call.store, mountpoint)
    if daemon is not None and daemon.alive():
        return daemon
    mount = recovery.mounted_at(mountpoint)
    if mount is None or mount.fs_type != FS_TYPE:
        raise ClivefsError("nothing of clivefs is mounted there", place=mountpoint, remedy="clivefs status")
    if daemon is not None:
        daemon.ask("status")  # says what is wrong
    raise ClivefsError(
        f"no daemon of the store {call.store} serves this mountpoint",
        place=mountpoint,
        remedy="if it was mounted with another store, say so with --store; if its daemon has died, "
        f"`clivefs mount --at {mountpoint}` brings it back and `clivefs unmount {mountpoint}` clears it away",
    )


def _only(daemon: Daemon, here: str) -> Workspace:
    served = workspaces_of(daemon)
    if len(served) != 1:
        names = ", ".join(each["name"] for each in served) or "none"
        raise UsageError(f"which workspace? This mountpoint has {names}", place=here, remedy="name one with -w")
    return Workspace(served[0]["root"], served[0]["name"], daemon, "")


def _named(name: str, candidates: list[Daemon]) -> Workspace:
    found: list[Workspace] = []
    names: list[str] = []
    gone: DaemonGone | None = None
    for daemon in candidates:
        try:
            served = workspaces_of(daemon)
        except DaemonGone as error:
            gone = error if name in daemon.names else gone
            continue
        names += [each["name"] for each in served]
        found += [Workspace(each["root"], name, daemon, "") for each in served if each["name"] == name]
    if len(found) > 1:
        places = " and ".join(each.daemon.mountpoint for each in found if each.daemon is not None)
        raise UsageError(f"{name} is mounted at {places}", remedy="choose with --at MOUNTPOINT")
    if not found and gone is not None:
        raise gone
    if not found:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ClivefsError(f"no workspace called {name} is mounted", remedy=f"{hint}`clivefs status` lists them")
    return found[0]


def _serving_root(store: str, root: str) -> Workspace | None:
    for daemon in daemons(store):
        try:
            served = workspaces_of(daemon)
        except DaemonGone:
            continue
        for each in served:
            if each["root"] == root:
                return Workspace(root, each["name"], daemon, "")
    return None
