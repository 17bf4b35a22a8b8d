"""Moving a private gitdir to another commit, together with the tree that is shown over it.

HEAD (or the branch that it is on), the index and the base move together or not at all, and at the moment when the
new tree is shown. So there are two steps. `stage` writes, in a thread, everything new beside what it is to replace:

    clive-move      the plan, four lines: the old and the new base, the file that says the commit of HEAD, and
                    `INODE SIZE MTIME CTIME` of the old index (`-` without one)
    clive-index     the new index; empty where there is none to replace
    clive-head      the new commit
    clive-base.new  the new base

`Staged.lock` takes git's own locks and makes sure that everything is as it was; then the caller shows the tree, and
`Staged.commit` puts the rest in its place: a few renames, which a span of the loop can do. The move is decided when
the file of HEAD is renamed. Our locks are hard links to `clive-index` and `clive-head` (and to `clive-first`, the first
index of a gitdir): that tells them from those of a git that is at work, and `recover`, which finishes or takes back
what a crash cut short, touches no others.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import make_directories
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.head import Facts, Head, facts, is_still, read_head

BASE = "clive-base"
MOVE = "clive-move"
_INDEX = "clive-index"
_FIRST = "clive-first"
_HEAD = "clive-head"
_NEW_BASE = BASE + ".new"
_WHO = b"clivefs <clivefs@localhost>"


@dataclass(frozen=True, slots=True)
class Staged:
    """A move that is ready."""

    gitdir: str
    old: bytes
    new: bytes
    head: Head
    index: Facts | None
    moves_head: bool
    """False where HEAD has gone there by itself, and only the base follows."""
    seconds: int
    """When, for the reflog."""

    def lock(self) -> bool:
        """Take git's locks; false where somebody has one, or HEAD or the index is not what it was."""
        if not self.moves_head:
            return is_still(self.gitdir, self.head) and not os.path.lexists(self._path("index.lock"))
        try:
            os.link(self._path(_INDEX), self._path("index.lock"))
            make_directories(os.path.dirname(self._path(self.head.ref)))
            os.link(self._path(_HEAD), self._path(self.head.ref + ".lock"))
        except OSError:
            self.unlock()
            return False
        FAULTS.hit("gitdir.move.locked")
        if is_still(self.gitdir, self.head) and facts(self._path("index")) == self.index:
            return True
        self.unlock()
        return False

    def unlock(self) -> None:
        """Give back what `lock` took."""
        _unlock(self.gitdir, self.head.ref)

    def commit(self) -> None:
        """It is done: called when `lock` was true."""
        if self.moves_head:
            os.rename(self._path(self.head.ref + ".lock"), self._path(self.head.ref))
            FAULTS.hit("gitdir.move.pointed")
            self._log()
        _finish(self.gitdir)

    def discard(self) -> None:
        """It is not to be done. Not after `commit`."""
        self.unlock()  # before what tells that the locks are ours
        _forget(self.gitdir)

    def _log(self) -> None:
        """A line for each reflog, as git writes one."""
        line = b"%b %b %b %d +0000\tclivefs: follow\n" % (
            self.old.hex().encode(),
            self.new.hex().encode(),
            _WHO,
            self.seconds,
        )
        for name in {"HEAD", self.head.ref}:
            path = self._path(os.path.join("logs", name))
            with contextlib.suppress(OSError):  # a log that cannot be written stops no git either
                make_directories(os.path.dirname(path))
                with open(path, "ab") as file:
                    file.write(line)

    def _path(self, name: str) -> str:
        return os.path.join(self.gitdir, name)


