"""Hostile archives are refused whole, by the name of the member, and nothing refers to what was stored of them."""

from __future__ import annotations

import io
import os
import re
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.published.archive import ArchiveError, ArchiveLimits, unpack
from clivefs.objects.memory import MemoryStore
from tests.mounts.archiveworlds import COMPRESSIONS, File, Link, member, tar_of, tar_with, zip_of

GOOD = (member("ok/file"), b"fine")


def refused(data: bytes, **options: object) -> ArchiveError:
    store = MemoryStore()
    with pytest.raises(ArchiveError) as caught:
        unpack(store, io.BytesIO(data), place="hostile.tar", **options)  # type: ignore[arg-type]
    assert store.refs() == {}
    assert caught.value.place == "hostile.tar"
    assert caught.value.remedy
    return caught.value


BAD_NAMES = [
    ("/etc/passwd", "absolute"),
    ("../x", r"`\.\.`"),
    ("a/../../x", r"`\.\.`"),
    ("a/..", r"`\.\.`"),
    (".git/config", "spelling of"),
    ("a/.GIT/hooks/x", "spelling of"),
    ("a/git~1", "spelling of"),
    ("a/.g\u200cit/x", "spelling of"),
    (".Git", "spelling of"),
    ("n" * 256, "256 bytes"),
    ("/".join(["d" * 100] * 50), "4096"),
]


@pytest.mark.parametrize("name, why", BAD_NAMES, ids=lambda value: value[:20])
@pytest.mark.parametrize("kind", ["file", "directory", "link", "zip"])
def test_names(name: str, why: str, kind: str) -> None:
    if kind == "zip":
        error = refused(zip_of({b"ok/file": File(b"fine"), name.encode(): File(b"bad")}))
    else:
        bad = {
            "file": (member(name), b"bad"),
            "directory": (member(name, type=tarfile.DIRTYPE), b""),
            "link": (member(name, type=tarfile.SYMTYPE, linkname="ok"), b""),
        }[kind]
        error = refused(tar_with(GOOD, bad))
    assert re.search(why, error.message)
    assert name.replace("\u200c", "\\u200c")[:60] in error.message


def test_the_pointer_of_a_submodule_is_left_out() -> None:
    store = MemoryStore()
    tree = {b"p/sub/.git": File(b"gitdir: ../.git/modules/sub"), b"p/sub/f": File(b"x")}
    for data in (tar_of(tree), zip_of(tree)):
        (sub,) = store.read_tree(unpack(store, io.BytesIO(data)).tree)
        assert [entry.name for entry in store.read_tree(sub.oid)] == [b"f"]
    for kind in (tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE):
        assert "spelling of" in refused(tar_with(GOOD, member("d/.git", type=kind, linkname="ok/file"))).message


