"""`clivefs diff`: what differs between two moments of a workspace."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import call as calls
from clivefs.cli import moments, past
from clivefs.cli.call import Call
from clivefs.mounts.edits.diff import patch_of
from clivefs.mounts.points.compare import State
from clivefs.mounts.points.expressions import Unknown
from clivefs.mounts.points.facts import point_facts
from clivefs.mounts.points.history import PathFinder, beside_patch, differences_at, with_content
from clivefs.mounts.points.point import Point

DESCRIPTION = """\
Print what changed as a git patch: from A to B, from A to now, or, without either, from the start of the session
to now; and, a line each, what no patch can say: other owners, permissions, attributes and links. A and B are moments,
points or sessions (see `clivefs show --help`); what follows them are paths. A path that could be taken for a moment is
written with `./` before it."""

EXAMPLES = """\
clivefs diff                         since the session began
clivefs diff -10m                    in the last ten minutes
clivefs diff -1h -30m src            in src, between two moments
clivefs diff --stat yesterday
clivefs diff --exit-code @17 @20     exits with 1 where they differ"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("words", metavar="[A [B]] [PATH ...]", nargs="*", help="moments, then paths")
    parser.add_argument("--stat", action="store_true", help="only list the files, with a letter of what happened")
    parser.add_argument("--exit-code", action="store_true", help="exit with 1 if there is a difference, as git does")
    moments.add_place(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    args = call.args
    with past.opened(call) as opened:
        moments, words = _moments(opened, args.words)
        before = moments[0] if moments else opened.find("start")
        after = moments[1] if len(moments) > 1 else opened.head()
        paths = [opened.below(word) for word in words] or [b""]
        found = sorted(
            {each for path in paths for each in differences_at(opened.reader, before.tree, after.tree, path)}
        )
        between = State(before.tree, before.meta), State(after.tree, after.meta)
        beside = {each.path: each.status for path in paths for each in beside_patch(opened.reader, *between, path)}
        listed = _listed({each.path: each.status for each in found} | beside)
        if args.stat:
            call.out.lines(f"{each['status']} {each['path']}" for each in listed)
        elif not call.out.as_json:
            call.out.raw(patch_of(with_content(opened.reader, iter(found)), opened.scratch))
            call.out.lines(f"{each['status']} {each['path']}" for each in _listed(beside))
        call.out.json({"from": point_facts(before), "to": point_facts(after), "files": listed})
    return 1 if listed and args.exit_code else 0


def _listed(statuses: Mapping[bytes, str]) -> list[dict[str, str]]:
    return [{"path": os.fsdecode(path), "status": statuses[path]} for path in sorted(statuses)]


def _moments(opened: past.Past, words: list[str]) -> tuple[list[Point], list[str]]:
    """At most two points that *words* begin with, and the rest. ClivefsError for a word that is neither a moment nor a
    path that there is or was."""
    found: list[Point] = []
    while words and len(found) < 2:
        try:
            found.append(opened.find(words[0]))
        except ClivefsError:
            if not _is_path(opened, words[0], found):
                raise
            break
        words = words[1:]
    for word in words:
        if not _is_path(opened, word, found) and _is_moment(opened, word):
            raise UsageError("this is a moment after a path, or a third one", place=word, remedy="clivefs diff --help")
    return found, words


def _is_moment(opened: past.Past, word: str) -> bool:
    """Whether *word* is written as a moment, though there may have been none such."""
    try:
        opened.find(word)
    except Unknown:
        return False
    except ClivefsError:
        return True
    return True


def _is_path(opened: past.Past, word: str, moments: list[Point]) -> bool:
    """Whether *word* is written as a path, or is one now, at one of *moments*, or when all began."""
    if word.startswith("-"):
        return False
    path = opened.below(word)
    if word.startswith(("./", "../")) or os.path.lexists(os.path.join(os.fsencode(opened.place.root), path)):
        return True
    finder = PathFinder(opened.reader)
    ends = [opened.points.load(each.oid) for each in (opened.points.head(), opened.points.first()) if each is not None]
    return any(finder.find(point.tree, path) is not None for point in (*moments, *ends))
