"""`clivefs unmount`: leave a mountpoint, or take one workspace from it."""

from __future__ import annotations

import argparse
import os
import select
import shlex
import time
from typing import Any

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import call as calls
from clivefs.cli import daemons, locate
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon, DaemonGone
from clivefs.daemon import recovery
from clivefs.mounts.resolve import FS_TYPE

DESCRIPTION = """\
End the daemon of a mountpoint after it has finished what it acknowledged, or with a workspace's name (or its
directory in the mount) take that workspace alone. Nothing recorded is lost. A mount whose daemon has died is
cleared away. Programs that still work in it keep what they have open, and are named."""

EXAMPLES = """\
clivefs unmount              the mountpoint that this directory is in, else the only one, else ~/clive
clivefs unmount /mnt/work    another mountpoint
clivefs unmount shop         the workspace shop; the others stay"""

END_WAIT_S = 30.0
"""How long we wait for a daemon that does nothing."""
_SAY_S = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="MOUNTPOINT-or-NAME", nargs="?", help="what to leave")
    calls.add_store(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    point, name = _target(call)
    daemon = daemons.daemon_at(call.store, point)
    if daemon is None or not daemon.serves():
        return _clear(call, point, name, daemon)
    if name is not None:
        served = [each["name"] for each in locate.workspaces_of(daemon)]
        if served != [name]:
            left = daemon.ask("leave", name=name)
            call.out.line(f"unmounted {name}; {', '.join(left['left'])} stay at {point}")
            call.out.json({"mountpoint": point, "workspace": name, "left": left["left"]})
            return 0
    return _end(call, daemon)


def _target(call: Call) -> tuple[str, str | None]:
    """The mountpoint, and the workspace if it is about one alone."""
    target: str | None = call.args.target
    if target is None:
        return _default(call), None
    known = daemons.daemons(call.store)
    if "/" not in target:
        for daemon in sorted(known, key=lambda each: not each.alive()):  # what is alive is meant before what is not
            if target in _names(daemon):
                return daemon.mountpoint, target
    path = call.absolute(target)
    mount = locate.mount_over(path)
    if mount is None:
        stale = next((daemon for daemon in known if daemon.mountpoint == path), None)
        if stale is not None:
            return path, None
        names = sorted(name for daemon in known for name in _names(daemon))
        raise ClivefsError(
            "no clivefs mount and no mounted workspace",
            place=target,
            remedy=f"mounted are: {', '.join(names)}" if names else "nothing is mounted",
        )
    inside = os.path.relpath(path, mount.mountpoint)
    if inside == ".":
        return mount.mountpoint, None
    if "/" in inside:
        raise UsageError(
            "this is a directory of a workspace", place=target, remedy="name the mountpoint or the workspace"
        )
    return mount.mountpoint, inside


def _default(call: Call) -> str:
    mount = locate.mount_over(call.around.directory)
    if mount is not None:
        return mount.mountpoint
    known = [daemon.mountpoint for daemon in daemons.daemons(call.store)]
    if len(known) == 1:
        return known[0]
    home = call.around.mountpoint
    if home in known or locate.is_mountpoint(home):
        return home
    if known:
        raise UsageError("several mountpoints are served", remedy=f"name one: {', '.join(known)}")
    raise ClivefsError("nothing is mounted", remedy="clivefs status")


def _names(daemon: Daemon) -> list[str]:
    try:
        return [each["name"] for each in locate.workspaces_of(daemon)]
    except DaemonGone:
        return list(daemon.names)


def _end(call: Call, daemon: Daemon) -> int:
    pidfd = daemon.pidfd()
    try:
        result: dict[str, Any] = daemon.ask("unmount", call.out.progress) or {}
        users = [each for each in result.get("users") or [] if each["pid"] != os.getpid()]
        if users:
            call.out.note("still at work in it: " + ", ".join(f"{each['command']} ({each['pid']})" for each in users))
        if pidfd is not None:
            _wait(call, daemon, pidfd)
    finally:
        if pidfd is not None:
            os.close(pidfd)
    left = recovery.mounted_at(daemon.mountpoint)
    if left is not None and left.fs_type == FS_TYPE and not locate.answers(daemon.mountpoint):
        recovery.clear_dead_mount(left)  # the daemon could not: it says if we cannot either
    call.out.line(f"unmounted {daemon.mountpoint}")
    call.out.json({"mountpoint": daemon.mountpoint, "users": users})
    return 0


def _wait(call: Call, daemon: Daemon, pidfd: int) -> None:
    """Until the daemon has ended: for as long as it works, since what it does then is to record what was saved last."""
    waiting = select.poll()
    waiting.register(pidfd, select.POLLIN)
    worked = _work_done(daemon.pid)
    since = time.monotonic()
    said = False
    while not waiting.poll(_SAY_S * 1000):
        if not said:
            call.out.note("the last changes are being recorded; Ctrl-C leaves that to the daemon")
            said = True
        now = _work_done(daemon.pid)
        if now != worked:
            worked, since = now, time.monotonic()
        elif time.monotonic() - since >= END_WAIT_S:
            raise ClivefsError(
                f"the daemon (process {daemon.pid}) has not ended, and has done nothing for {END_WAIT_S:.0f} s",
                place=daemon.mountpoint,
                remedy=f"see {daemons.log_path(call.store, daemon.mountpoint)}",
            )


def _work_done(pid: int) -> tuple[bytes, ...]:
    """The processor time that a process has used, in ticks, as user and as kernel; empty when it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return tuple(file.read().rpartition(b") ")[2].split()[11:13])
    except OSError:
        return ()


def _clear(call: Call, point: str, name: str | None, daemon: Daemon | None) -> int:
    """Take away what a dead daemon left. A dead mount goes as a whole, so whoever named one workspace of it is told of
    the others."""
    mount = recovery.mounted_at(point)
    if mount is not None and mount.fs_type == FS_TYPE:
        if locate.answers(point):
            raise ClivefsError(
                f"no daemon of the store {call.store} serves this mountpoint, and it is alive",
                place=point,
                remedy="name the store that it was mounted with: --store",
            )
        recovery.clear_dead_mount(mount)
    daemons.forget(call.store, point)
    call.out.line(f"cleared the dead mount at {point}")
    others = [] if daemon is None or name is None else zip(daemon.names, daemon.roots, strict=False)
    for other, root in others:
        if other != name:
            call.out.line(
                f"{other} was in it too: `clivefs mount {shlex.quote(root)} --at {shlex.quote(point)}` brings it back"
            )
    call.out.json({"mountpoint": point, "users": []})
    return 0
