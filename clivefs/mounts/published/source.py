"""Published modules as sources: releases of PyPI and npm, and archives at a path or a URL.

A release is fetched once, unpacked into the store, and from then on opened from there: no client is started, no
network asked. Three kinds of records (namespace `published`, msgpack of `_Record`) say what is known:

    location NUL form NUL strip NUL location                what was fetched from there last
    release NUL form NUL strip NUL location NUL sha256      what was ever fetched as that release (pypi, npm)
    digest NUL strip NUL sha256                             what the archive with this digest unpacks to

`form` is the kind, or `pypi-sdist`; `strip` a number or `auto`.

A pinned digest (`sha256` in Clive.toml, or Clive.lock) decides which of them counts, so that a pinned entry opens
from a warm store whatever its location gives by now. The ref `refs/clive/published/SHA256-STRIP` keeps each tree.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import msgspec

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.config.lockfile import Locked
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.published.archive import ArchiveLimits, open_archive, unpack
from clivefs.mounts.published.clients import DigestDiffers, PackageClients
from clivefs.mounts.published.fetch import download, without_credentials
from clivefs.objects.encode import MODE_TREE
from clivefs.objects.store import Store

PublishedKind = Literal["pypi", "npm", "archive"]
Progress = Callable[[str], None]
REF_PREFIX = "refs/clive/published/"
_NAMESPACE = "published"
_DOWNLOADS = "downloads"
_TEMPORARY = "new-"
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Published:
    """A release that is in the store: what a layer and a lock entry start from."""

    tree: bytes
    """The tree shown: the archive's, or that of `subdir` in it."""
    archive_tree: bytes
    """The archive's whole tree, after `strip`."""
    time_ns: int
    """The latest time of a file in it, by which all are shown."""
    version: str | None
    """As the ecosystem writes it; None for an archive."""
    sha256: str
    """Of the archive file, hexadecimal."""
    integrity: str | None
    """npm's own digest."""
    layer: bytes
    """`pypi:NAME==V`, `npm:NAME@V`, `archive:URL-or-path`, as `user.clive.layer` shows it."""
    files: int
    size: int
    """Bytes, unpacked."""

    def locked(self, source: str) -> Locked:
        """What Clive.lock is to say of an entry with the one-line *source*."""
        return Locked(source, self.archive_tree.hex(), self.version, self.sha256, self.integrity)


class _Record(msgspec.Struct, array_like=True):
    """`format` 1."""

    format: int
    sha256: str
    tree: bytes
    time_ns: int
    files: int
    size: int
    integrity: str | None
    fetched_ns: int
    stamp: tuple[int, int, int, int, int] | None = None
    """Of an archive of this machine: device, inode, size, modification and change time in ns when it was read."""


