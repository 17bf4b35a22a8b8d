"""Archives made to be misread: what parsers disagree about, and what makes them work without end."""

from __future__ import annotations

import gzip
import io
import os
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.mounts.published.archive import ArchiveError, ArchiveLimits, unpack
from clivefs.objects.fsck import fsck
from clivefs.objects.memory import MemoryStore
from clivefs.objects.store import Store
from tests.mounts.archiveworlds import COMPRESSIONS, File, Link, Tree, member, tar_of, tar_with, zip_of

GOOD = (member("ok/file"), b"fine")


def refused(data: bytes, **options: object) -> str:
    store = MemoryStore()
    with pytest.raises(ArchiveError) as caught:
        unpack(store, io.BytesIO(data), **options)  # type: ignore[arg-type]
    assert list(store.names()) == []
    return caught.value.message


def content(data: bytes, path: bytes) -> bytes:
    """What the file at *path* is unpacked to."""
    store = MemoryStore()
    oid = unpack(store, io.BytesIO(data), strip=0).tree
    for name in path.split(b"/"):
        oid = next(entry.oid for entry in store.read_tree(oid) if entry.name == name)
    return store.read(oid)[1]


def pax(headers: dict[str, str], name: str = "plain", payload: bytes = b"") -> bytes:
    """A tar archive of one file whose extended header says *headers*."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(member("ok"))
        info = member(name, pax_headers=headers, size=len(payload))
        tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


# Nothing stays


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        assert fsck(opened) == []


@pytest.mark.parametrize("form", ["tar", "gz", "zip"])
@pytest.mark.parametrize("bad", [b"../escape", b"cut"])
def test_nothing_of_a_refused_archive_is_in_the_store(store: Store, form: str, bad: bytes) -> None:
    """However far it was unpacked: more objects than a batch hands on at once, and a large one."""
    tree: dict[bytes, File | Link] = {b"d/%d" % number: File(b"%d" % number * 50) for number in range(1500)}
    tree[b"d/large"] = File(os.urandom(3 << 20))
    if bad != b"cut":
        tree[bad] = File(b"bad")
    data = zip_of(tree) if form == "zip" else COMPRESSIONS[form](tar_of(tree))
    if bad == b"cut":
        data = data.rstrip(b"\0")[:-3000]
    with pytest.raises(ArchiveError):
        unpack(store, io.BytesIO(data), spool_dir=store.directory("downloads"))
    assert list(store.names()) == []
    assert [each for each in (Path(store.path) / "large").rglob("*") if each.is_file()] == []
    assert os.listdir(store.directory("downloads")) == []


# Time and memory


def test_a_row_of_digits_in_a_pax_header() -> None:
    assert "digits in a row" in refused(COMPRESSIONS["gz"](pax({"comment": "1" * 900_000})))
    assert content(pax({"comment": "1" * 200}, payload=b"x"), b"plain") == b"x"


def test_a_sparse_map_that_leads_to_the_end_of_the_numbers() -> None:
    sparse = {"GNU.sparse.size": "5", "GNU.sparse.numblocks": "2"}
    for each in (f"{-(2**61)},{2**60},0,5", f"0,{2**62}", "4,1,0,1", "0,-5", "0,6"):
        assert "sparse file" in refused(pax({**sparse, "GNU.sparse.map": each}, payload=b"12345"))
    assert content(pax({**sparse, "GNU.sparse.map": "0,2,4,1"}, payload=b"abc"), b"plain") == b"ab\0\0c"


def test_sizes_below_zero() -> None:
    assert "size" in refused(pax({"size": "-512"}))
    for kind in (tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.XHDTYPE, b"S", b"Z"):
        header = bytearray(member("bad", type=kind).tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"\xff" * 10 + b"\xfe\0"  # -512
        header[148:156] = b" " * 8
        header[148:155] = b"%06o\0" % sum(header)
        assert "bytes" in refused(tar_with(GOOD)[:1024] + bytes(header) + bytes(1024))


def test_a_seek_behind_the_end() -> None:
    header = member("bad")
    header.size = 1 << 40
    data = tar_with(GOOD)[:1024] + header.tobuf() + b"x" * 100
    assert "damaged" in refused(data, limits=ArchiveLimits(size=1 << 50, ratio=1 << 40))


def with_zip64_record(data: bytes, said_bytes: int) -> bytes:
    """The zip archive *data*; its last record says that the directory has *said_bytes*, one before it the truth."""
    end = data.rindex(b"PK\x05\x06")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, size, start)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, end, 1)
    last = bytearray(data[end:])
    last[12:16] = said_bytes.to_bytes(4, "little")
    return data[:end] + record + locator + bytes(last)


@pytest.mark.parametrize("said_bytes", [0, 46, 0xFFFFFFFF])
def test_the_size_of_a_directory_is_not_taken_from_the_record_that_says_less(said_bytes: int) -> None:
    data = with_zip64_record(zip_of({b"f%d" % number: File() for number in range(2000)}), said_bytes)
    assert refused(data, limits=ArchiveLimits(files=100)) == "it holds more than 100 files"
    small = zip_of({b"f": File(b"x")})
    assert content(with_zip64_record(small, small.rindex(b"PK\x05\x06") - small.index(b"PK\x01\x02")), b"f") == b"x"


def test_a_size_that_only_zip64_can_say() -> None:
    data = bytearray(zip_of({b"huge": File(b"x")}))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = b"\xff" * 4
    extra = struct.pack("<HHQ", 1, 8, 1 << 50)
    data[at + 30 : at + 32] = len(extra).to_bytes(2, "little")
    name_end = at + 46 + len("huge")
    data[name_end:name_end] = extra
    end = data.rindex(b"PK\x05\x06")
    data[end + 12 : end + 16] = (end - at).to_bytes(4, "little")
    assert "`huge`" in refused(bytes(data))


@pytest.mark.parametrize("depth", [3000, 10_000])
def test_directories_without_end(depth: int) -> None:
    tree: Tree = {b"/".join([b"d"] * depth): File(b"x")}
    for data in (COMPRESSIONS["gz"](tar_of(tree)), zip_of(tree)):
        assert "more than 4096" in refused(data)


# What parsers disagree about


def zip_with(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")  # of names that are there twice
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def test_of_two_members_of_one_name_the_last_counts() -> None:
    assert content(zip_with(("a", b"1"), ("a", b"2")), b"a") == b"2"
    assert content(zip_with(("a", b"1"), ("./a", b"2")), b"a") == b"2"
    assert content(tar_with((member("a"), b"1"), (member("a"), b"2")), b"a") == b"2"


def test_names_that_only_some_systems_tell_apart_are_different_names() -> None:
    names = [b"README", b"readme", "caf\u00e9".encode(), "cafe\u0301".encode()]
    for data in (tar_of({name: File(name) for name in names}), zip_of({name: File(name) for name in names})):
        for name in names:
            assert content(data, name) == name


def test_a_member_that_has_another_name_in_front_of_it() -> None:
    data = zip_of({b"a/safe": File(b"x")})
    assert "differ" in refused(data.replace(b"a/safe", b"a/evil", 1))


def test_a_size_and_a_checksum_that_do_not_agree() -> None:
    data = bytearray(zip_of({b"a": File(b"hello")}))
    at = data.index(b"PK\x01\x02")
    data[at + 24 : at + 28] = bytes(4)
    assert "checksum" in refused(bytes(data))
    data[at + 24 : at + 28] = (3).to_bytes(4, "little")
    assert "CRC" in refused(bytes(data))


def test_a_path_that_only_the_extended_header_has() -> None:
    assert "`../evil`" in refused(pax({"path": "../evil"}))
    assert "absolute" in refused(pax({"path": "/etc/passwd"}))
    assert "spelling of" in refused(pax({"path": "a/.g\u200cit/config"}))
    link = member("l", type=tarfile.SYMTYPE, linkname="ok", pax_headers={"linkpath": "../../out"})
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        tar.addfile(link)
    assert "leads out" in refused(buffer.getvalue())


def test_another_name_of_a_symlink_leads_from_there() -> None:
    data = tar_with(
        (member("d/file"), b"x"),
        member("d/l", type=tarfile.SYMTYPE, linkname="../f"),
        member("h", type=tarfile.LNKTYPE, linkname="d/l"),
    )
    assert "`h` is a symbolic link to `../f`, which leads out" in refused(data, strip=0)
    below = tar_of({b"top/d/l": Link(b"../../x")})
    assert "`top/d/l` is a symbolic link to `../../x`, which leads out" in refused(below)


def test_what_comes_after_the_end() -> None:
    tree = {b"a": File(b"x")}
    two = gzip.compress(tar_of(tree)[:700]) + gzip.compress(tar_of(tree)[700:])
    assert content(two, b"a") == b"x"
    assert content(gzip.compress(tar_of(tree)) + bytes(100), b"a") == b"x"  # as tapes pad
    assert "damaged" in refused(gzip.compress(tar_of(tree)) + b"garbage")
    assert content(tar_of(tree) + b"garbage", b"a") == b"x"
    assert content(zip_of(tree) + b"garbage", b"a") == b"x"
    # A second archive behind the first is no part of it.
    assert content(tar_of(tree) + tar_of({b"b": File(b"y")}), b"a") == b"x"


def test_a_directory_of_unix_and_a_file_of_dos() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.create_system = 3
        info.external_attr = (stat.S_IFDIR | 0o755) << 16
        archive.writestr(info, b"")
        archive.writestr("a/b", b"x")
    assert content(buffer.getvalue(), b"a/b") == b"x"
