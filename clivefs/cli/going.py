"""What `restore`, `undo` and `redo` have in common: asking the daemon, and saying what it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon, Left
from clivefs.cli.output import visible

_NAMED_MAX = 3
_LEAVE_S = 5.0
"""How long Ctrl-C waits to hear what became of it."""


def go(call: Call, daemon: Daemon, command: str, *, back: str, **args: Any) -> int:
    """Have *daemon* do it, and tell the result; the exit code as of `told`. Ctrl-C stops it as long as nothing is to be
    seen of it; what became of it is said."""
    try:
        result = daemon.ask(command, call.out.progress, leave_s=_LEAVE_S, dry_run=call.args.dry_run, **args)
    except Left as left:
        if left.result is not None:
            told(call, left.result, back)
        elif left.error is not None:
            call.out.note(left.error.message)
        elif not call.args.dry_run:
            call.out.note(f"the daemon has not said whether it has stopped; if not, `clivefs {back}` takes it back")
        raise
    return told(call, result, back)


def told(call: Call, result: dict[str, Any], back: str) -> int:
    """Tell the result; 1 where something could not be changed, or nothing but an owner. *back*: the command that takes
    it back."""
    refused = {each["path"]: each["why"] for each in result["refused"]}
    done = [each for each in result["changes"] if each["path"] not in refused]
    call.out.lines(f"{each['status']} {each['path']}" for each in done)
    owners = result["not_owned"]
    if not result["changes"]:
        else_ = " else" if refused or owners else ""
        call.out.line(f"nothing{else_} differs from {result['point']['name']}")
    elif result["dry_run"]:
        call.out.line(f"would be as at {result['point']['name']}: {_files(len(done))}")
    else:
        call.out.line(f"as at {result['point']['name']}: {_files(len(done))}; `clivefs {back}` takes it back")
    for path, why in refused.items():
        call.out.note(f"left alone: {visible(path)}: {why}")
    if owners:
        call.out.note(f"not with the owner of then, which only root can give: {_first_of(owners)}")
    call.out.json(result)
    return 1 if refused or (owners and not result["changes"]) else 0


def _first_of(paths: Sequence[str]) -> str:
    """Some of *paths*, and how many more there are."""
    told = ", ".join(visible(path) for path in paths[:_NAMED_MAX])
    return told if len(paths) <= _NAMED_MAX else f"{told} and {len(paths) - _NAMED_MAX:,} more"


def _files(count: int) -> str:
    return f"{count} path{'' if count == 1 else 's'}"
