"""`clivefs find-change`: when a text came into a file, or left it."""

from __future__ import annotations

import argparse
import itertools
import os

from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.history import content_changes

DESCRIPTION = """\
Find the points at which a file at or below PATH began to hold a text (+) or ceased to (-), newest first. Exits with 1
where there is none."""

EXAMPLES = """\
clivefs find-change src/main.py --contains 'timeout = 30'
clivefs find-change . --contains TODO -n 1"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or a directory")
    parser.add_argument("--contains", metavar="TEXT", required=True, help="the text, as bytes: no pattern")
    parser.add_argument("-n", "--max-count", type=moments.count, metavar="N", help="at most N changes")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    listed = []
    with past.opened(call) as opened:
        found = content_changes(opened.points, opened.reader, opened.below(args.path), os.fsencode(args.contains))
        for step, path, holds in itertools.islice(found, args.max_count):
            name = os.fsdecode(path)
            call.out.line(f"{'+' if holds else '-'} {past.line_of(step.point)}")
            call.out.line(f"    {name}")
            listed.append({"point": point_facts(step.point), "path": name, "holds": holds})
    call.out.json(listed)
    return 0 if listed else 1
