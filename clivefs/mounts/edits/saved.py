"""An upper as objects of the store, and back: names, content, modes, times, attributes, marks and inode numbers.

    tree of `save_upper`:   facts       JSON: every file with mode, owner, times, attributes, hard links; the marks
                            content/    the blobs, named by their object id

`rebuild` makes the directory anew beside the present one, `exchange` puts it in its place in one step, and
`throw_away` does away with the other. What else lies in the upper's directory (`times`) goes with it.
"""

from __future__ import annotations

import base64
import json
import os
import stat
from contextlib import suppress
from typing import Any

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import RENAME_EXCHANGE, rename_at, sync_fs
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, chmod_at, get_xattr, list_xattrs, set_xattr, stat_at
from clivefs.mounts.overlay.intentlog import IntentLog
from clivefs.mounts.overlay.marks import Edit, EditKind
from clivefs.mounts.overlay.upper import TREE, WORK, PathFds, Upper, list_directory, list_for_us, stat_for_us
from clivefs.objects.encode import MODE_TREE, TreeEntry
from clivefs.objects.interface import ObjectStore

_REGULAR = 0o100644
_EDITS_A_RECORD = 500
_MARKS = b"marks"
_RESTORING = b".restoring"
MOVING = "moving"
"""A file in an upper's directory from the moment on at which a rebase changes what is in it."""


def save_upper(upper: Upper, store: ObjectStore) -> bytes:
    """A tree in *store* with all that *upper* holds. It must not change meanwhile."""
    files: list[dict[str, Any]] = [_facts(os.stat(upper.tree_fd), "")]
    blobs: dict[bytes, bytes] = {}
    fds = PathFds(upper.tree_fd)
    with store.batch() as batch:
        try:
            waiting = [b""]
            while waiting:
                directory = waiting.pop()
                for name, _ in sorted(list_for_us(fds.open(directory))):
                    fd = fds.open(directory)
                    found = stat_for_us(fd, name)
                    path = directory + b"/" + name if directory else name
                    facts = _facts(found, os.fsdecode(path))
                    if stat.S_ISDIR(found.st_mode):
                        waiting.append(path)
                    elif stat.S_ISREG(found.st_mode):
                        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                        try:
                            oid = batch.blob_file(file)
                        finally:
                            os.close(file)
                        facts["oid"] = oid.hex()
                        blobs[oid.hex().encode()] = oid
                    elif stat.S_ISLNK(found.st_mode):
                        facts["target"] = os.fsdecode(os.readlink(name, dir_fd=fd))
                    if not stat.S_ISLNK(found.st_mode):
                        facts["xattrs"] = {
                            os.fsdecode(each): base64.b64encode(get_xattr(fd, name, each)).decode()
                            for each in list_xattrs(fd, name)
                        }
                    files.append(facts)
        finally:
            fds.close()
        facts_blob = batch.blob(json.dumps({"version": 1, "files": files, "marks": _marks(upper)}).encode())
        content = batch.tree(TreeEntry(_REGULAR, name, oid) for name, oid in blobs.items())
        return batch.tree([TreeEntry(_REGULAR, b"facts", facts_blob), TreeEntry(MODE_TREE, b"content", content)])


def _facts(found: os.stat_result, path: str) -> dict[str, Any]:
    return {
        "path": path,
        "mode": found.st_mode,
        "uid": found.st_uid,
        "gid": found.st_gid,
        "atime": found.st_atime_ns,
        "mtime": found.st_mtime_ns,
        "inode": found.st_ino,
        "links": found.st_nlink,
        "rdev": found.st_rdev,
        "xattrs": {},
    }


def _marks(upper: Upper) -> list[list[Any]]:
    return [
        [int(edit.kind), os.fsdecode(edit.path), os.fsdecode(edit.other), edit.inode, edit.number]
        for edit in upper.log.marks.snapshot()
    ]


def restore_upper(uppers_fd: int, name: bytes, store: ObjectStore, saved: bytes) -> None:
    """Let the upper directory *name* of *uppers_fd* be what `save_upper` saved, in one step.

    No overlay may have it open. The present one is thrown away. The process's umask must be 0.
    """
    rebuild(uppers_fd, name, store, saved)
    exchange(uppers_fd, name)
    throw_away(uppers_fd, name)


def rebuild(uppers_fd: int, name: bytes, store: ObjectStore, saved: bytes) -> None:
    """Make what `save_upper` saved, on disk, for `exchange` to put in the place of *name*. For threads."""
    fresh = name + _RESTORING
    for each in (name, name + b"/" + WORK):
        with suppress(FileExistsError):
            os.mkdir(each, 0o700, dir_fd=uppers_fd)
    _discard(uppers_fd, fresh, name)
    os.mkdir(fresh, 0o700, dir_fd=uppers_fd)
    new_fd = os.open(fresh, DIRECTORY_FLAGS, dir_fd=uppers_fd)
    try:
        os.mkdir(WORK, 0o700, dir_fd=new_fd)
        os.mkdir(TREE, 0o700, dir_fd=new_fd)
        facts = json.loads(_facts_of(store, saved))
        inodes = _restore_files(new_fd, store, facts["files"])
        _restore_marks(new_fd, facts["marks"], inodes)
        _copy_others(uppers_fd, name, new_fd)
        sync_fs(new_fd)
    finally:
        os.close(new_fd)
    FAULTS.hit("rebase.rebuilt")


def exchange(uppers_fd: int, name: bytes) -> None:
    """Put what `rebuild` made in the place of *name*. One system call: for a span of the loop."""
    rename_at(uppers_fd, name + _RESTORING, uppers_fd, name, RENAME_EXCHANGE)
    FAULTS.hit("rebase.restored")


