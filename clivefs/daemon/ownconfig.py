"""A mounted workspace's `Clive.toml` and `Clive.lock`, as its mount shows them: what is in force is what the user sees
there.

With `[workspace] write = "overlay"` that is the one among the edits, if there is one; the directory's own file then
says only that edits are kept apart, and what is mounted until they have been read. Commands that edit a file write
where any program in the mount would. For threads.
"""

from __future__ import annotations

import errno
import os
import stat

from clivefs.base.errors import ClivefsError
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.config import config, lockfile
from clivefs.mounts.config import file as config_file
from clivefs.mounts.config.config import Workspace
from clivefs.mounts.config.lockfile import Lock
from clivefs.mounts.ownfiles import TreeFiles

NAME = config.FILE_NAME.encode()


def read_text(live: LiveWorkspace) -> str:
    """The text of the file. ClivefsError where there is none, or it cannot be read."""
    file = live.settings.file
    files = live.assembly.files
    if not isinstance(files, TreeFiles):
        try:
            dir_fd = os.open(live.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise ClivefsError(f"{error.strerror}", place=live.root, remedy="bring the directory back") from None
        try:
            return config_file.decode(config_file.read_at(dir_fd, config.FILE_NAME, file=file), file=file)
        finally:
            os.close(dir_fd)
    try:
        kind = files.kind(NAME)
        if kind != stat.S_IFREG:
            what = "is a symbolic link" if kind == stat.S_IFLNK else "is not a regular file"
            raise ClivefsError(what, place=file, remedy="put the file itself here")
        data = files.read(NAME, config_file.FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        raise ClivefsError(
            "there is no such file in the mount", place=file, remedy="`clivefs overlay reset Clive.toml` brings it back"
        ) from None
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=file, remedy="make it a readable file") from None
    return config_file.decode(data, file=file)


def load(live: LiveWorkspace) -> Workspace:
    """What the file says now. ConfigError, ClivefsError."""
    text = read_text(live)
    if live.entries and not text:  # one that somebody is about to write
        raise ClivefsError(
            "the file is empty", place=live.settings.file, remedy="`clivefs detach` takes mount entries away"
        )
    return config.parse(text, file=live.settings.file, root=live.root)


def save(live: LiveWorkspace, old: str, new: str) -> None:
    """Put *new* in the place of *old*, whole or not at all. ClivefsError when the file is not *old* any more."""
    files = live.assembly.files
    if not isinstance(files, TreeFiles):
        config_file.save(live.settings.file, old, new)
        return
    try:
        files.replace(NAME, old.encode(), new.encode())
    except OSError as error:
        if error.errno != errno.ESTALE:
            raise
        raise ClivefsError(
            "the file was changed meanwhile; nothing was written",
            place=live.settings.file,
            remedy="look at what changed, then give the command again",
        ) from None


def read_lock(live: LiveWorkspace) -> Lock:
    """What Clive.lock says; an empty one if there is none. ClivefsError for what it cannot be."""
    files = live.assembly.files
    if not isinstance(files, TreeFiles):
        return lockfile.read(live.root)
    file = os.path.join(live.root, lockfile.FILE_NAME)
    raw = _lock_bytes(files, file)
    return Lock(file, {}) if raw is None else lockfile.parse(config_file.decode(raw, file=file), file=file)


def write_lock(live: LiveWorkspace, lock: Lock, *, before: Lock) -> bool:
    """Let *lock* be what Clive.lock says, whole or not at all; whether anything changed. ClivefsError where it is not
    *before* any more."""
    files = live.assembly.files
    if not isinstance(files, TreeFiles):
        return lockfile.write(live.root, lock, before=before)
    file = os.path.join(live.root, lockfile.FILE_NAME)
    old, new = _lock_bytes(files, file), lockfile.format_lock(lock).encode()
    if read_lock(live).entries != before.entries:
        raise lockfile.changed_meanwhile(file)
    if old == new:
        return False
    try:
        files.replace(lockfile.FILE_NAME.encode(), old, new)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.EEXIST):
            raise ClivefsError(f"{error.strerror}", place=file) from error
        raise lockfile.changed_meanwhile(file) from None
    return True


def _lock_bytes(files: TreeFiles, file: str) -> bytes | None:
    name = lockfile.FILE_NAME.encode()
    try:
        if files.kind(name) != stat.S_IFREG:
            raise ClivefsError("is not a regular file", place=file, remedy="put the file itself here")
        return files.read(name, config_file.FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=file, remedy="make it a readable file") from None
