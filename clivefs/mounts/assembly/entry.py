"""A mount entry on its way: what was found for it (`Prepared`), and how it is shown (`Mounted`)."""

from __future__ import annotations

import enum
import errno
import logging
import os
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.config.lockfile import Locked
from clivefs.mounts.git.conflicts import Copy
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.move import Staged
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.lower import Lower
from clivefs.mounts.patch.files import Series
from clivefs.mounts.published.source import Published
from clivefs.mounts.tree import Tree

log = logging.getLogger(__name__)

_RETRY_S = 10.0
"""How long after a failure an entry is tried again by itself."""
_CLIENT_RETRY_S = 120.0
"""The same where trying starts pip or npm."""
_LOCAL_POLL_S = 1.0
_REMOTE_POLL_S = 30.0
_KEEP_RETRY_S = 30.0


class State(enum.StrEnum):
    """What `status` says of an entry."""

    MOUNTED = "mounted"
    ERROR = "error"
    NOT_ALLOWED = "not-allowed"
    BEHIND = "behind"
    """The ref has moved, and git work in the mount keeps the entry where it is."""


@dataclass(slots=True)
class Prepared:
    """What is known of an entry before anything of it is shown."""

    entry: MountEntry
    state: State
    error: str | None = None
    root_fd: int | None = None
    """An open local directory; owned by `build`."""
    source: GitSource | None = None
    resolved: Resolved | None = None
    git_dir: GitDir | None = None
    git_lower: GitLower | None = None
    times: GitTimes | None = None
    """Those of `git_lower`, staged."""
    move: Staged | None = None
    """What brings the git working tree to `resolved`, to be done when that is shown."""
    base: Resolved | None = None
    """With *move*: where the entry has been until then, and..."""
    base_lower: GitLower | None = None
    """...what its edits are over there."""
    published: Published | None = None
    series: Series = field(default_factory=Series)
    """The patches that were applied, or were to be."""
    copies: list[Copy] = field(default_factory=list)
    """Files of the upper layer that cover what the entry moves to, and are no edits."""
    overtaken: bool = False
    """Somebody has since written to what it moves (see `Assembly.look_over`)."""

    def discard(self) -> None:
        """It is not to be shown."""
        if self.root_fd is not None:
            os.close(self.root_fd)
            self.root_fd = None
        for lower in (self.git_lower, self.base_lower):
            if lower is not None:
                lower.close()
        if self.times is not None:
            self.times.discard()
        if self.move is not None:
            self.move.discard()


@dataclass(slots=True)
class Mounted:
    """An entry as it is shown."""

    entry: MountEntry
    tree: Tree
    state: State
    error: str | None
    lower: Lower | None = None
    source: GitSource | None = None
    resolved: Resolved | None = None
    git_dir: GitDir | None = None
    published: Published | None = None
    series: Series = field(default_factory=Series)
    """The patches that were applied, or were to be."""
    locked: Locked | None = None
    """What Clive.lock says of it."""
    looked_at: float = field(default_factory=time.monotonic)
    behind_at: tuple[bytes | None, int, bool, bytes] | None = None
    """While it is behind: what its git working tree was when it last could not move."""
    has_blobs: bool = False
    """All blobs are here, of an entry that wants them all."""
    fetch_again_at: float = 0.0
    _settled: bool = False
    """What its git working tree stands on is kept."""
    _keeping: threading.Lock = field(default_factory=threading.Lock)
    _keep_again_at: float = 0.0
    _keep_error: str | None = None
    _closed: bool = False

    def same_as(self, entry: MountEntry) -> bool:
        """Whether *entry* asks for what is mounted; its place in the file does not count."""
        return _without_line(self.entry) == _without_line(entry)

    def is_as(self, pin: Locked | None) -> bool:
        """Whether the entry would be shown as it is if Clive.lock said *pin*."""
        if pin == self.locked:
            return True
        if self.state != State.MOUNTED:
            return False
        if self.published is not None:
            found = self.published.locked(self.entry.source)
            return pin is None or pin._replace(integrity=None) == found._replace(integrity=None)
        if self.resolved is None or self.entry.follow:
            return True
        if pin is None or pin.commit != self.resolved.commit.hex():
            return False
        return pin.tree == self.resolved.repository.read_commit(self.resolved.commit).tree.hex()

    def due(self) -> bool:
        """Whether it is time to look at the source again."""
        age = time.monotonic() - self.looked_at
        if self.state == State.ERROR:
            return age >= (_RETRY_S if self.entry.kind in ("git", "local") else _CLIENT_RETRY_S)
        if self.source is None:
            return False
        if not self.entry.follow:
            return self.state == State.BEHIND and age >= _LOCAL_POLL_S
        return age >= (_LOCAL_POLL_S if self.source.location.url is None else _REMOTE_POLL_S)

    @property
    def is_patched(self) -> bool:
        """Whether its patches have to be looked after."""
        return self.series.looked is not None and self.state in (State.MOUNTED, State.BEHIND)

    def wants_blobs(self, now_s: float) -> bool:
        """Whether `fetch_blobs` should run now."""
        if self.has_blobs or self.entry.fetch != "all" or self.source is None or not self.source.lazy:
            return False
        return now_s >= self.fetch_again_at

    def fetch_blobs(self) -> None:
        """Get every blob that is missing. For threads; a failure is in `source.error`."""
        assert self.source is not None
        assert self.resolved is not None
        try:
            self.source.fetch_all(self.resolved, lambda: self._closed)
            self.has_blobs = not self._closed
        except (OSError, ClivefsError) as error:
            log.info("%s: blobs are still missing: %s", self.entry.path, error)

    def wants_keeping(self) -> bool:
        """Whether `keep` should run now."""
        if self.source is None or (self._settled and self.source.is_kept):
            return False
        return time.monotonic() >= self._keep_again_at

    def keep(self) -> None:
        """Make the store own what is shown of a repository of the user. For threads."""
        assert self.source is not None
        try:
            with self._keeping:
                if self.git_dir is not None:
                    self.git_dir.settle(self.source)
                else:
                    self.source.keep()
                self._settled = True
        except (OSError, ClivefsError) as error:
            if isinstance(error, OSError) and error.errno == errno.ECANCELED:
                return
            self._keep_again_at = time.monotonic() + _KEEP_RETRY_S
            if self._keep_error != str(error):
                self._keep_error = str(error)
                log.warning("%s is not kept, `git gc` in its source may take it away: %s", self.entry.path, error)

    def describe(self) -> dict[str, Any]:
        """The entry's object of `status --json`."""
        error = self.error
        if error is None and self.source is not None:
            error = self.source.error
        facts: dict[str, Any] = {
            "path": self.entry.path,
            "source": self.entry.source,
            "write": self.entry.write,
            "state": str(self.state),
            "error": error,
        }
        if self.locked is not None:
            facts["locked"] = self.locked.commit or self.locked.sha256
        if self.published is not None:
            facts["version"] = self.published.version
            facts["sha256"] = self.published.sha256
        if self.resolved is not None:
            facts["ref"] = self.resolved.commit.hex()
            facts["head"] = self.resolved.commit.hex()
            if self.git_dir is not None:
                head = self.git_dir.head()
                facts["head"] = head.hex() if head is not None else None
        return facts

    def close(self) -> None:
        self._closed = True
        self.tree.close()


def _without_line(entry: MountEntry) -> tuple[Any, ...]:
    return tuple(getattr(entry, name) for name in entry.__struct_fields__ if name != "line")
