"""What a git tree does not say of its files. Format 1 of the metadata tree.

Beside the tree of a point stands a second one in git's own objects, parallel to it:

    -        a blob: the records of this directory's names; left out where there are none
    =NAME    the metadata tree of the subdirectory NAME; left out where it would be empty

So a change of one file writes again what belongs to its directory, and one tree of each directory above it.

The records of a directory, integers little-endian. T entries are in the git tree, N names are not (empty directories,
pipes, sockets, devices; in the root the name of no bytes, which is the root itself):

    version     1 byte   1
    width       1 byte   size of an index: 1, or 4 where there are more than 255 kinds
    T, N, K     4 bytes each
    kinds       K times  st_mode (2), flags (1; bit 0: `inherits`), owner (4), group (4)
    index       T + N times  1 + the number of the entry's kind in `kinds`; 0: nothing is known of it
    mtime       T + N times  8 bytes, signed, nanoseconds since the epoch
    names       N times  length (1), the name; in the order of their bytes
    extras      to the end, in order: entry (4), which (1), then as the bits of `which` say
                  1   hard-link group (8)
                  2   st_rdev (8)
                  4   how many attributes (2), each: length (1), name, length (4), value
                  8   mtime where 8 bytes do not hold it: seconds (8, signed), nanoseconds (4)

The entries are in the order that git keeps trees in, so a name that is in the tree is not stored again: an ordinary
file takes 9 bytes. Equal facts give equal bytes.

Nothing here is trusted: what cannot be, or does not go with the tree, is a CorruptObject.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from clivefs.objects.encode import (
    MODE_FILE,
    MODE_SYMLINK,
    MODE_TREE,
    NAME_BYTES_MAX,
    TreeEntry,
    is_dot_git,
    tree_sort_key,
)
from clivefs.objects.errors import CorruptObject

RECORDS = b"-"
"""The name of a directory's records in its metadata tree."""
ROOT = b""
"""The name under which the records of the root tell of the root itself."""

XATTR_VALUE_BYTES_MAX = 65_536
"""The kernel's own limits of extended attributes: XATTR_SIZE_MAX, and XATTR_LIST_MAX for all names of a file."""
XATTR_NAMES_BYTES_MAX = 65_536

_VERSION = 1
_HEADER = struct.Struct("<BBIII")
_KIND = struct.Struct("<HBII")
_EXTRA = struct.Struct("<IB")
_NUMBER = struct.Struct("<Q")
_COUNT = struct.Struct("<H")
_LENGTH = struct.Struct("<I")
_WIDE_TIME = struct.Struct("<qI")
_INHERITS = 1
_LINK, _RDEV, _XATTRS, _WIDE = 1, 2, 4, 8
_NS = 1_000_000_000
_TIME_LIMIT = 1 << 63
_GIT_KINDS = {MODE_TREE: stat.S_IFDIR, MODE_SYMLINK: stat.S_IFLNK, 0o160000: stat.S_IFDIR}
_SPECIAL = frozenset((stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK))


class Facts(NamedTuple):
    """What is known of one file beside its content."""

    mode: int
    """The whole st_mode: kind and permission bits."""
    mtime_ns: int
    uid: int
    gid: int
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """(name, value), names with their namespace, in the order of their bytes."""
    rdev: int = 0
    link: int = 0
    """Not 0: all names of the point with this number are one file."""
    inherits: bool = False
    """Of a directory: nothing below it has records. Modes are git's, times and owner are the directory's."""


def meta_entries(records: bytes | None, below: Mapping[bytes, bytes]) -> list[TreeEntry]:
    """The entries of a directory's metadata tree: the blob of its records, if it has any, and the metadata
    trees of its subdirectories by name. An empty list: this directory needs no metadata tree."""
    entries = [TreeEntry(MODE_TREE, b"=" + name, oid) for name, oid in below.items()]
    if records is not None:
        entries.append(TreeEntry(MODE_FILE, RECORDS, records))
    return entries


def split_meta(entries: Sequence[TreeEntry]) -> tuple[bytes | None, dict[bytes, bytes]]:
    """What `meta_entries` was given: the blob of the records, and the metadata trees below by name.

    CorruptObject for anything else. Whether the names are directories is for who has the tree to know.
    """
    records: bytes | None = None
    below: dict[bytes, bytes] = {}
    for mode, name, oid in entries:
        if mode == MODE_FILE and name == RECORDS and records is None:
            records = oid
        elif mode == MODE_TREE and name[:1] == b"=" and name[1:] not in below:
            below[name[1:]] = oid
        else:
            raise CorruptObject(f"a metadata tree has the entry {name[:80]!r}, mode {mode:o}")
    return records, below


def git_kind(mode: int) -> int:
    """The S_IFMT bits of what git's *mode* stands for."""
    return _GIT_KINDS.get(mode, stat.S_IFREG)


