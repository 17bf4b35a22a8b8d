"""Git's object formats, byte for byte: names, trees, commits, tags.

Everything that turns git's bytes into values and back lives here. The formats are those of git's
Documentation/gitformat-* and `tree-walk.c`, `commit.c`, `ident.c`, `fsck.c`, `path.c`.

The decoders refuse only what cannot be read at all (`CorruptObject`): a hostile tree decodes, and
`check_tree_entry` says of each entry why it must not be shown. The encoders refuse what would make a
tree that means something else to git.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterable, Sequence
from hashlib import sha1
from itertools import chain
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from clivefs.objects.errors import CorruptObject, InvalidName

if TYPE_CHECKING:
    from hashlib import _Hash

OID_BYTES = 20
KINDS = ("commit", "tree", "blob", "tag")

MODE_TREE = 0o040000
MODE_FILE = 0o100644
MODE_EXECUTABLE = 0o100755
MODE_SYMLINK = 0o120000
MODE_GITLINK = 0o160000
MODE_GROUP_WRITABLE = 0o100664
"""Written by very old gits; git itself reads it as MODE_FILE."""

NAME_BYTES_MAX = 255


# Names of objects


def object_hasher(kind: str, size: int) -> _Hash:
    """A SHA-1 that has taken git's header of an object of *size* bytes; feed it the payload."""
    return sha1(b"%s %d\0" % (kind.encode(), size), usedforsecurity=False)


def hash_object(kind: str, payload: bytes) -> bytes:
    """The 20-byte name of an object. hashlib releases the GIL for payloads over 2 KiB."""
    hasher = sha1(b"%s %d\0" % (kind.encode(), len(payload)), usedforsecurity=False)
    hasher.update(payload)
    return hasher.digest()


EMPTY_TREE = hash_object("tree", b"")
EMPTY_BLOB = hash_object("blob", b"")


# Trees


class TreeEntry(NamedTuple):
    """One entry of a tree: git's mode, the name's bytes, the 20-byte name of the object."""

    mode: int
    name: bytes
    oid: bytes

    @property
    def is_tree(self) -> bool:
        return stat.S_ISDIR(self.mode)


_ENTRY = re.compile(rb"([0-7]{1,7}) ([^\0]*)\0(.{20})", re.DOTALL)
_UNSTORABLE = frozenset((b"", b".", b"..", b".git"))


def tree_sort_key(entry: TreeEntry) -> bytes:
    """What git sorts a tree by: a directory sorts as if its name ended in `/`."""
    return entry.name + b"/" if entry.mode == MODE_TREE else entry.name


def encode_tree(entries: Iterable[TreeEntry]) -> bytes:
    """The payload of a tree, sorted as git sorts. InvalidName on a duplicate or a name no tree may hold."""
    ordered = sorted(entries, key=tree_sort_key)
    names = {entry.name for entry in ordered}
    if len(names) != len(ordered):
        raise InvalidName(f"a tree has {_first_duplicate(ordered)!r} twice")
    if not names.isdisjoint(_UNSTORABLE):
        raise InvalidName(f"a tree cannot hold the name {next(iter(names & _UNSTORABLE))!r}")
    every = b"/".join(names)
    if b"\0" in every or every.count(b"/") != max(len(names) - 1, 0):
        raise InvalidName("a tree cannot hold a name with a slash or a NUL in it")
    if not {entry.mode for entry in ordered} <= _MODES or not {len(entry.oid) for entry in ordered} <= {OID_BYTES}:
        raise InvalidName("a tree entry has a mode or an object name that git does not know")
    return b"".join([b"%o %b\0%b" % entry for entry in ordered])


def _first_duplicate(ordered: Sequence[TreeEntry]) -> bytes:
    seen: set[bytes] = set()
    for entry in ordered:
        if entry.name in seen:
            return entry.name
        seen.add(entry.name)
    return b""


def stored_entries(data: bytes) -> list[tuple[bytes, bytes, bytes]]:
    """The entries of a tree in stored order: (mode in octal digits, name, object). Only the framing is checked. A third
    of what `decode_tree` takes, for whoever looks at many trees that have most in common."""
    found = _ENTRY.findall(data)
    if 2 * len(found) + sum(map(len, chain.from_iterable(found))) != len(data):  # findall skips what does not match
        raise CorruptObject(f"a tree of {len(data)} bytes is malformed after {_readable_prefix(data)} bytes")
    return found


