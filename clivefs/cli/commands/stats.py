"""`clivefs stats`: what the recorded past costs."""

from __future__ import annotations

import argparse
import os
from typing import Any

from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.cli.output import size, table
from clivefs.mounts.points.stats import Stats, Tiers, stats, tiers

DESCRIPTION = """\
Show what the recorded past of this workspace costs, by session and by path, and what the whole store takes on disk. A
file's version is counted for the session in which it was first recorded."""

EXAMPLES = """\
clivefs stats
clivefs stats --top 50
clivefs stats --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--top", type=moments.count, default=20, metavar="N", help="how many paths to list (default: 20)"
    )
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    with past.opened(call, fresh=False) as opened:
        found = stats(opened.store, opened.workspace_id, top=call.args.top, progress=call.out.progress)
        whole = tiers(opened.store)
    _tell(call, found, whole)
    call.out.json(_described(call, found, whole))
    return 0


def _tell(call: Call, found: Stats, whole: Tiers) -> None:
    out = call.out
    out.line(f"{found.points} points take {size(found.bytes)}: the first {size(found.bytes - found.history_bytes)},")
    out.line(f"what changed since {size(found.history_bytes)}; {size(found.structure_bytes)} of all are not content")
    out.line()
    out.lines(table([(each.name, f"{each.points} points", size(each.bytes)) for each in found.sessions]))
    out.line()
    rows = [(size(each.bytes), f"{each.versions} versions", os.fsdecode(each.path)) for each in found.paths]
    out.lines(table(rows))
    out.line()
    out.line(f"the store: database {size(whole.database)}, {size(whole.database_used)} of it used for")
    out.line(f"{whole.objects} objects; {whole.large_files} large files, {size(whole.large)}; {whole.packs} packs with")
    out.line(f"{whole.sealed_objects} sealed objects, {size(whole.sealed)}")


def _described(call: Call, found: Stats, whole: Tiers) -> dict[str, Any]:
    return {
        "points": found.points,
        "bytes": found.bytes,
        "history_bytes": found.history_bytes,
        "structure_bytes": found.structure_bytes,
        "sessions": [each._asdict() for each in found.sessions],
        "paths": [
            {"path": os.fsdecode(each.path), "versions": each.versions, "bytes": each.bytes} for each in found.paths
        ],
        "store": {"path": call.store, **whole._asdict()},
    }
