"""`clivefs show`: a point, or a file as it was."""

from __future__ import annotations

import argparse
import os
import re
import stat

from clivefs.base.errors import ClivefsError
from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.mounts.edits.diff import patch_of
from clivefs.mounts.points.compare import State, children_at, file_at
from clivefs.mounts.points.expressions import FORMS, Unknown
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.history import AtPath, PathFinder, Step, differences_at, states, with_content
from clivefs.mounts.points.point import Point
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE

DESCRIPTION = f"""\
Show what a point changed, or with POINT:PATH the file that was there (of a directory, its names). PATH counts from
the top of the workspace; with ./ or ../ before it, from the current directory.

POINT is {FORMS.replace("`", "")}."""

EXAMPLES = """\
clivefs show                         what the newest point changed
clivefs show -10m:src/main.py        the file as it was ten minutes ago
clivefs show @17
clivefs show yesterday:. """


_WITH_ZONE = re.compile(r":[0-9]{2}(\.[0-9]+)?[+-][0-9]{2}:[0-9]{2}$")
"""How a time ends that has a zone."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("what", metavar="POINT[:PATH]", nargs="?", default="now", help="default: the newest point")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    with past.opened(call) as opened:
        point, path = _split(opened, call.args.what)
        if path is None:
            _show_point(call, opened, point)
            return 0
        below = _below(opened, path)
        found = PathFinder(opened.reader).find(point.tree, below)
        state = State(point.tree, point.meta)
        file = file_at(opened.reader, state, below) if found is None or found.is_tree else None
        if file is not None and file.oid is None and not stat.S_ISDIR(file.mode):
            raise ClivefsError("it has no content: it was a pipe, a socket or a device", place=os.fsdecode(below))
        if file is not None or not below:
            _show_directory(call, opened, state, below)
            return 0
        if found is None:
            raise ClivefsError(
                f"it was not there at {point.name}",
                place=os.fsdecode(below),
                remedy=f"`clivefs log {path}` lists the points that changed it",
            )
        _show_file(call, opened, found)
    return 0


def _split(opened: past.Past, text: str) -> tuple[Point, str | None]:
    """The point and the path that *text* names. Moments have colons too, so the longest one that is a moment counts."""
    try:
        return opened.find(text), None
    except ClivefsError as error:
        wrong = error
    if _WITH_ZONE.search(text) and not isinstance(wrong, Unknown):
        raise wrong
    meant: ClivefsError | None = None  # what looks like a moment most likely was to be one
    at = text.rfind(":")
    if text[at + 1 :].isdigit() and not isinstance(wrong, Unknown):
        meant = wrong
    while at > 0:
        try:
            return opened.find(text[:at]), text[at + 1 :]
        except ClivefsError as error:
            if meant is None and not isinstance(error, Unknown):
                meant = error
        at = text.rfind(":", 0, at)
    raise meant or wrong


def _below(opened: past.Past, path: str) -> bytes:
    if path in ("", "."):
        return b""
    if path.startswith(("./", "../")):
        return opened.below(path)
    return os.fsencode(os.path.normpath(path).lstrip("/"))


def _show_point(call: Call, opened: past.Past, point: Point) -> None:
    if call.out.as_json:
        call.out.json(point_facts(point))
        return
    call.out.line(past.line_of(point))
    call.out.line(f"session {point.session}, machine {point.machine}, {point.name}")
    call.out.line()
    before = opened.points.before(point)
    between = states(Step(point, before))
    differences = differences_at(opened.reader, between[0].tree, point.tree)
    call.out.raw(patch_of(with_content(opened.reader, differences), opened.scratch))
    past.tell_beside(call, opened, between)


def _show_file(call: Call, opened: past.Past, found: AtPath) -> None:
    if found.mode == MODE_GITLINK:
        raise ClivefsError(f"it was a submodule at {found.oid.hex()}")
    opened.reader.want([found.oid])
    if call.out.as_json:
        call.out.json({"mode": f"{found.mode:o}", "oid": found.oid.hex(), "size": opened.reader.header(found.oid)[1]})
        return
    with opened.reader.opened(found.oid) as file:
        while chunk := file.read(1 << 20):
            call.out.raw(chunk)


def _show_directory(call: Call, opened: past.Past, state: State, path: bytes) -> None:
    """Its names, also of what git does not know."""
    known = PathFinder(opened.reader).entries(state.tree, path)
    modes = {name: f"{entry.mode:06o}" for name, entry in known.items()}
    for name, file in children_at(opened.reader, state, path).items():
        modes.setdefault(name, f"{MODE_TREE if stat.S_ISDIR(file.mode) else file.mode:06o}")
    slash = f"{MODE_TREE:06o}"
    call.out.lines(os.fsdecode(name) + ("/" if modes[name] == slash else "") for name in sorted(modes))
    call.out.json(
        [
            {
                "name": os.fsdecode(name),
                "mode": modes[name],
                "oid": known[name].oid.hex() if name in known else None,
            }
            for name in sorted(modes)
        ]
    )
