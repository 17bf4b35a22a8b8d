"""`clivefs completion`: print completions for your shell."""

from __future__ import annotations

import argparse

from clivefs.cli import completions
from clivefs.cli.call import Call
from clivefs.cli.parser import build_parser

DESCRIPTION = """\
Print a script that completes the commands and options of clivefs, made from the same table that parses them."""

EXAMPLES = """\
source <(clivefs completion bash)                                       this bash; add it to ~/.bashrc
clivefs completion zsh > "${fpath[1]}/_clivefs"                         zsh, from the next start
clivefs completion fish > ~/.config/fish/completions/clivefs.fish       fish"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=sorted(completions.SHELLS), help="your shell")


def run(call: Call) -> int:
    call.out.raw(completions.SHELLS[call.args.shell](build_parser(complete=True)).encode())
    return 0
