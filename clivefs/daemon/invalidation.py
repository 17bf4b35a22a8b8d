"""Telling the kernel what it must forget, from a thread of its own.

An invalidation may block until a request about the same directory is answered, and answering is the loop's
work: so it is never sent from the loop, and no handler ever waits for this thread.
"""

from __future__ import annotations

import errno
import logging
import threading
from typing import Protocol

log = logging.getLogger(__name__)

_CLOSE_S = 1.0

_HARMLESS = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENOTEMPTY, errno.EEXIST)


class Notifier(Protocol):
    """What a transport offers for it."""

    def invalidate_inode(self, nodeid: int, attributes_only: bool) -> None: ...

    def invalidate_entry(self, parent: int, name: bytes) -> None: ...


class Invalidator:
    """A coalescing queue in front of a `Notifier`: what is asked twice before it is sent goes out once, so
    the queue is never longer than the number of names and inodes that the kernel knows."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._pending: dict[tuple[int, bytes | None], bool] = {}
        self._wake = threading.Condition()
        self._busy = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="invalidate", daemon=True)

    def start(self) -> None:
        """Begin to send: the mount is there now, and the kernel knows nothing of what came before."""
        with self._wake:
            self._pending.clear()
        self._thread.start()

    def inode(self, nodeid: int, *, attributes_only: bool = False) -> None:
        """Forget the attributes, and unless *attributes_only* the pages, of an inode."""
        with self._wake:
            key = (nodeid, None)
            self._pending[key] = attributes_only and self._pending.get(key, True)
            self._wake.notify_all()

    def entry(self, parent: int, name: bytes) -> None:
        """Forget what *name* leads to in the directory *parent*, or that it does not exist."""
        with self._wake:
            self._pending[(parent, name)] = False
            self._wake.notify_all()

    def drain(self, timeout_s: float) -> bool:
        """Wait until everything asked so far was sent; false when that took too long. Not from the loop."""
        with self._wake:
            return self._wake.wait_for(lambda: self._closed or (not self._pending and not self._busy), timeout_s)

    def close(self) -> None:
        """Send nothing any more; to be called before the mount is taken away."""
        with self._wake:
            self._closed = True
            self._pending.clear()
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)  # one that is being sent may wait for an answer that never comes

    def _run(self) -> None:
        while True:
            with self._wake:
                self._busy = False
                self._wake.notify_all()
                self._wake.wait_for(lambda: self._pending or self._closed)
                if self._closed:
                    return
                batch, self._pending = self._pending, {}
                self._busy = True
            for (nodeid, name), attributes_only in batch.items():
                if self._closed:
                    return
                try:
                    if name is None:
                        self._notifier.invalidate_inode(nodeid, attributes_only)
                    else:
                        self._notifier.invalidate_entry(nodeid, name)
                except OSError as error:
                    if error.errno not in _HARMLESS and not self._closed:
                        log.warning("the kernel refused an invalidation: %s", error)
