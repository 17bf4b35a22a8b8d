"""One call of a command: its arguments, its surroundings, and where it speaks."""

from __future__ import annotations

import argparse
import os
from typing import Any, NamedTuple

from clivefs.cli.output import Output
from clivefs.cli.surroundings import Surroundings


class Call(NamedTuple):
    """What a command is given."""

    args: argparse.Namespace
    around: Surroundings
    out: Output

    @property
    def store(self) -> str:
        """The store's directory, absolute and without links. It may not exist yet."""
        return os.path.realpath(self.absolute(self._given("store") or self.around.store))

    def absolute(self, path: str) -> str:
        """*path*, seen from the current directory; nothing is looked up, so that no dead mount is touched."""
        return os.path.normpath(os.path.join(self.around.directory, path))

    def _given(self, name: str) -> Any:
        return getattr(self.args, name, None)


def add_store(parser: argparse.ArgumentParser) -> None:
    """`--store`."""
    parser.add_argument(
        "--store",
        metavar="DIR",
        help="the store (default: $CLIVEFS_STORE, or clivefs in $XDG_DATA_HOME or ~/.local/share)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON (docs/json.md)")


def add_workspace(parser: argparse.ArgumentParser) -> None:
    """`-w`."""
    parser.add_argument(
        "-w",
        "--workspace",
        metavar="NAME",
        help="the mounted workspace of this name (default: the one that the current directory is in)",
    )


def add_place(parser: argparse.ArgumentParser) -> None:
    """`-w`, `--at` and `--store`: which workspace."""
    add_workspace(parser)
    parser.add_argument("--at", metavar="MOUNTPOINT", help="the mountpoint that shows it, where several do")
    add_store(parser)
