"""The workspaces of a mountpoint, alive: what each shows, in which state, and how that changes.

A change of `Clive.toml`, from whichever side, goes one way: read it, compare with what is mounted, prepare
what is new in a thread (it may fetch), then change the view in one span of the loop. What cannot be
prepared is shown as an empty directory with its state and reason; what has not changed is not touched.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import ownconfig, recovery
from clivefs.daemon.bases import BaseTrees
from clivefs.daemon.hidden import HiddenMounts
from clivefs.daemon.invalidation import Invalidator
from clivefs.daemon.kernelcaches import KernelCaches, known_names
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.lock import Held, Lock, mounted_already, workspace_lock
from clivefs.daemon.settings import Settings
from clivefs.mounts import identity, wholefile
from clivefs.mounts.assembly.assembly import Assembly
from clivefs.mounts.assembly.entry import Mounted, Prepared
from clivefs.mounts.config import config, lockfile, trust
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.edits import journal, takeback
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.edits.ownpatches import HostOwn, own_files
from clivefs.mounts.host.calls import DIRECTORY_FLAGS
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.ownfiles import TreeFiles
from clivefs.mounts.points.fsck import problems
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.roots import StoreRoots
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.tree import Blocked, Owner, Tree
from clivefs.mounts.view import View
from clivefs.objects.fsck import Problem
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
_WAITS_MAX = 1000
FOLLOWED_FILES = (config.FILE_NAME, lockfile.FILE_NAME)
"""In a workspace's directory: what is mounted is what they say."""


