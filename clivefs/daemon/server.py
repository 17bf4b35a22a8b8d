"""The process that serves one mountpoint: wires store, view, kernel and control socket in one nursery.

Start-up is recovery: whatever the last daemon left (a dead mount, a socket, a torn log) is cleared or
replayed on the way up, and there is no other repair path.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import resource
import shutil
import signal
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator

import trio

from clivefs import __version__
from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import make_directories
from clivefs.daemon import control, pressure, recovery
from clivefs.daemon.applier import Applier
from clivefs.daemon.applying import LiveChanges
from clivefs.daemon.changing import Changing
from clivefs.daemon.collecting import Collecting, Standing
from clivefs.daemon.commands import Commands
from clivefs.daemon.following import Following
from clivefs.daemon.forks.commands import STOPPABLE_FORKING, Forking
from clivefs.daemon.forks.shown import ShownForks
from clivefs.daemon.happenings import kind_of_node
from clivefs.daemon.invalidation import Invalidator
from clivefs.daemon.live import LiveWorkspace
from clivefs.daemon.lock import Held, Lock
from clivefs.daemon.pasts import Pasts
from clivefs.daemon.recording import Recording
from clivefs.daemon.sessions import STOPPABLE, Sessions
from clivefs.daemon.settings import Settings
from clivefs.daemon.trash import Trash
from clivefs.daemon.watching import Watching
from clivefs.daemon.workspaces import Workspaces
from clivefs.fuse import transports
from clivefs.fuse.applied import AppliedOperations
from clivefs.fuse.operations import Operations
from clivefs.mounts.git import command as gitcommand
from clivefs.mounts.host.watch import Outside, Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.points.pins import SUFFIX as PINS
from clivefs.mounts.points.pins import Pins
from clivefs.mounts.published import clients as packageclients
from clivefs.mounts.published import fetch as downloads
from clivefs.mounts.renumbered import Renumbered
from clivefs.mounts.resolve import FS_TYPE
from clivefs.mounts.tree import Node, Owner
from clivefs.mounts.view import View
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

_GRACE_S = 2.0
_STOPPING_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_TICK_S = 1.0
"""How often what cannot be waited for is looked at: other mounts, followed refs, missing watches."""


def run_key(mountpoint: str) -> str:
    """The name that the files of a mountpoint's daemon have in the run directory."""
    return hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]


