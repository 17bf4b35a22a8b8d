"""`clivefs relink`: say that a workspace's directory has moved."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import mountpoint, offline
from clivefs.cli.call import Call

DESCRIPTION = """\
A workspace is known by its directory: a copy, or one that was moved, is another one with overlays and history
of its own. After moving a workspace, this says that the new place goes on for the old one."""

EXAMPLES = """\
mv ~/src/shop ~/work/shop
clivefs relink ~/src/shop ~/work/shop"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("old", metavar="OLD", help="where the workspace was")
    parser.add_argument("new", metavar="NEW", help="where it is now")
    calls.add_store(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    old = call.absolute(call.args.old)
    new = mountpoint.workspace_root(call.absolute(call.args.new))
    offline.relink(call.store, old, new)
    call.out.line(f"{new} goes on for {old}")
    call.out.json({"old": old, "new": new})
    return 0
