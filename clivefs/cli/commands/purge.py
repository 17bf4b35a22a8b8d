"""`clivefs purge`: remove a path from all that was recorded."""

from __future__ import annotations

import argparse
import os
import sys

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.cli.ending import ended_by_signals
from clivefs.mounts.points.purge import Purged, purge, wait_until_alone
from clivefs.objects.errors import RepositoryError
from clivefs.objects.gitdirs import find_gitdir
from clivefs.objects.repository import Repository

DESCRIPTION = """\
Remove a file or a directory from every recorded point of this workspace, as if it had never been there: a password that
was saved by mistake. The points keep their times and numbers and get other ids. What nothing else has is then removed
from the store's files. Messages of points and commands of `run --fork` that mention the path, or have a line of what
it contained, are emptied, and audits forget it. It cannot be undone. Nothing may be mounted from the store meanwhile.
Exits with 1 where nothing that was recorded has it. Repositories that `export` or `clivefs git` users cloned before
still have it."""

EXAMPLES = """\
clivefs purge .env --dry-run
clivefs purge .env
clivefs purge secrets/ --yes"""

_WAIT_S = 2.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a file or directory of the workspace")
    parser.add_argument("--dry-run", action="store_true", help="only say how much has it")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    dry_run = call.args.dry_run
    with past.opened(call, fresh=False, reading=False) as opened:
        path = opened.below(call.args.path)
        if not path:
            raise UsageError("the whole workspace cannot be purged", remedy="remove the store instead")
        if not dry_run:
            if opened.place.daemon is not None or not wait_until_alone(opened.store, _WAIT_S):
                raise ClivefsError(
                    "something is mounted from this store",
                    place=call.store,
                    remedy="`clivefs unmount` all that is, then give the command again",
                )
            _confirm(call, os.fsdecode(path))
        with ended_by_signals(call.store, "give the command again: nothing may be gone so far, or not everything"):
            done = purge(
                opened.store,
                opened.workspace_id,
                path,
                opened.reader,
                opened.repositories,
                own=_own_repository(opened.place.root),
                dry_run=dry_run,
                progress=call.out.progress,
            )
        still_there = _places_of(call, opened, os.fsdecode(path))
    _tell(call, done, os.fsdecode(path), still_there)
    call.out.json(
        {
            "path": os.fsdecode(path),
            "dry_run": dry_run,
            "points": done.points,
            "rewritten": done.rewritten,
            "versions": done.versions,
            "mentions": done.mentions,
            "left": [*done.left, *still_there],
        }
    )
    return 0 if done.points or done.finished or done.mentions else 1


def _confirm(call: Call, path: str) -> None:
    if call.args.yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("this cannot be undone, and there is nobody to ask", remedy="give --yes")
    call.out.note(f"{path} will be removed from all that was recorded. This cannot be undone. Type yes to go on:")
    if sys.stdin.readline().strip() != "yes":
        raise ClivefsError("nothing was changed")


def _own_repository(root: str) -> Repository | None:
    """That of a workspace which is a checkout."""
    try:
        return Repository(find_gitdir(root)[0])
    except (RepositoryError, OSError):
        return None


def _places_of(call: Call, opened: past.Past, path: str) -> list[str]:
    """Where the file is now: it would be recorded again."""
    uppers = os.path.join(opened.store.path, "uppers", opened.workspace_id)
    tops = [opened.place.root]
    if os.path.isdir(uppers):
        tops += [os.path.join(uppers, name, "tree") for name in sorted(os.listdir(uppers))]
    return [
        f"it is still in {top}: remove it there, or exclude it, before you mount again"
        for top in tops
        if os.path.lexists(os.path.join(top, path))
    ]


def _tell(call: Call, done: Purged, path: str, still_there: list[str]) -> None:
    one = "point has" if call.args.dry_run else "point had"
    more = "points have" if call.args.dry_run else "points had"
    contents = "content" if done.versions == 1 else "contents"
    had = f"{done.points} {one if done.points == 1 else more} {path}, {done.versions} different {contents}"
    if done.points:
        call.out.line(had)
    elif done.finished:
        call.out.line(f"no recorded point has {path} any more; the rest of the purge that was ended is done")
    else:
        call.out.line(f"no recorded point has {path}{'' if done.mentions else ': nothing was changed'}")
    if done.mentions:
        mention = "mention" if call.args.dry_run else "mentioned"
        call.out.line(f"messages, commands and audits that {mention} it: {done.mentions}")
    if done.rewritten:
        call.out.line(f"{done.rewritten} points were written anew")
    for left in (*done.left, *still_there):
        call.out.note(left)
    if done.rewritten:
        call.out.note("repositories made earlier by `clivefs export` still have it: remove them and export again")
