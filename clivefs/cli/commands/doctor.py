"""`clivefs doctor`: say what this machine lacks, and how to get it."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import checkup
from clivefs.cli.call import Call
from clivefs.cli.output import table

DESCRIPTION = """\
Look at everything that clivefs needs of this machine, and print the command that mends what is missing.
Changes nothing. Exits 1 if something is missing without which nothing can be mounted."""

EXAMPLES = """\
clivefs doctor
clivefs doctor --allow-other    also what `mount --allow-other` needs
clivefs doctor --json"""

_SIGNS = {"ok": "ok", "warning": "warning", "missing": "MISSING"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-other", action="store_true", help="check also what mount --allow-other needs")
    calls.add_store(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    findings = checkup.examine(call.store, allow_other=call.args.allow_other)
    rows = table([[_SIGNS[each.state], each.check, each.detail] for each in findings])
    for row, each in zip(rows, findings, strict=True):
        call.out.line(row)
        if each.remedy is not None:
            call.out.line(f"         -> {each.remedy}")
    call.out.json([each._asdict() for each in findings])
    return 1 if any(each.state == "missing" for each in findings) else 0
