"""`clivefs export`: the recorded past as a git repository of its own."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.mounts.points.export import session_refs, update

DESCRIPTION = """\
Write all that was recorded into a bare git repository that needs nothing of clivefs: each session is
refs/clive/sessions/NAME, each point a commit, and the branch `latest` the newest. Given the same directory again,
only what is new is added."""

EXAMPLES = """\
clivefs export --git ~/backup/shop.git
git clone ~/backup/shop.git"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--git", metavar="DIR", required=True, help="a new directory, or one that was exported to")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    directory = call.absolute(call.args.git)
    with past.opened(call) as opened:
        sessions = session_refs(opened.store, opened.workspace_id)
        head = opened.head()
        new = update(directory, sessions, opened.reader, head=head.session, points=opened.points)
    call.out.line(f"{directory}: {new} new points, {len(sessions)} sessions, the newest is {head.name}")
    call.out.json({"directory": directory, "points": new, "sessions": sorted(sessions), "head": head.oid.hex()})
    return 0
