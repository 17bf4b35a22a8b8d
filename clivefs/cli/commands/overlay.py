"""`clivefs overlay`: your edits over a source as a patch, a commit, a layer, gone, or on another release."""

from __future__ import annotations

import argparse
import base64
import os
import subprocess
from collections.abc import Callable
from typing import Any

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import call as calls
from clivefs.cli import locate, report
from clivefs.cli.call import Call
from clivefs.cli.entries import patch as patch_path
from clivefs.cli.locate import Workspace
from clivefs.mounts.wholefile import new_file

DESCRIPTION = """\
Edits below a mount entry with write = "overlay" stay in an overlay; the source is never touched. `diff` and
`export` make a patch of them, `export --as-layer` a patch of the entry, `commit` a git commit; `reset` makes files
what the source says again, and `rebase` moves patches and edits onto another release."""

EXAMPLES = """\
clivefs overlay diff lib/requests > my.patch
clivefs overlay diff lib/requests --stat              how many lines of which files
clivefs overlay export vendor/six -o patches/six.patch --as-layer
clivefs overlay commit lib/requests -m Retries --branch retry --push origin
clivefs overlay rebase vendor/six --to 1.17.0
clivefs overlay resolve vendor/six six.py             its conflict is solved
clivefs overlay rebase vendor/six --abort             everything as it was before
clivefs overlay reset lib/requests --dry-run          what would be undone
clivefs overlay reset lib/requests src/models.py      one file"""

_GIT_VARIABLES = (
    "GIT_AUTHOR_NAME",
    "GIT_AUTHOR_EMAIL",
    "GIT_AUTHOR_DATE",
    "GIT_COMMITTER_NAME",
    "GIT_COMMITTER_EMAIL",
    "GIT_COMMITTER_DATE",
    "GIT_CONFIG_GLOBAL",
    "GPG_TTY",
    "SSH_AUTH_SOCK",
)


_IGNORED = "also new files that git ignores, or that Python keeps in __pycache__"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str, dry_run: str | None) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".", allow_abbrev=False)
        made.add_argument("path", metavar="PATH", help="a mount entry's path")
        if dry_run is not None:
            made.add_argument("--dry-run", action="store_true", help=dry_run)
        calls.add_place(made)
        calls.add_json(made)
        return made

    diff = action("diff", "print your edits as a patch", None)
    diff.add_argument("--stat", action="store_true", help="only how many lines of each file were added and removed")
    diff.add_argument("--ignored", action="store_true", help=_IGNORED)
    export = action("export", "write your edits to a patch file", "only say what would be written")
    export.add_argument("-o", "--output", metavar="FILE", required=True, help="the patch file")
    export.add_argument(
        "--as-layer",
        action="store_true",
        help="make FILE the last of the entry's `patches` and forget the edits: what is shown stays the same",
    )
    export.add_argument("--ignored", action="store_true", help=_IGNORED)
    commit = action("commit", "commit what the entry shows, on top of what is mounted", "only say what would be in it")
    commit.add_argument("-m", "--message", metavar="MSG", required=True, help="the commit's message")
    commit.add_argument("--branch", metavar="B", help="let the branch B lead to it (default: HEAD's)")
    commit.add_argument("--push", metavar="REMOTE", help="push it there with your git")
    rebase = action("rebase", "move patches and edits onto another release", "only say what would become of them")
    where = rebase.add_mutually_exclusive_group(required=True)
    where.add_argument("--to", metavar="REF-or-VERSION", help="a ref of the repository, or a version of the module")
    where.add_argument("--abort", action="store_true", help="bring back what was there before the last rebase")
    resolve = action("resolve", "say that conflicts of a rebase are solved", "only say what would be removed")
    resolve.add_argument("files", metavar="FILE", nargs="+", help="files below PATH whose conflict is solved")
    resolve.add_argument("--force", action="store_true", help="also with conflict markers in it")
    reset = action("reset", "undo your edits", "only say what would be undone")
    reset.add_argument("files", metavar="FILE", nargs="*", help="files or directories below PATH (default: all)")


