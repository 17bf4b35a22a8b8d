"""Bare repositories of the store that stock git fetches into: partial clones, blobs on demand. From a server of files
that does not know git ("dumb" http) there is nothing on demand: its clones are whole.

Everything that talks to a git remote is here. One process at a time fetches into a repository (a lock
file beside it). After a failure that took long, further requests fail at once for as long as that, so
that a walk over many directories of an unreachable source does not wait for each of them; after that the
remote is asked again: nothing needs to be done when it is back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock
from clivefs.base.syscalls import make_directories
from clivefs.mounts.git.command import GitCommand, GitFailed, alternates_text, config_text
from clivefs.mounts.git.inuse import InUse

log = logging.getLogger(__name__)

PAUSE_S_MAX = 30.0
_SECOND_NS = 1_000_000_000
_HEADS = "+refs/heads/*:refs/heads/*"
_TAGS = "+refs/tags/*:refs/tags/*"
_FETCH = ("fetch", "--progress", "--no-tags", "--no-write-fetch-head", "--recurse-submodules=no")


def repository_path(store_dir: str, identity: str) -> str:
    """Where the store keeps what is fetched for *identity* (a URL)."""
    return os.path.join(store_dir, "repositories", sha256(os.fsencode(identity)).hexdigest()[:40] + ".git")


class PartialClone:
    """One bare repository and its remote. Every method blocks; safe from any thread and process."""

    def __init__(
        self,
        path: str,
        url: str,
        *,
        git: GitCommand,
        clock: Clock,
        answer_timeout_s: float,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """*answer_timeout_s*: for how long the remote may be silent."""
        self.path = path
        self.url = url
        self.error: str | None = None
        """Why the last request failed; None after one that did not."""
        self.in_use: InUse | None = None
        """Keeps it from being collected; after `clone` or `borrow`."""
        self._git = git
        self._clock = clock
        self._answer_timeout_s = answer_timeout_s
        self._progress = progress
        self._pause_until_ns = 0
        self._mine = threading.RLock()

    @property
    def objects_dir(self) -> str:
        return os.path.join(self.path, "objects")

    # Making it

    def clone(self) -> None:
        """Fetch all refs, with history but without blobs, unless that was done before. All or nothing.

        ClivefsError when there is no such repository or it cannot be reached.
        """
        with self._locked():
            if self._is_there():
                return
            temporary = self._temporary()
            try:
                self._create(temporary, partial=True)
                try:
                    if not self._knows_git(temporary):
                        # Git would ask for what is missing while it asks for what is missing, without end.
                        self._create(temporary, partial=False)
                    self._fetch_refs(temporary)
                except GitFailed as error:
                    self.error = f"{self.url}: {error.message}"
                    raise ClivefsError(
                        f"the repository could not be fetched: {error.message}",
                        place=self.url,
                        remedy=f"Check the URL and the network: `git ls-remote {self.url}` must work.",
                    ) from error
                self._publish(temporary)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
            self.error = None

    def borrow(self, objects_dir: str) -> None:
        """Make it, unless it is there, without asking the remote: a repository that sees the objects of
        *objects_dir* and fetches what is missing there."""
        with self._locked():
            if self._is_there():
                return
            temporary = self._temporary()
            self._create(temporary, partial=True)
            write_whole(os.path.join(temporary, "objects", "info", "alternates"), alternates_text(objects_dir))
            self._publish(temporary)

    def _is_there(self) -> bool:
        """Whether it was made before; if so it is held."""
        with contextlib.suppress(FileNotFoundError):
            self.in_use = InUse(self.path)
            return True
        return False

    def _publish(self, temporary: str) -> None:
        self.in_use = InUse(temporary)
        os.rename(temporary, self.path)

    def _temporary(self) -> str:
        """A path to make it at. What others left at theirs is removed: they are dead, we hold the lock."""
        directory, name = os.path.split(self.path)
        for each in os.listdir(directory):
            if each.startswith(name + ".") and each.endswith(".new"):
                shutil.rmtree(os.path.join(directory, each), ignore_errors=True)
        return f"{self.path}.{os.getpid()}.new"

    def _create(self, path: str, *, partial: bool) -> None:
        for part in (("objects", "info"), ("objects", "pack"), ("refs", "heads")):
            make_directories(os.path.join(path, *part))
        sections = {
            "core": {"repositoryformatversion": "1", "bare": "true"},
            'remote "origin"': {"url": self.url},
            "gc": {"auto": "0"},
            "maintenance": {"auto": "false"},
        }
        if partial:
            sections["extensions"] = {"partialClone": "origin"}
            sections['remote "origin"'].update({"promisor": "true", "partialclonefilter": "blob:none"})
        write_whole(os.path.join(path, "config"), os.fsencode(config_text(sections)))
        write_whole(os.path.join(path, "HEAD"), b"ref: refs/heads/main\n")

    @functools.cached_property
    def is_partial(self) -> bool:
        """Whether objects may be missing that the remote has. After `clone` or `borrow`."""
        return _is_partial(self.path)

    # Asking the remote

    def _knows_git(self, path: str) -> bool:
        """Whether the remote speaks git's own protocol: its packets (gitprotocol-common(5)) are seen when it is asked
        for its refs. GitFailed."""
        if not self.url.lower().startswith(("http://", "https://")):
            return True
        trace = os.path.abspath(os.path.join(path, "packets"))
        self._git.run(
            ["ls-remote", "origin", "HEAD"],
            git_dir=path,
            stall_s=self._answer_timeout_s,
            variables={"GIT_TRACE_PACKET": trace},
        )
        try:
            size = os.stat(trace).st_size
        except FileNotFoundError:
            return False
        os.unlink(trace)
        return size > 0

    def update(self, commit: str | None = None) -> None:
        """Bring all branches and tags up to date, and get *commit* (an id) if the remote gives it out.
        OSError(EIO)."""

        def ask() -> None:
            self._fetch_refs(self.path)
            if commit is not None:
                with contextlib.suppress(GitFailed):  # the look-up that follows says that it is unknown
                    self._fetch(self.path, [commit])

        self._request(ask)

    def update_branch(self, branch: str) -> None:
        """Bring one branch up to date. OSError(EIO)."""
        self._request(lambda: self._fetch(self.path, [f"+refs/heads/{branch}:refs/heads/{branch}"]))

    def fetch_objects(self, oids: Sequence[bytes]) -> None:
        """Get objects by name, in one request. OSError(EIO)."""
        self._request(lambda: self._fetch_named(oids))

    def fetch_if_there(self, oids: Sequence[bytes]) -> bool:
        """As `fetch_objects`, but False where the remote says that it does not have one of them. OSError(EIO)."""
        there = True

        def ask() -> None:
            nonlocal there
            try:
                self._ask_for(oids)
            except GitFailed as error:
                if not _is_unknown(error):
                    raise
                there = False

        self._request(ask)
        return there

    def _fetch_refs(self, path: str) -> None:
        self._fetch(path, [_HEADS, _TAGS], prune=True)
        head = self._git.run(
            ["ls-remote", "--symref", "origin", "HEAD"], git_dir=path, timeout_s=self._answer_timeout_s
        )
        for line in head.splitlines():
            if line.startswith(b"ref: refs/heads/") and line.endswith(b"\tHEAD"):
                write_whole(os.path.join(path, "HEAD"), line.split(b"\t")[0] + b"\n")

    def _fetch(self, path: str, refspecs: Sequence[str], *, prune: bool = False) -> None:
        options = ["--prune"] if prune else []
        if not _is_partial(path):
            self._run([*_FETCH, *options, "origin", *refspecs], path)
            return
        try:
            self._run([*_FETCH, *options, "--filter=blob:none", "origin", *refspecs], path)
        except GitFailed as error:
            if "filter" not in error.stderr:
                raise
            self._run([*_FETCH, *options, "--no-filter", "origin", *refspecs], path)  # its transport has no filters

    def _ask_for(self, oids: Sequence[bytes]) -> None:
        self._run(
            [*_FETCH, "--filter=blob:none", "--stdin", "origin"],
            self.path,
            config=["fetch.negotiationAlgorithm=noop"],
            stdin=b"".join(oid.hex().encode() + b"\n" for oid in oids),
        )

    def _fetch_named(self, oids: Sequence[bytes]) -> None:
        try:
            self._ask_for(oids)
        except GitFailed as error:
            if not _is_unknown(error):
                raise
            # This server gives out nothing but what its refs lead to: then everything, once.
            self._run([*_FETCH, "--refetch", "--no-filter", "origin", _HEADS, _TAGS], self.path)

    def _run(self, arguments: Sequence[str], path: str, *, config: Sequence[str] = (), stdin: bytes = b"") -> None:
        self._git.run(
            arguments,
            git_dir=path,
            config=config,
            stdin=stdin,
            stall_s=self._answer_timeout_s,
            progress=self._progress,
        )

    def _request(self, ask: Callable[[], None]) -> None:
        begun_ns = self._clock.monotonic_ns()
        if begun_ns < self._pause_until_ns and self.error is not None:
            raise OSError(errno.EIO, self.error)
        try:
            with self._locked():
                begun_ns = self._clock.monotonic_ns()
                ask()
        except GitFailed as error:
            ended_ns = self._clock.monotonic_ns()
            self._pause_until_ns = ended_ns + min(ended_ns - begun_ns, int(PAUSE_S_MAX * _SECOND_NS))
            self.error = f"{self.url}: {error.message}"
            log.info("fetching failed: %s", self.error)
            raise OSError(errno.EIO, self.error) from error
        self.error = None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread of one process at a time."""
        with self._mine:
            make_directories(os.path.dirname(self.path))
            fd = os.open(self.path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)


def _is_unknown(error: GitFailed) -> bool:
    """Whether the server has refused what was asked for by name."""
    return "unadvertised" in error.stderr or "not our ref" in error.stderr


def _is_partial(path: str) -> bool:
    with open(os.path.join(path, "config"), encoding="utf-8", errors="surrogateescape") as file:
        return "partialClone" in file.read()


def write_whole(path: str, content: bytes) -> None:
    """Put *content* at *path*: the old file or the whole new one, whatever happens."""
    temporary = path + ".new"
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)
