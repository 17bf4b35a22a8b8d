"""The commands that there are, in the order in which help lists them, and how the module of one is loaded."""

from __future__ import annotations

import argparse
import importlib
from typing import NamedTuple, Protocol, cast

from clivefs.cli.call import Call


class Command(NamedTuple):
    """One command of the command line."""

    name: str
    summary: str
    """One line, as help and shell completion show it."""


COMMANDS = (
    Command("init", "make a directory a workspace"),
    Command("allow", "let a workspace mount what its Clive.toml names"),
    Command("mount", "mount workspaces"),
    Command("unmount", "leave a mountpoint or one workspace"),
    Command("status", "show what is mounted, and whether it is well"),
    Command("doctor", "say what this machine lacks, and how to get it"),
    Command("attach", "show a source at a path of the workspace"),
    Command("detach", "take a mount entry away"),
    Command("replace", "show another source at a path"),
    Command("relink", "say that a workspace's directory has moved"),
    Command("lock", "pin what the mount entries are now"),
    Command("overlay", "your edits over a source: as a patch, a commit, a layer, undone, on another release"),
    Command("blame", "tell which layer files and lines come from"),
    Command("log", "list the recorded points, or those that changed a path"),
    Command("diff", "show what changed between two moments"),
    Command("show", "show a point, or a file as it was"),
    Command("find-change", "find when a text came into a file or left it"),
    Command("bisect", "find the point at which a command began to fail"),
    Command("restore", "make files what they were"),
    Command("undo", "go back by a point"),
    Command("redo", "take back an undo"),
    Command("session", "begin and end sessions, and list them"),
    Command("snapshot", "record everything now, and print the point's id"),
    Command("watch", "print what changes, as JSON lines"),
    Command("fsmonitor", "tell git which files have changed, as its fsmonitor hook"),
    Command("fork", "make, list and drop writable copies of the workspace"),
    Command("merge", "bring a fork's changes back"),
    Command("run", "run a command whose writes come all at once, or not at all"),
    Command("git", "run git on the recorded past"),
    Command("export", "write the recorded past into a git repository"),
    Command("xattr", "tell where a file comes from"),
    Command("gc", "thin what is old, and give back what nothing needs"),
    Command("stats", "show what the recorded past costs"),
    Command("purge", "remove a path from all that was recorded"),
    Command("fsck", "check the store"),
    Command("completion", "print completions for your shell"),
)


class Implementation(Protocol):
    """What a command's module holds."""

    DESCRIPTION: str
    """What it does, in a sentence or two."""
    EXAMPLES: str
    """Lines to type, each with what it does."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments."""
        ...

    def run(self, call: Call) -> int:
        """Do it; the exit code."""
        ...


def load(name: str) -> Implementation:
    """The module of the command *name*, imported now and not earlier: start-up stays short."""
    return cast(Implementation, importlib.import_module(f"clivefs.cli.commands.{name.replace('-', '_')}"))
