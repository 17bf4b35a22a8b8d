"""Fetching a release with its ecosystem's own client, so that the user's mirrors, proxies and credentials apply.

`pip download` and `npm pack` are the only commands given, with no shell, nobody to ask, and an end in bounded time.
To know the metadata of an sdist pip runs its build backend, as `pip install` would: so wheels alone are asked for, and
an sdist only on demand, which its user has to permit (`config.trust`). One that cannot be built here is still worth
reading: it is then fetched from where pip found it, if the index says what its digest is.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from clivefs.base.errors import ClivefsError
from clivefs.mounts.published.fetch import download

RUN_TIMEOUT_S = 1800.0
"""The longest that a download may take which keeps moving; silence ends it far earlier."""
_NEAR = 5
_PIP_VERSIONS = re.compile(r"\(from versions: ([^)]*)\)")
_PIP_INDEX = re.compile(r"^Available versions: (.*)$", re.MULTILINE)
_PIP_GOT = re.compile(r"Got\s+([0-9a-f]{64})")
_PIP_PYTHON = re.compile(r"Ignored the following versions that require a different python version: (.*)")
_PIP_NOT_BUILT = re.compile(
    r"Failed to build|metadata-generation-failed|subprocess-exited-with-error|BackendUnavailable|BackendInvalid"
)
_PIP_FOUND = re.compile(r"Added \S+ from ((?:https?|file)://[^\s#*]+)#sha256=([0-9a-f]{64}) to build tracker")
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|NameResolution|Failed to establish|ProxyError|SSLError"
    r"|RemoteDisconnected|[Cc]onnection (?:broken|reset|refused)|Network is unreachable|[Tt]imed out"
    r"|Temporary failure in name resolution"
)
_NPM_NO_NETWORK = re.compile(
    r"E(?:CONN\w+|AI_AGAIN|TIMEDOUT|NOTFOUND|HOSTUNREACH|NETUNREACH|SOCKETTIMEDOUT)|ERR_SOCKET\w*"
)

Progress = Callable[[str], None]


class Fetched(NamedTuple):
    """An archive that a client has fetched."""

    path: str
    integrity: str | None = None
    """npm's own digest (`sha512-BASE64`), checked by npm."""


class DigestDiffers(Exception):
    """What was fetched has not the digest that was asked for; the found one is the argument. Internal."""


