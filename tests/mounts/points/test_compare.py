"""Two recorded states side by side."""

from __future__ import annotations

import stat
from pathlib import Path

from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.points.compare import Differs, State, compare
from clivefs.mounts.points.metadata import Facts, encode_records, meta_entries
from clivefs.objects.encode import EMPTY_TREE, MODE_FILE, MODE_TREE, TreeEntry
from clivefs.objects.interface import Batch
from clivefs.objects.memory import MemoryStore

REG, DIR = stat.S_IFREG, stat.S_IFDIR


def facts(mode: int, **more: object) -> Facts:
    return Facts(mode, 1_700_000_000_000_000_000, 0, 0)._replace(**more)


def directory(batch: Batch, files: dict[bytes, tuple[Facts, object]]) -> tuple[bytes, bytes | None]:
    """(tree, metadata tree) of name -> (facts, content: bytes, an inner dict, or None for what git cannot hold)."""
    entries: list[TreeEntry] = []
    below: dict[bytes, bytes] = {}
    for name, (_, content) in files.items():
        if isinstance(content, bytes):
            entries.append(TreeEntry(MODE_FILE, name, batch.blob(content)))
        elif isinstance(content, dict):
            tree, meta = directory(batch, content)
            if tree != EMPTY_TREE:
                entries.append(TreeEntry(MODE_TREE, name, tree))
            if meta is not None:
                below[name] = meta
    records = batch.blob(encode_records({name: each for name, (each, _) in files.items()}, entries))
    return batch.tree(entries), batch.tree(meta_entries(records, below))


def found(tmp_path: Path, before: dict[bytes, object], after: dict[bytes, object], path: bytes = b"") -> list[Differs]:
    store = MemoryStore()
    with store.batch() as batch:
        one, two = directory(batch, before), directory(batch, after)  # type: ignore[arg-type]
    reader = JoinedObjects((store,), str(tmp_path))
    return list(compare(reader, State(*one), State(*two), path))


def told(differs: list[Differs]) -> dict[bytes, tuple[int | None, int | None]]:
    return {
        each.path: (each.before.mode if each.before else None, each.after.mode if each.after else None)
        for each in differs
    }


def test_content_modes_attributes_and_what_git_cannot_hold(tmp_path: Path) -> None:
    plain, private = facts(REG | 0o644), facts(REG | 0o600)
    before = {
        b"same": (plain, b"1"),
        b"time": (plain, b"1"),
        b"content": (plain, b"1"),
        b"mode": (plain, b"1"),
        b"noted": (plain, b"1"),
        b"gone": (facts(DIR | 0o755), {b"x": (plain, b"1"), b"empty": (facts(DIR | 0o700), {})}),
        b"pipe": (facts(stat.S_IFIFO | 0o644), None),
    }
    after = {
        b"same": (plain, b"1"),
        b"time": (plain._replace(mtime_ns=5), b"1"),
        b"content": (plain, b"2"),
        b"mode": (private, b"1"),
        b"noted": (plain._replace(xattrs=((b"user.a", b"b"),)), b"1"),
        b"new": (facts(DIR | 0o755), {}),
    }
    assert told(found(tmp_path, before, after)) == {
        b"content": (REG | 0o644, REG | 0o644),
        b"mode": (REG | 0o644, REG | 0o600),
        b"noted": (REG | 0o644, REG | 0o644),
        b"gone": (DIR | 0o755, None),
        b"gone/x": (REG | 0o644, None),
        b"gone/empty": (DIR | 0o700, None),
        b"pipe": (stat.S_IFIFO | 0o644, None),
        b"new": (None, DIR | 0o755),
    }


def test_only_below_a_path(tmp_path: Path) -> None:
    plain = facts(REG | 0o644)
    inner = facts(DIR | 0o755)
    before = {b"a": (inner, {b"x": (plain, b"1")}), b"b": (inner, {b"x": (plain, b"1")})}
    after = {b"a": (inner, {b"x": (plain, b"2")}), b"b": (plain, b"was a directory")}
    assert [each.path for each in found(tmp_path, before, after, b"a")] == [b"a/x"]
    assert [each.path for each in found(tmp_path, before, after, b"a/x")] == [b"a/x"]
    assert [each.path for each in found(tmp_path, before, after, b"b")] == [b"b", b"b/x"]
    assert found(tmp_path, before, after, b"none/at/all") == []
