"""Which workspace a directory is.

A workspace is an id of 16 hexadecimal digits, never a name. It is derived from what the root is: its
filesystem, its inode, when that inode was made (an inode number is used again after `rm -r`), and its real
path. So the same root has the same id in every process without anybody agreeing first, and a copy or a
moved directory has another. `relink` records that a directory now is the workspace that another was.

Records, in the namespace `workspaces` of the store's meta table; values are JSON:
    id/ID            the root last seen as this workspace: {path, device, inode, birth_ns}
    path/SHA256      the id last seen at this real path (the key's hash, in hex)
    inode/SHA256     the real path at which this inode was last seen
    alias/ID         the id to use where ID is derived (written by `relink`)
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from hashlib import blake2b, sha256
from typing import Any, NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import birth_ns
from clivefs.mounts.resolve import mount_id_of, mount_types
from clivefs.objects.interface import ObjectStore

_NAMESPACE = "workspaces"
_ID = re.compile(r"[0-9a-f]{16}")


class _Root(NamedTuple):
    """What tells one directory from every other, as long as it is not moved."""

    path: str
    device: int
    inode: int
    birth_ns: int

    @property
    def derived(self) -> str:
        return blake2b(self._file() + os.fsencode(self.path), digest_size=8, person=b"workspace").hexdigest()

    @property
    def inode_key(self) -> bytes:
        return b"inode/" + sha256(self._file()).hexdigest().encode()

    def _file(self) -> bytes:
        return b"%d %d %d " % (self.device, self.inode, self.birth_ns)


class Relinked(NamedTuple):
    """What `relink` did: the directory is *id* now; before it was *previous*."""

    id: str
    previous: str


def workspace_id(store: ObjectStore, root: str) -> str:
    """The id of the workspace whose root is the directory *root*; noted in the store. OSError where there is none."""
    found = _look(root)
    number = _id_of(store, found)
    _note(store, found, number)
    return number


def root_path(store: ObjectStore, workspace: str) -> str | None:
    """Where the workspace of that id was last seen."""
    record = store.meta_get(_NAMESPACE, b"id/" + workspace.encode())
    return str(json.loads(record)["path"]) if record is not None else None


def workspace_ids(store: ObjectStore) -> list[str]:
    """The ids of all workspaces that were ever seen."""
    return [key.decode()[3:] for key, _ in store.meta_range(_NAMESPACE, b"id/", b"id0")]


def moved_from(store: ObjectStore, root: str) -> str | None:
    """The path that *root* had when it was last seen, if it was moved since: `relink` is what is wanted then.
    To be asked before `workspace_id`, which notes the new path."""
    found = _look(root)
    if store.meta_get(_NAMESPACE, b"alias/" + found.derived.encode()) is not None:
        return None
    record = store.meta_get(_NAMESPACE, found.inode_key)
    if record is None:
        return None
    path = str(json.loads(record))
    return path if path != found.path and not os.path.lexists(path) else None


def relink(store: ObjectStore, old: str, new: str, *, hold: Callable[[str], None] = lambda workspace: None) -> Relinked:
    """Let the directory *new* be the workspace that *old* was (a path where it was, or its id).

    *hold* is called with both ids before anything changes, and raises where one of them must stay what it is.
    ClivefsError when no workspace was seen there, or it still is there.
    """
    number = old if _ID.fullmatch(old) else None
    if number is None:
        record = store.meta_get(_NAMESPACE, _path_key(os.path.realpath(old)))
        number = str(json.loads(record)) if record is not None else None
    last = store.meta_get(_NAMESPACE, b"id/" + number.encode()) if number is not None else None
    if number is None or last is None:
        raise ClivefsError("no workspace was seen there", place=old, remedy="name the directory that it was in")
    root = _root_of(json.loads(last))
    try:
        found = _look(new)
    except OSError as error:
        message = f"{error.strerror}"
        raise ClivefsError(message, place=new, remedy="name the directory where the workspace is now") from error
    previous = _id_of(store, found)
    if root != found and _still_there(root):
        raise ClivefsError(
            f"the workspace is still at {root.path}: a copy is a workspace of its own",
            place=new,
            remedy=f"remove {root.path} first if it was moved here",
        )
    for each in {number, previous}:
        hold(each)
    key = b"alias/" + found.derived.encode()
    with store.batch() as batch:
        batch.meta_put(_NAMESPACE, key, json.dumps(number).encode() if number != found.derived else None)
    _note(store, found, number)
    return Relinked(number, previous)


def _look(root: str) -> _Root:
    path = os.path.realpath(root)
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        # The filesystem's own id outlives reboots and remounts; a device number need not.
        device = os.fstatvfs(fd).f_fsid or found.st_dev
        # overlayfs gives a directory that it copies up the birth of the copy.
        stable = mount_types().get(mount_id_of(fd)) != "overlay"
        return _Root(path, device, found.st_ino, (birth_ns(fd) if stable else None) or 0)
    finally:
        os.close(fd)


def _id_of(store: ObjectStore, root: _Root) -> str:
    alias = store.meta_get(_NAMESPACE, b"alias/" + root.derived.encode())
    return str(json.loads(alias)) if alias is not None else root.derived


def _note(store: ObjectStore, root: _Root, number: str) -> None:
    """Remember where *number* was seen; writes nothing when that is known."""
    records = {
        b"id/" + number.encode(): json.dumps(root._asdict()).encode(),
        _path_key(root.path): json.dumps(number).encode(),
        root.inode_key: json.dumps(root.path).encode(),
    }
    stale = {key: value for key, value in records.items() if store.meta_get(_NAMESPACE, key) != value}
    if stale:
        with store.batch() as batch:
            for key, value in stale.items():
                batch.meta_put(_NAMESPACE, key, value)


def _root_of(record: dict[str, Any]) -> _Root:
    return _Root(record["path"], record["device"], record["inode"], record["birth_ns"])


def _still_there(root: _Root) -> bool:
    try:
        return _look(root.path) == root
    except OSError:
        return False


def _path_key(path: str) -> bytes:
    return b"path/" + sha256(os.fsencode(path)).hexdigest().encode()
