"""`clivefs merge`: bring a fork's changes back."""

from __future__ import annotations

import argparse

from clivefs.base.errors import UsageError
from clivefs.cli import call as calls
from clivefs.cli import locate
from clivefs.cli.call import Call
from clivefs.cli.forks import commit_lines, fork_at
from clivefs.cli.output import visible

DESCRIPTION = """\
Bring what a fork changed into the live view, in one step: a three-way merge with the point that it stands on, or with
what it was when it was last merged. Where both have changed the same lines, the file gets markers, and FILE.orig,
FILE.ours (the live view's) and FILE.theirs (the fork's) are put beside it; the exit code is 1 then. The state before
is a point: `clivefs undo` takes the merge back. The fork stays until `clivefs fork --drop NAME`."""

EXAMPLES = """\
clivefs merge try --dry-run          what would change, and conflict
clivefs merge try
clivefs merge                        in a directory of the fork"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="the fork (default: the one that you are in)")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    daemon = place.served("a fork is a part of its mount")
    name = call.args.name or fork_at(place.directory)
    if name is None:
        raise UsageError("which fork?", remedy="`clivefs fork --list` shows which there are")
    result = daemon.ask("merge", call.out.progress, workspace=place.name, name=name, dry_run=call.args.dry_run)
    refused = {each["path"]: each["why"] for each in result["refused"]}
    done = [each for each in result["changes"] if each["path"] not in refused]
    call.out.lines(f"{each['status']} {each['path']}" for each in done)
    count = f"{len(done)} path{'' if len(done) == 1 else 's'}"
    if not result["changes"] and not result["conflicts"]:
        call.out.line(f"{name} has changed nothing that the live view has not")
    elif result["dry_run"]:
        call.out.line(f"would be merged: {count}")
    elif not done and not result["conflicts"]:
        call.out.line(f"nothing of {name} was merged")
    else:
        call.out.line(f"merged {name}: {count}; `clivefs undo` takes it back")
    for each in result["conflicts"]:
        beside = f", versions in {', '.join(each['aside'])}" if each["aside"] else ""
        call.out.note(visible(f"conflict: {each['path']}: {each['kind']}{beside}"))
    for path, why in refused.items():
        call.out.note(f"left alone: {visible(path)}: {why}")
    call.out.lines(commit_lines(result["commits"]))
    if result["not_kept"]:
        call.out.note(f"commits: {result['not_kept']}")
    call.out.json(result)
    return 1 if result["conflicts"] or refused or result["not_kept"] else 0
