"""Objects that some partial clone of the store lacks, got from whichever remote has them.

A point names what an entry showed, and nothing says which entry that was: it may be gone from Clive.toml by now. So the
sources that are mounted are asked first, then every other partial clone of the store.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Sequence

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.fetch import PartialClone
from clivefs.mounts.git.source import GitSource
from clivefs.objects.repository import Repository


class PromisedObjects:
    """Gets them. Methods block and may be called from any thread."""

    def __init__(
        self,
        sources: Callable[[], Sequence[GitSource]],
        repositories: Callable[[], Iterable[Repository]],
        *,
        answer_timeout_s: float,
        git: GitCommand | None = None,
        clock: Clock | None = None,
    ) -> None:
        """*sources*: what is mounted; their `error` tells of a failure. *repositories*: all of the store.
        *answer_timeout_s*: for how long a remote may be silent."""
        self._sources = sources
        self._repositories = repositories
        self.answer_timeout_s = answer_timeout_s
        self._git = git or GitCommand()
        self._clock = clock or SystemClock()
        self._others: dict[str, PartialClone] = {}
        self._last: PartialClone | None = None

    def fetch(self, oids: Sequence[bytes]) -> None:
        """Get these objects, in as few requests as there are remotes if each has those of some neighbours in *oids*.
        OSError(EIO) where nobody has one, or who may have it does not answer."""
        clones = self._clones()
        if len(clones) == 1:
            clones[0].fetch_objects(oids)
        elif not self._found(clones, oids):
            if len(oids) == 1:
                raise OSError(errno.EIO, f"no source has {oids[0].hex()}")
            middle = len(oids) // 2
            for some in (oids[:middle], oids[middle:]):
                self.fetch(some)

    def _found(self, clones: Sequence[PartialClone], oids: Sequence[bytes]) -> bool:
        """Whether one of *clones* has got all of *oids* now; False where everybody says that he has not."""
        unanswered: OSError | None = None
        for clone in clones:
            try:
                if clone.fetch_if_there(oids):
                    self._last = clone
                    return True
            except OSError as error:
                unanswered = unanswered or error
        if unanswered is not None:
            raise unanswered
        return False

    def _clones(self) -> list[PartialClone]:
        """Who may have something, the most likely first."""
        found = {clone.path: clone for source in self._sources() for clone in source.partial_clones()}
        for repository in self._repositories():
            path = repository.gitdir
            if path not in found and repository.is_partial:
                clone = self._others.get(path) or self._other(path)
                if clone is not None:
                    found[path] = self._others[path] = clone
        return sorted(found.values(), key=lambda clone: clone is not self._last)

    def _other(self, path: str) -> PartialClone | None:
        try:
            url = os.fsdecode(self._git.run(["config", "--get", "remote.origin.url"], git_dir=path)).strip()
        except (GitFailed, ClivefsError):
            return None
        return PartialClone(path, url, git=self._git, clock=self._clock, answer_timeout_s=self.answer_timeout_s)
