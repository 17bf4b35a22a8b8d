"""Running stock git: the one place that builds its command lines and its environment.

Never through a shell. Variables that would point git at another repository are removed; hooks, file
system monitors, background maintenance and the `ext` transport are off in every call; git asks nothing
unless the caller says that a person is there. Arguments that come from outside pass `check_argument` or
stand behind `--`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from clivefs.base.errors import ClivefsError
from clivefs.objects.gitdirs import quoted_path

log = logging.getLogger(__name__)

_CONFIG = (
    "protocol.ext.allow=never",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "advice.detachedHead=false",
)
_REPOSITORY_VARIABLES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_COMMON_DIR",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
    "GIT_PREFIX",
    "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS",
    "GIT_CONFIG_COUNT",
    "GIT_SHALLOW_FILE",
    "GIT_GRAFT_FILE",
    "GIT_REPLACE_REF_BASE",
    "GIT_QUARANTINE_PATH",
    "GIT_INTERNAL_SUPER_PREFIX",
    "GIT_EXTERNAL_DIFF",
    "GIT_ATTR_SOURCE",
    "GIT_TRACE",
    "GIT_TRACE2",
    "GIT_TRACE2_EVENT",
)
STDERR_BYTES_MAX = 64 << 10


class GitFailed(ClivefsError):
    """git exited with a failure, could not be started, or ran out of time; `stderr` is what it said."""

    def __init__(
        self, message: str, *, stderr: str = "", status: int = 0, ended: bool = False, remedy: str | None = None
    ) -> None:
        super().__init__(message, remedy=remedy)
        self.stderr = stderr
        self.ended = ended
        """This process is about to end, and ended it."""
        self.status = status
        """Exit status; 0 if it did not get to exit by itself."""


@dataclass(frozen=True, slots=True)
class GitCommand:
    """How git is run: the program, the environment it inherits, and whether a person can be asked."""

    program: str = "git"
    environment: Mapping[str, str] | None = None
    """What children inherit; None for this process's own."""
    interactive: bool = False
    """git and ssh may ask on the terminal."""

    def run(
        self,
        arguments: Sequence[str | bytes],
        *,
        git_dir: str | None = None,
        cwd: str | None = None,
        stdin: bytes = b"",
        config: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        stall_s: float | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> bytes:
        """What `git ARGUMENTS` writes to its standard output. Raises GitFailed.

        *timeout_s* bounds the whole run, *stall_s* the time without a word on standard error (give
        `--progress`). *progress* gets every line of that as it comes, carriage returns ending one too.
        """
        command: list[str | bytes] = [self.program, "--no-pager"]
        for setting in (*_CONFIG, *config):
            command += ["-c", setting]
        if git_dir is not None:
            command.append(f"--git-dir={git_dir}")
        command += arguments
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=cwd,
                env=self._environment(variables),
                umask=0o077,  # what git makes is in the store; the daemon's own is 0
                start_new_session=not self.interactive,  # no controlling terminal: ssh has nobody to ask
            )
        except OSError as error:
            raise GitFailed(
                f"git could not be started: {error.strerror}", remedy="Install git, or put it on PATH."
            ) from error
        errors = _StandardError(progress, stall_s)
        _running[process] = errors
        reader = threading.Thread(target=errors.drain, args=(process,), daemon=True)
        reader.start()
        timer = threading.Timer(timeout_s, _end, (process, errors)) if timeout_s is not None else None
        if timer is not None:
            timer.start()
        try:
            output = _exchange(process, stdin)
            status = process.wait()
            reader.join(1.0)  # a child that git left behind (an ssh master) may keep the pipe open
        except BaseException:
            _end(process, errors)
            process.wait()
            raise
        finally:
            _running.pop(process, None)
            if timer is not None:
                timer.cancel()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe is not None:
                    with contextlib.suppress(OSError):
                        pipe.close()
        if status:
            what = _verb(arguments)
            if errors.stalled:
                raise GitFailed(f"git {what}: no answer for {stall_s:g} s", stderr=errors.text())
            if errors.ended and timeout_s is None:
                raise GitFailed(f"git {what} was ended with the daemon", stderr=errors.text(), ended=True)
            if errors.ended:
                raise GitFailed(f"git {what} did not finish in {timeout_s:g} s", stderr=errors.text())
            raise GitFailed(errors.reason() or f"git {what} exited with {status}", stderr=errors.text(), status=status)
        return output

    def _environment(self, variables: Mapping[str, str] | None) -> dict[str, str]:
        inherited = os.environ if self.environment is None else self.environment
        environment = {name: value for name, value in inherited.items() if name not in _REPOSITORY_VARIABLES}
        environment["LC_ALL"] = "C"
        environment["GIT_OPTIONAL_LOCKS"] = "0"
        environment["GIT_NO_LAZY_FETCH"] = "1"
        if not self.interactive:
            environment["GIT_TERMINAL_PROMPT"] = "0"
        if variables:
            environment.update(variables)
        return environment


