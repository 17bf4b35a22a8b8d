"""`clivefs xattr`: tell where a file comes from."""

from __future__ import annotations

import argparse
import errno
import os

from clivefs.base.errors import ClivefsError
from clivefs.cli import call as calls
from clivefs.cli import locate
from clivefs.cli.call import Call

DESCRIPTION = """\
Print the user.clive.* attributes of files in a mounted workspace: which layer a file comes from, and its git
object id. They answer getfattr -n too, but are never listed, so that cp and tar do not carry them away."""

EXAMPLES = """\
clivefs xattr README.md
clivefs xattr --json lib/requests/*"""

NAMES = ("layer", "oid", "rule")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("paths", metavar="PATH", nargs="+", help="files in a mounted workspace")
    calls.add_json(parser)


def run(call: Call) -> int:
    results = []
    for path in call.args.paths:
        absolute = call.absolute(path)
        if locate.mount_over(os.path.dirname(absolute)) is None:
            raise ClivefsError(
                "this is not in a mounted workspace", place=path, remedy="name it below a mountpoint (clivefs status)"
            )
        found = {name: value for name in NAMES if (value := _get(absolute, name)) is not None}
        results.append({"path": path, **found})
        call.out.line(f"{path}:" if len(call.args.paths) > 1 else path)
        call.out.lines(f"  user.clive.{name} = {value}" for name, value in found.items())
    call.out.json(results)
    return 0


def _get(path: str, name: str) -> str | None:
    try:
        return os.fsdecode(os.getxattr(path, f"user.clive.{name}", follow_symlinks=False))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP):
            return None
        raise
