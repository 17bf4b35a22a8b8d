"""From a mount entry to the tree that it shows.

Two steps, because the first may take long and the second must not be interrupted: `prepare` finds the
source (for threads: it may fetch), `build` makes the tree and its nodes (for the loop: no waiting).
"""

from __future__ import annotations

import dataclasses
import logging
import os
import time
from collections.abc import Callable
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.mounts.assembly.base import base_lower
from clivefs.mounts.assembly.entry import Mounted, Prepared, State
from clivefs.mounts.assembly.git import GitEntries, build_index
from clivefs.mounts.assembly.patching import read_patches
from clivefs.mounts.assembly.places import Places, source_identity
from clivefs.mounts.assembly.published import PublishedEntries
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.config.lockfile import Lock, Locked
from clivefs.mounts.git.conflicts import in_the_way, untouched
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.lower import Lower
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.overlay.edits import Affected
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.ownfiles import HostFiles, OwnFiles, TreeFiles
from clivefs.mounts.patch.files import Series
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.tree import Blocked, Tree
from clivefs.mounts.view import View
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
_ROOT = "root"
"""The upper of the workspace's own directory."""
_BUSY = "git is at work in it: it moves when that is done"
_WRITTEN = "its files are being written to: it moves when that is done"

_NOT_PATCHED = "patches are not applied to a local directory: mount a ref of it (`git`), or take `patches` out"


