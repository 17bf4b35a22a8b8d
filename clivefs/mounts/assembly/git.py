"""Entries of git refs: resolved, at their place, and moved with their working tree."""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories
from clivefs.mounts.assembly.entry import Mounted, Prepared, State
from clivefs.mounts.assembly.patching import apply_patches
from clivefs.mounts.assembly.places import Places
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.git.attributes import GitAttributes
from clivefs.mounts.git.conflicts import Copy, InTheWay, in_the_way
from clivefs.mounts.git.gitdir import GitDir, Moved
from clivefs.mounts.git.index import stat_from
from clivefs.mounts.git.location import borrowed
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.submodules import GitSubmodules
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.patch import layers as patchlayers

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


class GitEntries:
    """Prepares them. For threads."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def prepare(self, entry: MountEntry, progress: Progress, *, look_only: bool) -> Prepared:
        source = GitSource(
            entry.location,
            entry.ref or "HEAD",
            entry.subdir or "",
            base_dir=self._places.root,
            store_dir=os.fspath(self._places.store.path),
            progress=progress,
            answer_timeout_s=self._places.network_timeout_s,
            store=self._places.store,
        )
        if source.location.path is not None:
            self._places.refuse_mounted(source.location.path, entry.location)
        resolved = source.open()
        for repository in {resolved.repository, source.refs}:
            for path in (repository.gitdir, repository.commondir, *borrowed(repository.objects)):
                self._places.refuse_mounted(path, entry.location)
        if look_only:
            return Prepared(entry, State.MOUNTED, source=source, resolved=resolved)
        return self.at(entry, source, resolved, None)

    def at(self, entry: MountEntry, source: GitSource, resolved: Resolved, git_dir: GitDir | None) -> Prepared:
        """The entry at *resolved*; or where its git working tree is, if that does not follow."""
        state = State.MOUNTED
        error = None
        copies: list[Copy] = []
        if entry.git_dir and entry.write == "overlay" and not entry.subdir:
            path = os.path.join(os.fspath(self._places.store.path), "gitdirs", self._places.upper_name(entry))
            make_directories(os.path.dirname(path))
            git_dir = git_dir or GitDir.create_or_open(path, resolved, source)
            if git_dir.base != resolved.commit:
                base = git_dir.base
                tree = resolved.repository.read_commit(base).tree
                covering = InTheWay(None, [])
                if git_dir.head() == base:
                    upper = self._places.entry_directory(self._places.upper_name(entry))
                    covering = in_the_way(upper, resolved.repository, tree, resolved.tree)
                if covering.edit is not None or self._move(git_dir, entry, source, resolved) is Moved.BEHIND:
                    state = State.BEHIND
                    work = f"an edit of {os.fsdecode(covering.edit)!r}" if covering.edit is not None else "work"
                    error = (
                        f"the ref is at {resolved.commit.hex()[:12]} now; there is {work} of yours on "
                        f"{base.hex()[:12]}: stash it, or commit it and `git pull`"
                    )
                    resolved = dataclasses.replace(resolved, commit=base, tree=tree)
                else:
                    copies = covering.copies
        seen = patchlayers.seen(self._places.root, entry.patches)
        lower, times, unpatched = self._git_lower(entry, source, resolved)
        times.save()
        return Prepared(
            entry,
            state,
            error or unpatched,
            source=source,
            resolved=resolved,
            git_dir=git_dir,
            git_lower=lower,
            copies=copies,
            patches_seen=seen,
        )

    def _move(self, git_dir: GitDir, entry: MountEntry, source: GitSource, resolved: Resolved) -> Moved:
        lower, _, _ = self._git_lower(entry, source, resolved)
        try:
            return git_dir.move(resolved, stat_from(lower), source)
        finally:
            lower.close()

    def _git_lower(
        self, entry: MountEntry, source: GitSource, resolved: Resolved
    ) -> tuple[GitLower, GitTimes, str | None]:
        """The layer with its patches; its times, which are to be saved when it is shown; why a patch did not apply."""
        directory = self._places.entry_directory(self._places.upper_name(entry))
        fetch = source.fetch_objects if source.lazy else None
        patched = apply_patches(self._places, entry, resolved.repository, resolved.tree, fetch)
        reader = patched.reader if patched.tree != resolved.tree else resolved.repository
        times = GitTimes.read(directory).at(patched.reader, patched.tree, resolved.commit_time_ns, time.time_ns())
        make_directories(self._places.unpacked)
        converter = GitAttributes(self._places.unpacked, info_attributes=source.info_attributes())
        lower = GitLower(
            dataclasses.replace(source.space(resolved, converter), reader=reader),
            patched.tree,
            owner=self._places.owner,
            cache_dir=self._places.unpacked,
            times=times,
            submodules=GitSubmodules(source, resolved, timeout_s=self._places.network_timeout_s),
            fetch_timeout_s=self._places.network_timeout_s,
            patched=patched.layers.layer,
        )
        return lower, times, patched.error

    def poll(self, mounted: Mounted) -> Prepared | None:
        """News of a followed entry, if there are any."""
        source = mounted.source
        assert source is not None
        try:
            resolved = source.poll()
        except (OSError, ClivefsError):
            return None  # `source.error` says why, and `status` shows it
        git_dir = mounted.git_dir
        if mounted.state == State.BEHIND and git_dir is not None:
            facts = git_dir.facts()
            if resolved is None and facts == mounted.behind_at:
                return None
            mounted.behind_at = facts
            resolved = resolved or source.current
        if resolved is None:
            return None
        prepared = self.at(mounted.entry, source, resolved, git_dir)
        if mounted.state == prepared.state == State.BEHIND:
            mounted.error = prepared.error
            prepared.discard()
            return None
        return prepared


def build_index(prepared: Prepared, lower: GitLower) -> None:
    """Write the index of the entry's git working tree. Where all blobs are wanted they are fetched first: git
    then has every size, and reads nothing."""
    assert prepared.git_dir is not None
    source, resolved = prepared.source, prepared.resolved
    if source is not None and resolved is not None and source.lazy and prepared.entry.fetch == "all":
        try:
            source.fetch_all(resolved)
        except (OSError, ClivefsError) as error:
            log.info("%s: the index is made without some sizes: %s", prepared.entry.path, error)
    prepared.git_dir.build_index(stat_from(lower))
