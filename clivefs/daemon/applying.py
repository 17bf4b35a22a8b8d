"""Other content for a mounted workspace, in one step as its users see it: what restore, undo and merge do.

The core is `mounts.applying`, one tree at a time. Here a workspace's trees are taken together: everything is staged in
all of them, the record of what is to be done is made durable, and one span of the loop publishes it in all.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar

import msgspec
import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import CLOCK_REALTIME_COARSE
from clivefs.daemon.kernelcaches import KernelCaches
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.trash import Trash
from clivefs.mounts.applying import Applying
from clivefs.mounts.attributes import dress
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.host.watch import Outside
from clivefs.mounts.recording.statcache import Shown
from clivefs.mounts.steps import Affected, Step, Steps, Wanted
from clivefs.mounts.tree import Blocked, Tree
from clivefs.mounts.view import View
from clivefs.objects.errors import ObjectTooLarge
from clivefs.objects.interface import ObjectStore
from clivefs.objects.values import LARGE_BYTES

log = logging.getLogger(__name__)

T = TypeVar("T")

NAMESPACE = "applying"
_MADE_FILES = 256
"""Files that a thread makes before it is asked whether to go on."""
_GROUP_FILES = 64
_GROUP_BYTES = 4 << 20
_COPY_BYTES = 1 << 20
_NOT_OURS = "it is another user's directory, who alone may change its permissions and attributes"


class Target(NamedTuple):
    """What is to be at a path of the workspace."""

    wanted: Wanted
    """Its path is below the workspace's root."""
    oid: bytes | None = None
    """The blob of a file or a symlink."""


class Applied(NamedTuple):
    """What became of the targets. Paths are below the workspace's root."""

    done: tuple[bytes, ...]
    refused: tuple[tuple[bytes, str], ...]
    """Those of trees that are not written, and directories of other users, with the reason."""
    not_owned: tuple[bytes, ...] = ()
    """Those that have all but the owner that they are to have: we may not give it."""


class ChangedMeanwhile(Exception):
    """The view is not what the changes were planned for; nothing has changed."""


class _Record(msgspec.Struct, array_like=True, frozen=True):
    """The steps of every tree: path of the mount entry (empty for the root) and what is done there. `version` 1."""

    version: int
    trees: tuple[tuple[str, Steps], ...]


