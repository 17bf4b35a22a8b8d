"""Files of a workspace's own directory that a rebase rewrites: patches. Whole or not at all, and never outside.

A patch may be reached by symlinks that stay in the workspace; what they lead to is what is written.
"""

from __future__ import annotations

import os
import stat

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.host.calls import DIRECTORY_FLAGS
from clivefs.mounts.resolve import resolve_links

_KEPT_MAX = 1000


def read(root: str, path: str) -> bytes | None:
    """The content of the file *path* below *root*; None where there is none."""
    head, name = _place(root, path)
    try:
        with open(os.open(os.path.join(head, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def write(root: str, path: str, content: bytes | None) -> None:
    """Let *content* be in the file *path* below *root*, durable; None: let there be no such file."""
    head, name = _place(root, path)
    if content is None:
        try:
            os.unlink(os.path.join(head, name))
        except FileNotFoundError:
            return
        _sync(head)
        return
    _make_directories(head)
    temporary = os.path.join(head, f".{name}.{os.urandom(6).hex()}.tmp")
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


def keep_copy(root: str, path: str) -> str:
    """Move the file *path* out of the way, to a name beside it that nothing has; that name."""
    head, name = _place(root, path)
    for number in range(1, _KEPT_MAX):
        kept = f"{name}.kept-{number}"
        try:
            os.link(os.path.join(head, name), os.path.join(head, kept), follow_symlinks=False)
        except FileExistsError:
            continue
        return os.path.relpath(os.path.join(head, kept), root)
    raise ClivefsError("there are too many kept copies of this patch", place=path, remedy="Remove some.")


def _place(root: str, path: str) -> tuple[str, str]:
    """(directory, name) of what *path* leads to, which is in *root*."""
    resolved = resolve_links(os.path.join(root, path))
    if not resolved.startswith(root.rstrip("/") + "/"):
        raise ClivefsError("a patch must lie in the workspace", place=path, remedy="Name a file in the workspace.")
    head, name = os.path.split(resolved)
    return head, name


def _make_directories(path: str) -> None:
    """Those that are missing, as the user's own: not private, as those of the store."""
    if not os.path.isdir(path):
        _make_directories(os.path.dirname(path))
        os.mkdir(path, 0o755)


def _mode_of(path: str) -> int:
    try:
        return stat.S_IMODE(os.stat(path, follow_symlinks=False).st_mode) & 0o777
    except FileNotFoundError:
        return 0o644


def _sync(directory: str) -> None:
    fd = os.open(directory, DIRECTORY_FLAGS)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
