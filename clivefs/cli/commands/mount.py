"""`clivefs mount`: mount workspaces, by a daemon of their mountpoint."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories
from clivefs.cli import call as calls
from clivefs.cli import daemons, locate, mountpoint, report, spawn
from clivefs.cli.call import Call

DESCRIPTION = """\
Show workspaces as ordinary directories below a mountpoint, MOUNTPOINT/NAME. One daemon serves a mountpoint:
a second `mount` joins it. A mount whose daemon has died is cleared and made anew, with everything that had
been saved."""

EXAMPLES = """\
clivefs mount                       the workspace that this directory is in, at ~/clive
clivefs mount ~/src/shop ~/src/lib  two workspaces
clivefs mount --at /mnt/work        at another mountpoint, made if it does not exist
clivefs mount --foreground          stay, and log to standard error, as systemd wants it"""

NETWORK_TIMEOUT_S = 30.0
NATIVE_SINCE = (6, 1)
TRANSPORTS = ("pyfuse3", "native")
NOT_MOUNTED = ("error", "not-allowed")
"""States of an entry that shows an empty directory instead of its source."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directories", metavar="DIR", nargs="*", help="workspaces (default: the enclosing one)")
    parser.add_argument("--at", metavar="MOUNTPOINT", help="where (default: ~/clive)")
    calls.add_store(parser)
    parser.add_argument("--allow", action="store_true", help="allow what their Clive.toml asks for (clivefs allow)")
    parser.add_argument("--foreground", action="store_true", help="do not go to the background")
    parser.add_argument("--allow-other", action="store_true", help="let other users in, as permissions say")
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    store = call.store
    point = mountpoint.resolve(call.absolute(args.at or call.around.mountpoint))
    daemon = daemons.daemon_at(store, point)
    served = daemon is not None and daemon.serves()
    roots = _roots(call, () if daemon is None or served else daemon.roots)
    mountpoint.check_store(store, roots)
    mountpoint.check_machine(allow_other=args.allow_other)
    if daemon is not None and served:
        if args.foreground:
            raise ClivefsError(
                f"a daemon serves this mountpoint already (process {daemon.pid})",
                place=point,
                remedy="leave --foreground out to join it, or `clivefs unmount` it first",
            )
        names = [
            daemon.ask("mount", call.out.progress, root=root, allow=args.allow)["name"]
            for root in roots
            if not _is_served(daemon, root)
        ]
    else:
        mountpoint.check_not_alive(point)
        config = _config(call, store, point, roots)
        if args.foreground:
            return spawn.in_foreground(config, call.out)
        names = spawn.in_background(config, daemons.log_path(store, point), call.out.progress)["workspaces"]
        daemon = daemons.daemon_at(store, point)
    if daemon is None:
        raise ClivefsError("the daemon has gone again", place=point, remedy=f"see {daemons.log_path(store, point)}")
    return _tell(call, daemon, roots, names)


def _roots(call: Call, of_the_dead: Sequence[str]) -> list[str]:
    """The workspaces to mount, absolute and without links, each once: those that are named, else the one that the
    current directory is in, else those of a daemon that has died."""
    if call.args.directories:
        return list(dict.fromkeys(mountpoint.workspace_root(call.absolute(each)) for each in call.args.directories))
    here = call.around.directory
    left = [root for root in of_the_dead if _is_workspace(root)]
    mount = locate.mount_over(here)
    if mount is None:
        root = locate.enclosing_root(here)
        if root is not None:
            return [root]
    elif not left:
        return [locate.in_mount(call, mount).root]
    if left:
        return left
    raise ClivefsError(
        f"there is no {locate.CONFIG_NAME} here or above",
        place=here,
        remedy="name a workspace's directory, or make this one a workspace: clivefs init",
    )


def _is_workspace(root: str) -> bool:
    return locate.mount_over(root) is None and os.path.lexists(os.path.join(root, locate.CONFIG_NAME))


def _is_served(daemon: daemons.Daemon, root: str) -> bool:
    return any(each["root"] == root for each in locate.workspaces_of(daemon))


def _config(call: Call, store: str, point: str, roots: list[str]) -> dict[str, Any]:
    run_directory = daemons.run_directory(store)
    make_directories(store)
    make_directories(run_directory)
    args = call.args
    return {
        "mountpoint": point,
        "store": store,
        "workspaces": [{"root": root, "allow": args.allow} for root in roots],
        "allow_other": args.allow_other,
        "foreground": args.foreground,
        "log": None if args.foreground else daemons.log_path(store, point),
        "runtime": run_directory,
        "notify_socket": call.around.environ.get("NOTIFY_SOCKET") if args.foreground else None,
        "network_timeout_s": NETWORK_TIMEOUT_S,
        "transport": _transport(call),
        "user_ignore": call.around.user_ignore,
    }


def _transport(call: Call) -> str:
    """What carries requests between the kernel and the daemon: our own driver on kernels that it was tried with,
    libfuse on older ones, and what `CLIVEFS_TRANSPORT` says anywhere."""
    tried = _kernel_version(os.uname().release) >= NATIVE_SINCE
    name = call.around.environ.get("CLIVEFS_TRANSPORT") or ("native" if tried else "pyfuse3")
    if name not in TRANSPORTS:
        raise ClivefsError(
            f"there is no transport {name!r}", place="$CLIVEFS_TRANSPORT", remedy=f"use one of: {', '.join(TRANSPORTS)}"
        )
    return name


def _kernel_version(release: str) -> tuple[int, int]:
    """(6, 18) for `6.18.44-generic`; (0, 0) for what does not begin so."""
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found is not None else (0, 0)


def _tell(call: Call, daemon: daemons.Daemon, roots: list[str], names: list[str]) -> int:
    """Say what is mounted now, and what of it is not well."""
    facts = daemon.ask("status")
    mine = [each for each in facts["workspaces"] if each["root"] in roots]
    call.out.json({**facts, "workspaces": mine})
    for each in mine:
        state = "mounted" if each["name"] in names else "already mounted"
        call.out.line(f"{state}: {os.path.join(daemon.mountpoint, each['name'])}")
        report.entries(call.out, each, errors=False)
    if mine and names:
        call.out.line(f"try: cd {os.path.join(daemon.mountpoint, mine[0]['name'])}; clivefs status; clivefs unmount")
    return _tell_wrong(call, mine)


def _tell_wrong(call: Call, workspaces: list[dict[str, Any]]) -> int:
    """Say what could not be mounted though the rest was, in one message; the exit status."""
    wrong = [report.problem(each, entry) for each in workspaces for entry in each["mounts"] if entry.get("error")]
    if not wrong:
        return 0
    missing = [entry for each in workspaces for entry in each["mounts"] if entry["state"] in NOT_MOUNTED]
    if not missing:
        call.out.note("\n".join(wrong))
        return 0
    call.out.error(ClivefsError("\n".join(wrong)))
    return 1