def run(call: Call) -> int:
    place = locate.find(call)
    path = place.inside(call.args.path)

    def ask(command: str, **args: Any) -> dict[str, Any]:
        daemon = place.served("only its daemon knows what an overlay shows")
        return dict(daemon.ask(command, call.out.progress, workspace=place.name, path=path, **args))

    return _ACTIONS[call.args.action](call, place, ask)


Ask = Callable[..., dict[str, Any]]


def _diff(call: Call, place: Workspace, ask: Ask) -> int:
    if call.args.stat:
        result = ask("overlay_diff", stat=True, ignored=call.args.ignored)
        _tell_stat(call, result["files"])
        _tell_ignored(call, result)
        call.out.json(result)
        return 0
    result = ask("overlay_diff", ignored=call.args.ignored)
    if call.out.as_json:
        call.out.json({"path": result["path"], "patch_b64": result["patch"], "ignored": result["ignored"]})
    else:
        call.out.raw(base64.b64decode(result["patch"]))
        _tell_ignored(call, result)
    return 0


def _tell_ignored(call: Call, result: dict[str, Any]) -> None:
    count = len(result["ignored"])
    if count and not call.out.as_json:
        call.out.note(
            f"{_count(count, 'new file')} left out, as git ignores it or Python cached it (--ignored takes all)"
        )


def _tell_stat(call: Call, files: list[dict[str, Any]]) -> None:
    width = max((len(each["path"]) for each in files), default=0)
    for each in files:
        counts = "binary" if each["added"] is None else f"+{each['added']} -{each['removed']}"
        call.out.line(f"{each['path']:<{width}}  {counts}")
    added = sum(each["added"] or 0 for each in files)
    removed = sum(each["removed"] or 0 for each in files)
    call.out.line(f"{_count(len(files), 'file')}, {_count(added, 'line')} added, {removed} removed")


def _export(call: Call, place: Workspace, ask: Ask) -> int:
    args = call.args
    if not args.as_layer:
        result = ask("overlay_diff", ignored=args.ignored)
        patch = base64.b64decode(result["patch"])
        if patch and not args.dry_run:
            _write(call.absolute(args.output), patch)
        verb = "would write" if args.dry_run else "wrote"
        call.out.line(f"{verb} {len(patch)} bytes to {args.output}" if patch else "there are no edits")
        _tell_ignored(call, result)
        call.out.json(
            {
                "path": result["path"],
                "file": args.output,
                "bytes": len(patch),
                "ignored": result["ignored"],
                "dry_run": args.dry_run,
            }
        )
        return 0
    file = patch_path(call, place, args.output)
    if file == ".." or file.startswith("../"):
        raise ClivefsError(
            "a patch of an entry must lie in the workspace",
            place=args.output,
            remedy=f"name a file below {place.root}, or leave --as-layer out",
        )
    result = ask("overlay_export", file=file, ignored=args.ignored, dry_run=args.dry_run)
    verb = "would become" if args.dry_run else "became"
    if result["file"] is None:
        call.out.line("there are no edits")
    else:
        call.out.line(f"the edits of {_count(len(result['files']), 'file')} {verb} the patch {result['file']}")
        call.out.lines(f"stays in the overlay, as a patch cannot hold all of it: {each}" for each in result["stay"])
    _tell_ignored(call, result)
    call.out.json(result)
    return 0


def _write(path: str, content: bytes) -> None:
    """The whole of *content*, or nothing, at *path*."""
    directory, name = os.path.split(path)
    try:
        dir_fd = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with new_file(dir_fd, os.fsencode(name), content) as made:
                made.replace()
        finally:
            os.close(dir_fd)
    except OSError as error:
        raise ClivefsError(f"the patch cannot be written: {error.strerror}", place=path) from None


def _commit(call: Call, place: Workspace, ask: Ask) -> int:
    args = call.args
    around = call.around.environ
    environment = {name: around[name] for name in _GIT_VARIABLES if name in around}
    result = ask(
        "overlay_commit", message=args.message, branch=args.branch, environment=environment, dry_run=args.dry_run
    )
    result["pushed"] = None
    if args.dry_run:
        call.out.lines(f"would commit {each}" for each in result["files"])
    else:
        on = f" on {result['branch']}" if result["branch"] else ""
        call.out.line(f"{result['commit'][:12]}{on}: {_count(len(result['files']), 'file')}")
        call.out.line(f"in {result['git_dir']}")
        if args.push is not None:
            _push(call, result, args.push)
            result["pushed"] = args.push
    call.out.lines(f"left out, as git ignores it or Python cached it: {each}" for each in result["ignored"])
    call.out.json(result)
    return 0


