"""Trees compared with a version of themselves: as if all of their entries were."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.objects.encode import MODE_EXECUTABLE, MODE_FILE, MODE_TREE, TreeEntry, encode_tree, stored_entries
from clivefs.objects.errors import CorruptObject
from clivefs.objects.versions import Tree, Versions, alike, alike_at_end

# Names of objects that look like entries themselves, or begin and end alike.
OIDS = st.sampled_from([b"\0" * 20, b"100644 a\0" + b"\0" * 11, b"\1" * 20, b"\1" * 19 + b"\2", b"\0" + b"\1" * 19])
NAMES = st.sampled_from([b"a", b"aa", b"b", b"b.c", b"c", b"d" * 30, b"e"])
TREES = st.dictionaries(NAMES, st.tuples(st.sampled_from([MODE_FILE, MODE_EXECUTABLE, MODE_TREE]), OIDS)).map(
    lambda found: encode_tree(TreeEntry(mode, name, oid) for name, (mode, oid) in found.items())
)


@given(st.lists(TREES, min_size=2, max_size=5))
@settings(max_examples=300, deadline=None)
def test_versions_differ_in_what_their_entries_do(payloads: list[bytes]) -> None:
    tree = Tree.of(payloads[0])
    for before, payload in itertools.pairwise(payloads):
        tree, gone, new = tree.next(payload)
        were, now = set(stored_entries(before)), set(stored_entries(payload))
        assert (gone, new) == (were - now, now - were)
        assert tree.payload == payload
        assert tree.starts == Tree.of(payload).starts
        for mode, name, oid in now:
            assert tree.find(mode + b" " + name + b"\0") == oid
        assert tree.find(b"100644 no\0") is None


@pytest.mark.parametrize("damaged", [b"100644 a", b"100644 a\0short", b"x" * 40])
def test_what_is_no_tree_is_none_beside_another_either(damaged: bytes) -> None:
    good = encode_tree([TreeEntry(MODE_FILE, name, b"\1" * 20) for name in (b"a", b"b", b"c")])
    for payload in (damaged, good + damaged, good[:30] + damaged):
        with pytest.raises(CorruptObject):
            Tree.of(good).next(payload)


@given(st.binary(max_size=12), st.binary(max_size=12), st.binary(max_size=12))
def test_how_far_strings_are_alike(start: bytes, one: bytes, two: bytes) -> None:
    first, second = start + one, start + two
    same = alike(first, second)
    assert first[:same] == second[:same]
    assert same == min(len(first), len(second)) or first[same] != second[same]
    first, second = one + start, two + start
    same = alike_at_end(first, second, 0)
    assert first[len(first) - same :] == second[len(second) - same :]
    assert same == min(len(first), len(second)) or first[len(first) - same - 1] != second[len(second) - same - 1]


def test_what_is_read_is_kept_within_bounds() -> None:
    payloads = {bytes([number]) * 20: b"%d" % number * 100 for number in range(9)}
    asked: list[bytes] = []

    def read(oid: bytes) -> tuple[str, bytes]:
        asked.append(oid)
        return "blob", payloads[oid]

    versions = Versions(read, bytes_max=250)
    first, second, third, *_ = payloads
    for oid in (first, second, first, second, third, second):
        assert versions.read(oid) == ("blob", payloads[oid])
    assert asked == [first, second, third]
    assert not versions.has(first)
    versions.read(first)
    assert asked[3:] == [first]
