"""Stores with points in them, for tests."""

from __future__ import annotations

import stat
from collections.abc import Mapping

from clivefs.mounts.points.index import Points
from clivefs.mounts.points.metadata import ROOT, Facts, encode_records, meta_entries
from clivefs.mounts.points.point import Point, make_point
from clivefs.objects.encode import MODE_EXECUTABLE, MODE_FILE, MODE_SYMLINK, MODE_TREE, TreeEntry
from clivefs.objects.interface import Batch, ObjectStore

WORKSPACE = "0123456789abcdef"
START_MS = 1_795_231_351_123  # 2026-11-21T03:22:31.123Z
MTIME_NS = 1_700_000_000_123_456_789


class File:
    """One file of a state: its content (a directory: the files in it) and what git does not say of it."""

    def __init__(self, content: bytes | Mapping[bytes, File], facts: Facts | None) -> None:
        self.content = content
        self.facts = facts


def regular(content: bytes, mode: int = 0o644, **facts: object) -> File:
    return File(content, _facts(stat.S_IFREG | mode, facts))


def symlink(target: bytes) -> File:
    return File(target, _facts(stat.S_IFLNK | 0o777, {}))


def special(mode: int, **facts: object) -> File:
    return File(b"", _facts(mode, facts))


def directory(files: Mapping[bytes, File], mode: int = 0o755, **facts: object) -> File:
    return File(files, _facts(stat.S_IFDIR | mode, facts))


def unknown(file: File) -> File:
    """*file*, of which only what git says was recorded."""
    return File(file.content, None)


def _facts(mode: int, changes: Mapping[str, object]) -> Facts:
    return Facts(mode, MTIME_NS, 1000, 1001)._replace(**changes)


def write(batch: Batch, state: File) -> tuple[bytes, bytes | None]:
    """(tree, metadata tree) of the directory *state*, as a recorder writes them."""
    tree, meta = _write(batch, state, root=True)
    return tree if tree is not None else batch.tree([]), meta


def _write(batch: Batch, state: File, *, root: bool) -> tuple[bytes | None, bytes | None]:
    assert not isinstance(state.content, bytes)
    entries: list[TreeEntry] = []
    below: dict[bytes, bytes] = {}
    facts = {name: file.facts for name, file in state.content.items() if file.facts is not None}
    if root and state.facts is not None:
        facts[ROOT] = state.facts
    for name, file in state.content.items():
        if isinstance(file.content, bytes):
            mode = file.facts.mode if file.facts is not None else stat.S_IFREG | 0o644
            if stat.S_ISREG(mode):
                entries.append(
                    TreeEntry(MODE_EXECUTABLE if mode & 0o100 else MODE_FILE, name, batch.blob(file.content))
                )
            elif stat.S_ISLNK(mode):
                entries.append(TreeEntry(MODE_SYMLINK, name, batch.blob(file.content)))
            continue
        tree, meta = _write(batch, file, root=False)
        if tree is not None:
            entries.append(TreeEntry(MODE_TREE, name, tree))
        if meta is not None and not (file.facts is not None and file.facts.inherits):
            below[name] = meta
    records = batch.blob(encode_records(facts, entries)) if facts else None
    metas = meta_entries(records, below)
    return batch.tree(entries) if entries else None, batch.tree(metas) if metas else None


class History:
    """A workspace that is being recorded."""

    def __init__(self, store: ObjectStore, session: str = "work", start_ms: int = START_MS) -> None:
        self.store = store
        self.points = Points(store, WORKSPACE)
        self.last: Point | None = None
        self.ms = start_ms
        self.begin(session)

    def begin(self, session: str) -> None:
        self.session = session
        self.points.start_session(self.ms, mountpoint="/mnt", machine="desk", name=session)

    def record(self, state: File, *, after_ms: int = 1000, paths: tuple[bytes, ...] = (b"a",)) -> Point:
        """Publish *state* as a point *after_ms* later than the one before."""
        with self.store.batch() as batch:
            tree, meta = write(batch, state)
            return self.publish(batch, tree, meta, after_ms=after_ms, paths=paths)

    def publish(
        self, batch: Batch, tree: bytes, meta: bytes | None, *, after_ms: int = 1000, paths: tuple[bytes, ...] = ()
    ) -> Point:
        self.ms += after_ms
        point = make_point(
            ms=self.ms,
            seq=self.last.seq + 1 if self.last is not None else 1,
            session=self.session,
            machine="desk",
            origin="mount",
            tree=tree,
            meta=meta,
            parent=self.last.oid if self.last is not None else None,
            paths=paths,
        )
        self.points.publish(batch, point)
        self.last = point
        return point
