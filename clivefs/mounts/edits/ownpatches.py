"""Files of a workspace's own that a rebase rewrites: patches and Clive.toml. Whole or not at all, and never outside.

They are what the mount shows: the workspace's directory (`HostOwn`), or the edits over it where these are kept apart
(`TreeOwn`). A patch may be reached by symlinks that stay in the workspace; what they lead to is what is written.
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from contextlib import suppress

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.config import file as config_file
from clivefs.mounts.host.calls import DIRECTORY_FLAGS
from clivefs.mounts.ownfiles import OwnFiles, TreeFiles
from clivefs.mounts.resolve import resolve_links
from clivefs.mounts.wholefile import temporary_beside

_KEPT_MAX = 1000
_LINKS_MAX = 40
_PATCH_BYTES_MAX = 64 << 20
_MODE_NEW = 0o644


class Own(ABC):
    """The files of one workspace. Paths are relative to it. For threads."""

    @abstractmethod
    def read(self, path: str) -> bytes | None:
        """The content of a file; None where there is none."""

    @abstractmethod
    def write(self, path: str, content: bytes | None) -> None:
        """Let *content* be in a file, durable; None: let there be no such file."""

    @abstractmethod
    def sweep(self, path: str) -> None:
        """Remove what a crash in the middle of `write` has left beside the file."""

    @abstractmethod
    def keep_copy(self, path: str) -> str:
        """Give a file another name beside it, which nothing has; that name."""

    @abstractmethod
    def config(self) -> str:
        """The text of Clive.toml. ClivefsError."""

    @abstractmethod
    def save_config(self, old: str, new: str) -> None:
        """Put *new* in the place of *old*. ClivefsError when Clive.toml is not *old* any more."""


def own_files(files: OwnFiles, root: str) -> Own:
    """Those of the workspace in the directory *root*, as *files* shows them."""
    return TreeOwn(files, root) if isinstance(files, TreeFiles) else HostOwn(root)


class HostOwn(Own):
    """Those in the directory *root*."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._config = os.path.join(root, config_file.FILE_NAME)

    def read(self, path: str) -> bytes | None:
        head, name = self._place(path)
        try:
            with open(os.open(os.path.join(head, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, content: bytes | None) -> None:
        head, name = self._place(path)
        if content is None:
            try:
                os.unlink(os.path.join(head, name))
            except FileNotFoundError:
                return
            _sync(head)
            return
        _make_directories(head)
        self.sweep(path)
        temporary = temporary_beside(os.fsencode(os.path.join(head, name)))
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(fd, _mode_of(os.path.join(head, name)))
                os.fsync(fd)
            FAULTS.hit("patch.rename")
            os.rename(temporary, os.path.join(head, name))
        except BaseException:
            os.unlink(temporary)
            raise
        _sync(head)

    def sweep(self, path: str) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(temporary_beside(os.fsencode(os.path.join(*self._place(path)))))

    def keep_copy(self, path: str) -> str:
        head, name = self._place(path)
        for number in range(1, _KEPT_MAX):
            kept = f"{name}.kept-{number}"
            try:
                os.link(os.path.join(head, name), os.path.join(head, kept), follow_symlinks=False)
            except FileExistsError:
                continue
            return os.path.relpath(os.path.join(head, kept), self._root)
        raise _too_many(path)

    def config(self) -> str:
        dir_fd = os.open(self._root, DIRECTORY_FLAGS)
        try:
            data = config_file.read_at(dir_fd, config_file.FILE_NAME, file=self._config)
        finally:
            os.close(dir_fd)
        return config_file.decode(data, file=self._config)

    def save_config(self, old: str, new: str) -> None:
        config_file.save(self._config, old, new)

    def _place(self, path: str) -> tuple[str, str]:
        """(directory, name) of what *path* leads to, which is in the workspace."""
        resolved = resolve_links(os.path.join(self._root, path))
        if not resolved.startswith(self._root.rstrip("/") + "/"):
            raise _outside(path)
        head, name = os.path.split(resolved)
        return head, name


class TreeOwn(Own):
    """Those that the mount shows of *files*, over the directory *root*."""

    def __init__(self, files: TreeFiles, root: str) -> None:
        self._files = files
        self._root = os.fsencode(root).rstrip(b"/") + b"/"
        self._file = os.path.join(root, config_file.FILE_NAME)

    def read(self, path: str) -> bytes | None:
        try:
            return self._files.read(self._place(path), _PATCH_BYTES_MAX)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write(self, path: str, content: bytes | None) -> None:
        place = self._place(path)
        if content is None:
            self._files.remove(place)
        else:
            self._files.put(place, content)

    def sweep(self, path: str) -> None:
        self._files.remove(temporary_beside(self._place(path)))

    def keep_copy(self, path: str) -> str:
        place = self._place(path)
        for number in range(1, _KEPT_MAX):
            kept = place + b".kept-%d" % number
            try:
                self._files.link(place, kept)
            except FileExistsError:
                continue
            return os.fsdecode(kept)
        raise _too_many(path)

    def config(self) -> str:
        data = self._files.read(config_file.FILE_NAME.encode(), config_file.FILE_BYTES_MAX + 1)
        return config_file.decode(data, file=self._file)

    def save_config(self, old: str, new: str) -> None:
        try:
            self._files.replace(config_file.FILE_NAME.encode(), old.encode(), new.encode())
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            raise ClivefsError(
                "the file was changed meanwhile; nothing was written",
                place=self._file,
                remedy="look at what changed, then give the command again",
            ) from None

    def _place(self, path: str) -> bytes:
        """What *path* leads to, which is in the workspace; its end need not exist."""
        todo = os.fsencode(path).split(b"/")[::-1]
        done: list[bytes] = []
        links = 0
        while todo:
            name = todo.pop()
            if name == b"..":
                if not done:
                    raise _outside(path)
                done.pop()
            if name in (b"", b".", b".."):
                continue
            here = b"/".join((*done, name))
            try:
                is_link = self._files.kind(here) == stat.S_IFLNK
            except (FileNotFoundError, NotADirectoryError):
                is_link = False
            if not is_link:
                done.append(name)
                continue
            links += 1
            target = self._files.readlink(here)
            if links > _LINKS_MAX:
                raise ClivefsError("the links to this patch lead in a circle", place=path)
            if target.startswith(b"/"):
                if not target.startswith(self._root):
                    raise _outside(path)
                target = target[len(self._root) :]
                done.clear()
            todo += target.split(b"/")[::-1]
        if not done:
            raise _outside(path)
        return b"/".join(done)


def _outside(path: str) -> ClivefsError:
    return ClivefsError("a patch must lie in the workspace", place=path, remedy="Name a file in the workspace.")


def _too_many(path: str) -> ClivefsError:
    return ClivefsError("there are too many kept copies of this patch", place=path, remedy="Remove some.")


def _make_directories(path: str) -> None:
    """Those that are missing, as the user's own: not private, as those of the store."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path))
        os.mkdir(path, 0o755)


def _mode_of(path: str) -> int:
    try:
        return stat.S_IMODE(os.stat(path, follow_symlinks=False).st_mode) & 0o777
    except FileNotFoundError:
        return _MODE_NEW


def _sync(directory: str) -> None:
    fd = os.open(directory, DIRECTORY_FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
