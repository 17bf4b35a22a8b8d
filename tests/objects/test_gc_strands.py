"""Strands: what is read is what was written, and damage is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.objects import strands
from clivefs.objects.encode import MODE_FILE, MODE_TREE, TreeEntry, encode_tree, hash_object
from clivefs.objects.errors import CorruptObject
from clivefs.objects.strands import Strand, StrandObject, write_strand


def blob(payload: bytes, version_of: bytes = b"f") -> StrandObject:
    return StrandObject(hash_object("blob", payload), "blob", payload, version_of)


def tree(entries: dict[bytes, tuple[int, bytes]], version_of: bytes = b"") -> StrandObject:
    payload = encode_tree([TreeEntry(mode, name, oid) for name, (mode, oid) in entries.items()])
    return StrandObject(hash_object("tree", payload), "tree", payload, version_of)


def written(path: Path, objects: list[StrandObject]) -> Strand:
    once = {each.oid: each for each in objects}
    write_strand(str(path), iter(once.values()))
    strand = Strand(str(path))
    strand.check()
    assert {*strand.names()} == set(once)
    for each in once.values():
        assert each.oid in strand
        assert strand.read(each.oid) == (each.kind, each.payload)
    return strand


@given(
    versions=st.lists(st.tuples(st.sampled_from([b"a", b"b"]), st.binary(max_size=80)), max_size=30),
    block=st.integers(1, 7),
)
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_objects_come_back(
    versions: list[tuple[bytes, bytes]], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    before = strands.BLOCK_OBJECTS
    strands.BLOCK_OBJECTS = block
    try:
        strand = written(tmp_path_factory.mktemp("s") / "x", [blob(payload, name) for name, payload in versions])
    finally:
        strands.BLOCK_OBJECTS = before
    assert b"\7" * 20 not in strand
    assert strand.read(b"\7" * 20) is None


@given(edits=st.lists(st.tuples(st.integers(0, 5), st.binary(min_size=1, max_size=12)), min_size=1, max_size=25))
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_trees_that_change_come_back(edits: list[tuple[int, bytes]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Each edit changes one of six files in two directories; trees name what comes after them."""
    content = [b"%d" % number for number in range(6)]
    objects: list[StrandObject] = []
    for number, text in edits:
        content[number] = text
        files = [blob(each, b"f%d" % at) for at, each in enumerate(content)]
        below = [
            tree({b"x%d" % at: (MODE_FILE, files[at].oid) for at in part}, b"d%d" % part[0])
            for part in (range(3), range(3, 6))
        ]
        top = tree({b"a": (MODE_TREE, below[0].oid), b"b": (MODE_TREE, below[1].oid), b"f": (MODE_FILE, b"\1" * 20)})
        objects += [top, *below, *files]
    written(tmp_path_factory.mktemp("s") / "x", objects)


def test_versions_take_what_they_differ_by(tmp_path: Path) -> None:
    noise = os.urandom(4000)
    objects = [blob(noise[:2000] + b"%8d" % number + noise[2000:]) for number in range(200)]
    strand = written(tmp_path / "x", objects)
    assert strand.size < 4200 + 200 * 30


def test_damage_is_said(tmp_path: Path) -> None:
    path = tmp_path / "x"
    objects = [blob(b"version %d of a text" % number) for number in range(50)]
    written(path, objects)
    good = path.read_bytes()
    for at in range(0, len(good), 7):
        path.write_bytes(good[:at] + bytes((good[at] ^ 0x55,)) + good[at + 1 :])
        try:
            strand = Strand(str(path))
            with pytest.raises(CorruptObject):
                strand.check()
            for each in objects:
                found = strand.read(each.oid)
                assert found is None or hash_object(*found) == each.oid
        except CorruptObject:
            pass  # said at once
    for end in (0, 7, 20, 200, len(good) - 1):
        path.write_bytes(good[:end])
        with pytest.raises((CorruptObject, ValueError)):
            Strand(str(path)).check()
