"""One mounted workspace, alive."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import trio

from clivefs.daemon.lock import Lock
from clivefs.mounts.assembly.assembly import Assembly
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.config.config import Workspace
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.synthetic import SyntheticDirectory


class LiveWorkspace:
    """One mounted workspace."""

    def __init__(self, workspace_id: str, settings: Workspace, assembly: Assembly, lock: Lock) -> None:
        self.id = workspace_id
        self.settings = settings
        self.assembly = assembly
        self.lock = lock
        try:
            self.root_tree = assembly.root_tree(settings)
        except BaseException:
            lock.release()
            raise
        self.control: SyntheticDirectory | None = None
        self.entries: dict[str, Mounted] = {}
        self.error: str | None = None
        """Why the newest Clive.toml is not what is mounted."""
        self.recording: Callable[[], dict[str, Any]] = dict
        """What `status` says of its recording."""
        self.user_ignore = b""
        """What git ignores everywhere, as it was when the recording began."""
        self.reloading = trio.Lock()
        self.recording_now = trio.Lock()
        """Held by whoever records, and by a change that no point may have half of; taken last."""
        self.changing = trio.Lock()
        """Held while its trees are changed in steps, and while one of them goes or another takes its place."""
        self.going_back = trio.Lock()
        """Held while restore, undo or redo changes it."""
        self._entry_locks: dict[str, trio.Lock] = {}

    def entry_lock(self, path: str) -> trio.Lock:
        """To be held from before the entry at *path* is prepared until it is shown; taken after `reloading`."""
        return self._entry_locks.setdefault(path, trio.Lock())

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def root(self) -> str:
        return self.settings.root

    @property
    def directory(self) -> Hashable:
        """The workspace's own directory, as the watcher names it."""
        tree = self.root_tree
        return tree.lower.root if isinstance(tree, OverlayTree) else tree.root

    def watch_directory(self) -> None:
        """Hear of changes of Clive.toml, whether or not anybody looks into the directory."""
        tree = self.root_tree
        if isinstance(tree, HostTree):
            tree.watch(tree.root)
        elif isinstance(tree, OverlayTree) and isinstance(tree.lower, LocalLower):
            tree.lower.watch(tree.lower.root)
