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
from clivefs.mounts.config.lockfile import Locked, verify
from clivefs.mounts.config.source_notation import COMMIT
from clivefs.mounts.git import worktrees
from clivefs.mounts.git.attributes import GitAttributes
from clivefs.mounts.git.conflicts import InTheWay, in_the_way
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.index import stat_from
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.submodules import GitSubmodules
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.git.users import User, note_use
from clivefs.mounts.overlay.upper import TREE
from clivefs.mounts.patch import layers as patchlayers
from clivefs.objects.errors import UnknownRef

log = logging.getLogger(__name__)

Progress = Callable[[str], None]


class GitEntries:
    """Prepares them. For threads."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def prepare(self, entry: MountEntry, progress: Progress, *, look_only: bool, over_edits: bool = False) -> Prepared:
        pin = None if entry.follow else self._places.pin(entry)
        if pin is None:
            source, resolved = self._open(entry, entry.ref or "HEAD", progress)
        else:
            source, resolved = self.locked(entry, pin, progress)
        if look_only:
            return Prepared(entry, State.MOUNTED, source=source, resolved=resolved)
        return self.at(entry, source, resolved, None, over_edits=over_edits)

    def locked(self, entry: MountEntry, pin: Locked, progress: Progress) -> tuple[GitSource, Resolved]:
        """*entry* at the commit that Clive.lock says, wherever its ref is by now. ClivefsError."""
        assert pin.commit is not None
        try:
            source, resolved = self._open(entry, pin.commit, progress)
        except UnknownRef as error:
            raise ClivefsError(
                f"Clive.lock says commit {pin.commit}, and there is none",
                place=entry.location,
                remedy=f"`clivefs lock {entry.path}` takes the one that the ref is at now.",
            ) from error
        verify(entry.path, pin, _locked(entry, resolved), file=self._places.lock.file)
        ref = entry.ref or "HEAD"
        return source, dataclasses.replace(resolved, ref=ref, symbolic_ref=_full_name(ref, source))

    def look_up(self, entry: MountEntry, progress: Progress) -> Locked:
        """What *entry* is to be locked to: where its ref is now. Asks a remote. ClivefsError, OSError."""
        source, resolved = self._open(entry, entry.ref or "HEAD", progress)
        if not COMMIT.fullmatch(entry.ref or ""):
            resolved = source.poll() or resolved
        return _locked(entry, resolved)

    def revision(self, entry: MountEntry, revision: str) -> tuple[GitSource, Resolved]:
        """Any revision of the entry's repository. ClivefsError, OSError."""
        return self._open(entry, revision, lambda text: log.debug("%s: %s", entry.path, text))

    def revision_lower(self, source: GitSource, resolved: Resolved) -> GitLower:
        """What the entry would show at *resolved*, without patches and edits."""
        make_directories(self._places.unpacked)
        converter = GitAttributes(self._places.unpacked, info_attributes=source.info_attributes())
        return GitLower(
            source.space(resolved, converter),
            resolved.tree,
            owner=self._places.owner,
            cache_dir=self._places.unpacked,
            fetch_timeout_s=self._places.network_timeout_s,
        )

    def _open(self, entry: MountEntry, ref: str, progress: Progress) -> tuple[GitSource, Resolved]:
        source = GitSource(
            entry.location,
            ref,
            entry.subdir or "",
            base_dir=self._places.root,
            store_dir=os.fspath(self._places.store.path),
            progress=progress,
            answer_timeout_s=self._places.network_timeout_s,
            store=self._places.store,
            check_path=lambda path: self._places.refuse_mounted(path, entry.location),
            user=User(self._places.workspace_id, entry.location),
        )
        resolved = source.open()
        return source, resolved

    def at(
        self,
        entry: MountEntry,
        source: GitSource,
        resolved: Resolved,
        git_dir: GitDir | None,
        *,
        over_edits: bool = False,
    ) -> Prepared:
        """The entry at *resolved*, with its git working tree ready to move there; or where that is, if it does not
        follow. *over_edits*: see `Assembly.prepare`."""
        if _has_git_dir(entry):
            path = self._git_dir_path(entry)
            make_directories(os.path.dirname(path))
            if git_dir is None:
                git_dir = GitDir.create_or_open(path, resolved, source)
                note_use(self._places.store, f"gitdirs/{os.path.basename(path)}")
            if git_dir.base != resolved.commit:
                return self._moved(entry, source, resolved, git_dir, over_edits)
        return self._prepared(entry, source, resolved, git_dir)

    def _git_dir_path(self, entry: MountEntry) -> str:
        return os.path.join(os.fspath(self._places.store.path), "gitdirs", self._places.upper_name(entry))

    def free_submodules(self, entry: MountEntry) -> None:
        """See that git finds the submodules of *entry*, which is not shown yet, at this mountpoint too."""
        if _has_git_dir(entry):
            upper = self._places.entry_directory(self._places.upper_name(entry))
            worktrees.free(self._git_dir_path(entry), os.path.join(upper, os.fsdecode(TREE)))

    def _moved(
        self, entry: MountEntry, source: GitSource, resolved: Resolved, git_dir: GitDir, over_edits: bool
    ) -> Prepared:
        """The entry at *resolved*, where its working tree is not yet; at the base of that if it cannot move."""
        try:
            source.keep(begin=False)  # what the user's work stands on must stay
        except OSError as error:
            log.warning("%s: %s is not kept yet: %s", entry.path, resolved.commit.hex()[:12], error.strerror)
        passed = git_dir.passed(resolved.commit, source)
        if passed is not None:
            # The user has pushed, and the ref has gone on before we looked: first the base comes to where HEAD is, and
            # then (see `poll`) all of them move as if nothing had been.
            tree = resolved.repository.read_commit(passed).tree
            there = dataclasses.replace(resolved, commit=passed, tree=tree)
            prepared = self._staged(entry, source, there, git_dir)
            if prepared is not None:
                prepared.state, prepared.error = State.BEHIND, f"moving to {resolved.commit.hex()[:12]}"
                return prepared
        base = git_dir.base
        tree = resolved.repository.read_commit(base).tree
        covering = InTheWay(None, [])
        if git_dir.head() == base and not over_edits:
            upper = self._places.entry_directory(self._places.upper_name(entry))
            covering = in_the_way(upper, resolved.repository, tree, resolved.tree)
        if covering.edit is None:
            prepared = self._staged(entry, source, resolved, git_dir)
            if prepared is not None:
                prepared.copies = covering.copies
                return prepared
        work = f"an edit of {os.fsdecode(covering.edit)!r}" if covering.edit is not None else "work"
        why = (
            f"the ref is at {resolved.commit.hex()[:12]} now; there is {work} of yours on "
            f"{base.hex()[:12]}: stash it, or commit it and `git pull`"
        )
        behind = self._prepared(entry, source, dataclasses.replace(resolved, commit=base, tree=tree), git_dir)
        behind.state, behind.error = State.BEHIND, why
        return behind

    def _staged(self, entry: MountEntry, source: GitSource, resolved: Resolved, git_dir: GitDir) -> Prepared | None:
        """The entry at *resolved*, its working tree ready to move there; None where that cannot (`GitDir.stage`)."""
        prepared = self._prepared(entry, source, resolved, git_dir)
        try:
            assert prepared.git_lower is not None
            prepared.move = git_dir.stage(resolved, stat_from(prepared.git_lower), source)
        except BaseException:
            prepared.discard()
            raise
        if prepared.move is None:
            prepared.discard()
            return None
        tree = resolved.repository.read_commit(git_dir.base).tree
        prepared.base = dataclasses.replace(resolved, commit=git_dir.base, tree=tree)
        prepared.base_lower = self._git_lower(entry, source, prepared.base, git_dir)[0]
        return prepared

    def _prepared(self, entry: MountEntry, source: GitSource, resolved: Resolved, git_dir: GitDir | None) -> Prepared:
        lower, times, patched = self._git_lower(entry, source, resolved, git_dir)
        prepared = Prepared(
            entry,
            State.MOUNTED,
            patched.error,
            source=source,
            resolved=resolved,
            git_dir=git_dir,
            git_lower=lower,
            times=times,
            series=patched.series,
        )
        try:
            times.stage()
        except BaseException:
            prepared.discard()
            raise
        return prepared

    def _git_lower(
        self, entry: MountEntry, source: GitSource, resolved: Resolved, git_dir: GitDir | None
    ) -> tuple[GitLower, GitTimes, patchlayers.Patched]:
        """The layer with its patches; its times, which are to be saved when it is shown; the patched tree."""
        directory = self._places.entry_directory(self._places.upper_name(entry))
        fetch = source.fetch_objects if source.lazy else None
        patched = apply_patches(self._places, entry, resolved.repository, resolved.tree, fetch)
        reader = patched.reader if patched.tree != resolved.tree else resolved.repository
        times = GitTimes.read(directory).at(patched.reader, patched.tree, resolved.commit_time_ns, time.time_ns())
        make_directories(self._places.unpacked)
        space = dataclasses.replace(
            source.space(resolved, self._converter(source)),
            reader=reader,
            submodules=GitSubmodules(
                source,
                resolved,
                timeout_s=self._places.network_timeout_s,
                converter=self._converter,
                git_dir=git_dir,
            ),
        )
        lower = GitLower(
            space,
            patched.tree,
            owner=self._places.owner,
            cache_dir=self._places.unpacked,
            times=times,
            fetch_timeout_s=self._places.network_timeout_s,
            patched=patched.layers.layer,
        )
        return lower, times, patched

    def _converter(self, source: GitSource) -> GitAttributes:
        return GitAttributes(self._places.unpacked, info_attributes=source.info_attributes())

    def poll(self, mounted: Mounted) -> Prepared | None:
        """News of an entry that is followed or behind, if there are any."""
        source = mounted.source
        assert source is not None
        try:
            resolved = source.poll() if mounted.entry.follow else None
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


def _has_git_dir(entry: MountEntry) -> bool:
    """Whether it is shown as a git working tree."""
    return entry.kind == "git" and bool(entry.git_dir) and entry.write == "overlay" and not entry.subdir


def _locked(entry: MountEntry, resolved: Resolved) -> Locked:
    tree = resolved.repository.read_commit(resolved.commit).tree
    return Locked(entry.source, tree.hex(), commit=resolved.commit.hex())


def _full_name(ref: str, source: GitSource) -> str | None:
    """The full name of the branch or tag that *ref* is, by git's own order of preference; None if it is none (now)."""
    if ref == "HEAD":
        return source.refs.head_branch()
    names = source.refs.refs()
    wanted = (ref, f"refs/{ref}", f"refs/tags/{ref}", f"refs/heads/{ref}", f"refs/remotes/{ref}")
    return next((name for name in wanted if name in names), None)


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
