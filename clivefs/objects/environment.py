"""LMDB environments: the only file that imports lmdb. Everything that keeps LMDB's own rules lives here.

- An environment is opened once per process (its fcntl locks belong to the process): the registry hands
  out the same `Environment` for the same real path, counted, and closes it when the last user does.
- It never crosses fork(): in a forked child every environment opened before is dead and says so, and cannot
  be opened again (closing what was inherited would disturb the parent). Fork first, open after, or exec.
- All write transactions of the process run on one thread per environment, because a write transaction is
  bound to its thread. Jobs that wait are put together into one transaction (group commit) for about
  10 ms of work; a job's future resolves once its transaction is durable.
- Reads are short transactions that return copies. A memoryview of LMDB's map that outlives its
  transaction reads wrong bytes, and a long read transaction makes the file grow.
- The map is reserved large at once (1 TiB of addresses costs 8 KB); it is never resized.
- The file never shrinks by itself: freed pages are used again. `compact` writes a new one and puts it in the old one's
  place, if no other process has it open; who does is told by locks beside the directory (`db.open`, `db.turn`).
- `lib_version=0` pins the file format of LMDB 0.9, whatever the binding's default becomes.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import lmdb

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import AT_FDCWD, RENAME_EXCHANGE, rename_at
from clivefs.objects.errors import StoreError
from clivefs.objects.presence import Presence
from clivefs.objects.transactions import ReadTransaction, WriteTransaction

T = TypeVar("T")

MAP_BYTES = 1 << 40
GROUP_S_MAX = 0.010
QUEUE_JOBS_MAX = 1024
QUEUE_BYTES_MAX = 64 << 20
KEY_BYTES_MAX = 511
_SCAN_RECORDS = 256
_FULL_BYTES = 1 << 20
_SCAN_BYTES = 4 << 20
_COPY_RECORDS = 16_384
_NEW = ".new-"


class _Job:
    __slots__ = ("cost", "future", "run")

    def __init__(self, run: Callable[[WriteTransaction], Any], cost: int) -> None:
        self.run = run
        self.cost = cost
        self.future: Future[Any] = Future()


_Outcome = tuple[_Job, Any, BaseException | None]


class _Poisoned(Exception):
    """A job failed after it had written: the transaction must be given up."""


def _tell(outcome: _Outcome) -> None:
    job, result, failure = outcome
    if failure is not None:
        job.future.set_exception(failure)
    else:
        job.future.set_result(result)


class Environment:
    """One open LMDB environment with its named databases. Made by `open_environment` alone."""

    def __init__(self, path: str, databases: Sequence[str]) -> None:
        self.path = path
        self.users = 1
        self._pid = os.getpid()
        self._closed = False
        self._names = tuple(databases)
        self._presence = Presence(path)
        try:
            self._opened = _open_with(path, databases)
            """The environment and its databases: replaced together by `compact`."""
        except BaseException:
            self._presence.close()
            raise
        self._writing = threading.Lock()
        """Held while there is a write transaction."""
        self._queue: deque[_Job] = deque()
        self._queued_bytes = 0
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._write_loop, name=f"lmdb-writer {path}", daemon=True)
        self._thread.start()

    # Reading

    def get(self, database: str, key: bytes) -> bytes | None:
        """A copy of one record's value, or None."""
        if self._closed:
            raise self._unusable()
        environment, databases = self._opened
        with environment.begin(db=databases[database]) as transaction:
            value: bytes | None = transaction.get(key)
        return value

    def peek(self, database: str, key: bytes, size: int) -> bytes | None:
        """A copy of the first *size* bytes of one record's value, or None; the rest is not touched."""
        if self._closed:
            raise self._unusable()
        environment, databases = self._opened
        with environment.begin(db=databases[database], buffers=True) as transaction:
            view = transaction.get(key)
            return None if view is None else bytes(view[:size])

    def measure(self, database: str, key: bytes, size: int) -> tuple[bytes, int] | None:
        """As `peek`, and how many bytes the whole value has."""
        if self._closed:
            raise self._unusable()
        environment, databases = self._opened
        with environment.begin(db=databases[database], buffers=True) as transaction:
            view = transaction.get(key)
            return None if view is None else (bytes(view[:size]), len(view))

    def read(self, job: Callable[[ReadTransaction], T]) -> T:
        """Run *job* on one state of the environment. It must be short and keep no iterator."""
        if self._closed:
            raise self._unusable()
        environment, databases = self._opened
        with environment.begin() as transaction:
            return job(ReadTransaction(transaction, databases))

    def scan(self, database: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """All records in key order, in many short transactions: not one state, but no old pages are held."""
        start = prefix

        def chunk(transaction: ReadTransaction) -> list[tuple[bytes, bytes]]:
            taken: list[tuple[bytes, bytes]] = []
            size = 0
            for record in transaction.items(database, start, prefix):
                taken.append(record)
                size += len(record[1])
                if len(taken) >= _SCAN_RECORDS or size >= _SCAN_BYTES:
                    break
            return taken

        while records := self.read(chunk):
            yield from records
            start = records[-1][0] + b"\0"

    def scan_keys(self, database: str) -> Iterator[bytes]:
        """All keys in order, as `scan`."""
        start = b""

        def chunk(transaction: ReadTransaction) -> list[bytes]:
            return transaction.keys(database, start, _SCAN_RECORDS)

        while keys := self.read(chunk):
            yield from keys
            start = keys[-1] + b"\0"

    def last_change(self) -> int:
        """The number of the last transaction that changed anything, whoever's it was."""
        if self._closed:
            raise self._unusable()
        return int(self._opened[0].info()["last_txnid"])

    def usage(self) -> tuple[int, int]:
        """(bytes of the file, bytes of it that hold something)."""

        def count(transaction: ReadTransaction) -> tuple[int, int]:
            stats = [self._opened[0].stat(), *map(transaction.pages, self._names)]
            pages = sum(each["branch_pages"] + each["leaf_pages"] + each["overflow_pages"] for each in stats)
            return os.path.getsize(os.path.join(self.path, "data.mdb")), (2 + pages) * int(stats[0]["psize"])

        return self.read(count)

    def reader_check(self) -> int:
        """Free the reader slots of processes that died; how many there were."""
        if self._closed:
            raise self._unusable()
        return int(self._opened[0].reader_check())

    # Writing

    def submit(self, run: Callable[[WriteTransaction], T], *, cost: int = 0) -> Future[T]:
        """Queue *run* for the writer thread; its result once it is durable. *cost* in bytes, about.

        Blocks while the queue is full. A job either checks first and raises before it writes, or writes
        and returns: if it raises after writing, the transaction is given up and its neighbours run again.
        So a job may run twice and must not change anything but the transaction.
        """
        job = _Job(run, cost)
        with self._wake:
            while not self._closed and (
                len(self._queue) >= QUEUE_JOBS_MAX or (self._queue and self._queued_bytes + cost > QUEUE_BYTES_MAX)
            ):
                self._wake.wait()
            if self._closed:
                raise self._unusable()
            self._queue.append(job)
            self._queued_bytes += cost
            self._wake.notify_all()
        return job.future

    def write(self, run: Callable[[WriteTransaction], T], *, cost: int = 0) -> T:
        """`submit` and wait until it is durable."""
        return self.submit(run, cost=cost).result()

    def _write_loop(self) -> None:
        while True:
            with self._wake:
                while not self._queue and not self._closed:
                    self._wake.wait()
                if not self._queue:
                    return
            group: list[_Job] = []
            try:
                with self._writing:
                    outcomes = self._run_group(group)
            except BaseException as error:  # noqa: BLE001 - the disk is full, say: every caller is told
                outcomes = [(job, None, _translate(error, self.path)) for job in group]
            for outcome in outcomes:
                _tell(outcome)

    def _run_group(self, group: list[_Job]) -> list[_Outcome]:
        """One transaction of as many queued jobs as fit; what to tell each caller once it is durable."""
        outcomes: list[_Outcome] = []
        try:
            environment, databases = self._opened
            with environment.begin(write=True) as transaction:
                deadline = time.monotonic() + GROUP_S_MAX
                while (job := self._take()) is not None:
                    group.append(job)
                    writer = WriteTransaction(transaction, databases)
                    try:
                        outcomes.append((job, job.run(writer), None))
                    except BaseException as error:
                        if writer.dirty:
                            raise _Poisoned from error
                        outcomes.append((job, None, error))
                    if time.monotonic() >= deadline:
                        break
                FAULTS.hit("objects.environment.before-commit")
        except _Poisoned as poisoned:
            if len(group) == 1 and poisoned.__cause__ is not None:
                return [(group[0], None, _translate(poisoned.__cause__, self.path))]
            for each in group:
                _tell(self._run_alone(each))  # at once: a later job may ask whether an earlier one succeeded
            return []
        FAULTS.hit("objects.environment.after-commit")
        return outcomes

    def _run_alone(self, job: _Job) -> _Outcome:
        try:
            environment, databases = self._opened
            with environment.begin(write=True) as transaction:
                result = job.run(WriteTransaction(transaction, databases))
        except BaseException as error:  # noqa: BLE001 - it is the caller's, and goes to it
            return job, None, _translate(error, self.path)
        return job, result, None

    def _take(self) -> _Job | None:
        with self._wake:
            while self._queue:
                job = self._queue.popleft()
                self._queued_bytes -= job.cost
                self._wake.notify_all()
                if job.future.set_running_or_notify_cancel():
                    return job
            return None

    # Giving back

    def is_alone(self) -> bool:
        """Whether no other process has it open at this moment."""
        with self._presence.alone() as is_alone:
            return is_alone

    def compact(self) -> int | None:
        """Write the file anew without what was freed; how many bytes smaller it is now. None where another process has
        the environment open. Whoever writes waits meanwhile, about a second for 100 MB; readers go on. OSError."""
        if self._closed:
            raise self._unusable()
        with self._writing, self._presence.alone() as is_alone:
            if not is_alone:
                return None
            before = os.path.getsize(os.path.join(self.path, "data.mdb"))
            self._remove_unfinished()
            new = f"{self.path}{_NEW}{os.urandom(6).hex()}"
            try:
                os.mkdir(new, 0o700)
                copy = self._copy_to(new)
                FAULTS.hit("objects.environment.copied")
                rename_at(AT_FDCWD, os.fsencode(self.path), AT_FDCWD, os.fsencode(new), RENAME_EXCHANGE)
                _sync_directory(os.path.dirname(self.path))
                # Who reads at this moment goes on in the old one: it is closed when the last of them has ended.
                self._opened = copy
                FAULTS.hit("objects.environment.exchanged")
            finally:
                shutil.rmtree(new, ignore_errors=True)
            return before - os.path.getsize(os.path.join(self.path, "data.mdb"))

    def _remove_unfinished(self) -> None:
        """Remove what a killed process left of its `compact`: nobody else is at it now."""
        folder, name = os.path.split(self.path)
        for each in os.listdir(folder):
            if each.startswith(name + _NEW):
                shutil.rmtree(os.path.join(folder, each), ignore_errors=True)

    def _copy_to(self, path: str) -> tuple[Any, dict[str, Any]]:
        """A new environment at *path* with the same records. In order, so that its pages are full."""
        environment, databases = _open_with(path, self._names)
        try:
            for name in self._names:
                records = self.scan(name)
                while chunk := list(itertools.islice(records, _COPY_RECORDS)):
                    with environment.begin(write=True, db=databases[name]) as transaction:
                        for key, value in chunk:
                            transaction.put(key, value, append=True)
        except lmdb.Error as error:
            environment.close()
            raise _translate(error, path) from error
        return environment, databases

    # Ending

    def close(self) -> None:
        """Give back one use. The last one finishes what was queued, then closes."""
        with _registry_lock:
            if self._closed:
                return
            self.users -= 1
            if self.users:
                return
            del _registry[self.path]
            with self._wake:
                self._closed = True
                self._wake.notify_all()
            # Under the lock: whoever opens this path again must find it closed.
            self._thread.join()
            self._opened[0].close()
            self._presence.close()

    def _unusable(self) -> StoreError:
        if os.getpid() != self._pid:
            return StoreError(
                "the store was opened before a fork", place=self.path, remedy="Open it again in the child."
            )
        return StoreError("the store is closed", place=self.path)


_registry: dict[str, Environment] = {}
_registry_lock = threading.Lock()
_lost_in_fork: list[Environment] = []
"""Kept so that they are never deallocated: closing them would disturb the parent's locks."""


def open_environment(path: str, databases: Sequence[str]) -> Environment:
    """The process's environment at *path* (an existing directory), opened if it is not yet. StoreError."""
    real = os.path.realpath(path)
    if any(each.path == real for each in _lost_in_fork):
        raise _forked(real)
    with _registry_lock:
        found = _registry.get(real)
        if found is not None:
            if not set(databases) <= set(found._names):
                raise StoreError("the environment is open with other databases", place=real)
            found.users += 1
            return found
        _registry[real] = opened = Environment(real, databases)
        return opened


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _open_with(path: str, databases: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The environment at *path*, and its databases."""
    environment = _open(path, databases)
    try:
        environment.reader_check()  # slots of killed readers would hold old pages forever
        return environment, {name: environment.open_db(name.encode()) for name in databases}
    except BaseException:
        environment.close()
        raise


def _open(path: str, databases: Sequence[str]) -> Any:
    try:
        return lmdb.open(
            path,
            map_size=MAP_BYTES,
            mode=0o600,
            readahead=False,
            max_readers=1022,
            max_dbs=len(databases) + 4,
            max_spare_txns=16,
            lib_version=0,
        )
    except (lmdb.VersionMismatchError, lmdb.InvalidError, lmdb.CorruptedError) as error:
        raise StoreError(
            f"the database is not one that this clivefs can read ({error})",
            place=path,
            remedy="If another version of clivefs has it open, stop that one first; otherwise restore it from a copy.",
        ) from error
    except (lmdb.Error, OSError) as error:
        raise StoreError(f"the database cannot be opened ({error})", place=path) from error


def _forked(path: str) -> StoreError:
    return StoreError(
        "the store was opened before a fork", place=path, remedy="This is a fault of clivefs: please report it."
    )


def _translate(error: BaseException, path: str) -> BaseException:
    """LMDB's own errors as OSError (the code is an errno: ENOSPC, EIO) or StoreError."""
    if isinstance(error, (lmdb.DiskError, lmdb.MapFullError)):
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
    if isinstance(error, lmdb.Error):
        code = getattr(error, "code", 0)
        if code == errno.EIO and _is_full(path):  # what LMDB answers to a write that was cut short
            code = errno.ENOSPC
        if 0 < code < 200:
            return OSError(code, os.strerror(code), path)
        return StoreError(
            f"the database failed ({error})", place=path, remedy="Restart what uses it, then `clivefs fsck`."
        )
    return error


def _is_full(path: str) -> bool:
    try:
        room = os.statvfs(path)
    except OSError:
        return False
    return room.f_bavail * room.f_frsize < _FULL_BYTES


def _after_fork_in_child() -> None:
    global _registry_lock
    _registry_lock = threading.Lock()
    for environment in _registry.values():
        environment._closed = True
        environment._wake = threading.Condition()
        _lost_in_fork.append(environment)
    _registry.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
