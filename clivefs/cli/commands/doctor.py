"""`clivefs doctor`: say what this machine lacks, and how to get it."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import checkup, gitmonitor
from clivefs.cli.call import Call
from clivefs.cli.output import table

DESCRIPTION = """\
Look at everything that clivefs needs of this machine, and print the command that mends what is missing.
Changes nothing unless --fix says so. Exits 1 if something is missing without which nothing can be mounted."""

EXAMPLES = """\
clivefs doctor
clivefs doctor --allow-other    also what `mount --allow-other` needs
clivefs doctor --fix fsmonitor  have git ask the mount which files have changed
clivefs doctor --json"""

_SIGNS = {"ok": "ok", "warning": "warning", "missing": "MISSING"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--allow-other", action="store_true", help="check also what mount --allow-other needs")
    parser.add_argument(
        "--fix",
        choices=["fsmonitor"],
        help="install a git fsmonitor hook in the repository of the current directory, which a workspace must show",
    )
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    if call.args.fix is not None:
        done = gitmonitor.install(call)
        call.out.line(f"git asks the mount which files have changed in {done.repository} (hook: {done.hook})")
        call.out.line("`git config --unset core.fsmonitor` takes it back")
        call.out.json(done._asdict())
        return 0
    findings = checkup.examine(call.store, allow_other=call.args.allow_other)
    rows = table([[_SIGNS[each.state], each.check, each.detail] for each in findings])
    for row, each in zip(rows, findings, strict=True):
        call.out.line(row)
        if each.remedy is not None:
            call.out.line(f"         -> {each.remedy}")
    call.out.json([each._asdict() for each in findings])
    return 1 if any(each.state == "missing" for each in findings) else 0
