"""From the members of an archive to a git tree, held back until the end; the one place that decides what may be in it.

Refused, with the whole archive: paths that are absolute, hold `..`, NUL or a name git must not hold
(`encode.check_tree_entry`); a file where a directory is needed and the reverse; links, hard or symbolic, that lead out
of the tree, also by way of other links. Decided here, where tools differ:

- Several members of one path: of two files, or two symlinks, the last counts, as tar extracts them; two directories
  are one. A path of two kinds is refused: tools disagree about what is there.
- A hard link is another name of the same blob. It must name an earlier member.
- Names that differ in case or Unicode form alone are different names, as on Linux and in git.
- A regular file called `.git` is left out, as git does: the pointer of a submodule, which real sdists contain.
- Permissions come down to the owner's execute bit, as in git. Empty directories are left out, as in git.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from clivefs.mounts.published.held import HeldObjects, SizeDiffers
from clivefs.mounts.published.member import ArchiveError, Member, MemberKind, Meter, damaged, refuse_member, shown
from clivefs.objects.encode import (
    EMPTY_TREE,
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_SYMLINK,
    MODE_TREE,
    TreeEntry,
    check_tree_entry,
)
from clivefs.objects.values import LARGE_BYTES

PATH_BYTES_MAX = 4096
TARGET_BYTES_MAX = 4095
"""The longest symlink that Linux can show."""
_WHEEL_METADATA = b".dist-info"
"""A wheel without any module has this directory alone, and it is no wrapping."""
_SUBMODULE_POINTER = b".git"
_CHUNK_BYTES = 1 << 18
_LINKS_MAX = 40
"""As many links as the kernel follows."""
_STEPS_PER_LINK = 64
_STEPS_MIN = 100_000

Leaf: TypeAlias = "tuple[int, bytes]"
"""Git's mode, object name."""
Directory: TypeAlias = "dict[bytes, Directory | Leaf]"


