"""`clivefs restore`: make files what they were."""

from __future__ import annotations

import argparse
import os

from clivefs.cli import call as calls
from clivefs.cli import locate, moments
from clivefs.cli.call import Call
from clivefs.cli.going import go

DESCRIPTION = """\
Let files, directories or the whole workspace be what they were at a moment, all in one step. The state before is a
point too, so `clivefs undo` takes it back. In a checkout that is written through its files really change; what is
mounted read-only is left alone, and said. Ignored files are not touched. What changes has the present as its time."""

EXAMPLES = """\
clivefs restore src/main.py --at -10m
clivefs restore . --at start              the directory where you are; from the top, everything
clivefs restore . --at 14:00 --dry-run    what would change"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="files and directories; `.` is the current one")
    parser.add_argument(
        "--at", dest="moment", metavar="EXPR", required=True, help="the moment (see `clivefs show --help`)"
    )
    parser.add_argument("--times", action="store_true", help="with the modification times of then")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    place = locate.find(call)
    daemon = place.served("only a mounted workspace can be changed in one step")
    return go(
        call,
        daemon,
        "restore",
        back="undo",
        workspace=place.name,
        moment=moments.moment(args.moment)._asdict(),
        paths=[os.fsdecode(moments.below(place, path)) for path in args.paths],
        times=args.times,
    )
