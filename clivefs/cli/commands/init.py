"""`clivefs init`: make a directory a workspace."""

from __future__ import annotations

import argparse

from clivefs.cli import call as calls
from clivefs.cli import mountpoint, offline
from clivefs.cli.call import Call
from clivefs.mounts.config import workspace_file

DESCRIPTION = """\
Make a directory a workspace: write a Clive.toml to begin with, and add .clive/ to its .gitignore if it has
one. Nothing else in it changes. What you later add to Clive.toml with `clivefs attach` is allowed at once."""

EXAMPLES = """\
clivefs init                     this directory, under its own name
clivefs init ~/src/shop          another one, made if it does not exist
clivefs init --name shop-next    under another name in the mounted tree"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", nargs="?", default=".", help="the directory (default: this one)")
    parser.add_argument("--name", help="the workspace's name in the mounted tree (default: the directory's)")
    calls.add_store(parser)
    calls.add_json(parser)


def run(call: Call) -> int:
    directory = call.absolute(call.args.directory)
    mountpoint.check_not_mounted(directory)
    made = workspace_file.init_workspace(directory, call.args.name)
    offline.note_own(call.store, made.root)
    call.out.line(f"{made.root} is now the workspace {made.name}")
    call.out.lines(f"  wrote {file}" for file in made.written)
    call.out.line("next: clivefs mount")
    call.out.json({"root": made.root, "name": made.name, "written": list(made.written)})
    return 0
