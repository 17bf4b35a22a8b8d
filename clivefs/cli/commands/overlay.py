"""`clivefs overlay`: see or undo your edits over a source."""

from __future__ import annotations

import argparse
import base64

from clivefs.cli import call as calls
from clivefs.cli import locate
from clivefs.cli.call import Call

DESCRIPTION = """\
Edits below a mount entry with write = "overlay" stay in an overlay; the source is never touched. `diff` prints
them as a patch that `git apply` and `patch -p1` take, `reset` makes files what the source says again."""

EXAMPLES = """\
clivefs overlay diff lib/requests > my.patch
clivefs overlay reset lib/requests --dry-run          what would be undone
clivefs overlay reset lib/requests src/models.py      one file
clivefs overlay reset lib/requests                    all of it"""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    diff = actions.add_parser("diff", help="print your edits as a patch", allow_abbrev=False)
    diff.add_argument("path", metavar="PATH", help="a mount entry's path")
    reset = actions.add_parser("reset", help="undo your edits", allow_abbrev=False)
    reset.add_argument("path", metavar="PATH", help="a mount entry's path")
    reset.add_argument("files", metavar="FILE", nargs="*", help="files or directories below PATH (default: all)")
    reset.add_argument("--dry-run", action="store_true", help="only say what would be undone")
    for action in (diff, reset):
        calls.add_place(action)
        calls.add_json(action)


def run(call: Call) -> int:
    place = locate.find(call)
    path = place.inside(call.args.path)
    if call.args.action == "diff":
        daemon = place.served("only its daemon can compare an overlay with its source")
        result = daemon.ask("overlay_diff", call.out.progress, workspace=place.name, path=path)
        if call.out.as_json:
            call.out.json({"path": path, "patch_b64": result["patch"]})
        else:
            call.out.raw(base64.b64decode(result["patch"]))
        return 0
    daemon = place.served("only its daemon can reset an overlay")
    args = call.args
    result = daemon.ask(
        "overlay_reset", call.out.progress, workspace=place.name, path=path, files=args.files, dry_run=args.dry_run
    )
    undone = result.get("files", [])
    verb = "would undo" if args.dry_run else "undid"
    call.out.lines(f"{verb} {file}" for file in undone)
    if not undone:
        call.out.line("nothing to undo")
    call.out.json({"path": path, **result})
    return 0
