"""Changes made behind the mount's back, for the recorder: an inotify descriptor of its own.

The mount's own watcher (`host.watch`) watches what somebody has looked at; history wants every directory that is
recorded. They are watched by the scan, each before it is listed, so that nothing is missed in between. Events only
say where to look. A directory that appears is dirty with everything below it: the scan of it watches what is there.

Owned here: which directory a watch stands for, also when directories are renamed, and what happens when the kernel
has no more watches (`degraded`: whoever reads must rescan now and then) or drops events (`Read.lost`).
"""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from clivefs.base.syscalls import (
    IN_ATTRIB,
    IN_CLOSE_WRITE,
    IN_CREATE,
    IN_DELETE,
    IN_EXCL_UNLINK,
    IN_IGNORED,
    IN_ISDIR,
    IN_MODIFY,
    IN_MOVED_FROM,
    IN_MOVED_TO,
    IN_ONLYDIR,
    IN_Q_OVERFLOW,
    IN_UNMOUNT,
    inotify_add,
    inotify_open,
    inotify_parse,
    inotify_remove,
)
from clivefs.mounts.host.calls import proc_path
from clivefs.mounts.recording.layers import is_never
from clivefs.mounts.recording.parts import Dirty, join

_APPEARED = IN_CREATE | IN_MOVED_TO
_MASK = (
    _APPEARED | IN_DELETE | IN_MOVED_FROM | IN_MODIFY | IN_CLOSE_WRITE | IN_ATTRIB | IN_ONLYDIR | IN_EXCL_UNLINK
)  # fmt: skip
_READ_BYTES = 1 << 16
_READS_MAX = 64
_UNWATCHED_MAX = 10_000


class Read(NamedTuple):
    """What there was to read."""

    dirty: tuple[Dirty, ...]
    lost: bool
    """The kernel dropped events: everything must be looked at."""


class _Place:
    """A watched directory, or the way to one."""

    __slots__ = ("children", "name", "parent", "prefix", "watch")

    def __init__(self, prefix: bytes, parent: _Place | None, name: bytes) -> None:
        self.prefix = prefix
        self.parent = parent
        self.name = name
        self.watch = 0
        self.children: dict[bytes, _Place] = {}

    def path(self) -> bytes:
        names: list[bytes] = []
        place: _Place = self
        while place.parent is not None:
            names.append(place.name)
            place = place.parent
        return b"/".join(reversed(names))


class OutsideWatch:
    """The watches of one recorder. `fileno()` is readable when `read` has something to say. For any thread."""

    def __init__(self) -> None:
        self._fd = inotify_open()
        self._lock = threading.Lock()
        self._roots: dict[bytes, _Place] = {}
        self._places: dict[int, dict[int, _Place]] = {}
        """Watch descriptor to the places it stands for, by identity: one directory may be shown at several."""
        self._unwatched: set[tuple[bytes, bytes]] = set()

    def fileno(self) -> int:
        return self._fd

    def __len__(self) -> int:
        return len(self._places)

    @property
    def degraded(self) -> bool:
        """Some directory that is recorded is not watched."""
        return bool(self._unwatched)

    def watch(self, prefix: bytes, path: bytes, dir_fd: int) -> None:
        """Watch the host directory *dir_fd*, which is shown at *path* of the part *prefix*."""
        with self._lock:
            if self._fd < 0:
                return
            place = self._place(prefix, path)
            try:
                watch = inotify_add(self._fd, os.fsencode(proc_path(dir_fd)), _MASK)
            except OSError:  # ENOSPC: no more watches; EACCES: may be searched but not read
                if len(self._unwatched) < _UNWATCHED_MAX:
                    self._unwatched.add((prefix, path))
                return
            self._unwatched.discard((prefix, path))
            if place.watch and place.watch != watch:
                self._end(place)
            place.watch = watch
            self._places.setdefault(watch, {})[id(place)] = place

    def forget(self, prefix: bytes) -> None:
        """The part is no more, or stands on something else."""
        with self._lock:
            root = self._roots.pop(prefix, None)
            if root is not None:
                self._drop(root)
            self._unwatched = {each for each in self._unwatched if each[0] != prefix}

    def _place(self, prefix: bytes, path: bytes) -> _Place:
        place = self._roots.setdefault(prefix, _Place(prefix, None, b""))
        for name in path.split(b"/") if path else ():
            inner = place.children.get(name)
            if inner is None:
                inner = place.children[name] = _Place(prefix, place, name)
            place = inner
        return place

    def _end(self, place: _Place) -> None:
        """*place* is not watched any more; nor is the directory, if it was its only place."""
        places = self._places.get(place.watch)
        watch, place.watch = place.watch, 0
        if places is None or places.pop(id(place), None) is None or places:
            return
        del self._places[watch]
        try:
            inotify_remove(self._fd, watch)
        except OSError:
            return  # the directory is gone, and the watch with it

    def _drop(self, top: _Place) -> None:
        waiting = [top]
        while waiting:
            place = waiting.pop()
            waiting.extend(place.children.values())
            if place.watch:
                self._end(place)

    # Events

    def read(self) -> Read:
        """The paths that had events since the last call."""
        dirty: dict[Dirty, None] = {}
        files: set[tuple[int, bytes]] = set()
        lost = False
        with self._lock:
            for _ in range(_READS_MAX):
                try:
                    data = os.read(self._fd, _READ_BYTES)
                except BlockingIOError:
                    break
                for watch, mask, _cookie, name in inotify_parse(data):
                    if mask & IN_Q_OVERFLOW:
                        lost = True
                    if name and not mask & IN_ISDIR:
                        if (watch, name) in files:
                            continue
                        files.add((watch, name))
                    for place in list(self._places.get(watch, {}).values()):
                        self._note(place, mask, name, dirty)
                    if mask & IN_IGNORED:
                        for place in self._places.pop(watch, {}).values():
                            place.watch = 0
        return Read(tuple(dirty), lost)

    def _note(self, place: _Place, mask: int, name: bytes, dirty: dict[Dirty, None]) -> None:
        if is_never(name):
            return
        path = place.path()
        if not name:
            if mask & IN_ATTRIB:
                dirty[Dirty(place.prefix, path)] = None
            elif mask & IN_UNMOUNT:
                dirty[Dirty(place.prefix, path, True)] = None
            return
        if mask & IN_ISDIR and mask & (IN_MOVED_FROM | IN_DELETE):
            gone = place.children.pop(name, None)
            if gone is not None:
                self._drop(gone)  # where it went to, the scan watches it again
        whole = bool(mask & IN_ISDIR and mask & _APPEARED)
        dirty[Dirty(place.prefix, join(path, name), whole)] = None

    def close(self) -> None:
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)
            self._roots.clear()
            self._places.clear()