class LiveChanges:
    """Applies changes to mounted workspaces. Methods are for the loop's thread."""

    def __init__(self, store: ObjectStore, view: View, caches: KernelCaches, trash: Trash) -> None:
        self._store = store
        self._view = view
        self._caches = caches
        self._trash = trash

    async def apply(
        self,
        live: LiveWorkspace,
        targets: Sequence[Target],
        reader: JoinedObjects,
        still: Callable[[], bool] = lambda: True,
        shown: Callable[[Shown], None] = lambda files: None,
    ) -> Applied:
        """Let the workspace show *targets*; *reader* has their content. All of it in one step, or, when something is in
        the way, nothing: ClivefsError, OSError. *still* is asked in that very step: where it says no, nothing changes
        and ChangedMeanwhile is raised; *shown* is told in it which files there are now, so that nobody reads them."""
        async with live.changing:
            return await self._apply(live, targets, reader, still, shown)

    async def _apply(
        self,
        live: LiveWorkspace,
        targets: Sequence[Target],
        reader: JoinedObjects,
        still: Callable[[], bool],
        shown: Callable[[Shown], None],
    ) -> Applied:
        by_tree, refused = _by_tree(live, targets)
        applyings = {path: self._applying(tree_of(live, path)) for path in by_tree}
        await self._keep(live, applyings)  # without steps: what is left of the staging is to be removed
        try:
            for path, parts in by_tree.items():
                await self._stage(applyings[path], parts, reader)
                await _waiting_for(path, applyings[path].check)
            FAULTS.hit("apply.staged")
            await self._keep(live, applyings)
            FAULTS.hit("apply.recorded")
            await trio.lowlevel.checkpoint()  # who asked for it may have left
            await _waiting(lambda: self._publish(live, applyings, still, shown))
            FAULTS.hit("apply.published")
        finally:
            with trio.CancelScope(shield=True):
                for applying in applyings.values():
                    try:
                        for name in await trio.to_thread.run_sync(applying.rescue):
                            log.warning("%s: a directory took the place of a file just then: it is %s", live.name, name)
                        while await _waiting(applying.let_go):
                            await trio.lowlevel.checkpoint()
                        await trio.to_thread.run_sync(applying.sweep, self._trash.take)
                    except OSError as error:  # `finish` tries once more
                        log.warning("%s: old files are left for now: %s", live.name, error)
                    self._trash.wake()
                    FAULTS.hit("apply.swept")
                    self._caches.forget_names(await _waiting(applying.finish))
                FAULTS.hit("apply.finished")
                await self._keep(live, {})
                self._forget_links(applyings)
        await self._caches.settled()
        not_owned: list[bytes] = []
        for entry, applying in applyings.items():
            not_owned += (_in_workspace(entry, path) for path in applying.not_owned)
            refused += ((_in_workspace(entry, path), _NOT_OURS) for path in applying.not_ours)
        left_alone = {path for path, _ in refused}
        done = tuple(target.wanted.path for target in targets if target.wanted.path not in left_alone)
        return Applied(done, tuple(refused), tuple(sorted(not_owned)))

    async def dress(self, live: LiveWorkspace, wanted: Wanted) -> tuple[bool, bool]:
        """Let a file of the workspace's own directory have all that *wanted* says but content: as
        `attributes.dress`."""
        tree = live.root_tree
        step = Step(wanted.path, wanted.mode, wanted.mtime_ns, b"", xattrs=wanted.xattrs, owner=wanted.owner)

        def change() -> tuple[bool, bool]:
            node, _ = tree.lookup(tree.root, wanted.path)
            done = dress(tree, node, step)
            self._caches.forget_names([Affected(tree.root, wanted.path, node)])
            if tree.journal is not None:
                tree.journal.name(tree.root, wanted.path)
            return done

        return await _waiting(change)

    def _applying(self, tree: Tree) -> Applying:
        return Applying(tree, self._view.table, self._view.owner, elsewhere=self._trash.make)

    def _publish(
        self,
        live: LiveWorkspace,
        applyings: dict[str, Applying],
        still: Callable[[], bool],
        shown: Callable[[Shown], None],
    ) -> None:
        """One span."""
        for applying in applyings.values():
            applying.check()  # `Blocked` comes from here, before anything has changed
        if not still():
            raise ChangedMeanwhile
        from_ns = time.clock_gettime_ns(CLOCK_REALTIME_COARSE)  # what files' change times are taken from
        for path, applying in applyings.items():
            try:
                applying.publish()
            finally:  # whatever of it was done
                self._caches.forget_names(each for each in applying.affected if self._may_be_known(each))
                journal = tree_of(live, path).journal
                if journal is not None:
                    for parent, name, _ in applying.affected:
                        journal.name(parent, name)
        files = {key: made for applying in applyings.values() for key, made in applying.made.items()}
        shown(Shown(from_ns, time.time_ns(), files))

    def _forget_links(self, applyings: dict[str, Applying]) -> None:
        """Have the kernel ask again about files that have lost one of several names."""
        for applying in applyings.values():
            for _, _, node in applying.affected:
                if node is not None and node.lookups and not node.removed:
                    self._caches.apply(Outside("attr", node.tree, None, None, node))

    def _may_be_known(self, affected: Affected) -> bool:
        """Whether the kernel can have the name in its caches, or hold what it led to."""
        old = affected.node
        return self._view.kernel_node(affected.parent).lookups > 0 or (old is not None and old.lookups > 0)

    async def _stage(self, applying: Applying, targets: list[Target], reader: JoinedObjects) -> None:
        alone, again = _by_file(targets)
        await self._stage_files(applying, alone, reader)
        for target, first in again:
            if not await _waiting(partial(applying.link, target.wanted, first)):
                await self._stage_files(applying, [target], reader)

    async def _stage_files(self, applying: Applying, targets: list[Target], reader: JoinedObjects) -> None:
        if any(stat.S_ISREG(target.wanted.mode) for target in targets) and await _waiting(
            applying.takes_files_of_threads
        ):
            files = [target for target in targets if stat.S_ISREG(target.wanted.mode)]
            targets = [target for target in targets if not stat.S_ISREG(target.wanted.mode)]
            for at in range(0, len(files), _MADE_FILES):
                await trio.to_thread.run_sync(_make, applying, files[at : at + _MADE_FILES], reader)
        for group in _groups(targets):
            contents = await trio.to_thread.run_sync(_contents, group, reader)
            for (wanted, oid), content in zip(group, contents, strict=True):
                file = await _waiting(partial(applying.stage, wanted, content))
                if file is not None:
                    assert oid is not None
                    fd = file.fileno()
                    assert fd is not None
                    await trio.to_thread.run_sync(_copy, reader, oid, fd)
                    applying.staged(wanted, file)
            await trio.lowlevel.checkpoint()

    async def _keep(self, live: LiveWorkspace, applyings: dict[str, Applying]) -> None:
        """Note durably what a crash must not leave half done."""
        record = _Record(1, tuple((path, applying.steps) for path, applying in applyings.items()))
        value = msgspec.msgpack.encode(record) if applyings else None
        with self._store.batch(wait=False) as batch:
            batch.meta_put(NAMESPACE, live.id.encode(), value)
        assert batch.future is not None
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(batch.future.result)

    def resume(self, live: LiveWorkspace) -> None:
        """Finish what a crash has interrupted, before the workspace is used. May wait, so before the loop runs."""
        kept = self._store.meta_get(NAMESPACE, live.id.encode())
        if kept is None:
            return
        applyings: dict[str, Applying] = {}
        for path, steps in msgspec.msgpack.decode(kept, type=_Record).trees:
            entry = live.entries.get(path)
            if path and (entry is None or not entry.tree.writable):
                log.warning("%s: an interrupted change of %s cannot be finished: it is not mounted", live.name, path)
                continue
            tree = tree_of(live, path)
            applyings[path] = _wait_for(partial(Applying.resume, tree, self._view.table, self._view.owner, steps))
        begun = any(each.has_begun for each in applyings.values())
        for path, applying in applyings.items():
            if begun and applying.is_left:
                _wait_for(applying.publish)
                log.info("%s: finished an interrupted change of %s", live.name, path or "the workspace's directory")
            _wait_for(applying.finish)
        with self._store.batch() as batch:
            batch.meta_put(NAMESPACE, live.id.encode(), None)


