"""`clivefs bisect`: find the point at which something broke, by running a command in points of the past."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.mounts.points.bisect import Bisection, Verdict
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.index import IndexedPoint

DESCRIPTION = """\
Find the first point at which CMD fails, by halves, between one where it succeeds (--from) and one where it does not
(--to). CMD runs in each point's own directory, which is read-only: nothing is checked out. As with `git bisect run`
it exits with 0 where all is well, with 125 where that cannot be told (the point is passed over), and with anything
else from 1 to 127 where it is not; more than that ends the search.

The exit code is CMD's at the first bad point, 0 where there is none, and 125 when clivefs itself failed."""

EXAMPLES = """\
clivefs bisect -- python -m pytest -q tests/test_it.py
clivefs bisect --from yesterday --to -10m -- grep -q timeout src/main.py
clivefs bisect --from @17 -- sh -c 'make -C "$PWD" -n'"""

OWN_FAILURE = 125
_SKIP = 125
_LAST_BAD = 127


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--from", dest="start", default="start", metavar="A", help="where it succeeds (default: the session's start)"
    )
    parser.add_argument("--to", default="now", metavar="B", help="where it fails (default: now)")
    moments.add_place(parser)
    calls.add_json(parser)
    parser.add_argument("command_line", metavar="-- CMD ...", nargs=argparse.REMAINDER, help="the command")


def run(call: Call) -> int:
    args = call.args
    words = args.command_line[1:] if args.command_line[:1] == ["--"] else args.command_line
    if not words:
        raise UsageError("which command?", remedy="clivefs bisect -- make test")
    try:
        return _search(call, words)
    except UsageError:
        raise
    except ClivefsError as error:
        call.out.json({"error": {"message": error.message, "place": error.place, "remedy": error.remedy}})
        call.out.error(error)
        return OWN_FAILURE


def _search(call: Call, words: list[str]) -> int:
    with past.opened(call) as opened:
        opened.place.served("points are directories only while it is")
        first, last = opened.find(call.args.start), opened.find(call.args.to)
        if first.ms >= last.ms:
            raise UsageError(
                f"{call.args.start} is not before {call.args.to}", remedy="--from is the older one, --to the newer"
            )
        points = opened.points.between(first.ms, last.ms)
        codes: dict[int, int] = {}

        def test(number: int) -> Verdict:
            codes[number] = _run(call, opened, points[number], words)
            return _verdict(points[number], codes[number])

        search = Bisection(len(points))
        if test(0) is not Verdict.GOOD:
            raise ClivefsError(f"it does not succeed at {points[0].name}", remedy="choose an older point with --from")
        found: int | None = None
        if test(len(points) - 1) is not Verdict.GOOD:
            while (number := search.next()) is not None:
                search.note(number, test(number))
            if len(search.suspects) > 1:
                names = ", ".join(points[number].name for number in search.suspects)
                raise ClivefsError(f"all between were passed over: it is one of {names}")
            found = search.first_bad
        return _tell(
            call, opened, None if found is None else points[found], 0 if found is None else codes[found], codes
        )


def _run(call: Call, opened: past.Past, point: IndexedPoint, words: list[str]) -> int:
    """CMD's exit code at *point*. ClivefsError where it cannot be told."""
    assert opened.place.shown_at is not None
    directory = os.path.join(opened.place.shown_at, ".clive", "sessions", point.session, point.name)
    call.out.flush()
    try:
        done = subprocess.run(words, cwd=directory, stdout=sys.stderr if call.out.as_json else None, check=False)
    except OSError as error:
        raise ClivefsError(f"it could not be started: {error.strerror}", place=words[0]) from None
    return done.returncode


def _verdict(point: IndexedPoint, code: int) -> Verdict:
    if code == 0:
        return Verdict.GOOD
    if code == _SKIP:
        return Verdict.SKIP
    if 0 < code <= _LAST_BAD:
        return Verdict.BAD
    how = f"signal {-code}" if code < 0 else f"code {code}"
    raise ClivefsError(f"it ended with {how}, which says neither good nor bad", place=point.name)


def _tell(call: Call, opened: past.Past, found: IndexedPoint | None, code: int, codes: dict[int, int]) -> int:
    point = opened.points.load(found.oid) if found is not None else None
    if point is None:
        call.out.line("it succeeds at both ends: there is no first bad point")
    else:
        call.out.line(f"the first bad point of {len(codes)} that were tried:")
        call.out.line(past.line_of(point))
        call.out.lines(f"    {os.fsdecode(path)}" for path in point.paths)
    call.out.json({"point": point_facts(point) if point is not None else None, "exit": code, "tried": len(codes)})
    return code