def stage(
    gitdir: str, old: bytes, new: bytes, head: Head, old_index: Facts | None, index: bytes, *, moves_head: bool
) -> Staged:
    """Get a move from *old* to *new* ready. *head*, *old_index*: where HEAD is, and the facts of the index, from before
    it was made sure that they may move. *index*: the new one, if there is an old one."""
    _forget(gitdir)
    told = " ".join(map(str, old_index)) if old_index is not None else "-"
    try:
        write_whole(os.path.join(gitdir, MOVE), os.fsencode(f"{old.hex()}\n{new.hex()}\n{head.ref}\n{told}\n"))
        for name, content in (
            (_INDEX, index),
            (_HEAD, new.hex().encode() + b"\n"),
            (_NEW_BASE, new.hex().encode() + b"\n"),
        ):
            with open(os.path.join(gitdir, name), "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        FAULTS.hit("gitdir.move.planned")
    except Exception:
        _forget(gitdir)
        raise
    return Staged(gitdir, old, new, head, old_index, moves_head, int(time.time()))


def put_first_index(gitdir: str, content: bytes) -> bool:
    """Give a gitdir its first index; false where it has one, or git is at work on it."""
    index, lock, first = (os.path.join(gitdir, name) for name in ("index", "index.lock", _FIRST))
    try:
        fd = os.open(first, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return False  # another thread is about to
    try:
        with open(fd, "wb") as file:
            file.write(content)
        os.link(first, lock)
        FAULTS.hit("gitdir.index.locked")
        if os.path.lexists(index):
            return False
        os.rename(lock, index)
        return True
    except FileExistsError:
        return False  # git is at work
    finally:
        if _is_ours(gitdir, "index.lock", _FIRST):
            os.unlink(lock)
        os.unlink(first)


def recover(gitdir: str) -> None:
    """Finish a move that did not come to its end, or take it back where HEAD has not moved."""
    if _is_ours(gitdir, "index.lock", _FIRST):
        os.unlink(os.path.join(gitdir, "index.lock"))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(gitdir, _FIRST))
    try:
        with open(os.path.join(gitdir, MOVE), "rb") as file:
            old, new, *more = file.read().splitlines()
    except FileNotFoundError:
        return
    ref = os.fsdecode(more[0]) if more else None
    told = more[1].split() if len(more) > 1 else []
    head = read_head(gitdir)
    if head is None or head.commit is None or head.commit.hex().encode() != new or old == new:
        _unlock(gitdir, ref)
        _forget(gitdir)
        return
    index = facts(os.path.join(gitdir, "index"))
    if index is not None and told == [b"%d" % each for each in index] and not _is_ours(gitdir, "index.lock", _INDEX):
        # HEAD has moved and the index has not, and somebody has removed the lock with the new one.
        with contextlib.suppress(OSError):
            os.link(os.path.join(gitdir, _INDEX), os.path.join(gitdir, "index.lock"))
    write_whole(os.path.join(gitdir, BASE), new + b"\n")
    _finish(gitdir)


def _finish(gitdir: str) -> None:
    """HEAD has moved: the index and the base follow. Each step may have been taken before."""
    lock = os.path.join(gitdir, "index.lock")
    if _is_ours(gitdir, "index.lock", _INDEX):
        if os.stat(lock).st_size:
            os.rename(lock, os.path.join(gitdir, "index"))
        else:
            os.unlink(lock)
    FAULTS.hit("gitdir.move.indexed")
    with contextlib.suppress(FileNotFoundError):
        os.rename(os.path.join(gitdir, _NEW_BASE), os.path.join(gitdir, BASE))
    _forget(gitdir)


def _unlock(gitdir: str, ref: str | None) -> None:
    """Remove those locks that are ours."""
    for lock, ours in (("index.lock", _INDEX), *(((ref + ".lock", _HEAD),) if ref is not None else ())):
        if _is_ours(gitdir, lock, ours):
            os.unlink(os.path.join(gitdir, lock))


def _is_ours(gitdir: str, lock: str, ours: str) -> bool:
    try:
        one = os.stat(os.path.join(gitdir, lock), follow_symlinks=False)
        return os.path.samestat(one, os.stat(os.path.join(gitdir, ours), follow_symlinks=False))
    except OSError:
        return False


def _forget(gitdir: str) -> None:
    """Remove the plan and what belongs to it: the plan last, as it tells of the others."""
    for name in (_NEW_BASE, _HEAD, _INDEX, MOVE):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(gitdir, name))
