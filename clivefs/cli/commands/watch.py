"""`clivefs watch`: what changes in a workspace, as JSON lines."""

from __future__ import annotations

import argparse
import json
import os
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon, DaemonGone
from clivefs.cli.forks import refuse_in_a_fork
from clivefs.cli.output import portable
from clivefs.mounts.points.changes import Change, changes_after
from clivefs.objects.errors import ObjectMissing

DESCRIPTION = """\
Print every recorded change as it happens, one JSON object a line, until Ctrl-C or until the workspace is unmounted.
A change is printed when the point that has it is durable. All changes of one point have its number as `seq`:
who was interrupted goes on with --since and the number before the last that he has seen. A record of the kind
`overflow` says that points in between are no longer there; what changed over them follows as one change a path.
Where the workspace is not mounted, what there is is printed, and that is all."""

EXAMPLES = """\
clivefs watch                       from now on
clivefs watch src docs              only what is there
clivefs watch --since 0             from the first point on
clivefs watch | jq -r .path"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", nargs="*", help="a file or a directory (default: all)")
    parser.add_argument("--since", metavar="SEQ", type=moments.count, help="begin after the point with this number")
    moments.add_place(parser)
    parser.add_argument("--json", action="store_true", help="JSON lines are what is printed anyway")


def run(call: Call) -> int:
    reader = _Reader(call)
    with past.opened(call) as opened:
        place = opened.place
        refuse_in_a_fork(place, "only what changes in the live view is recorded and can be watched")
        reader.begin(opened)
    while True:
        there = place.daemon is not None and place.name is not None and _wait(place.daemon, place.name, reader.seq)
        with past.opened_at(call, place) as opened:
            reader.print_new(opened)
        if not there:
            if place.daemon is None:
                call.out.note("the workspace is not mounted: nothing more will change")
            return 0


def _wait(daemon: Daemon, name: str, seq: int) -> bool:
    """Wait for a point after *seq*; whether there may be more after it."""
    try:
        return not daemon.ask("watch", workspace=name, seq=seq)["left"]
    except DaemonGone:
        return False


class _Reader:
    """What was printed so far."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._paths: list[bytes] = []
        self._view = ""
        self.seq = 0

    def begin(self, opened: past.Past) -> None:
        """Print what is asked for of the past."""
        args = self._call.args
        self._paths = [opened.below(path) for path in args.path]
        self._view = opened.place.name or os.path.basename(opened.place.root)
        head = opened.points.head()
        self.seq = args.since if args.since is not None else head.seq if head is not None else 0
        self.print_new(opened)

    def print_new(self, opened: past.Past) -> None:
        """Print what was not printed yet."""
        head = opened.points.head()
        if head is None or head.seq == self.seq:
            return
        try:
            for change in changes_after(opened.points, opened.reader, self.seq, self._paths, last=head.seq):
                self._call.out.stdout.write(json.dumps(portable(self._record(change)), ensure_ascii=False) + "\n")
        except ObjectMissing as error:
            raise ClivefsError(
                f"what a point refers to is not in the store: {error}", remedy="`clivefs fsck` says what is missing"
            ) from error
        self._call.out.stdout.flush()
        self.seq = head.seq

    def _record(self, change: Change) -> dict[str, Any]:
        overflow = change.kind == "overflow"
        return {
            "seq": change.point.seq,
            "time": change.point.name,
            "view": self._view,
            "kind": change.kind,
            "path": None if overflow else os.fsdecode(change.path),
            "old_path": os.fsdecode(change.old_path) if change.old_path is not None else None,
            "origin": change.point.origin,
            "point": change.point.oid.hex(),
        }