def entry_of(live: LiveWorkspace, path: bytes) -> str:
    """The path of the mount entry that *path* lies in; empty where that is the workspace's own directory."""
    best = ""
    for entry in live.entries:
        raw = os.fsencode(entry)
        if (path == raw or path.startswith(raw + b"/")) and len(entry) > len(best):
            best = entry
    return best


def tree_of(live: LiveWorkspace, entry: str) -> Tree:
    """The tree of the mount entry *entry*; empty: of the workspace's own directory."""
    return live.entries[entry].tree if entry else live.root_tree


def _by_tree(live: LiveWorkspace, targets: Sequence[Target]) -> tuple[dict[str, list[Target]], list[tuple[bytes, str]]]:
    """The targets by mount entry, with paths below that; and those that cannot be written, with the reason."""
    parts: dict[str, list[Target]] = {}
    refused: list[tuple[bytes, str]] = []
    for target in targets:
        entry = entry_of(live, target.wanted.path)
        if not tree_of(live, entry).writable:
            where = f"the mount entry {entry}" if entry else "the workspace's directory"
            refused.append((target.wanted.path, f"{where} is not written to"))
            continue
        below = target.wanted.path[len(os.fsencode(entry)) + 1 :] if entry else target.wanted.path
        if below or target.wanted.mode:
            parts.setdefault(entry, []).append(Target(target.wanted._replace(path=below), target.oid))
    return parts, refused