def _push(call: Call, result: dict[str, Any], remote: str) -> None:
    """Push with the user's git, which asks him what it needs to know."""
    if result["branch"] is None:
        raise ClivefsError(
            f"it is committed as {result['commit'][:12]}, and no branch leads to it",
            place=result["git_dir"],
            remedy="say --branch B, to be pushed as that",
        )
    if remote.startswith("-"):
        raise UsageError("this is no remote", place=remote)
    ref = f"refs/heads/{result['branch']}"
    call.out.flush()
    done = subprocess.run(
        ["git", f"--git-dir={result['git_dir']}", "push", remote, f"{ref}:{ref}"],
        check=False,
        env=dict(call.around.environ),
        stdout=2,  # our own output may be JSON
    )
    if done.returncode != 0:
        raise ClivefsError(
            f"it is committed as {result['commit'][:12]}, and git could not push it",
            place=remote,
            remedy=f"git --git-dir={result['git_dir']} push {remote} {result['branch']}",
        )


_PATCH_STATES = {
    "same": "applies as it is",
    "moved": "is rewritten",
    "split": "is rewritten without the files that conflict",
    "edits": "goes: all its files conflict, what it did to them is among your edits",
    "empty": "goes: the release has it",
}


def _rebase(call: Call, place: Workspace, ask: Ask) -> int:
    args = call.args
    result = ask("overlay_rebase", to=args.to, abort=args.abort, dry_run=args.dry_run)
    call.out.line(f"{result['path']}: {result['from']} -> {result['to']}{'  (dry run)' if args.dry_run else ''}")
    if args.abort:
        call.out.lines(f"  patch as it was: {each}" for each in result["patches"])
        call.out.lines(f"  kept aside: {each}" for each in result["kept"])
    else:
        call.out.lines(f"  patch {each['name']} {_PATCH_STATES[each['state']]}" for each in result["patches"])
        call.out.lines(f"  merged: {each}" for each in result["files"] if not _conflicts(result, each))
        call.out.lines(f"  conflict ({each['kind']}): {each['path']}" for each in result["conflicts"])
        if result["locked_as"]:
            call.out.line(f"  {report.lock_left_behind(result)}")
        if result["conflicts"] and not args.dry_run:
            call.out.note(
                f"{_count(len(result['conflicts']), 'file')} to be solved; then `clivefs overlay resolve "
                f"{result['path']} FILE...`\n  or back: `clivefs overlay rebase {result['path']} --abort`"
            )
    call.out.json(result)
    return 1 if result.get("conflicts") else 0


def _conflicts(result: dict[str, Any], path: str) -> bool:
    return any(each["path"] == path for each in result["conflicts"])


def _resolve(call: Call, place: Workspace, ask: Ask) -> int:
    args = call.args
    result = ask("overlay_resolve", files=args.files, force=args.force, dry_run=args.dry_run)
    call.out.lines(f"{'would be ' if args.dry_run else ''}solved: {each}" for each in result["solved"])
    call.out.lines(f"{'would remove' if args.dry_run else 'removed'} {each}" for each in result["removed"])
    left = result["conflicts"]
    call.out.line(f"still to be solved: {', '.join(left)}" if left else "no conflict is left")
    call.out.json(result)
    return 0


def _reset(call: Call, place: Workspace, ask: Ask) -> int:
    args = call.args
    result = ask("overlay_reset", files=args.files, dry_run=args.dry_run)
    verb = "would undo" if args.dry_run else "undid"
    call.out.lines(f"{verb} {each['path']} ({each['what']})" for each in result["changes"])
    if not result["changes"]:
        call.out.line("nothing to undo")
    call.out.json(result)
    return 0


_ACTIONS: dict[str, Callable[[Call, Workspace, Ask], int]] = {
    "diff": _diff,
    "export": _export,
    "commit": _commit,
    "rebase": _rebase,
    "resolve": _resolve,
    "reset": _reset,
}


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
