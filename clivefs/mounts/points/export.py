"""Sessions as a git repository that stock git reads: `clivefs git` and `clivefs export --git`.

The store keeps points where git does not look. `update` brings a bare repository up to date with the session refs
of a workspace (`refs/clive/sessions/NAME` there, and the branch `latest`), at the cost of what is new: one pack of the
new objects, then all refs in one transaction of git's. Killed in between, it leaves a pack that the next update does
not need.

Where points were thinned a parent is missing, which stock git takes for damage. Then the commits after a gap are
written anew, each with the point before it that is left as its parent and the trailer `Clive-Point`, the point's own
id; so are all later ones. Which became which is kept in `clive-exported` in the repository: lines of a point's id, a
blank, and the commit's, in the order of time. After another thinning the commits are others from there on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.index import SESSION_REFS, Points
from clivefs.mounts.points.names import MS_MAX
from clivefs.objects.encode import TreeEntry, encode_commit, hash_object
from clivefs.objects.interface import ObjectStore
from clivefs.objects.packwriter import new_trees, write_pack
from clivefs.objects.repository import Repository

LATEST = "refs/heads/latest"
_CHUNK_BYTES = 1 << 20
_EXPORTED = "clive-exported"


def session_refs(store: ObjectStore, workspace_id: str) -> dict[str, bytes]:
    """The newest point of each session of a workspace: name of the session -> commit."""
    prefix = f"{SESSION_REFS}{workspace_id}/"
    return {name.removeprefix(prefix): oid for name, oid in store.refs(prefix).items()}


def update(
    directory: str,
    sessions: dict[str, bytes],
    source: JoinedObjects,
    *,
    head: str | None,
    elsewhere: Callable[[bytes], bool] | None = None,
    alternates: tuple[str, ...] = (),
    points: Points | None = None,
) -> int:
    """Let the repository *directory* (made if it is missing) have exactly *sessions*; how many points are new in it.

    *head*: the session that its branch `latest`, and so HEAD, stands on. *elsewhere* says of an object that one of the
    object directories *alternates*, which the repository borrows from, has it. *points*: those of the sessions, to be
    asked where some may have been thinned. ClivefsError, GitFailed, ObjectMissing, OSError.
    """
    git = GitCommand()
    _make(git, directory)
    _borrow(directory, alternates)
    there = _refs(git, directory)
    elsewhere = elsewhere or (lambda oid: False)
    exported = sessions
    told: list[str] = []
    chain: _Chain | None = None
    if points is not None and points.has_gaps():
        chain = _rewritten(points, source, _read_exported(directory))
        exported = {name: chain.ids[oid] for name, oid in sessions.items()}
        told = [f"{old.hex()} {new.hex()}\n" for old, new in chain.ids.items()]
        commits = chain.new
        own = Repository(directory)
        known, elsewhere = elsewhere, lambda oid: known(oid) or own.has(oid)
    else:
        commits = _new_commits(sessions.values(), set(there.values()), source)
    if commits:
        _add_pack(git, directory, _Chunked(source, chain.payloads if chain is not None else {}), commits, elsewhere)
    _write_exported(directory, told)
    wanted = {SESSION_REFS + name: oid for name, oid in exported.items()}
    if head is not None:
        wanted[LATEST] = exported[head]
    lines = [f"update {name} {oid.hex()}\n" for name, oid in wanted.items() if there.get(name) != oid]
    lines += [f"delete {name}\n" for name in there if name not in wanted]
    if lines:
        git.run(["update-ref", "--stdin"], git_dir=directory, stdin="".join(lines).encode())
    return len(commits)


def _make(git: GitCommand, directory: str) -> None:
    if not os.path.lexists(directory) or (os.path.isdir(directory) and not os.listdir(directory)):
        git.run(["init", "--quiet", "--bare", "--initial-branch=latest", directory])
        git.run(["config", "gc.auto", "0"], git_dir=directory)
    elif not os.path.isfile(os.path.join(directory, "HEAD")):
        raise ClivefsError(
            "this is neither empty nor a bare repository", place=directory, remedy="name a new directory"
        )


def _borrow(directory: str, alternates: tuple[str, ...]) -> None:
    path = os.path.join(directory, "objects", "info", "alternates")
    wanted = "".join(f"{each}\n" for each in alternates)
    with suppress(FileNotFoundError), open(path) as file:
        if file.read() == wanted:
            return
    if not wanted and not os.path.exists(path):
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".new", "w") as file:
        file.write(wanted)
    os.rename(path + ".new", path)


def _refs(git: GitCommand, directory: str) -> dict[str, bytes]:
    listing = git.run(
        ["for-each-ref", "--format=%(objectname) %(refname)", SESSION_REFS, LATEST], git_dir=directory
    ).decode()
    return {name: bytes.fromhex(oid) for oid, _, name in (line.partition(" ") for line in listing.splitlines())}


def _new_commits(
    heads: Iterable[bytes], there: set[bytes], source: JoinedObjects
) -> list[tuple[bytes, bytes, bytes | None]]:
    """(commit, its tree, the tree of the point before) of all points that are new, the oldest of each chain last."""
    found: list[tuple[bytes, bytes, bytes | None]] = []
    seen = set(there)
    for head in heads:
        oid: bytes | None = head
        commit = source.read_commit(head) if head not in seen else None
        while oid is not None and commit is not None and oid not in seen:
            seen.add(oid)
            parent = commit.parents[0] if commit.parents else None
            above = source.read_commit(parent) if parent is not None else None
            found.append((oid, commit.tree, above.tree if above is not None else None))
            oid, commit = parent, above
    return found


class _Chain(NamedTuple):
    """Points as commits whose parents are all there."""

    ids: dict[bytes, bytes]
    """Point -> commit, the oldest first."""
    new: list[tuple[bytes, bytes, bytes | None]]
    """As `_new_commits` has them: those that are not in the repository."""
    payloads: dict[bytes, bytes]
    """The content of those that are no points themselves."""


def _rewritten(points: Points, source: JoinedObjects, before: dict[bytes, bytes]) -> _Chain:
    """The points that are left, each with the one before as its parent. *before*: what was exported so far."""
    ids: dict[bytes, bytes] = {}
    new: list[tuple[bytes, bytes, bytes | None]] = []
    payloads: dict[bytes, bytes] = {}
    known = iter(before.items())
    same = True  # as it was exported so far
    last: bytes | None = None
    last_tree: bytes | None = None
    last_point: bytes | None = None
    for each in points.between(0, MS_MAX):
        same = same and next(known, None) == (each.oid, before.get(each.oid))
        if same:
            last, last_tree, last_point = before[each.oid], None, each.oid
            ids[each.oid] = last
            continue
        commit = source.read_commit(each.oid)
        parents = (last,) if last is not None else ()
        oid = each.oid
        if commit.parents != parents:
            message = commit.message + b"Clive-Point: %b\n" % each.oid.hex().encode()
            payload = encode_commit(commit._replace(parents=parents, message=message))
            oid = hash_object("commit", payload)
            payloads[oid] = payload
        if last_tree is None and last_point is not None:
            last_tree = source.read_commit(last_point).tree
        new.append((oid, commit.tree, last_tree))
        ids[each.oid] = last = oid
        last_tree, last_point = commit.tree, each.oid
    return _Chain(ids, new[::-1], payloads)


def _read_exported(directory: str) -> dict[bytes, bytes]:
    with suppress(FileNotFoundError), open(os.path.join(directory, _EXPORTED)) as file:
        pairs = (line.split() for line in file)
        return {bytes.fromhex(old): bytes.fromhex(new) for old, new in pairs}
    return {}


def _write_exported(directory: str, lines: list[str]) -> None:
    path = os.path.join(directory, _EXPORTED)
    if lines:
        with open(path + ".new", "w") as file:
            file.writelines(lines)
        os.rename(path + ".new", path)
    else:
        with suppress(FileNotFoundError):
            os.unlink(path)


class _Names:
    """Objects that need not be packed: those that are already, and those that an alternate has."""

    def __init__(self, elsewhere: Callable[[bytes], bool]) -> None:
        self._packed: set[bytes] = set()
        self._elsewhere = elsewhere

    def __contains__(self, oid: object) -> bool:
        return oid in self._packed or (isinstance(oid, bytes) and self._elsewhere(oid))

    def add(self, oid: bytes) -> None:
        self._packed.add(oid)


class _Chunked:
    """Joined objects, whose large blobs can be read piece by piece."""

    def __init__(self, source: JoinedObjects, payloads: Mapping[bytes, bytes]) -> None:
        """*payloads*: commits that it does not have."""
        self._source = source
        self._payloads = payloads

    def read(self, oid: bytes) -> tuple[str, bytes]:
        payload = self._payloads.get(oid)
        return ("commit", payload) if payload is not None else self._source.read(oid)

    def read_tree(self, oid: bytes) -> list[TreeEntry]:
        return self._source.read_tree(oid)

    def chunks(self, oid: bytes) -> Iterator[bytes]:
        with self._source.opened(oid) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk


def _add_pack(
    git: GitCommand,
    directory: str,
    source: _Chunked,
    commits: list[tuple[bytes, bytes, bytes | None]],
    elsewhere: Callable[[bytes], bool],
) -> None:
    known = _Names(elsewhere)
    oids: list[bytes] = []
    for oid, tree, before in reversed(commits):
        oids += new_trees(source, tree, before, known)
        oids.append(oid)
    packs = os.path.join(directory, "objects", "pack")
    temporary = os.path.join(packs, f"tmp_pack_{os.urandom(6).hex()}.pack")
    try:
        with open(temporary, "wb", opener=lambda path, flags: os.open(path, flags | os.O_EXCL, 0o400)) as file:
            write_pack(source, oids, file.write)
            file.flush()
            os.fsync(file.fileno())
        index = temporary.removesuffix(".pack") + ".idx"
        name = git.run(["index-pack", "-o", index, temporary], git_dir=directory).decode().split()[-1]
        os.rename(temporary, os.path.join(packs, f"pack-{name}.pack"))
        os.rename(index, os.path.join(packs, f"pack-{name}.idx"))
    finally:
        for left in (temporary, temporary.removesuffix(".pack") + ".idx", temporary.removesuffix(".pack") + ".rev"):
            with suppress(FileNotFoundError):
                os.unlink(left)
