"""`clivefs fork`: writable copies of the workspace for work side by side."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from clivefs.base.errors import UsageError
from clivefs.cli import call as calls
from clivefs.cli import moments
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon
from clivefs.cli.forks import commit_lines, first_of, refuse_in_a_fork
from clivefs.cli.locate import Workspace, find
from clivefs.cli.output import table

DESCRIPTION = """\
Make .clive/forks/NAME, a writable copy of the whole workspace as it is now or was at a moment. It is there at once,
whatever its size, and stays as it is when the live view goes on: files are shared until one side changes them.
`clivefs merge NAME` brings its changes back."""

EXAMPLES = """\
clivefs fork try                     then: cd "$(clivefs fork --path try)"
clivefs fork old --at yesterday
clivefs fork --list                  size, changed files, and what will conflict
clivefs fork show try                the files that it changed
clivefs fork --diff try              what it changed, as a patch
clivefs fork --drop try"""

_COMMAND_MAX = 80
_WHY = "a fork is a part of its mount"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "words", metavar="NAME", nargs="*", help="the new fork: 1 to 64 of a-z, 0-9, `.`, `_` and `-`; or `show NAME`"
    )
    parser.add_argument("--at", dest="moment", metavar="EXPR", help="as it was then (see `clivefs show --help`)")
    actions = parser.add_mutually_exclusive_group()
    actions.add_argument("--list", action="store_true", help="list the forks")
    actions.add_argument("--drop", metavar="NAME", help="remove a fork and all that was written in it")
    actions.add_argument("--diff", metavar="NAME", help="print what a fork changed as a git patch")
    actions.add_argument("--path", metavar="NAME", help="print where a fork is")
    parser.add_argument(
        "--force", action="store_true", help="with --drop: give up commits made in it that cannot be kept"
    )
    parser.add_argument("--audit", action="store_true", help="with `show`: what its sandboxed command read and wrote")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    named = next((value for value in (args.drop, args.diff, args.path) if value is not None), None)
    if named is not None or args.list:
        _none_left(args.words, args.moment)
    if args.list:
        return _list(call)
    if args.diff is not None:
        return _diff(call, args.diff)
    if args.drop is not None:
        return _drop(call, args.drop)
    if args.path is not None:
        return _path(call, args.path)
    if args.words[:1] == ["show"]:
        if len(args.words) != 2 or args.moment is not None:
            raise UsageError("which fork?", remedy="clivefs fork show NAME")
        return _audit(call, args.words[1]) if args.audit else _show(call, args.words[1])
    if len(args.words) != 1 or args.audit:
        raise UsageError("a fork has one name", remedy="clivefs fork NAME")
    return _make(call, args.words[0])


def _none_left(words: list[str], moment: str | None) -> None:
    if words or moment is not None:
        raise UsageError("that goes with a new fork only", remedy="see `clivefs fork --help`")


def _make(call: Call, name: str) -> int:
    place, daemon = _place(call)
    refuse_in_a_fork(place, "forks are made of the live view")
    moment = call.args.moment
    point = None if moment is None else _past().point_at(call, moment)
    result = daemon.ask("fork", call.out.progress, workspace=place.name, name=name, point=point)
    call.out.line(f"{name} at {result['point']['name']}: {result['path']}")
    call.out.json(result)
    return 0


def _past() -> Any:
    """Loaded only now: most forks are made, listed and dropped without the store and libgit2, which take 100 ms."""
    return importlib.import_module("clivefs.cli.forkpast")


def _place(call: Call) -> tuple[Workspace, Daemon]:
    place = find(call)
    return place, place.served(_WHY)


def _list(call: Call) -> int:
    place, daemon = _place(call)
    forks = daemon.ask("fork_list", call.out.progress, workspace=place.name)
    call.out.lines(table([_row(each) for each in forks]))
    for each in forks:
        if each["kept"]:
            call.out.line(f"{each['name']}: of `run`, kept: {each['kept']}")
        elif each["command"]:  # it runs, or whoever ran it was killed
            call.out.line(
                f"{each['name']}: of `run`, not ended: {each['command'].partition(chr(10))[0][:_COMMAND_MAX]}"
            )
        call.out.lines(_conflicts(each))
    call.out.json(forks)
    return 0


def _row(fork: dict[str, Any]) -> tuple[str, ...]:
    if fork["error"]:
        return fork["name"], fork["made"], "", "", f"error: {fork['error']}"
    count = fork["files"]
    return (
        fork["name"],
        fork["made"],
        f"{count} file{'' if count == 1 else 's'}",
        _size(fork["size"]),
        "conflicts" if fork["conflicts"] else "",
    )


def _size(size: int) -> str:
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1024 or unit == "GiB":
            break
    return f"{value:.1f} {unit}"


def _conflicts(fork: dict[str, Any]) -> list[str]:
    """One line for all with whom it conflicts at the same paths."""
    others: dict[tuple[str, ...], list[str]] = {}
    for each in fork.get("conflicts", ()):
        others.setdefault(tuple(each["paths"]), []).append(each["with"])
    lines = []
    for paths, names in others.items():
        forks = [name.removeprefix("fork:") for name in names if name != "live"]
        who = ["the live view"] if "live" in names else []
        if forks:
            who.append(f"the fork{'' if len(forks) == 1 else 's'} {', '.join(forks)}")
        lines.append(f"{fork['name']} conflicts with {' and '.join(who)}: {first_of(paths)}")
    return lines


def _show(call: Call, name: str) -> int:
    place, daemon = _place(call)
    result = daemon.ask("fork_show", call.out.progress, workspace=place.name, name=name)
    call.out.line(f"{name}, made {result['made']} of {result['point'][:12]}, {_size(result['size'])}")
    call.out.lines(f"{each['status']} {each['path']}" for each in result["changes"])
    call.out.lines(_conflicts(result))
    call.out.json(result)
    return 0


def _audit(call: Call, name: str) -> int:
    place, daemon = _place(call)
    result = daemon.ask("fork_audit", workspace=place.name, name=name)
    ended = f"exit {result['status']}" if result["status"] is not None else "it has not ended"
    call.out.line(f"{result['command']}: {ended}")
    for kind in ("read", "listed", "missing", "written", "removed"):
        call.out.lines(f"{kind:<8} {path or '.'}" for path in result[kind])
    if result["more"]:
        call.out.line(f"and {result['more']} more")
    call.out.json(result)
    return 0


def _diff(call: Call, name: str) -> int:
    place, daemon = _place(call)

    def trees() -> tuple[bytes, bytes]:
        result = daemon.ask("fork_diff", call.out.progress, workspace=place.name, name=name)
        return bytes.fromhex(result["before"]), bytes.fromhex(result["after"])

    _past().print_difference(call, trees)
    return 0


def _drop(call: Call, name: str) -> int:
    place, daemon = _place(call)
    result = daemon.ask("fork_drop", call.out.progress, workspace=place.name, name=name, force=call.args.force)
    call.out.line(f"dropped {name}")
    call.out.lines(commit_lines(result["commits"]))
    call.out.json(result)
    return 0


def _path(call: Call, name: str) -> int:
    place, daemon = _place(call)
    result = daemon.ask("fork_where", workspace=place.name, name=name)
    call.out.line(result["path"])
    call.out.json(result)
    return 0
