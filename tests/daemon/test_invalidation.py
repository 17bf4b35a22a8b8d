"""The queue of invalidations."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable

from clivefs.daemon.invalidation import Invalidator


class Recorder:
    """Notes what is sent; can be held up as the kernel can: wholly, or for some names of one directory."""

    def __init__(self) -> None:
        self.sent: list[tuple[object, ...]] = []
        self.busy: set[int] = set()
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
        if not self.busy or what[1] in self.busy:
            assert self.free.wait(10)
        self.sent.append(what)
        if self.error is not None:
            raise self.error


def test_repetitions_are_sent_once_and_the_stronger_wins() -> None:
    recorder = Recorder()
    queue = Invalidator(recorder)
    queue.start()
    recorder.free.clear()
    for held in range(100, 104):  # all threads have something to do
        recorder.entered.clear()
        queue.inode(held)
        assert recorder.entered.wait(10)
    for _ in range(100):
        queue.entry(1, b"name")
        queue.inode(2, attributes_only=True)
    queue.inode(2)
    queue.inode(2, attributes_only=True)
    assert not queue.drain(0.01)
    recorder.free.set()
    assert queue.drain(10)
    assert sorted(what for what in recorder.sent if what[1] in (1, 2)) == [("entry", 1, b"name"), ("inode", 2, False)]
    queue.close()


def test_a_directory_that_is_busy_holds_up_no_other() -> None:
    recorder = Recorder()
    recorder.free.clear()
    recorder.busy.add(7)
    queue = Invalidator(recorder)
    queue.start()
    for number in range(500):
        queue.entry(7, b"%d" % number)
    for number in range(100, 150):
        queue.entry(number, b"name")
        queue.inode(number)
    until(lambda: len(recorder.sent) == 100)
    assert not queue.drain(0.01)
    recorder.free.set()
    assert queue.drain(10)
    names = [what[2] for what in recorder.sent if what[1] == 7]
    assert names == [b"%d" % number for number in range(500)]
    queue.close()


def test_waiting_until_all_is_sent_does_not_wait_for_what_is_asked_later() -> None:
    recorder = Recorder()
    queue = Invalidator(recorder)
    queue.start()
    queue.entry(1, b"before")
    ends = threading.Event()

    def ask() -> None:
        number = 0
        while not ends.is_set():
            number += 1
            queue.entry(1, b"%d" % number)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert queue.drain(10)
        assert ("entry", 1, b"before") in recorder.sent
    finally:
        ends.set()
        asking.join()
        queue.close()


def test_an_inode_that_the_kernel_does_not_know_yet_is_told_of_again() -> None:
    recorder = Recorder()
    recorder.error = OSError(errno.ENOENT, "not known")
    queue = Invalidator(recorder)
    queue.start()
    queue.inode(5)
    until(lambda: len(recorder.sent) >= 2)
    recorder.error = None  # now it has taken the answer in
    until(lambda: len(recorder.sent) == 3)
    assert set(recorder.sent) == {("inode", 5, False)}
    queue.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


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
    for held in range(100, 104):
        recorder.entered.clear()
        queue.inode(held)
        assert recorder.entered.wait(10)
    queue.inode(2)
    closing = threading.Thread(target=queue.close)
    closing.start()
    recorder.free.set()
    closing.join(10)
    assert not closing.is_alive()
    assert sorted(recorder.sent) == [("inode", held, False) for held in range(100, 104)]
