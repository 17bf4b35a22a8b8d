"""The tree of a point as a lower layer: what git says of its files, and what the metadata tree adds.

The git part is a `GitLower` on the point's tree. This layer decides what of the metadata applies to a file:

- what is recorded of it, exactly;
- below a directory that `inherits`: git's modes, and that directory's owner and times;
- where neither is: git's modes without any right of the group and of others, so that nothing is shown wider than it
  was. So it is too where a part of the metadata tree is missing or damaged (which is logged once per directory).
"""

from __future__ import annotations

import errno
import logging
import stat
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from clivefs.mounts.git.lower import DIRECTORY_BYTES, FETCH_TIMEOUT_S, GitLower
from clivefs.mounts.git.promised import PromisedObjects
from clivefs.mounts.git.space import GitRef, Reader, TreeSpace
from clivefs.mounts.git.trees import TREE_ENTRIES_MAX
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.points.metadata import ROOT, Facts, decode_records, split_meta
from clivefs.mounts.points.point import Point
from clivefs.mounts.tree import Attr, Blocked, DirEntry, OpenFile, Owner, refuse
from clivefs.objects.encode import OID_BYTES
from clivefs.objects.errors import CorruptObject, ObjectMissing

log = logging.getLogger(__name__)

RECORDS_BYTES_INLINE = 64 << 10
"""Larger records (7,000 files) take over some milliseconds to take apart: that is done in a thread."""
RECORDS_BYTES_MAX = 64 << 20
_OWNER_BITS = 0o700


class _Metadata(NamedTuple):
    """The metadata of one directory."""

    facts: dict[bytes, Facts]
    below: dict[bytes, bytes]


_NO_METADATA = _Metadata({}, {})


class PointRef(LowerRef):
    """One file of a point."""

    __slots__ = ("attr", "facts", "git", "inherited", "meta", "name", "parent")

    def __init__(
        self,
        kind: int,
        parent: PointRef | None,
        name: bytes,
        git: GitRef | None,
        facts: Facts | None,
        meta: bytes | None,
        inherited: Facts | None,
    ) -> None:
        self.kind = kind
        self.parent = parent
        self.name = name
        self.git = git
        """The file in the git tree; None for one that only the metadata tells of."""
        self.facts = facts
        self.meta = meta
        """A directory's metadata tree."""
        self.inherited = inherited
        """The facts of the directory that it inherits from."""
        self.attr: Attr | None = None
        """Its attributes once they are known: they never change."""

    def __hash__(self) -> int:
        return hash((self.name, self.git))

    def __eq__(self, other: object) -> bool:
        one: PointRef | None = self
        two = other if isinstance(other, PointRef) else None
        if two is None or self.git != two.git:
            return False
        while one is not two:
            if one is None or two is None or one.name != two.name or one.facts != two.facts or one.meta != two.meta:
                return False
            one, two = one.parent, two.parent
        return True


