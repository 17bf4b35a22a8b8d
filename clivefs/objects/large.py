"""Blobs over 1 MiB: plain files `large/aa/<38 hex digits>`, raw content. Format 1 of the store, second part.

A file appears under its name whole and durable or not at all: it is written to `large/new-<random>`,
fsynced, renamed, its directory fsynced; only then does the transaction name it. A writer holds a flock on
its temporary file, so that whoever opens the store can tell what dead processes left, and removes it.
A file that no transaction came to name is an unreferenced object, as in any git store.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

from clivefs.base.ports import FAULTS
from clivefs.objects.encode import object_hasher
from clivefs.objects.errors import ContentChanged

CHUNK_BYTES = 1 << 20
_LOOK_BYTES = 64 * CHUNK_BYTES
"""How often a file that is stored is looked at, whether it is still the same."""
_ZEROS = bytes(CHUNK_BYTES)
_TEMPORARY = b"new-"


class LargeFiles:
    """The `large` directory of one store, reached by descriptor."""

    def __init__(self, store_fd: int) -> None:
        with suppress(FileExistsError):
            os.mkdir(b"large", 0o700, dir_fd=store_fd)
        self._fd = os.open(b"large", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=store_fd)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def sweep(self) -> int:
        """Remove temporary files of dead writers; how many."""
        removed = 0
        for name in os.listdir(self._fd):
            raw = os.fsencode(name)
            if not raw.startswith(_TEMPORARY):
                continue
            try:
                fd = os.open(raw, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(raw, dir_fd=self._fd)
                removed += 1
            except (BlockingIOError, FileNotFoundError):
                pass  # its writer lives, or has just finished
            finally:
                os.close(fd)
        return removed

    def open(self, oid: bytes) -> int | None:
        """A descriptor for reading, which the caller closes, or None."""
        folder, name = _place(oid)
        try:
            return os.open(folder + b"/" + name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except FileNotFoundError:
            return None

    def put(self, read: Callable[[int], bytes | memoryview], size: int) -> bytes:
        """Store *size* bytes, which *read(count)* hands out in pieces; the object's name, durable.

        OSError from *read* or the disk leaves nothing behind. ContentChanged when it is not *size* bytes.
        """
        temporary, fd = self._create()
        try:
            hasher = object_hasher("blob", size)
            left = size
            while left:
                piece = read(min(left, CHUNK_BYTES))
                if not piece or len(piece) > left:
                    raise ContentChanged(f"the file changed while it was stored: {left} bytes are missing")
                hasher.update(piece)
                if piece == _ZEROS[: len(piece)]:
                    os.lseek(fd, len(piece), os.SEEK_CUR)  # a hole stays a hole
                else:
                    _write_all(fd, piece)
                left -= len(piece)
            if read(1):
                raise ContentChanged("the file grew while it was stored")
            os.ftruncate(fd, size)
            os.fsync(fd)
            FAULTS.hit("objects.large.before-rename")
            oid = hasher.digest()
            self._publish(temporary, oid)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=self._fd)
            raise
        finally:
            os.close(fd)
        FAULTS.hit("objects.large.after-rename")
        return oid

    def put_file(self, fd: int, size: int, seen: Callable[[int], None] = lambda count: None) -> bytes:
        """Store the *size* bytes of the file *fd*; the object's name, durable. ContentChanged, soon, when the file is
        written to or removed meanwhile. *seen* is told now and then how many bytes of it have been read."""
        before = os.fstat(fd)
        offset = 0

        def read(count: int) -> bytes:
            nonlocal offset
            piece = os.pread(fd, count, offset)
            if not offset % _LOOK_BYTES or offset == size:  # before it is flushed, which may take long
                now = os.fstat(fd)
                same = now.st_size == before.st_size and now.st_mtime_ns == before.st_mtime_ns
                if not same or now.st_nlink < min(before.st_nlink, 1):
                    raise ContentChanged("the file changed while it was stored")
                seen(offset)
            offset += len(piece)
            return piece

        return self.put(read, size)

    def put_bytes(self, payload: bytes) -> bytes:
        """Store a payload that is in memory already; the object's name, durable."""
        view = memoryview(payload)
        offset = 0

        def read(count: int) -> memoryview:
            nonlocal offset
            piece = view[offset : offset + count]
            offset += len(piece)
            return piece

        return self.put(read, len(payload))

    def remove(self, oid: bytes) -> None:
        """Remove an object's file, if it is there. Who has it open keeps it."""
        folder, name = _place(oid)
        with suppress(FileNotFoundError):
            os.unlink(folder + b"/" + name, dir_fd=self._fd)

    def usage(self) -> tuple[int, int]:
        """(files, bytes)."""
        count = size = 0
        for oid in self.names():
            folder, name = _place(oid)
            with suppress(FileNotFoundError):
                size += os.stat(folder + b"/" + name, dir_fd=self._fd, follow_symlinks=False).st_size
                count += 1
        return count, size

    def sweep_orphans(self, is_named: Callable[[bytes], bool], age_s: float) -> int:
        """Remove files older than *age_s* that are not named; how many. A younger one may yet be."""
        removed = 0
        before = time.time() - age_s
        for oid in list(self.names()):
            if is_named(oid):
                continue
            folder, name = _place(oid)
            with suppress(FileNotFoundError):
                st = os.stat(folder + b"/" + name, dir_fd=self._fd, follow_symlinks=False)
                if st.st_mtime < before and not is_named(oid):
                    os.unlink(folder + b"/" + name, dir_fd=self._fd)
                    removed += 1
        return removed

    def names(self) -> Iterator[bytes]:
        """The names of all objects here, in order."""
        for folder in sorted(os.listdir(self._fd)):
            if len(folder) != 2:
                continue
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
            try:
                names = sorted(os.listdir(fd))
            finally:
                os.close(fd)
            for name in names:
                with suppress(ValueError):
                    yield bytes.fromhex(folder + name)

    def strangers(self) -> Iterator[str]:
        """Files that have no place here; temporary files of living writers are none."""
        self.sweep()
        for folder in sorted(os.listdir(self._fd)):
            if folder.startswith(_TEMPORARY.decode()):
                continue
            if not _is_hex(folder, 2):
                yield folder
                continue
            for name in sorted(os.listdir(f"/proc/self/fd/{self._fd}/{folder}")):
                if not _is_hex(name, 38):
                    yield f"{folder}/{name}"

    def _create(self) -> tuple[bytes, int]:
        while True:
            name = _TEMPORARY + os.urandom(10).hex().encode()
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            fd = os.open(name, flags, 0o400, dir_fd=self._fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a sweep took it for garbage in the moment before the lock
                os.close(fd)
                continue
            if os.fstat(fd).st_nlink:
                return name, fd
            os.close(fd)

    def _publish(self, temporary: bytes, oid: bytes) -> None:
        folder, name = _place(oid)
        with suppress(FileExistsError):
            os.mkdir(folder, 0o700, dir_fd=self._fd)
        os.fsync(self._fd)  # also when it existed: whoever made it may not have come to this line
        os.rename(temporary, folder + b"/" + name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def file_size(fd: int) -> int:
    """The size of the regular file *fd*. OSError(EINVAL) for anything else."""
    st = os.fstat(fd)
    if not stat.S_ISREG(st.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    return st.st_size


def read_exactly(fd: int, size: int) -> bytes:
    """The whole content of *fd*, which has *size* bytes. ContentChanged when it has not."""
    data = os.pread(fd, size + 1, 0)
    while 0 < len(data) < size:
        more = os.pread(fd, size + 1 - len(data), len(data))
        if not more:
            break
        data += more
    if len(data) != size:
        raise ContentChanged("the file changed while it was stored")
    return data


def _place(oid: bytes) -> tuple[bytes, bytes]:
    text = oid.hex().encode()
    return text[:2], text[2:]


def _is_hex(name: str, length: int) -> bool:
    return len(name) == length and all(char in "0123456789abcdef" for char in name)


def _write_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
