"""A git tree as a lower layer: read on demand, nothing ever walked ahead of a request.

What may be shown of a tree is decided in `git.trees`. Memory is bounded by what was looked at last, however
large the tree claims to be; paths are built by iteration, so that depth costs nothing but time.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import OrderedDict
from collections.abc import Callable
from weakref import WeakSet

from clivefs.mounts.git.joined import blob_content
from clivefs.mounts.git.space import Converted, Converter, GitRef, Rules, TreeSpace
from clivefs.mounts.git.trees import ST_MODES, TREE_ENTRIES_MAX, UNKNOWN, ShownEntry, TreeCache
from clivefs.mounts.host.calls import HostFile
from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.tree import Attr, Blocked, DirEntry, OpenFile, Owner, refuse
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge
from clivefs.objects.interface import ObjectStore

log = logging.getLogger(__name__)

TREE_BYTES_INLINE = 1 << 20
"""A larger tree takes over some 20 ms to take apart: that is done in a thread."""
TREE_BYTES_MAX = 256 << 20
BLOB_BYTES_INLINE = 1 << 20
SYMLINK_BYTES_MAX = 4095
FETCH_TIMEOUT_S = 30.0
DIRECTORY_BYTES = 4096
_LARGE_MAX = 10_000
_COMPARED_BYTES_MAX = 1 << 20


class GitLower(Lower):
    """The tree *root* of `space.reader`. Methods may be called from any thread until `close`."""

    live = False

    def __init__(
        self,
        space: TreeSpace,
        root: bytes,
        *,
        owner: Owner,
        cache_dir: str,
        times: Callable[[bytes, bytes], int] | None = None,
        patched: Callable[[bytes], bytes | None] | None = None,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
        tree_entries_max: int = TREE_ENTRIES_MAX,
    ) -> None:
        """*root*: a tree. *cache_dir*: where large blobs become plain files. *times*: the modification
        time in ns of (path, object) where it is not the commit's. *patched*: the patch that a path's content
        comes from, as `user.clive.layer` shows it."""
        self._root = GitRef(ShownEntry(MODE_TREE, root), None, b"", space)
        self._owner = owner
        self._cache_dir = cache_dir
        self._times = times
        self._patched = patched
        self._fetch_timeout_s = fetch_timeout_s
        self._trees = TreeCache(tree_entries_max)
        self._large: OrderedDict[bytes, str] = OrderedDict()
        self._opened: list[TreeSpace] = [space]
        self._passed: WeakSet[Converter] = WeakSet()
        """Converters of lowers that this one was shown in the place of, as long as a reference has one."""

    @property
    def root(self) -> GitRef:
        return self._root

    @property
    def times(self) -> Callable[[bytes, bytes], int] | None:
        """The modification times that are not the commit's."""
        return self._times

    def git_file(self, ref: LowerRef) -> GitRef:
        """*ref*, as what it is."""
        return _git(ref)

    # Directories

    def child(self, directory: LowerRef, name: bytes) -> GitRef | None:
        ref = _git(directory)
        if ref.kind != stat.S_IFDIR:
            return None
        entry = self._entries(ref).get(name)
        return None if entry is None else GitRef(entry, ref, name, ref.space)

    def entries(self, directory: LowerRef) -> list[DirEntry]:
        ref = _git(directory)
        if ref.kind != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, ref.name)
        return [DirEntry(name, stat.S_IFMT(ST_MODES[entry.mode])) for name, entry in self._entries(ref).items()]

    def names(self, directory: LowerRef) -> list[bytes]:
        ref = _git(directory)
        if ref.kind != stat.S_IFDIR:
            raise refuse(errno.ENOTDIR, ref.name)
        return list(self._entries(ref))

    def _entries(self, ref: GitRef) -> dict[bytes, ShownEntry]:
        if ref.tree is None:
            self._enter_submodule(ref)
            if ref.tree is None:
                return {}
        found = self._trees.get(ref.tree)
        return self._load(ref.space, ref.tree, inline=True) if found is None else found

    def _load(self, space: TreeSpace, oid: bytes, *, inline: bool) -> dict[bytes, ShownEntry]:
        try:
            kind, size = space.reader.header(oid)
            if kind != "tree" or size > TREE_BYTES_MAX:
                log.warning("object %s (%s, %d bytes) cannot be shown as a directory", oid.hex(), kind, size)
                raise refuse(errno.EIO)
            if inline and size > TREE_BYTES_INLINE:
                raise Blocked(lambda: _discard(self._load(space, oid, inline=False)), f"reading tree {oid.hex()[:12]}")
            shown = self._trees.shown(oid, space.reader.read_tree(oid))
        except ObjectMissing:
            raise self._fetching(space, [oid], f"tree {oid.hex()[:12]}") from None
        except (CorruptObject, ObjectTooLarge) as error:
            raise _damaged(space, oid, error) from error
        self._trees.put(oid, shown)
        return shown

    def _enter_submodule(self, ref: GitRef) -> None:
        opened = self._opened_submodule(ref)
        if not isinstance(opened, str):
            ref.space, ref.tree = opened
            if all(ref.space is not known for known in self._opened):
                self._opened.append(ref.space)

    def _opened_submodule(self, ref: GitRef) -> tuple[TreeSpace, bytes] | str:
        """What is in a submodule, or why it cannot be had. May be `Blocked`."""
        assert ref.parent is not None
        if ref.space.submodules is None:
            return "not fetched"
        above = self._space_path(ref.parent)
        return ref.space.submodules.open(above + b"/" + ref.name if above else ref.name, ref.entry.oid)

    # Files

    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        ref = _git(ref)
        if ref.attr is not None:
            return ref.attr
        mode = ST_MODES[ref.entry.mode]
        owner = self._owner
        if ref.kind == stat.S_IFDIR:
            ref.attr = Attr(mode, DIRECTORY_BYTES, self._mtime(ref), uid=owner.uid, gid=owner.gid)
            return ref.attr
        try:
            size = self._size(ref)
        except (Blocked, OSError):
            if fetch:
                raise  # a listing shows also what cannot be had
            return Attr(mode, 0, self._mtime(ref), uid=owner.uid, gid=owner.gid, unsized=True)
        ref.attr = Attr(mode, size, self._mtime(ref), uid=owner.uid, gid=owner.gid)
        return ref.attr

    def _mtime(self, ref: GitRef) -> int:
        if self._times is None:
            return ref.space.commit_time_ns
        return self._times(self.path(ref), ref.entry.oid)

    def _size(self, ref: GitRef) -> int:
        """The size in bytes as shown, after conversion; may be `Blocked`."""
        converted = self._converted(ref)
        return self._raw_size(ref) if converted is None else converted.size

    def _raw_size(self, ref: GitRef) -> int:
        if ref.entry.size == UNKNOWN:
            try:
                kind, ref.entry.size = ref.space.reader.header(ref.entry.oid)
            except ObjectMissing:
                raise self._fetch_directory(ref) from None
            except CorruptObject as error:
                raise _damaged(ref.space, ref.entry.oid, error) from error
            if kind != "blob":
                ref.entry.size = UNKNOWN
                raise refuse(errno.EIO)
        return ref.entry.size

    def open(self, ref: LowerRef) -> OpenFile:
        ref = _git(ref)
        if ref.kind != stat.S_IFREG:
            raise refuse(errno.EISDIR if ref.kind == stat.S_IFDIR else errno.ELOOP, ref.name)
        converted = self._converted(ref)
        if converted is not None:
            return self._open_converted(ref, converted)
        if self._raw_size(ref) > BLOB_BYTES_INLINE:
            return self._open_large(ref)
        try:
            ref.space.reader.header(ref.entry.oid)
        except ObjectMissing:  # it was here when its size was read
            raise self._fetch_directory(ref) from None
        except CorruptObject as error:
            raise _damaged(ref.space, ref.entry.oid, error) from error
        return BlobFile(self, ref)

    def _content(self, ref: GitRef) -> bytes:
        try:
            return ref.space.reader.read(ref.entry.oid)[1]
        except ObjectMissing:
            raise self._fetch_directory(ref) from None
        except (CorruptObject, ObjectTooLarge) as error:
            raise _damaged(ref.space, ref.entry.oid, error) from error

    def stored(self, ref: LowerRef) -> bytes:
        """The content of a file as git stores it. May be `Blocked`."""
        own = _git(ref)
        try:
            return blob_content(own.space.reader, own.entry.oid)
        except ObjectMissing:
            raise self._fetch_directory(own) from None

    def _open_large(self, ref: GitRef) -> OpenFile:
        oid, reader = ref.entry.oid, ref.space.reader
        if isinstance(reader, ObjectStore):  # there it is a file already
            fd = reader.open_large(oid)
            return KeptFile(fd) if fd is not None else BytesFile(self._content(ref))
        path = self._large.get(oid)
        if path is not None:
            try:
                return KeptFile(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
            except FileNotFoundError:
                self._large.pop(oid, None)

        def materialize() -> None:
            try:
                self._large[oid] = reader.materialize(oid, self._cache_dir)
            except (ObjectMissing, CorruptObject) as error:
                raise OSError(errno.EIO, str(error)) from error
            while len(self._large) > _LARGE_MAX:
                self._large.popitem(last=False)

        raise Blocked(materialize, f"unpacking {os.fsdecode(ref.name)}")

    def readlink(self, ref: LowerRef) -> bytes:
        ref = _git(ref)
        if ref.kind != stat.S_IFLNK:
            raise refuse(errno.EINVAL, ref.name)
        if self._raw_size(ref) > SYMLINK_BYTES_MAX:
            raise refuse(errno.ENAMETOOLONG, ref.name)
        target = self._content(ref)
        if not target or b"\0" in target:
            raise refuse(errno.EIO, ref.name)
        return target

    # What is not here yet

    def _fetch_directory(self, ref: GitRef) -> Exception:
        """The `Blocked` that gets all missing blobs of the directory that *ref* is in."""
        missing = {ref.entry.oid: None}
        if ref.parent is not None:
            for entry in self._entries(ref.parent).values():
                if entry.size == UNKNOWN and stat.S_IFMT(entry.mode) in (stat.S_IFREG, stat.S_IFLNK):
                    try:
                        entry.size = ref.space.reader.header(entry.oid)[1]
                    except ObjectMissing:
                        missing[entry.oid] = None
                    except CorruptObject:
                        continue
        parent = os.fsdecode(self.path(ref.parent)) if ref.parent is not None else ""
        return self._fetching(ref.space, list(missing), f"{len(missing)} blobs of {parent or 'the root'}")

    def _fetching(self, space: TreeSpace, oids: list[bytes], what: str) -> Exception:
        fetcher = space.fetcher
        if fetcher is None:
            if space.damage is not None:
                space.damage(oids[0], "is missing")
            return refuse(errno.EIO)
        return Blocked(lambda: fetcher(oids), f"fetching {what}", timeout_s=self._fetch_timeout_s)

    # Conversions of .gitattributes

    def _converted(self, ref: GitRef) -> Converted | None:
        """What a file is converted to; None for one that is shown as it is stored."""
        converter, directory = ref.space.converter, ref.parent
        if converter is None or directory is None or ref.kind != stat.S_IFREG:
            return None
        rules = self._rules(directory)
        if not rules and not converter.always:
            return None

        def files() -> dict[bytes, bytes]:
            return {name: entry.oid for name, entry in self._entries(directory).items() if stat.S_ISREG(entry.mode)}

        try:
            return converter.find(ref.space.reader, self._space_path(directory), rules, files, ref.name)
        except ObjectMissing as error:
            if error.oid in files().values():
                raise self._fetch_directory(ref) from None
            raise self._fetching(ref.space, [error.oid], ".gitattributes") from None

    def _open_converted(self, ref: GitRef, converted: Converted) -> OpenFile:
        try:
            return KeptFile(os.open(converted.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC))
        except FileNotFoundError:
            assert ref.space.converter is not None
            assert ref.parent is not None
            ref.space.converter.forget(self._space_path(ref.parent))
            self._converted(ref)  # `Blocked`
            raise refuse(errno.EIO, ref.name) from None

    def attributes(self, path: bytes) -> tuple[bytes, Rules]:
        """What converts the file *path*, which need not exist: its path in the repository, and the attribute files on
        the way there. No rules in a submodule. May be `Blocked`."""
        ref = self._root
        for name in path.split(b"/")[:-1]:
            child = self.child(ref, name)
            if child is None or child.kind != stat.S_IFDIR:
                break
            ref = child
        space = self._root.space
        whole = space.prefix + b"/" + path if space.prefix else path
        return whole, self._rules(ref) if ref.space is space and ref.entry.mode != MODE_GITLINK else ()

    def _rules(self, directory: GitRef) -> Rules:
        """The attribute files from the root (of the submodule) down to *directory*."""
        chain: list[GitRef] = []
        at: GitRef | None = directory
        while at is not None and at.rules is None:
            chain.append(at)
            at = at.parent
        for each in reversed(chain):
            outer = each.parent
            inherited = outer.rules if outer is not None and outer.space is each.space else each.space.outer_rules
            entry = self._entries(each).get(b".gitattributes")
            own = ((self._space_path(each), entry.oid),) if entry is not None and stat.S_ISREG(entry.mode) else ()
            each.rules = (inherited or ()) + own
        return directory.rules or ()

    def _space_path(self, ref: GitRef) -> bytes:
        """The path below the root of the repository (not of the superproject)."""
        parts: list[bytes] = []
        at = ref
        while at.parent is not None and at.entry.mode != MODE_GITLINK:
            parts.append(at.name)
            at = at.parent
        if ref.space.prefix:
            parts.append(ref.space.prefix)
        return b"/".join(reversed(parts))

    # About

    def xattrs(self, ref: LowerRef) -> dict[bytes, bytes]:
        return {}

    def identity(self, ref: LowerRef) -> bytes:
        ref = _git(ref)
        if ref.kind == stat.S_IFDIR:
            return self.path(ref)
        return self.path(ref) + b"\0" + ref.entry.oid

    def path(self, ref: LowerRef) -> bytes:
        at = _git(ref)
        parts: list[bytes] = []
        while at.parent is not None:
            parts.append(at.name)
            at = at.parent
        return b"/".join(reversed(parts))

    def describe(self, ref: LowerRef) -> dict[str, bytes]:
        ref = _git(ref)
        oid = ref.entry.oid.hex().encode()
        if ref.entry.mode != MODE_GITLINK:
            layer = self._patched(self.path(ref)) if self._patched is not None else None
            return {"layer": layer or ref.space.layer, "oid": oid}
        layer = b"submodule:" + oid
        if ref.tree is None:
            try:
                opened = self._opened_submodule(ref)
            except Blocked:
                opened = "not fetched yet"
            if isinstance(opened, str):
                layer += b" (" + opened.encode("utf-8", "surrogateescape") + b")"
        return {"layer": layer, "oid": oid}

    # In the place of another

    def converts_alike(self, ref: LowerRef, other: Lower, other_ref: LowerRef) -> bool:
        if not isinstance(other, GitLower):
            return True
        one, two = _git(ref), _git(other_ref)
        if one.space.converter is None or one.parent is None or two.parent is None:
            return True
        if self._rules(one.parent) == other._rules(two.parent):
            return True
        now, before = self._converted(one), other._converted(two)
        return (now.size, _bytes_of(now)) == (before.size, _bytes_of(before)) if now and before else now == before

    def same_below(self, directory: LowerRef, other: Lower, other_directory: LowerRef) -> bool:
        """By the trees' names. The commit must be the same (`layer` tells it of every file), and no rules from above
        may bear on the content."""
        if not isinstance(other, GitLower):
            return False
        one, two = _git(directory), _git(other_directory)
        if one.tree is None or one.tree != two.tree or one.entry.mode != two.entry.mode:
            return False
        if one.space.layer != two.space.layer or one.space.prefix != two.space.prefix:
            return False
        converter = one.space.converter
        return converter is None or not (converter.always or self._rules(one) or other._rules(two))

    def same_tree(self, directory: LowerRef, other: Lower, other_directory: LowerRef) -> bool:
        if not isinstance(other, GitLower):
            return False
        tree = _git(directory).tree
        return tree is not None and tree == _git(other_directory).tree

    def take_over(self, other: Lower) -> None:
        """References to files of *other* go on, with what converts their content."""
        if isinstance(other, GitLower):
            self._passed.update(other._passed)
            self._passed.update(space.converter for space in other._opened if space.converter is not None)

    def close(self) -> None:
        for converter in {*self._passed, *(space.converter for space in self._opened)}:
            if converter is not None:
                converter.close()
        self._trees.clear()


def _bytes_of(converted: Converted) -> bytes | object:
    """Its content; of a large file something that equals nothing else."""
    if converted.size > _COMPARED_BYTES_MAX:
        return object()
    with open(converted.path, "rb") as file:
        return file.read()


class BytesFile(OpenFile):
    """Immutable content in memory."""

    __slots__ = ("_content", "keep_cache")

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.keep_cache = True

    def read(self, offset: int, size: int) -> bytes:
        return self._content[offset : offset + size]


class BlobFile(OpenFile):
    """A small blob, read when somebody first reads: who has it in the kernel's cache never does.

    It is here when it is opened.
    """

    __slots__ = ("_content", "_lower", "_ref", "keep_cache")

    def __init__(self, lower: GitLower, ref: GitRef) -> None:
        self._lower = lower
        self._ref = ref
        self._content: bytes | None = None
        self.keep_cache = True

    def read(self, offset: int, size: int) -> bytes:
        if self._content is None:
            self._content = self._lower._content(self._ref)
        return self._content[offset : offset + size]


class KeptFile(HostFile):
    """Immutable content in a file of the host."""

    __slots__ = ()

    def __init__(self, fd: int) -> None:
        super().__init__(fd)
        self.keep_cache = True


def _damaged(space: TreeSpace, oid: bytes, error: CorruptObject | ObjectTooLarge) -> OSError:
    """What whoever wants to see an object is answered that is not what it should be; `status` says why."""
    log.warning("%s", error)
    if space.damage is not None and isinstance(error, CorruptObject):
        space.damage(oid, f"is damaged: {error.message}")
    return refuse(errno.EIO)


def _git(ref: LowerRef) -> GitRef:
    assert isinstance(ref, GitRef)
    return ref


def _discard(_: object) -> None:
    return None
