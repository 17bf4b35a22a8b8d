"""`clivefs attach`: show a source at a path of the workspace."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import entries, locate, report
from clivefs.cli.call import Call

DESCRIPTION = f"""\
Add a mount entry to Clive.toml, keeping its comments, and show it at once if the workspace is mounted. What
you attach yourself is allowed.

{entries.SOURCE_HELP}"""

EXAMPLES = """\
clivefs attach lib/requests git+https://example.org/requests.git@v2.32.3
clivefs attach old git+.@v1.0          this repository at its tag v1.0, without a checkout
clivefs attach data ../data            a directory of this machine, written through
clivefs attach lab ../lib --write overlay    your edits stay in an overlay, ../lib is not touched
clivefs attach requests git+../requests --ref main --patch fixes/*.patch"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="where in the workspace")
    parser.add_argument("source", metavar="SOURCE", help="what to show there")
    parser.add_argument("--ref", help="branch, tag or commit of a git source")
    parser.add_argument("--patch", metavar="FILE", nargs="+", action="extend", help="patches to apply, in this order")
    parser.add_argument(
        "--write",
        choices=("overlay", "through", "none"),
        help="where edits go (default: through for a local path, else overlay)",
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    place = locate.find(call)
    path = place.inside(args.path)
    source = entries.source(call, place, args.source, args.ref)
    patches = [entries.patch(call, place, each) for each in args.patch or ()]
    facts = entries.change(call, place, "attach", path, source=source, patches=patches, write=args.write)
    call.out.json(facts)
    report.entry(call.out, facts)
    return 1 if facts.get("error") else 0
