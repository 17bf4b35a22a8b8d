"""What `restore`, `undo` and `redo` have in common: asking the daemon, and saying what it did."""

from __future__ import annotations

from typing import Any

from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon
from clivefs.cli.output import visible


def go(call: Call, daemon: Daemon, command: str, *, back: str, **args: Any) -> int:
    """Have *daemon* do it, and tell the result; the exit code as of `told`. Ctrl-C ends the waiting only, and that is
    said: there is no telling how far it is."""
    dry = call.args.dry_run
    try:
        result = daemon.ask(command, call.out.progress, dry_run=dry, **args)
    except KeyboardInterrupt:
        if not dry:
            call.out.note(f"the daemon goes on with it; `clivefs {back}` takes it back")
        raise
    return told(call, result, back)


def told(call: Call, result: dict[str, Any], back: str) -> int:
    """Tell the result; 1 where something could not be changed. *back*: the command that takes it back."""
    refused = {each["path"]: each["why"] for each in result["refused"]}
    done = [each for each in result["changes"] if each["path"] not in refused]
    call.out.lines(f"{each['status']} {each['path']}" for each in done)
    if not result["changes"]:
        call.out.line(f"nothing differs from {result['point']['name']}")
    elif result["dry_run"]:
        call.out.line(f"would be as at {result['point']['name']}: {_files(len(done))}")
    else:
        call.out.line(f"as at {result['point']['name']}: {_files(len(done))}; `clivefs {back}` takes it back")
    for path, why in refused.items():
        call.out.note(f"left alone: {visible(path)}: {why}")
    call.out.json(result)
    return 1 if refused else 0


def _files(count: int) -> str:
    return f"{count} path{'' if count == 1 else 's'}"
