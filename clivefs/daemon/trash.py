"""What is to be removed and nobody needs to wait for: directories of the store's `trash/`, removed in the background.

A directory comes here by one rename, so only from the store's own filesystem. Whoever has a larger one to remove keeps
neither a command nor the mount waiting for the disk. What a daemon leaves, the next one of the store removes.
"""

from __future__ import annotations

import logging
import os
import subprocess

import trio

log = logging.getLogger(__name__)

_NICE = 10
_NAMES_MAX = 1000
"""For one command line."""


class Trash:
    """The directory *path*, which must be for its owner alone."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._asked = trio.Event()
        self._asked.set()  # for what an earlier daemon has left

    def take(self, parent_fd: int, name: bytes) -> bool:
        """Take the directory *name* away from where it is, if that is possible. For threads; `wake` then."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.rename(name, os.urandom(8).hex().encode(), src_dir_fd=parent_fd, dst_dir_fd=fd)
        except OSError:  # another filesystem, most likely
            return False
        finally:
            os.close(fd)
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


def _politely() -> None:
    os.nice(_NICE)
