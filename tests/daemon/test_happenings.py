"""What happened and was not told of yet: who is told is decided by a look at who watches."""

from __future__ import annotations

from clivefs.base.syscalls import IN_CREATE, IN_DELETE
from clivefs.daemon.happenings import Queue, Watched


def test_what_happens_during_a_look_waits_for_the_next() -> None:
    """Whoever has just begun to watch was looked at before."""
    queue = Queue()
    queue.add(1, b"before", IN_CREATE, 0, 0, was=False)
    queue.add(2, b"watched", IN_CREATE, 0, 0, was=False)
    queue.add_folder(3)
    queue.looks()
    queue.add(1, b"meanwhile", IN_CREATE, 0, 0, was=False)
    queue.add(2, b"meanwhile", IN_CREATE, 0, 0, was=False)
    queue.add_folder(4)
    queue.add_folder(2)
    seen = queue.take_seen(Watched({2}))
    assert (set(seen.names), seen.folders) == ({(1, b"before"), (2, b"watched"), (2, b"meanwhile")}, {2, 3})
    assert (set(queue.names), queue.folders) == ({(1, b"meanwhile")}, {4})
    queue.looks()
    last = queue.take_seen(Watched())
    assert (set(last.names), last.folders) == ({(1, b"meanwhile")}, {4})
    assert not queue


def test_what_happens_again_during_a_look_is_one_happening() -> None:
    queue = Queue()
    queue.add(1, b"name", IN_CREATE, 0, 0, was=False)
    queue.looks()
    queue.add(1, b"name", IN_DELETE, 0, 0, was=False)
    assert not queue.take_seen(Watched())
    queue.looks()
    (happened,) = queue.take_seen(Watched()).names.values()
    assert happened.mask == IN_CREATE | IN_DELETE
