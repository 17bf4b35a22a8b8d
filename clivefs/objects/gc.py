"""Removing what nothing leads to. Everything that decides whether an object may go is here and in `gcgate`.

    look     the names of all objects that there are; younger ones are left alone
    mark     what the roots lead to (`gcmarks`), while others go on writing
    sweep    behind the gate, where no batch is under way: if anything was written since the roots were read, read them
             again and mark what is new; then remove, for at most some milliseconds; let the others in; and again

It can be killed at any moment. What was removed was garbage; what is left of it is garbage still. The names of large
files go first, then the files: one without a name is removed when it is old enough to be nobody's.

One collection at a time: `STORE/gc.run` is held by flock(2).
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.objects.gcmarks import Marks, Reach
from clivefs.objects.store import Store

SPAN_S = 0.008
"""How long objects are removed at a time."""
_YIELD_S = 0.002
_BUSY_S = 20.0
"""How long the gate is tried at least while others are inside."""
_TELL_S = 2.0
_WAIT_S = 0.02
_REREADS_MAX = 8
_ORPHAN_S = 3600.0
_RUN = "gc.run"


class Busy(ClivefsError):
    """Others are at work, so that nothing may be removed now."""


class Patience(NamedTuple):
    """How long to wait for others: for ever, unless *is_over* is asked to begin nothing more."""

    is_over: Callable[[], bool] = lambda: False
    progress: Callable[[str], None] = lambda text: None
    """Is told of waiting, and for whom."""


class Roots(Protocol):
    """What keeps objects."""

    def fresh(self) -> Iterator[bytes]:
        """The roots that there are now, at least those that were not handed out before."""
        ...

    def of_commit(self, oid: bytes, payload: bytes) -> Iterable[bytes]:
        """What a commit keeps."""
        ...


class Swept(NamedTuple):
    """What a collection removed, or with *dry_run* would have: objects, and their bytes as they were kept."""

    objects: int
    bytes: int
    kept: int
    """How many of the objects looked at stay."""


@contextmanager
def one_at_a_time(store: Store) -> Iterator[None]:
    """The collection of *store*. Busy where another process is at it."""
    fd = os.open(os.path.join(store.path, _RUN), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy("a collection is under way", place=store.path, remedy="wait until it has ended") from None
        yield
    finally:
        os.close(fd)


def look(store: Store, roots: Roots, progress: Callable[[str], None] = lambda text: None) -> Reach:
    """The objects of the store's database, those marked that *roots* lead to."""
    marks = Marks(store.hot_names())
    FAULTS.hit("gc.looked")
    progress(f"{len(marks)} objects")
    reach = Reach(store, marks, of_commit=roots.of_commit, is_closed=store.is_sealed)
    reach.mark(store.beside_sealed())
    reach.mark(roots.fresh())
    return reach


def sweep(
    store: Store,
    roots: Roots,
    reach: Reach,
    *,
    dry_run: bool = False,
    progress: Callable[[str], None] = lambda text: None,
    is_over: Callable[[], bool] = lambda: False,
) -> Swept:
    """Remove what has no mark. *is_over*: asked now and then whether to begin nothing more; Busy where others are
    inside the gate then."""
    patience = Patience(is_over, progress)
    marks = reach.marks
    dead = list(marks.unmarked())
    if dry_run:
        return Swept(len(dead), sum(map(store.hot_bytes, dead)), len(marks) - len(dead))
    changed = -1
    count = size = at = rereads = 0
    while at < len(dead) and not is_over():
        with alone(store, patience):
            stale = store.last_change() != changed
            if stale and rereads >= _REREADS_MAX:
                reach.mark(roots.fresh())
                stale = False
            if not stale:
                at, removed, freed = _remove(store, marks, dead, at)
                count += removed
                size += freed
                rereads = 0
                changed = store.last_change()
        if stale:  # others may go on while the roots are read
            rereads += 1
            changed = store.last_change()
            reach.mark(roots.fresh())
        progress(f"{at} of {len(dead)} objects removed")
        time.sleep(_YIELD_S)
    FAULTS.hit("gc.swept")
    with alone(store, patience):
        store.sweep_large(_ORPHAN_S)
    return Swept(count, size, len(marks) - count)


def _remove(store: Store, marks: Marks, dead: list[bytes], at: int) -> tuple[int, int, int]:
    """Remove *dead* from *at* on for a while: (where to go on, how many, their bytes)."""
    deadline = time.monotonic() + SPAN_S
    removed = freed = 0
    while at < len(dead) and time.monotonic() < deadline:
        chunk = dead[at : at + 256]
        at += len(chunk)
        gone = store.remove([oid for oid in chunk if not marks.is_marked(oid)])
        removed += gone.objects
        freed += gone.bytes
        FAULTS.hit("gc.removed")
    return at, removed, freed


@contextmanager
def alone(store: Store, patience: Patience | None = None) -> Iterator[None]:
    """Behind the gate, with nobody inside. Waits as long as *patience* says, and for some seconds at any rate: Busy."""
    begun = time.monotonic()
    told = begun + _TELL_S
    while True:
        with store.gate.alone() as is_alone:
            if is_alone:
                yield
                return
        now = time.monotonic()
        if now > begun + _BUSY_S and (patience is None or patience.is_over()):
            raise Busy(
                f"others are reading or writing all the time{_by(store)}",
                place=store.path,
                remedy="try again when they have ended; what is done stays done",
            )
        if patience is not None and now > told:
            patience.progress(f"waiting for others to end reading or writing{_by(store)}")
            told = now + _TELL_S
        time.sleep(_YIELD_S if now < begun + _TELL_S else _WAIT_S)


def _by(store: Store) -> str:
    """Who is inside the gate, for people; nothing where nobody can tell."""
    pids = store.gate.holders()
    return f" (process {', '.join(map(str, pids))})" if pids else ""
