"""`clivefs session`: begin and end sessions, and list them."""

from __future__ import annotations

import argparse
from typing import Any

from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.cli.output import size, table
from clivefs.mounts.points.index import Session
from clivefs.mounts.points.names import point_name
from clivefs.mounts.points.stats import stats

DESCRIPTION = """\
A session is a stretch of a workspace's recorded past. One begins with each mount; `new` ends it and begins another
under a name of your own. Its points are directories below .clive/sessions/NAME in the mounted workspace."""

EXAMPLES = """\
clivefs session list
clivefs session list --size          also what each holds
clivefs session new refactor
clivefs session end                  a new one without a name goes on"""


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    listing = actions.add_parser("list", help="list the sessions, the newest first", allow_abbrev=False)
    listing.add_argument(
        "--size", action="store_true", help="also how much each holds: looks at every point, a second for 1,000 of them"
    )
    new = actions.add_parser("new", help="end the present session and begin one", allow_abbrev=False)
    new.add_argument("name", metavar="NAME", help="1 to 64 of a-z, 0-9, `.`, `_` and `-`")
    end = actions.add_parser("end", help="end the present session; an unnamed one begins", allow_abbrev=False)
    for action in (listing, new, end):
        moments.add_place(action)
        calls.add_json(action)


def run(call: Call) -> int:
    if call.args.action == "list":
        return _list(call)
    with past.opened(call) as opened:
        daemon = opened.place.served("a session goes on only while it is")
        name = call.args.name if call.args.action == "new" else None
        result = daemon.ask("session_new", call.out.progress, workspace=opened.place.name, name=name)
    call.out.line(f"session {result['session']} begins; {result['ended']} ended")
    call.out.json(result)
    return 0


def _list(call: Call) -> int:
    with past.opened(call) as opened:
        sessions = opened.points.sessions()[::-1]
        going_on = _going_on(opened)
        sizes: dict[str, int] | None = None
        if call.args.size:
            found = stats(opened.store, opened.workspace_id, progress=call.out.progress)
            sizes = {**{each.name: 0 for each in sessions}, **{each.name: each.bytes for each in found.sessions}}
    rows = [
        (
            "*" if each.name == going_on else " ",
            each.name,
            past.local_time(each.start_ms)[:-4],
            _end(each, going_on),
            f"{each.points} point{'' if each.points == 1 else 's'}",
            *([size(sizes[each.name])] if sizes is not None else []),
            each.mountpoint,
        )
        for each in sessions
    ]
    call.out.lines(table(rows))
    call.out.json([_described(each, going_on, sizes) for each in sessions])
    return 0


def _going_on(opened: past.Past) -> str | None:
    if opened.place.daemon is None:
        return None
    served = [each for each in opened.place.daemon.ask("status")["workspaces"] if each["name"] == opened.place.name]
    return str(served[0]["session"]) if served else None


def _end(session: Session, going_on: str | None) -> str:
    if session.name == going_on:
        return "goes on"
    return past.local_time(session.end_ms or session.last_ms or session.start_ms)[:-4]


def _described(session: Session, going_on: str | None, sizes: dict[str, int] | None) -> dict[str, Any]:
    return {
        "name": session.name,
        "start": point_name(session.start_ms),
        "end": None if session.name == going_on else point_name(session.end_ms or session.last_ms or session.start_ms),
        "points": session.points,
        "mountpoint": session.mountpoint,
        "machine": session.machine,
        **({"bytes": sizes[session.name]} if sizes is not None else {}),
    }