_running: dict[subprocess.Popen[bytes], _StandardError] = {}


def end_all() -> None:
    """End every git that still runs, as this process is about to end: nobody would notice that its remote is
    silent. Those who wait for one get a GitFailed."""
    for process, errors in list(_running.items()):
        _end(process, errors)


def check_argument(value: str, what: str) -> str:
    """*value*, unless git could take it for an option or it cannot be an argument at all."""
    if not value or value.startswith("-") or "\0" in value or "\n" in value:
        raise ClivefsError(f"{value!r} cannot be {what}", remedy="Check the spelling; it must not begin with `-`.")
    return value


class _StandardError:
    """The end of what git says on standard error, without the progress lines."""

    def __init__(self, progress: Callable[[str], None] | None, stall_s: float | None) -> None:
        self._progress = progress
        self._stall_s = stall_s
        self._kept = bytearray()
        self.ended = False
        """We ended git before it was done."""
        self.stalled = False

    def drain(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        line = b""
        pipe = process.stderr.fileno()
        ready = select.poll()
        ready.register(pipe, select.POLLIN)
        while True:
            if self._stall_s is not None and not ready.poll(self._stall_s * 1000):
                self.stalled = True
                _end(process, self)
            chunk = os.read(pipe, 8192)
            if not chunk:
                break
            *whole, line = (line + chunk).replace(b"\r", b"\n").split(b"\n")
            for each in whole:
                self._take(each)
            line = line[-STDERR_BYTES_MAX:]
        self._take(line)

    def _take(self, line: bytes) -> None:
        if not line.strip():
            return
        if self._progress is not None:
            self._tell(line.decode("utf-8", "replace").rstrip())
        if b"% (" not in line:
            self._kept += line + b"\n"
            del self._kept[:-STDERR_BYTES_MAX]

    def _tell(self, line: str) -> None:
        assert self._progress is not None
        try:
            self._progress(line)
        except Exception:  # git would wait for ever for somebody to read on
            log.exception("telling the progress of git failed")
            self._progress = None

    def text(self) -> str:
        return self._kept.decode("utf-8", "replace").strip()

    def reason(self) -> str:
        """The lines that say why, without git's prefixes; empty if there are none."""
        told: list[str] = []
        goes_on = False
        lines = self.text().splitlines()
        for line in lines:
            if line.startswith(("fatal:", "error:", "ssh:", "remote: error")):
                told.append(line.removeprefix("fatal: ").removeprefix("error: ").rstrip())
                goes_on = told[-1].endswith(":")  # as `unable to connect to HOST:`, and then a line an address
            elif goes_on:
                told[-1] += " " + line.strip()
        return "; ".join((told or lines[-1:])[:3])


def _exchange(process: subprocess.Popen[bytes], stdin: bytes) -> bytes:
    """Feed *stdin* and read all of the output, at the same time."""
    assert process.stdin is not None
    assert process.stdout is not None
    writer = None
    pipe = process.stdin

    def feed() -> None:
        with contextlib.suppress(OSError):  # git may stop reading: its exit status tells why
            pipe.write(stdin)
        with contextlib.suppress(OSError):
            pipe.close()

    if len(stdin) > 4096:
        writer = threading.Thread(target=feed, daemon=True)
        writer.start()
    else:
        feed()
    output = process.stdout.read()
    if writer is not None:
        writer.join()
    return output


def _end(process: subprocess.Popen[bytes], errors: _StandardError) -> None:
    """End git and what it started (transport helpers, ssh)."""
    errors.ended = True
    with contextlib.suppress(OSError):
        if os.getpgid(process.pid) == process.pid:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _verb(arguments: Sequence[str | bytes]) -> str:
    first = arguments[0] if arguments else ""
    return first if isinstance(first, str) else os.fsdecode(first)


def config_text(sections: Mapping[str, Mapping[str, str]]) -> str:
    """A configuration file as git-config(1) describes it; sections as `core` or `remote "origin"`."""
    lines = []
    for section, values in sections.items():
        lines.append(f"[{section}]")
        for name, value in values.items():
            escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t")
            lines.append(f'\t{name} = "{escaped}"')
    return "\n".join(lines) + "\n"


def quoted_section(name: str) -> str:
    """*name* as the quoted part of a section's heading."""
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'


def alternates_text(objects: str) -> bytes:
    """The line of objects/info/alternates that leads to one other objects directory."""
    raw = os.fsencode(objects)
    if raw.startswith((b'"', b"#")) or b"\n" in raw:
        raw = os.fsencode(quoted_path(objects))
    return raw + b"\n"
