"""clivefs mountpoints that lie inside our trees: shown as empty directories, and never touched."""

from __future__ import annotations

import logging
import os

from clivefs.daemon import recovery
from clivefs.mounts.resolve import FS_TYPE

log = logging.getLogger(__name__)


class HiddenMounts:
    """Which they are. Methods are for the loop's thread, `mount_over` for any."""

    def __init__(self, mountpoint: str) -> None:
        self._mountpoint = mountpoint
        self._hidden: dict[tuple[int, int], set[bytes]] = {}
        self._seen_mounts: list[recovery.Mount] = []
        self.refresh()

    def mount_over(self, path: str) -> str | None:
        """The clivefs mountpoint that *path* (absolute, without links) is or lies in; ours counts from before it
        is made."""
        over = recovery.clive_mount_over(path)
        if over is not None:
            return over.mountpoint
        mine = self._mountpoint
        return mine if (path + "/").startswith(mine + "/") else None

    def is_hidden(self, directory: tuple[int, int], name: bytes) -> bool:
        """Whether *name* in the host directory (st_dev, st_ino) is a clivefs mountpoint, not to be touched."""
        names = self._hidden.get(directory)
        return names is not None and name in names

    def refresh(self) -> None:
        """Look which clivefs mounts there are; our own counts from before it is made."""
        current = [mount for mount in recovery.mounts() if mount.fs_type == FS_TYPE]
        if self._hidden and current == self._seen_mounts:
            return
        self._seen_mounts = current
        hidden: dict[tuple[int, int], set[bytes]] = {}
        for mountpoint in {self._mountpoint, *(mount.mountpoint for mount in current)}:
            parent, name = os.path.split(mountpoint)
            if recovery.clive_mount_over(parent) is not None:
                continue
            try:
                st = os.stat(parent)
            except OSError as error:
                log.debug("the folder of the mountpoint %s: %s", mountpoint, error)
                continue
            hidden.setdefault((st.st_dev, st.st_ino), set()).add(os.fsencode(name))
        self._hidden = hidden