def test_a_nul_in_a_name() -> None:
    data = zip_of({b"ok/file": File(b"fine"), b"badXname": File(b"x")}).replace(b"badX", b"bad\0")
    assert "NUL" in refused(data).message
    info = member("short", pax_headers={"path": "a\0b"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(info)
    assert "NUL" in refused(buffer.getvalue()).message


@pytest.mark.parametrize(
    "links",
    [
        {b"l": b"/etc/passwd"},
        {b"l": b".."},
        {b"d/l": b"../../x"},
        {b"d/l": b"../d/../../x"},
        {b"l": b"missing/../../x"},
        {b"a": b"d/e", b"d/e/back": b"../..", b"out": b"a/back/../.."},
        {b"x/y": b"..", b"z": b"x/y/.."},
        {b"one": b"two", b"two": b"/abs"},
        {b"l": b"f/../../x"},
    ],
    ids=str,
)
def test_symlinks_that_lead_out(links: dict[bytes, bytes]) -> None:
    tree = {b"f": File(b"file"), **{path: Link(target) for path, target in links.items()}}
    for data in (tar_of(tree), zip_of(tree)):
        error = refused(data, strip=0)
        assert "leads out" in error.message


@pytest.mark.parametrize(
    "links",
    [
        {b"l": b"."},
        {b"d/l": b"../x"},
        {b"d/l": b".."},
        {b"l": b"missing/deep"},
        {b"l": b"l"},
        {b"a": b"b", b"b": b"a"},
        {b"d/l": b".././d/../f"},
        {b"x/y": b"..", b"z": b"x/y/f"},
        {b"l": b"l/../l"},
    ],
    ids=str,
)
def test_symlinks_that_stay_inside(links: dict[bytes, bytes]) -> None:
    tree = {b"f": File(b"file"), b"d/e/g": File(), **{path: Link(target) for path, target in links.items()}}
    unpack(MemoryStore(), io.BytesIO(tar_of(tree)), strip=0)


def test_a_link_out_of_the_directory_that_is_shown() -> None:
    tree = {b"top/f": File(), b"top/l": Link(b"../top/f")}
    unpack(MemoryStore(), io.BytesIO(tar_of(tree)), strip=0)
    assert "leads out" in refused(tar_of(tree)).message


def test_links_through_links_cost_a_bounded_time() -> None:
    tree: dict[bytes, File | Link] = {b"d/f": File()}
    tree[b"l0"] = Link(b"./" * 2000 + b"d")
    for index in range(1, 2000):
        tree[b"l%d" % index] = Link(b"./" * 1000 + b"l%d" % (index - 1))
    assert "too many" in refused(COMPRESSIONS["gz"](tar_of(tree)), limits=ArchiveLimits(ratio=10_000)).message


@pytest.mark.parametrize("target", ["/etc/passwd", "../x", "missing", "ok", "ok/file/below", "later"])
def test_hard_links_to_what_is_no_earlier_member(target: str) -> None:
    bad = member("bad", type=tarfile.LNKTYPE, linkname=target)
    error = refused(tar_with(GOOD, bad, (member("later"), b"x")))
    assert "`bad` is a hard link to" in error.message
    assert target in error.message


@pytest.mark.parametrize("type, why", [(b"3", "device"), (b"4", "device"), (b"6", "pipe"), (b"Z", "type")])
def test_what_is_neither_file_nor_link(type: bytes, why: str) -> None:  # noqa: A002
    error = refused(tar_with(GOOD, member("bad", type=type)))
    assert "`bad`" in error.message
    assert why in error.message


@pytest.mark.parametrize("kind", [stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK])
def test_devices_in_a_zip(kind: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("bad")
        info.create_system = 3
        info.external_attr = (kind | 0o644) << 16
        archive.writestr(info, b"")
    assert "`bad`" in refused(buffer.getvalue()).message


def test_one_path_of_two_kinds() -> None:
    link = member("a", type=tarfile.SYMTYPE, linkname="ok")
    directory = member("a", type=tarfile.DIRTYPE)
    file = (member("a"), b"x")
    below = (member("a/b"), b"x")
    for first, second in [
        (link, file),
        (file, link),
        (directory, file),
        (directory, link),
        (file, directory),
        (link, directory),
        (file, below),
        (link, below),
        (below, file),
        (below, link),
    ]:
        assert "`a" in refused(tar_with(GOOD, first, second)).message


def test_a_size_that_is_too_large_is_refused_by_its_header() -> None:
    info = member("huge")
    info.size = 1 << 40
    data = COMPRESSIONS["gz"](info.tobuf() + bytes(1024))
    error = refused(data)
    assert "`huge`" in error.message
    assert "archive_size" in str(error)


def test_bombs() -> None:
    zeros = bytes(40 << 20)
    for data in (COMPRESSIONS["xz"](tar_of({b"zeros": File(zeros)})), zip_of({b"zeros": File(zeros)})):
        error = refused(data, limits=ArchiveLimits(ratio=100))
        assert "archive_ratio" in str(error)
        assert "`zeros`" in error.message or "times" in error.message
        assert "archive_size" in str(refused(data, limits=ArchiveLimits(size=1 << 20)))
    many = {b"d/%d" % index: File() for index in range(50)}
    for data in (tar_of(many), zip_of(many)):
        error = refused(data, limits=ArchiveLimits(files=20))
        assert "archive_files" in str(error)
        assert "`d/19`" in error.message  # the directory counts as well


def test_implied_directories_count() -> None:
    deep = {b"a/" * 30 + b"f": File()}
    assert "archive_files" in str(refused(tar_of(deep), limits=ArchiveLimits(files=20)))


def test_headers_alone_are_a_bomb_too() -> None:
    data = COMPRESSIONS["xz"](
        bytes(tar_with(*(member(f"d{n}", type=tarfile.DIRTYPE) for n in range(10)))) + bytes(64 << 20)
    )
    assert "archive_ratio" in str(refused(data, limits=ArchiveLimits(ratio=10)))


def test_an_extended_header_is_not_read_into_memory() -> None:
    header = member("././@PaxHeader", type=tarfile.XHDTYPE)
    header.size = 900 << 20
    data = COMPRESSIONS["gz"](header.tobuf() + bytes(8192))
    assert "extended header" in refused(data).message


def test_sparse_bombs() -> None:
    header = bytearray(member("s").tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"%011o\0" % 0
    header[156:157] = b"S"
    header[483:495] = b"%011o\0" % (6 << 30)
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    assert "archive_ratio" in str(refused(bytes(header) + bytes(1024)))


def test_encrypted_zips() -> None:
    data = bytearray(zip_of({b"secret": File(b"x")}))
    at = data.index(b"PK\x01\x02")
    data[at + 8] |= 1
    data[6] |= 1
    error = refused(bytes(data))
    assert "`secret` is encrypted" in error.message


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_zip_methods_without_a_bound_of_memory(method: int) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("f", b"x" * 1000)
    assert "compressed with" in refused(buffer.getvalue()).message


def test_what_is_no_archive() -> None:
    for data in (b"", b"hello", b"<!DOCTYPE html>" * 100, bytes(100)):
        assert "neither a tar" in refused(data).message


def test_paths_that_are_no_archive(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, why in [(tmp_path / "none", "No such"), (tmp_path, "no regular file"), (tmp_path / "pipe", "no regular")]:
        with pytest.raises(Exception, match=why):
            unpack(MemoryStore(), path)


PARTS = st.sampled_from(["..", ".", "", "a", ".git", "/", "\0", "b"])


@given(
    st.lists(
        st.tuples(
            st.lists(PARTS, min_size=1, max_size=4),
            st.sampled_from(["file", "dir", "sym", "hard"]),
            st.lists(PARTS, max_size=4),
        ),
        max_size=5,
    )
)
@settings(max_examples=200, deadline=None)
def test_whatever_is_accepted_is_harmless(members: list[tuple[list[str], str, list[str]]]) -> None:
    types = {"file": tarfile.REGTYPE, "dir": tarfile.DIRTYPE, "sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE}
    data = tar_with(
        *(member("/".join(path), type=types[kind], linkname="/".join(target)) for path, kind, target in members)
    )
    store = MemoryStore()
    try:
        tree = unpack(store, io.BytesIO(data), strip=0).tree
    except ArchiveError:
        return
    pending = [(tree, 0)]
    while pending:
        at, depth = pending.pop()
        for mode, name, oid in store.read_tree(at):
            assert name not in (b"", b".", b"..", b".git")
            if mode == 0o040000:
                pending.append((oid, depth + 1))
            elif mode == 0o120000:
                target = store.read(oid)[1]
                assert not target.startswith(b"/")
                assert target.split(b"/").count(b"..") <= depth + sum(
                    part not in (b"", b".", b"..") for part in target.split(b"/")
                )


def test_global_headers_are_bounded() -> None:
    header = member("pax_global_header", type=tarfile.XGLTYPE)
    header.size = 20 << 10
    assert "extended header" in refused(header.tobuf() + bytes(21 << 10)).message
    many = b""
    for index in range(20):
        keys = {f"k{index}.{key}": "v" for key in range(100)}
        many += tarfile.TarInfo.create_pax_global_header(keys)
    assert "too many keys" in refused(many + tar_with(GOOD)).message


def test_a_chain_of_sparse_headers_has_an_end() -> None:
    header = bytearray(member("s").tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    more = bytearray((b"%011o\0" % 512 + b"%011o\0" % 1) * 21 + bytes(8))
    more[504] = 1
    data = bytes(header) + bytes(more) * 20_000
    assert "no end" in refused(COMPRESSIONS["gz"](data), limits=ArchiveLimits(ratio=10_000)).message


def test_the_directory_of_a_zip_is_not_read_when_it_is_too_large() -> None:
    data = zip_of({b"f%d" % index: File() for index in range(2000)})
    assert refused(data, limits=ArchiveLimits(files=100)).message == "it holds more than 100 files"
