"""The parser of the command line, made from the table of commands."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import clivefs
from clivefs.cli import table


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help as written; widths by the terminal."""


def parser_for(words: Sequence[str]) -> argparse.ArgumentParser:
    """A parser that knows all commands, and the arguments of the one that *words* call."""
    called = next((word for word in words if not word.startswith("-")), None)
    return build_parser(called)


def build_parser(called: str | None = None, *, complete: bool = False) -> argparse.ArgumentParser:
    """The parser with the arguments of the command *called*; with those of every command if *complete*."""
    parser = argparse.ArgumentParser(
        prog="clivefs",
        description="A workspace filesystem: checkouts, git refs and overlays as one directory tree.",
        epilog="`clivefs COMMAND --help` explains each. Begin with `clivefs init` and `clivefs mount`.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"clivefs {clivefs.__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in table.COMMANDS:
        wanted = complete or command.name == called
        implementation = table.load(command.name) if wanted else None
        sub = commands.add_parser(
            command.name,
            help=command.summary,
            description=implementation.DESCRIPTION if implementation else None,
            epilog=f"examples:\n{_indented(implementation.EXAMPLES)}" if implementation else None,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        if implementation is not None:
            implementation.configure(sub)
            sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return parser


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.strip("\n").split("\n"))