class Daemon:
    """One mountpoint. `start` mounts (and raises what a person must be told), `serve` runs until the end."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cleanup = contextlib.ExitStack()
        self._stopping = trio.Event()
        self._early_signal: int | None = None
        """A signal to stop that came before `serve`, or while it ends."""

    def start(self, progress: Callable[[str], None]) -> list[str]:
        """Recover, open, assemble and mount; the names of the workspaces. Nothing stays behind on failure."""
        try:
            return self._start(progress)
        except BaseException:
            self.close()
            raise

    def _start(self, progress: Callable[[str], None]) -> list[str]:
        settings = self._settings
        _raise_file_limit()
        os.umask(0)
        run = os.path.join(settings.store, "run")
        make_directories(run)
        self._take_mountpoint(run)
        store = self._cleanup.enter_context(Store.open(settings.store, create=True))

        unpacked = os.path.join(settings.store, "unpacked", run_key(settings.mountpoint))
        _clear(unpacked, "attributes-")
        owner = Owner(os.geteuid(), os.getegid())
        table = NodeTable()
        self.view = View(table, owner, time.time_ns())
        self.watcher = Watcher()
        self._cleanup.callback(self.watcher.close)
        space_fd = os.open(settings.store, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._cleanup.callback(os.close, space_fd)
        numbers = Renumbered(space_fd)
        self._cleanup.callback(numbers.close)
        table.renumbered = numbers.read()
        self.view.keep_number = numbers.add
        self.operations = Operations(self.view, space_fd)
        self._cleanup.callback(self.operations.close)
        self.transport = transports.transport(settings.transport, self.operations)
        applied = AppliedOperations(self.operations)
        self.transport.answer_applier(applied)
        self.invalidator = Invalidator(self.transport)
        self._cleanup.callback(self.invalidator.close)
        self.workspaces = Workspaces(
            store=store,
            view=self.view,
            watcher=self.watcher,
            invalidator=self.invalidator,
            settings=settings,
            unpacked=unpacked,
            on_change=self._write_facts,
        )
        self.applier = Applier(
            self.view,
            applied,
            self.transport,
            self.invalidator,
            settings.mountpoint,
            sees_all=os.geteuid() == 0 or not settings.allow_other,
        )
        self.workspaces.caches.applier = self.applier
        self.store = store
        self.trash = Trash(store.directory("trash"))
        self.changes = LiveChanges(store, self.view, self.workspaces.caches, self.trash)
        self.workspaces.resume = self.changes.resume
        self.recording = Recording(
            store,
            owner,
            settings.mountpoint,
            hidden=self.workspaces.hidden.is_hidden,
            tell_open=self.operations.tell_open,
            tell_long_open=self.operations.tell_long_open,
            being_written=self.operations.being_written,
            asked_s=lambda: self.transport.asked_s,
            user_ignore=settings.user_ignore,
        )
        self.following = Following(self.workspaces, self.watcher, self.recording)
        pins = Pins(os.path.join(run, run_key(settings.mountpoint) + PINS))
        self._cleanup.callback(pins.close)
        self.standing = Standing(pins)
        self.collecting = Collecting(store, self._heads, self._may_collect)
        self.pasts = Pasts(store, self.view, unpacked, pins)
        self.watching = Watching(
            self.view,
            self.workspaces,
            self.recording,
            look_outside=self._look_outside,
            drain=self.invalidator.drain,
        )
        self.workspaces.on_assembled = self._assembled
        self.forks = ShownForks(
            store, self.view, self.workspaces.caches, self.pasts.reader, unpacked, self.pasts.promised
        )
        self.workspaces.other_trees = self.forks.trees
        self.workspaces.on_left = self._left
        self._cleanup.callback(self.workspaces.close)
        self._cleanup.callback(self.forks.close)
        self._cleanup.callback(_end_children)
        for request in settings.workspaces:
            self.workspaces.add_at_start(request.root, allow=request.allow, progress=progress)

        self._listener = self._listen(run)
        self._mount()
        return self.workspaces.names()

    def _heads(self) -> object:
        return [self.recording.head_of(live) for live in self.workspaces.live.values()]

    def _may_collect(self) -> bool:
        return all(live.settings.sessions.gc for live in self.workspaces.live.values())

    def _assembled(self, live: LiveWorkspace) -> None:
        self.standing.assembled(live)
        self.recording.assembled(live)
        self.pasts.show(live)
        self.watching.show(live)
        self.forks.begin(live)

    def _left(self, live: LiveWorkspace) -> None:
        self.standing.left(live)
        self.forks.end(live)
        self.watching.hide(live)
        self.pasts.hide(live)

    def _take_mountpoint(self, run: str) -> None:
        mountpoint = self._settings.mountpoint
        key = run_key(mountpoint)
        facts = {
            "pid": os.getpid(),
            "mountpoint": mountpoint,
            "store": self._settings.store,
            "version": __version__,
            "transport": self._settings.transport,
        }
        try:
            lock = Lock(os.path.join(run, key + ".lock"), facts)
        except Held as held:
            raise ClivefsError(
                f"a daemon serves this mountpoint already (process {held.holder.get('pid', 'unknown')})",
                place=mountpoint,
                remedy="`clivefs status` shows it; `clivefs unmount` ends it",
            ) from None
        self._cleanup.callback(lock.release)
        existing = recovery.mounted_at(mountpoint)
        while existing is not None and existing.fs_type == FS_TYPE:
            log.warning("clearing the dead mount at %s", mountpoint)
            recovery.clear_dead_mount(existing)
            existing = recovery.mounted_at(mountpoint)
        _check_mountpoint(mountpoint, existing)
        self._facts = facts
        self._facts_path = os.path.join(run, key + ".json")
        self._cleanup.callback(_remove, self._facts_path)

    def _write_facts(self, roots: dict[str, str]) -> None:
        """Tell who serves this mountpoint, and what (directories by name): a `mount` after a crash brings the same
        back, and an `unmount` of one of the names knows which mount is meant."""
        temporary = self._facts_path + ".new"
        with open(temporary, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            json.dump({**self._facts, "roots": list(roots.values()), "names": list(roots)}, file)
        os.rename(temporary, self._facts_path)

    def _listen(self, run: str) -> socket.socket:
        name = run_key(self._settings.mountpoint) + ".sock"
        listener = control.bind(run, name)
        self._cleanup.callback(_remove, os.path.join(run, name))
        self._cleanup.callback(listener.close)
        return listener

    def _mount(self) -> None:
        # What is mounted is taken away again by `serve`, so from here on nothing may end us without it.
        for number in _STOPPING_SIGNALS:
            signal.signal(number, self._signalled_early)
        try:
            self.transport.mount(self._settings.mountpoint, allow_other=self._settings.allow_other)
        except RuntimeError as error:
            raise ClivefsError(
                f"could not mount: {error}",
                place=self._settings.mountpoint,
                remedy=f"`clivefs doctor` tells what this machine lacks; see also {self._settings.log_place}",
            ) from None
        self._cleanup.callback(self.transport.unmount)
        FAULTS.hit("daemon.mounted")
        self.invalidator.start()
        self._cleanup.callback(self.invalidator.close)  # before the session that it speaks through is gone

    async def serve(self) -> None:
        """Answer requests until SIGTERM, SIGINT, an `unmount` request, or an unmount from outside."""
        self.workspaces.loop_runs = True
        changing = Changing(self.changes, self.recording, self.following)
        sessions = Sessions(self.store, self.workspaces, self.recording, changing)
        forking = Forking(self.store, self.workspaces, self.recording, changing, self.forks)
        commands = Commands(
            self.workspaces,
            self.following,
            self.recording,
            sessions,
            forking,
            self.watching,
            self._settings,
            self.stop,
            self.collecting,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signals)
                stoppable = (*STOPPABLE, *STOPPABLE_FORKING)
                nursery.start_soon(control.serve, self._listener, commands.table(), self._settings.log_place, stoppable)
                nursery.start_soon(self._watch)
                nursery.start_soon(self.applier.run)
                nursery.start_soon(self._tick)
                nursery.start_soon(self._follow)
                nursery.start_soon(self.following.patched.keep)
                nursery.start_soon(self.recording.run)
                nursery.start_soon(self.collecting.run)
                nursery.start_soon(self.trash.run)
                nursery.start_soon(forking.run)
                nursery.start_soon(self.following.reload_when_asked)
                nursery.start_soon(self._stop_when_asked, nursery.cancel_scope)
                nursery.start_soon(self.following.fetch_in_background)
                await self.transport.serve()
                await self.recording.finish()
                _end_children()  # the nursery waits for the threads that wait for one
                nursery.cancel_scope.cancel()
        finally:
            self.close()

    def stop(self) -> None:
        """End `serve` from the loop's thread; what was acknowledged is finished."""
        self._stopping.set()

    def close(self) -> None:
        self._cleanup.close()

    async def _stop_when_asked(self, everything: trio.CancelScope) -> None:
        await self._stopping.wait()
        # Detach first: nobody new comes in, and those inside get their answers.
        await trio.to_thread.run_sync(recovery.detach, self._settings.mountpoint)
        with trio.move_on_after(2.0):
            await trio.sleep_forever()  # the kernel ends the session when the last user has left
        self.transport.stop()
        # What can be answered has been by then; who waits for the network gets an error as the session closes.
        await trio.sleep(_GRACE_S)
        _end_children()
        everything.cancel()

    def _signalled_early(self, number: int, _: object) -> None:
        if self._ends_us(number):
            self._early_signal = number

    async def _signals(self) -> None:
        with trio.open_signal_receiver(*_STOPPING_SIGNALS) as signals:
            if self._early_signal is not None:
                self._stop_on(self._early_signal)
            async for number in signals:
                if self._ends_us(number):
                    self._stop_on(number)

    def _ends_us(self, number: int) -> bool:
        return number != signal.SIGHUP or self._settings.foreground

    def _stop_on(self, number: int) -> None:
        log.info("stopping on signal %d", number)
        self.stop()

    async def _watch(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self.watcher.fileno())
            self._look_outside()
            await trio.sleep(0.005)  # let a burst gather: one stat and one invalidation a file

    def _look_outside(self) -> None:
        with _logged("looking at changes outside"):
            self._apply(self.watcher.read_events())

    def _apply(self, changes: list[Outside]) -> None:
        """Tell the kernel what changed underneath, and the workspaces of their Clive.toml."""
        for change in changes:
            if change.kind == "overflow":
                self._forget_everything()
                continue
            self.workspaces.caches.apply(change)
            self.forks.noticed(change)
            self.following.noticed(change)

    def _forget_everything(self) -> None:
        for node in self.view.table.nodes():
            self.invalidator.inode(node.nodeid)
            # By the directories' own tables: a file with several names has one parent.
            number = self.view.kernel_node(node).nodeid
            for name in node.children or ():
                self.invalidator.entry(number, name)
            if node.children or kind_of_node(node) == stat.S_IFDIR:
                self.applier.happened_in(number)
        self._forget_absent()
        self.following.reload_all()

    def _forget_absent(self) -> None:
        for nodeid, name in self.operations.take_absent_names():
            self.invalidator.entry(nodeid, name)

    def _let_go(self, nodes: Iterable[Node]) -> None:
        """The kernel shall give these back."""
        for node in nodes:
            if not node.lookups:  # the kernel never had it
                self.view.table.release(node)
            elif node.parent is not None:
                self.invalidator.entry(self.view.kernel_node(node.parent).nodeid, node.name)

    async def _tick(self) -> None:
        while True:
            with _logged("the regular look around"):
                if self.watcher.degraded:
                    self._apply(self.watcher.read_events())
                self._let_go(pressure.surplus(self.view.table))
                if self.operations.many_absent:
                    self._forget_absent()
                self.workspaces.hidden.refresh()
            await trio.sleep(_TICK_S)

    async def _follow(self) -> None:
        """Apart from `_tick`: a source may take long to answer."""
        while True:
            with _logged("looking at the sources again"):
                await self.following.follow()
            await trio.sleep(_TICK_S)


