"""What is to be removed and nobody needs to wait for: directories of the store's `trash/`, removed in the background.

A directory comes here by one rename, so only from the store's own filesystem. Whoever has a larger one to remove keeps
neither a command nor the mount waiting for the disk. What a daemon leaves, the next one of the store removes.

New directories for many files are made here too. ext4 looks for the inode of a new file where its directory's is, and
passes over those freed in the last minutes one by one: 0.3 ms a file where thousands were removed lately. Below a
directory that is marked as a "top directory" each new one is put somewhere else on the disk.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import trio

log = logging.getLogger(__name__)

_GET_FLAGS = 0x80086601
_SET_FLAGS = 0x40086602
_TOP_DIRECTORY = 0x20000
"""See ioctl_iflags(2), FS_TOPDIR_FL."""
_NICE = 10
_NAMES_MAX = 1000
"""For one command line."""


class Trash:
    """The directory *path*, which must be for its owner alone."""

    def __init__(self, path: str) -> None:
        self._path = path
        _mark_as_top(path)
        self._asked = trio.Event()
        self._asked.set()  # for what an earlier daemon has left

    def take(self, parent_fd: int, name: bytes) -> bool:
        """Take the directory *name* away from where it is, if that is possible. For threads; `wake` then."""
        try:
            with _opened(self._path) as fd:
                os.rename(name, _new_name(), src_dir_fd=parent_fd, dst_dir_fd=fd)
        except OSError:  # another filesystem, most likely
            return False
        return True

    def make(self, parent_fd: int, name: bytes) -> bool:
        """Make a directory for its owner alone, called *name* in *parent_fd*; whether that was possible."""
        made = _new_name()
        try:
            with _opened(self._path) as fd:
                os.mkdir(made, 0o700, dir_fd=fd)
                os.rename(made, name, src_dir_fd=fd, dst_dir_fd=parent_fd)
        except OSError:  # what was made goes with the rest
            return False
        return True

    def wake(self) -> None:
        """Something was taken. For the loop's thread."""
        self._asked.set()

    async def run(self) -> None:
        """Until cancelled: remove what is here."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            try:
                while names := await trio.to_thread.run_sync(os.listdir, self._path):
                    await trio.run_process(
                        ["rm", "-rf", "--", *names[:_NAMES_MAX]],
                        cwd=self._path,
                        capture_stderr=True,
                        preexec_fn=_politely,
                    )
            except (OSError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", b"").decode(errors="replace").strip() or str(error)
                log.warning("what was replaced is still in %s: %s", self._path, why)


def _mark_as_top(path: str) -> None:
    """As far as the filesystem knows such a thing."""
    try:
        with _opened(path) as fd:
            flags = struct.unpack("i", fcntl.ioctl(fd, _GET_FLAGS, struct.pack("i", 0)))[0]
            if not flags & _TOP_DIRECTORY:
                fcntl.ioctl(fd, _SET_FLAGS, struct.pack("i", flags | _TOP_DIRECTORY))
    except OSError as error:
        log.debug("%s is no top directory: %s", path, error)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _new_name() -> bytes:
    return os.urandom(8).hex().encode()


def _politely() -> None:
    os.nice(_NICE)
