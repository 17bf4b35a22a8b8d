"""`clivefs gc`: thin what was recorded long ago, and give back what nothing needs."""

from __future__ import annotations

import argparse
import time
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.cli.daemons import daemons
from clivefs.cli.ending import ended_by_signals
from clivefs.cli.output import size
from clivefs.mounts.points.collection import Collected, collect
from clivefs.objects.errors import StoreError
from clivefs.objects.store import Store

DESCRIPTION = """\
Thin the recorded past as `[sessions] keep` of each workspace says, and remove what nothing needs any more, also
repositories that no Clive.toml has named for 30 days. What is mounted, open, forked, or can still be undone is never
touched. It may be ended at any moment, and runs beside whatever else uses the store."""

EXAMPLES = """\
clivefs gc --dry-run                 what it would remove
clivefs gc
clivefs gc --keep @17 --keep -3d     but leave these points"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")
    parser.add_argument(
        "--keep",
        action="append",
        metavar="POINT",
        default=[],
        help="a point of this workspace that stays, this time (may be repeated)",
    )
    parser.add_argument(
        "--seconds", type=float, metavar="N", default=float("inf"), help="begin nothing new after N seconds"
    )
    parser.add_argument("--while-quiet", action="store_true", help="begin nothing new once something is recorded")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    keeps = _points(call)
    try:
        store = Store.open(call.store, create=False)
    except StoreError as error:
        raise ClivefsError("there is no store", place=call.store, remedy="nothing was recorded yet") from error
    with store, ended_by_signals(call.store, "what was done stays done, and the next collection goes on"):
        before = store.usage()
        done = collect(
            store,
            now_ms=time.time_ns() // 1_000_000,
            keeps=keeps,
            dry_run=call.args.dry_run,
            seconds_max=call.args.seconds,
            while_quiet=call.args.while_quiet,
            progress=call.out.progress,
        )
        after = store.usage()
    given_back = done.given_back
    if given_back is None:  # only who has it open can
        given_back = _ask_daemon(call.store)
        with Store.open(call.store, create=False) as store:
            after = store.usage()
    _tell(call, done, after)
    call.out.json(_described(call, done, before, after))
    return 0


def _ask_daemon(store: str) -> int | None:
    """Have the one daemon of the store give disk back; how many bytes."""
    found = daemons(store)
    if len(found) != 1:
        return None
    try:
        freed = found[0].ask("give_back")["bytes"]
    except ClivefsError:
        return None
    return int(freed) if freed is not None else None


def _points(call: Call) -> set[bytes]:
    if not call.args.keep:
        return set()
    with past.opened(call, fresh=False) as opened:
        return {opened.find(text).oid for text in call.args.keep}


def _tell(call: Call, done: Collected, usage: tuple[int, int]) -> None:
    verb = "would be removed" if call.args.dry_run else "removed"
    dropped = sum(each.dropped for each in done.thinned)
    kept = sum(each.kept for each in done.thinned)
    for note in done.notes:
        call.out.note(note)
    call.out.line(f"{dropped} points {verb}, {kept} kept")
    call.out.line(f"{done.swept.objects} objects {verb} ({size(done.swept.bytes)}), {done.swept.kept} kept")
    if done.sealed.objects:
        told = f"{done.sealed.objects} objects sealed: {size(done.sealed.bytes_before)} became"
        call.out.line(f"{told} {size(max(0, done.sealed.bytes_now))}")
    gone = done.repositories.removed()
    if gone:
        told = f"{len(gone)} repositories and private gitdirs {verb} that nothing needs"
        call.out.line(f"{told} ({size(sum(each.bytes for each in gone))})")
    if done.unfinished:
        call.out.line("it ended early: the next collection goes on")
    if not call.args.dry_run:
        call.out.line(f"the database takes {size(usage[0])}, of which {size(usage[1])} are in use")


def _described(call: Call, done: Collected, before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    return {
        "store": call.store,
        "dry_run": bool(call.args.dry_run),
        "points": [{"workspace": each.workspace, "dropped": each.dropped, "kept": each.kept} for each in done.thinned],
        "objects": {
            "removed": done.swept.objects,
            "kept": done.swept.kept,
            "sealed": done.sealed.objects,
        },
        "repositories": [
            {"path": each.path, "sources": list(each.locations), "state": each.state, "bytes": each.bytes}
            for each in (*done.repositories.repositories, *done.repositories.gitdirs)
        ],
        "bytes": {"removed": done.swept.bytes, "database_before": before[0], "database": after[0], "in_use": after[1]},
        "unfinished": done.unfinished,
        "notes": list(done.notes),
    }
