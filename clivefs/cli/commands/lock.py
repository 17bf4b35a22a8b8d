"""`clivefs lock`: pin what the mount entries are now."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from clivefs.base.errors import UsageError
from clivefs.cli import call as calls
from clivefs.cli import locate
from clivefs.cli.call import Call
from clivefs.cli.output import table

DESCRIPTION = """\
Write Clive.lock beside Clive.toml: the commit of each git ref, the digest of each release and archive, as they are
now. From then on exactly these are mounted, here and wherever the two files go, and anything else is an error.
With PATH only those entries are looked up, the others stay locked as they are. What can differ from machine to
machine, as local directories do, is not locked."""

EXAMPLES = """\
clivefs lock                         lock every entry to what it is now
clivefs lock lib/requests            take the commit that its branch is at now
clivefs lock --dry-run               what would change
clivefs lock --check                 is everything locked, and to be had as it was? (exit 1 if not)"""

_SHOWN_DIGITS = 12


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="*", help="mount entries (default: all)")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where an entry is not as locked")
    parser.add_argument("--dry-run", action="store_true", help="only say what would change")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    if args.check and args.dry_run:
        raise UsageError("--check writes nothing anyway", remedy="leave one of --check and --dry-run out")
    place = locate.find(call)
    wanted = {"paths": [place.inside(each) for each in args.paths], "check": args.check, "dry_run": args.dry_run}
    if place.daemon is not None:
        result = dict(place.daemon.ask("lock", call.out.progress, workspace=place.name, **wanted))
    else:
        # Imported only now: with it come the store and libgit2, 100 ms that a mounted workspace need not wait.
        offline = importlib.import_module("clivefs.cli.offline")
        result = offline.lock(call.store, place.root, progress=call.out.progress, **wanted)
    entries = result["entries"]
    call.out.json({**result, "dry_run": args.dry_run})
    call.out.lines(table([[each["path"], each["what"], _told(each)] for each in entries]))
    differing = [each for each in entries if each["what"] != "same"]
    if args.check:
        for each in differing:
            if each["error"]:
                call.out.note(f"{each['path']}: {each['error']}")
        return 1 if differing else 0
    if result["written"]:
        call.out.line(f"wrote {result['file']}")
    elif not differing:
        call.out.line("nothing changes")
    return 0


def _told(entry: dict[str, Any]) -> str:
    """What an entry is, and was before if that was something else."""
    found, was = (_digest(each) for each in (entry["found"], entry["was"]))
    if entry["what"] == "changed":
        return f"{was} -> {found}"
    return found or was


def _digest(facts: dict[str, Any] | None) -> str:
    if facts is None:
        return ""
    digest = str(facts.get("commit") or facts.get("sha256") or facts["tree"])
    return f"{facts['version']} {digest[:_SHOWN_DIGITS]}" if facts.get("version") else digest[:_SHOWN_DIGITS]
