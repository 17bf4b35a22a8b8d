"""The patches of an entry, applied on what its source has."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from clivefs.mounts.assembly.places import Places
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.git.space import Reader
from clivefs.mounts.patch import layers as patchlayers
from clivefs.mounts.patch.files import Series, read_series


def read_patches(places: Places, entry: MountEntry) -> Series:
    """The patches of *entry* as the mount shows them now. For threads."""
    if not entry.patches or entry.write == "through":
        return Series()
    return read_series(places.files, places.root, entry.patches)


def apply_patches(
    places: Places,
    entry: MountEntry,
    reader: Reader,
    tree: bytes,
    fetch: Callable[[Sequence[bytes]], None] | None,
) -> patchlayers.Patched:
    """*tree* of *reader* with the patches of *entry* as they are now. *fetch* gets objects that are not here yet."""
    return patchlayers.apply_patches(
        places.store,
        reader,
        tree,
        series=read_patches(places, entry),
        scratch=scratch_directory(os.fspath(places.store.path)),
        fetch=fetch,
    )
