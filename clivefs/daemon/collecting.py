"""Collections that nobody asked for: when it is quiet, and there is enough to collect.

The work is done by a child, `clivefs gc`, at the lowest priority: marking takes memory and time that a mount should not
have to share, and a child can be ended at any moment. It begins nothing new after two minutes, or once something is
recorded; what it did stays done, and the next one goes on, soon where there is more to do. What it has begun it ends:
it holds no lock for more than some milliseconds, so it is in nobody's way. Afterwards this process gives disk back to
the system, which only it can do while it has the store open, and only when it is quiet, as writers wait meanwhile.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.source import GitSource
from clivefs.mounts.points.pins import Pins
from clivefs.objects.store import Store

log = logging.getLogger(__name__)

LOOK_S = 30.0
QUIET_S = 60.0
"""How long nothing was recorded before one begins."""
WORK_S_MAX = 120.0
"""Nothing is begun later."""
END_S_MAX = 1800.0
"""What was begun is ended then: packs of a very long history are being made one, say."""
AGAIN_S = 3600.0
"""At most one an hour ..."""
GO_ON_S = 60.0
"""... unless there was more to do."""
OBJECTS_MIN = 20_000
BYTES_MIN = 64 << 20
OLDEST_S = 24 * 3600.0
"""One a day, whatever there is."""
COPY_BYTES_MAX = 64 << 20
_NAMESPACE = "gc"
_BUSY = ("others are reading or writing", "is under way")
"""What `gc` says when it is only not the moment."""


class Collecting:
    """Decides when, and has it done. For the loop's thread."""

    def __init__(self, store: Store, recorded: Callable[[], object], wanted: Callable[[], bool]) -> None:
        """*recorded*: something that is another after every recording. *wanted*: whether no workspace is against it."""
        self._store = store
        self._recorded = recorded
        self._wanted = wanted
        self._seen: object = object()  # nothing yet
        self._since_s = 0.0
        self._next_s = 0.0
        self._unfinished = False

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await trio.sleep(LOOK_S)
            try:
                if self._is_quiet() and self._wanted() and trio.current_time() >= self._next_s and self.is_due():
                    await self.collect()
            except (OSError, ClivefsError) as error:
                log.warning("the collection that was due: %s", error)
                self._next_s = trio.current_time() + AGAIN_S

    def _is_quiet(self) -> bool:
        now = self._recorded()
        if now != self._seen:
            self._seen = now
            self._since_s = trio.current_time()
        return trio.current_time() - self._since_s >= QUIET_S

    def is_due(self) -> bool:
        """Whether there is enough to collect."""
        if self._unfinished:
            return True
        record = self._store.meta_get(_NAMESPACE, b"last")
        last = json.loads(record) if record is not None else {"time": 0.0, "objects": 0, "used": 0}
        _, used = self._store.usage()
        grown = self._store.counts()["objects"] - last["objects"] >= OBJECTS_MIN or used - last["used"] >= BYTES_MIN
        return grown or time.time() - last["time"] >= OLDEST_S

    async def collect(self) -> None:
        """One collection, short if something is recorded meanwhile."""
        self._next_s = trio.current_time() + AGAIN_S
        self._unfinished = False
        before = self._recorded()
        command = [sys.executable, "-m", "clivefs.cli", "gc", "--store", self._store.path, "--json"]
        command += ["--seconds", str(int(WORK_S_MAX)), "--while-quiet"]
        for polite in (["ionice", "-c", "3"], ["nice", "-n", "19"]):
            if shutil.which(polite[0]):
                command = [*polite, *command]
        with trio.move_on_after(END_S_MAX):
            done = await trio.run_process(
                command,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                cwd="/",
                env={**os.environ, "PYTHONSAFEPATH": "1"},
            )
            await self._finish(done, is_quiet=self._recorded() == before)
            return
        log.warning("a collection was ended after %.0f minutes", END_S_MAX / 60)

    def _go_on(self) -> None:
        self._unfinished = True
        self._next_s = trio.current_time() + GO_ON_S

    async def _finish(self, done: subprocess.CompletedProcess[bytes], *, is_quiet: bool) -> None:
        with trio.CancelScope(shield=True):
            if done.returncode:
                said = done.stderr.decode("utf-8", "replace").strip()[-500:]
                level = logging.INFO if any(text in said for text in _BUSY) else logging.WARNING
                log.log(level, "a collection came to nothing: %s", said)
                return
            facts = json.loads(done.stdout)
            if facts["unfinished"] or not is_quiet:
                self._go_on()
                log.info("collected: %s; it goes on when it is quiet", _told(facts))
                return
            freed = await trio.to_thread.run_sync(self.give_back)
            log.info("collected: %s; %s bytes of disk given back", _told(facts), freed)

    def give_back(self) -> int | None:
        """Give disk back to the system, and note that it was done; how many bytes. In a thread."""
        freed = self._store.compact(used_max=COPY_BYTES_MAX)
        note_done(self._store)
        return freed


class Standing:
    """What mount entries stand on: their trees, as patched ones are led to by nothing else; their repositories and
    private gitdirs, which may go when no entry shows them any more. For the loop's thread."""

    def __init__(self, pins: Pins) -> None:
        self._pins = pins
        self._of: dict[str, list[bytes]] = {}
        self._used: dict[str, list[GitSource | GitDir]] = {}

    def assembled(self, live: LiveWorkspace) -> None:
        """The entries of *live* are others now."""
        new: list[bytes] = []
        for mounted in live.entries.values():
            oid = mounted.lower.describe(mounted.lower.root).get("oid") if mounted.lower is not None else None
            if oid:
                new.append(bytes.fromhex(oid.decode()))
        old = self._of.get(live.id, [])
        if new != old:
            self._of[live.id] = new
            self._pins.replace(old, new)
        both = [each for mounted in live.entries.values() for each in (mounted.source, mounted.git_dir)]
        self._use(live, [each for each in both if each is not None])

    def _use(self, live: LiveWorkspace, now: list[GitSource | GitDir]) -> None:
        for each in self._used.pop(live.id, []):
            if not any(each is other for other in now):
                each.release()
        self._used[live.id] = now

    def left(self, live: LiveWorkspace) -> None:
        """*live* is shown no more."""
        self._pins.replace(self._of.pop(live.id, []), [])
        self._use(live, [])
        del self._used[live.id]


def note_done(store: Store) -> None:
    """Remember that a collection was made now."""
    record = {"time": time.time(), "objects": store.counts()["objects"], "used": store.usage()[1]}
    with store.batch() as batch:
        batch.meta_put(_NAMESPACE, b"last", json.dumps(record).encode())


def _told(facts: dict[str, Any]) -> str:
    dropped = sum(each["dropped"] for each in facts["points"])
    return (
        f"{dropped} points thinned, {facts['objects']['removed']} objects removed, {facts['objects']['sealed']} sealed"
    )
