"""How a workspace's mount entries are told to a person."""

from __future__ import annotations

import shlex
from typing import Any

from clivefs.cli.output import Output, size, table


def entries(out: Output, workspace: dict[str, Any], *, indent: str = "  ", errors: bool = True) -> None:
    """The mount entries of a workspace object of `status --json`, and with *errors* what is wrong with them."""
    rows = [[each["path"], each["source"], each["write"], each["state"]] for each in workspace["mounts"]]
    out.lines(table(rows, indent=indent))
    for each in workspace["mounts"]:
        if _has_left_its_lock(each):
            out.line(
                f"{indent}{each['path']}: it follows its ref, which is at {each['ref'][:12]}; Clive.lock says "
                f"{each['locked'][:12]} (`clivefs lock {each['path']}` takes the new one)"
            )
        if each.get("locked_as"):
            out.line(f"{indent}{lock_left_behind(each)}")
        if errors and each.get("error"):
            _wrapped(out, indent, f"{each['path']}: {each['error']}")
        for conflict in each.get("conflicts", ()):
            out.line(f"{indent}! {each['path']}/{conflict['path']}: conflict ({conflict['kind']}) of the rebase")
    if workspace.get("error"):
        _wrapped(out, indent, f"its files as they are now are not in force: {workspace['error']}")
    if workspace.get("moved_from"):
        old, new = shlex.quote(workspace["moved_from"]), shlex.quote(workspace["root"])
        _wrapped(
            out,
            indent,
            f"it was moved from {old}, and is a workspace of its own now, without the edits and sessions of that one\n"
            f"to go on with them: `clivefs unmount {workspace['name']}`, `clivefs relink {old} {new}`, then mount it",
        )
    _recording(out, workspace.get("recording") or {}, indent)
    if workspace.get("degraded"):
        out.line(f"{indent}degraded: {workspace['degraded']} (`clivefs doctor` says how to get more)")


def _recording(out: Output, recording: dict[str, Any], indent: str) -> None:
    """What there is to say of a workspace's recording: nothing, as long as all is recorded."""
    if recording.get("state") == "paused":
        _wrapped(out, indent, f"not recorded at the moment: {recording['error']}; it goes on when that has passed")
    elif recording.get("state") == "off":
        out.line(f"{indent}not recorded: `record = false` in [sessions]")
    if recording.get("degraded"):
        out.line(f"{indent}recording is degraded: {recording['degraded']} (changes outside are seen within 10 s)")
    for each in recording.get("left_out", ()):
        out.line(f"{indent}! {each['path']} is not recorded: {each['why']}")
    for each in recording.get("reading", ()):
        out.line(f"{indent}{each['path']} is not recorded yet: {how_far(each)}")
    for each in recording.get("busy", ()):
        out.line(f"{indent}{each['path']} is written to all the time: not recorded as it is since {each['since']}")


def how_far(reading: dict[str, Any]) -> str:
    """How far the reading of a large file is, as in `recording.reading` of `status --json`."""
    if not reading["size"]:
        return "to be read soon"
    return f"{size(reading['read'])} of {size(reading['size'])} read"


def _has_left_its_lock(entry: dict[str, Any]) -> bool:
    return bool(entry.get("ref") and entry.get("locked") and entry["ref"] != entry["locked"] and not entry["error"])


def lock_left_behind(entry: dict[str, Any]) -> str:
    """That Clive.lock locks another source than an entry has: from an object with `path` and `locked_as`."""
    return (
        f"{entry['path']}: Clive.lock has it as {entry['locked_as']}, so it is not locked "
        f"(`clivefs lock {entry['path']}` locks what it is now)"
    )


def problem(workspace: dict[str, Any], entry: dict[str, Any]) -> str:
    """What is wrong with a mount entry, as an error message begins."""
    first, *rest = f"{workspace['name']}/{entry['path']}: {entry['error']}".split("\n")
    return "\n".join([first, *(f"  {line.strip()}" for line in rest)])


def entry(out: Output, facts: dict[str, Any]) -> None:
    """One mount entry after it was changed."""
    shown = "  ".join(str(facts[key]) for key in ("path", "source", "write", "state") if facts.get(key))
    out.line(shown)
    if facts.get("excluded_in"):
        out.line(f"  {facts['excluded_in']} now keeps it out of the enclosing repository's `git status`")
    if facts.get("locked_as"):
        out.line(f"  {lock_left_behind(facts)}")
    if facts.get("error"):
        _wrapped(out, "  ", str(facts["error"]))


def _wrapped(out: Output, indent: str, text: str) -> None:
    first, *rest = text.split("\n")
    out.line(f"{indent}! {first}")
    out.lines(f"{indent}  {line.strip()}" for line in rest)
