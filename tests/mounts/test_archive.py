"""Archives become the tree that stock git would make of their content, whatever their format."""

from __future__ import annotations

import contextlib
import io
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clivefs.mounts.published.archive import ArchiveError, ArchiveLimits, unpack
from clivefs.objects.encode import EMPTY_TREE, MODE_EXECUTABLE, MODE_FILE, MODE_SYMLINK, MODE_TREE
from clivefs.objects.fsck import fsck
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.archiveworlds import COMPRESSIONS, File, Link, Tree, git_tree, member, tar_of, tar_with, zip_of

NAMES = st.text("abAB.-_é 0", min_size=1, max_size=4).map(str.encode).filter(lambda name: name not in (b".", b".."))
CONTENTS = st.one_of(st.binary(max_size=40), st.just(b"x" * 70_000))


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree: dict[bytes, File | Link] = {}
    directories = {b""}
    for _ in range(draw(st.integers(1, 8))):
        parts = draw(st.lists(NAMES, min_size=1, max_size=3))
        path = b"/".join(parts)
        above = {b"/".join(parts[:end]) for end in range(1, len(parts))}
        if path in directories or path in tree or above & tree.keys():
            continue
        directories |= above
        if draw(st.integers(0, 5)) == 0:
            tree[path] = Link(b"../" * draw(st.integers(0, len(parts) - 1)) + draw(NAMES))
        else:
            tree[path] = File(draw(CONTENTS), draw(st.booleans()))
    return _without_escapes(tree)


def _without_escapes(tree: dict[bytes, File | Link]) -> Tree:
    """Links to links may lead out by way of each other; these trees are for what must be accepted."""
    links = [path for path, what in tree.items() if isinstance(what, Link)]
    for path in links[1:]:
        del tree[path]
    return tree


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        assert fsck(opened) == []


def walk(store: MemoryStore | Store, tree: bytes, prefix: bytes = b"") -> dict[bytes, tuple[int, bytes]]:
    found: dict[bytes, tuple[int, bytes]] = {}
    for mode, name, oid in store.read_tree(tree):
        if mode == MODE_TREE:
            found |= walk(store, oid, prefix + name + b"/")
        else:
            found[prefix + name] = (mode, store.read(oid)[1])
    return found


@pytest.mark.parametrize("form", [*COMPRESSIONS, "zip"])
@given(tree=trees())
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_tree_is_the_one_that_git_would_write(form: str, tree: Tree, tmp_path: Path) -> None:
    data = zip_of(tree) if form == "zip" else COMPRESSIONS[form](tar_of(tree))
    store = MemoryStore()
    unpacked = unpack(store, io.BytesIO(data), strip=0)
    assert unpacked.tree == git_tree(tree, tmp_path / "git")
    assert unpacked.size == sum(len(what[0]) for what in tree.values())


