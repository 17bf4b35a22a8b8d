"""Where the edits of a workspace's own `Clive.toml` are, without a mount: with `[workspace] write = "overlay"` they are
kept apart from its directory, in the store."""

from __future__ import annotations

import os

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config import config

_UPPER = "root"


def edited_file(store_path: str, workspace: str, name: str = config.FILE_NAME) -> str:
    """Where the edit of the file *name* is kept, if there is one."""
    return os.path.join(_upper(store_path, workspace), "tree", name)


def check_not_elsewhere(store_path: str, workspace: str) -> None:
    """ClivefsError where edits have removed the file, or put another in its place: then a mount alone can tell what it
    is. To be asked where there is no `edited_file`."""
    upper = _upper(store_path, workspace)
    try:
        with open(os.path.join(upper, "marks"), "rb") as file:
            says = config.FILE_NAME.encode() in file.read()
    except FileNotFoundError:
        return
    if says:
        raise ClivefsError("its Clive.toml is another file of it, renamed", place=upper, remedy="save it")


def load(store_path: str, workspace: str, root: str) -> config.Workspace:
    """What the workspace's Clive.toml says, as its mount would show it. ConfigError, ClivefsError."""
    own = config.load(os.path.join(root, config.FILE_NAME), root=root)
    if own.write != "overlay":
        return own
    edited = edited_file(store_path, workspace)
    if os.path.lexists(edited):
        return config.load(edited, root=root)
    check_not_elsewhere(store_path, workspace)
    return own


def _upper(store_path: str, workspace: str) -> str:
    return os.path.join(store_path, "uppers", workspace, _UPPER)