def decode_tree(data: bytes) -> list[TreeEntry]:
    """The entries of a tree in stored order. Only the framing is checked: see `check_tree_entry`."""
    found = stored_entries(data)
    modes = {mode: int(mode, 8) for mode in set(map(itemgetter(0), found))}
    make = TreeEntry._make
    return [make((modes[mode], name, oid)) for mode, name, oid in found]


def _readable_prefix(data: bytes) -> int:
    end = 0
    while match := _ENTRY.match(data, end):
        end = match.end()
    return end


_MODES = frozenset((MODE_TREE, MODE_FILE, MODE_EXECUTABLE, MODE_SYMLINK, MODE_GITLINK, MODE_GROUP_WRITABLE))
# Code points that HFS+ ignores when it compares names: git's next_hfs_char() in utf8.c.
_HFS_IGNORED = dict.fromkeys([*range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x206A, 0x2070), 0xFEFF])
_NTFS_DOT_GIT = re.compile(rb"(?i:\.git|git~1)[. ]*(?::.*)?", re.DOTALL)
_NTFS_DOT_GITMODULES = re.compile(
    rb"(?i:\.gitmodules|gitmod~[1-4]|gi7eb[0-9a-f]~[1-9]|gi7eba~[1-9])[. ]*(?::.*)?", re.DOTALL
)


def check_tree_entry(mode: int, name: bytes) -> str | None:
    """Why an entry of a foreign tree must not be shown, or None if it may be.

    As git's `verify_path` with core.protectHFS and core.protectNTFS on, whatever this machine is:
    what one clone would refuse, none of ours shows.
    """
    if not name:
        return "the name is empty"
    if len(name) > NAME_BYTES_MAX:
        return f"the name has {len(name)} bytes, more than {NAME_BYTES_MAX}"
    if b"/" in name:
        return "the name has a slash in it"
    if b"\0" in name:
        return "the name has a NUL in it"
    if name in (b".", b".."):
        return f"the name is `{name.decode()}`"
    if mode not in _MODES:
        return f"the mode {mode:o} is none that git uses"
    first = name[0]
    # Only these can begin a spelling of .git; every other name, nearly all of them, is done here.
    if first == 0x2E or first in b"gG" or first >= 0x80 or b"\\" in name:
        if is_dot_git(name):
            return "the name is a spelling of `.git`"
        if stat.S_ISLNK(mode) and _is_dot_gitmodules(name):
            return "the name is a spelling of `.gitmodules` and it is a symlink"
    return None


def is_dot_git(name: bytes) -> bool:
    """Whether some filesystem (any case, HFS+, NTFS) would take *name* for `.git`."""
    if any(_NTFS_DOT_GIT.fullmatch(part) for part in name.split(b"\\")):
        return True
    return _hfs_folded(name) == ".git"


def _is_dot_gitmodules(name: bytes) -> bool:
    if any(_NTFS_DOT_GITMODULES.fullmatch(part) for part in name.split(b"\\")):
        return True
    return _hfs_folded(name) == ".gitmodules"


def _hfs_folded(name: bytes) -> str | None:
    try:
        return name.decode().translate(_HFS_IGNORED).lower()
    except UnicodeDecodeError:
        return None


# Commits


class Signature(NamedTuple):
    """Who did something and when: `seconds` since the epoch, `zone` as git writes it (`+0130`)."""

    name: bytes
    email: bytes
    seconds: int
    zone: bytes = b"+0000"

    def encode(self) -> bytes:
        for part in (self.name, self.email, self.zone):
            if any(byte in part for byte in b"\0\n<>"):
                raise InvalidName(f"a signature cannot hold {part!r}")
        if not _ZONE.fullmatch(self.zone):
            raise InvalidName(f"{self.zone!r} is no time zone as git writes it")
        return b"%b <%b> %d %b" % (self.name, self.email, self.seconds, self.zone)


class Commit(NamedTuple):
    """A commit. `extra` are the headers after the committer (encoding, gpgsig, mergetag ...) in order,
    values verbatim but for the continuation blanks."""

    tree: bytes
    parents: tuple[bytes, ...]
    author: Signature
    committer: Signature
    message: bytes
    extra: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def encoding(self) -> bytes | None:
        """The message's encoding; None means UTF-8."""
        return next((value for key, value in self.extra if key == b"encoding"), None)


