"""`clivefs git`: stock git on the recorded past."""

from __future__ import annotations

import argparse
import os
import subprocess

from clivefs.base.errors import ClivefsError
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.mounts.points.export import session_refs, update

DESCRIPTION = """\
Run stock git on a bare repository of all that was recorded: each session is refs/clive/sessions/NAME, each point a
commit, and `latest` the newest. The repository lies in the store and is brought up to date first. Options for
clivefs come before the git command."""

EXAMPLES = """\
clivefs git log -p --stat
clivefs git log --oneline --all
clivefs git grep -n TODO latest~20
clivefs git diff latest~5 latest -- src"""


def configure(parser: argparse.ArgumentParser) -> None:
    moments.add_place(parser)
    parser.add_argument("arguments", metavar="ARGS", nargs=argparse.REMAINDER, help="a git command and its arguments")


def run(call: Call) -> int:
    with past.opened(call) as opened:
        directory = os.path.join(opened.store.directory("gitviews"), f"{opened.workspace_id}.git")
        sessions = session_refs(opened.store, opened.workspace_id)
        update(
            directory,
            sessions,
            opened.reader,
            head=opened.head().session if sessions else None,
            elsewhere=lambda oid: any(each.has(oid) for each in opened.repositories),
            alternates=tuple(os.path.join(each.commondir, "objects") for each in opened.repositories),
            points=opened.points,
        )
    call.out.flush()
    try:
        done = subprocess.run(["git", f"--git-dir={directory}", *call.args.arguments], check=False)
    except FileNotFoundError:
        raise ClivefsError("git could not be started", remedy="Install git, or put it on PATH.") from None
    return done.returncode if done.returncode >= 0 else 128 - done.returncode
