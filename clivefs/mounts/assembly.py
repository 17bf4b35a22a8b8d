"""From a mount entry to the tree that it shows.

Two steps, because the first may take long and the second must not be interrupted: `prepare` finds the
source (for threads: it may fetch), `build` makes the tree and its nodes (for the loop: no waiting).
"""

from __future__ import annotations

import dataclasses
import enum
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories, mount_id
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.git.attributes import GitAttributes
from clivefs.mounts.git.conflicts import Copy, InTheWay, in_the_way, untouched
from clivefs.mounts.git.gitdir import GitDir, Moved
from clivefs.mounts.git.index import stat_from
from clivefs.mounts.git.location import borrowed
from clivefs.mounts.git.lower import GitLower, Reader
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.submodules import GitSubmodules
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.lower import Lower
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.overlay.edits import Affected
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.patch import layers as patchlayers
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.published.source import Published, PublishedSource
from clivefs.mounts.resolve import FS_TYPE, mount_types, resolve_links
from clivefs.mounts.tree import Blocked, Tree
from clivefs.mounts.view import View
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
_RETRY_S = 10.0
"""How long after a failure an entry is tried again by itself."""
_CLIENT_RETRY_S = 120.0
"""The same where trying starts pip or npm."""
_LOCAL_POLL_S = 1.0
_REMOTE_POLL_S = 30.0


class State(enum.StrEnum):
    """What `status` says of an entry."""

    MOUNTED = "mounted"
    ERROR = "error"
    NOT_ALLOWED = "not-allowed"
    BEHIND = "behind"
    """The ref has moved, and git work in the mount keeps the entry where it is."""


@dataclass(slots=True)
class Prepared:
    """What is known of an entry before anything of it is shown."""

    entry: MountEntry
    state: State
    error: str | None = None
    root_fd: int | None = None
    """An open local directory; owned by `build`."""
    source: GitSource | None = None
    resolved: Resolved | None = None
    git_dir: GitDir | None = None
    git_lower: GitLower | None = None
    published: Published | None = None
    patches_seen: patchlayers.Seen = ()
    copies: list[Copy] = field(default_factory=list)
    """Files of the upper layer that cover what the entry moves to, and are no edits."""

    def discard(self) -> None:
        """It is not to be shown."""
        if self.root_fd is not None:
            os.close(self.root_fd)
            self.root_fd = None
        if self.git_lower is not None:
            self.git_lower.close()


