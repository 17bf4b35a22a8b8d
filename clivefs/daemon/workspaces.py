"""The workspaces of a mountpoint, alive: what each shows, in which state, and how that changes.

A change of `Clive.toml`, from whichever side, goes one way: read it, compare with what is mounted, prepare
what is new in a thread (it may fetch), then change the view in one span of the loop. What cannot be
prepared is shown as an empty directory with its state and reason; what has not changed is not touched.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon import recovery
from clivefs.daemon.invalidation import Invalidator
from clivefs.daemon.lock import Held, Lock
from clivefs.daemon.settings import Settings
from clivefs.mounts import identity
from clivefs.mounts.assembly import Assembly, Mounted, Prepared, State
from clivefs.mounts.config import config, trust
from clivefs.mounts.config.config import MountEntry, Workspace
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.host.watch import Outside, Watcher
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.resolve import FS_TYPE
from clivefs.mounts.synthetic import SyntheticDirectory
from clivefs.mounts.tree import Blocked, Node
from clivefs.mounts.view import View
from clivefs.objects.fsck import fsck as check_store
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

Progress = Callable[[str], None]
_FETCH_LOOK_S = 0.5
_FETCH_RETRY_S = 30.0
_WAITS_MAX = 1000
_SETTLE_S = 5.0


class LiveWorkspace:
    """One mounted workspace."""

    def __init__(self, workspace_id: str, settings: Workspace, assembly: Assembly, lock: Lock) -> None:
        self.id = workspace_id
        self.settings = settings
        self.assembly = assembly
        self.lock = lock
        try:
            self.root_tree = assembly.root_tree(settings)
        except BaseException:
            lock.release()
            raise
        self.control: SyntheticDirectory | None = None
        self.entries: dict[str, Mounted] = {}
        self.error: str | None = None
        """Why the newest Clive.toml is not what is mounted."""
        self.reloading = trio.Lock()

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def root(self) -> str:
        return self.settings.root

    @property
    def directory(self) -> Hashable:
        """The workspace's own directory, as the watcher names it."""
        tree = self.root_tree
        return tree.lower.root if isinstance(tree, OverlayTree) else tree.root

    def watch_directory(self) -> None:
        """Hear of changes of Clive.toml, whether or not anybody looks into the directory."""
        tree = self.root_tree
        if isinstance(tree, HostTree):
            tree.watch(tree.root)
        elif isinstance(tree, OverlayTree) and isinstance(tree.lower, LocalLower):
            tree.lower.watch(tree.lower.root)


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
        on_change: Callable[[list[str]], None],
    ) -> None:
        self._store = store
        self._view = view
        self._watcher = watcher
        self._invalidator = invalidator
        self._settings = settings
        self._unpacked = unpacked
        self._on_change = on_change
        self._live: dict[str, LiveWorkspace] = {}
        self._hidden: dict[tuple[int, int], set[bytes]] = {}
        self._seen_mounts: list[recovery.Mount] = []
        self._reloads: set[str] = set()
        self._reload_asked = trio.Event()
        self.refresh_hidden()

    def names(self) -> list[str]:
        return list(self._live)

    def get(self, name: str) -> LiveWorkspace:
        try:
            return self._live[name]
        except KeyError:
            known = ", ".join(self._live) or "none"
            raise ClivefsError(
                f"no workspace of that name is mounted here (mounted: {known})",
                place=name,
                remedy="`clivefs mount DIR` mounts one",
            ) from None

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
        workspace_id = identity.workspace_id(self._store, settings.root)
        permissions = trust.StoreTrust(self._store)
        if allow or trust.is_own(permissions, workspace_id):
            trust.allow(settings, permissions, workspace_id)
        facts = {"pid": os.getpid(), "mountpoint": self._settings.mountpoint, "workspace": settings.name}
        try:
            lock = Lock(os.path.join(self._settings.store, "run", f"workspace-{workspace_id}.lock"), facts)
        except Held as held:
            raise ClivefsError(
                f"the workspace is mounted already, at {held.holder.get('mountpoint', 'an unknown place')} "
                f"(process {held.holder.get('pid', 'unknown')})",
                place=settings.root,
                remedy="use it there, or `clivefs unmount` it first",
            ) from None
        try:
            assembly = Assembly(
                store=self._store,
                workspace_id=workspace_id,
                root=settings.root,
                view=self._view,
                watcher=self._watcher,
                hidden=self.is_hidden,
                unpacked=self._unpacked,
                limits=ArchiveLimits(
                    settings.limits.archive_size, settings.limits.archive_files, settings.limits.archive_ratio
                ),
                mount_over=self._mount_over,
                network_timeout_s=settings.limits.network_timeout or self._settings.network_timeout_s,
            )
        except BaseException:
            lock.release()
            raise
        return workspace_id, settings, assembly, lock

    def add_at_start(self, root: str, *, allow: bool, progress: Progress) -> None:
        """Open, prepare and show a workspace before the loop runs."""
        live = LiveWorkspace(*self.open(root, allow=allow))
        self._show(live)
        prepared = self._prepare(live, live.settings, live.settings.mounts, progress)
        for blocked in self._waits(live, prepared):
            try:
                blocked.job()
            except OSError as error:
                log.warning("%s failed: %s", blocked.what, error)
                break
        self._apply(live, live.settings, prepared)

    async def add(self, root: str, *, allow: bool, progress: Progress) -> str:
        """Mount one more workspace; its name."""
        live = LiveWorkspace(*await trio.to_thread.run_sync(lambda: self.open(root, allow=allow)))
        self._show(live)
        async with live.reloading:
            prepared = await trio.to_thread.run_sync(
                lambda: self._prepare(live, live.settings, live.settings.mounts, progress)
            )
            if await self._wait_for(live, prepared):
                self._apply(live, live.settings, prepared)
        return live.name

    def _show(self, live: LiveWorkspace) -> None:
        name = os.fsencode(live.name)
        if live.name in self._live:
            self._view.table.unpin(live.root_tree.root)
            live.root_tree.close()
            live.lock.release()
            raise ClivefsError(
                f"a workspace named {live.name} is mounted here already, from {self._live[live.name].root}",
                place=live.root,
                remedy='give one of them another name (name = "..." under [workspace]), or mount it --at another place',
            )
        live.control = self._view.add_workspace(name, live.root_tree)
        self._view.synthetic.file(live.control, b"status", lambda: _json(self.describe(live)))
        self._live[live.name] = live
        self._on_change([each.root for each in self._live.values()])
        live.watch_directory()
        self._watcher.also_report.add((live.directory, config.FILE_NAME.encode()))
        self._invalidator.entry(self._view.root.nodeid, name)

    def remove(self, name: str) -> None:
        live = self.get(name)
        for path in list(live.entries):
            self._drop_entry(live, path)
        self._watcher.also_report.discard((live.directory, config.FILE_NAME.encode()))
        self._view.remove_workspace(os.fsencode(name))
        self._invalidator.entry(self._view.root.nodeid, os.fsencode(name))
        DetachedTree(live.root_tree, self._view.table, live.root_tree.close)
        live.lock.release()
        del self._live[name]
        self._on_change([each.root for each in self._live.values()])

    def close(self) -> None:
        for live in self._live.values():
            for mounted in live.entries.values():
                mounted.close()
            live.root_tree.close()
            live.lock.release()
        self._live.clear()

    def allow(self, live: LiveWorkspace, settings: Workspace, *, only: Collection[str] | None = None) -> None:
        """Note that the user permits what *settings* asks for, or what the entries at the paths *only* do."""
        trust.allow(settings, trust.StoreTrust(self._store), live.id, only=only)

    # Entries

    def _prepare(
        self, live: LiveWorkspace, settings: Workspace, entries: Iterable[MountEntry], progress: Progress
    ) -> list[Prepared]:
        """What the entries come to; may fetch, so for threads. Never raises for what is wrong with one."""
        refused = trust.not_allowed(settings, trust.StoreTrust(self._store), live.id)
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

    async def _wait_for(self, live: LiveWorkspace, prepared: list[Prepared]) -> bool:
        """Wait until nothing of showing *prepared* has to wait any more; false when the workspace has left meanwhile
        (they are discarded then). No await between this and showing them."""
        for blocked in self._waits(live, prepared):
            try:
                await trio.to_thread.run_sync(blocked.job)
            except OSError as error:
                log.warning("%s failed: %s", blocked.what, error)
                break
        if self._live.get(live.name) is live:
            return True
        for each in prepared:
            each.discard()
        return False

    def _apply(self, live: LiveWorkspace, settings: Workspace, prepared: list[Prepared]) -> None:
        """Show what was prepared. Atomic: one span of the loop, no await from here to the end."""
        wanted = {entry.path for entry in settings.mounts}
        for path in [path for path in live.entries if path not in wanted]:
            self._drop_entry(live, path)
        for each in prepared:
            self._set_entry(live, each)
        live.settings = settings

    def _set_entry(self, live: LiveWorkspace, prepared: Prepared) -> None:
        path = prepared.entry.path
        old = live.entries.get(path)
        mounted, affected = live.assembly.build(prepared, old)
        live.entries[path] = mounted
        if old is not None and old.tree is mounted.tree:
            self.forget_names(affected)
            return
        stale = list(_known_names(old.tree.root)) if old is not None else []
        parent, name = self._view.set_entry(live.root_tree.root, os.fsencode(path), mounted.tree)
        self._invalidate_way(live, parent, name)
        for directory, known in stale:
            self._invalidator.entry(directory, known)
        if old is not None:
            self._invalidator.inode(mounted.tree.root.nodeid)
            DetachedTree(old.tree, self._view.table, old.close)

    def _drop_entry(self, live: LiveWorkspace, path: str) -> None:
        mounted = live.entries.pop(path)
        parent, name = self._view.remove_entry(live.root_tree.root, os.fsencode(path))
        self._invalidate_way(live, parent, name)
        DetachedTree(mounted.tree, self._view.table, mounted.close)

    def _invalidate_way(self, live: LiveWorkspace, parent: Node, name: bytes) -> None:
        """The kernel forgets the name, the names of the bridges on the way, and the listings around them."""
        node: Node | None = parent
        while node is not None:
            number = self._view.kernel_node(node).nodeid
            self._invalidator.entry(number, name)
            self._invalidator.inode(number)
            name, node = node.name, node.parent

    # Changes of Clive.toml

    def noticed(self, change: Outside) -> None:
        """A change outside; if it is of a workspace's Clive.toml, it is read again soon."""
        if change.name != config.FILE_NAME.encode():
            return
        for live in self._live.values():
            if change.directory == live.directory:
                self._reloads.add(live.name)
                self._reload_asked.set()

    def reload_all(self) -> None:
        self._reloads.update(self._live)
        self._reload_asked.set()

    async def reload_when_asked(self) -> None:
        """Until cancelled: read each Clive.toml again that `noticed` told of."""
        while True:
            await self._reload_asked.wait()
            self._reload_asked = trio.Event()
            await trio.sleep(0.02)  # an editor's save is several events
            names, self._reloads = self._reloads, set()
            for name in names:
                live = self._live.get(name)
                if live is None:
                    continue
                try:
                    await self.reload(live)
                except Exception:  # the mount goes on, whatever one file says
                    log.exception("reading %s again failed", live.settings.file)

    async def reload(self, live: LiveWorkspace, *, retry: bool = False) -> None:
        """Make what is mounted what Clive.toml says. A broken file leaves everything as it is, and says so
        in `live.error`. With *retry*, entries that failed are tried again."""
        async with live.reloading:
            try:
                settings = await trio.to_thread.run_sync(_load_again, live)
                if settings.name != live.name:
                    raise ClivefsError(
                        f"the workspace is mounted as {live.name}",
                        place=settings.file,
                        remedy="`clivefs unmount` and mount it again to rename it",
                    )
                if settings.write != live.settings.write:
                    raise ClivefsError(
                        "the write mode of a workspace changes only when it is mounted anew",
                        place=settings.file,
                        remedy="`clivefs unmount` and `clivefs mount`",
                    )
            except ClivefsError as error:
                if live.error != str(error):
                    log.warning("%s stays as it was: %s", live.name, error)
                live.error = str(error)
                return
            refused = trust.not_allowed(settings, trust.StoreTrust(self._store), live.id)
            changed = [entry for entry in settings.mounts if self._differs(live, entry, refused.get(entry.path), retry)]
            prepared = await trio.to_thread.run_sync(
                lambda: [live.assembly.prepare(entry, refused.get(entry.path), _quiet) for entry in changed]
            )
            if await self._wait_for(live, prepared):
                self._apply(live, settings, prepared)
                live.error = None

    @staticmethod
    def _differs(live: LiveWorkspace, entry: MountEntry, refusal: str | None, retry: bool) -> bool:
        mounted = live.entries.get(entry.path)
        if mounted is None or not mounted.same_as(entry):
            return True
        if (mounted.state == State.NOT_ALLOWED) != (refusal is not None):
            return True
        return retry and mounted.state == State.ERROR

    async def follow(self) -> None:
        """Move entries whose source has moved on, and try again those whose source could not be had."""
        for live in list(self._live.values()):
            due = [mounted for mounted in live.entries.values() if mounted.due()]
            if not due:
                continue
            async with live.reloading:
                for mounted in due:
                    entry = mounted.entry
                    prepared = await trio.to_thread.run_sync(live.assembly.look_again, mounted)
                    if prepared is None or not await self._wait_for(live, [prepared]):
                        continue
                    if live.entries.get(entry.path) is mounted:
                        self._set_entry(live, prepared)
                    else:
                        prepared.discard()

    async def fetch_in_background(self) -> None:
        """Until cancelled: get the blobs of entries that want all of them (`blobs = "all"`), one entry at a time."""
        while True:
            waiting = [
                mounted
                for live in self._live.values()
                for mounted in live.entries.values()
                if mounted.wants_blobs(trio.current_time())
            ]
            for mounted in waiting:
                await trio.to_thread.run_sync(mounted.fetch_blobs, abandon_on_cancel=True)
                if not mounted.has_blobs:
                    mounted.fetch_again_at = trio.current_time() + _FETCH_RETRY_S
            await trio.sleep(_FETCH_LOOK_S)

    # The kernel's view of outside changes

    def apply(self, change: Outside) -> None:
        """Let the kernel forget what a change outside made untrue."""
        if isinstance(change.tree, Lower) and isinstance(change.directory, LowerRef):
            for each in self._over(change.tree, change.directory):
                known = each.children or {}
                self._forget_changed(change, each, known.get(change.name) if change.name is not None else change.node)
        else:
            self._forget_changed(change, change.directory if isinstance(change.directory, Node) else None, change.node)

    def _forget_changed(self, change: Outside, directory: Node | None, node: Node | None) -> None:
        if node is not None:
            self._invalidator.inode(self._view.kernel_node(node).nodeid, attributes_only=change.kind == "attr")
        if directory is not None and change.name is not None and change.kind in ("name", "gone"):
            number = self._view.kernel_node(directory).nodeid
            self._invalidator.entry(number, change.name)
            self._invalidator.inode(number)

    def _over(self, lower: Lower, ref: LowerRef) -> list[Node]:
        """The known directories of an overlay that show the directory *ref* of its lower layer."""
        trees = [mounted.tree for live in self._live.values() for mounted in live.entries.values()]
        trees += [live.root_tree for live in self._live.values()]
        for tree in trees:
            if isinstance(tree, OverlayTree) and tree.lower is lower:
                return tree.known_over(ref)
        return []

    def forget_names(self, affected: Iterable[tuple[Node, bytes, Node | None]]) -> None:
        """The kernel forgets names that mean something else now, and the listings that they are in."""
        for directory, name, _ in affected:
            number = self._view.kernel_node(directory).nodeid
            self._invalidator.entry(number, name)
            self._invalidator.inode(number)

    async def settled(self) -> None:
        """The kernel has forgotten what it was told to: who looks now sees the new state."""
        if not await trio.to_thread.run_sync(self._invalidator.drain, _SETTLE_S):
            log.warning("the kernel was not told of all changes within %.0f s", _SETTLE_S)

    def scratch(self) -> str:
        """A directory for temporary files."""
        return scratch_directory(self._settings.store)

    def fsck(self) -> dict[str, Any]:
        """Check the store, with the repositories that mounted entries read from. For threads."""
        extra = [
            mounted.resolved.repository
            for live in self._live.values()
            for mounted in live.entries.values()
            if mounted.resolved is not None
        ]
        problems = [str(problem) for problem in check_store(self._store, extra=extra)]
        return {"problems": problems}

    # Mounts inside our trees

    def _mount_over(self, path: str) -> str | None:
        """The clivefs mountpoint that *path* (absolute, without links) is or lies in; ours counts from before it
        is made."""
        over = recovery.clive_mount_over(path)
        if over is not None:
            return over.mountpoint
        mine = self._settings.mountpoint
        return mine if (path + "/").startswith(mine + "/") else None

    def is_hidden(self, directory: tuple[int, int], name: bytes) -> bool:
        """Whether *name* in the host directory (st_dev, st_ino) is a clivefs mountpoint, not to be touched."""
        names = self._hidden.get(directory)
        return names is not None and name in names

    def refresh_hidden(self) -> None:
        """Look which clivefs mounts there are; our own counts from before it is made."""
        current = [mount for mount in recovery.mounts() if mount.fs_type == FS_TYPE]
        if self._hidden and current == self._seen_mounts:
            return
        self._seen_mounts = current
        hidden: dict[tuple[int, int], set[bytes]] = {}
        for mountpoint in {self._settings.mountpoint, *(mount.mountpoint for mount in current)}:
            parent, name = os.path.split(mountpoint)
            if recovery.clive_mount_over(parent) is not None:
                continue
            try:
                st = os.stat(parent)
            except OSError as error:
                log.debug("the folder of the mountpoint %s: %s", mountpoint, error)
                continue
            hidden.setdefault((st.st_dev, st.st_ino), set()).add(os.fsencode(name))
        self._hidden = hidden

    # Telling

    def describe(self, live: LiveWorkspace) -> dict[str, Any]:
        """The workspace's object of `status --json`."""
        facts: dict[str, Any] = {
            "name": live.name,
            "root": live.root,
            "session": None,
            "head": None,
            "write": live.settings.write,
            "mounts": [mounted.describe() for mounted in live.entries.values()],
        }
        if live.error is not None:
            facts["error"] = live.error
        if self._watcher.degraded:
            facts["degraded"] = "watches"
        return facts

    def status(self) -> list[dict[str, Any]]:
        return [self.describe(live) for live in self._live.values()]


def _known_names(root: Node) -> Iterable[tuple[int, bytes]]:
    """(number of the directory, name) of everything known below *root*."""
    pending = [root]
    while pending:
        directory = pending.pop()
        for name, child in (directory.children or {}).items():
            yield directory.nodeid, name
            pending.append(child)


def _refuse_clive_path(path: str, what: str) -> None:
    over = recovery.clive_mount_over(path)
    if over is not None:
        raise ClivefsError(
            f"{what} lies in the clivefs mount at {over.mountpoint}",
            place=path,
            remedy="name the real directory, outside the mount",
        )


def _load_again(live: LiveWorkspace) -> Workspace:
    """The workspace as its Clive.toml has it now. An empty file is one that somebody is about to write."""
    file = os.path.join(live.root, config.FILE_NAME)
    settings = config.load(file, root=live.root)
    if live.entries and not settings.mounts and os.path.getsize(file) == 0:
        raise ClivefsError("the file is empty", place=file, remedy="`clivefs detach` takes mount entries away")
    return settings


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"


def _quiet(_: str) -> None:
    return None
