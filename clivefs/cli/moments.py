"""What commands about the past take: their arguments, and moments as people write them.

Whoever only asks the daemon needs no more than this; `past` opens the store.
"""

from __future__ import annotations

import argparse
import os
import re
import time

from clivefs.base.errors import ClivefsError
from clivefs.cli import call as calls
from clivefs.cli.forks import fork_at
from clivefs.cli.locate import Workspace
from clivefs.mounts.points.moments import Moment, read_moment

_MOMENT = re.compile(r"-\d")
"""What begins a moment of the past and not an option: `-5m`."""


def add_place(parser: argparse.ArgumentParser) -> None:
    """`-w`, `--mountpoint` and `--store`, for commands whose `--at` is a moment; and moments such as `-5m`."""
    calls.add_workspace(parser)
    parser.add_argument("--mountpoint", dest="at", metavar="MOUNTPOINT", help="where it is mounted, if at several")
    calls.add_store(parser)
    accept_moments(parser)


def count(text: str) -> int:
    """The number that *text* is, for options such as `-n`. ArgumentTypeError where it is none, or below 0."""
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of things: give 0 or more")
    return int(text)


def accept_moments(parser: argparse.ArgumentParser) -> None:
    """Let an argument that begins like `-5m` be one."""
    parser._negative_number_matcher = _MOMENT


def moment(text: str) -> Moment:
    """What *text* means now, in this machine's zone."""
    return read_moment(text, time.time_ns() // 1_000_000, None)


def below(place: Workspace, path: str) -> bytes:
    """*path* as a person names it, below the workspace; empty for all of it. ClivefsError in a fork."""
    inside = place.inside(path)
    fork = fork_at(inside)
    if fork is not None:
        raise ClivefsError(
            f"only the live view is recorded, and this is in the fork {fork}",
            place=path,
            remedy=f"`clivefs fork --diff {fork}` shows what it changed",
        )
    return os.fsencode(inside)
