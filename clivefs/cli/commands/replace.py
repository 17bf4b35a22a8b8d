"""`clivefs replace`: show another source at a path."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import entries, locate, report
from clivefs.cli.call import Call

DESCRIPTION = f"""\
Give a mount entry another source, live: a git ref becomes a local checkout of it, or another ref, and back.
Open files keep the content that they were opened with.

{entries.SOURCE_HELP}"""

EXAMPLES = """\
clivefs replace lib/requests ~/src/requests                            your own checkout instead of the ref
clivefs replace lib/requests git+https://example.org/requests.git@v2.32.4"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a mount entry's path")
    parser.add_argument("source", metavar="SOURCE", help="what to show there from now on")
    parser.add_argument("--ref", help="branch, tag or commit of a git source")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    path = place.inside(call.args.path)
    source = entries.source(call, place, call.args.source, call.args.ref)
    facts = entries.change(call, place, "replace", path, source=source)
    call.out.json(facts)
    report.entry(call.out, facts)
    return 1 if facts.get("error") else 0
