"""Which file stands at a path of a part: the upper's, or the lower's as far as the marks let it show.

The rules are those of `overlay.nodes` (`find`, `marked`), said again for a thread: without nodes, on directories
named by path, with a copy of the marks. A test compares the two. A part without an upper is the plain case.

Everything that decides whether a path is recorded at all is here too (`Level.records`): names that are never
recorded, ignore rules, and what is recorded in spite of them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import NamedTuple

from clivefs.mounts.git.trees import ST_MODES, visible
from clivefs.mounts.host.calls import stat_at
from clivefs.mounts.overlay.marks import Mark, MarkKind
from clivefs.mounts.overlay.upper import PathFds
from clivefs.mounts.points.metadata import Facts
from clivefs.mounts.recording.contents import directory_facts
from clivefs.mounts.recording.gitfiles import open_git_file, read_plain, read_small
from clivefs.mounts.recording.ignore import Exclude, Rules, after
from clivefs.mounts.recording.parts import HostLower, Part, TreeLower, join
from clivefs.mounts.recording.statcache import directory_key
from clivefs.mounts.recording.tracked import TrackedPaths
from clivefs.mounts.steps import STAGING
from clivefs.objects.encode import EMPTY_TREE, MODE_TREE, TreeEntry, check_tree_entry
from clivefs.objects.errors import ObjectMissing, ObjectTooLarge

NEVER = frozenset((b".git", b".clive"))
"""Names that are recorded nowhere."""


def is_never(name: bytes) -> bool:
    """Whether nothing of that name is recorded: `NEVER`, and what is on its way into the tree."""
    return name in NEVER or name.startswith(STAGING)


GITIGNORE = b".gitignore"
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE)

Hidden = Callable[[tuple[int, int], bytes], bool]
"""Whether a name in the host directory (st_dev, st_ino) is a mountpoint of ours, not to be touched."""


class Found(NamedTuple):
    """What stands at a name."""

    kind: int
    """S_IFMT bits."""
    st: os.stat_result | None = None
    """Of the host file that is shown."""
    in_upper: bool = False
    entry: TreeEntry | None = None
    """Of the git tree's entry that is shown."""
    lower: bytes | None = None
    """The path in the lower that shows here (of a directory: that it merges with)."""
    tree: bytes | None = None
    """The git tree that a directory merges with."""
    mark: Mark | None = None


class Level:
    """One directory of a part, on the way down."""

    __slots__ = ("ignored", "in_upper", "lower", "mark", "path", "rules", "tree")

    def __init__(
        self,
        path: bytes,
        in_upper: bool,
        lower: bytes | None,
        tree: bytes | None,
        mark: Mark | None,
        rules: Rules,
        ignored: bool,
    ) -> None:
        self.path = path
        """Where it is shown, below the part's root."""
        self.in_upper = in_upper
        self.lower = lower
        """The path of the lower directory that shows here."""
        self.tree = tree
        """Its tree, where the lower is a git tree."""
        self.mark = mark
        self.rules = rules
        self.ignored = ignored
        """It lies in an ignored directory: only what is tracked is recorded."""

    @property
    def plain(self) -> bool:
        """Nothing but a host directory."""
        return not self.in_upper and self.tree is None and self.mark is None


