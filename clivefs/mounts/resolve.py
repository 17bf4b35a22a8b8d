"""Where a path really leads, found without ever asking a clivefs mount anything.

`os.path.realpath` follows links with calls that the filesystem of each component answers; where that is our
own mount, and the caller is what serves it, the answer never comes. Here every directory is opened by
(descriptor, name) without following, and the kernel's own tables (/proc) say which mount it is before
anything is looked up in it.
"""

from __future__ import annotations

import errno
import os
import stat

FS_TYPE = "fuse.clivefs"
"""What our mounts are called in /proc/self/mountinfo."""

_LINKS_MAX = 40
_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def mount_types() -> dict[int, str]:
    """The filesystem type of every mount of this mount namespace, by mount id (proc(5), mountinfo)."""
    types = {}
    with open("/proc/self/mountinfo", "rb") as file:
        for line in file:
            before, _, after = line.partition(b" - ")
            types[int(before.split(b" ", 1)[0])] = after.split(b" ", 1)[0].decode("ascii", "replace")
    return types


def mount_id_of(fd: int) -> int:
    """The id of the mount that the open file *fd* lies in, from the kernel alone (proc(5), fdinfo)."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        for line in file:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def resolve_links(path: str) -> str:
    """The absolute *path* with all links followed, as far as it exists; the rest stays as written.

    It goes no further than the root of a clivefs mount: what leads into one is returned as a path in it.
    """
    ours = {number for number, kind in mount_types().items() if kind == FS_TYPE}
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    done: list[str] = []
    links = 0
    fd = os.open("/", _FLAGS)
    try:
        while todo:
            if ours and mount_id_of(fd) in ours:
                break
            name = todo[-1]
            try:
                found = os.open(name, _FLAGS, dir_fd=fd)
            except OSError:
                break  # missing, not a directory, or not for us to see
            if stat.S_ISLNK(_mode(found, ours)):
                os.close(found)
                target = os.readlink(name, dir_fd=fd)
                links += 1
                if links > _LINKS_MAX:
                    break
                todo.pop()
                todo.extend(part for part in reversed(target.split("/")) if part not in ("", "."))
                if not target.startswith("/"):
                    continue
                found = os.open("/", _FLAGS)
                done.clear()
            else:
                todo.pop()
                if name != "..":
                    done.append(name)
                elif done:
                    done.pop()
            os.close(fd)
            fd = found
    except OSError:
        pass  # it changed meanwhile: as far as we came
    finally:
        os.close(fd)
    for part in reversed(todo):
        if part != "..":
            done.append(part)
        elif done:
            done.pop()
    return "/" + "/".join(done)


def open_resolved(path: str) -> int:
    """A descriptor (O_PATH) of what the absolute *path* leads to, links followed. OSError; EXDEV where that lies in a
    clivefs mount, which is asked nothing."""
    ours = {number for number, kind in mount_types().items() if kind == FS_TYPE}
    fd = os.open("/", _FLAGS)
    try:
        for name in (*filter(None, resolve_links(path).split("/")), ""):
            if ours and mount_id_of(fd) in ours:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), path)
            if name:
                found = os.open(name, _FLAGS, dir_fd=fd)
                os.close(fd)
                fd = found
    except BaseException:
        os.close(fd)
        raise
    return fd


def _mode(fd: int, ours: set[int]) -> int:
    """The mode of an open file, without asking a mount of ours (whose root is a directory)."""
    if ours and mount_id_of(fd) in ours:
        return stat.S_IFDIR
    return os.fstat(fd).st_mode
