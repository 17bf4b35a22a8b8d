"""What a git tree does not say: the records of a directory."""

from __future__ import annotations

import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.points.metadata import ROOT, Facts, decode_records, encode_records, meta_entries, split_meta
from clivefs.objects.encode import (
    MODE_EXECUTABLE,
    MODE_FILE,
    MODE_GITLINK,
    MODE_SYMLINK,
    MODE_TREE,
    TreeEntry,
    is_dot_git,
)
from clivefs.objects.errors import CorruptObject
from clivefs.objects.memory import MemoryStore

OID = b"\1" * 20
KINDS = {
    MODE_TREE: stat.S_IFDIR,
    MODE_GITLINK: stat.S_IFDIR,
    MODE_FILE: stat.S_IFREG,
    MODE_EXECUTABLE: stat.S_IFREG,
    MODE_SYMLINK: stat.S_IFLNK,
}
SPECIAL = [stat.S_IFDIR, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]
"""What a git tree does not list."""
FILE = Facts(stat.S_IFREG | 0o644, 1_700_000_000_123_456_789, 1000, 1000)
DIRECTORY = Facts(stat.S_IFDIR | 0o755, 1, 1000, 1000)

names = st.binary(min_size=1, max_size=255).filter(
    lambda name: name not in (b".", b"..") and not {0, 0x2F} & set(name) and not is_dot_git(name)
)
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: 0 not in name).map(b"user.".__add__),
    st.binary(max_size=40),
    max_size=3,
).map(lambda found: tuple(sorted(found.items())))


FACTS = {
    kind: st.builds(
        Facts,
        st.integers(0, 0o7777).map(kind.__or__),
        st.one_of(st.integers(-(1 << 66), 1 << 66), st.integers(10**18, 2 * 10**18)),
        st.integers(0, (1 << 32) - 1),
        st.integers(0, (1 << 32) - 1),
        xattrs,
        st.integers(0, (1 << 64) - 1),
        st.integers(0, (1 << 64) - 1),
        st.booleans() if kind == stat.S_IFDIR else st.just(False),
    )
    for kind in {*KINDS.values(), *SPECIAL}
}
"""Facts of each kind of file. Made once: to make a strategy takes longer than to draw from it."""


@st.composite
def directories(draw: st.DrawFn) -> tuple[list[TreeEntry], dict[bytes, Facts]]:
    found: dict[bytes, Facts] = {}
    tree: list[TreeEntry] = []
    for name in draw(st.lists(names, unique=True, max_size=12)):
        if draw(st.booleans()):
            mode = draw(st.sampled_from(sorted(KINDS)))
            tree.append(TreeEntry(mode, name, OID))
            if draw(st.booleans()):
                found[name] = draw(FACTS[KINDS[mode]])
        else:
            found[name] = draw(FACTS[draw(st.sampled_from(SPECIAL))])
    if draw(st.booleans()):
        found[ROOT] = draw(FACTS[stat.S_IFDIR])
    return tree, found


@settings(max_examples=150, deadline=None)
@given(directories())
def test_records_come_back(directory: tuple[list[TreeEntry], dict[bytes, Facts]]) -> None:
    tree, found = directory
    payload = encode_records(found, tree)
    assert decode_records(payload, tree) == found
    assert decode_records(payload, tree[::-1]) == found
    assert encode_records(dict(reversed(found.items())), tree) == payload


@settings(max_examples=300, deadline=None)
@given(directories(), st.data())
def test_damaged_records_are_refused_or_read_as_files_can_be(
    directory: tuple[list[TreeEntry], dict[bytes, Facts]], data: st.DataObject
) -> None:
    tree, found = directory
    payload = bytearray(encode_records(found, tree))
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    del payload[data.draw(st.integers(0, len(payload))) :]
    try:
        read = decode_records(bytes(payload), tree)
    except CorruptObject:
        return
    # What was accepted can be written again: it is something that the format says.
    assert decode_records(encode_records(read, tree), tree) == read
    kinds = {entry.name: KINDS[entry.mode] for entry in tree}
    assert all(stat.S_IFMT(each.mode) == kinds.get(name, stat.S_IFMT(each.mode)) for name, each in read.items())