def throw_away(uppers_fd: int, name: bytes) -> None:
    """Do away with what `exchange` took from the place of *name*. For threads."""
    os.fsync(uppers_fd)
    _discard(uppers_fd, name + _RESTORING, name)


def _discard(uppers_fd: int, fresh: bytes, name: bytes) -> None:
    """Move the directory *fresh*, if it is there, into the work directory of *name*, which is emptied at start."""
    with suppress(FileNotFoundError):
        stat_at(uppers_fd, fresh)
        target = name + b"/" + WORK + b"/thrown-" + os.urandom(6).hex().encode()
        os.rename(fresh, target, src_dir_fd=uppers_fd, dst_dir_fd=uppers_fd)


def remove(uppers_fd: int, name: bytes, other: bytes) -> None:
    """Do away with the upper *name*, with the help of the work directory of *other*."""
    _discard(uppers_fd, name, other)


def _copy_others(uppers_fd: int, name: bytes, new_fd: int) -> None:
    """Copy the small files that lie beside `tree`, but for the marks."""
    old_fd = os.open(name, DIRECTORY_FLAGS, dir_fd=uppers_fd)
    try:
        for each, kind in list_directory(old_fd):
            if kind != stat.S_IFREG or each.startswith(_MARKS) or each == MOVING.encode():
                continue
            source = os.open(each, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=old_fd)
            with open(source, "rb") as file:
                target = os.open(each, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=new_fd)
                with open(target, "wb") as copy:
                    copy.write(file.read())
    finally:
        os.close(old_fd)


def _facts_of(store: ObjectStore, saved: bytes) -> bytes:
    entries = {entry.name: entry.oid for entry in store.read_tree(saved)}
    oid = entries[b"facts"]
    fd = store.open_large(oid)
    if fd is None:
        return store.read(oid)[1]
    with open(fd, "rb") as file:
        return file.read()


def _restore_files(new_fd: int, store: ObjectStore, files: list[dict[str, Any]]) -> dict[int, int]:
    """Make every file; the inode numbers of then and now."""
    tree_fd = os.open(TREE, DIRECTORY_FLAGS, dir_fd=new_fd)
    fds = PathFds(tree_fd)
    inodes: dict[int, int] = {}
    first: dict[int, bytes] = {}
    try:
        for facts in files[1:]:
            head, _, name = os.fsencode(facts["path"]).rpartition(b"/")
            fd = fds.open(head)
            if facts["inode"] in first and not stat.S_ISDIR(facts["mode"]):
                other_head, _, other = first[facts["inode"]].rpartition(b"/")
                os.link(other, name, src_dir_fd=fds.open(other_head), dst_dir_fd=fds.open(head), follow_symlinks=False)
                continue
            _make(fd, name, facts, store)
            first[facts["inode"]] = os.fsencode(facts["path"])
            inodes[facts["inode"]] = stat_at(fd, name).st_ino
        # Children first: a directory may be closed to its owner, and gets its time when it is filled.
        for facts in reversed(files[1:]):
            head, _, name = os.fsencode(facts["path"]).rpartition(b"/")
            _dress(fds.open(head), name, facts)
        inodes[files[0]["inode"]] = os.fstat(tree_fd).st_ino
        _dress(new_fd, TREE, files[0])
    finally:
        fds.close()
        os.close(tree_fd)
    return inodes


def _make(fd: int, name: bytes, facts: dict[str, Any], store: ObjectStore) -> None:
    mode = facts["mode"]
    if stat.S_ISDIR(mode):
        os.mkdir(name, 0o700, dir_fd=fd)
    elif stat.S_ISLNK(mode):
        os.symlink(os.fsencode(facts["target"]), name, dir_fd=fd)
    elif stat.S_ISREG(mode):
        file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
        try:
            _fill(file, store, bytes.fromhex(facts["oid"]))
        finally:
            os.close(file)
    else:
        os.mknod(name, mode, facts["rdev"], dir_fd=fd)


def _fill(file: int, store: ObjectStore, oid: bytes) -> None:
    source = store.open_large(oid)
    if source is None:
        content = memoryview(store.read(oid)[1])
        while content:
            content = content[os.write(file, content) :]
        return
    try:
        size = os.fstat(source).st_size
        done = 0
        while done < size:
            done += os.sendfile(file, source, done, size - done)
    finally:
        os.close(source)


def _dress(fd: int, name: bytes, facts: dict[str, Any]) -> None:
    found = stat_at(fd, name)
    if (found.st_uid, found.st_gid) != (facts["uid"], facts["gid"]):
        with suppress(PermissionError):
            os.chown(name, facts["uid"], facts["gid"], dir_fd=fd, follow_symlinks=False)
    for attribute, value in facts["xattrs"].items():
        set_xattr(fd, name, os.fsencode(attribute), base64.b64decode(value))
    if not stat.S_ISLNK(facts["mode"]):
        chmod_at(fd, name, facts["mode"])
    os.utime(name, ns=(facts["atime"], facts["mtime"]), dir_fd=fd, follow_symlinks=False)


def _restore_marks(new_fd: int, marks: list[list[Any]], inodes: dict[int, int]) -> None:
    edits = []
    for kind, path, other, inode, number in marks:
        if kind == EditKind.ORIGIN and inode not in inodes:
            continue  # of an unlinked file that was open
        edits.append(Edit(EditKind(kind), os.fsencode(path), os.fsencode(other), inodes.get(inode, 0), number))
    log = IntentLog(new_fd)
    try:
        for at in range(0, len(edits), _EDITS_A_RECORD):
            part = edits[at : at + _EDITS_A_RECORD]
            log.begin(part, None)
            log.marks.apply(part)
        log.settle()
        log.sync()
    finally:
        log.close()
