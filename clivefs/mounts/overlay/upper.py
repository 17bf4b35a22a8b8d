"""The writable side of an overlay on disk: plain files, the intent log beside them, and recovery.

    STORE/uppers/W/E/tree/    the files, at the paths where the mount shows them: easy to rescue by hand
    STORE/uppers/W/E/marks    what hides or redirects the lower, and inode numbers (see `marks`)
    STORE/uppers/W/E/work/    files on their way in (copy-up) or out (reset); emptied at start

Everything that changes names in `tree/` goes through `Upper.perform`, which is the one place that pairs a
change with its intent. Start-up is recovery: replay the log, carry out its last intent if it was not, empty
`work/`. A file is complete in every respect (content, owner, mode, times, attributes) before a rename
brings it from `work/` to its place, so that it is there wholly or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import rename_at, sync_fs
from clivefs.mounts.host.calls import (
    DIRECTORY_FLAGS,
    IS_ROOT,
    DirFds,
    chmod_at,
    open_directory,
    proc_path,
    readable_again,
    stat_at,
)
from clivefs.mounts.overlay.discard import Discard, destroy
from clivefs.mounts.overlay.intentlog import IntentLog
from clivefs.mounts.overlay.marks import KEEP_MODE, Action, ActionKind, Edit, EditKind, Mark
from clivefs.mounts.tree import DirEntry

TREE = b"tree"
WORK = b"work"
_UNSYNCED_MAX = 65536
_FREED_AT_ONCE = 400


def tree_path(path: bytes) -> bytes:
    """*path* below the root of the mount entry, as actions name it."""
    return TREE + b"/" + path


class Upper:
    """The open upper directory. It belongs to one thread, but for `sync`, `sync_chain` and `work_name`."""

    def __init__(self, dir_fd: int, first_root: Callable[[int, bytes], None]) -> None:
        """Open the upper in the directory *dir_fd* (which stays the caller's), or make it there.

        *first_root* is called with (descriptor of `work/`, name) to give a new root directory its attributes.
        Raises ClivefsError when the marks are of another format, OSError when the disk fails.
        """
        self._dir_fd = os.dup(dir_fd)
        self.tree_fd = self.work_fd = -1
        self._token = os.urandom(4).hex().encode()
        self._serial = itertools.count(1)
        self.discard = Discard(self.work_name)
        self._syncing = threading.Lock()
        """Who finds nothing left to sync returns only when who is at it has done it."""
        self.unsynced: set[int] | None = None
        """Upper directories with names that no fsync has covered; None for all of them but `_covered`, as at first:
        the last daemon may have synced nothing."""
        self._covered: set[int] = set()
        try:
            _mkdir(self._dir_fd, WORK)
            self.work_fd = os.open(WORK, DIRECTORY_FLAGS, dir_fd=self._dir_fd)
            self.log = IntentLog(self._dir_fd)
            self._recover()
            self._empty_work()
            self._open_tree(first_root)
        except BaseException:
            self.close()
            raise

    def _open_tree(self, first_root: Callable[[int, bytes], None]) -> None:
        try:
            self.tree_fd = os.open(TREE, DIRECTORY_FLAGS, dir_fd=self._dir_fd)
        except FileNotFoundError:
            os.mkdir(TREE, 0o700, dir_fd=self.work_fd)
            first_root(self.work_fd, TREE)
            os.rename(TREE, TREE, src_dir_fd=self.work_fd, dst_dir_fd=self._dir_fd)
            self.tree_fd = os.open(TREE, DIRECTORY_FLAGS, dir_fd=self._dir_fd)
            os.fsync(self._dir_fd)
        self.tree_ino = os.fstat(self.tree_fd).st_ino

    @property
    def root_mark(self) -> Mark:
        return self.log.marks.root

    @property
    def origins(self) -> dict[int, int]:
        """The inode number that is shown for an upper inode, where it is not derived from that."""
        return self.log.marks.origins

    # Recovery

    def _recover(self) -> None:
        action = self.log.pending
        if action is not None:
            try:
                FAULTS.hit("overlay.recover")
                self._redo(action)
            except OSError:
                self.log.roll_back_pending()
        if self.log.long:
            self.log.compact()
        else:
            self.log.settle()

    def _redo(self, action: Action) -> None:
        """Carry *action* out unless it was: whether `inode` is still at `path` tells."""
        head, _, name = action.path.rpartition(b"/")
        try:
            src_fd = self._walk(head)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            try:
                found = stat_at(src_fd, name)
            except FileNotFoundError:
                found = None
            if action.kind is ActionKind.REMOVE:
                if found is not None and found.st_ino == action.inode:
                    _remove(src_fd, name, found)
                return
            self._redo_rename(action, src_fd, name, found)
        finally:
            os.close(src_fd)

    def _redo_rename(self, action: Action, src_fd: int, name: bytes, found: os.stat_result | None) -> None:
        head, _, new_name = action.other.rpartition(b"/")
        dst_fd = self._walk(head)
        try:
            if found is not None and found.st_ino == action.inode:
                rename_at(src_fd, name, dst_fd, new_name, action.flags)
            if action.mode != KEEP_MODE and stat_at(dst_fd, new_name).st_ino == action.inode:
                chmod_at(dst_fd, new_name, action.mode)
        finally:
            os.close(dst_fd)

    def _walk(self, path: bytes) -> int:
        """A new descriptor of the directory *path* below the upper's directory."""
        fd = os.dup(self._dir_fd)
        for name in path.split(b"/") if path else ():
            try:
                inner = open_directory(fd, name)
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _empty_work(self) -> None:
        with os.scandir(self.work_fd) as listing:
            names = [os.fsencode(entry.name) for entry in listing]
        for name in names:
            destroy(self.work_fd, name, lambda inode: None, self.work_name)

    # Changing names

    def perform(self, edits: list[Edit], action: Action | None, change: Callable[[], None], point: str) -> None:
        """Make *change*, which is what *action* says, and *edits* with it: both or neither, also over a crash.

        *point* names the operation for fault points. Raises what *change* raises; nothing has changed then.
        """
        log = self.log
        if not edits:
            log.settle()
            FAULTS.hit(point + ".before")
            change()
            FAULTS.hit(point + ".done")
            return
        if log.long:
            log.compact()
        log.begin(edits, action)
        try:
            FAULTS.hit(point + ".logged")
            change()
        except BaseException:
            log.abort()
            raise
        FAULTS.hit(point + ".done")
        log.marks.apply(edits)

    def note(self, edits: list[Edit], point: str) -> None:
        """Log *edits* that go with no change of files."""
        if self.log.long:
            self.log.compact()
        self.log.begin(edits, None)
        FAULTS.hit(point + ".done")
        self.log.marks.apply(edits)

    def touched(self, inode: int) -> None:
        """Names in the upper directory *inode* have changed."""
        self._covered.discard(inode)
        if self.unsynced is not None:
            self.unsynced.add(inode)
            if len(self.unsynced) > _UNSYNCED_MAX:
                self._covered.clear()
                self.unsynced = None

    # The work directory

    def work_name(self) -> bytes:
        """A name in `work/` that nothing has: not even a thread of the tree that had this upper before."""
        return b"%s-%d" % (self._token, next(self._serial))

    def unlink_work(self, name: bytes) -> None:
        """Remove the file or empty directory *name* of `work/`, if it is there."""
        unlink_work(self.work_fd, name)

    def forget_discarded(self) -> list[int]:
        """Forget what is remembered of some inodes that are free since a reset; which ones. None: all is done."""
        freed = self.discard.freed(_FREED_AT_ONCE)
        known = [inode for inode in freed if inode in self.origins]
        if known:
            self.note([Edit(EditKind.UNORIGIN, inode=inode) for inode in known], "upper.forget")
        return freed

    # Durability

    def sync_chain(self, names: list[bytes]) -> None:
        """Make the names of the directory *names* (components from the root) and of the way to it survive a power
        loss, and the log with them. May run in a thread."""
        with self._syncing:
            self._sync_chain(names)

    def _sync_chain(self, names: list[bytes]) -> None:
        self.log.sync()
        fd = os.dup(self.tree_fd)
        try:
            self._sync_one(fd)
            for name in names:
                inner = open_directory(fd, name)
                os.close(fd)
                fd = inner
                self._sync_one(fd)
        except (FileNotFoundError, NotADirectoryError):
            pass  # renamed or removed meanwhile: there is nothing left to keep under this name
        finally:
            os.close(fd)

    def _sync_one(self, fd: int) -> None:
        unsynced = self.unsynced
        inode = os.fstat(fd).st_ino
        if inode in self._covered if unsynced is None else inode not in unsynced:
            return
        if unsynced is not None:
            unsynced.discard(inode)
        else:
            if len(self._covered) > _UNSYNCED_MAX:
                self._covered.clear()
            self._covered.add(inode)
        try:
            os.fsync(fd)
        except OSError as error:
            if error.errno != errno.EBADF:  # a directory that may not be read cannot be synced either
                self.touched(inode)
                raise

    def sync(self) -> None:
        """Everything survives a power loss. May run in a thread."""
        with self._syncing:
            self.unsynced = set()
            try:
                self.log.sync()
                sync_fs(self.tree_fd)
            except BaseException:
                self._covered.clear()
                self.unsynced = None
                raise

    def close(self) -> None:
        """Release everything. Open files go on working."""
        log = getattr(self, "log", None)
        if log is not None:
            log.close()
        for fd in (self.tree_fd, self.work_fd, self._dir_fd):
            if fd >= 0:
                os.close(fd)
        self.tree_fd = self.work_fd = self._dir_fd = -1


def has_edits(directory: str) -> bool:
    """Whether the upper at the path *directory*, which nobody has open, has edits; the `.git` file of an entry is none.
    OSError."""
    tree = os.path.join(directory, os.fsdecode(TREE))
    if os.path.isdir(tree) and any(name != ".git" for name in os.listdir(tree)):
        return True
    if not os.path.exists(os.path.join(directory, "marks")):
        return False
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        log = IntentLog(fd)
        try:
            return any(True for _ in log.marks.root.walk())
        finally:
            log.close()
    finally:
        os.close(fd)


def unlink_work(work_fd: int, name: bytes) -> None:
    """As `Upper.unlink_work`, for threads, which have a descriptor of their own."""
    try:
        _remove(work_fd, name, stat_at(work_fd, name))
    except OSError:
        return  # what cannot be removed now is at the next start


class PathFds:
    """Directories of an upper by path, for walks that know no nodes; at most 64 descriptors. Also of those whose way
    their owner, who we are, may not search.

    The top is opened anew: a thread that lists by the descriptor that another lists by, or by a duplicate of it, shares
    the position in the directory with him, and each gets only a part of the names."""

    def __init__(self, tree_fd: int) -> None:
        self._tree_fd = _opened_anew(tree_fd)
        self._fds: DirFds[bytes] = DirFds(64)

    def open(self, path: bytes) -> int:
        """A descriptor of the directory *path*, good until 64 others were asked for."""
        missing: list[bytes] = []
        fd: int | None = None
        here = path
        while here:
            fd = self._fds.get(here)
            if fd is not None:
                break
            missing.append(here)
            here = here.rpartition(b"/")[0]
        current = self._tree_fd if fd is None else fd
        for place in reversed(missing):
            current = self._fds.put(place, self._open_one(current, place.rpartition(b"/")[2]))
        return current

    @staticmethod
    def _open_one(fd: int, name: bytes) -> int:
        try:
            return open_directory(fd, name)
        except PermissionError:
            with writable_for_us(fd):
                return open_directory(fd, name)

    def forget(self) -> None:
        """Look for every directory anew: they may be elsewhere now."""
        self._fds.close()

    def close(self) -> None:
        self.forget()
        fd, self._tree_fd = self._tree_fd, -1
        if fd >= 0:
            os.close(fd)


def _opened_anew(fd: int) -> int:
    try:
        return os.open(proc_path(fd), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:  # it can be searched at best
        return os.dup(fd)


def list_directory(fd: int) -> Iterator[DirEntry]:
    """The names and kinds in the directory *fd*. EACCES where it may be searched only."""
    try:
        with os.scandir(fd) as listing:
            for entry in listing:
                yield DirEntry(os.fsencode(entry.name), _entry_kind(fd, entry))
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        with readable_again(fd) as own:
            yield from list_directory(own)


def list_for_us(fd: int) -> list[DirEntry]:
    """As `list_directory`, also of an upper directory that its owner, who we are, may not read or search."""
    try:
        return list(list_directory(fd))
    except PermissionError:
        with writable_for_us(fd), readable_again(fd) as own:
            return list(list_directory(own))


def stat_for_us(fd: int, name: bytes) -> os.stat_result:
    """As `stat_at`, also in an upper directory that its owner, who we are, may not search."""
    try:
        return stat_at(fd, name)
    except PermissionError:
        with writable_for_us(fd):
            return stat_at(fd, name)


@contextlib.contextmanager
def writable_for_us(fd: int) -> Iterator[None]:
    """Meanwhile we may read, change and search the upper directory *fd*, whatever its owner, who we are, lets himself
    do: as in overlayfs, that has no say in what we keep there. Nothing of the sort is needed for root."""
    mode = 0o700 if IS_ROOT else stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & 0o700 == 0o700:
        yield
        return
    os.chmod(proc_path(fd), mode | 0o700)
    try:
        yield
    finally:
        os.chmod(proc_path(fd), mode)


def _entry_kind(fd: int, entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    if entry.is_file(follow_symlinks=False):
        return stat.S_IFREG
    return stat.S_IFMT(stat_at(fd, os.fsencode(entry.name)).st_mode)


def set_times(fd: int, atime_ns: int, mtime_ns: int) -> None:
    """utimensat of an open directory, also one opened with O_PATH."""
    try:
        os.utime(fd, ns=(atime_ns, mtime_ns))
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        os.utime(proc_path(fd), ns=(atime_ns, mtime_ns))


def _mkdir(dir_fd: int, name: bytes) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    except FileExistsError:
        return


def _remove(dir_fd: int, name: bytes, found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        os.rmdir(name, dir_fd=dir_fd)
    else:
        os.unlink(name, dir_fd=dir_fd)
