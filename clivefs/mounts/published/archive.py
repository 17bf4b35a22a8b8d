"""Unpacking an archive file into a git tree of the store, never onto disk.

Formats: tar, plain or with gz, bz2, xz or zstd (so sdists and npm's .tgz), zip (so wheels); told by their content, not
by their name. An archive is taken whole or not at all: nothing refers to what was stored of one that is refused.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.published.held import HeldObjects
from clivefs.mounts.published.member import ArchiveError, ArchiveLimits, Member, Meter
from clivefs.mounts.published.tar import MAGIC_BYTES, tar_compression, tar_members
from clivefs.mounts.published.tree import ArchiveTree
from clivefs.mounts.published.zip import is_zip, zip_members
from clivefs.objects.interface import ObjectStore

__all__ = ["ArchiveError", "ArchiveLimits", "Unpacked", "open_archive", "unpack"]


class Unpacked(NamedTuple):
    """What an archive became."""

    tree: bytes
    files: int
    """Members, and the directories that they imply."""
    size: int
    """Bytes of the files."""
    latest_ns: int
    """The latest modification time of a file; 0 if none says."""


def unpack(
    store: ObjectStore,
    source: str | os.PathLike[str] | BinaryIO,
    *,
    strip: int | None = None,
    limits: ArchiveLimits | None = None,
    place: str | None = None,
    spool_dir: str | None = None,
) -> Unpacked:
    """Unpack *source* (a path, or a seekable binary file) into *store*. Blocks: for threads.

    *strip*: how many leading directories to leave out; None for one if there is a single one (never of a wheel).
    *place*: what messages call the archive. *spool_dir*: where the nameless temporary files go that hold the
    content of a large archive until the end. ArchiveError for what is not unpacked; OSError of the disk, be it of the
    archive or the store.
    """
    if isinstance(source, (str, os.PathLike)):
        path = os.fspath(source)
        with open_archive(path, place or path) as file:
            return unpack(store, file, strip=strip, limits=limits, place=place or path, spool_dir=spool_dir)
    name = place or str(getattr(source, "name", "archive"))
    packed_bytes = source.seek(0, os.SEEK_END)
    source.seek(0)
    meter = Meter(limits or ArchiveLimits(), packed_bytes, name)
    with HeldObjects(store, spool_dir) as held:
        tree = ArchiveTree(held, meter, strip=strip, place=name)
        for member in _members(source, meter, name):
            tree.add(member)
        root = tree.finish()
        FAULTS.hit("published.archive.accepted")
        with store.batch() as batch:
            held.release(batch)
    return Unpacked(root, meter.files, meter.bytes, tree.latest_ns)


def open_archive(path: str, place: str) -> BinaryIO:
    """The regular file *path*, open for reading. ClivefsError if there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ClivefsError(
            f"the archive cannot be opened: {error.strerror}", place=place, remedy="Check the path."
        ) from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ClivefsError(
            "it is no regular file", place=place, remedy="Name an archive, or use `local` for a directory."
        )
    return open(fd, "rb")


def _members(file: BinaryIO, meter: Meter, place: str) -> Iterator[Member]:
    start = file.read(MAGIC_BYTES)
    file.seek(0)
    if is_zip(start):
        return zip_members(file, meter, place)
    compression = tar_compression(start)
    if compression is None:
        raise ArchiveError(
            "it is neither a tar archive (plain, gz, bz2, xz, zstd) nor a zip archive",
            place=place,
            remedy="Look at what the file is: `file` tells.",
        )
    return tar_members(file, compression, meter, place)