def encode_records(facts: Mapping[bytes, Facts], tree: Sequence[TreeEntry]) -> bytes:
    """The records of a directory. *facts* by name, *tree* the entries of its git tree in any order.

    ValueError for what the format cannot hold: such facts were never a file's.
    """
    ordered = sorted(tree, key=tree_sort_key)
    rows = [facts.get(entry.name) for entry in ordered]
    names = sorted(facts.keys() - {entry.name for entry in ordered})
    rows += [facts[name] for name in names]
    try:
        _check(ordered, names, [row.mode if row is not None else None for row in rows])
    except CorruptObject as error:
        raise ValueError(error.message) from error
    kinds: dict[tuple[int, bool, int, int], int] = {}
    index: list[int] = []
    times: list[int] = []
    extras: list[bytes] = []
    for position, row in enumerate(rows):
        if row is None:
            index.append(0)
            times.append(0)
            continue
        mode, mtime_ns, uid, gid, xattrs, rdev, link, inherits = row
        index.append(kinds.setdefault((mode, inherits, uid, gid), len(kinds) + 1))
        fits = -_TIME_LIMIT <= mtime_ns < _TIME_LIMIT
        times.append(mtime_ns if fits else 0)
        if xattrs or rdev or link or not fits:
            extras.append(_encode_extra(position, row, fits))
    width = 1 if len(kinds) <= 255 else 4
    count = len(rows)
    try:
        return b"".join(
            [
                _HEADER.pack(_VERSION, width, len(ordered), len(names), len(kinds)),
                *(_KIND.pack(mode, _INHERITS * inherits, uid, gid) for mode, inherits, uid, gid in kinds),
                bytes(index) if width == 1 else struct.pack(f"<{count}I", *index),
                struct.pack(f"<{count}q", *times),
                *(bytes((len(name),)) + name for name in names),
                *extras,
            ]
        )
    except struct.error as error:
        raise ValueError(f"no file has such facts: {error}") from error


def _encode_extra(position: int, facts: Facts, time_fits: bool) -> bytes:
    which = 0
    parts: list[bytes] = []
    if facts.link:
        which |= _LINK
        parts.append(_NUMBER.pack(facts.link))
    if facts.rdev:
        which |= _RDEV
        parts.append(_NUMBER.pack(facts.rdev))
    if facts.xattrs:
        which |= _XATTRS
        parts.append(_COUNT.pack(len(facts.xattrs)))
        for name, value in sorted(facts.xattrs):
            if not name.startswith(b"user.") or len(value) > XATTR_VALUE_BYTES_MAX:
                raise ValueError(f"no attribute {name!r} of {len(value)} bytes is recorded")
            parts += (bytes((len(name),)), name, _LENGTH.pack(len(value)), value)
    if not time_fits:
        which |= _WIDE
        parts.append(_WIDE_TIME.pack(*divmod(facts.mtime_ns, _NS)))
    return _EXTRA.pack(position, which) + b"".join(parts)


def decode_records(payload: bytes, tree: Sequence[TreeEntry]) -> dict[bytes, Facts]:
    """The facts of a directory by name, for names of *tree* and others. CorruptObject."""
    try:
        return _decode(payload, sorted(tree, key=tree_sort_key))
    except (struct.error, IndexError) as error:
        raise CorruptObject(f"the records of a directory are cut short ({error})") from error


def same_but_times(records: bytes, sound: bytes) -> bool:
    """Whether *records* have the facts of *sound*, which could be decoded, but for times: then so can they, for a
    directory with the same names of the same kinds."""
    if len(records) != len(sound):
        return False
    _, width, in_tree, named, kind_count = _HEADER.unpack_from(sound)
    start = _HEADER.size + kind_count * _KIND.size + (in_tree + named) * width
    end = start + (in_tree + named) * 8
    return records[:start] == sound[:start] and records[end:] == sound[end:]


def _decode(payload: bytes, ordered: list[TreeEntry]) -> dict[bytes, Facts]:
    version, width, in_tree, named, kind_count = _HEADER.unpack_from(payload)
    if version != _VERSION or width not in (1, 4):
        raise CorruptObject(f"the records of a directory have the unknown version {version} (or width {width})")
    if in_tree != len(ordered):
        raise CorruptObject(f"the records are of a directory of {in_tree} entries, and this one has {len(ordered)}")
    count = in_tree + named
    # Before anything is made of these numbers: all of it must be there.
    at = _HEADER.size
    if len(payload) < at + kind_count * _KIND.size + count * (width + 8) + named:
        raise CorruptObject(f"the records of a directory of {count} names are cut short")
    kinds: list[tuple[int, int, int, bool]] = []
    for mode, flags, uid, gid in _KIND.iter_unpack(payload[at : at + kind_count * _KIND.size]):
        _check_kind(mode, flags)
        kinds.append((mode, uid, gid, bool(flags)))
    at += kind_count * _KIND.size
    index: Sequence[int] = payload[at : at + count]
    if width == 4:
        index = struct.unpack_from(f"<{count}I", payload, at)
    at += count * width
    times: tuple[int, ...] = struct.unpack_from(f"<{count}q", payload, at)
    at += count * 8
    names = [entry.name for entry in ordered]
    for _ in range(named):
        end = at + 1 + payload[at]
        name = payload[at + 1 : end]
        if end > len(payload):
            raise CorruptObject("the records of a directory are cut short in a name")
        names.append(name)
        at = end
    if index and max(index) > kind_count:
        raise CorruptObject(f"a record has the kind {max(index)} of {kind_count}")
    modes = [None, *(kind[0] for kind in kinds)]
    _check(ordered, names[in_tree:], [modes[number] for number in index])
    make = Facts._make
    found: dict[bytes, Facts] = {}
    for name, number, mtime_ns in zip(names, index, times, strict=True):
        if number:
            mode, uid, gid, inherits = kinds[number - 1]
            found[name] = make((mode, mtime_ns, uid, gid, (), 0, 0, inherits))
    _decode_extras(payload, at, names, found)
    return found