class _Output(NamedTuple):
    status: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class PackageClients:
    """Which programs fetch, with which environment, and how patient they are."""

    python: str = sys.executable
    """Whose pip; wheels are chosen for this interpreter."""
    npm: str = "npm"
    environment: Mapping[str, str] | None = None
    """What the clients inherit; None for this process's own."""
    answer_timeout_s: float = 30.0
    run_timeout_s: float = RUN_TIMEOUT_S

    # PyPI

    def fetch_pypi(
        self, release: str, directory: str, *, sha256: str | None, sdist: bool, bytes_max: int, progress: Progress
    ) -> Fetched:
        """Fetch *release* (`NAME==VERSION`) into *directory* (empty, ours): the wheel that pip chooses for this
        interpreter, or with *sdist* the sdist; with *sha256* the one that has this digest. ClivefsError;
        DigestDiffers."""
        verbose = "-vv"  # for `_PIP_FOUND`
        place = f"pypi:{release}"
        name, _, version = release.partition("==")
        form = ["--no-binary", name] if sdist else ["--only-binary", ":all:"]
        if sha256 is not None:  # pip chooses the file that has it
            with open(os.path.join(directory, "requirements.txt"), "w", encoding="utf-8") as file:
                file.write(f"{release} --hash=sha256:{sha256}\n")
            output = self._pip(directory, place, [verbose, *form, "--require-hashes", "-r", "requirements.txt"])
        else:
            output = self._pip(directory, place, [*([verbose] if sdist else []), *form, "--", release])
        found = _PIP_FOUND.findall(output.stdout)
        if output.status and found and _PIP_NOT_BUILT.search(output.stderr):
            progress(f"{place}: its sdist does not build here, fetching it as it is")
            url, digest = found[-1]
            return self._fetch_link(url, digest, directory, bytes_max, place, progress)
        if output.status:
            error = _pip_error(output.stderr, name, version, place)
            if "No matching distribution" not in output.stderr or _PIP_PYTHON.search(output.stderr):
                raise error
            raise self._not_found(name, version, directory, sdist) or error
        return Fetched(_only_file(os.path.join(directory, "files"), place))

    def _not_found(self, name: str, version: str, directory: str, sdist: bool) -> ClivefsError | None:
        """What the index has of *name*, wheels and sdists, where there is not what was asked for; None if pip cannot
        say."""
        place = f"pypi:{name}=={version}"
        command = [self.python, "-m", "pip", "index", "--disable-pip-version-check", "--no-color", "--no-input"]
        command += ["versions", "--pre", "--timeout", f"{self.answer_timeout_s:g}", "--retries", "1", "--", name]
        output = self._run(command, directory, place, "Install Python with pip.")
        listed = _PIP_INDEX.search(output.stdout)
        if listed is None or _NO_NETWORK.search(output.stderr):  # an index that does not answer may have it
            return None
        versions = [each.strip() for each in listed[1].split(",")]
        if version not in versions:
            return _no_version(name, version, versions, place)
        if sdist:
            return ClivefsError("there is no sdist of it", place=place, remedy="Leave `sdist` out for its wheel.")
        return ClivefsError(
            "there is no wheel of it for this Python",
            place=place,
            remedy=f"`sdist = true` ({place}#sdist) takes its sdist; pip runs the build code of that for its metadata.",
        )

    def _fetch_link(
        self, url: str, sha256: str, directory: str, bytes_max: int, place: str, progress: Progress
    ) -> Fetched:
        """Fetch the file that pip found at *url*, and whose digest the index knows."""
        if url.startswith("file:"):
            return Fetched(unquote(urlsplit(url).path))
        path = os.path.join(directory, "sdist")
        with open(path, "wb") as file:
            download(url, file, bytes_max=bytes_max, timeout_s=self.answer_timeout_s, progress=progress)
        with open(path, "rb") as file:
            actual = hashlib.file_digest(file, "sha256").hexdigest()
        if actual != sha256:
            raise ClivefsError(
                f"what was fetched has the SHA-256 {actual}, and the index says {sha256}",
                place=place,
                remedy="Try again, or another mirror.",
            )
        return Fetched(path)

    def _pip(self, directory: str, place: str, arguments: Sequence[str]) -> _Output:
        command = [self.python, "-m", "pip", "download", "--no-deps", "--no-input", "--dest", "files"]
        command += ["--retries", "1", "--progress-bar", "off"]
        command += ["--timeout", f"{self.answer_timeout_s:g}", "--disable-pip-version-check", "--no-color"]
        return self._run([*command, *arguments], directory, place, "Install Python with pip.")

    # npm

    def fetch_npm(self, release: str, directory: str, *, progress: Progress) -> Fetched:
        """Fetch *release* (`NAME@VERSION`) into *directory* (empty, ours). ClivefsError."""
        place = f"npm:{release}"
        name, _, version = release.rpartition("@")
        with open(os.path.join(directory, "package.json"), "w", encoding="utf-8") as file:
            file.write("{}\n")  # else npm takes a directory further up for the project, and obeys its settings
        os.mkdir(os.path.join(directory, "files"))
        output = self._npm(["pack", "--pack-destination", "files", "--", release], directory, place)
        answer = _json(output.stdout)
        if output.status:
            raise self._npm_error(answer, output.stderr, name, version, directory, place)
        packed = next(iter(answer.values()), None) if isinstance(answer, dict) else answer
        packed = packed[0] if isinstance(packed, list) and packed else packed
        facts = packed if isinstance(packed, dict) else {}
        found = facts.get("version")
        if isinstance(found, str) and found != version:
            raise ClivefsError(
                f"`{version}` is a range, and {found} is in it now", place=place, remedy=f"Write npm:{name}@{found}."
            )
        integrity = facts.get("integrity")
        path = _only_file(os.path.join(directory, "files"), place)
        return Fetched(path, integrity if isinstance(integrity, str) else None)

    def _npm(self, arguments: Sequence[str], directory: str, place: str) -> _Output:
        timeout_ms = int(self.answer_timeout_s * 1000)
        command = [self.npm, "--json", "--ignore-scripts", "--no-update-notifier", "--no-audit", "--no-fund"]
        command += ["--fetch-retries=1", "--fetch-retry-mintimeout=500", "--fetch-retry-maxtimeout=2000"]
        command += [f"--fetch-timeout={timeout_ms}"]
        return self._run([*command, *arguments], directory, place, "Install Node.js with npm, and put it on PATH.")

    def _npm_error(
        self, answer: object, stderr: str, name: str, version: str, directory: str, place: str
    ) -> ClivefsError:
        error = answer.get("error") if isinstance(answer, dict) else None
        facts = error if isinstance(error, dict) else {}
        code = str(facts.get("code") or "")
        summary = str(facts.get("summary") or "")
        if code == "ETARGET":
            listed = _json(self._npm(["view", "--", name, "versions"], directory, place).stdout)
            versions = [each for each in listed if isinstance(each, str)] if isinstance(listed, list) else []
            return _no_version(name, version, versions, place)
        if code == "E404":
            return _no_package(name, place)
        if _NPM_NO_NETWORK.fullmatch(code) or "network" in summary:
            return _no_answer(place, summary)
        return ClivefsError(
            f"npm: {summary or _last_line(stderr)}", place=place, remedy=f"Try `npm pack {name}@{version}`."
        )

    # Running

    def _run(self, command: Sequence[str], directory: str, place: str, remedy: str) -> _Output:
        inherited = os.environ if self.environment is None else self.environment
        environment = {**inherited, "LC_ALL": "C.UTF-8", "NO_COLOR": "1"}
        client = os.path.basename(command[0]) if command[1:3] != ["-m", "pip"] else "pip"
        with _starting:
            if _ended.is_set():
                raise _ended_error(client, place)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    cwd=directory,
                    env=environment,
                    umask=0o022,  # what it makes in the user's caches; the daemon's own is 0
                    start_new_session=True,  # no terminal to ask on, and its children end with it
                )
            except OSError as error:
                raise ClivefsError(
                    f"{client} cannot be started: {error.strerror}", place=place, remedy=remedy
                ) from error
            _running.add(process)
        try:
            stdout, stderr = process.communicate(timeout=self.run_timeout_s)
        except subprocess.TimeoutExpired:
            raise ClivefsError(
                f"{client} did not finish in {self.run_timeout_s:g} s", place=place, remedy="Check the network."
            ) from None
        finally:
            if process.poll() is None:
                _end(process)
                process.communicate()
            ended = process not in _running
            _running.discard(process)
        if ended:
            raise _ended_error(client, place)
        return _Output(process.returncode, stdout.decode("utf-8", "replace"), stderr.decode("utf-8", "replace"))