class PointLower(Lower):
    """The tree *tree* with the metadata tree *meta*. Methods may be called from any thread until `close`."""

    live = False

    def __init__(
        self,
        reader: Reader,
        tree: bytes,
        meta: bytes | None,
        *,
        time_ns: int,
        owner: Owner,
        layer: bytes,
        cache_dir: str,
        promised: PromisedObjects | None = None,
        entries_max: int = TREE_ENTRIES_MAX,
    ) -> None:
        """*time_ns* and *owner*: of files of which nothing is recorded. *layer*: what `user.clive.layer` shows.
        *cache_dir*: where large blobs of other repositories become plain files. *promised*: gets what is missing."""
        self._reader = reader
        self._owner = owner
        self._time_ns = time_ns
        self._layer = layer
        self._git = GitLower(
            TreeSpace(reader, layer, time_ns, promised.fetch if promised is not None else None),
            tree,
            owner=owner,
            cache_dir=cache_dir,
            tree_entries_max=entries_max,
            fetch_timeout_s=promised.answer_timeout_s if promised is not None else FETCH_TIMEOUT_S,
        )
        self._root = PointRef(stat.S_IFDIR, None, b"", self._git.root, None, meta, None)
        self._root_known = meta is None
        self._metadata: OrderedDict[tuple[bytes, bytes], _Metadata] = OrderedDict()
        self.on_close: Callable[[], None] = lambda: None
        """Called when it is closed."""
        self._metadata_count = 0
        self._entries_max = entries_max
        self._lock = threading.Lock()  # jobs put, the loop gets

    @property
    def root(self) -> PointRef:
        if not self._root_known:
            self._root.facts = self._metadata_of(self._root).facts.get(ROOT)
            self._root_known = True
        return self._root

    # Directories

    def child(self, directory: LowerRef, name: bytes) -> PointRef | None:
        ref = _own(directory)
        if ref.kind != stat.S_IFDIR or not name:
            return None
        git = self._git.child(ref.git, name) if ref.git is not None else None
        facts, below = self._metadata_of(ref)
        own = facts.get(name)
        if git is None and own is None:
            return None
        if git is None:
            assert own is not None
            kind = stat.S_IFMT(own.mode)
        else:
            kind = git.kind
        inherited = ref.facts if ref.facts is not None and ref.facts.inherits else ref.inherited
        return PointRef(kind, ref, name, git, own, below.get(name), inherited if own is None else None)

    def entries(self, directory: LowerRef) -> list[DirEntry]:
        ref = _own(directory)
        if ref.kind != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, ref.name)
        found = self._git.entries(ref.git) if ref.git is not None else []
        there = {entry.name for entry in found}
        facts = self._metadata_of(ref).facts
        added = [
            DirEntry(name, stat.S_IFMT(facts[name].mode)) for name in facts.keys() - there if self._special(facts[name])
        ]
        return sorted(found + [entry for entry in added if entry.name != ROOT]) if added else found

    def names(self, directory: LowerRef) -> list[bytes]:
        return [entry.name for entry in self.entries(directory)]

    @staticmethod
    def _special(facts: Facts) -> bool:
        """Whether a name with these facts can be there without an entry of the git tree."""
        return stat.S_IFMT(facts.mode) not in (stat.S_IFREG, stat.S_IFLNK)

    def _metadata_of(self, ref: PointRef) -> _Metadata:
        """The metadata of a directory; may be `Blocked`."""
        if ref.meta is None:
            return _NO_METADATA
        tree = ref.git.tree if ref.git is not None else None
        key = (ref.meta, tree or b"")
        with self._lock:
            found = self._metadata.get(key)
            if found is not None:
                self._metadata.move_to_end(key)
                return found
        return self._load(key, tree, inline=True)

    def _load(self, key: tuple[bytes, bytes], tree: bytes | None, *, inline: bool) -> _Metadata:
        meta = key[0]
        try:
            found = self._read(meta, tree, inline)
        except (ObjectMissing, CorruptObject) as error:
            log.warning(
                "what git does not say of the files of %s is lost: %s", self._layer.decode("utf-8", "replace"), error
            )
            found = _NO_METADATA
        with self._lock:
            if key not in self._metadata:
                self._metadata[key] = found
                self._metadata_count += len(found.facts) + len(found.below) + 1
            while self._metadata_count > self._entries_max and len(self._metadata) > 1:
                _, old = self._metadata.popitem(last=False)
                self._metadata_count -= len(old.facts) + len(old.below) + 1
        return found

    def _read(self, meta: bytes, tree: bytes | None, inline: bool) -> _Metadata:
        reader = self._reader
        for part in (meta, tree) if tree is not None else (meta,):
            self._check_size(reader.header(part)[1], meta, tree, inline)
        records, below = split_meta(reader.read_tree(meta))
        if records is None:
            return _Metadata({}, below)
        self._check_size(reader.header(records)[1], meta, tree, inline)
        kind, payload = reader.read(records)
        if kind != "blob":
            raise CorruptObject(f"the records of a directory are a {kind}", oid=records)
        return _Metadata(decode_records(payload, reader.read_tree(tree) if tree is not None else []), below)

    def _check_size(self, size: int, meta: bytes, tree: bytes | None, inline: bool) -> None:
        if size > RECORDS_BYTES_MAX:
            raise CorruptObject(f"the records of a directory have {size} bytes", oid=meta)
        if inline and size > RECORDS_BYTES_INLINE:
            key = (meta, tree or b"")
            raise Blocked(lambda: _discard(self._load(key, tree, inline=False)), f"reading metadata {meta.hex()[:12]}")

    # Files

    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        own = _own(ref)
        if own.attr is not None:
            return own.attr
        size, unsized = DIRECTORY_BYTES if own.kind == stat.S_IFDIR else 0, False
        if own.git is not None and own.kind != stat.S_IFDIR:
            told = self._git.attr(own.git, fetch=fetch)
            size, unsized = told.size, told.unsized
        attr = self._shown(own, size, unsized)
        if not unsized:
            own.attr = attr
        return attr

    def _shown(self, ref: PointRef, size: int, unsized: bool) -> Attr:
        facts = ref.facts
        if facts is not None:
            return Attr(
                facts.mode,
                size,
                facts.mtime_ns,
                uid=facts.uid,
                gid=facts.gid,
                # How many there are nobody counted; who sees more than one looks for the others.
                nlink=2 if facts.link and ref.kind != stat.S_IFDIR else 1,
                rdev=facts.rdev,
                unsized=unsized,
            )
        assert ref.git is not None
        mode = self._git.attr(ref.git, fetch=False).mode
        inherited = ref.inherited
        if inherited is not None:
            return Attr(mode, size, inherited.mtime_ns, uid=inherited.uid, gid=inherited.gid, unsized=unsized)
        if ref.kind != stat.S_IFLNK:
            mode = ref.kind | (mode & _OWNER_BITS)
        return Attr(mode, size, self._time_ns, uid=self._owner.uid, gid=self._owner.gid, unsized=unsized)

    def git_file(self, ref: LowerRef) -> GitRef | None:
        """A file as git's tree has it; None for one that only the metadata tells of."""
        return _own(ref).git

    def facts(self, ref: LowerRef) -> Facts | None:
        """What is recorded of a file, as `restore` wants it."""
        return _own(ref).facts

    def link(self, ref: LowerRef) -> int:
        own = _own(ref)
        return own.facts.link if own.facts is not None and own.kind != stat.S_IFDIR else 0

    def open(self, ref: LowerRef) -> OpenFile:
        own = _own(ref)
        if own.git is None:
            raise refuse(errno.EISDIR if own.kind == stat.S_IFDIR else errno.ENXIO, own.name)
        return self._git.open(own.git)

    def readlink(self, ref: LowerRef) -> bytes:
        own = _own(ref)
        if own.git is None:
            raise refuse(errno.EINVAL, own.name)
        return self._git.readlink(own.git)

    def xattrs(self, ref: LowerRef) -> dict[bytes, bytes]:
        facts = _own(ref).facts
        return dict(facts.xattrs) if facts is not None else {}

    # About

    def identity(self, ref: LowerRef) -> bytes:
        own = _own(ref)
        if own.kind == stat.S_IFDIR:
            return self.path(own)
        return self.path(own) + b"\0" + (own.git.entry.oid if own.git is not None else b"%o" % own.kind)

    def path(self, ref: LowerRef) -> bytes:
        at = _own(ref)
        parts: list[bytes] = []
        while at.parent is not None:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed(parts))

    def describe(self, ref: LowerRef) -> dict[str, bytes]:
        own = _own(ref)
        return self._git.describe(own.git) if own.git is not None else {"layer": self._layer}

    def close(self) -> None:
        self._git.close()
        with self._lock:
            self._metadata.clear()
            self._metadata_count = 0
        self.on_close()


def lower_of_point(
    point: Point, reader: Reader, *, owner: Owner, cache_dir: str, promised: PromisedObjects | None = None
) -> PointLower:
    """The layer that shows *point*, whose objects *reader* has. OSError (EIO) where its tree is not there.

    *owner* is that of files of which nothing is recorded; *cache_dir* and *promised* as for `PointLower`.
    """
    try:
        kind, _ = reader.header(point.tree)
    except (ObjectMissing, CorruptObject) as error:
        log.warning("point %s cannot be shown: %s", point.name, error)
        raise refuse(errno.EIO) from error
    if kind != "tree" or len(point.tree) != OID_BYTES:
        raise refuse(errno.EIO)
    return PointLower(
        reader,
        point.tree,
        point.meta,
        time_ns=point.ms * 1_000_000,
        owner=owner,
        layer=b"point:" + point.name.encode(),
        cache_dir=cache_dir,
        promised=promised,
    )


def _discard(_: object) -> None:
    return None


def _own(ref: LowerRef) -> PointRef:
    assert isinstance(ref, PointRef)
    return ref