class Layers:
    """The layers of one part during one recording. Used by one thread; `close` it."""

    def __init__(
        self,
        part: Part,
        exclude: Exclude,
        tracked: TrackedPaths,
        hidden: Hidden,
        *,
        obey: bool,
        beside: Mapping[bytes, bytes] = MappingProxyType({}),
    ) -> None:
        """*obey*: whether `.gitignore` counts. *beside*: by the directory where rules start anew, patterns
        that count after all others."""
        self.part = part
        self.tracked = tracked
        self._hidden = hidden
        self._obey = obey
        self._exclude = exclude
        self._beside = beside if obey else {}
        self._trees: dict[bytes, dict[bytes, TreeEntry]] = {}
        self.lower_host = part.lower if isinstance(part.lower, HostLower) else None
        self.lower_tree = part.lower if isinstance(part.lower, TreeLower) else None
        self._lower_fds = PathFds(self.lower_host.fd) if self.lower_host is not None else None
        self._upper_fds = PathFds(part.upper.fd) if part.upper is not None else None
        self._timed: set[bytes] | None = None
        self._keys: dict[tuple[bool, bytes], int] = {}
        self._identities: dict[bytes, tuple[int, int]] = {}
        """Of directories of the lower: one recording looks at one directory of each path."""
        self.anew: frozenset[bytes] = frozenset()
        """Directories where ignore rules start anew, as at the root of a part."""

    def close(self) -> None:
        for fds in (self._lower_fds, self._upper_fds):
            if fds is not None:
                fds.close()

    # Directories

    def upper_fd(self, path: bytes) -> int:
        assert self._upper_fds is not None
        return self._upper_fds.open(path)

    def lower_fd(self, path: bytes) -> int:
        assert self._lower_fds is not None
        return self._lower_fds.open(path)

    def key_of(self, level: Level, *, upper: bool) -> int:
        """The stat cache's key of the host directory behind *level*."""
        path = level.path if upper else level.lower
        assert path is not None
        key = self._keys.get((upper, path))
        if key is None:
            fd = self.upper_fd(path) if upper else self.lower_fd(path)
            key = directory_key(self.part.prefix, b"upper" if upper else b"lower", os.fstat(fd).st_ino)
            self._keys[upper, path] = key
        return key

    def root(self) -> Level:
        part = self.part
        tree = self.lower_tree.tree if self.lower_tree is not None else None
        lower = b"" if part.lower is not None else None
        mark = part.upper.marks if part.upper is not None else None
        level = Level(b"", part.upper is not None, lower, tree, mark, Rules(), False)
        level.rules = Rules.at_root(
            self._exclude, part.prefix + b"/" if part.prefix else b"", self._info_exclude(), self._gitignore(level)
        )
        return level

    def enter(self, level: Level, name: bytes, found: Found | None, *, ignored: bool = False) -> Level:
        """The directory *name*; *found* None for one that is only the way to a mount entry."""
        path = join(level.path, name)
        if found is None:
            return Level(path, False, None, None, None, level.rules.enter(name, None), ignored)
        if path in self.anew:
            inner = Level(path, found.in_upper, found.lower, found.tree, found.mark, level.rules, False)
            inner.rules = Rules.at_root(self._exclude, path + b"/", self._beside.get(path), self._gitignore(inner))
            return inner
        inner = Level(path, found.in_upper, found.lower, found.tree, found.mark, level.rules, ignored)
        inner.rules = level.rules.enter(name, self._gitignore(inner)) if not ignored else Rules()
        return inner

    def facts(self, level: Level) -> Facts:
        """The facts of the directory itself."""
        if level.in_upper:
            fd = self.upper_fd(level.path)
            return directory_facts(fd, os.fstat(fd))
        assert level.lower is not None
        if self.lower_tree is not None:
            return self.tree_facts(MODE_TREE, level.lower)
        fd = self.lower_fd(level.lower)
        return directory_facts(fd, os.fstat(fd))

    def tree_facts(self, mode: int, path: bytes, *, inherits: bool = False) -> Facts:
        """The facts of what git's tree has at *path*."""
        lower = self.lower_tree
        assert lower is not None
        mtime_ns = lower.times.get(path, lower.mtime_ns)
        return Facts(ST_MODES[mode], mtime_ns, lower.owner.uid, lower.owner.gid, inherits=inherits)

    def is_untouched(self, found: Found) -> bool:
        """Whether a directory is a subtree of the git tree, as a whole."""
        if found.in_upper or found.tree is None or found.lower is None:
            return False
        if found.mark is not None and found.mark.children:
            return False
        return found.lower not in self._with_times()

    def _with_times(self) -> set[bytes]:
        """The directories above files with a time of their own."""
        if self._timed is None:
            self._timed = set()
            for path in self.lower_tree.times if self.lower_tree is not None else ():
                directory = path.rpartition(b"/")[0]
                while directory not in self._timed:
                    self._timed.add(directory)
                    directory = directory.rpartition(b"/")[0]
        return self._timed

    # Names

    def look(self, level: Level, name: bytes) -> Found | None:
        """What stands at *name*, None where nothing does. OSError for a directory that cannot be searched."""
        upper: os.stat_result | None = None
        if level.in_upper:
            with suppress(FileNotFoundError):
                upper = stat_at(self.upper_fd(level.path), name)
        return self._combine(level, name, upper)

    def _combine(self, level: Level, name: bytes, upper: os.stat_result | None) -> Found | None:
        mark = level.mark.child(name) if level.mark is not None else None
        kind = stat.S_IFMT(upper.st_mode) if upper is not None else 0
        if upper is not None and kind != stat.S_IFDIR:
            return Found(kind, upper, True)
        behind: Found | None = None
        if mark is None or mark.kind is MarkKind.INHERIT:
            if level.lower is not None:
                behind = self._lower(level.lower, level.tree, name, mark)
        elif mark.kind is MarkKind.REDIRECT:
            behind = self._lower_at(mark.target, mark)
        if upper is None:
            return behind
        if behind is None or behind.kind != stat.S_IFDIR or (behind.entry is not None and behind.tree is None):
            return Found(kind, upper, True, mark=mark)
        return Found(kind, upper, True, None, behind.lower, behind.tree, mark)

    def _lower(self, directory: bytes, tree: bytes | None, name: bytes, mark: Mark | None) -> Found | None:
        path = join(directory, name)
        if self.lower_tree is not None:
            entry = self.tree_entries(tree).get(name)
            return None if entry is None else _found_entry(entry, path, mark)
        try:
            fd = self.lower_fd(directory)
            identity = self._identities.get(directory)
            if identity is None:
                identity = self._identities[directory] = _identity(fd)
            if self._hidden(identity, name):
                return None
            st = stat_at(fd, name)
        except OSError as error:
            if error.errno in _ABSENT:
                return None
            raise
        return Found(stat.S_IFMT(st.st_mode), st, False, None, path, None, mark)

    def _lower_at(self, path: bytes, mark: Mark) -> Found | None:
        """What the lower has at *path*."""
        head, _, name = path.rpartition(b"/")
        tree: bytes | None = None
        if self.lower_tree is not None:
            tree = self.lower_tree.tree
            for part in head.split(b"/") if head else ():
                entry = self.tree_entries(tree).get(part)
                if entry is None or not entry.is_tree:
                    return None
                tree = entry.oid
        return self._lower(head, tree, name, mark)

    def tree_entries(self, tree: bytes | None) -> dict[bytes, TreeEntry]:
        """What of a git tree is shown, by name."""
        if tree is None or tree == EMPTY_TREE:
            return {}
        found = self._trees.get(tree)
        if found is None:
            assert self.lower_tree is not None
            shown = visible(self.lower_tree.objects.read_tree(tree))[0]
            found = self._trees[tree] = {entry.name: entry for entry in shown}
        return found

    def names(self, level: Level) -> Iterator[tuple[bytes, Found]]:
        """Every name of a directory with what stands there. OSError: EACCES where it may not be read."""
        if level.plain:
            if level.lower is not None:
                yield from self._host_names(level.lower)
            return
        seen: set[bytes] = set()
        if level.in_upper:
            for name, st in _listed(self.upper_fd(level.path)):
                seen.add(name)
                found = self._combine(level, name, st)
                if found is not None:
                    yield name, found
        others: set[bytes] = set(level.mark.children or ()) if level.mark is not None else set()
        if level.lower is not None:
            if self.lower_tree is not None:
                others |= self.tree_entries(level.tree).keys()
            else:
                others |= {os.fsencode(name) for name in _names(self.lower_fd(level.lower))}
        for name in sorted(others - seen):
            found = self._combine(level, name, None)
            if found is not None:
                yield name, found

    def _host_names(self, path: bytes) -> Iterator[tuple[bytes, Found]]:
        fd = self.lower_fd(path)
        prefix = path + b"/" if path else b""
        identity = _identity(fd)
        for entry in _entries(fd):
            name = os.fsencode(entry.name)
            if entry.is_dir(follow_symlinks=False) and self._hidden(identity, name):
                continue
            try:
                st = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            yield name, Found(stat.S_IFMT(st.st_mode), st, False, None, prefix + name)

    # What is recorded

    def records(self, level: Level, name: bytes, found: Found) -> bool | None:
        """Whether *name* is recorded. None: a directory of which only some files are, in spite of a rule."""
        if is_never(name):
            return False
        is_dir = found.kind == stat.S_IFDIR
        if not level.ignored and not (level.rules and level.rules.ignores(name, is_dir)):
            return True
        path = join(level.path, name)
        if self.lower_tree is not None and self._in_source(level, name):
            return None if is_dir else True
        if is_dir:
            return None if self.tracked.has_below(path) else False
        return self.tracked.has(path)

    def _in_source(self, level: Level, name: bytes) -> bool:
        """Whether the source's tree has *name* at this very path."""
        assert self.lower_tree is not None
        tree: bytes | None = self.lower_tree.tree
        if level.tree is not None and level.lower == level.path:
            tree = level.tree
        else:
            for part in level.path.split(b"/") if level.path else ():
                entry = self.tree_entries(tree).get(part)
                if entry is None or not entry.is_tree:
                    return False
                tree = entry.oid
        return name in self.tree_entries(tree)

    def _gitignore(self, level: Level) -> bytes | None:
        """The content of the directory's `.gitignore`, which must be a plain file."""
        if not self._obey:
            return None
        if level.plain and level.lower is not None:
            with suppress(OSError):
                return read_small(self.lower_fd(level.lower), GITIGNORE)
            return None
        with suppress(OSError, ObjectMissing, ObjectTooLarge):
            found = self.look(level, GITIGNORE)
            if found is None or found.kind != stat.S_IFREG:
                return None
            if found.entry is not None:
                assert self.lower_tree is not None
                return self.lower_tree.objects.read(found.entry.oid)[1]
            if found.in_upper:
                return read_small(self.upper_fd(level.path), GITIGNORE)
            assert found.lower is not None
            head, _, name = found.lower.rpartition(b"/")
            return read_small(self.lower_fd(head), name)
        return None

    def _info_exclude(self) -> bytes | None:
        if not self._obey:
            return None
        beside = self._beside.get(b"")
        with suppress(OSError):
            fd = open_git_file(self.part, self.part.info_exclude, b"info/exclude")
            if fd is not None:
                try:
                    return after(beside, read_plain(fd))
                finally:
                    os.close(fd)
        return beside