class Assembly:
    """Makes the trees of one workspace."""

    def __init__(
        self,
        *,
        store: Store,
        workspace_id: str,
        root: str,
        view: View,
        watcher: Watcher,
        hidden: Callable[[tuple[int, int], bytes], bool],
        network_timeout_s: float,
        mount_over: Callable[[str], str | None],
        unpacked: str,
        limits: ArchiveLimits,
        on_loop: Callable[[Callable[[], Any]], Any],
    ) -> None:
        """*unpacked*, *mount_over*, *limits*: see `Places`. *on_loop* runs a call on the loop's thread and waits for
        its result."""
        self._view = view
        self._watcher = watcher
        self._hidden = hidden
        self._on_loop = on_loop
        own = HostFiles(root, hidden)
        self._places = Places(
            store, workspace_id, root, view.owner, unpacked, limits, network_timeout_s, mount_over, own
        )
        self._git = GitEntries(self._places)
        self._published = PublishedEntries(self._places)

    # The root layer

    def root_tree(self, settings: Workspace) -> Tree:
        """The tree of the workspace's own directory."""
        fd = self._places.open_directory(settings.root, settings.root)
        identity = self._places.identity("")
        if settings.write == "through":
            return self._host_tree(fd, identity)
        lower = self._local_lower(fd)
        if settings.write == "none":
            return self._overlay(lower, identity, b"root", None)
        tree = self._overlay(lower, identity, b"root", self._places.upper(_ROOT))
        self._places.files = TreeFiles(
            tree,
            HostFiles(settings.root, self._hidden),
            self._places.entry_directory(_ROOT),
            self._hidden,
            self._places.owner,
            self._on_loop,
        )
        return tree

    def use(self, settings: Workspace, lock: Lock, *, network_timeout_s: float) -> bool:
        """From now on these limits and locks count for what is prepared. Whether an entry that failed might not fail
        now. *network_timeout_s*: where *settings* have none."""
        places = self._places
        before = (places.limits, places.network_timeout_s)
        limits = settings.limits
        places.limits = ArchiveLimits(limits.archive_size, limits.archive_files, limits.archive_ratio)
        places.network_timeout_s = limits.network_timeout or network_timeout_s
        places.lock = lock
        return before != (places.limits, places.network_timeout_s)

    def pin(self, entry: MountEntry) -> Locked | None:
        """What Clive.lock says of *entry*."""
        return self._places.pin(entry)

    def locked_as(self, entry: MountEntry) -> str | None:
        """The source that Clive.lock has at the path of *entry*, where that is another one: nothing is locked then."""
        found = self._places.lock.entries.get(entry.path)
        return found.source if found is not None and found.source != entry.source else None

    @property
    def network_timeout_s(self) -> float:
        """For how long a remote may be silent."""
        return self._places.network_timeout_s

    def surroundings(self) -> Places:
        """A copy of what the entries are made in, for `assembly.locking`."""
        return dataclasses.replace(self._places)

    @property
    def files(self) -> OwnFiles:
        """The workspace's own, as the mount shows them."""
        return self._places.files

    def base_tree(self, mounted: Mounted) -> OverlayTree | None:
        """What an entry shows without patches and edits; None where it has neither. ClivefsError, OSError."""
        lower = base_lower(self._places, mounted, self._local_lower)
        if lower is None:
            return None
        entry = mounted.entry
        return self._overlay(lower, self._places.identity(f".clive/base/{entry.path}"), source_identity(entry), None)

    def revision(self, mounted: Mounted, revision: str) -> tuple[GitSource, Resolved]:
        """Any revision of the repository of a git entry. For threads. ClivefsError, OSError."""
        return self._git.revision(mounted.entry, revision)

    def revision_lower(self, source: GitSource, resolved: Resolved) -> GitLower:
        """What a git entry would show at *resolved*."""
        return self._git.revision_lower(source, resolved)

    # Preparing

    def before_first_shown(self, entry: MountEntry) -> None:
        """What is to be done for *entry* when its workspace is mounted. For threads."""
        self._git.free_submodules(entry)

    def prepare(
        self,
        entry: MountEntry,
        refusal: str | None,
        progress: Progress,
        *,
        look_only: bool = False,
        over_edits: bool = False,
    ) -> Prepared:
        """Find the source of *entry*; what is wrong with it is in the answer, not raised. With *look_only* nothing of
        the entry changes, and the answer cannot be shown: to be discarded. With *over_edits* the caller moves edits
        that would cover what changes."""
        if refusal is not None:
            return Prepared(entry, State.NOT_ALLOWED, refusal)
        try:
            if entry.kind == "local":
                assert entry.host_path is not None
                return Prepared(
                    entry, State.MOUNTED, root_fd=self._places.open_directory(entry.host_path, entry.location)
                )
            if entry.kind == "git":
                progress(f"{entry.path}: {entry.source}")
                return self._git.prepare(entry, progress, look_only=look_only, over_edits=over_edits)
            progress(f"{entry.path}: {entry.source}")
            return self._published.prepare(entry, progress)
        except ClivefsError as error:
            return Prepared(entry, State.ERROR, str(error))
        except OSError as error:
            return Prepared(entry, State.ERROR, error.strerror or str(error))

    def look_again(self, mounted: Mounted) -> Prepared | None:
        """News of a followed or failed entry, if there are any. For threads."""
        mounted.looked_at = time.monotonic()
        entry = mounted.entry
        if mounted.state == State.ERROR:
            again = self.prepare(entry, None, lambda _: None)
            return again if again.state != State.ERROR or again.error != mounted.error else None
        if mounted.source is None or not (entry.follow or mounted.state == State.BEHIND):
            return None
        return self._git.poll(mounted)

    def read_patches(self, mounted: Mounted) -> Series:
        """The patches of an entry as they are now. For threads."""
        return read_patches(self._places, mounted.entry)

    def repatch(self, mounted: Mounted) -> Prepared:
        """An entry that is shown, with its patches as they are now. For threads. ClivefsError, OSError."""
        if mounted.source is not None:
            return self._git.at(mounted.entry, mounted.source, mounted.source.current, mounted.git_dir)
        assert mounted.published is not None
        return self._published.at(mounted.entry, mounted.published)

    # Building

    def check(self, prepared: Prepared, old: Mounted | None) -> None:
        """`Blocked` as long as `build` would have to wait for something. Changes nothing."""
        lower = prepared.git_lower
        if lower is None:
            return
        try:
            if prepared.git_dir is not None:
                lower.child(lower.root, b".git")
            replaced = _goes_on(old, prepared.entry)
            if replaced is not None:
                replaced.check_lower(lower)
        except OSError:
            return  # `build` says what is wrong

    def build(self, prepared: Prepared, old: Mounted | None) -> tuple[Mounted, list[Affected]]:
        """The entry as it is to be shown; where the old tree goes on over another lower layer, also the names
        that changed in it. What turns out wrong here is shown as what `prepare` finds wrong: as an empty directory
        and its reason. One span: nothing here waits."""
        try:
            if prepared.root_fd is not None:
                return self._build_local(prepared, prepared.root_fd), []
            if prepared.source is not None and prepared.git_lower is not None:
                return self._build_git(prepared, prepared.git_lower, old)
            if prepared.published is not None and prepared.git_lower is not None:
                return self._build_published(prepared, prepared.git_lower, old)
        except (ClivefsError, OSError, Blocked) as error:
            prepared.discard()
            prepared = Prepared(prepared.entry, State.ERROR, _why(error))
        entry = prepared.entry
        lower = MemoryLower()
        tree = self._overlay(lower, self._places.identity(entry.path), b"empty", None)
        return Mounted(entry, tree, prepared.state, prepared.error, lower), []

    def _build_local(self, prepared: Prepared, fd: int) -> Mounted:
        entry = prepared.entry
        identity = self._places.identity(entry.path)
        if entry.write == "through":
            tree = self._host_tree(fd, identity)
            prepared.root_fd = None
            return Mounted(entry, tree, prepared.state, None)
        lower = self._local_lower(fd)
        prepared.root_fd = None
        try:
            upper = self._places.upper(self._places.upper_name(entry)) if entry.write == "overlay" else None
            overlay = self._overlay(lower, identity, source_identity(entry), upper)
        except BaseException:
            lower.close()
            raise
        return Mounted(entry, overlay, prepared.state, _NOT_PATCHED if entry.patches else None, lower)

    def _build_published(
        self, prepared: Prepared, lower: GitLower, old: Mounted | None
    ) -> tuple[Mounted, list[Affected]]:
        tree, affected = self._over(prepared, lower, _goes_on(old, prepared.entry))
        assert prepared.times is not None
        prepared.times.commit()
        return self._mounted(prepared, tree, lower), affected

    def _build_git(self, prepared: Prepared, lower: GitLower, old: Mounted | None) -> tuple[Mounted, list[Affected]]:
        """The tree and its git working tree move together: what may fail or be refused comes first."""
        move = prepared.move
        replaced = _goes_on(old, prepared.entry)
        if move is not None and replaced is None:
            # What edits hide and rename is settled between what was below and what is to be.
            old, replaced = self._build_base(prepared)
        if move is not None:
            assert old is not None
            assert replaced is not None
            why = self._cannot_move(replaced, lower) or self._written(prepared) or (None if move.lock() else _BUSY)
            if why is not None:
                prepared.discard()
                return _stays(old, prepared, why), []
        try:
            tree, affected = self._over(prepared, lower, replaced)
            if prepared.git_dir is not None:
                try:
                    self._show_git_dir(tree, prepared, prepared.git_dir, lower)
                except BaseException:
                    if replaced is None:
                        tree.close()
                    raise
        except BaseException:
            if move is not None:
                move.unlock()
            raise
        if move is not None:
            move.commit()
            prepared.move = None
            if prepared.base_lower is not None:
                prepared.base_lower.close()
        assert prepared.times is not None
        prepared.times.commit()
        return self._mounted(prepared, tree, lower), affected

    def _build_base(self, prepared: Prepared) -> tuple[Mounted, OverlayTree]:
        """The entry where it has been, in a tree of its own."""
        lower, prepared.base_lower = prepared.base_lower, None
        assert lower is not None
        assert prepared.git_dir is not None
        tree, _ = self._over(dataclasses.replace(prepared, copies=[]), lower, None)
        try:
            self._show_git_dir(tree, prepared, prepared.git_dir, lower)
        except BaseException:
            tree.close()
            raise
        mounted = self._mounted(prepared, tree, lower)
        mounted.resolved = prepared.base
        return mounted, tree

    @staticmethod
    def _cannot_move(tree: OverlayTree, lower: GitLower) -> str | None:
        """Why *tree* cannot stand on *lower*; None where it can."""
        try:
            tree.check_lower(lower)
            lost = tree.lost_over(lower)
        except (OSError, Blocked):
            return _BUSY
        if lost is None:
            return None
        return f"the directory that you have renamed to {os.fsdecode(lost)!r} is gone: undo that, or commit it"

    def _over(
        self, prepared: Prepared, lower: GitLower, replaced: OverlayTree | None
    ) -> tuple[OverlayTree, list[Affected]]:
        """The overlay over *lower*: the one that was over another until now, or a new one."""
        entry = prepared.entry
        if replaced is not None:
            affected = self._uncover(replaced, prepared)
            return replaced, affected + replaced.replace_lower(lower, source_identity(entry))
        upper = self._places.upper(self._places.upper_name(entry)) if entry.write == "overlay" else None
        tree = self._overlay(lower, self._places.identity(entry.path), source_identity(entry), upper)
        try:
            self._uncover(tree, prepared)
        except BaseException:
            tree.close()
            raise
        return tree, []

    @staticmethod
    def _mounted(prepared: Prepared, tree: Tree, lower: Lower) -> Mounted:
        return Mounted(
            prepared.entry,
            tree,
            prepared.state,
            prepared.error,
            lower,
            prepared.source,
            prepared.resolved,
            prepared.git_dir,
            prepared.published,
            prepared.series,
        )

    def _uncover(self, tree: OverlayTree, prepared: Prepared) -> list[Affected]:
        """Take the copies away that cover the new content."""
        return tree.reset([copy.path for copy in prepared.copies]) if prepared.copies else []

    def look_over(self, prepared: Prepared) -> None:
        """Look once more, shortly before it is shown, whether an edit would cover what a ref moves to: it does not move
        then. For threads."""
        if prepared.move is None or prepared.base is None or prepared.resolved is None or prepared.git_dir is None:
            return
        if prepared.git_dir.head() != prepared.base.commit:
            return  # its work is no reason to stay
        upper = self._places.entry_directory(self._places.upper_name(prepared.entry))
        try:
            now = in_the_way(upper, prepared.resolved.repository, prepared.base.tree, prepared.resolved.tree)
            prepared.overtaken = now.edit is not None or now.copies != prepared.copies
        except (OSError, ClivefsError) as error:
            log.warning("%s is looked at again: %s", prepared.entry.path, error)
            prepared.overtaken = True

    def _written(self, prepared: Prepared) -> str | None:
        """Why it cannot move: a copy that would be taken away may have become an edit since it was looked at."""
        upper = self._places.entry_directory(self._places.upper_name(prepared.entry))
        copies = prepared.copies
        if prepared.overtaken:
            return _WRITTEN
        return None if not copies or len(list(untouched(upper, copies))) == len(copies) else _WRITTEN

    def _host_tree(self, fd: int, identity: bytes) -> HostTree:
        return HostTree(fd, self._view.table, entry=identity, writable=True, hidden=self._hidden, watcher=self._watcher)

    def _local_lower(self, fd: int) -> LocalLower:
        return LocalLower(fd, hidden=self._hidden, watcher=self._watcher)

    def _overlay(self, lower: Lower, identity: bytes, source: bytes, upper: int | None) -> OverlayTree:
        try:
            return OverlayTree(lower, upper, self._view.table, entry=identity, source=source)
        finally:
            if upper is not None:
                os.close(upper)

    def _show_git_dir(self, tree: OverlayTree, prepared: Prepared, git_dir: GitDir, lower: GitLower) -> None:
        """Let the entry be a git working tree: the `.git` file, and its index when that is first looked for."""
        try:
            tree.lookup(tree.root, b".git")
        except FileNotFoundError:
            _, _, file = tree.create(tree.root, b".git", 0o644, os.O_WRONLY, self._places.owner)
            file.write(0, git_dir.dot_git_content())
            file.close()

        def ensure_index() -> None:
            if not git_dir.has_index():
                raise Blocked(lambda: build_index(prepared, lower), "writing the index")

        self._view.git_gates[tree.root.nodeid] = ensure_index


