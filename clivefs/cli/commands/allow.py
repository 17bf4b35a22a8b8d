"""`clivefs allow`: let a workspace mount what its Clive.toml names."""

from __future__ import annotations

import argparse

from clivefs.base.errors import ClivefsError
from clivefs.cli import call as calls
from clivefs.cli import locate, mountpoint, offline, report
from clivefs.cli.call import Call

DESCRIPTION = """\
Allow what the workspace's Clive.toml asks for as it stands now: directories outside the workspace, sources
that are written through, and what it would run. A Clive.toml from elsewhere can name anything of yours, so
nothing of this is done until you have read it and said so. Each later change asks again."""

EXAMPLES = """\
clivefs allow               the workspace that this directory is in
clivefs allow ~/src/shop    another one"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", help="a workspace's directory (default: the enclosing)")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    if call.args.directory is not None:
        root = mountpoint.workspace_root(call.absolute(call.args.directory))
        place = locate.at_root(call, root)
    else:
        place = locate.find(call)
    if place.daemon is not None:
        facts = place.daemon.ask("allow", call.out.progress, workspace=place.name)
        call.out.json(facts)
        report.entries(call.out, facts)
        if facts.get("error"):
            raise ClivefsError(facts["error"])
        return 0
    allowed = offline.allow(call.store, place.root)
    call.out.line(f"allowed: {', '.join(allowed) or 'nothing in it needs it'}")
    call.out.json({"root": place.root, "allowed": allowed})
    return 0