def unstorable(found: Found, name: bytes) -> str | None:
    """Why no point can hold *name*, or None."""
    mode = 0o120000 if found.kind == stat.S_IFLNK else MODE_TREE if found.kind == stat.S_IFDIR else 0o100644
    return check_tree_entry(mode, name)


def _found_entry(entry: TreeEntry, path: bytes, mark: Mark | None) -> Found:
    kind = stat.S_IFMT(ST_MODES[entry.mode])
    return Found(kind, None, False, entry, path, entry.oid if entry.mode == MODE_TREE else None, mark)


def _identity(fd: int) -> tuple[int, int]:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino


def _entries(fd: int) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(fd) as listing:
            return list(listing)
    except OSError as error:
        raise _unreadable(error) from None


def _names(fd: int) -> list[str]:
    try:
        return os.listdir(fd)
    except OSError as error:
        raise _unreadable(error) from None


def _unreadable(error: OSError) -> OSError:
    """An O_PATH descriptor is what one gets of a directory that may be searched but not read."""
    return PermissionError(errno.EACCES, os.strerror(errno.EACCES)) if error.errno == errno.EBADF else error


def _listed(fd: int) -> Iterator[tuple[bytes, os.stat_result]]:
    for entry in _entries(fd):
        try:
            yield os.fsencode(entry.name), entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
