"""The queue of invalidations."""

from __future__ import annotations

import errno
import threading

from clivefs.daemon.invalidation import Invalidator


class Recorder:
    """Notes what is sent; can be held up as the kernel can."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []
        self.free = threading.Event()
        self.free.set()
        self.entered = threading.Event()
        self.error: OSError | None = None

    def invalidate_inode(self, nodeid: int, attributes_only: bool) -> None:
        self._take(("inode", nodeid, attributes_only))

    def invalidate_entry(self, parent: int, name: bytes) -> None:
        self._take(("entry", parent, name))

    def _take(self, what: tuple[object, ...]) -> None:
        self.entered.set()
        assert self.free.wait(10)
        self.sent.append(what)
        if self.error is not None:
            raise self.error


def test_repetitions_are_sent_once_and_the_stronger_wins() -> None:
    recorder = Recorder()
    queue = Invalidator(recorder)
    queue.start()
    recorder.free.clear()
    queue.inode(1)
    assert recorder.entered.wait(10)
    for _ in range(100):
        queue.entry(1, b"name")
        queue.inode(2, attributes_only=True)
    queue.inode(2)
    queue.inode(2, attributes_only=True)
    assert not queue.drain(0.01)
    recorder.free.set()
    assert queue.drain(10)
    assert recorder.sent == [("inode", 1, False), ("entry", 1, b"name"), ("inode", 2, False)]
    queue.close()


def test_what_the_kernel_does_not_know_is_no_trouble() -> None:
    recorder = Recorder()
    recorder.error = OSError(errno.ENOENT, "not known")
    queue = Invalidator(recorder)
    queue.start()
    queue.entry(1, b"a")
    assert queue.drain(10)
    queue.entry(1, b"b")
    assert queue.drain(10)
    assert len(recorder.sent) == 2
    queue.close()


def test_what_came_before_the_mount_is_not_sent() -> None:
    recorder = Recorder()
    queue = Invalidator(recorder)
    queue.entry(1, b"early")
    queue.start()
    queue.entry(1, b"late")
    assert queue.drain(10)
    assert recorder.sent == [("entry", 1, b"late")]
    queue.close()


def test_nothing_is_sent_once_it_is_closed() -> None:
    recorder = Recorder()
    queue = Invalidator(recorder)
    queue.start()
    recorder.free.clear()
    queue.inode(1)
    assert recorder.entered.wait(10)
    recorder.entered.clear()
    queue.inode(2)
    closing = threading.Thread(target=queue.close)
    closing.start()
    recorder.free.set()
    closing.join(10)
    assert not closing.is_alive()
    assert recorder.sent == [("inode", 1, False)]
