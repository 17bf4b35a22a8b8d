"""From the words of a call to its exit code: parsing, dispatch, and the one place where errors become prose.

Exit codes: 0 success, 1 a failure that the message explains, 2 wrong usage; 130 after Ctrl-C and 141 when
whoever read our output has gone, as shells expect. No traceback without `--debug`.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from clivefs.base.errors import ClivefsError
from clivefs.cli import output, surroundings, table
from clivefs.cli.call import Call
from clivefs.cli.parser import parser_for

INTERRUPTED = 128 + signal.SIGINT
READER_GONE = 128 + signal.SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one call of `clivefs`; the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Python would try to flush again at exit and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
        return READER_GONE
    except KeyboardInterrupt:
        sys.stderr.write("\n")
        return INTERRUPTED


def program() -> NoReturn:
    """The process that a shell starts as `clivefs`."""
    code = main()
    if sys.stderr is not None:  # None where the shell closed it
        sys.stderr.flush()
    # To take the interpreter apart as well would be a fifth of what a short call costs.
    os._exit(code)


def _run(words: list[str]) -> int:
    try:
        args = parser_for(words).parse_args(words)
    except SystemExit as stop:  # argparse has printed what it had to say
        return stop.code if isinstance(stop.code, int) else 2
    out = output.standard(as_json=getattr(args, "json", False))
    try:
        return _perform(args, out)
    except ClivefsError as error:
        if args.debug:
            traceback.print_exc()
        if out.as_json:
            out.json({"error": {"message": error.message, "place": error.place, "remedy": error.remedy}})
        out.error(error)
        return error.exit_code
    finally:
        out.flush()


def _perform(args: argparse.Namespace, out: output.Output) -> int:
    """Run the command; anything unforeseen becomes a ClivefsError of one line, its traceback goes to a file."""
    call = None
    try:
        call = Call(args, surroundings.read(), out)
        return table.load(args.command).run(call)
    except (ClivefsError, BrokenPipeError):
        raise
    except OSError as error:
        raise _foreseen(error, call) from error
    except Exception as error:
        kept = _keep_traceback(call)
        raise ClivefsError(
            f"internal error: {type(error).__name__}: {error}".replace("\n", " "),
            remedy=(f"the traceback is in {kept}; " if kept else "") + "the same command with --debug shows it",
        ) from error


def _foreseen(error: OSError, call: Call | None) -> ClivefsError:
    """What the system refused, for people."""
    place = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else None
    what = error.strerror or str(error)
    if call is not None and place is not None and (place + "/").startswith(call.store.rstrip("/") + "/"):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "free some space there" if full else "choose another with --store or CLIVEFS_STORE"
        return ClivefsError(f"the store cannot be used: {what}", place=place, remedy=remedy)
    return ClivefsError(what, place=place)


def _keep_traceback(call: Call | None) -> str | None:
    """Write the traceback being handled into the store's run directory; its path, if that worked."""
    if call is None:
        return None
    path = os.path.join(call.store, "run", "command-error.log")
    try:
        with open(path, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(traceback.format_exc())
    except OSError:
        return None
    return path
