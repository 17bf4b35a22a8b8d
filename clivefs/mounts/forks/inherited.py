"""What a fork has inherited and the live view has changed since: the old files, and what was not there. Format 1.

    UPPER/inherited/rules    JSON: what was ignored when the fork was made (see `Rules` below)
    UPPER/inherited/tree/    old versions of ignored files, at the paths where the fork shows them
    UPPER/inherited/work/    files on their way to `tree/`; emptied at start
    UPPER/inherited/log      records, appended before the live view changes:

        kind (1): `a` nothing was at the path; `m` the directory at the first path went to the second; `s` the two
        were exchanged; `d` a directory is kept, whose st_mode (4), owner (4), group (4) and mtime in ns (8) stand in
        place of a second path; then for each path its length (4, little-endian) and the path; crc32 of all before (4)

Paths are below the workspace. A record that is cut short or damaged ends the log: the change that it was to announce
was not made. A file in `tree/` is whole, and is never written to again.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress

import msgspec

from clivefs.mounts.host.calls import DIRECTORY_FLAGS, stat_at
from clivefs.mounts.overlay.copyup import copy_content, dress
from clivefs.mounts.overlay.discard import destroy
from clivefs.mounts.overlay.upper import PathFds
from clivefs.mounts.recording.parts import join
from clivefs.mounts.tree import Attr, OpenFile

NAME = "inherited"
_TREE, _WORK, _LOG, _RULES = b"tree", b"work", b"log", b"rules"
_LENGTH = struct.Struct("<I")
_PATH_BYTES_MAX = 1 << 20
_ABSENT, _MOVED, _SWAPPED, _DIRECTORY = b"a", b"m", b"s", b"d"
_ATTRIBUTES = struct.Struct("<IIIq")


class RulesOfThen(msgspec.Struct, frozen=True, kw_only=True):
    """What was ignored when a fork was made, beside the `.gitignore` files of its point."""

    version: int = 1
    exclude: tuple[str, ...] = ()
    """`[sessions] exclude`."""
    obey: bool = True
    """Whether `.gitignore` counts."""
    info_exclude: dict[str, str] = {}
    """`info/exclude`, below what git ignores everywhere, by mount entry, in Latin-1; the workspace's own directory is
    the empty path."""


class Inherited:
    """The directory `UPPER/inherited` of one fork. It belongs to the loop's thread, but for `Copying.run`."""

    def __init__(self, upper_dir_fd: int) -> None:
        """Open it in the fork's directory. OSError."""
        self.rules = RulesOfThen()
        self._fd = _made(upper_dir_fd, NAME.encode())
        self._tree_fd = _made(self._fd, _TREE)
        self._work_fd = _made(self._fd, _WORK)
        self._fds = PathFds(self._tree_fd)
        for name in os.listdir(self._work_fd):
            destroy(self._work_fd, os.fsencode(name), lambda inode: None, self._work_name)
        self._absent: set[bytes] = set()
        self._moves: list[tuple[bytes, bytes, bytes]] = []
        self._directories: dict[bytes, Attr] = {}
        self._moved: dict[bytes, set[bytes]] = {}
        """By directory of the fork, the names of what the live view has elsewhere now."""
        self._log_fd = os.open(_LOG, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        self._load()
        self.any_kept = bool(os.listdir(self._tree_fd))
        with suppress(FileNotFoundError):
            fd = os.open(_RULES, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd)
            with open(fd, "rb") as file, suppress(msgspec.MsgspecError):
                self.rules = msgspec.json.decode(file.read(), type=RulesOfThen)

    @staticmethod
    def write_rules(upper: str, rules: RulesOfThen) -> None:
        """Note in the new upper what is ignored now. For threads."""
        directory = os.path.join(upper, NAME)
        os.mkdir(directory, 0o700)
        with open(os.path.join(directory, os.fsdecode(_RULES)), "xb") as file:
            file.write(msgspec.json.encode(rules))

    def close(self) -> None:
        self._fds.close()
        for fd in (self._fd, self._tree_fd, self._work_fd, self._log_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._tree_fd = self._work_fd = self._log_fd = -1

    # The log

    def _load(self) -> None:
        size = os.fstat(self._log_fd).st_size
        content = os.pread(self._log_fd, size, 0)
        at = 0
        for kind, paths, end in _records(content):
            self._apply(kind, paths)
            at = end
        if at != size:
            os.ftruncate(self._log_fd, at)

    def _apply(self, kind: bytes, paths: list[bytes]) -> None:
        if kind == _ABSENT:
            self._absent.add(paths[0])
        elif kind == _DIRECTORY:
            if len(paths[1]) == _ATTRIBUTES.size:
                mode, uid, gid, mtime_ns = _ATTRIBUTES.unpack(paths[1])
                self._directories[paths[0]] = Attr(mode, 4096, mtime_ns, uid=uid, gid=gid)
        else:
            for path in paths if kind == _SWAPPED else paths[:1]:
                own = self.own_path(path)
                if own:
                    head, _, name = own.rpartition(b"/")
                    self._moved.setdefault(head, set()).add(name)
            self._moves.append((kind, paths[0], paths[1]))

    def _note(self, kind: bytes, *paths: bytes) -> None:
        record = kind + b"".join(_LENGTH.pack(len(path)) + path for path in paths)
        os.write(self._log_fd, record + _LENGTH.pack(zlib.crc32(record)))
        self._apply(kind, list(paths))

    def is_absent(self, path: bytes) -> bool:
        """Whether it is known that nothing was at *path*, or at a directory above it."""
        if not self._absent:
            return False
        while path not in self._absent:
            if not path:
                return False
            path = path.rpartition(b"/")[0]
        return True

    def note_absent(self, path: bytes) -> None:
        """Nothing was at *path* when the fork was made."""
        if not self.is_absent(path):
            self._note(_ABSENT, path)

    def note_moved(self, source: bytes, target: bytes, *, exchanged: bool = False) -> None:
        """The live view is about to rename the directory *source*. Paths as the live view has them."""
        self._note(_SWAPPED if exchanged else _MOVED, source, target)

    def live_path(self, path: bytes) -> bytes | None:
        """Where the live view has now what was at *path*; None where something else has taken that place."""
        at: bytes | None = path
        for kind, source, target in self._moves:
            below = _below(at, source)
            if below is not None:
                at = target + below
                continue
            below = _below(at, target)
            if below is not None:
                if kind == _MOVED:
                    return None
                at = source + below
        return at

    def own_path(self, live: bytes) -> bytes | None:
        """Where the fork has what the live view has at *live*; None where that came later."""
        at: bytes | None = live
        for kind, source, target in reversed(self._moves):
            below = _below(at, target)
            if below is not None:
                at = source + below
                continue
            below = _below(at, source)
            if below is not None:
                if kind == _MOVED:
                    return None
                at = target + below
        return at

    def moved_names(self, path: bytes) -> set[bytes]:
        """The names in the directory *path* of what the live view may have elsewhere now."""
        return self._moved.get(path, set())

    # What was kept

    def stat(self, path: bytes) -> os.stat_result | None:
        """stat of the old version at *path*; None where there is none."""
        if not self.any_kept or not path:
            return None
        head, _, name = path.rpartition(b"/")
        try:
            return stat_at(self._fds.open(head), name)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def directory_attr(self, path: bytes) -> Attr | None:
        """The attributes of the directory at *path*, if it was kept."""
        return self._directories.get(path)

    def names(self, path: bytes) -> list[tuple[bytes, int]]:
        """(name, S_IFMT bits) of what was kept in the directory *path*."""
        if not self.any_kept:
            return []
        try:
            with os.scandir(self._fds.open(path)) as listing:
                return [
                    (os.fsencode(each.name), stat.S_IFMT(each.stat(follow_symlinks=False).st_mode)) for each in listing
                ]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def place(self, path: bytes) -> tuple[int, bytes]:
        """(descriptor of its directory, name) of the old version at *path*. FileNotFoundError."""
        head, _, name = path.rpartition(b"/")
        return self._fds.open(head), name

    def tree_fd(self) -> int:
        """A descriptor of the directory of what was kept, the caller's to close."""
        return os.dup(self._tree_fd)

    # Keeping

    def _work_name(self) -> bytes:
        return os.urandom(12).hex().encode()

    def new_copy(
        self, attr: Attr, xattrs: dict[bytes, bytes], source: OpenFile | None, target: bytes | None
    ) -> Copying:
        """A file with these attributes on its way to `tree/`: `run` makes it, `put` publishes it. *source* of a regular
        file, *target* of a symlink."""
        return Copying(os.dup(self._work_fd), self._work_name(), attr, xattrs, source, target)

    def put(self, copy: Copying, path: bytes, directories: list[tuple[Attr, dict[bytes, bytes]]]) -> None:
        """Publish a finished copy at *path*. *directories*: the attributes of those above, from the top on: those that
        are not there yet are made. None: all are there."""
        self._ways(path, directories)
        fd, name = self.place(path)
        os.rename(copy.name, name, src_dir_fd=self._work_fd, dst_dir_fd=fd)
        copy.close()
        self.any_kept = True

    def put_link(self, source_fd: int, path: bytes, directories: list[tuple[Attr, dict[bytes, bytes]]]) -> bool:
        """As `put`, of a file that nobody will change any more: by a hard link. False where that cannot be."""
        self._ways(path, directories)
        fd, name = self.place(path)
        try:
            os.link(f"/proc/self/fd/{source_fd}", name, dst_dir_fd=fd, follow_symlinks=True)
        except OSError:
            return False
        self.any_kept = True
        return True

    def put_directory(self, path: bytes, directories: list[tuple[Attr, dict[bytes, bytes]]]) -> None:
        """Keep a directory itself, which is about to go or to get other attributes: *directories* ends with its own."""
        self._ways(path + b"/", directories)

    def _ways(self, path: bytes, directories: list[tuple[Attr, dict[bytes, bytes]]]) -> None:
        if not directories:
            return
        here = b""
        for name, (attr, xattrs) in zip(path.split(b"/")[:-1], directories, strict=True):
            fd = self._fds.open(here)
            here = join(here, name)
            try:
                stat_at(fd, name)
            except FileNotFoundError:
                self._make_directory(fd, name, here, attr, xattrs)

    def _make_directory(self, dir_fd: int, name: bytes, path: bytes, attr: Attr, xattrs: dict[bytes, bytes]) -> None:
        temporary = self._work_name()
        os.mkdir(temporary, 0o700, dir_fd=self._work_fd)
        # We must be able to look into it, whatever its mode is: that is in the log.
        dress(self._work_fd, temporary, attr, xattrs, 0o700)
        self._note(_DIRECTORY, path, _ATTRIBUTES.pack(attr.mode, attr.uid, attr.gid, attr.mtime_ns))
        os.rename(temporary, name, src_dir_fd=self._work_fd, dst_dir_fd=dir_fd)
        self.any_kept = True


class Copying:
    """A copy of one file, made in a thread or at once."""

    def __init__(
        self,
        work_fd: int,
        name: bytes,
        attr: Attr,
        xattrs: dict[bytes, bytes],
        source: OpenFile | None,
        target: bytes | None,
    ) -> None:
        self._work_fd = work_fd
        self.name = name
        self._attr = attr
        self._xattrs = xattrs
        self._source = source
        self._target = target
        self.done = False

    def run(self) -> None:
        """Make it. May run in a thread."""
        if self.done:
            return
        if self._target is not None:
            os.symlink(self._target, self.name, dir_fd=self._work_fd)
        elif self._source is not None:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self.name, flags, 0o600, dir_fd=self._work_fd)
            try:
                copy_content(self._source, fd, self._attr.size)
            finally:
                os.close(fd)
        else:
            os.mknod(self.name, stat.S_IFMT(self._attr.mode) | 0o600, self._attr.rdev, dir_fd=self._work_fd)
        dress(self._work_fd, self.name, self._attr, self._xattrs)
        self.done = True

    def close(self) -> None:
        if self._source is not None:
            self._source.close()
            self._source = None
        if self._work_fd >= 0:
            os.close(self._work_fd)
            self._work_fd = -1


def _made(dir_fd: int, name: bytes) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=dir_fd)
    return os.open(name, DIRECTORY_FLAGS, dir_fd=dir_fd)


def _below(path: bytes | None, top: bytes) -> bytes | None:
    """What follows *top* in *path*; None where it does not lie there."""
    if path is None or not (path == top or path.startswith(top + b"/")):
        return None
    return path[len(top) :]


def _records(content: bytes) -> Iterator[tuple[bytes, list[bytes], int]]:
    """(kind, paths, where it ends) of each whole record."""
    at = 0
    while at < len(content):
        start, kind = at, content[at : at + 1]
        at += 1
        paths: list[bytes] = []
        for _ in range(1 if kind == _ABSENT else 2):
            if at + _LENGTH.size > len(content):
                return
            (length,) = _LENGTH.unpack_from(content, at)
            at += _LENGTH.size
            if length > _PATH_BYTES_MAX or at + length > len(content):
                return
            paths.append(content[at : at + length])
            at += length
        if at + _LENGTH.size > len(content) or _LENGTH.unpack_from(content, at)[0] != zlib.crc32(content[start:at]):
            return
        at += _LENGTH.size
        yield kind, paths, at
