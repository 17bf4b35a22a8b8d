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
    Command("overlay", "see or undo your edits over a source"),
    Command("xattr", "tell where a file comes from"),
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
    return cast(Implementation, importlib.import_module(f"clivefs.cli.commands.{name}"))
