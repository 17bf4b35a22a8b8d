"""`clivefs log`: the points of a workspace, or those that changed a path."""

from __future__ import annotations

import argparse
import itertools
import os

from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.cli.output import visible
from clivefs.mounts.edits.diff import patch_of
from clivefs.mounts.points.expressions import BeforeTheFirst
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.history import Step, changed_at, differences_at, states, with_content
from clivefs.mounts.points.names import MS_MAX
from clivefs.objects.encode import EMPTY_TREE

DESCRIPTION = """\
List the points of the workspace, newest first; with PATH those that changed it, and exit code 1 where
there is none. Each line has the point's number, its time, its id, where the change came from, and what changed."""

EXAMPLES = """\
clivefs log                          everything
clivefs log src/main.py              each save of one file
clivefs log -p -n 3 src              with what changed
clivefs log --since -2h --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="?", default="", help="a file or a directory (default: all)")
    parser.add_argument("-p", "--patch", action="store_true", help="show what each point changed")
    parser.add_argument("-n", "--max-count", type=moments.count, metavar="N", help="at most N points")
    parser.add_argument("--since", metavar="EXPR", help="points after this moment")
    parser.add_argument("--until", metavar="EXPR", help="points up to this moment")
    parser.add_argument("--session", metavar="NAME", help="points of this session only")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    with past.opened(call) as opened:
        path = opened.below(args.path) if args.path else b""
        start = _after(opened, args.since) if args.since else 0
        end = opened.find(args.until).ms if args.until else MS_MAX
        found = changed_at(opened.points, opened.reader, path, start_ms=start, end_ms=end)
        if args.session:
            opened.check_session(args.session)
            found = (step for step in found if step.point.session == args.session)
        listed = []
        is_any = False
        for step in itertools.islice(found, args.max_count):
            is_any = True
            if call.out.as_json:
                listed.append(point_facts(step.point))
                continue
            call.out.line(past.line_of(step.point))
            if args.patch:
                call.out.raw(_patch(opened, step, path))
                past.tell_beside(call, opened, states(step), path)
                call.out.line()
        call.out.json(listed)
    if path and not is_any:
        call.out.note(f"no point that was looked at changed {visible(os.fsdecode(path))}")
        return 1
    return 0


def _after(opened: past.Past, moment: str) -> int:
    """When the first ms after *moment* is; 0, so that it is all, where that is before the first point."""
    try:
        return opened.find(moment).ms + 1
    except BeforeTheFirst:
        return 0


def _patch(opened: past.Past, step: Step, path: bytes) -> bytes:
    before = step.before.tree if step.before is not None else EMPTY_TREE
    differences = differences_at(opened.reader, before, step.point.tree, path)
    return patch_of(with_content(opened.reader, differences), opened.scratch)
