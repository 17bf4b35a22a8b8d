"""New files in a host directory, made for the caller of a request.

Others can write to the directory too, and put another file under the name between two calls of ours. A root daemon must
not give that one away: it goes by descriptor, and by what a file can only be that was just made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import AT_EMPTY_PATH
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, IS_ROOT, PATH_FLAGS, proc_path, stat_at
from clivefs.mounts.tree import Owner, refuse

_fchownat = ctypes.CDLL(None, use_errno=True).fchownat
_fchownat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int]
_KEEP = 0xFFFFFFFF


def make_file(dir_fd: int, name: bytes, flags: int, mode: int, owner: Owner) -> int:
    """Make a regular file and give it to *owner*; its descriptor. *flags* as open(2). ESTALE when others have taken
    its name meanwhile."""
    fd = os.open(name, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode & 0o7777, dir_fd=dir_fd)
    try:
        FAULTS.hit("host.made")
        _give(fd, mode, owner, os.fstat(dir_fd))
        if os.fstat(fd).st_nlink == 0:
            raise refuse(errno.ESTALE, name)
    except OSError:
        _remove(dir_fd, name, os.fstat(fd), os.unlink)
        os.close(fd)
        raise
    return fd


def make_special(
    dir_fd: int, name: bytes, mode: int, owner: Owner, make: Callable[..., None], remove: Callable[..., None]
) -> os.stat_result:
    """Make a file that is not a regular one with *make(name, dir_fd=)* and give it to *owner*; what stat says. *mode*
    is as st_mode. ESTALE when others have taken its name meanwhile."""
    make(name, dir_fd=dir_fd)
    FAULTS.hit("host.made")
    parent = os.fstat(dir_fd)
    found = stat_at(dir_fd, name)
    if not _is_to_be_given(owner, parent) and not _lost(mode, found):
        return found
    try:
        fd = os.open(name, DIRECTORY_FLAGS if stat.S_ISDIR(mode) else PATH_FLAGS, dir_fd=dir_fd)
    except OSError:
        raise refuse(errno.ESTALE, name) from None
    try:
        found = os.fstat(fd)
        if not _is_new(fd, found, mode):
            raise refuse(errno.ESTALE, name)
        try:
            _give(fd, mode, owner, parent)
        except OSError:
            _remove(dir_fd, name, found, remove)
            raise
        return os.fstat(fd)
    finally:
        os.close(fd)


def _is_new(fd: int, found: os.stat_result, mode: int) -> bool:
    """Whether *found* can be the file that we have just made, and no older one of ours that others moved here."""
    if stat.S_IFMT(found.st_mode) != stat.S_IFMT(mode) or found.st_uid != os.geteuid():
        return False
    return not os.listdir(fd) if stat.S_ISDIR(mode) else found.st_nlink == 1


def _is_to_be_given(owner: Owner, parent: os.stat_result) -> bool:
    return IS_ROOT and (owner.uid != os.geteuid() or _group(owner, parent) not in (_KEEP, os.getegid()))


def _group(owner: Owner, parent: os.stat_result) -> int:
    """Set-group-ID directories hand on their group, as on any Linux filesystem."""
    return _KEEP if parent.st_mode & stat.S_ISGID else owner.gid


def _give(fd: int, mode: int, owner: Owner, parent: os.stat_result) -> None:
    """Give the file behind *fd* (O_PATH will do) to *owner*, with all permission bits of *mode*."""
    if _is_to_be_given(owner, parent) and _fchownat(fd, b"", owner.uid, _group(owner, parent), AT_EMPTY_PATH) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    found = os.fstat(fd)
    if _lost(mode, found):  # giving it away has cleared them
        os.chmod(proc_path(fd), stat.S_IMODE(found.st_mode) | _lost(mode, found))


def _lost(mode: int, found: os.stat_result) -> int:
    """The bits above the permissions that were asked for and that the file has not."""
    return 0 if stat.S_IFMT(found.st_mode) in (stat.S_IFDIR, stat.S_IFLNK) else mode & 0o7000 & ~found.st_mode


def _remove(dir_fd: int, name: bytes, made: os.stat_result, remove: Callable[..., None]) -> None:
    """Take the name of a file back that could not be given, unless it is another's by now."""
    try:
        if os.path.samestat(stat_at(dir_fd, name), made):
            remove(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return