class ArchiveTree:
    """Collects members in *held*; `finish` makes the trees."""

    def __init__(self, held: HeldObjects, meter: Meter, *, strip: int | None, place: str) -> None:
        """*strip*: how many leading directories to leave out; None for one if there is but one."""
        self._held = held
        self._meter = meter
        self._strip = strip
        self._place = place
        self._root: Directory = {}
        self._targets: dict[bytes, bytes] = {}
        """Of symlinks: object name to target."""
        self._stripped_away = False
        self.latest_ns = 0
        """The latest modification time of a file."""

    # Taking members

    def add(self, member: Member) -> None:
        """Take one member in. ArchiveError."""
        parts = self._parts(member.path, member.path)
        self._meter.count_file(member.path)
        kept = parts[self._strip or 0 :]
        if kept and kept[-1] == _SUBMODULE_POINTER and member.kind is MemberKind.FILE:
            return
        if not kept:
            if not parts and member.kind is not MemberKind.DIRECTORY:
                raise refuse_member(member.path, "has no name", self._place)
            self._stripped_away = self._stripped_away or bool(parts)
            return
        directory = self._directory(kept[:-1], member.path)
        name = kept[-1]
        there = directory.get(name)
        if member.kind is MemberKind.DIRECTORY:
            self._check_name(MODE_TREE, name, member.path)
            if there is None:
                directory[name] = {}
            elif not isinstance(there, dict):
                raise refuse_member(member.path, f"is a directory, and before it was a {_kind(there)}", self._place)
            return
        leaf = self._leaf(member)
        self._check_name(leaf[0], name, member.path)
        if isinstance(there, dict):
            raise refuse_member(member.path, f"is a {_kind(leaf)}, and before it was a directory", self._place)
        if there is not None and (there[0] == MODE_SYMLINK) != (leaf[0] == MODE_SYMLINK):
            raise refuse_member(member.path, f"is a {_kind(leaf)}, and before it was a {_kind(there)}", self._place)
        directory[name] = leaf
        if member.kind is MemberKind.FILE:
            self.latest_ns = max(self.latest_ns, member.mtime_ns)

    def _parts(self, path: bytes, member: bytes) -> list[bytes]:
        what = "" if path is member else f"is a hard link to {shown(path)}, which "
        if path.startswith(b"/"):
            raise refuse_member(member, what + "has an absolute path", self._place)
        if len(path) > PATH_BYTES_MAX:
            raise refuse_member(
                member, what + f"has a path of {len(path)} bytes, more than {PATH_BYTES_MAX}", self._place
            )
        if b"\0" in path:
            raise refuse_member(member, what + "has a NUL in its path", self._place)
        parts = [part for part in path.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise refuse_member(member, what + "leads out of its directory by `..`", self._place)
        return parts

    def _directory(self, parts: list[bytes], member: bytes) -> Directory:
        """The directory at *parts*, made if need be."""
        directory = self._root
        for part in parts:
            child = directory.get(part)
            if child is None:
                self._check_name(MODE_TREE, part, member)
                self._meter.count_file(member)
                child = directory[part] = {}
            elif not isinstance(child, dict):
                raise refuse_member(member, f"lies below {shown(part)}, which is a {_kind(child)}", self._place)
            directory = child
        return directory

    def _check_name(self, mode: int, name: bytes, member: bytes) -> None:
        why = check_tree_entry(mode, name)
        if why is not None:
            raise refuse_member(member, f"cannot be in a tree: {why}", self._place)

    def _leaf(self, member: Member) -> Leaf:
        if member.kind is MemberKind.FILE:
            return (MODE_EXECUTABLE if member.executable else MODE_FILE), self._blob(member)
        if member.kind is MemberKind.SYMLINK:
            target = member.target
            if not target or b"\0" in target or len(target) > TARGET_BYTES_MAX:
                raise refuse_member(member.path, "is a symbolic link that leads nowhere a link can", self._place)
            self._meter.announce(member.path, len(target))
            self._meter.count_bytes(member.path, len(target))
            oid = self._held.blob(target)
            self._targets[oid] = target
            return MODE_SYMLINK, oid
        found = self._find(self._parts(member.target, member.path)[self._strip or 0 :])
        if found is None:
            why = f"is a hard link to {shown(member.target)}, which is no earlier member"
            raise refuse_member(member.path, why, self._place)
        return found

    def _find(self, parts: list[bytes]) -> Leaf | None:
        at: Directory | Leaf | None = self._root
        for part in parts:
            if not isinstance(at, dict):
                return None
            at = at.get(part)
        return None if isinstance(at, dict) else at

    # Content

    def _blob(self, member: Member) -> bytes:
        self._meter.announce(member.path, member.size)
        try:
            if member.size > LARGE_BYTES:
                return self._held.blob_pieces(self._pieces(member), member.size)
            deflated = None
            if member.read_deflated is not None:
                data, deflated = member.read_deflated()
                self._meter.count_bytes(member.path, len(data))
            else:
                data = b"".join(self._pieces(member))
            if len(data) != member.size:
                raise SizeDiffers(len(data))
        except SizeDiffers as error:
            raise damaged(f"{shown(member.path)} has {error} bytes, not {member.size}", self._place) from None
        return self._held.blob(data, deflated)

    def _pieces(self, member: Member) -> list[bytes] | _Pieces:
        if not member.size:
            return []
        return _Pieces(member, self._meter)

    # The end

    def finish(self) -> bytes:
        """Make the trees; the root's name. ArchiveError: a symlink leads out, or `strip` leaves nothing."""
        root, above = self._root, b""
        if self._stripped_away and not root:
            raise ArchiveError(
                f"with strip = {self._strip} nothing of the archive is left",
                place=self._place,
                remedy="Say a lower number; `tar tf` or `unzip -l` lists what is in it.",
            )
        if self._strip is None and len(root) == 1:
            name, only = next(iter(root.items()))
            if isinstance(only, dict) and not name.endswith(_WHEEL_METADATA):
                root, above = only, name
        self._check_links(root, above)
        return self._write(root)

    def _write(self, root: Directory) -> bytes:
        """Trees from the leaves up, without recursion: depth is the archive's choice."""
        order: list[tuple[Directory, Directory | None, bytes]] = [(root, None, b"")]
        for directory, _, _ in order:  # grows while it is walked
            order.extend((child, directory, name) for name, child in directory.items() if isinstance(child, dict))
        oid = EMPTY_TREE
        for directory, parent, name in reversed(order):
            leaves = [
                TreeEntry(leaf[0], each, leaf[1]) for each, leaf in directory.items() if not isinstance(leaf, dict)
            ]
            if parent is None:
                oid = self._held.tree(leaves)
            elif leaves:
                parent[name] = (MODE_TREE, self._held.tree(leaves))
            else:
                del parent[name]
        return oid

    def _check_links(self, root: Directory, above: bytes) -> None:
        """No symlink leads out of *root*, resolved as the kernel does: by the links that it meets on its way. *above*:
        what it is called in the archive."""
        links: list[tuple[_Place, bytes, bytes]] = []
        pending: list[_Place] = [_Place(root, None, above)] if self._targets else []
        while pending:
            place = pending.pop()
            for name, child in (place.directory or {}).items():
                if isinstance(child, dict):
                    pending.append(_Place(child, place, name))
                elif child[0] == MODE_SYMLINK:
                    links.append((place, name, self._targets[child[1]]))
        steps_left = max(_STEPS_MIN, _STEPS_PER_LINK * len(links))
        for place, name, target in links:
            steps_left -= self._follow(place, name, target, steps_left)

    def _follow(self, start: _Place, name: bytes, target: bytes, steps_left: int) -> int:
        """How many steps it took to follow the symlink *name* of the directory *start* to its end."""
        at: _Place | None = start
        parts = target.split(b"/")[::-1]
        if target.startswith(b"/"):
            at = None
        steps = links = 0
        while parts and at is not None:
            steps += 1
            if steps > steps_left:
                raise refuse_member(start.path(name), "leads through too many other symbolic links", self._place)
            part = parts.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":
                at = at.parent
                continue
            child = at.directory.get(part) if at.directory is not None else None
            if isinstance(child, tuple) and child[0] == MODE_SYMLINK:
                links += 1
                if links > _LINKS_MAX:
                    return steps  # ELOOP: it leads nowhere
                inner = self._targets[child[1]]
                if inner.startswith(b"/"):
                    at = None
                parts.extend(inner.split(b"/")[::-1])
            else:
                # What is missing, or is a file, may be a directory one day: `..` after it is taken at its word.
                at = _Place(child if isinstance(child, dict) else None, at, part)
        if at is None:
            why = f"is a symbolic link to {shown(target)}, which leads out of the archive"
            raise refuse_member(start.path(name), why, self._place)
        return steps


class _Place(NamedTuple):
    """A directory and the way to it. Linked upwards: a list for each would be quadratic in a deep tree."""

    directory: Directory | None
    """None for one that the archive does not have."""
    parent: _Place | None
    name: bytes

    def path(self, name: bytes) -> bytes:
        parts = [name]
        at = self
        while at.parent is not None:
            parts.append(at.name)
            at = at.parent
        if at.name:
            parts.append(at.name)
        return b"/".join(reversed(parts))


class _Pieces:
    """The content of a file, counted as it comes and never more than it announced."""

    def __init__(self, member: Member, meter: Meter) -> None:
        self._member = member
        self._meter = meter
        self._left = member.size

    def __iter__(self) -> _Pieces:
        return self

    def __next__(self) -> bytes:
        assert self._member.read is not None
        if not self._left:
            raise StopIteration
        piece = self._member.read(min(self._left, _CHUNK_BYTES))
        if not piece:
            raise StopIteration
        self._left -= len(piece)
        self._meter.count_bytes(self._member.path, len(piece))
        return piece


def _kind(leaf: Leaf) -> str:
    return MemberKind.SYMLINK.value if leaf[0] == MODE_SYMLINK else MemberKind.FILE.value