_ZONE = re.compile(rb"[+-]\d{4,7}")
_SIGNATURE = re.compile(rb"([^<>\n]*) <([^<>\n]*)> (0|-?[1-9]\d{0,18}) ([+-]\d{4,7})")
_SECONDS_MAX = (1 << 63) - 1
_HEX = re.compile(rb"[0-9a-f]{40}")
_RESERVED = frozenset((b"tree", b"parent", b"author", b"committer"))


def encode_commit(commit: Commit) -> bytes:
    """The payload of a commit."""
    lines = [b"tree " + _hex(commit.tree)]
    lines += [b"parent " + _hex(parent) for parent in commit.parents]
    lines.append(b"author " + commit.author.encode())
    lines.append(b"committer " + commit.committer.encode())
    for key, value in commit.extra:
        if not key or key in _RESERVED or any(byte in key for byte in b" \n\0"):
            raise InvalidName(f"{key!r} cannot be a header of a commit")
        lines.append(key + b" " + value.replace(b"\n", b"\n "))
    return b"\n".join(lines) + b"\n\n" + commit.message


def decode_commit(data: bytes) -> Commit:
    """The commit. `encode_commit` of it gives *data* again unless a header line was malformed:
    those, found in old histories, read as git reads them (time 0 where there is none)."""
    head, _, message = data.partition(b"\n\n")
    headers = _headers(head)
    if not headers or headers[0][0] != b"tree":
        raise CorruptObject("a commit does not begin with its tree")
    tree = _oid(headers[0][1])
    at = 1
    parents: list[bytes] = []
    while at < len(headers) and headers[at][0] == b"parent":
        parents.append(_oid(headers[at][1]))
        at += 1
    signatures: list[Signature] = []
    for key in (b"author", b"committer"):
        if at >= len(headers) or headers[at][0] != key:
            raise CorruptObject(f"a commit has no {key.decode()}")
        signatures.append(decode_signature(headers[at][1]))
        at += 1
    return Commit(tree, tuple(parents), signatures[0], signatures[1], message, tuple(headers[at:]))


def decode_signature(text: bytes) -> Signature:
    """Read `NAME <EMAIL> SECONDS ZONE` as leniently as git's split_ident_line()."""
    match = _SIGNATURE.fullmatch(text)
    if match and int(match[3]) <= _SECONDS_MAX:
        return Signature(match[1], match[2], int(match[3]), match[4])
    name, _, rest = text.partition(b"<")
    email, _, when = rest.partition(b">")
    when = text.rpartition(b">")[2]
    numbers = when.split()
    seconds = int(numbers[0]) if numbers and re.fullmatch(rb"\d{1,18}", numbers[0]) else 0
    zone = numbers[1] if len(numbers) > 1 and _ZONE.fullmatch(numbers[1]) else b"+0000"
    return Signature(_plain(name), _plain(email), seconds, zone)


def _plain(text: bytes) -> bytes:
    return text.translate(None, b"<>\0\n").strip()


def decode_tag(data: bytes) -> tuple[bytes, str]:
    """What an annotated tag points to: (object name, kind)."""
    headers = dict(_headers(data.partition(b"\n\n")[0])[:2])
    kind = headers.get(b"type", b"").decode("ascii", "replace")
    if b"object" not in headers or kind not in KINDS:
        raise CorruptObject("a tag does not say what it points to")
    return _oid(headers[b"object"]), kind


def _headers(head: bytes) -> list[tuple[bytes, bytes]]:
    """The (key, value) lines of a commit or tag, continuation lines joined."""
    headers: list[tuple[bytes, bytes]] = []
    for line in head.removesuffix(b"\n").split(b"\n"):
        if line.startswith(b" ") and headers:
            key, value = headers[-1]
            headers[-1] = (key, value + b"\n" + line[1:])
        else:
            key, _, value = line.partition(b" ")
            headers.append((key, value))
    return headers


def _hex(oid: bytes) -> bytes:
    if len(oid) != OID_BYTES:
        raise InvalidName(f"{oid!r} is not the name of an object")
    return oid.hex().encode()


def _oid(text: bytes) -> bytes:
    if not _HEX.fullmatch(text):
        raise CorruptObject(f"{text[:60]!r} is not the name of an object")
    return bytes.fromhex(text.decode())
