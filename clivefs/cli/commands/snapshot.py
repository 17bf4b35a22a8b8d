"""`clivefs snapshot`: a point now, and its id."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import locate, moments
from clivefs.cli.call import Call

DESCRIPTION = """\
Wait until everything that was written, closed or renamed before is in a durable point, and print that point's id. With
a message there is a new point that carries it, even if nothing changed."""

EXAMPLES = """\
clivefs snapshot
clivefs snapshot -m 'before the migration'"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--message", metavar="TEXT", help="what the point is to say")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    daemon = place.served("only a mounted workspace is recorded")
    point = daemon.ask("snapshot", call.out.progress, workspace=place.name, message=call.args.message)
    call.out.line(point["id"])
    for path in point["busy"]:
        call.out.note(f"not in it as it is now, being written to all the time: {path}")
    call.out.json(point)
    return 1 if point["busy"] else 0
