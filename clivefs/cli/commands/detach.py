"""`clivefs detach`: take a mount entry away."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import entries, locate
from clivefs.cli.call import Call

DESCRIPTION = """\
Remove a mount entry from Clive.toml, live. The source is not touched, and the edits of its overlay stay in the
store: attaching the same source at the same path shows them again."""

EXAMPLES = """\
clivefs detach lib/requests
clivefs detach lib/requests --dry-run    only say what would change"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a mount entry's path")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    path = place.inside(call.args.path)
    facts = entries.change(call, place, "detach", path)
    call.out.json(facts)
    call.out.line(f"{'would detach' if call.args.dry_run else 'detached'} {path}")
    return 0