def _why(error: ClivefsError | OSError | Blocked) -> str:
    """Why an entry cannot be shown."""
    if isinstance(error, ClivefsError):
        return str(error)
    if isinstance(error, Blocked):  # `check` has told of it, and it could not be had
        return f"it cannot be shown: {error.what} failed"
    return f"it cannot be shown: {error.strerror}"


def _stays(old: Mounted, prepared: Prepared, why: str) -> Mounted:
    """*old*, which cannot become what was *prepared* at this moment."""
    return dataclasses.replace(
        old,
        entry=prepared.entry,
        source=prepared.source,
        state=State.BEHIND,
        error=why,
        looked_at=time.monotonic(),
        behind_at=None if why in (_BUSY, _WRITTEN) else old.behind_at,
    )


def _goes_on(old: Mounted | None, entry: MountEntry) -> OverlayTree | None:
    """The tree of *old*, if *entry* is that over another lower layer."""
    if old is None or (old.resolved is None and old.published is None) or not isinstance(old.tree, OverlayTree):
        return None
    return old.tree if _same_upper(old.entry, entry) else None


def _same_upper(one: MountEntry, other: MountEntry) -> bool:
    facts = ("path", "kind", "location", "subdir", "sdist", "write")
    return all(getattr(one, name) == getattr(other, name) for name in facts)
