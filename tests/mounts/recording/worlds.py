"""What the tests of recording share: a workspace on disk with its recorder, and what a point of it holds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from clivefs.mounts.points.metadata import Facts
from clivefs.mounts.recording.parts import Dirty, HostLower, Part
from clivefs.mounts.recording.recordedtree import RecordedTree, Version
from clivefs.mounts.recording.recorder import Recorded, Recorder
from clivefs.mounts.recording.statcache import StatCache
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.interface import ObjectStore
from clivefs.objects.memory import MemoryStore

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CEILING_DIRECTORIES": "/",
    "GIT_AUTHOR_NAME": "A",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "A",
    "GIT_COMMITTER_EMAIL": "a@example.org",
}
OLD_NS = 1_600_000_000_123_456_789
"""A time that no tick is near."""


class Workspace:
    """A directory, recorded as the root part, and whatever other parts a test adds."""

    def __init__(self, root: Path, store: ObjectStore | None = None, **options: Any) -> None:
        self.root = root
        root.mkdir(exist_ok=True)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.store = store or MemoryStore()
        self.cache = StatCache()
        self.options = options
        self.recorder = Recorder(self.store, self.cache, **options)
        self.parts: list[Part] = [Part(b"", HostLower(self.fd))]
        self.base: tuple[bytes, bytes | None] = (EMPTY_TREE, None)

    def close(self) -> None:
        os.close(self.fd)

    def restart(self) -> None:
        """As another process would go on: the stat cache is what is left."""
        self.recorder = Recorder(self.store, self.cache, **self.options)

    def record(self, *dirty: Dirty | bytes, **options: Any) -> Recorded:
        """Record *dirty* (paths of the root part, or `Dirty`s); everything when there are none."""
        found = [each if isinstance(each, Dirty) else Dirty(b"", each) for each in dirty]
        return self.record_all(found or None, **options)

    def record_all(self, dirty: Iterable[Dirty] | None, **options: Any) -> Recorded:
        with self.store.batch() as batch:
            recorded = self.recorder.record(self.parts, dirty, batch, base=self.base, **options)
        self.base = recorded.tree, recorded.meta
        return recorded

    def write(self, path: str, content: str | bytes = b"", *, old: bool = True) -> Path:
        """Make a file; *old*: with a time long ago."""
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
        if old:
            os.utime(place, ns=(OLD_NS, OLD_NS))
        return place


def contents(store: Any, base: tuple[bytes, bytes | None]) -> dict[bytes, tuple[Version | None, Facts | None]]:
    """Every path of a recorded tree, the root too, with git's part and the facts."""
    tree = RecordedTree(store, *base)
    found: dict[bytes, tuple[Version | None, Facts | None]] = {b"": tree.get(b"")}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        directory = tree.directory(path)
        assert directory is not None
        for name in directory.names():
            inner = path + b"/" + name if path else name
            found[inner] = tree.get(inner)
            if directory.is_directory(name):
                waiting.append(inner)
    return found


def files(store: Any, base: tuple[bytes, bytes | None]) -> dict[bytes, bytes | str]:
    """The paths with their content (bytes), or `dir`, `fifo` ... for what has none."""
    found: dict[bytes, bytes | str] = {}
    for path, (version, facts) in contents(store, base).items():
        if version is not None and version.mode != 0o160000:
            fd = store.open_large(version.oid)
            if fd is None:
                found[path] = store.read(version.oid)[1]
            else:
                with open(fd, "rb") as file:
                    found[path] = file.read()
        elif path:
            kind = stat.S_IFMT(facts.mode) if facts is not None else stat.S_IFDIR
            found[path] = {stat.S_IFDIR: "dir", stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}.get(kind, oct(kind))
    return found


def on_disk(root: Path, *, without: Sequence[bytes] = (b".git", b".clive")) -> dict[bytes, tuple[int, bytes | None]]:
    """What is there: path to (st_mode, content or target; None for directories and special files)."""
    found: dict[bytes, tuple[int, bytes | None]] = {}
    waiting = [b""]
    top = os.fsencode(root)
    while waiting:
        path = waiting.pop()
        for entry in os.scandir(top + b"/" + path):
            if entry.name in without:
                continue
            inner = path + b"/" + entry.name if path else entry.name
            mode = entry.stat(follow_symlinks=False).st_mode
            content: bytes | None = None
            if stat.S_ISREG(mode):
                with open(entry.path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(mode):
                content = os.readlink(entry.path)
            elif stat.S_ISDIR(mode):
                waiting.append(inner)
            found[inner] = mode, content
    return found


def recorded_as_on_disk(store: Any, base: tuple[bytes, bytes | None]) -> dict[bytes, tuple[int, bytes | None]]:
    """A recorded tree in the form of `on_disk`."""
    found: dict[bytes, tuple[int, bytes | None]] = {}
    for path, (version, facts) in contents(store, base).items():
        if path:
            assert facts is not None, path
            found[path] = facts.mode, None if version is None else store.read(version.oid)[1]
    return found