def _by_file(targets: list[Target]) -> tuple[list[Target], list[tuple[Target, bytes]]]:
    """Those that are files of their own, and those that are to be one file with one of them, with the path of that."""
    alone: list[Target] = []
    again: list[tuple[Target, bytes]] = []
    first: dict[tuple[Wanted, bytes | None], bytes] = {}
    for target in targets:
        wanted = target.wanted
        if wanted.link and not stat.S_ISDIR(wanted.mode):
            key = wanted._replace(path=b"", mtime_ns=None, is_new=False, had_links=False), target.oid
            known = first.setdefault(key, wanted.path)
            if known != wanted.path:
                again.append((target, known))
                continue
        alone.append(target)
    return alone, again


def _in_workspace(entry: str, path: bytes) -> bytes:
    """*path*, which is below a mount entry, as the workspace has it."""
    return os.path.join(os.fsencode(entry), path) if entry else path


def _groups(targets: list[Target]) -> list[list[Target]]:
    return [targets[at : at + _GROUP_FILES] for at in range(0, len(targets), _GROUP_FILES)]


def _contents(group: list[Target], reader: JoinedObjects) -> list[bytes | None]:
    """The content of each of *group*; None for what has none, and for what is to be copied piece by piece."""
    contents: list[bytes | None] = []
    room = _GROUP_BYTES
    for wanted, oid in group:
        if oid is None:
            contents.append(None)
            continue
        size = reader.header(oid)[1]
        if size > LARGE_BYTES or (size > room and not stat.S_ISLNK(wanted.mode)):
            contents.append(None)
            continue
        try:
            contents.append(reader.read(oid)[1])
            room -= size
        except ObjectTooLarge:
            contents.append(None)
    return contents


def _make(applying: Applying, targets: list[Target], reader: JoinedObjects) -> None:
    """In a thread: make the files of *targets*."""
    for wanted, oid in targets:
        assert oid is not None
        applying.make(wanted, oid, partial(_write, reader, oid))


def _write(reader: JoinedObjects, oid: bytes, fd: int) -> None:
    try:
        content = memoryview(reader.read(oid)[1])
    except ObjectTooLarge:
        _copy(reader, oid, fd)
        return
    while content:
        content = content[os.write(fd, content) :]


def _copy(reader: JoinedObjects, oid: bytes, fd: int) -> None:
    with reader.opened(oid) as source:
        offset = 0
        while piece := source.read(_COPY_BYTES):
            done = 0
            while done < len(piece):
                done += os.pwrite(fd, piece[done:], offset + done)
            offset += len(piece)


async def _waiting(call: Callable[[], T]) -> T:
    """Call until it has not to wait any more."""
    while True:
        try:
            return call()
        except Blocked as blocked:
            await trio.to_thread.run_sync(blocked.job)


def _wait_for(call: Callable[[], T]) -> T:
    """As `_waiting`, before the loop runs."""
    while True:
        try:
            return call()
        except Blocked as blocked:
            blocked.job()


async def _waiting_for(entry: str, call: Callable[[], None]) -> None:
    """As `_waiting`; what is in the way is told as people know it."""
    try:
        await _waiting(call)
    except OSError as error:
        name = os.fsdecode(error.filename) if error.filename else ""
        if error.errno == errno.EACCES:
            raise ClivefsError(
                "it is a directory of another user, in which we may change nothing",
                place=os.path.join(entry, name),
                remedy="Name other paths, or have its owner let you write to it.",
            ) from None
        raise ClivefsError(
            f"it is in the way: {error.strerror}",
            place=os.path.join(entry, name),
            remedy="Move it elsewhere; it is not recorded, so nothing would bring it back.",
        ) from None
