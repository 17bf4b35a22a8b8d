"""`clivefs status`: what is mounted, and whether it is well."""

from __future__ import annotations

import argparse
import os
from typing import Any

from clivefs.base.errors import UsageError
from clivefs.cli import call as calls
from clivefs.cli import daemons, locate, report
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon, DaemonGone
from clivefs.daemon import recovery

DESCRIPTION = """\
Show each mountpoint, its workspaces and their mount entries, and what is wrong with any of them."""

EXAMPLES = """\
clivefs status                    everything that this store's daemons serve
clivefs status --at /mnt/work     one mountpoint
clivefs status --json             for programs: one mountpoint, as docs/json.md says"""

NOTHING: dict[str, Any] = {"daemon": None, "workspaces": []}


def configure(parser: argparse.ArgumentParser) -> None:
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    found = _wanted(call)
    dead = [daemon for daemon, facts in found if facts is None]
    alive = [facts for _, facts in found if facts is not None]
    if call.out.as_json:
        if len(alive) > 1:
            places = ", ".join(facts["daemon"]["mountpoint"] for facts in alive)
            raise UsageError("several mountpoints are served", remedy=f"choose one with --at: {places}")
        call.out.json(alive[0] if alive else NOTHING)
    for facts in alive:
        _tell(call, facts)
    if not found:
        call.out.line("nothing is mounted")
    for daemon in dead:
        call.out.note(
            f"{daemon.mountpoint}: its daemon (process {daemon.pid}) has died"
            f"{', and with it ' + ', '.join(daemon.names) if daemon.names else ''}\n"
            f"  `clivefs mount --at {daemon.mountpoint}` brings it back; "
            f"`clivefs unmount {daemon.mountpoint}` clears it away"
        )
    well = not dead and all(_is_well(each) for facts in alive for each in facts["workspaces"])
    return 0 if well else 1


def _wanted(call: Call) -> list[tuple[Daemon, dict[str, Any] | None]]:
    """The daemons that the call is about, each with what it says, None if it is dead."""
    args = call.args
    if args.at is not None:
        known = [locate.serving(call, call.absolute(args.at))]
    else:
        mount = locate.mount_over(call.around.directory)
        if mount is not None:
            known = [locate.serving(call, mount.mountpoint)]
        else:
            known = daemons.daemons(call.store)
    found = [(daemon, _facts(daemon)) for daemon in known]
    if args.workspace is None:
        return found
    chosen: list[tuple[Daemon, dict[str, Any] | None]] = []
    for daemon, facts in found:
        mine = [each for each in (facts or NOTHING)["workspaces"] if each["name"] == args.workspace]
        if facts is not None and mine:
            chosen.append((daemon, {**facts, "workspaces": mine}))
        elif facts is None and args.workspace in daemon.names:
            chosen.append((daemon, None))
    if not chosen:
        locate.find(call)  # says that there is none of this name
    return chosen


def _facts(daemon: Daemon) -> dict[str, Any] | None:
    try:
        return dict(daemon.ask("status"))
    except DaemonGone:
        return None


def _tell(call: Call, facts: dict[str, Any]) -> None:
    daemon = facts["daemon"]
    call.out.line(f"{daemon['mountpoint']}  (process {daemon['pid']}, {daemon['transport']}, {daemon['version']})")
    if recovery.mounted_at(daemon["mountpoint"]) is None:
        call.out.line("  not mounted any more: it was unmounted from outside")
    for each in facts["workspaces"]:
        call.out.line(f"  {each['name']}  {os.path.join(daemon['mountpoint'], each['name'])}  <- {each['root']}")
        report.entries(call.out, each, indent="    ")


def _is_well(workspace: dict[str, Any]) -> bool:
    if workspace.get("error") or workspace.get("recording", {}).get("state") == "paused":
        return False
    return not any(each.get("error") for each in workspace["mounts"])