_running: set[subprocess.Popen[bytes]] = set()
_starting = threading.Lock()
_ended = threading.Event()


def end_all() -> None:
    """End every client that still runs and start no more, as this process is about to end. Those who wait for one get a
    ClivefsError."""
    with _starting:
        _ended.set()
        for process in list(_running):
            _running.discard(process)
            _end(process)


def start_again() -> None:
    """Take back `end_all`, in a process that goes on after all."""
    _ended.clear()


def _ended_error(client: str, place: str) -> ClivefsError:
    return ClivefsError(f"{client} was ended with the daemon", place=place, remedy="Mount it again.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End it and its children, which are a session of their own."""
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)


# What went wrong


def _pip_error(stderr: str, name: str, version: str, place: str) -> Exception:
    if "No module named pip" in stderr:
        return ClivefsError("pip is not installed", place=place, remedy="`python -m ensurepip` installs it.")
    got = _PIP_GOT.search(stderr)
    if "DO NOT MATCH THE HASHES" in stderr and got is not None:
        return DigestDiffers(got[1])
    if _NO_NETWORK.search(stderr) and not _PIP_NOT_BUILT.search(stderr):
        return _no_answer(place, "")
    ignored = _PIP_PYTHON.search(stderr)
    if ignored is not None and re.search(rf"(?:^|[ ;]){re.escape(version)} Requires-Python", ignored[1]):
        return ClivefsError(
            f"{version} does not run on Python {sys.version_info.major}.{sys.version_info.minor}, says its metadata",
            place=place,
            remedy="Name another release, or the URL of its archive with `archive`.",
        )
    listed = _PIP_VERSIONS.search(stderr)
    if listed is not None:
        versions = [each.strip() for each in listed[1].split(",") if each.strip() not in ("", "none")]
        return _no_version(name, version, versions, place) if versions else _no_package(name, place)
    reason = [line.removeprefix("ERROR: ") for line in stderr.splitlines() if line.startswith("ERROR: ")]
    return ClivefsError(
        f"pip: {reason[0] if reason else _last_line(stderr)}",
        place=place,
        remedy=f"Try `pip download --no-deps {name}=={version}`; the URL of an archive works with `archive`.",
    )


def _no_version(name: str, version: str, versions: Sequence[str], place: str) -> ClivefsError:
    near = near_versions(version, versions)
    remedy = f"Near it are {', '.join(near)}." if near else "Check the version."
    return ClivefsError(f"{name} has no version {version}", place=place, remedy=remedy)


def _no_package(name: str, place: str) -> ClivefsError:
    return ClivefsError(
        f"there is no package {name}, or it is not for your eyes", place=place, remedy="Check the name."
    )


def _no_answer(place: str, detail: str) -> ClivefsError:
    return ClivefsError(
        f"the package index does not answer{f' ({detail[:200]})' if detail else ''}",
        place=place,
        remedy="Check the network; what was mounted before can be mounted without one.",
    )


def near_versions(wanted: str, versions: Iterable[str]) -> list[str]:
    """Some of *versions*: the neighbours of *wanted* in order, and the newest."""
    ordered = sorted(set(versions), key=_version_key)
    if len(ordered) <= _NEAR:
        return ordered
    at = bisect.bisect_left([_version_key(each) for each in ordered], _version_key(wanted))
    start = min(max(at - _NEAR // 2, 0), len(ordered) - _NEAR)
    near = ordered[start : start + _NEAR]
    return near if ordered[-1] in near else [*near, ordered[-1]]


def _version_key(version: str) -> tuple[tuple[int, int, str], ...]:
    """Numbers by value, and what has a word where the other ends (`1.0rc1`, `1.0-beta`) before it."""
    parts = re.findall(r"\d+|[A-Za-z]+", version)
    return (*((2, int(part[:18]), "") if part.isdigit() else (0, 0, part.lower()) for part in parts), (1, 0, ""))


def _only_file(directory: str, place: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        names = os.listdir(directory)
        if len(names) == 1:
            return os.path.join(directory, names[0])
    raise ClivefsError("the client left no archive", place=place, remedy="Update the client (pip, npm).")


def _json(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "no reason given"
