"""Tells watchers (inotify) of what did not come through the mount, by doing it through the mount once more.

    a change       `KernelCaches` notes it here (`happened`), beside telling the kernel what to forget
    who watches    the applier looks in /proc who has a watch on which inode of our mount
    a plan         `happenings`: what the names led to, what they lead to now, and so one operation each
    the script     `fuse.applied` answers the applier's requests by it; others are told nothing that is remembered
    the round      the kernel forgets the names, the applier acts, the script ends

The applier is a process of its own (`applier_process`). When it dies or does not answer, the round is given up, it is
ended and started again: what is lost are events, never what the mount shows. Nobody waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from typing import Any, Protocol

import trio

from clivefs.daemon import recovery
from clivefs.daemon.happenings import Plan, Planner, Queue, Watched, kind_of_node, names_of
from clivefs.daemon.invalidation import Invalidator
from clivefs.fuse.applied import AppliedOperations
from clivefs.mounts.tree import Node
from clivefs.mounts.view import View

log = logging.getLogger(__name__)

ROUND_ACTS = 64
_GATHER_S = 0.002
_ANSWER_S = 2.0
_NOT_FOUND = " (deleted)"
_KNOWN_S = 2.0
"""For how long what was seen to be watched is believed to be."""
_SCAN_SHARE = 5
"""At most one part in so many of the time goes into looking who watches."""
_FAILURES_MAX = 2
_RESTART_S = (0.1, 30.0)
_LINE_BYTES_MAX = 4 << 20
_PROGRAM = os.path.join(os.path.dirname(__file__), "applier_process.py")


class Transport(Protocol):
    """What of a transport is needed."""

    applier_pid: int


class Applier:
    """One mountpoint's. Methods are for the loop's thread."""

    def __init__(
        self,
        view: View,
        applied: AppliedOperations,
        transport: Transport,
        invalidator: Invalidator,
        mountpoint: str,
        *,
        sees_all: bool,
    ) -> None:
        """*sees_all*: whoever may watch is a process that we may look at."""
        self._view = view
        self._applied = applied
        self._transport = transport
        self._invalidator = invalidator
        self._mountpoint = mountpoint
        self._sees_all = sees_all
        self._queue = Queue()
        self._planner = Planner(view, applied.wings.nodeid)
        self._asked = trio.Event()
        self._process: _Process | None = None
        self._device = 0
        self._watched = Watched()
        self._watched_until = 0.0
        self._scan_at = 0.0
        self._start_at = 0.0
        self._pause_s = _RESTART_S[0]
        self._failures = 0
        self._unfinished: set[int] = set()
        """The directories of what is being told."""
        self._stranded: trio.Event | None = None
        """Set when those who are stranded have been put back; None: nobody is..."""
        self._putting_back: trio.Event | None = None
        """...but those that are being put back just now."""
        self._runs = False

    # What happened

    def happened(
        self,
        directory: Node,
        name: bytes,
        *,
        mask: int = 0,
        old: Node | None = None,
        was: bool = False,
        stays: bool = False,
    ) -> None:
        """*name* in *directory* has come, gone or changed, behind the kernel's back. *old*: what it led to, and with
        *stays* still does; *was*: it led to something, though nobody knew what. *mask*: the inotify events of the host,
        if it has told."""
        if not directory.lookups and not (old is not None and old.lookups):
            return  # the kernel knows neither: nobody can have a watch on them
        number = old.nodeid if old is not None else 0
        kind = kind_of_node(old) if old is not None else 0
        self._queue.add(directory.nodeid, name, mask, number, kind, was=was or number != 0, stays=stays)
        self._asked.set()

    def happened_in(self, directory: int) -> None:
        """Something happened in the directory of that number, nobody knows what."""
        self._queue.add_folder(directory)
        self._asked.set()

    def strands(self) -> None:
        """The kernel is to forget names of directories that stay. For who works in one of them getcwd(2) fails from
        then on, until somebody looks the name up: the applier does."""
        if self._runs and self._stranded is None:
            self._stranded = trio.Event()
            self._asked.set()

    async def put_back(self) -> None:
        """Return when nobody is stranded any more, or it takes too long."""
        with trio.move_on_after(_ANSWER_S):
            for event in (self._putting_back, self._stranded):
                if event is not None:
                    await event.wait()

    # Telling

    async def run(self) -> None:
        """Until cancelled."""
        mount = recovery.mounted_at(self._mountpoint)
        self._device = mount.device_minor if mount is not None else 0
        self._runs = True
        try:
            while True:
                await self._asked.wait()
                self._asked = trio.Event()
                await self._put_back()
                await trio.sleep(_GATHER_S)
                if trio.current_time() < self._start_at:
                    self._queue = Queue()  # the last one has failed just now: the kernel has been told what to forget
                    continue
                try:
                    await self._tell()
                except _Failed as failed:
                    self._end()
                    self._again(failed)
        finally:
            self._runs = False
            self._end()

    def _again(self, failed: _Failed) -> None:
        """Tell of the directories at least, by another applier; if that fails too, of nothing for a while."""
        self._failures += 1
        if self._failures <= _FAILURES_MAX:
            log.info("telling watchers again: %s", failed)
            self._queue.folders |= self._unfinished
            self._asked.set()
        else:
            log.warning("watchers were not told of a change: %s", failed)
            self._queue = Queue()
            self._start_at = trio.current_time() + self._pause_s
            self._pause_s = min(self._pause_s * 2, _RESTART_S[1])
        self._unfinished = set()

    async def _put_back(self) -> None:
        """Look up again where somebody works that is not found any more."""
        event, self._stranded = self._stranded, None
        if event is None:
            return
        self._putting_back = event
        try:
            # The applier itself has to be started for it, so only where somebody is.
            places = await trio.to_thread.run_sync(self._stranded_places, abandon_on_cancel=True)
            if places:
                stranded = [[_latin(name) for name in place.split("/")] for place in places]
                await self._ask({"root": _latin(self._mountpoint), "device": self._device, "stranded": stranded})
        except _Failed as failed:
            log.info("nobody was put back where he works: %s", failed)
            self._end()
        finally:
            self._putting_back = None
            event.set()

    def _stranded_places(self) -> set[str]:
        """The directories below the mountpoint that processes work in, and that are not found from there any more. For
        threads. To read where somebody works asks the mount nothing."""
        places: set[str] = set()
        if not self._invalidator.drain(_ANSWER_S):
            return places
        for pid in os.listdir("/proc"):
            try:
                place = os.readlink(f"/proc/{pid}/cwd") if pid.isdigit() else ""
            except OSError:
                continue  # it ended, or is another user's
            if place.startswith(self._mountpoint + "/") and place.endswith(_NOT_FOUND):
                places.add(place[len(self._mountpoint) + 1 : -len(_NOT_FOUND)])
        return places

    async def _tell(self) -> None:
        while self._queue:
            watched = self._watched if trio.current_time() < self._watched_until else Watched()
            known = self._queue.take(watched)
            if not known:
                watched = await self._look()
                known = self._queue.take_seen(watched)
            while known:
                self._unfinished = known.folders | {directory for directory, _ in known.names}
                plan = self._planner.plan(known, watched, ROUND_ACTS)
                if plan.acts:
                    await self._round(plan)
                for place, each in plan.later.names.items():
                    known.names[place] = each
                known.folders |= plan.later.folders
            self._unfinished = set()

    async def _look(self) -> Watched:
        """Who is watched now."""
        if not self._sees_all:
            return Watched(None)
        await trio.sleep_until(self._scan_at)
        began = trio.current_time()
        self._queue.looks()
        answer = await self._ask({"scan": self._device, "not": [os.getpid()]})
        now = trio.current_time()
        self._scan_at = now + (now - began) * (_SCAN_SHARE - 1)
        inodes = answer.get("watched")
        self._watched = Watched(inodes)
        self._watched_until = now + _KNOWN_S
        return self._watched

    async def _round(self, plan: Plan) -> None:
        process = await self._running()
        self._applied.expect(plan.script)
        self._transport.applier_pid = process.pid
        try:
            for directory, name in names_of(plan, self._applied.wings.nodeid):
                self._invalidator.entry(directory, name)
            if not await trio.to_thread.run_sync(self._invalidator.drain, _ANSWER_S, abandon_on_cancel=True):
                raise _Failed("the kernel was not told of the changes")
            answer = await self._ask({"root": _latin(self._mountpoint), "device": self._device, "acts": plan.acts})
        finally:
            left = self._applied.settle()
        for index, code in answer.get("failed", ()):
            if index < 0:
                raise _Failed(f"the mount could not be entered: {os.strerror(code)}")
        for main, directory in plan.mains:
            if left[main] > 0 and main != ("touch", directory, b""):
                plan.later.folders.add(directory)
        self._pause_s = _RESTART_S[0]
        self._failures = 0

    # The process

    async def _running(self) -> _Process:
        if self._process is None:
            self._process = await _Process.start()
        return self._process

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        process = await self._running()
        with trio.move_on_after(_ANSWER_S):
            return await process.ask(message)
        raise _Failed("the applier did not answer")

    def _end(self) -> None:
        self._transport.applier_pid = -1  # before its number can become another's
        process, self._process = self._process, None
        if process is not None:
            process.end()


class _Failed(Exception):
    """A round was given up."""


class _Process:
    """The applier, running."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdin is not None
        assert popen.stdout is not None
        self._popen = popen
        self.pid = popen.pid
        self._to = trio.lowlevel.FdStream(os.dup(popen.stdin.fileno()))
        self._from = trio.lowlevel.FdStream(os.dup(popen.stdout.fileno()))
        popen.stdin.close()
        popen.stdout.close()
        self._rest = b""

    @classmethod
    async def start(cls) -> _Process:
        """Start one. _Failed."""
        try:
            return cls(await trio.to_thread.run_sync(_start))
        except OSError as error:
            raise _Failed(f"the applier cannot be started: {error}") from None

    async def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """Its answer. _Failed when it is no more."""
        try:
            await self._to.send_all(json.dumps(message).encode() + b"\n")
            while b"\n" not in self._rest and len(self._rest) < _LINE_BYTES_MAX:
                chunk = await self._from.receive_some(65536)
                if not chunk:
                    raise _Failed("the applier has ended")
                self._rest += chunk
            line, _, self._rest = self._rest.partition(b"\n")
            answer = json.loads(line)
        except (trio.BrokenResourceError, trio.ClosedResourceError, ValueError):
            raise _Failed("the applier has ended") from None
        if not isinstance(answer, dict):
            raise _Failed("the applier has lost its mind")
        return answer

    def end(self) -> None:
        """Kill it. It may go on waiting for the mount for a moment, which is nobody's concern."""
        self._popen.kill()
        trio.lowlevel.spawn_system_task(self._bury)

    async def _bury(self) -> None:
        await trio.aclose_forcefully(self._to)
        await trio.aclose_forcefully(self._from)
        await trio.to_thread.run_sync(self._popen.wait, abandon_on_cancel=True)


def _start() -> subprocess.Popen[bytes]:
    # -I: neither the environment nor the current directory decides what it is. No descriptor of ours goes with it.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd="/",
        start_new_session=True,
    )


def _latin(path: str) -> str:
    return os.fsencode(path).decode("latin-1")
