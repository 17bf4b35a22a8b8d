"""`clivefs fsck`: check the store."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import offline
from clivefs.cli.call import Call

DESCRIPTION = """\
Check that every object that is reachable is there and hashes to its name, that every ref is valid, and that the
tiers of the store agree. Reads only, and may run while workspaces are mounted. Exits 1 if it finds anything."""

EXAMPLES = """\
clivefs fsck
clivefs fsck --store /srv/clive --json"""


def configure(parser: argparse.ArgumentParser) -> None:
    calls.add_store(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    problems, checked = offline.fsck(call.store, call.out.progress)
    call.out.lines(str(problem) for problem in problems)
    call.out.line(f"{checked} objects checked, {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    call.out.json({"store": call.store, "objects": checked, "problems": [problem._asdict() for problem in problems]})
    return 1 if problems else 0
