"""`clivefs run`: run a command so that its writes come all at once, or not at all."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import signal
import stat
import subprocess
import threading
from types import FrameType
from typing import IO, Any

from clivefs.base.errors import ClivefsError, UsageError
from clivefs.cli import call as calls
from clivefs.cli import daemons, locate, sandbox
from clivefs.cli.call import Call
from clivefs.cli.daemons import Daemon
from clivefs.cli.forks import commit_lines, first_of, refuse_in_a_fork
from clivefs.cli.locate import Workspace
from clivefs.cli.output import visible

DESCRIPTION = """\
Run a command in the workspace. With --fork it runs in a fork made for it, in the directory that corresponds to the
present one: when it exits with 0, what it wrote comes into the live view all at once, otherwise it is dropped. If
others have changed one of the same files meanwhile, nothing is committed and the fork stays. Ignored files that it
wrote are not brought back. With --sandbox it can write nowhere but in its fork.

The exit code is the command's, 127 where there is no such command, 126 where it cannot be executed, or 125 when
clivefs itself failed."""

EXAMPLES = """\
clivefs run --fork -- make format
clivefs run --fork --dry-run -- ./upgrade.sh     run it, and show what it would change
clivefs run --fork --name n1 --sandbox -- ./agent.sh
clivefs fork show n1 --audit                     what it read and wrote
clivefs run -- make                              in the live view, between two recorded points"""

OWN_FAILURE = 125
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127
"""As env(1), which starts it in a sandbox."""
_STDIN = 0
_FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--fork", action="store_true", help="in a fork: all of its writes are committed, or none")
    parser.add_argument("--name", metavar="NAME", help="what the fork is called")
    parser.add_argument(
        "--sandbox",
        action="store_true",
        help="it can write nowhere but in the fork (bubblewrap), and what it reads and writes there is kept for "
        "`clivefs fork show NAME --audit`",
    )
    parser.add_argument("--dry-run", action="store_true", help="run it, print what it changed as a patch, and drop it")
    calls.add_place(parser)
    calls.add_json(parser)
    parser.add_argument("command_line", metavar="-- CMD ...", nargs=argparse.REMAINDER, help="the command")


def run(call: Call) -> int:
    args = call.args
    words = args.command_line[1:] if args.command_line[:1] == ["--"] else args.command_line
    if not words:
        raise UsageError("which command?", remedy="clivefs run --fork -- make")
    if not args.fork and (args.name is not None or args.dry_run or args.sandbox):
        raise UsageError("--name, --dry-run and --sandbox go with --fork")
    try:
        place = locate.find(call)
        daemon = place.served("commands run in the mount")
        refuse_in_a_fork(place, "this runs commands in the live view, or in a fork of it")
        if place.directory == ".clive" or place.directory.startswith(".clive/"):
            raise UsageError("this is no directory of the live view", place=call.around.directory)
        if not args.fork:
            return _run_live(call, place, daemon, words)
        return _run_in_fork(call, place, daemon, words)
    except UsageError:
        raise
    except ClivefsError as error:
        call.out.json({"error": {"message": error.message, "place": error.place, "remedy": error.remedy}})
        call.out.error(error)
        return OWN_FAILURE


def _run_live(call: Call, place: Workspace, daemon: Daemon, words: list[str]) -> int:
    """Run it between two points."""
    before = daemon.ask("snapshot", call.out.progress, workspace=place.name)
    assert place.shown_at is not None
    directory = os.path.join(place.shown_at, place.directory).rstrip("/")
    status = _execute(call, words, directory, dict(call.around.environ))
    after = daemon.ask("snapshot", call.out.progress, workspace=place.name)
    call.out.json({"status": status, "before": before, "after": after})
    return status


def _run_in_fork(call: Call, place: Workspace, daemon: Daemon, words: list[str]) -> int:
    args = call.args
    text = " ".join(words)
    fork = daemon.ask(
        "run_begin", call.out.progress, workspace=place.name, name=args.name, text=text, audit=args.sandbox
    )
    directory = os.path.join(fork["path"], place.directory).rstrip("/")
    environ = dict(call.around.environ)
    box = None
    try:
        if args.sandbox:
            box = _sandbox(call, place, fork, daemon, directory)
            environ = sandbox.environment(environ)
        status = _execute(call, words, directory, environ, box)
    except BaseException:
        daemon.ask("run_end", workspace=place.name, name=fork["name"], commit=False, status=OWN_FAILURE)
        raise
    commit = status == 0 and not args.dry_run
    result = daemon.ask(
        "run_end",
        call.out.progress,
        workspace=place.name,
        name=fork["name"],
        commit=commit,
        diff=args.dry_run,
        status=status,
    )
    result["status"] = status
    return _told(call, result)


def _sandbox(call: Call, place: Workspace, fork: dict[str, Any], daemon: Daemon, directory: str) -> sandbox.Sandbox:
    return sandbox.make(
        directory,
        writable=[fork["path"], *fork["git"]],
        readable=[place.root, daemon.mountpoint, call.store],  # git borrows objects from the checkout
        hidden=sorted({daemon.run, *daemons.live_run_directories()}),
        path=call.around.environ.get("PATH"),
    )


def _told(call: Call, result: dict[str, Any]) -> int:
    status: int = result["status"]
    if "patch" in result:
        patch = os.fsencode(result.pop("patch"))
        if not call.out.as_json:
            call.out.raw(patch)
    call.out.json(result)
    if result["kept"]:
        name = result["name"]
        what = "committed, and the fork stays" if result["committed"] else "not committed"
        call.out.note(f"clivefs: {what}: {result['refused']}")
        for path in result.get("conflicts", ()):
            call.out.note(f"  {visible(path)}")
        call.out.note(
            f"  it is kept as the fork {name}: `clivefs merge {name}` brings it in, "
            f"`clivefs fork --drop {name}` removes it"
        )
        return OWN_FAILURE
    call.out.lines(commit_lines(result["commits"]))
    if result["committed"] and result["changes"]:
        count = len(result["changes"])
        call.out.note(f"clivefs: committed {count} path{'' if count == 1 else 's'}; `clivefs undo` takes it back")
    if result["committed"] and result.get("ignored"):
        call.out.note(f"clivefs: ignored files are not brought back: {visible(first_of(result['ignored']))}")
    if status and not call.args.dry_run:
        call.out.note(f"clivefs: the command failed ({status}): nothing of what it wrote is kept")
    return status


def _execute(
    call: Call, words: list[str], directory: str, environ: dict[str, str], box: sandbox.Sandbox | None = None
) -> int:
    """The command's exit status, as a shell gives it."""
    call.out.flush()
    environ["PWD"] = directory
    children: list[subprocess.Popen[bytes]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        for child in children:
            child.send_signal(number)

    # The terminal sends Ctrl-C and Ctrl-\\ to the command too, and what comes after it is still ours to do. A handler
    # is not inherited, as "ignored" would be.
    keys = signal.SIG_IGN if box is not None and box.keys_ignored else _not_ours
    before = {number: signal.signal(number, keys) for number in (signal.SIGINT, signal.SIGQUIT)}
    before |= {number: signal.signal(number, forward) for number in _FORWARDED}
    try:
        if box is None:
            children.append(_started(words, directory, environ))
        else:
            stdin = subprocess.PIPE if _can_be_reopened(_STDIN) else None
            command = [*box.words, *words]
            children.append(subprocess.Popen(command, cwd=directory, env=environ, pass_fds=[box.fd], stdin=stdin))
            if children[0].stdin is not None:
                threading.Thread(target=_feed, args=(children[0].stdin,), daemon=True).start()
        code = children[0].wait()
    except OSError as error:
        if not os.path.isdir(directory):
            raise ClivefsError("there is no such directory in the fork", place=directory) from None
        if box is not None:
            raise
        call.out.error(ClivefsError(f"it cannot be run: {error.strerror}", place=words[0]))
        return _NOT_FOUND if error.errno == errno.ENOENT else _NOT_EXECUTABLE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def _started(words: list[str], directory: str, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    """The command, as execvp(3) starts it: what is executable and nothing else is a shell script."""
    try:
        return subprocess.Popen(words, cwd=directory, env=environ)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
    file = words[0] if "/" in words[0] else shutil.which(words[0], path=environ.get("PATH")) or words[0]
    return subprocess.Popen(["/bin/sh", file, *words[1:]], cwd=directory, env=environ)


def _can_be_reopened(fd: int) -> bool:
    """Whether who was given *fd* to read could open it for writing, by /proc/self/fd: past all read-only mounts."""
    try:
        mode = os.fstat(fd).st_mode
    except OSError:
        return False  # it is closed
    return stat.S_ISREG(mode) or stat.S_ISBLK(mode)


def _feed(pipe: IO[bytes]) -> None:
    """Hand on our standard input, for as long as somebody reads it."""
    with contextlib.suppress(OSError), pipe, open(_STDIN, "rb", buffering=0, closefd=False) as file:
        shutil.copyfileobj(file, pipe, 1 << 16)


def _not_ours(number: int, frame: FrameType | None) -> None:
    """Take note of a signal that was meant for the command."""
