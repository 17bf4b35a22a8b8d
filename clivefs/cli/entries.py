"""Changes of a workspace's mount table, by its daemon where it is mounted, else in its `Clive.toml` alone."""

from __future__ import annotations

import importlib
import os
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.cli.call import Call
from clivefs.cli.locate import Workspace, is_below
from clivefs.mounts.config import source_notation

SOURCE_HELP = """\
SOURCE is git+URL[@REF][#subdir=D] (URL may be a path), pypi:NAME==V (with #sdist its source distribution),
npm:NAME@V, archive:URL-or-path, or the path of a directory. A relative path is one from the current directory."""


def source(call: Call, place: Workspace, text: str, ref: str | None) -> str:
    """SOURCE as the workspace says it: relative paths are from its root.

    Who stands in the mount means the directory of the workspace that he sees there: so `../checkout` is
    what lies beside the workspace, since nothing but workspaces lies beside it in the mount.
    """
    parsed = source_notation.parse_source(_with_home(text, call.around.home), ref=ref)
    here = call.around.directory
    if place.shown_at is not None and is_below(here, place.shown_at):
        here = os.path.normpath(os.path.join(place.root, os.path.relpath(here, place.shown_at)))
    path = source_notation.host_path(parsed, here)
    shown = place.shown_at
    if path is not None and shown is not None and is_below(path, shown):
        # What the mount shows of the workspace's own directory is meant as that directory.
        inside = os.path.relpath(path, shown)
        named_absolutely = os.path.isabs(parsed.location)
        location = os.path.normpath(os.path.join(place.root, inside)) if named_absolutely else inside
        return source_notation.format_source(parsed._replace(location=location))
    anchored = source_notation.anchor(parsed, here, place.root)
    return source_notation.format_source(anchored)


def _with_home(text: str, home: str) -> str:
    """SOURCE with `~/` after its scheme put in full: the shell does that only at the start of a word."""
    for scheme in ("git+", "archive:"):
        if text.startswith(scheme + "~/"):
            return scheme + os.path.join(home, text[len(scheme) + 2 :])
    return text


def patch(call: Call, place: Workspace, path: str) -> str:
    """The path of a patch file as the workspace says it."""
    absolute = call.absolute(path)
    shown = place.shown_at
    top = shown if shown is not None and is_below(absolute, shown) else place.root
    return os.path.relpath(absolute, top)


def change(call: Call, place: Workspace, command: str, path: str, **args: Any) -> dict[str, Any]:
    """Do `attach`, `detach` or `replace`; the entry's object, as in `status --json`, afterwards."""
    dry_run = bool(call.args.dry_run)
    if not path:
        raise ClivefsError("the root of a workspace is no mount entry", place=place.root, remedy="name a path in it")
    if place.daemon is not None:
        result = place.daemon.ask(
            command, call.out.progress, workspace=place.name, path=path, dry_run=dry_run, ref=None, **args
        )
        return dict(result)
    # Imported only now: with it come the store and libgit2, 100 ms that a mounted workspace need not wait.
    offline = importlib.import_module("clivefs.cli.offline")
    return dict(offline.edit(call.store, place.root, command, path, dry_run=dry_run, **args))
