"""Bringing what is recorded of one part up to date with what is there: single paths, and directories as a whole."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping, Set

from clivefs.base.ports import Clock
from clivefs.mounts.points.metadata import Facts
from clivefs.mounts.recording.contents import Contents
from clivefs.mounts.recording.layers import GITIGNORE, Found, Layers, Level, is_never, unstorable
from clivefs.mounts.recording.parts import Dirty, join
from clivefs.mounts.recording.recordedtree import RecordedTree, Subtree, Version
from clivefs.mounts.recording.scan import Outcome, Scanner, Watch, is_alike, read_file, shown_by_default
from clivefs.mounts.recording.statcache import StatCache
from clivefs.objects.encode import EMPTY_TREE, MODE_TREE
from clivefs.objects.interface import Batch


class Refresh:
    """One part during one recording."""

    def __init__(
        self,
        layers: Layers,
        contents: Contents,
        cache: StatCache,
        recorded: RecordedTree,
        batch: Batch,
        outcome: Outcome,
        watch: Watch | None,
        ways: Mapping[bytes, Set[bytes]],
        prefixes: Set[bytes],
        clock: Clock,
    ) -> None:
        """*ways*: the names in each directory of the workspace that are a mount entry or lead to one; *prefixes*: where
        the entries are."""
        self._layers = layers
        self._contents = contents
        self._cache = cache
        self._recorded = recorded
        self._batch = batch
        self._outcome = outcome
        self._watch = watch
        self._ways = ways
        self._prefixes = prefixes
        self._clock = clock
        self._part = layers.part
        self._prefix = layers.part.prefix
        self._levels: dict[bytes, Level] = {}
        self._ways_gone: set[bytes] = set()
        """Directories that single paths have led through, and that were found recorded."""
        self._scanned: set[bytes] = set()
        """Directories that were looked at as a whole."""
        self._done: set[bytes] = set()
        self._linked: set[bytes] = set()
        """Other names of the files that have changed."""

    def run(self, dirty: Mapping[bytes, bool], *, all_known: bool = False) -> None:
        """Look at each path of *dirty*; what is true is looked at with everything below it. *all_known*: all that
        other ignore rules could bear on is among them."""
        whole = {path for path, recursive in dirty.items() if recursive}
        for path in dirty if not all_known else ():
            head, _, name = path.rpartition(b"/")
            if name == GITIGNORE:
                whole.add(head)  # what it says bears on everything there
        for path in sorted(whole):
            if not self._is_scanned(path):
                self._look_at(path, whole=True)
        waiting = set(dirty)
        while waiting:
            for path in sorted(waiting - whole):
                if not self._is_scanned(path):
                    self._look_at(path, whole=False)
            self._done |= waiting
            # What was written to one name of a file was written to all of them.
            waiting = self._linked - self._done
        for path in {path.rpartition(b"/")[0] for path in self._done if path}:
            if not self._is_scanned(path):
                self._refresh_facts(path)

    def _is_scanned(self, path: bytes) -> bool:
        if not self._scanned:
            return False
        while path not in self._scanned:
            if not path:
                return False
            path = path.rpartition(b"/")[0]
        return True

    # One path

    def _look_at(self, path: bytes, *, whole: bool) -> None:
        if not self._has_marks(path, whole):
            self._outcome.again[Dirty(self._prefix, path, whole)] = None
            return
        try:
            self._look_at_path(path, whole)
        except (FileNotFoundError, NotADirectoryError):
            self._outcome.again[Dirty(self._prefix, path, whole)] = None  # it went while we looked
        except PermissionError as error:
            self._outcome.leave_out(join(self._prefix, path), error.strerror or str(error))

    def _look_at_path(self, path: bytes, whole: bool) -> None:
        if not path:
            self._look_at_root(whole)
            return
        *ways, name = path.split(b"/")
        level = self._root_level()
        for way in ways:
            here = join(level.path, way)
            known = self._levels.get(here)
            if known is not None and here in self._ways_gone:
                level = known  # looked at in this recording
                continue
            found = self._layers.look(level, way)
            if join(self._prefix, here) in self._prefixes:
                return  # it lies in another part
            if found is None or self._is_recorded(level, way, found) is False:
                self._remove(here)
                return
            if not _is_directory(found):
                self._look_at_path(here, False)
                return
            if not self._recorded.is_directory(join(self._prefix, here)):
                self._scan(level, way, found)
                return
            level = known or self._enter(level, way, found)
            self._ways_gone.add(here)
        found = self._layers.look(level, name)
        full = join(self._prefix, path)
        if full in self._prefixes:
            return  # another part's root
        recorded = found is not None and self._is_recorded(level, name, found)
        if found is None or recorded is False:
            self._remove(path)
        elif _is_directory(found):
            if whole or not self._recorded.is_directory(full):
                self._scan(level, name, found)
            else:
                self._put_facts(path, self._layers.facts(self._enter(level, name, found)))
        elif full not in self._ways:
            self._file(level, name, found)

    def _has_marks(self, path: bytes, whole: bool) -> bool:
        """Whether the copy of the marks tells what *path* shows; with *whole*, and what everything below it does."""
        copied = self._part.upper.copied if self._part.upper is not None else None
        if copied is None:
            return True
        if not whole and (not path or any(each.startswith(path + b"/") for each in copied)):
            return True  # on the way to one
        while path not in copied:
            if not path:
                return False
            path = path.rpartition(b"/")[0]
        return True

    def _root_level(self) -> Level:
        if b"" not in self._levels:
            self._levels[b""] = self._layers.root()
        return self._levels[b""]

    def _enter(self, level: Level, name: bytes, found: Found | None) -> Level:
        ignored = found is not None and self._layers.records(level, name, found) is None
        inner = self._layers.enter(level, name, found, ignored=ignored)
        self._levels[inner.path] = inner
        return inner

    def _is_recorded(self, level: Level, name: bytes, found: Found) -> bool | None:
        if is_never(name):
            return False  # as everybody expects: no reason is told
        why = unstorable(found, name)
        if why is not None:
            self._outcome.leave_out(join(join(self._prefix, level.path), name), why)
            return False
        return self._layers.records(level, name, found)

    def _remove(self, path: bytes) -> None:
        full = join(self._prefix, path)
        if full in self._ways or full in self._prefixes:
            return  # it is or leads to a mount entry, whatever this part has there
        before = self._recorded.get(full)[1]
        if self._recorded.remove(full):
            self._outcome.changed(full)
            self._mark_links(before)

    def _file(self, level: Level, name: bytes, found: Found) -> None:
        full = join(join(self._prefix, level.path), name)
        before, facts_before = self._recorded.get(full)
        if found.entry is not None:
            if self._is_doubtful(level, name, found):
                self._outcome.again[Dirty(self._prefix, join(level.path, name))] = None
                return
            assert found.lower is not None
            version: Version | None = Version(found.entry.mode, found.entry.oid)
            facts = self._layers.tree_facts(found.entry.mode, found.lower)
            self._outcome.sources.add(self._prefix)
            row = None
        else:
            if self._is_doubtful(level, name, found):
                self._outcome.again[Dirty(self._prefix, join(level.path, name))] = None
                return
            key = self._layers.key_of(level, upper=found.in_upper)
            row = self._cache.rows(key).get(name)
            read = read_file(self._layers, self._contents, level, name, found, row, self._outcome)
            if read is None:
                return
            version, facts, row = read
            self._cache.note(key, name, row)
        if (version, facts) != (before, facts_before):
            self._recorded.put(full, version, facts)
            self._outcome.changed(full)
            if facts.link:
                assert found.st is not None
                if facts_before is not None and facts_before.link == facts.link:
                    self._outcome.linked(facts.link, full)
                else:
                    self._outcome.joined(facts.link, full, found.st.st_ino, row)
            # Only where it has changed, or two names would ask for each other for ever.
            self._mark_links(facts_before)
            self._mark_links(facts)

    def _mark_links(self, facts: Facts | None) -> None:
        """A name of a hard-link group has changed or gone: so have the others, or at least their number."""
        if facts is not None and facts.link:
            start = len(self._prefix) + bool(self._prefix)  # a group never leaves its part
            self._linked |= {each[start:] for each in self._outcome.links.get(facts.link, ())}

    def _is_doubtful(self, level: Level, name: bytes, found: Found) -> bool:
        upper = self._part.upper
        if upper is None or not shown_by_default(found, level, name):
            return False
        return upper.generation_now() != upper.generation

    # Directories

    def _look_at_root(self, whole: bool) -> None:
        level = self._root_level()
        if not whole:
            self._put_facts(b"", self._layers.facts(level))
            return
        part = self._part
        tree = self._layers.lower_tree
        if part.upper is None and part.lower is None:
            self._record_nothing()
            return
        found = Found(
            stat.S_IFDIR, None, part.upper is not None, None, b"", tree.tree if tree is not None else None, level.mark
        )
        self._scan_level(level, found)

    def _record_nothing(self) -> None:
        """The part cannot be shown at this moment: an empty directory stands for it."""
        old = self._recorded.peek(self._prefix)
        if old is not None and (old.tree, old.meta) == (EMPTY_TREE, None):
            return
        own = Facts(stat.S_IFDIR | 0o755, self._clock.now_ns(), os.geteuid(), os.getegid())
        self._put_tree(b"", Subtree(EMPTY_TREE, None, own), None)

    def _scan(self, level: Level, name: bytes, found: Found) -> None:
        inner = self._enter(level, name, found)
        self._scan_level(inner, found)

    def _scan_level(self, level: Level, found: Found) -> None:
        """Record the directory of *level* as a whole."""
        full = join(self._prefix, level.path)
        if not self._has_marks(level.path, True):
            self._outcome.again[Dirty(self._prefix, level.path, True)] = None
            return
        old = self._recorded.peek(full)
        own = self._layers.facts(level)
        scanner = Scanner(
            self._layers,
            self._contents,
            self._cache,
            self._recorded.objects,
            self._batch,
            self._outcome,
            self._watch,
            self._mounts_below(full),
            self._ways,
            own._replace(mode=stat.S_IFDIR | 0o755, xattrs=()),
        )
        if self._layers.is_untouched(found) and full not in self._ways:
            assert found.tree is not None
            assert found.lower is not None
            subtree = Subtree(found.tree, None, self._layers.tree_facts(MODE_TREE, found.lower, inherits=True))
            self._outcome.sources.add(self._prefix)
            scanner.note_graft(full, subtree, old)
        else:
            subtree = scanner.scan(level, own, old)
            upper = self._part.upper
            if upper is not None and upper.generation_now() != upper.generation:
                self._outcome.again[Dirty(self._prefix, level.path, True)] = None
        self._put_tree(level.path, subtree, old)

    def _put_tree(self, path: bytes, subtree: Subtree, old: Subtree | None) -> None:
        full = join(self._prefix, path)
        if old is None and full:
            self._outcome.changed(full)
        self._recorded.put_tree(full, subtree)
        self._scanned.add(path)

    def _mounts_below(self, full: bytes) -> dict[bytes, Subtree]:
        """What is recorded of the mount entries below a path, which were brought up to date before; not of those that
        lie in another of them, which has them."""
        start = full + b"/" if full else b""
        below = {each for each in self._prefixes if each != full and each.startswith(start)}
        found: dict[bytes, Subtree] = {}
        for prefix in below:
            if any(prefix.startswith(each + b"/") for each in below):
                continue
            subtree = self._recorded.subtree(prefix, self._batch)
            if subtree is not None:
                found[prefix] = subtree
        return found

    def _refresh_facts(self, path: bytes) -> None:
        """A name in the directory *path* has changed: so has its time."""
        level = self._levels.get(path)
        if level is None or not self._recorded.is_directory(join(self._prefix, path)):
            return
        try:
            self._put_facts(path, self._layers.facts(level))
        except OSError:
            self._outcome.again[Dirty(self._prefix, path)] = None

    def _put_facts(self, path: bytes, facts: Facts) -> None:
        full = join(self._prefix, path)
        before = self._recorded.get(full)[1]
        if before is not None and before.inherits and before == facts._replace(inherits=True):
            return
        if before == facts:
            return
        self._recorded.put_facts(full, facts)
        if full and not is_alike(before, facts):
            self._outcome.changed(full)


def _is_directory(found: Found) -> bool:
    """Whether it is a directory whose files are ours to record: no submodule."""
    return found.kind == stat.S_IFDIR and (found.entry is None or found.tree is not None)


def paths_of(dirty: Iterable[Dirty], prefixes: Set[bytes]) -> dict[bytes, dict[bytes, bool]]:
    """The dirty paths of each part, to whether they are to be looked at with everything below."""
    found: dict[bytes, dict[bytes, bool]] = {prefix: {} for prefix in prefixes}
    for prefix, path, recursive in dirty:
        if prefix in found:
            found[prefix][path] = found[prefix].get(path, False) or recursive
    return found