class Workspaces:
    """All workspaces of one daemon. Methods are for the loop's thread."""

    def __init__(
        self,
        *,
        store: Store,
        view: View,
        watcher: Watcher,
        invalidator: Invalidator,
        settings: Settings,
        unpacked: str,
        on_change: Callable[[dict[str, str]], None],
    ) -> None:
        self._store = store
        self._view = view
        self._watcher = watcher
        self._settings = settings
        self._unpacked = unpacked
        self._on_change = on_change
        self.live: dict[str, LiveWorkspace] = {}
        """By name."""
        self._moved_from: dict[str, str] = {}
        """Where a directory was before, by the id that it has as another workspace now."""
        self.loop_runs = False
        """From when on threads have to ask for the loop's."""
        self.on_shown: Callable[[LiveWorkspace], None] = lambda live: None
        """Told whenever entries of a workspace came, went or changed."""
        self.resume: Callable[[LiveWorkspace], None] = lambda live: None
        """Finishes what a crash has interrupted, before a workspace is used. May wait."""
        self.on_assembled: Callable[[LiveWorkspace], None] = lambda live: None
        """Told in the very span in which trees of a workspace came, went, or stand on something else."""
        self.on_left: Callable[[LiveWorkspace], None] = lambda live: None
        """Told when a workspace is about to be taken away."""
        self.other_trees: Callable[[], Iterable[Tree]] = tuple
        """What is shown beside workspaces and bases."""
        self.trust = trust.StoreTrust(store)
        self.hidden = HiddenMounts(settings.mountpoint)
        self.caches = KernelCaches(view, invalidator, self._trees)
        self.bases = BaseTrees(view, self.caches)

    def _trees(self) -> Iterator[Tree]:
        for live in self.live.values():
            yield live.root_tree
            for mounted in live.entries.values():
                yield mounted.tree
        yield from self.bases.trees()
        yield from self.other_trees()

    @property
    def store(self) -> Store:
        return self._store

    @property
    def view(self) -> View:
        return self._view

    @property
    def owner(self) -> Owner:
        """To whom new files belong."""
        return self._view.owner

    @property
    def mountpoint(self) -> str:
        return self._settings.mountpoint

    def names(self) -> list[str]:
        return list(self.live)

    def get(self, name: str) -> LiveWorkspace:
        try:
            return self.live[name]
        except KeyError:
            known = ", ".join(self.live) or "none"
            raise ClivefsError(
                f"no workspace of that name is mounted here (mounted: {known})",
                place=name,
                remedy="`clivefs mount DIR` mounts one",
            ) from None

    def _on_loop(self, call: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(call) if self.loop_runs else call()

    # Coming and going

    def open(self, root: str, *, allow: bool) -> tuple[str, Workspace, Assembly, Lock]:
        """Read and lock the workspace at *root*: what a `LiveWorkspace` is made of, on the loop. May wait: for
        threads."""
        _refuse_clive_path(root, "the workspace")
        settings = config.load(os.path.join(root, config.FILE_NAME))
        if (self._settings.store + "/").startswith(settings.root.rstrip("/") + "/"):
            raise ClivefsError(
                f"the store {self._settings.store} lies inside the workspace",
                place=settings.root,
                remedy="choose another with --store or CLIVEFS_STORE",
            )
        moved_from = identity.moved_from(self._store, settings.root)
        workspace_id = identity.workspace_id(self._store, settings.root)
        if moved_from is not None:
            self._moved_from[workspace_id] = moved_from
        if allow or trust.is_own(self.trust, workspace_id):
            trust.allow(settings, self.trust, workspace_id)
        facts = {
            "pid": os.getpid(),
            "mountpoint": self._settings.mountpoint,
            "store": self._settings.store,
            "workspace": settings.name,
        }
        try:
            lock = workspace_lock(self._settings.store, workspace_id, facts)
        except Held as held:
            raise mounted_already(settings.root, held, self._settings.store) from None
        try:
            lock.hold_directory(settings.root)
            _sweep(settings.root)
            own = HostOwn(settings.root)
            if settings.write != "overlay" and takeback.recover(
                self._store, workspace_id, own, self._uppers(workspace_id)
            ):
                settings = config.load(os.path.join(root, config.FILE_NAME))
            assembly = Assembly(
                store=self._store,
                workspace_id=workspace_id,
                root=settings.root,
                view=self._view,
                watcher=self._watcher,
                hidden=self.hidden.is_hidden,
                unpacked=self._unpacked,
                on_loop=self._on_loop,
                limits=ArchiveLimits(
                    settings.limits.archive_size, settings.limits.archive_files, settings.limits.archive_ratio
                ),
                mount_over=self.hidden.mount_over,
                network_timeout_s=settings.limits.network_timeout or self._settings.network_timeout_s,
            )
            self.use(assembly, settings, lockfile.read(settings.root))
        except Held as held:
            lock.release()
            raise mounted_already(settings.root, held, self._settings.store) from None
        except BaseException:
            lock.release()
            raise
        return workspace_id, settings, assembly, lock

    def use(self, assembly: Assembly, settings: Workspace, locked: lockfile.Lock) -> bool:
        """From now on the limits of *settings* and the digests of *locked* count; see `Assembly.use`."""
        return assembly.use(settings, locked, network_timeout_s=self._settings.network_timeout_s)

    def _take_edited(self, live: LiveWorkspace, *, allow: bool) -> None:
        """Where edits of the workspace's directory are kept apart, the Clive.toml among them is the one in force. For
        threads."""
        if live.settings.write != "overlay":
            return
        try:
            files = live.assembly.files
            if isinstance(files, TreeFiles):
                files.sweep()
            own = own_files(files, live.root)
            takeback.recover(self._store, live.id, own, self._uppers(live.id))
        except BaseException:
            self._on_loop(live.root_tree.close)
            live.lock.release()
            raise
        try:
            settings, lock = ownconfig.load(live), ownconfig.read_lock(live)
            if settings.write != "overlay":
                raise ClivefsError(
                    f'it says write = "{settings.write}", and the file in the workspace\'s own directory "overlay"',
                    place=settings.file,
                    remedy="write it there, then `clivefs unmount` and `clivefs mount`",
                )
        except ClivefsError as error:
            live.error = str(error)
            return
        if allow or trust.is_own(self.trust, live.id):
            trust.allow(settings, self.trust, live.id)
        self.use(live.assembly, settings, lock)
        live.settings = settings

    def add_at_start(self, root: str, *, allow: bool, progress: Progress) -> None:
        """Open, prepare and show a workspace before the loop runs."""
        live = LiveWorkspace(*self.open(root, allow=allow))
        self._take_edited(live, allow=allow)
        self._show(live)
        prepared = self._prepare(live, live.settings, live.settings.mounts, progress)
        for blocked in self._waits(live, prepared):
            try:
                blocked.job()
            except OSError as error:
                log.warning("%s failed: %s", blocked.what, error)
                break
        self.apply(live, live.settings, prepared)
        self.resume(live)

    async def add(self, root: str, *, allow: bool, progress: Progress) -> str:
        """Mount one more workspace; its name."""
        live = LiveWorkspace(*await trio.to_thread.run_sync(lambda: self.open(root, allow=allow)))
        await trio.to_thread.run_sync(lambda: self._take_edited(live, allow=allow))
        self._show(live)
        async with live.reloading:
            prepared = await trio.to_thread.run_sync(
                lambda: self._prepare(live, live.settings, live.settings.mounts, progress)
            )
            if await self.wait_for(live, prepared):
                self.apply(live, live.settings, prepared)
                self.resume(live)
        return live.name

    def _show(self, live: LiveWorkspace) -> None:
        name = os.fsencode(live.name)
        if live.name in self.live:
            self._view.table.unpin(live.root_tree.root)
            live.root_tree.close()
            live.lock.release()
            raise ClivefsError(
                f"a workspace named {live.name} is mounted here already, from {self.live[live.name].root}",
                place=live.root,
                remedy='give one of them another name (name = "..." under [workspace]), or mount it --at another place',
            )
        live.control = self._view.add_workspace(name, live.root_tree)
        self.bases.begin(live)
        self._view.synthetic.file(live.control, b"status", lambda: _json(self.describe(live)))
        self.live[live.name] = live
        self.on_assembled(live)
        self._on_change({name: each.root for name, each in self.live.items()})
        live.watch_directory()
        self._watcher.also_report.update((live.directory, each.encode()) for each in FOLLOWED_FILES)
        self.caches.forget_name(self._view.root, name)

    def remove(self, name: str) -> None:
        live = self.get(name)
        self.on_left(live)
        for path in list(live.entries):
            self._drop_entry(live, path)
        self._watcher.also_report.difference_update((live.directory, each.encode()) for each in FOLLOWED_FILES)
        self.bases.end(live)
        self._view.remove_workspace(os.fsencode(name))
        self.caches.forget_name(self._view.root, os.fsencode(name))
        DetachedTree(live.root_tree, self._view.table, live.root_tree.close)
        live.lock.release()
        del self.live[name]
        self.on_shown(live)
        self._on_change({name: each.root for name, each in self.live.items()})

    def close(self) -> None:
        self.bases.close()
        for live in self.live.values():
            for mounted in live.entries.values():
                mounted.close()
            live.root_tree.close()
            live.lock.release()
        self.live.clear()

    def allow(self, live: LiveWorkspace, settings: Workspace, *, only: Collection[str] | None = None) -> None:
        """Note that the user permits what *settings* asks for, or what the entries at the paths *only* do."""
        trust.allow(settings, self.trust, live.id, only=only)

    # Entries

    def _prepare(
        self, live: LiveWorkspace, settings: Workspace, entries: Collection[MountEntry], progress: Progress
    ) -> list[Prepared]:
        """What the entries of a workspace that is being mounted come to; may fetch, so for threads. Never raises for
        what is wrong with one."""
        refused = trust.not_allowed(settings, self.trust, live.id)
        for entry in entries:
            live.assembly.before_first_shown(entry)
        return [live.assembly.prepare(entry, refused.get(entry.path), progress) for entry in entries]

    @staticmethod
    def _waits(live: LiveWorkspace, prepared: list[Prepared]) -> Iterator[Blocked]:
        """What has to be waited for, one after another, before *prepared* can be shown: `_apply` must not wait."""
        for _ in range(_WAITS_MAX):
            try:
                for each in prepared:
                    live.assembly.check(each, live.entries.get(each.entry.path))
            except Blocked as blocked:
                yield blocked
            else:
                return

    async def wait_for(self, live: LiveWorkspace, prepared: list[Prepared]) -> bool:
        """Wait until nothing of showing *prepared* has to wait any more; false when the workspace has left meanwhile
        (they are discarded then). No await between this and showing them."""
        for blocked in self._waits(live, prepared):
            try:
                await trio.to_thread.run_sync(blocked.job)
            except OSError as error:
                log.warning("%s failed: %s", blocked.what, error)
                break
        if self.live.get(live.name) is live:
            return True
        for each in prepared:
            each.discard()
        return False

    def apply(self, live: LiveWorkspace, settings: Workspace, prepared: list[Prepared]) -> None:
        """Show what was prepared. Atomic: one span of the loop, no await from here to the end."""
        wanted = {entry.path for entry in settings.mounts}
        for path in [path for path in live.entries if path not in wanted]:
            self._drop_entry(live, path)
        for each in prepared:
            self.set_entry(live, each)
        if live.settings.sessions != settings.sessions:
            live.settings = settings
            self.on_assembled(live)
        live.settings = settings
        self.on_shown(live)

    def set_entry(self, live: LiveWorkspace, prepared: Prepared, *, fresh: bool = False) -> None:
        """Show *prepared*; with *fresh* in a tree of its own, as the upper is another."""
        path = prepared.entry.path
        old = live.entries.get(path)
        mounted, affected = live.assembly.build(prepared, None if fresh else old)
        mounted.locked = live.assembly.pin(mounted.entry)
        live.entries[path] = mounted
        self.bases.show(live, mounted)
        self.on_assembled(live)
        if old is not None and old.tree is mounted.tree:
            self.caches.forget_names(affected)
            return
        stale = list(known_names(old.tree.root)) if old is not None else []
        parent, name = self._view.set_entry(live.root_tree.root, os.fsencode(path), mounted.tree)
        self.caches.forget_way(parent, name)
        if old is not None:
            self.caches.forget_tree(mounted.tree.root.nodeid, stale)
            DetachedTree(old.tree, self._view.table, old.close)

    def _drop_entry(self, live: LiveWorkspace, path: str) -> None:
        mounted = live.entries.pop(path)
        self.on_assembled(live)
        self.bases.drop(live, path)
        parent, name = self._view.remove_entry(live.root_tree.root, os.fsencode(path))
        self.caches.forget_way(parent, name)
        DetachedTree(mounted.tree, self._view.table, mounted.close)

    def _uppers(self, workspace_id: str) -> str:
        return os.path.join(self._settings.store, "uppers", workspace_id)

    def scratch(self) -> str:
        """A directory for temporary files."""
        return scratch_directory(self._settings.store)

    def fsck(self) -> dict[str, Any]:
        """Check the store, with the repositories that mounted entries read from. For threads."""
        extra = [
            mounted.resolved.repository
            for live in self.live.values()
            for mounted in live.entries.values()
            if mounted.resolved is not None
        ]
        roots = StoreRoots(self._store).fresh()
        found = problems(self._store, past_objects(self._store), extra=extra, roots=roots)
        return {"problems": [str(step) for step in found if isinstance(step, Problem)]}

    # Telling

    def describe_entry(self, live: LiveWorkspace, mounted: Mounted) -> dict[str, Any]:
        """The entry's object of `status --json`."""
        facts = mounted.describe()
        locked_as = live.assembly.locked_as(mounted.entry)
        if locked_as is not None:
            facts["locked_as"] = locked_as
        rebase = journal.load(self._store, journal.key(live.id, mounted.entry.path))
        if rebase is None or rebase.state != journal.UNSOLVED:
            return facts
        if live.assembly.surroundings().upper_name(mounted.entry) == rebase.uppers[1]:
            facts["conflicts"] = [dataclasses.asdict(each) for each in rebase.conflicts]
        return facts

    def describe(self, live: LiveWorkspace) -> dict[str, Any]:
        """The workspace's object of `status --json`."""
        facts: dict[str, Any] = {
            "name": live.name,
            "root": live.root,
            "session": None,
            "head": None,
            **live.recording(),
            "write": live.settings.write,
            "mounts": [self.describe_entry(live, mounted) for mounted in live.entries.values()],
        }
        if live.error is not None:
            facts["error"] = live.error
        if live.id in self._moved_from:
            facts["moved_from"] = self._moved_from[live.id]
        if self._watcher.degraded:
            facts["degraded"] = "watches"
        return facts

    def known_files(self) -> int:
        """How many files of the mountpoint the daemon keeps in mind, for the kernel or for itself."""
        return len(self._view.table)

    def status(self) -> list[dict[str, Any]]:
        return [self.describe(live) for live in self.live.values()]


def _sweep(root: str) -> None:
    """Remove what a command that was killed has left beside Clive.toml."""
    try:
        fd = os.open(root, DIRECTORY_FLAGS)
        try:
            wholefile.sweep(fd)
        finally:
            os.close(fd)
    except OSError as error:
        log.info("what a killed command may have left in %s was not looked for: %s", root, error.strerror)


def _refuse_clive_path(path: str, what: str) -> None:
    over = recovery.clive_mount_over(path)
    if over is not None:
        raise ClivefsError(
            f"{what} lies in the clivefs mount at {over.mountpoint}",
            place=path,
            remedy="name the real directory, outside the mount",
        )


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