def test_an_ordinary_file_takes_nine_bytes() -> None:
    tree = [TreeEntry(MODE_FILE, b"file%d" % number, OID) for number in range(1000)]
    found = {entry.name: FILE._replace(mtime_ns=FILE.mtime_ns + at) for at, entry in enumerate(tree)}
    assert len(encode_records(found, tree)) < 9.1 * 1000


def test_more_kinds_of_files_than_a_byte_can_tell() -> None:
    for count in (254, 255, 256, 300):
        tree = [TreeEntry(MODE_FILE, b"file%d" % number, OID) for number in range(count)]
        found = {entry.name: FILE._replace(uid=at) for at, entry in enumerate(tree)}
        assert decode_records(encode_records(found, tree), tree) == found


def test_records_of_another_tree_are_refused() -> None:
    tree = [TreeEntry(MODE_FILE, b"f", OID)]
    payload = encode_records({b"f": FILE}, tree)
    for other in (
        [],
        [*tree, TreeEntry(MODE_FILE, b"g", OID)],
        [TreeEntry(MODE_SYMLINK, b"f", OID)],
        [TreeEntry(MODE_TREE, b"f", OID)],
    ):
        with pytest.raises(CorruptObject):
            decode_records(payload, other)
    empty = encode_records({b"pipe": FILE._replace(mode=stat.S_IFIFO | 0o600)}, tree)
    with pytest.raises(CorruptObject, match="twice"):
        decode_records(empty, [TreeEntry(MODE_FILE, b"pipe", OID)])


def test_numbers_that_claim_more_than_is_there_allocate_nothing() -> None:
    for payload in (
        b"",
        b"\1\1",
        b"\2\1" + bytes(12),
        b"\1\3" + bytes(12),
        b"\1\4" + (0).to_bytes(4, "little") + b"\xff" * 4 + bytes(4),
        b"\1\1" + bytes(8) + b"\xff" * 4,
    ):
        with pytest.raises(CorruptObject):
            decode_records(payload, [])


@pytest.mark.parametrize("name", [b".", b"..", b"a/b", b"a\0b", b".git", b".GIT", b"git~1", b"n" * 256])
def test_names_that_no_point_may_show(name: bytes) -> None:
    with pytest.raises(ValueError):
        encode_records({name: DIRECTORY}, [])
    if len(name) < 256:
        good = encode_records({b"x" * len(name): DIRECTORY}, [])
        with pytest.raises(CorruptObject, match="name"):
            decode_records(good.replace(b"x" * len(name), name), [])


def test_what_no_file_can_be_is_not_written() -> None:
    tree = [TreeEntry(MODE_FILE, b"f", OID)]
    for found in (
        {b"f": DIRECTORY},
        {b"other": FILE},
        {b"f": FILE._replace(uid=-1)},
        {b"f": FILE._replace(uid=1 << 32)},
        {b"f": FILE._replace(xattrs=((b"security.x", b""),))},
        {b"f": FILE._replace(xattrs=((b"user.x", b"v" * 65_537),))},
    ):
        with pytest.raises(ValueError):
            encode_records(found, tree)


def test_a_metadata_tree_is_taken_apart_again_and_a_stranger_is_refused() -> None:
    below = {b"a": OID, b"n" * 255: b"\2" * 20, b"..": b"\3" * 20}
    assert split_meta(meta_entries(b"\4" * 20, below)) == (b"\4" * 20, below)
    assert meta_entries(None, {}) == []
    for stranger in (
        TreeEntry(MODE_FILE, b"=a", OID),
        TreeEntry(MODE_TREE, b"-", OID),
        TreeEntry(MODE_FILE, b"x", OID),
        TreeEntry(MODE_EXECUTABLE, b"-", OID),
    ):
        with pytest.raises(CorruptObject):
            split_meta([stranger])
    with MemoryStore() as store, store.batch() as batch:
        assert batch.tree(meta_entries(batch.blob(b""), {os.fsencode("é"): batch.tree([])}))
