"""Foreign repositories, read in place: their objects through libgit2, their refs through stock git.

The only file that uses pygit2 (`textmerge` calls the library beneath it). Why it does what it does:

- Only the object database is opened, not the repository: no configuration is read (libgit2 refuses
  extensions that it does not know), no ownership is checked, nothing can be fetched. Alternates work.
- libgit2 holds the GIL, and a handle must not be shared while another thread uses it: one handle a thread.
- Blobs over 1 MiB never pass through it (a 64 MB blob would stop every thread for seconds): `materialize`
  has stock git write them to a file.
- Packs come and go. A missing object makes libgit2 look at the pack directory again by itself; packs that
  vanished are left behind by a new handle (`refresh`, and one retry after any other failure).
- Objects may be in several places (`also`): what is not in the one is looked for in the next.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import pygit2

from clivefs.objects.encode import (
    OID_BYTES,
    Commit,
    TreeEntry,
    decode_commit,
    decode_tag,
    decode_tree,
    object_hasher,
)
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge, RepositoryError, UnknownRef
from clivefs.objects.gitdirs import find_gitdir, git, reason
from clivefs.objects.large import CHUNK_BYTES, file_size
from clivefs.objects.values import LARGE_BYTES, OBJECT_BYTES_MAX

T = TypeVar("T")

_KINDS = {1: "commit", 2: "tree", 3: "blob", 4: "tag"}
_CACHE_BYTES = 32 << 20
_PEELS_MAX = 20
_NEAR_NAMES_MAX = 20_000
# What git could take for an option, or an argument cannot hold.
_NO_REVISION = re.compile(r"-|.*[\0\n]|\Z", re.DOTALL)
# A name and what follows it in a revision: `main~3`, `v1^{commit}`, `main@{yesterday}`.
_STEPS = re.compile(r"([^~^:@]+)([~^@].*)", re.DOTALL)

pygit2.settings.cache_max_size(_CACHE_BYTES)


class Repository:
    """One foreign repository, bare or not. Methods may be called from any thread."""

    def __init__(self, path: str | os.PathLike[str], *, also: Sequence[str] = (), holds: object = None) -> None:
        """Open the repository at *path* (see `gitdirs.find_gitdir`). *also*: further objects directories, for what it
        does not have itself; one that is missing has nothing, as has the repository itself if it goes later. *holds*:
        what is to live as long as this does. RepositoryError."""
        self.path = os.fspath(path)
        self.also = tuple(also)
        self.holds = holds
        self.gitdir, self.commondir = find_gitdir(self.path)
        self.objects = os.path.join(self.commondir, "objects")
        self.is_partial = False
        """A partial clone: what is missing can be fetched by whoever manages it."""
        self._check_config()
        self._local = threading.local()
        self._generation = 0
        self._was_there = False
        self._odb()
        self._was_there = True

    # Objects

    def header(self, oid: bytes) -> tuple[str, int]:
        """(kind, size in bytes) without reading the content. ObjectMissing, CorruptObject."""
        kind, size = self._ask(oid, lambda odb, name: odb.read_header(name))
        return _KINDS[int(kind)], size

    def read(self, oid: bytes) -> tuple[str, bytes]:
        """(kind, payload). ObjectMissing, CorruptObject; ObjectTooLarge for blobs over 1 MiB."""
        kind, size = self.header(oid)
        if size > (LARGE_BYTES if kind == "blob" else OBJECT_BYTES_MAX):
            raise ObjectTooLarge(oid, size, self.path)
        return self.read_whole(oid)

    def read_whole(self, oid: bytes) -> tuple[str, bytes]:
        """As `read`, however large it is: for what we have packed ourselves. ObjectMissing, CorruptObject."""
        found, payload = self._ask(oid, lambda odb, name: odb.read(name))
        return _KINDS[int(found)], payload

    def has(self, oid: bytes) -> bool:
        return self._odb().exists(pygit2.Oid(raw=oid))

    def read_tree(self, oid: bytes) -> list[TreeEntry]:
        """The entries of a tree, unchecked (`encode.check_tree_entry`). ObjectMissing, CorruptObject."""
        return decode_tree(self._expect("tree", oid))

    def read_commit(self, oid: bytes) -> Commit:
        """ObjectMissing, CorruptObject."""
        return decode_commit(self._expect("commit", oid))

    def materialize(self, oid: bytes, directory: str) -> str:
        """The path of a file in *directory*, named by the blob's id, with its content; made if need be.

        Safe from any number of threads and processes. ObjectMissing; CorruptObject; OSError(ENOSPC).
        """
        kind, size = self.header(oid)
        if kind != "blob":
            raise CorruptObject(f"it is a {kind}, not a blob", oid=oid, place=self.path)
        name = oid.hex()
        path = os.path.join(directory, name)
        with suppress(FileNotFoundError):
            if os.stat(path, follow_symlinks=False).st_size == size:
                return path
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        temporary = f"new-{name}-{os.urandom(6).hex()}"
        try:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400, dir_fd=folder)
            try:
                self._write_blob(oid, size, fd)
            finally:
                os.close(fd)
            os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=folder)
            raise
        finally:
            os.close(folder)
        return path

    def refresh(self) -> None:
        """Look at the packs anew: after a fetch, a repack or a gc."""
        self._generation += 1

    def promised(self) -> frozenset[bytes]:
        """The objects that are not here, of all that refs lead to: in a partial clone, what its remote
        holds. Walks all history, without network."""
        if not self.is_partial:
            return frozenset()
        result = git(self.gitdir, "rev-list", "--objects", "--all", "--missing=print", "--quiet")
        if result.returncode:
            raise RepositoryError(f"git cannot walk it: {reason(result)}", place=self.path)
        lines = result.stdout.split()
        return frozenset(bytes.fromhex(line[1:].decode()) for line in lines if line.startswith(b"?"))

    # Refs

    def refs(self) -> dict[str, bytes]:
        """All refs by full name; symbolic ones by what they lead to, annotated tags unpeeled."""
        result = git(self.gitdir, "for-each-ref", "--format=%(objectname) %(refname)")
        if result.returncode:
            raise RepositoryError(f"git cannot list its refs: {reason(result)}", place=self.path)
        found = {}
        for line in result.stdout.splitlines():
            oid, _, name = line.partition(b" ")
            found[name.decode("utf-8", "surrogateescape")] = bytes.fromhex(oid.decode())
        return found

    def head_branch(self) -> str | None:
        """The full name of the branch that HEAD is on, None when it is detached."""
        result = git(self.gitdir, "symbolic-ref", "--quiet", "HEAD")
        return result.stdout.rstrip(b"\n").decode("utf-8", "surrogateescape") if result.returncode == 0 else None

    def resolve(self, ref: str) -> bytes:
        """The commit that a branch, tag, remote branch, full ref, (abbreviated) commit id or any other revision of
        gitrevisions(7) names, by git's own order of preference; a name that only one remote has is that branch.
        UnknownRef."""
        if _NO_REVISION.match(ref):
            raise UnknownRef(ref, self.path, [], f"{ref!r} cannot be a branch, a tag or a commit")
        oid = self._rev_parse(ref)
        if oid is None:
            oid = self._from_remote(ref)
        for _ in range(_PEELS_MAX):
            kind, payload = self.read(oid)
            if kind == "commit":
                return oid
            if kind != "tag":
                raise UnknownRef(ref, self.path, [], f"{ref!r} is a {kind}, not a commit")
            oid, _ = decode_tag(payload)
        raise UnknownRef(ref, self.path, [], f"{ref!r} is a tag of a tag of a tag ... without end")

    def _from_remote(self, ref: str) -> bytes:
        steps = _STEPS.fullmatch(ref)
        if steps is None:
            return self._only_remote(ref)
        start = self._rev_parse(steps[1]) or self._only_remote(steps[1])
        oid = self._rev_parse(start.hex() + steps[2])
        if oid is None:
            why = f"there is no {ref!r}: {steps[1]!r} is there, and {steps[2]!r} leads nowhere from it"
            raise UnknownRef(ref, self.path, [], why)
        return oid

    def _rev_parse(self, ref: str) -> bytes | None:
        result = git(self.gitdir, "rev-parse", "--verify", "--quiet", ref)
        text = result.stdout.strip().decode()
        if result.returncode == 0 and len(text) == 2 * OID_BYTES:
            oid = bytes.fromhex(text)
            # git takes forty digits for an id whether or not there is such an object.
            return oid if text != ref.lower() or self.has(oid) else None
        return None

    def _only_remote(self, ref: str) -> bytes:
        refs = self.refs()
        if not refs:
            raise UnknownRef(ref, self.path, [], f"there is no {ref!r}: the repository has no commits yet")
        on_remotes = {name: oid for name, oid in refs.items() if re.fullmatch(r"refs/remotes/[^/]+/", name[: -len(ref)])
                      and name.endswith(ref)}  # fmt: skip
        if len(set(on_remotes.values())) == 1:
            return next(iter(on_remotes.values()))
        if on_remotes:
            near = sorted(_short(name) for name in on_remotes)
            raise UnknownRef(ref, self.path, near, f"{ref!r} is on several remotes, and not the same")
        names = [_short(name) for name in refs][:_NEAR_NAMES_MAX]
        why = None
        if re.fullmatch(r"[0-9a-fA-F]{4,40}", ref):
            why = f"there is no commit {ref}, or several ids begin so"
        raise UnknownRef(ref, self.path, difflib.get_close_matches(ref, names, 3, 0.5), why)

    # Inside

    def _check_config(self) -> None:
        path = os.path.join(self.commondir, "config")
        if not os.path.exists(path):
            return
        try:
            entries = [(entry.name.lower(), (entry.value or "").lower()) for entry in pygit2.Config(path)]
        except (pygit2.GitError, UnicodeDecodeError) as error:
            raise RepositoryError(f"its configuration cannot be read ({error})", place=path) from error
        for name, value in entries:
            if name == "extensions.objectformat" and value != "sha1":
                raise RepositoryError(
                    f"its objects are named by {value}, and clivefs reads SHA-1 repositories only", place=self.path
                )
            if name == "extensions.partialclone" or (name.startswith("remote.") and name.endswith(".promisor")):
                self.is_partial = True

    def _odb(self) -> pygit2.Odb:
        mine: tuple[int, pygit2.Odb] | None = getattr(self._local, "odb", None)
        if mine is not None and mine[0] == self._generation:
            return mine[1]
        generation = self._generation
        try:
            is_gone = self._was_there and not os.path.isdir(self.objects)
            odb = pygit2.Odb() if is_gone else pygit2.Odb(self.objects)
            for each in self.also:
                odb.add_disk_alternate(each)
        except pygit2.GitError as error:
            raise RepositoryError(f"its objects cannot be read ({error})", place=self.path) from error
        self._local.odb = (generation, odb)
        return odb

    def _ask(self, oid: bytes, question: Callable[[pygit2.Odb, pygit2.Oid], T]) -> T:
        name = pygit2.Oid(raw=oid)
        try:
            return question(self._odb(), name)
        except KeyError:
            raise ObjectMissing(oid, self.path) from None
        except pygit2.GitError:
            self.refresh()
        try:
            return question(self._odb(), name)
        except KeyError:
            raise ObjectMissing(oid, self.path) from None
        except pygit2.GitError as error:
            raise CorruptObject(str(error), oid=oid, place=self.path) from error

    def _expect(self, kind: str, oid: bytes) -> bytes:
        found, payload = self.read(oid)
        if found != kind:
            raise CorruptObject(f"it is a {found}, not a {kind}", oid=oid, place=self.path)
        return payload

    def _write_blob(self, oid: bytes, size: int, fd: int) -> None:
        """Write the blob to the empty file *fd* and make sure that it is the right one."""
        result = git(self.gitdir, "cat-file", "blob", oid.hex(), stdout=fd, also=self.also)
        if result.returncode:
            if _is_full(fd):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)
            if not self.has(oid):
                raise ObjectMissing(oid, self.path)
            raise CorruptObject(f"git cannot read it: {reason(result)}", oid=oid, place=self.path)
        hasher = object_hasher("blob", size)
        offset = 0
        while piece := os.pread(fd, CHUNK_BYTES, offset):
            hasher.update(piece)
            offset += len(piece)
        if file_size(fd) != size or hasher.digest() != oid:
            raise CorruptObject("its content has another name", oid=oid, place=self.path)


def _is_full(fd: int) -> bool:
    """Whether the disk of the file *fd* takes no more; git says that it could not write, and not why."""
    try:
        return os.pwrite(fd, bytes(CHUNK_BYTES), file_size(fd)) < CHUNK_BYTES
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)


def _short(name: str) -> str:
    for prefix in ("refs/heads/", "refs/tags/", "refs/remotes/"):
        if name.startswith(prefix):
            return name[len(prefix) :]
    return name
