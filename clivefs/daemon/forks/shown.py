"""The forks of each mounted workspace as directories: `.clive/forks/NAME`.

A fork is there as soon as its record is in the store, and at every mount from then on. One whose point cannot be shown
stays in the list with the reason.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import make_directories
from clivefs.daemon.forks import gitsources
from clivefs.daemon.kernelcaches import KernelCaches
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.forks import gitdirs
from clivefs.mounts.forks.inherited import Inherited, RulesOfThen
from clivefs.mounts.forks.keeping import Keeper
from clivefs.mounts.forks.lower import DOT_GIT, ForkLower
from clivefs.mounts.forks.recorded import ForkRecorder
from clivefs.mounts.forks.records import UPPER_PREFIX, ForkRecord, Forks
from clivefs.mounts.forks.tree import ForkTree
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.index import stat_from
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.promised import PromisedObjects
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.watch import Outside
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.overlay.discard import destroy
from clivefs.mounts.overlay.node import OverlayNode
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.points.compare import State
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.lower import PointLower, lower_of_point
from clivefs.mounts.points.names import is_session_name
from clivefs.mounts.points.point import Point
from clivefs.mounts.recording.ignore import FILE_BYTES_MAX, after
from clivefs.mounts.recording.parts import join
from clivefs.mounts.synthetic import SyntheticDirectory
from clivefs.mounts.tree import Blocked, Node, Tree
from clivefs.mounts.view import View
from clivefs.objects.errors import CorruptObject, ObjectMissing, RepositoryError
from clivefs.objects.gitdirs import find_gitdir
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

NAME = b"forks"
_JOBS_MAX = 16
_RUBBISH = b"dropped-"


class ForkDropped(ClivefsError):
    """A fork was dropped while it was looked at."""


class ShownFork:
    """One fork that is shown."""

    def __init__(self, forks: Forks, record: ForkRecord, start: Point, tree: ForkTree, recorder: ForkRecorder) -> None:
        self.forks = forks
        self.record = record
        self.start = start
        self.tree = tree
        self.recorder = recorder
        self.recording = trio.Lock()
        """Held while `recorder` is at work, and while it is dropped."""
        self.is_shown = True
        """Its tree is open."""

    def check(self) -> None:
        """`ForkDropped` where it is shown no more."""
        if not self.is_shown:
            raise ForkDropped("it was dropped meanwhile", place=self.record.name)

    def directories(self) -> list[int]:
        """Descriptors of where its files are: those that were written in it, and those that were kept for it. The
        caller closes them. ForkDropped."""
        self.check()
        assert self.tree.upper is not None
        return [os.dup(self.tree.upper.tree_fd), _lower(self).inherited.tree_fd()]


class ShownForks:
    """Those of all workspaces. Methods are for the loop's thread unless they say otherwise."""

    def __init__(
        self,
        store: Store,
        view: View,
        caches: KernelCaches,
        reader: Callable[[], JoinedObjects],
        unpacked: str,
        promised: Callable[[LiveWorkspace], PromisedObjects],
    ) -> None:
        """*reader*: all that a point can name. *unpacked*: where large blobs become plain files. *promised*: what gets
        what is missing of a workspace's points."""
        self._store = store
        self._view = view
        self._caches = caches
        self.reader = reader
        self._promised = promised
        self._unpacked = unpacked
        self._tops: dict[str, SyntheticDirectory] = {}
        self._guards: dict[str, Node] = {}
        self._shown: dict[str, dict[str, ShownFork]] = {}
        self._live: dict[str, tuple[LiveWorkspace, dict[str, ShownFork]]] = {}
        self._errors: dict[str, dict[str, str]] = {}
        self._making = threading.Lock()
        """Held while an upper is there and its record may not be."""

    def trees(self) -> Iterator[ForkTree]:
        for forks in self._shown.values():
            for shown in forks.values():
                yield shown.tree

    # Coming and going of workspaces

    def begin(self, live: LiveWorkspace) -> None:
        """Show the forks of *live*, if they are not shown yet. May wait: a damaged or large one for its objects."""
        self.keep(live)
        if live.control is None or live.id in self._tops:
            return
        top = self._tops[live.id] = self._view.synthetic.directory(live.control, NAME)
        # In a fork without a repository git would find the live view's, now or once there is one.
        self._guards[live.id] = self._view.synthetic.unlisted_file(top, DOT_GIT, lambda: gitdirs.NO_REPOSITORY)
        self._shown[live.id] = {}
        self._live[live.id] = live, self._shown[live.id]
        self._errors[live.id] = {}
        for record in self.forks(live).all():
            try:
                self._show_waiting(live, record)
            except (ClivefsError, OSError) as error:
                log.warning("%s: the fork %s cannot be shown: %s", live.name, record.name, error)
                self._errors[live.id][record.name] = str(error)

    def _show_waiting(self, live: LiveWorkspace, record: ForkRecord) -> None:
        for _ in range(_JOBS_MAX):
            try:
                self.show(live, record)
            except Blocked as blocked:
                blocked.job()
            else:
                return

    def end(self, live: LiveWorkspace) -> None:
        """*live* leaves."""
        if self._tops.pop(live.id, None) is None:
            return
        for name in list(self._shown[live.id]):
            self.hide(live, name)
        self._view.synthetic.remove(self._guards.pop(live.id))
        del self._shown[live.id], self._errors[live.id], self._live[live.id]

    def close(self) -> None:
        for tree in self.trees():
            tree.close()
        self._shown.clear()
        self._tops.clear()

    # What forks inherit

    def keep(self, live: LiveWorkspace) -> None:
        """Let the trees of *live* keep what its forks have inherited: to be called whenever either are others."""
        forks = self._shown.get(live.id, {})
        for prefix, tree in _trees(live).items():
            tree.keeper = Keeper(prefix, lambda: [_lower(each) for each in forks.values()]) if forks else None

    def noticed(self, change: Outside) -> None:
        """Something was changed behind the mount's back: what forks have inherited of it changes with it."""
        for live, forks in list(self._live.values()):
            if not forks:
                continue
            for prefix, tree in _trees(live).items():
                path = _changed_path(change, tree)
                if path is not None:
                    for shown in forks.values():
                        self._forget(shown, join(prefix, path))

    def _forget(self, shown: ShownFork, live_path: bytes) -> None:
        at = _lower(shown).inherited.own_path(live_path)
        node: Node | None = shown.tree.root
        for name in at.split(b"/") if at else ():
            node = (node.children or {}).get(name) if node is not None else None
        if isinstance(node, OverlayNode) and node is not shown.tree.root and not node.upper and node.parent is not None:
            self._caches.forget_names([(node.parent, node.name, node)])
            self._caches.forget_tree(node.nodeid, ())

    # Single forks

    def forks(self, live: LiveWorkspace) -> Forks:
        """The records of the forks of *live*."""
        return Forks(self._store, live.id)

    def get(self, live: LiveWorkspace, name: str) -> ShownFork:
        """The fork of that name. ClivefsError where there is none, or it cannot be shown."""
        shown = self._shown.get(live.id, {}).get(name)
        if shown is not None:
            return shown
        self.forks(live).get(name)
        error = self.error(live, name)
        if error is None:
            raise ClivefsError("the fork is being made or dropped at this moment", place=name, remedy="try again")
        raise ClivefsError(f"the fork cannot be shown: {error}", place=name, remedy=f"`clivefs fork --drop {name}`")

    def of(self, live: LiveWorkspace) -> list[ShownFork]:
        """The forks that are shown, by name."""
        return [shown for _, shown in sorted(self._shown.get(live.id, {}).items())]

    def error(self, live: LiveWorkspace, name: str) -> str | None:
        """Why a fork is not shown."""
        return self._errors.get(live.id, {}).get(name)

    def show(self, live: LiveWorkspace, record: ForkRecord) -> ShownFork:
        """Show a fork whose record is in the store. ClivefsError, OSError; may be `Blocked`, before any change."""
        try:
            start = Points(self._store, live.id).load(bytes.fromhex(record.start))
        except (ObjectMissing, CorruptObject) as error:
            raise ClivefsError(f"its point is not there: {error}", place=record.name) from error
        make_directories(self._unpacked)
        reader = self.reader()
        point = lower_of_point(
            start, reader, owner=self._view.owner, cache_dir=self._unpacked, promised=self._promised(live)
        )
        try:
            point.attr(point.root, fetch=True)  # what must be waited for is waited for here
            directory = self.directory(live, record)
            upper = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            point.close()
            raise
        try:
            git = gitdirs.places(directory)
            dot_git = {path: gitdirs.dot_git_content(gitdir) for path, gitdir in git.items()}
            lower = ForkLower(
                point,
                reader,
                Inherited(upper),
                self._view.table,
                lambda: _trees(live),
                entries=map(os.fsencode, record.entries),
                git=dot_git,
                made_ns=record.made_ms * 1_000_000,
                unfinished={
                    path: partial(self._finish_gitdir, each, point, path)
                    for path, each in git.items()
                    if not gitdirs.is_finished(each)
                },
            )
            try:
                identity = f"{live.id}\0fork\0{record.upper}".encode()
                tree = ForkTree(lower, upper, self._view.table, entry=identity, source=b"fork")
            except BaseException:
                lower.close()
                raise
        finally:
            os.close(upper)
        rules = lower.inherited.rules
        recorder = ForkRecorder(
            self._store,
            self.reader,
            State(start.tree, start.meta),
            entries=record.entries,
            exclude=rules.exclude,
            ignored=not rules.obey,
            beside=rules.info_exclude,
        )
        shown = self._shown[live.id][record.name] = ShownFork(self.forks(live), record, start, tree, recorder)
        self._errors[live.id].pop(record.name, None)
        self.keep(live)
        parent, name = self._view.set_entry(self._tops[live.id], record.name.encode(), tree)
        self._caches.forget_way(parent, name)
        return shown

    def _finish_gitdir(self, gitdir: str, point: PointLower, path: bytes) -> None:
        gitdirs.finish(gitdir, stat_from(point, path), scratch_directory(self._store.path))

    def hide(self, live: LiveWorkspace, name: str) -> None:
        """Show a fork no more. Who has a file of it open keeps that."""
        self._errors[live.id].pop(name, None)
        shown = self._shown[live.id].pop(name, None)
        if shown is None:
            return
        shown.is_shown = False
        self.keep(live)
        parent, entry = self._view.remove_entry(self._tops[live.id], name.encode())
        self._caches.forget_way(parent, entry)
        DetachedTree(shown.tree, self._view.table, shown.tree.close)

    # On disk

    def directory(self, live: LiveWorkspace, record: ForkRecord) -> str:
        """The fork's upper."""
        return os.path.join(self._uppers(live), record.upper)

    def _uppers(self, live: LiveWorkspace) -> str:
        return os.path.join(os.fspath(self._store.path), "uppers", live.id)

    def make(self, live: LiveWorkspace, record: ForkRecord) -> None:
        """Make the upper and the record of a new fork; durable. For threads. MetaConflict: the name is taken."""
        directory = self.directory(live, record)
        rules = _rules_now(live)
        sources = gitsources.sources(live)
        with self._making:
            make_directories(directory)
            Inherited.write_rules(directory, rules)
            gitdirs.make(directory, sources)
            FAULTS.hit("fork.upper")
            try:
                self.forks(live).add(record)
            except BaseException:
                shutil.rmtree(directory)
                raise
        FAULTS.hit("fork.made")

    def drop(self, live: LiveWorkspace, record: ForkRecord) -> None:
        """Forget a fork that is not shown any more, with all that was written in it. For threads."""
        self.forks(live).drop(record)
        FAULTS.hit("fork.dropped")
        self.clear(live)

    def clear(self, live: LiveWorkspace) -> None:
        """Delete what is left of forks that were dropped, or not finished. For threads."""
        try:
            fd = os.open(self._uppers(live), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            with self._making:
                known = {record.upper for record in self.forks(live).all()}
                for name in os.listdir(fd):
                    if name.startswith(UPPER_PREFIX) and name not in known:
                        os.rename(name, _rubbish_name(), src_dir_fd=fd, dst_dir_fd=fd)
            for name in os.listdir(fd):
                if os.fsencode(name).startswith(_RUBBISH):
                    destroy(fd, os.fsencode(name), lambda inode: None, _rubbish_name)
        finally:
            os.close(fd)

    # Audits, which outlive their forks

    def _audit_file(self, live: LiveWorkspace, name: str) -> str:
        return os.path.join(self._store.directory(f"audits/{live.id}"), f"{name}.json")

    def has_audit(self, live: LiveWorkspace, name: str) -> bool:
        """Whether the audit of a sandboxed command is kept under that name."""
        return is_session_name(name) and os.path.exists(self._audit_file(live, name))

    def keep_audit(self, live: LiveWorkspace, name: str, facts: dict[str, Any]) -> None:
        """Keep what a command has read and written. For threads."""
        write_whole(self._audit_file(live, name), json.dumps(facts).encode())

    def audit(self, live: LiveWorkspace, name: str) -> dict[str, Any]:
        """What was kept. For threads. ClivefsError where there is none."""
        if self.has_audit(live, name):
            with open(self._audit_file(live, name), "rb") as file:
                facts: dict[str, Any] = json.load(file)
            return facts
        raise ClivefsError(
            f"no audit is kept of {name!r}", remedy=f"clivefs run --fork --name {name} --sandbox -- CMD makes one"
        )

    def drop_audit(self, live: LiveWorkspace, name: str) -> None:
        """Forget it. For threads."""
        if self.has_audit(live, name):
            os.unlink(self._audit_file(live, name))


def _trees(live: LiveWorkspace) -> dict[bytes, Tree]:
    """The trees of a live view by mount entry."""
    trees: dict[bytes, Tree] = {b"": live.root_tree}
    trees.update((os.fsencode(path), mounted.tree) for path, mounted in live.entries.items())
    return trees


def _lower(shown: ShownFork) -> ForkLower:
    lower = shown.tree.lower
    assert isinstance(lower, ForkLower)
    return lower


def _changed_path(change: Outside, tree: Tree) -> bytes | None:
    """The path below *tree* of what has changed in it; None for a change of another."""
    if change.tree is tree and isinstance(change.directory, Node):
        path = change.directory.path()
    elif (
        isinstance(tree, OverlayTree)
        and isinstance(tree.lower, LocalLower)
        and change.tree is tree.lower
        and isinstance(change.directory, LowerRef)
    ):
        path = tree.lower.path(change.directory)
    else:
        return None
    return join(path, change.name) if change.name else path


def _rules_now(live: LiveWorkspace) -> RulesOfThen:
    """What is ignored now, beside the `.gitignore` files. For threads."""
    settings = live.settings.sessions
    directories = {}
    with contextlib.suppress(RepositoryError, OSError):
        directories[""] = find_gitdir(live.root)[1]
    directories.update((path, each.git_dir.path) for path, each in live.entries.items() if each.git_dir is not None)
    everywhere = live.user_ignore
    found = {path: everywhere.decode("latin-1") for path in ("", *live.entries) if everywhere}
    for path, directory in directories.items():
        with contextlib.suppress(OSError):
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(os.path.join(directory, "info", "exclude"), flags)
            with open(fd, "rb") as file:
                found[path] = (after(everywhere, file.read(FILE_BYTES_MAX)) or b"").decode("latin-1")
    return RulesOfThen(exclude=tuple(settings.exclude), obey=not settings.ignored, info_exclude=found)


def _rubbish_name() -> bytes:
    return _RUBBISH + os.urandom(12).hex().encode()