@given(tree=trees(), format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
@settings(max_examples=20, deadline=None)
def test_tar_and_zip_of_one_tree_are_one_tree(tree: Tree, format: int) -> None:  # noqa: A002
    store = MemoryStore()
    one = unpack(store, io.BytesIO(tar_of(tree, format=format)), strip=0)
    two = unpack(store, io.BytesIO(zip_of(tree)), strip=0)
    assert one.tree == two.tree


def test_modes_links_and_the_latest_time(store: Store, tmp_path: Path) -> None:
    tree = {b"top/run": File(b"#!", True), b"top/d/l": Link(b"../run"), b"top/f": File(b"hello")}
    path = tmp_path / "x-1.0.tar.gz"
    path.write_bytes(COMPRESSIONS["gz"](tar_of(tree)))
    unpacked = unpack(store, path)
    assert walk(store, unpacked.tree) == {
        b"run": (MODE_EXECUTABLE, b"#!"),
        b"d/l": (MODE_SYMLINK, b"../run"),
        b"f": (MODE_FILE, b"hello"),
    }
    assert unpacked.latest_ns == 1_600_000_000_000_000_000
    path = tmp_path / "x-1.0.zip"
    path.write_bytes(zip_of(tree))
    assert unpack(store, path) == unpacked


def test_large_files_are_streamed_and_shared(store: Store, tmp_path: Path) -> None:
    content = bytes(range(256)) * 12_000
    tree = {b"a/big": File(content), b"b/same": File(content)}
    (tmp_path / "big.tar.xz").write_bytes(COMPRESSIONS["xz"](tar_of(tree)))
    unpacked = unpack(store, tmp_path / "big.tar.xz", spool_dir=store.directory("downloads"))
    (_, _, a), (_, _, b) = store.read_tree(unpacked.tree)
    assert store.read_tree(a)[0].oid == store.read_tree(b)[0].oid
    assert store.header(store.read_tree(a)[0].oid) == ("blob", len(content))


def test_hard_links_are_names_of_one_blob() -> None:
    store = MemoryStore()
    data = tar_with(
        (member("p/a", mode=0o755), b"text"),
        member("p/b", type=tarfile.LNKTYPE, linkname="p/a"),
        member("p/c", type=tarfile.LNKTYPE, linkname="./p/b"),
    )
    for strip in (None, 1):
        found = walk(store, unpack(store, io.BytesIO(data), strip=strip).tree)
        assert found == dict.fromkeys((b"a", b"b", b"c"), (MODE_EXECUTABLE, b"text"))


def test_a_single_top_directory_is_left_out_unless_told_otherwise() -> None:
    store = MemoryStore()
    one = {b"top/a": File(b"1"), b"top/b/c": File(b"2")}
    expected = {
        None: {b"a", b"b/c"},
        0: {b"top/a", b"top/b/c"},
        1: {b"a", b"b/c"},
        2: {b"c"},
    }
    for strip, paths in expected.items():
        assert walk(store, unpack(store, io.BytesIO(tar_of(one)), strip=strip).tree).keys() == paths
    with pytest.raises(ArchiveError, match="strip = 3 nothing"):
        unpack(store, io.BytesIO(tar_of(one)), strip=3)
    two = {**one, b"other": File()}
    assert walk(store, unpack(store, io.BytesIO(tar_of(two))).tree).keys() == {b"top/a", b"top/b/c", b"other"}
    single_file = {b"only": File(b"1")}
    assert walk(store, unpack(store, io.BytesIO(tar_of(single_file))).tree).keys() == {b"only"}


def test_the_metadata_of_an_empty_wheel_is_no_wrapping() -> None:
    store = MemoryStore()
    wheel = zip_of({b"empty-1.dist-info/METADATA": File(b"Name: empty")})
    assert walk(store, unpack(store, io.BytesIO(wheel)).tree).keys() == {b"empty-1.dist-info/METADATA"}


def test_of_two_files_of_one_name_the_last_counts() -> None:
    store = MemoryStore()
    data = tar_with((member("a"), b"first"), (member("a", mode=0o755), b"second"))
    assert walk(store, unpack(store, io.BytesIO(data)).tree) == {b"a": (MODE_EXECUTABLE, b"second")}


def test_directories_without_a_file_are_left_out_as_in_git() -> None:
    store = MemoryStore()
    directory = member("d/empty", type=tarfile.DIRTYPE)
    assert unpack(store, io.BytesIO(tar_with(directory))).tree == EMPTY_TREE
    data = tar_with(directory, (member("d/f"), b"x"))
    assert walk(store, unpack(store, io.BytesIO(data), strip=0).tree).keys() == {b"d/f"}


def test_names_that_are_not_utf_8_are_kept() -> None:
    store = MemoryStore()
    data = tar_of({b"caf\xe9": File(b"x")}, format=tarfile.GNU_FORMAT)
    assert walk(store, unpack(store, io.BytesIO(data)).tree).keys() == {b"caf\xe9"}


def test_sparse_files_have_their_holes() -> None:
    store = MemoryStore()
    header = bytearray(member("s").tobuf(tarfile.GNU_FORMAT))
    # As `tar -S`: 4 bytes at 4096 of a file of 8192 bytes.
    header[124:136] = b"%011o\0" % 4
    header[156:157] = b"S"
    header[386:410] = b"%011o\0" % 4096 + b"%011o\0" % 4
    header[410:434] = b"%011o\0" % 8192 + b"%011o\0" % 0
    header[483:495] = b"%011o\0" % 8192
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    data = bytes(header) + b"data".ljust(512, b"\0") + bytes(1024)
    assert walk(store, unpack(store, io.BytesIO(data)).tree)[b"s"][1] == bytes(4096) + b"data" + bytes(4092)


def test_several_xz_streams_are_one() -> None:
    store = MemoryStore()
    data = tar_of({b"a": File(b"x" * 5000)})
    parts = COMPRESSIONS["xz"](data[:700]) + bytes(8) + COMPRESSIONS["xz"](data[700:]) + bytes(4)
    assert walk(store, unpack(store, io.BytesIO(parts)).tree)[b"a"][1] == b"x" * 5000


def test_deep_trees_take_no_recursion() -> None:
    store = MemoryStore()
    path = b"/".join([b"d"] * 2000)
    unpacked = unpack(store, io.BytesIO(tar_of({path: File(b"x"), b"other": File()})))
    assert unpacked.files == 2001


@pytest.mark.parametrize("form", [*COMPRESSIONS, "zip"])
def test_a_truncated_archive_is_refused(form: str) -> None:
    tree = {b"a/%d" % index: File(bytes([index]) * 900) for index in range(40)}
    data = zip_of(tree) if form == "zip" else COMPRESSIONS[form](tar_of(tree))
    end = len(data) if form != "tar" else len(data.rstrip(b"\0"))
    for cut in {1, end // 3, end // 2, end * 9 // 10, end - 1}:
        with pytest.raises(ArchiveError):
            unpack(MemoryStore(), io.BytesIO(data[:cut]))


def test_a_plain_tar_that_ends_between_members_is_refused() -> None:
    data = tar_with((member("a"), b"x" * 512), (member("b"), b"y" * 512))
    with pytest.raises(ArchiveError, match="without the marker"):
        unpack(MemoryStore(), io.BytesIO(data[:1024]))


def test_a_damaged_header_is_not_the_end() -> None:
    data = bytearray(tar_with((member("a"), b"x"), (member("b"), b"y")))
    data[1024 + 3] ^= 0xFF
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(MemoryStore(), io.BytesIO(COMPRESSIONS["gz"](bytes(data))))


@given(data=st.one_of(st.binary(max_size=2000), st.binary(max_size=600).map(lambda data: b"PK\x03\x04" + data)))
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused(data: bytes) -> None:
    for magic in (b"", b"\x1f\x8b\x08\0", b"BZh9", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd"):
        with pytest.raises(ArchiveError):
            unpack(MemoryStore(), io.BytesIO(magic + data))


@given(data=st.data(), form=st.sampled_from([*COMPRESSIONS, "zip"]))
@settings(max_examples=250, deadline=None)
def test_damage_is_refused_or_unpacked_and_nothing_else(data: st.DataObject, form: str) -> None:
    tree = {
        b"top/a": File(b"hello" * 100, True),
        b"top/" + b"long" * 40: File(b"x"),
        b"top/\xc3\xa9": File(b"y" * 3000),
        b"top/l": Link(b"a"),
    }
    raw = bytearray(zip_of(tree) if form == "zip" else COMPRESSIONS[form](tar_of(tree)))
    for _ in range(data.draw(st.integers(1, 6))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArchiveError):
        unpack(MemoryStore(), io.BytesIO(bytes(raw)), limits=ArchiveLimits(size=1 << 24))


@given(header=st.data())
@settings(max_examples=250, deadline=None)
def test_damaged_headers_with_a_right_checksum(header: st.DataObject) -> None:
    """What a checksum does not catch: the fields themselves are hostile."""
    raw = bytearray(tar_of({b"a" * 120: File(b"pax"), b"b": File(b"x" * 600)}))
    block = header.draw(st.sampled_from([0, 512, 1024, 2048])) % len(raw)
    for _ in range(header.draw(st.integers(1, 5))):
        raw[block + header.draw(st.integers(0, 511))] = header.draw(st.integers(0, 255))
    raw[block + 148 : block + 156] = b" " * 8
    raw[block + 148 : block + 156] = b"%06o\0 " % sum(raw[block : block + 512])
    with contextlib.suppress(ArchiveError):
        unpack(MemoryStore(), io.BytesIO(bytes(raw)), limits=ArchiveLimits(size=1 << 24))


def test_zip_members_made_elsewhere_have_no_modes() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("d/f")
        info.create_system = 0
        info.external_attr = 0x20
        archive.writestr(info, b"x")
        archive.writestr("e/", b"")
    store = MemoryStore()
    assert walk(store, unpack(store, buffer, strip=0).tree) == {b"d/f": (MODE_FILE, b"x")}