def _check_kind(mode: int, flags: int) -> None:
    kind = stat.S_IFMT(mode)
    if kind not in _SPECIAL and kind not in (stat.S_IFREG, stat.S_IFLNK):
        raise CorruptObject(f"a record has the mode {mode:o}, which no file has")
    if flags & ~_INHERITS or (flags and kind != stat.S_IFDIR):
        raise CorruptObject(f"a record has the flags {flags:#x} for a file of mode {mode:o}")


def _check(ordered: list[TreeEntry], added: list[bytes], modes: list[int | None]) -> None:
    """CorruptObject unless records of *modes* can be those of a tree's entries, followed by the names *added*."""
    kinds = {(entry.mode, mode) for entry, mode in zip(ordered, modes, strict=False)}
    for git_mode, mode in kinds:
        if mode is not None and stat.S_IFMT(mode) != git_kind(git_mode):
            raise CorruptObject(f"a record of mode {mode:o} is of another kind than the entry of the tree")
    if not added:
        return
    for mode in set(modes[len(ordered) :]):
        if mode is None or stat.S_IFMT(mode) not in _SPECIAL:
            raise CorruptObject("a record of a name that is not in the tree is not of a special file or a directory")
    if added != sorted(set(added)) or not {entry.name for entry in ordered}.isdisjoint(added):
        raise CorruptObject("the names of records are not in order, or appear twice")
    for name in added:
        if len(name) > NAME_BYTES_MAX or name in (b".", b"..") or b"/" in name or b"\0" in name or is_dot_git(name):
            raise CorruptObject(f"a record has the name {name!r}")


def _decode_extras(payload: bytes, at: int, names: list[bytes], found: dict[bytes, Facts]) -> None:
    last = -1
    while at < len(payload):
        position, which = _EXTRA.unpack_from(payload, at)
        at += _EXTRA.size
        facts = found.get(names[position]) if last < position < len(names) else None
        if facts is None or which & ~(_LINK | _RDEV | _XATTRS | _WIDE) or not which:
            raise CorruptObject(f"the records of a directory have an addition ({which:#x}) to entry {position}")
        last = position
        mtime_ns, rdev, link, xattrs = facts.mtime_ns, 0, 0, facts.xattrs
        if which & _LINK:
            (link,) = _NUMBER.unpack_from(payload, at)
            at += _NUMBER.size
        if which & _RDEV:
            (rdev,) = _NUMBER.unpack_from(payload, at)
            at += _NUMBER.size
        if which & _XATTRS:
            xattrs, at = _decode_xattrs(payload, at)
        if which & _WIDE:
            seconds, nanoseconds = _WIDE_TIME.unpack_from(payload, at)
            if nanoseconds >= _NS:
                raise CorruptObject("a record has a time with more than a second of nanoseconds")
            mtime_ns = seconds * _NS + nanoseconds
            at += _WIDE_TIME.size
        found[names[position]] = facts._replace(mtime_ns=mtime_ns, rdev=rdev, link=link, xattrs=xattrs)


def _decode_xattrs(payload: bytes, at: int) -> tuple[tuple[tuple[bytes, bytes], ...], int]:
    (count,) = _COUNT.unpack_from(payload, at)
    at += _COUNT.size
    xattrs: list[tuple[bytes, bytes]] = []
    names_bytes = 0
    for _ in range(count):
        length = payload[at]
        name = payload[at + 1 : at + 1 + length]
        at += 1 + length
        (size,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        if size > XATTR_VALUE_BYTES_MAX or at + size > len(payload):
            raise CorruptObject(f"a record has an extended attribute of {size} bytes")
        names_bytes += length + 1
        if not name.startswith(b"user.") or b"\0" in name or names_bytes > XATTR_NAMES_BYTES_MAX:
            raise CorruptObject(f"a record has the extended attribute {name[:80]!r}")
        if xattrs and name <= xattrs[-1][0]:
            raise CorruptObject("the extended attributes of a record are not in order")
        xattrs.append((name, payload[at : at + size]))
        at += size
    return tuple(xattrs), at
