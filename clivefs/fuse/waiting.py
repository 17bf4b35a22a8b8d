"""How the transports wait: for the next request, for what an operation is `Blocked` by, for a thread.

Both carry the same requests to the same `Operations`; what they have in common beyond that is here. Failures are
OSError: a transport makes a reply of the errno. Whatever else goes wrong is logged, and EIO.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import time
from collections.abc import Callable
from typing import TypeVar

import trio

from clivefs.base.errors import ClivefsError
from clivefs.mounts.tree import Blocked

log = logging.getLogger(__name__)

R = TypeVar("R")

WORKERS = 128
"""Jobs under way at once that wait for the network."""
_RETRIES_MAX = 16
_BURST_S = 0.004
"""For how long requests are answered before other tasks of the daemon get their turn."""
_LINGER_S = 0.0002
"""How long the next request is waited for before the loop turns."""
_SELECT_FDS_MAX = 1024
"""select(2) takes no higher descriptor."""
_SLOW_S = 0.005
_SLOW_WRITES = 64
_WRITERS = 16
"""Writes under way at once in threads."""


class Turns:
    """When the reader of the device lets the other tasks of the loop have their turn.

    Whoever asks one thing mostly asks the next as soon as he has his answer: looking for that a moment longer is
    cheaper than a turn of the loop, which costs as much as answering. The loop's other tasks get their turn when nobody
    asks, and every few milliseconds at the latest.
    """

    def __init__(self) -> None:
        self._turned = time.monotonic()
        self.asked_s = 0.0
        """When there last was a request, by the monotonic clock."""

    @property
    def is_due(self) -> bool:
        """Whether it is time to; asked before each request is looked for."""
        self.asked_s = time.monotonic()
        return self.asked_s - self._turned > _BURST_S

    async def give(self) -> None:
        """Let others have their turn."""
        await trio.lowlevel.checkpoint()
        self._turned = time.monotonic()

    async def wait(self, fd: int) -> None:
        """Return when *fd* may be readable."""
        if fd < _SELECT_FDS_MAX and select.select((fd,), (), (), _LINGER_S)[0]:
            return
        await trio.lowlevel.wait_readable(fd)
        self._turned = time.monotonic()


class Jobs:
    """Runs what operations wait for."""

    def __init__(self) -> None:
        self._slow = trio.CapacityLimiter(WORKERS)
        """Of jobs that wait for others (the network): they must not take the threads of fsync and read."""

    async def settle(self, call: Callable[[], R], blocked: Blocked, what: str) -> R:
        """Run the job of *blocked* and then *call*, until that no longer has to wait; what it returns."""
        for _ in range(_RETRIES_MAX):
            await self._run(blocked)
            try:
                return call()
            except Blocked as again:
                blocked = again
            except OSError:
                raise
            except Exception:
                log.exception("%s failed", what)
                raise _failed() from None
        log.error("%s still has to wait after %d turns", what, _RETRIES_MAX)
        raise _failed()

    async def in_thread(self, call: Callable[[], R], what: str, limiter: trio.CapacityLimiter | None = None) -> R:
        """Run one request in a thread, and to its end: what it acknowledges must have happened. *limiter*: of those
        that may take long, so that they do not take the threads of all others."""
        while True:
            try:
                return await trio.to_thread.run_sync(call, limiter=limiter)
            except Blocked as blocked:
                await self._run(blocked)
            except OSError:
                raise
            except Exception:
                log.exception("%s failed", what)
                raise _failed() from None

    async def _run(self, blocked: Blocked) -> None:
        """Wait as *blocked* says, mostly for its job in a thread, and for at most as long as it says."""
        try:
            with trio.fail_after(blocked.timeout_s if blocked.timeout_s is not None else float("inf")):
                if blocked.until is not None:
                    over = trio.Event()
                    blocked.until(over.set)
                    await over.wait()
                    return
                limiter = self._slow if blocked.timeout_s is not None else None
                await trio.to_thread.run_sync(blocked.job, abandon_on_cancel=True, limiter=limiter)
        except trio.TooSlowError:
            log.warning("gave up waiting: %s", blocked.what)
        except OSError:
            raise
        except ClivefsError as error:
            log.warning("%s failed: %s", blocked.what, error)
        except Exception:
            log.exception("%s failed", blocked.what)
        else:
            return
        raise _failed()


class Writes:
    """Where writes are made. One goes to the page cache in microseconds, until the disk is behind and the host makes
    writers wait: then they wait in threads, not on the loop; in some of their own, or all others would wait too."""

    def __init__(self) -> None:
        self._slow = 0
        self.limiter = trio.CapacityLimiter(_WRITERS)

    def in_thread(self) -> bool:
        """Whether the next one is to be made in a thread."""
        if not self._slow:
            return False
        self._slow -= 1
        return True

    def at_once(self, call: Callable[[], R]) -> R:
        """Make one now, and see how long that takes."""
        began = time.monotonic()
        written = call()
        if time.monotonic() - began > _SLOW_S:
            self._slow = _SLOW_WRITES
        return written


def _failed() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))
