"""`clivefs redo`: take back an undo."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import locate, moments
from clivefs.cli.call import Call
from clivefs.cli.forks import refuse_in_a_fork
from clivefs.cli.going import go

DESCRIPTION = """\
Take back the last `clivefs undo`, or the last N. Once something else has changed there is nothing to take back: it is
in `clivefs log` still, and `clivefs restore` brings it."""

EXAMPLES = """\
clivefs redo --dry-run               what would change
clivefs redo"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("count", metavar="N", type=int, nargs="?", default=1, help="how many (default: 1)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    refuse_in_a_fork(place, "only the live view is recorded")
    daemon = place.served("only a mounted workspace can be changed in one step")
    count = call.args.count
    back = "undo" if count == 1 else f"undo {count}"
    return go(call, daemon, "redo", back=back, workspace=place.name, count=count)
