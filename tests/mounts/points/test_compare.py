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


def test_owners(tmp_path: Path) -> None:
    """One that is not known is that of the directory which says that it inherits, or any."""
    plain, inner = facts(REG | 0o644), facts(DIR | 0o755)
    given = plain._replace(uid=7, gid=8)
    before = {b"user": (plain, b"1"), b"group": (plain, b"1"), b"same": (given, b"1"), b"d": (inner, {})}
    after = {
        b"user": (plain._replace(uid=7), b"1"),
        b"group": (plain._replace(gid=8), b"1"),
        b"same": (given, b"1"),
        b"d": (inner._replace(gid=9), {}),
    }
    assert told(found(tmp_path, before, after)).keys() == {b"user", b"group", b"d"}
    store = MemoryStore()
    with store.batch() as batch:
        tree, _ = directory(batch, {b"x": (plain, b"1"), b"y": (plain, b"1")})
        records = batch.blob(
            encode_records({b"top": inner._replace(inherits=True)}, [TreeEntry(MODE_TREE, b"top", tree)])
        )
        top = batch.tree([TreeEntry(MODE_TREE, b"top", tree)])
        inherits = State(top, batch.tree(meta_entries(records, {})))
        own = State(*directory(batch, {b"top": (inner, {b"x": (plain, b"1"), b"y": (given, b"1")})}))
        unknown = State(top, None)
    reader = JoinedObjects((store,), str(tmp_path))
    assert [each.path for each in compare(reader, inherits, own)] == [b"top/y"]
    assert [each.path for each in compare(reader, unknown, own)] == []


def linked(link: int, **more: object) -> Facts:
    return facts(REG | 0o644, link=link, **more)


def test_names_of_one_file(tmp_path: Path) -> None:
    """Not the numbers of groups count, but who is one file with whom."""
    inner = facts(DIR | 0o755)
    pair = {b"a": (linked(5), b"1"), b"d": (inner, {b"b": (linked(5), b"1")}), b"alone": (linked(0), b"1")}
    again = {b"a": (linked(9), b"1"), b"d": (inner, {b"b": (linked(9), b"1")}), b"alone": (linked(3), b"1")}
    apart = {b"a": (linked(0), b"1"), b"d": (inner, {b"b": (linked(0), b"1")}), b"alone": (linked(0), b"1")}
    assert found(tmp_path, pair, again) == []
    assert told(found(tmp_path, pair, apart)).keys() == {b"a", b"d/b"}
    assert told(found(tmp_path, apart, again)).keys() == {b"a", b"d/b"}
    assert [each.status for each in found(tmp_path, pair, apart, b"d")] == ["M"]
    assert [each.path for each in found(tmp_path, pair, apart, b"a")] == [b"a"]
    assert found(tmp_path, pair, again, b"d/b") == []


def test_a_link_that_comes_goes_or_is_replaced_is_the_only_difference(tmp_path: Path) -> None:
    inner = facts(DIR | 0o755)
    three = {b"a": (linked(5), b"1"), b"b": (linked(5), b"1"), b"d": (inner, {b"c": (linked(5), b"1")})}
    two = {b"b": (linked(5), b"1"), b"d": (inner, {b"c": (linked(5), b"1")})}
    saved = {b"a": (linked(0), b"2"), **two}
    pairs = {b"a": (linked(0), b"2"), b"b": (linked(0), b"1"), b"d": (inner, {})}
    for one, other in ((three, two), (two, three), (three, saved), (saved, three)):
        assert told(found(tmp_path, one, other)).keys() == {b"a"}
    assert told(found(tmp_path, three, pairs)).keys() == {b"a", b"d/c"}
    split = {b"a": (linked(6), b"1"), b"b": (linked(6), b"1"), b"d": (inner, {b"c": (linked(5), b"1")})}
    split[b"d"][1][b"e"] = (linked(5), b"1")  # type: ignore[index]
    four = {**three, b"d": split[b"d"]}
    assert told(found(tmp_path, four, split)).keys() == {b"a", b"b"}
