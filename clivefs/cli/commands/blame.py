"""`clivefs blame`: tell which layer files and lines come from."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import locate
from clivefs.cli.call import Call

DESCRIPTION = """\
Say where what is shown comes from: of a directory each file below it with its layer, of a text file each range of
lines. A layer is the release or commit (`pypi:six==1.16.0`, `git:COMMIT`), a patch (`patch:NAME`), your edits
(`upper`), or a directory of this machine (`local`)."""

EXAMPLES = """\
clivefs blame vendor/six/six.py
clivefs blame vendor/six --changed          only what does not come from the release
clivefs blame --json vendor/six"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or directory in a mounted workspace")
    parser.add_argument("--changed", action="store_true", help="only what comes from patches and edits")
    calls.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    place = locate.find(call)
    path = place.inside(call.args.path)
    daemon = place.served("only its daemon knows the layers")
    result = daemon.ask("blame", call.out.progress, workspace=place.name, path=path)
    if call.args.changed:
        for name in ("files", "lines"):
            result[name] = [each for each in result[name] or () if _is_change(each["layer"])]
    if result["lines"]:
        ranges = [(f"{each['first']}-{each['last']}", each["layer"]) for each in result["lines"]]
        width = max(len(lines) for lines, _ in ranges)
        call.out.lines(f"{lines:>{width}}  {layer}" for lines, layer in ranges)
    else:
        width = max((len(each["layer"]) for each in result["files"]), default=0)
        call.out.lines(f"{each['layer']:<{width}}  {each['path'] or call.args.path}" for each in result["files"])
    call.out.json(result)
    return 0


def _is_change(layer: str) -> bool:
    return layer == "upper" or layer.startswith("patch:")