def _end_children() -> None:
    """End what fetches for us: whoever waits for it gets an error."""
    gitcommand.end_all()
    packageclients.end_all()
    downloads.end_all()


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """A failure in *what* is logged, and the mount goes on."""
    try:
        yield
    except Exception:
        log.exception("%s failed", what)


def _check_mountpoint(mountpoint: str, existing: recovery.Mount | None) -> None:
    if existing is not None and existing.mountpoint != "/":
        raise ClivefsError(
            f"something else is mounted here ({existing.fs_type})",
            place=mountpoint,
            remedy="choose another place with --at, or unmount it first",
        )
    over = recovery.clive_mount_over(mountpoint)
    if over is not None:
        raise ClivefsError(
            f"the mountpoint lies in the clivefs mount at {over.mountpoint}",
            place=mountpoint,
            remedy="choose a place outside with --at",
        )
    try:
        make_directories(mountpoint)
        content = os.listdir(mountpoint)
    except (FileExistsError, NotADirectoryError):
        raise ClivefsError(
            "the mountpoint is not a directory", place=mountpoint, remedy="choose another place with --at"
        ) from None
    except OSError as error:
        raise ClivefsError(
            f"the mountpoint cannot be used: {error.strerror}",
            place=mountpoint,
            remedy="choose a directory of your own with --at",
        ) from None
    if content:
        raise ClivefsError(
            "the mountpoint is not empty", place=mountpoint, remedy="choose an empty directory with --at"
        )


def _raise_file_limit() -> None:
    """As many open files as we may have: each file open in the mount is one here."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _clear(directory: str, prefix: str) -> None:
    """Remove what a killed daemon of this mountpoint left behind of its temporary directories."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(directory):
            if name.startswith(prefix):
                shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
