"""Where a workspace's entries keep what is theirs, and what all of them need to be made."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories, mount_id
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.config.lockfile import Lock, Locked
from clivefs.mounts.ownfiles import OwnFiles
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.resolve import FS_TYPE, mount_types, resolve_links
from clivefs.mounts.tree import Owner
from clivefs.objects.store import Store


@dataclass(slots=True)
class Places:
    """The surroundings of one workspace's entries."""

    store: Store
    workspace_id: str
    root: str
    owner: Owner
    unpacked: str
    """Where large and converted content becomes plain files."""
    limits: ArchiveLimits
    network_timeout_s: float
    mount_over: Callable[[str], str | None]
    """The clivefs mountpoint that a path (absolute, without links) is or lies in; no source may."""
    files: OwnFiles
    """The workspace's own, as the mount shows them."""
    lock: Lock = field(default_factory=lambda: Lock("", {}))

    def pin(self, entry: MountEntry) -> Locked | None:
        """What Clive.lock says of *entry*, as it is now."""
        return self.lock.entry(entry.path, entry.source)

    def identity(self, path: str) -> bytes:
        return self.workspace_id.encode() + b"\0" + os.fsencode(path)

    def upper_name(self, entry: MountEntry) -> str:
        """One upper for each (path, source): replacing a source and coming back finds the edits again."""
        return upper_name(self.workspace_id, entry)

    def upper(self, name: str) -> int:
        return os.open(self.entry_directory(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def entry_directory(self, name: str) -> str:
        path = os.path.join(os.fspath(self.store.path), "uppers", self.workspace_id, name)
        make_directories(path)
        return path

    def refuse_mounted(self, path: str, named: str) -> None:
        """A source must not lie in a clivefs mount, be it by links: reading it we would wait for ourselves."""
        mountpoint = self.mount_over(resolve_links(path))
        if mountpoint is not None:
            raise ClivefsError(
                f"it lies in the clivefs mount at {mountpoint}", place=named, remedy="name a place outside of it"
            )

    def open_directory(self, path: str, named: str) -> int:
        self.refuse_mounted(path, named)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ClivefsError(
                f"the directory cannot be opened: {error.strerror}", place=named, remedy="check the path"
            ) from None
        if mount_types().get(mount_id(fd)) == FS_TYPE:  # a link was turned between the look and the open
            os.close(fd)
            raise ClivefsError("it lies in a clivefs mount", place=named, remedy="name a place outside of it")
        return fd


def upper_name(workspace_id: str, entry: MountEntry) -> str:
    """The name of the upper, and of the private gitdir, of *entry*."""
    key = os.fsencode(entry.path) + b"\0" + source_identity(entry)
    return f"{workspace_id}-{sha256(key).hexdigest()[:16]}"


def source_identity(entry: MountEntry) -> bytes:
    """What tells the source of *entry* from others; not its ref or version."""
    form = "#sdist" if entry.sdist else ""
    return os.fsencode(f"{entry.kind}:{entry.host_path or entry.location}#{entry.subdir or ''}{form}")