class PublishedSource:
    """One release. `open` blocks, for a moment when the store has it; any thread."""

    def __init__(
        self,
        kind: PublishedKind,
        location: str,
        subdir: str = "",
        *,
        store: Store,
        host_path: str | None = None,
        strip: int | None = None,
        sdist: bool = False,
        sha256: str | None = None,
        locked: str | None = None,
        limits: ArchiveLimits | None = None,
        clients: PackageClients | None = None,
        answer_timeout_s: float = 30.0,
        progress: Progress | None = None,
        clock: Clock | None = None,
    ) -> None:
        """*location*: as `MountEntry` has it, checked; *host_path*: of an archive on this machine. *sdist*: of
        pypi, never a wheel. *sha256*, *locked*: what Clive.toml and Clive.lock pin the archive to (hexadecimal)."""
        self.kind = kind
        self.location = location
        self.subdir = subdir.strip("/")
        self.place = f"{kind}:{without_credentials(location) if kind == 'archive' else location}"
        self._store = store
        self._host_path = host_path
        # npm leaves the first component out whatever it is called; wheels and sdists are told apart by their content.
        self._strip = 1 if kind == "npm" else strip
        self._sdist = sdist
        self._sha256 = sha256
        self._locked = locked
        self._limits = limits or ArchiveLimits()
        self._clients = clients or PackageClients(answer_timeout_s=answer_timeout_s)
        self._answer_timeout_s = answer_timeout_s
        self._progress = progress or _silent
        self._clock = clock or SystemClock()

    # Opening

    def open(self) -> Published:
        """The release, fetched if the store does not have it. ClivefsError that says why it cannot be had."""
        if self._sha256 is not None and self._locked is not None and self._sha256 != self._locked:
            raise self._differs(self._locked, self._sha256, "what Clive.toml asks for", locked=True)
        record = self._known() or self._fetch()
        self._check(record.sha256)
        version = None
        if self.kind != "archive":
            version = self.location.rpartition("==" if self.kind == "pypi" else "@")[2]
        return Published(
            tree=self._subtree(record.tree),
            archive_tree=record.tree,
            time_ns=record.time_ns,
            version=version,
            sha256=record.sha256,
            integrity=record.integrity,
            layer=os.fsencode(self.place),
            files=record.files,
            size=record.size,
        )

    def is_known(self) -> bool:
        """Whether `open` will need no network and no client."""
        return self._known() is not None

    def space(self, published: Published) -> TreeSpace:
        """What a `GitLower` of *published* reads from."""
        return TreeSpace(self._store, published.layer, published.time_ns)

    @property
    def _pin(self) -> str | None:
        return self._sha256 or self._locked

    def _check(self, sha256: str) -> None:
        if self._pin is not None and sha256 != self._pin:
            raise self._differs(self._pin, sha256, "what was fetched", locked=self._sha256 is None)

    def _differs(self, expected: str, found: str, what: str, *, locked: bool) -> ClivefsError:
        if locked:
            message = f"{what} has the SHA-256 {found}, and Clive.lock says {expected}"
            remedy = "Find out why it changed; if it is meant to, `clivefs lock` takes the new one."
        else:
            message = f"{what} has the SHA-256 {found}, and Clive.toml says {expected}"
            remedy = "Find out why it changed; if it is meant to, write the new `sha256`."
        return ClivefsError(message, place=self.place, remedy=remedy)

    # What the store knows

    def _known(self) -> _Record | None:
        """The record that counts, if all of its tree is here."""
        at = self._read(self._location_key())
        if self._host_path is not None:
            stamp = _stamp_of(self._host_path)
            if stamp is not None:  # the file itself decides
                return at if at is not None and at.stamp == stamp else None
        if self._pin is None:
            # A path whose file has gone is an error, unless a digest says that its content is still what is meant.
            return at if self._host_path is None else None
        return self._read(self._digest_key(self._pin) if self.kind == "archive" else self._release_key(self._pin))

    def _read(self, key: bytes) -> _Record | None:
        raw = self._store.meta_get(_NAMESPACE, key)
        if raw is None:
            return None
        try:
            record = msgspec.msgpack.decode(raw, type=_Record)
        except msgspec.DecodeError:
            return None  # of a newer clivefs, or damaged: it is fetched again
        # The ref holds the whole tree against gc, so its root speaks for all of it.
        return record if record.format == 1 and self._store.has(record.tree) else None

    def _form(self) -> str:
        return f"{self.kind}-sdist" if self._sdist else self.kind

    def _label(self) -> str:
        return "auto" if self._strip is None else str(self._strip)

    def _location_key(self) -> bytes:
        location = self._host_path or self.location
        return b"location\0" + f"{self._form()}\0{self._label()}\0".encode() + os.fsencode(location)

    def _release_key(self, sha256: str) -> bytes:
        return f"release\0{self._form()}\0{self._label()}\0{self.location}\0{sha256}".encode()

    def _digest_key(self, sha256: str) -> bytes:
        return f"digest\0{self._label()}\0{sha256}".encode()

    # Fetching

    def _fetch(self) -> _Record:
        if self._host_path is not None:
            with open_archive(self._host_path, self.place) as file:
                return self._take(file, None)
        self._progress(f"{self.place}: fetching")
        with self._directory() as directory:
            if self.kind == "archive":
                with tempfile.TemporaryFile(dir=directory) as file:
                    download(
                        self.location,
                        file,
                        bytes_max=self._limits.size,
                        timeout_s=self._answer_timeout_s,
                        progress=self._progress,
                        clock=self._clock,
                    )
                    file.flush()
                    return self._take(file, None)
            if self.kind == "npm":
                fetched = self._clients.fetch_npm(self.location, directory, progress=self._progress)
            else:
                try:
                    fetched = self._clients.fetch_pypi(
                        self.location,
                        directory,
                        sha256=self._pin,
                        sdist=self._sdist,
                        bytes_max=self._limits.size,
                        progress=self._progress,
                    )
                except DigestDiffers as error:
                    self._check(str(error))
                    raise
            with open_archive(fetched.path, self.place) as file:
                return self._take(file, fetched.integrity)

    def _take(self, file: BinaryIO, integrity: str | None) -> _Record:
        """Unpack what was fetched, if it is what is pinned, and record it."""
        before = os.fstat(file.fileno())
        sha256 = _digest(file)
        self._check(sha256)
        self._progress(f"{self.place}: unpacking")
        known = self._read(self._digest_key(sha256))
        if known is None:
            spool_dir = self._store.directory(_DOWNLOADS)
            unpacked = unpack(
                self._store, file, strip=self._strip, limits=self._limits, place=self.place, spool_dir=spool_dir
            )
            now_ns = self._clock.now_ns()
            latest_ns = unpacked.latest_ns if 0 < unpacked.latest_ns <= now_ns else now_ns
            known = _Record(1, sha256, unpacked.tree, latest_ns, unpacked.files, unpacked.size, integrity, now_ns)
        stamp = None
        if self._host_path is not None:
            stamp = _stamp(before)
            if _stamp(os.fstat(file.fileno())) != stamp:
                raise ClivefsError("it was written to while it was read", place=self.place, remedy="Try again.")
        at = msgspec.structs.replace(known, stamp=stamp, integrity=integrity or known.integrity)
        with self._store.batch() as batch:
            batch.set_ref(f"{REF_PREFIX}{sha256}-{self._label()}", known.tree)
            batch.meta_put(_NAMESPACE, self._digest_key(sha256), msgspec.msgpack.encode(known))
            if self.kind != "archive":
                batch.meta_put(_NAMESPACE, self._release_key(sha256), msgspec.msgpack.encode(at))
            batch.meta_put(_NAMESPACE, self._location_key(), msgspec.msgpack.encode(at))
        return at

    @contextlib.contextmanager
    def _directory(self) -> Iterator[str]:
        """A new directory of the store for a client to write to, gone afterwards."""
        downloads = self._store.directory(_DOWNLOADS)
        above = os.open(downloads, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(above, fcntl.LOCK_EX)  # nobody sweeps what has no lock of its own yet
            _sweep(downloads)
            path = tempfile.mkdtemp(prefix=_TEMPORARY, dir=downloads)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(above)
        try:
            yield path
        finally:
            os.close(fd)
            shutil.rmtree(path, ignore_errors=True)

    # The directory shown

    def _subtree(self, tree: bytes) -> bytes:
        walked = ""
        for name in self.subdir.split("/") if self.subdir else ():
            entries = {os.fsdecode(entry.name): entry for entry in self._store.read_tree(tree)}
            walked = f"{walked}/{name}" if walked else name
            entry = entries.get(name)
            if entry is None:
                near = difflib.get_close_matches(name, list(entries), 3)
                raise ClivefsError(
                    f"there is no directory {walked!r} in it",
                    place=self.place,
                    remedy=f"Did you mean {' or '.join(near)}?" if near else "Check `subdir`.",
                )
            if entry.mode != MODE_TREE:
                raise ClivefsError(
                    f"{walked!r} is not a directory", place=self.place, remedy="`subdir` must name a directory."
                )
            tree = entry.oid
        return tree


def _digest(file: BinaryIO) -> str:
    hasher = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(_CHUNK_BYTES):
        hasher.update(chunk)
    return hasher.hexdigest()


def _silent(_: str) -> None:
    return None


def _stamp(st: os.stat_result) -> tuple[int, int, int, int, int]:
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


def _stamp_of(path: str) -> tuple[int, int, int, int, int] | None:
    try:
        return _stamp(os.stat(path))
    except OSError:
        return None


def _sweep(downloads: str) -> None:
    """Remove what killed processes left: a living one holds a lock on its directory."""
    for name in os.listdir(downloads):
        if not name.startswith(_TEMPORARY):
            continue
        path = os.path.join(downloads, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(path, ignore_errors=True)
        finally:
            os.close(fd)