@dataclass(slots=True)
class Mounted:
    """An entry as it is shown."""

    entry: MountEntry
    tree: Tree
    state: State
    error: str | None
    lower: Lower | None = None
    source: GitSource | None = None
    resolved: Resolved | None = None
    git_dir: GitDir | None = None
    published: Published | None = None
    patches_seen: patchlayers.Seen = ()
    looked_at: float = field(default_factory=time.monotonic)
    behind_at: tuple[bytes | None, int, bool] | None = None
    """While it is behind: what its git working tree was when it last could not move."""
    has_blobs: bool = False
    """All blobs are here, of an entry that wants them all."""
    fetch_again_at: float = 0.0
    _closed: bool = False

    def same_as(self, entry: MountEntry) -> bool:
        """Whether *entry* asks for what is mounted; its place in the file does not count."""
        return _without_line(self.entry) == _without_line(entry)

    def due(self) -> bool:
        """Whether it is time to look at the source again."""
        age = time.monotonic() - self.looked_at
        if self.state == State.ERROR:
            return age >= (_RETRY_S if self.entry.kind in ("git", "local") else _CLIENT_RETRY_S)
        if self.entry.patches and self.lower is not None and self.entry.write != "through":
            return age >= _LOCAL_POLL_S
        if not self.entry.follow or self.source is None:
            return False
        return age >= (_LOCAL_POLL_S if self.source.location.url is None else _REMOTE_POLL_S)

    def wants_blobs(self, now_s: float) -> bool:
        """Whether `fetch_blobs` should run now."""
        if self.has_blobs or self.entry.fetch != "all" or self.source is None or not self.source.lazy:
            return False
        return now_s >= self.fetch_again_at

    def fetch_blobs(self) -> None:
        """Get every blob that is missing. For threads; a failure is in `source.error`."""
        assert self.source is not None
        assert self.resolved is not None
        try:
            self.source.fetch_all(self.resolved, lambda: self._closed)
            self.has_blobs = not self._closed
        except (OSError, ClivefsError) as error:
            log.info("%s: blobs are still missing: %s", self.entry.path, error)

    def describe(self) -> dict[str, Any]:
        """The entry's object of `status --json`."""
        error = self.error
        if error is None and self.source is not None:
            error = self.source.error
        facts: dict[str, Any] = {
            "path": self.entry.path,
            "source": self.entry.source,
            "write": self.entry.write,
            "state": str(self.state),
            "error": error,
        }
        if self.published is not None:
            facts["version"] = self.published.version
            facts["sha256"] = self.published.sha256
        if self.resolved is not None:
            facts["ref"] = self.resolved.commit.hex()
            facts["head"] = self.resolved.commit.hex()
            if self.git_dir is not None:
                head = self.git_dir.head()
                facts["head"] = head.hex() if head is not None else None
        return facts

    def close(self) -> None:
        self._closed = True
        self.tree.close()


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
    ) -> None:
        """*unpacked*: where large and converted content becomes plain files. *mount_over*: the clivefs mountpoint
        that a path (absolute, without links) is or lies in; no source may."""
        self._store = store
        self._workspace_id = workspace_id
        self._root = root
        self._view = view
        self._watcher = watcher
        self._hidden = hidden
        self._network_timeout_s = network_timeout_s
        self._mount_over = mount_over
        self._unpacked = unpacked
        self._limits = limits

    # The root layer

    def root_tree(self, settings: Workspace) -> Tree:
        """The tree of the workspace's own directory."""
        fd = self._open_directory(settings.root, settings.root)
        identity = self._identity("")
        if settings.write == "through":
            return self._host_tree(fd, identity)
        lower = self._local_lower(fd)
        return self._overlay(lower, identity, b"root", self._upper("root") if settings.write == "overlay" else None)

    # Preparing

    def prepare(
        self, entry: MountEntry, refusal: str | None, progress: Progress, *, look_only: bool = False
    ) -> Prepared:
        """Find the source of *entry*; what is wrong with it is in the answer, not raised. With *look_only* nothing of
        the entry changes, and the answer cannot be shown: to be discarded."""
        if refusal is not None:
            return Prepared(entry, State.NOT_ALLOWED, refusal)
        try:
            if entry.kind == "local":
                assert entry.host_path is not None
                return Prepared(entry, State.MOUNTED, root_fd=self._open_directory(entry.host_path, entry.location))
            if entry.kind == "git":
                progress(f"{entry.path}: {entry.source}")
                return self._prepare_git(entry, progress, look_only=look_only)
            progress(f"{entry.path}: {entry.source}")
            return self._prepare_published(entry, progress)
        except ClivefsError as error:
            return Prepared(entry, State.ERROR, str(error))
        except OSError as error:
            return Prepared(entry, State.ERROR, error.strerror or str(error))

    def _prepare_published(self, entry: MountEntry, progress: Progress) -> Prepared:
        """A module of a package index, or an archive, unpacked into the store."""
        assert entry.kind != "git"
        assert entry.kind != "local"
        if entry.host_path is not None:
            self._refuse_mounted(entry.host_path, entry.location)
        source = PublishedSource(
            entry.kind,
            entry.location,
            entry.subdir or "",
            store=self._store,
            host_path=entry.host_path,
            strip=entry.strip,
            sha256=entry.sha256,
            limits=self._limits,
            answer_timeout_s=self._network_timeout_s,
            progress=progress,
        )
        published = source.open()
        seen = patchlayers.seen(self._root, entry.patches)
        patched = self._patched(entry, self._store, published.tree, None)
        kept = GitTimes.read(self._entry_directory(self._upper_name(entry)))
        times = kept.at(patched.reader, patched.tree, published.time_ns, time.time_ns())
        make_directories(self._unpacked)
        lower = GitLower(
            dataclasses.replace(source.space(published), reader=patched.reader),
            patched.tree,
            owner=self._view.owner,
            cache_dir=self._unpacked,
            times=times,
            patched=patched.layers.layer,
        )
        times.save()
        return Prepared(entry, State.MOUNTED, patched.error, published=published, git_lower=lower, patches_seen=seen)

    def _patched(
        self,
        entry: MountEntry,
        reader: Reader,
        tree: bytes,
        fetch: Callable[[Sequence[bytes]], None] | None,
    ) -> patchlayers.Patched:
        return patchlayers.apply_patches(
            self._store,
            reader,
            tree,
            root=self._root,
            patterns=entry.patches if entry.write != "through" else (),
            scratch=scratch_directory(os.fspath(self._store.path)),
            fetch=fetch,
        )

    def _prepare_git(self, entry: MountEntry, progress: Progress, *, look_only: bool) -> Prepared:
        source = GitSource(
            entry.location,
            entry.ref or "HEAD",
            entry.subdir or "",
            base_dir=self._root,
            store_dir=os.fspath(self._store.path),
            progress=progress,
            answer_timeout_s=self._network_timeout_s,
            store=self._store,
        )
        if source.location.path is not None:
            self._refuse_mounted(source.location.path, entry.location)
        resolved = source.open()
        for repository in {resolved.repository, source.refs}:
            for path in (repository.gitdir, repository.commondir, *borrowed(repository.objects)):
                self._refuse_mounted(path, entry.location)
        if look_only:
            return Prepared(entry, State.MOUNTED, source=source, resolved=resolved)
        return self._at(entry, source, resolved, None)

    def _at(self, entry: MountEntry, source: GitSource, resolved: Resolved, git_dir: GitDir | None) -> Prepared:
        """The entry at *resolved*; or where its git working tree is, if that does not follow."""
        state = State.MOUNTED
        error = None
        copies: list[Copy] = []
        if entry.git_dir and entry.write == "overlay" and not entry.subdir:
            path = os.path.join(os.fspath(self._store.path), "gitdirs", self._upper_name(entry))
            make_directories(os.path.dirname(path))
            git_dir = git_dir or GitDir.create_or_open(path, resolved, source)
            if git_dir.base != resolved.commit:
                base = git_dir.base
                tree = resolved.repository.read_commit(base).tree
                covering = InTheWay(None, [])
                if git_dir.head() == base:
                    upper = self._entry_directory(self._upper_name(entry))
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
        seen = patchlayers.seen(self._root, entry.patches)
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
        directory = self._entry_directory(self._upper_name(entry))
        fetch = source.fetch_objects if source.lazy else None
        patched = self._patched(entry, resolved.repository, resolved.tree, fetch)
        reader = patched.reader if patched.tree != resolved.tree else resolved.repository
        times = GitTimes.read(directory).at(patched.reader, patched.tree, resolved.commit_time_ns, time.time_ns())
        make_directories(self._unpacked)
        converter = GitAttributes(self._unpacked, info_attributes=source.info_attributes())
        lower = GitLower(
            dataclasses.replace(source.space(resolved, converter), reader=reader),
            patched.tree,
            owner=self._view.owner,
            cache_dir=self._unpacked,
            times=times,
            submodules=GitSubmodules(source, resolved, timeout_s=self._network_timeout_s),
            fetch_timeout_s=self._network_timeout_s,
            patched=patched.layers.layer,
        )
        return lower, times, patched.error

    def look_again(self, mounted: Mounted) -> Prepared | None:
        """News of a followed or failed entry, if there are any. For threads."""
        mounted.looked_at = time.monotonic()
        entry = mounted.entry
        if mounted.state == State.ERROR:
            again = self.prepare(entry, None, lambda _: None)
            return again if again.state != State.ERROR or again.error != mounted.error else None
        source = mounted.source
        if entry.patches and self._patches_changed(mounted):
            if source is None:
                return self.prepare(entry, None, lambda _: None)
            return self._at(entry, source, source.current, mounted.git_dir)
        if source is None or not entry.follow:
            return None
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
        prepared = self._at(entry, source, resolved, git_dir)
        if mounted.state == prepared.state == State.BEHIND:
            mounted.error = prepared.error
            prepared.discard()
            return None
        return prepared

    def _patches_changed(self, mounted: Mounted) -> bool:
        try:
            return patchlayers.seen(self._root, mounted.entry.patches) != mounted.patches_seen
        except ClivefsError as error:
            mounted.error = str(error)
            return False

    def _refuse_mounted(self, path: str, named: str) -> None:
        """A source must not lie in a clivefs mount, be it by links: reading it we would wait for ourselves."""
        mountpoint = self._mount_over(resolve_links(path))
        if mountpoint is not None:
            raise ClivefsError(
                f"it lies in the clivefs mount at {mountpoint}", place=named, remedy="name a place outside of it"
            )

    def _open_directory(self, path: str, named: str) -> int:
        self._refuse_mounted(path, named)
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
            if prepared.source is not None and prepared.resolved is not None:
                return self._build_git(prepared, prepared.source, prepared.resolved, old)
            if prepared.published is not None and prepared.git_lower is not None:
                return self._build_published(prepared, prepared.git_lower, old)
        except ClivefsError as error:
            prepared = Prepared(prepared.entry, State.ERROR, str(error))
        except OSError as error:
            prepared = Prepared(prepared.entry, State.ERROR, f"it cannot be shown: {error.strerror}")
        except Blocked as blocked:  # `check` has told of it, and it could not be had
            prepared = Prepared(prepared.entry, State.ERROR, f"it cannot be shown: {blocked.what} failed")
        entry = prepared.entry
        lower = MemoryLower()
        tree = self._overlay(lower, self._identity(entry.path), b"empty", None)
        return Mounted(entry, tree, prepared.state, prepared.error, lower), []

    def _build_local(self, prepared: Prepared, fd: int) -> Mounted:
        entry = prepared.entry
        identity = self._identity(entry.path)
        if entry.write == "through":
            return Mounted(entry, self._host_tree(fd, identity), prepared.state, None)
        lower = self._local_lower(fd)
        upper = self._upper(self._upper_name(entry)) if entry.write == "overlay" else None
        tree = self._overlay(lower, identity, self._source_identity(entry), upper)
        return Mounted(entry, tree, prepared.state, None, lower)

    def _build_published(
        self, prepared: Prepared, lower: GitLower, old: Mounted | None
    ) -> tuple[Mounted, list[Affected]]:
        entry = prepared.entry
        replaced = _goes_on(old, entry)
        if replaced is not None:
            affected = replaced.replace_lower(lower, self._source_identity(entry))
            return self._mounted(prepared, replaced, lower), affected
        upper = self._upper(self._upper_name(entry)) if entry.write == "overlay" else None
        tree = self._overlay(lower, self._identity(entry.path), self._source_identity(entry), upper)
        return self._mounted(prepared, tree, lower), []

    def _build_git(
        self, prepared: Prepared, source: GitSource, resolved: Resolved, old: Mounted | None
    ) -> tuple[Mounted, list[Affected]]:
        entry = prepared.entry
        lower = prepared.git_lower
        assert lower is not None
        replaced = _goes_on(old, entry)
        if replaced is not None:
            affected = self._uncover(replaced, prepared)
            affected += replaced.replace_lower(lower, self._source_identity(entry))
            if prepared.git_dir is not None:
                self._show_git_dir(replaced, prepared, prepared.git_dir, lower)
            return self._mounted(prepared, replaced, lower), affected
        upper = self._upper(self._upper_name(entry)) if entry.write == "overlay" else None
        tree = self._overlay(lower, self._identity(entry.path), self._source_identity(entry), upper)
        self._uncover(tree, prepared)
        if prepared.git_dir is not None:
            try:
                self._show_git_dir(tree, prepared, prepared.git_dir, lower)
            except BaseException:
                tree.close()
                raise
        return self._mounted(prepared, tree, lower), []

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
            prepared.patches_seen,
        )

    def _uncover(self, tree: OverlayTree, prepared: Prepared) -> list[Affected]:
        """Take the copies away that cover the new content, unless somebody has written to one meanwhile."""
        if not prepared.copies:
            return []
        return tree.reset(untouched(self._entry_directory(self._upper_name(prepared.entry)), prepared.copies))

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
            _, _, file = tree.create(tree.root, b".git", 0o644, os.O_WRONLY, self._view.owner)
            file.write(0, git_dir.dot_git_content())
            file.close()

        def ensure_index() -> None:
            if not git_dir.has_index():
                raise Blocked(lambda: _build_index(prepared, lower), "writing the index")

        self._view.git_gates[tree.root.nodeid] = ensure_index

    # Names in the store

    def _identity(self, path: str) -> bytes:
        return self._workspace_id.encode() + b"\0" + os.fsencode(path)

    def _source_identity(self, entry: MountEntry) -> bytes:
        return os.fsencode(f"{entry.kind}:{entry.host_path or entry.location}#{entry.subdir or ''}")

    def _upper_name(self, entry: MountEntry) -> str:
        """One upper for each (path, source): replacing a source and coming back finds the edits again."""
        key = os.fsencode(entry.path) + b"\0" + self._source_identity(entry)
        return f"{self._workspace_id}-{sha256(key).hexdigest()[:16]}"

    def _upper(self, name: str) -> int:
        return os.open(self._entry_directory(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _entry_directory(self, name: str) -> str:
        path = os.path.join(os.fspath(self._store.path), "uppers", self._workspace_id, name)
        make_directories(path)
        return path


def _without_line(entry: MountEntry) -> tuple[Any, ...]:
    return tuple(getattr(entry, name) for name in entry.__struct_fields__ if name != "line")


def _goes_on(old: Mounted | None, entry: MountEntry) -> OverlayTree | None:
    """The tree of *old*, if *entry* is that over another lower layer."""
    if old is None or (old.resolved is None and old.published is None) or not isinstance(old.tree, OverlayTree):
        return None
    return old.tree if _same_upper(old.entry, entry) else None


def _same_upper(one: MountEntry, other: MountEntry) -> bool:
    facts = ("path", "kind", "location", "subdir", "write")
    return all(getattr(one, name) == getattr(other, name) for name in facts)


def _build_index(prepared: Prepared, lower: GitLower) -> None:
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
