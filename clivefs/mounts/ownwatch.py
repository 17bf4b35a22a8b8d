"""Tells when something that was looked for in a workspace's own files may have changed, saves through the mount
included.

Who looks notes in which directories, and for which names there (`Looked`). The directories are watched and everything
is looked at once more, until there is none that was not watched before: so nothing that changed between the look and
the watch is missed. A directory that does not exist needs no watch, as the one above it is watched for its name.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import NamedTuple

from clivefs.base.syscalls import IN_ATTRIB, IN_CLOSE_WRITE
from clivefs.mounts.host.watch import CONTENT_MASK, NAME_MASK, Kind, Outside, Watcher
from clivefs.mounts.ownfiles import MARKS, OwnFiles, Place

Looked = Mapping[bytes, frozenset[bytes]]
"""Directory to the names, or patterns of names, that were looked for in it."""


class WatchedPlace(NamedTuple):
    """A host directory, and which one it was."""

    place: Place
    identity: tuple[int, int]


def watched_places(files: OwnFiles, looked: Looked) -> dict[WatchedPlace, frozenset[bytes]]:
    """The host directories to be watched for *looked*, with the names that count there. For threads."""
    found: dict[WatchedPlace, frozenset[bytes]] = {}
    for directory, names in looked.items():
        for place in files.places(directory):
            try:
                fd = files.open_place(place)
            except OSError:
                continue  # there is none; the one above is watched for its name
            st = os.fstat(fd)
            os.close(fd)
            key = WatchedPlace(place, (st.st_dev, st.st_ino))
            found[key] = found.get(key, frozenset()) | (names if place != MARKS else frozenset((b"*",)))
    return found


class OwnWatch:
    """The watches for one thing that is looked for. A `WatchedTree`; methods are for the loop's thread."""

    def __init__(self, watcher: Watcher, files: OwnFiles, on_event: Callable[[bool], None]) -> None:
        """*on_event* is called with whether the change is finished: of a file that is being written, the close is."""
        self._watcher = watcher
        self._files = files
        self._on_event = on_event
        self._watched: dict[Hashable, frozenset[bytes]] = {}
        self._closed = False
        watcher.join(self)

    @property
    def complete(self) -> bool:
        """Everything that there is has a watch."""
        return all(self._watcher.watches(self, each) for each in self._watched)

    def keep(self, places: Mapping[WatchedPlace, frozenset[bytes]]) -> list[WatchedPlace]:
        """Let these be watched, and no others; those that are not yet, to be given to `add`."""
        for each in [each for each in self._watched if each not in places]:
            del self._watched[each]
            self._watcher.drop(self, each)
        fresh = [each for each in places if each not in self._watched]
        for each in self._watched:
            assert isinstance(each, WatchedPlace)
            self._watched[each] = places[each]
        return fresh

    def add(self, each: WatchedPlace, names: frozenset[bytes]) -> None:
        """Watch one more directory, if it is still the one that it was."""
        if self._closed:
            return
        self._watched[each] = names
        self._watch(each)

    def _watch(self, each: WatchedPlace) -> None:
        try:
            fd = self._files.open_place(each.place)
        except OSError:
            self._watched.pop(each, None)
            return
        try:
            st = os.fstat(fd)
            if (st.st_dev, st.st_ino) == each.identity:
                self._watcher.watch(self, each, fd)
            else:
                self._watched.pop(each, None)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._closed = True
        self._watched.clear()
        self._watcher.leave(self)

    # Asked by the watcher

    def examine(self, directory: Hashable, names: dict[bytes, int]) -> Iterable[Outside]:
        wanted = self._watched.get(directory, frozenset())
        masks = 0
        for name, mask in names.items():
            if name and any(fnmatchcase(name, pattern) for pattern in wanted):
                masks |= mask
        if masks & (NAME_MASK | CONTENT_MASK | IN_ATTRIB):
            self._on_event(bool(masks & (NAME_MASK | IN_CLOSE_WRITE | IN_ATTRIB)))
        return []

    def examine_all(self, directory: Hashable) -> Iterable[Outside]:
        if isinstance(directory, WatchedPlace) and directory in self._watched:
            self._watch(directory)
            self._on_event(True)
        return []

    def named(self, kind: Kind, directory: Hashable, name: bytes) -> Outside:
        return Outside(kind, None, directory, name, None)

    def vanished(self, directory: Hashable) -> Iterable[Outside]:
        self._watched.pop(directory, None)
        self._on_event(True)
        return []

    def mistrust(self) -> None:
        self._on_event(True)

    def set_degraded(self, degraded: bool) -> None:
        """Who looks asks `complete`."""

    def take_noticed(self) -> list[Outside]:
        return []
