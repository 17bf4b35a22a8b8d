"""`clivefs undo`: go back by a point."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import locate, moments
from clivefs.cli.call import Call
from clivefs.cli.forks import refuse_in_a_fork
from clivefs.cli.going import go

DESCRIPTION = """\
Make the workspace what it was before the last change that was recorded, or the last N. An undo is a change itself
and is recorded; what was undone comes back with `clivefs redo` until something else changes."""

EXAMPLES = """\
clivefs undo --dry-run               what would change
clivefs undo
clivefs undo 3"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("count", metavar="N", type=int, nargs="?", default=1, help="how many points (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    refuse_in_a_fork(place, "only the live view is recorded")
    daemon = place.served("only a mounted workspace can be changed in one step")
    count = call.args.count
    back = "redo" if count == 1 else f"redo {count}"
    return go(call, daemon, "undo", back=back, workspace=place.name, count=count)
