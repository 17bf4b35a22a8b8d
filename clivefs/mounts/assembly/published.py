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
from clivefs.mounts.config.lockfile import Locked, verify
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.published.source import Published, PublishedSource

Progress = Callable[[str], None]


class PublishedEntries:
    """Prepares them. For threads."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def prepare(self, entry: MountEntry, progress: Progress) -> Prepared:
        """A module of a package index, or an archive, unpacked into the store."""
        return self.at(entry, self.open(entry, self._places.pin(entry), progress))

    def open(self, entry: MountEntry, pin: Locked | None, progress: Progress) -> Published:
        """What *entry* is, in the store; what *pin* says, where there is one. ClivefsError where it is not."""
        if entry.host_path is not None:
            self._places.refuse_mounted(entry.host_path, entry.location)
        published = self._source(entry, progress, pin).open()
        if pin is not None:
            verify(entry.path, pin, published.locked(entry.source), file=self._places.lock.file)
        return published

    def _source(self, entry: MountEntry, progress: Progress, pin: Locked | None = None) -> PublishedSource:
        assert entry.kind != "git"
        assert entry.kind != "local"
        return PublishedSource(
            entry.kind,
            entry.location,
            entry.subdir or "",
            store=self._places.store,
            host_path=entry.host_path,
            strip=entry.strip,
            sdist=entry.sdist,
            sha256=entry.sha256,
            locked=pin.sha256 if pin is not None else None,
            limits=self._places.limits,
            answer_timeout_s=self._places.network_timeout_s,
            progress=progress,
        )

    def at(self, entry: MountEntry, published: Published) -> Prepared:
        """The entry as what was unpacked shows it, with its patches as they are now."""
        patched = apply_patches(self._places, entry, self._places.store, published.tree, None)
        kept = GitTimes.read(self._places.entry_directory(self._places.upper_name(entry)))
        times = kept.at(patched.reader, patched.tree, published.time_ns, time.time_ns())
        make_directories(self._places.unpacked)
        lower = GitLower(
            dataclasses.replace(self._source(entry, _silent).space(published), reader=patched.reader),
            patched.tree,
            owner=self._places.owner,
            cache_dir=self._places.unpacked,
            times=times,
            patched=patched.layers.layer,
        )
        times.stage()
        return Prepared(
            entry,
            State.MOUNTED,
            patched.error,
            published=published,
            git_lower=lower,
            times=times,
            series=patched.series,
        )


def _silent(_: str) -> None:
    return None
