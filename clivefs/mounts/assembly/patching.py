"""The patches of an entry, applied on what its source has."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from clivefs.mounts.assembly.places import Places
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.git.lower import Reader
from clivefs.mounts.patch import layers as patchlayers


def apply_patches(
    places: Places,
    entry: MountEntry,
    reader: Reader,
    tree: bytes,
    fetch: Callable[[Sequence[bytes]], None] | None,
) -> patchlayers.Patched:
    """The *tree* of *reader* with the patches of *entry*. *fetch* gets objects that are not here yet."""
    return patchlayers.apply_patches(
        places.store,
        reader,
        tree,
        root=places.root,
        patterns=entry.patches if entry.write != "through" else (),
        scratch=scratch_directory(os.fspath(places.store.path)),
        fetch=fetch,
    )
