"""Entries of published modules: releases of a package index, and archives."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from clivefs.base.syscalls import make_directories
from clivefs.mounts.assembly.entry import Prepared, State
from clivefs.mounts.assembly.patching import apply_patches
from clivefs.mounts.assembly.places import Places
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.patch import layers as patchlayers
from clivefs.mounts.published.source import PublishedSource

Progress = Callable[[str], None]


class PublishedEntries:
    """Prepares them. For threads."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def prepare(self, entry: MountEntry, progress: Progress) -> Prepared:
        """A module of a package index, or an archive, unpacked into the store."""
        assert entry.kind != "git"
        assert entry.kind != "local"
        if entry.host_path is not None:
            self._places.refuse_mounted(entry.host_path, entry.location)
        source = PublishedSource(
            entry.kind,
            entry.location,
            entry.subdir or "",
            store=self._places.store,
            host_path=entry.host_path,
            strip=entry.strip,
            sha256=entry.sha256,
            limits=self._places.limits,
            answer_timeout_s=self._places.network_timeout_s,
            progress=progress,
        )
        published = source.open()
        seen = patchlayers.seen(self._places.root, entry.patches)
        patched = apply_patches(self._places, entry, self._places.store, published.tree, None)
        kept = GitTimes.read(self._places.entry_directory(self._places.upper_name(entry)))
        times = kept.at(patched.reader, patched.tree, published.time_ns, time.time_ns())
        make_directories(self._places.unpacked)
        lower = GitLower(
            dataclasses.replace(source.space(published), reader=patched.reader),
            patched.tree,
            owner=self._places.owner,
            cache_dir=self._places.unpacked,
            times=times,
            patched=patched.layers.layer,
        )
        times.save()
        return Prepared(entry, State.MOUNTED, patched.error, published=published, git_lower=lower, patches_seen=seen)
