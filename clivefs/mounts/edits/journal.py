"""What a rebase needs to be undone, and what of it is not solved yet. Everything that is kept of one is decided here.

    ref     refs/clive/rebase/ENTRY         a tree that holds all content of the upper as it was before:
                `facts` (JSON: every file with mode, owner, times, attributes, hard links; the marks), `content/HEX`
    record  namespace `rebase`, key ENTRY   JSON, see `Rebase`

Both are written in one transaction before anything changes (`begin`) and go in one when all is solved or taken back
(`end`). So after a crash the record tells that a rebase was under way, and `restore_upper` brings back exactly what was
there: names, content, modes, times, attributes, whiteouts, redirects and inode numbers.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import rename_at, sync_fs
from clivefs.mounts.host.calls import DIRECTORY_FLAGS, chmod_at, get_xattr, list_xattrs, set_xattr, stat_at
from clivefs.mounts.overlay.marks import Edit, EditKind, IntentLog
from clivefs.mounts.overlay.upper import TREE, WORK, PathFds, Upper, list_directory
from clivefs.objects.encode import MODE_TREE, TreeEntry
from clivefs.objects.interface import ANY, ObjectStore

NAMESPACE = "rebase"
_REGULAR = 0o100644
_RENAME_EXCHANGE = 2
_EDITS_A_RECORD = 500


@dataclass(frozen=True, slots=True)
class Unsolved:
    """A conflict that waits for a person. Paths are relative to the entry, undecodable bytes surrogate-escaped."""

    path: str
    kind: str
    aside: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Rebase:
    """One rebase that is not over."""

    entry: str
    """What tells the mount entry from all others, as the upper's directory does."""
    before: str
    """The entry's source as it was written in Clive.toml, and as it is to be."""
    after: str
    state: str
    """`started`: the upper may be anything between, take it back. `unsolved`: done but for `conflicts`."""
    conflicts: tuple[Unsolved, ...] = ()
    patches: tuple[tuple[str, str], ...] = ()
    """(path of a patch file, its content before in base 64) of those that it rewrote."""


def ref_name(entry: str) -> str:
    return f"refs/clive/rebase/{entry}"


def load(store: ObjectStore, entry: str) -> Rebase | None:
    """The rebase of *entry* that is not over, if there is one."""
    record = store.meta_get(NAMESPACE, entry.encode())
    return _decode(record) if record is not None else None


def begin(store: ObjectStore, rebase: Rebase, upper: Upper) -> None:
    """Keep the upper and the record, durable. ClivefsError when one is under way; OSError."""
    if load(store, rebase.entry) is not None:
        raise ClivefsError(
            "a rebase is under way already",
            place=rebase.entry,
            remedy="Finish it (`clivefs overlay resolve`), or take it back with `--abort`.",
        )
    saved = save_upper(upper, store)
    with store.batch() as batch:
        batch.set_ref(ref_name(rebase.entry), saved, None)
        batch.meta_put(NAMESPACE, rebase.entry.encode(), _encode(rebase), None)
    FAULTS.hit("rebase.begun")


def update(store: ObjectStore, rebase: Rebase) -> None:
    """Keep *rebase* in place of what is recorded of it; one without conflicts to solve is over."""
    if rebase.state == "unsolved" and not rebase.conflicts:
        end(store, rebase.entry)
        return
    with store.batch() as batch:
        batch.meta_put(NAMESPACE, rebase.entry.encode(), _encode(rebase))


def solved(store: ObjectStore, entry: str, path: str) -> Rebase | None:
    """Note that the conflict at *path* is solved; what is left of the rebase, None when it is over. ClivefsError."""
    rebase = load(store, entry)
    if rebase is None or all(conflict.path != path for conflict in rebase.conflicts):
        waiting = ", ".join(conflict.path for conflict in rebase.conflicts) if rebase is not None else ""
        raise ClivefsError(
            "there is no conflict in this file", place=path, remedy=f"Unsolved are: {waiting}" if waiting else None
        )
    left = tuple(conflict for conflict in rebase.conflicts if conflict.path != path)
    rebase = dataclasses.replace(rebase, conflicts=left)
    update(store, rebase)
    return rebase if left else None


def end(store: ObjectStore, entry: str) -> None:
    """Forget it, and what was kept for taking it back."""
    with store.batch() as batch:
        batch.set_ref(ref_name(entry), None, ANY)
        batch.meta_put(NAMESPACE, entry.encode(), None)


def _encode(rebase: Rebase) -> bytes:
    return json.dumps(dataclasses.asdict(rebase)).encode()


def _decode(record: bytes) -> Rebase:
    facts = json.loads(record)
    facts["conflicts"] = tuple(
        Unsolved(each["path"], each["kind"], tuple(each["aside"])) for each in facts["conflicts"]
    )
    facts["patches"] = tuple((path, content) for path, content in facts["patches"])
    return Rebase(**facts)


# The upper as objects


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
                for name, _ in sorted(list_directory(fds.open(directory))):
                    fd = fds.open(directory)
                    found = stat_at(fd, name)
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
    fresh = name + b".restoring"
    with suppress(FileNotFoundError):
        _throw_away(uppers_fd, fresh, name)
    os.mkdir(fresh, 0o700, dir_fd=uppers_fd)
    new_fd = os.open(fresh, DIRECTORY_FLAGS, dir_fd=uppers_fd)
    try:
        os.mkdir(WORK, 0o700, dir_fd=new_fd)
        os.mkdir(TREE, 0o700, dir_fd=new_fd)
        facts = json.loads(_facts_of(store, saved))
        inodes = _restore_files(new_fd, store, facts["files"])
        _restore_marks(new_fd, facts["marks"], inodes)
        sync_fs(new_fd)
        FAULTS.hit("rebase.restored")
        rename_at(uppers_fd, fresh, uppers_fd, name, _RENAME_EXCHANGE)
        os.fsync(uppers_fd)
    finally:
        os.close(new_fd)
    _throw_away(uppers_fd, fresh, name)


def _throw_away(uppers_fd: int, fresh: bytes, name: bytes) -> None:
    """Move the directory *fresh* into the work directory of *name*, which is emptied when that is next opened."""
    stat_at(uppers_fd, fresh)
    target = name + b"/" + WORK + b"/thrown-" + os.urandom(6).hex().encode()
    os.rename(fresh, target, src_dir_fd=uppers_fd, dst_dir_fd=uppers_fd)


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
