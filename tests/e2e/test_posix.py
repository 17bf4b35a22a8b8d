"""What POSIX and Linux promise of files, in each of the three places: through, over a directory, over a git ref."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Bench, sample_workspace

pytestmark = pytest.mark.mount

PLACES = {"through": "", "overlay": "over", "git": "lib/thing"}
LIBC = ctypes.CDLL(None, use_errno=True)
RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT = 1, 2, 4


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with sample_workspace(tmp_path_factory.mktemp("posix")) as made:
        yield made


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, mounted: Bench) -> Path:
    """An empty directory of this test's own."""
    path = mounted.live / PLACES[request.param] / request.node.name.translate({ord("["): "-", ord("]"): None})
    path.mkdir()
    return path


@pytest.fixture(params=PLACES)
def source(request: pytest.FixtureRequest, mounted: Bench) -> Path:
    """A directory with content that came from the source: `one`, `two`, `tree/deep/leaf`, for this test alone."""
    return mounted.live / PLACES[request.param] / "tests" / request.node.name.split("[")[0]


def refused(code: int) -> contextlib.AbstractContextManager[object]:
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")


def renameat2(src: Path, dst: Path, flags: int) -> None:
    if LIBC.renameat2(-100, os.fsencode(src), -100, os.fsencode(dst), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# Content


def test_write_read_append_truncate(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"abc")
    with path.open("ab") as file:
        file.write(b"def")
    assert path.read_bytes() == b"abcdef"
    os.truncate(path, 2)
    assert path.read_bytes() == b"ab"
    os.truncate(path, 5)
    assert path.read_bytes() == b"ab\0\0\0"
    assert path.stat().st_size == 5
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"!")
        file.flush()
        assert os.fstat(file.fileno()).st_size == 5
        os.ftruncate(file.fileno(), 1)
        assert os.fstat(file.fileno()).st_size == 1
    assert path.read_bytes() == b"a"


def test_source_file_is_changed_in_place(source: Path) -> None:
    path = source / "one"
    before = path.stat()
    assert path.read_text() == "one\n"
    with path.open("r+b") as file:
        file.write(b"O")
    assert path.read_text() == "One\n"
    with path.open("ab") as file:
        file.write(b"more")
    assert path.read_text() == "One\nmore"
    assert path.stat().st_ino == before.st_ino
    assert path.stat().st_mode == before.st_mode
    os.truncate(source / "two", 1)
    assert (source / "two").read_text() == "t"


def test_appends_from_several_processes_are_all_there(place: Path) -> None:
    path = place / "log"
    script = (
        "import os, sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for i in range(200): os.write(fd, (sys.argv[2] * 31 + '\\n').encode())\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", script, str(path), letter]) for letter in "abcd"]
    assert [worker.wait(600) for worker in workers] == [0] * 4
    lines = path.read_text().split("\n")[:-1]
    assert len(lines) == 800
    assert all(line == line[0] * 31 for line in lines)


def test_open_file_description_sees_appends_of_another(place: Path) -> None:
    path = place / "f"
    with path.open("wb", buffering=0) as writer, path.open("rb", buffering=0) as reader:
        writer.write(b"one")
        assert reader.read() == b"one"
        writer.write(b"two")
        assert reader.read() == b"two"


def test_open_flags(place: Path) -> None:
    path = place / "f"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with refused(errno.EEXIST):
        os.open(path, os.O_CREAT | os.O_EXCL)
    for access in (os.O_WRONLY, os.O_RDONLY):
        path.write_text("x")
        os.close(os.open(path, os.O_TRUNC | access))
        assert path.stat().st_size == 0
    with refused(errno.ENOTDIR):
        os.open(path, os.O_DIRECTORY)
    with refused(errno.EISDIR):
        os.open(place, os.O_WRONLY)
    (place / "l").symlink_to("f")
    with refused(errno.ELOOP):
        os.open(place / "l", os.O_NOFOLLOW)
    with refused(errno.ENOENT):
        os.open(place / "none", os.O_RDONLY)


def test_read_only_mode_of_a_new_file_does_not_bind_its_maker(place: Path) -> None:
    fd = os.open(place / "object", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o444)
    os.write(fd, b"x")
    os.close(fd)
    assert (place / "object").read_bytes() == b"x"


def test_o_tmpfile_is_refused_as_unsupported(place: Path) -> None:
    with pytest.raises(OSError) as caught:
        os.close(os.open(place, os.O_TMPFILE | os.O_RDWR))
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS)


def test_unlinked_file_goes_on(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"abc")
    with path.open("r+b", buffering=0) as file:
        path.unlink()
        assert os.listdir(place) == []
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"X")
        file.seek(0)
        assert file.read() == b"Xbc"
        os.ftruncate(file.fileno(), 1)
        assert os.fstat(file.fileno()).st_size == 1
        os.fchmod(file.fileno(), 0o600)
        assert stat.S_IMODE(os.fstat(file.fileno()).st_mode) == 0o600
        os.utime(file.fileno(), ns=(1, 2))
        assert os.fstat(file.fileno()).st_mtime_ns == 2
        path.write_bytes(b"new")
        file.seek(0)
        assert file.read() == b"X"
    assert path.read_bytes() == b"new"


def test_unlinked_source_file_goes_on(source: Path) -> None:
    path = source / "one"
    with path.open("rb", buffering=0) as reader, path.open("r+b", buffering=0) as writer:
        path.unlink()
        assert not path.exists()
        assert os.fstat(reader.fileno()).st_nlink == 0
        assert reader.read() == b"one\n"
        writer.write(b"O")
        reader.seek(0)
        assert reader.read() == b"One\n"
        assert os.fstat(reader.fileno()).st_size == 4
    assert sorted(os.listdir(source)) == ["tree", "two"]


def test_replaced_file_serves_its_holders(source: Path) -> None:
    path = source / "one"
    with path.open("rb", buffering=0) as old:
        fresh = source / "fresh"
        fresh.write_bytes(b"fresh")
        fresh.replace(path)
        assert old.read() == b"one\n"
        assert os.fstat(old.fileno()).st_nlink == 0
        assert path.read_bytes() == b"fresh"


def test_reader_opened_before_the_first_write_sees_it(source: Path) -> None:
    """A copy-up while a reader has the lower file open: one file, as POSIX has it."""
    path = source / "one"
    with path.open("rb", buffering=0) as reader:
        assert reader.read() == b"one\n"
        with path.open("r+b", buffering=0) as writer:
            writer.write(b"ONE")
        reader.seek(0)
        assert reader.read() == b"ONE\n"
        assert os.fstat(reader.fileno()).st_ino == path.stat().st_ino


def test_removed_directory_that_is_somebodys_cwd(place: Path) -> None:
    inner = place / "d"
    inner.mkdir()
    fd = os.open(inner, os.O_RDONLY)
    try:
        inner.rmdir()
        with refused(errno.ENOENT):
            os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)


def test_mmap_shared(place: Path) -> None:
    path = place / "f"
    path.write_bytes(b"\0" * 10_000)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 10_000) as mapped:
        mapped[5000:5003] = b"abc"
        mapped.flush()
        assert path.read_bytes()[5000:5003] == b"abc"
        mapped[9999:10_000] = b"z"
    assert path.read_bytes()[9999:] == b"z"
    assert path.stat().st_size == 10_000


def test_mmap_shared_of_a_source_file(source: Path) -> None:
    path = source / "one"
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 4) as mapped:
        mapped[0:1] = b"M"
        with path.open("rb") as reader, mmap.mmap(reader.fileno(), 4, prot=mmap.PROT_READ) as other:
            assert other[:] == b"Mne\n"
            mapped[1:2] = b"M"
            assert other[:] == b"MMe\n"
    assert path.read_bytes() == b"MMe\n"


def test_sparse_and_over_four_gibibytes(place: Path) -> None:
    path = place / "big"
    end = 5 << 30
    with path.open("wb") as file:
        file.seek(end)
        file.write(b"end")
    assert path.stat().st_size == end + 3
    assert path.stat().st_blocks * 512 < 1 << 20
    with path.open("r+b") as file:
        file.seek(end - 4)
        assert file.read() == b"\0\0\0\0end"
        file.seek((4 << 30) + 1)
        file.write(b"mid")
    with path.open("rb") as file:
        file.seek(4 << 30)
        assert file.read(5) == b"\0mid\0"
    os.truncate(path, (4 << 30) + 2)
    assert path.stat().st_size == (4 << 30) + 2


def test_fallocate(place: Path) -> None:
    with (place / "f").open("wb") as file:
        assert LIBC.fallocate(file.fileno(), 0, ctypes.c_long(0), ctypes.c_long(8192)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP
        os.posix_fallocate(file.fileno(), 0, 8192)  # the C library falls back to writing
        assert os.fstat(file.fileno()).st_size == 8192


def test_copy_file_range_sendfile_and_splice(place: Path) -> None:
    content = os.urandom(300_000)
    (place / "a").write_bytes(content)
    with (place / "a").open("rb") as src, (place / "b").open("wb") as dst:
        done = 0
        while done < len(content):
            count = os.copy_file_range(src.fileno(), dst.fileno(), len(content) - done)
            assert count
            done += count
    assert (place / "b").read_bytes() == content
    with (place / "a").open("rb") as src, (place / "c").open("wb") as dst:
        done = 0
        while done < len(content):
            done += os.sendfile(dst.fileno(), src.fileno(), done, len(content) - done)
    assert (place / "c").read_bytes() == content


# Attributes


def test_chmod_and_times(place: Path) -> None:
    path = place / "f"
    path.write_text("x")
    for mode in (0o600, 0o755, 0o444, 0o000, 0o4755, 0o2755, 0o1644):
        os.chmod(path, mode)
        assert stat.S_IMODE(path.stat().st_mode) == mode
    os.chmod(path, 0o644)
    os.utime(path, ns=(1_500_000_000_123_456_789, 1_600_000_000_987_654_321))
    assert path.stat().st_mtime_ns == 1_600_000_000_987_654_321
    assert path.stat().st_atime_ns == 1_500_000_000_123_456_789
    before = path.stat().st_ctime_ns
    os.chmod(path, 0o640)
    assert path.stat().st_ctime_ns > before
    assert path.stat().st_mtime_ns == 1_600_000_000_987_654_321
    os.utime(path)
    assert path.stat().st_mtime_ns > 1_700_000_000_000_000_000
    os.utime(path, ns=(-1_000_000_001, -5))
    assert path.stat().st_mtime_ns == -5
    os.mkdir(place / "d")
    os.chmod(place / "d", 0o1777)
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o1777
    os.utime(place / "d", ns=(5, 7))
    assert (place / "d").stat().st_mtime_ns == 7


def test_attributes_of_source_files(source: Path) -> None:
    path = source / "one"
    number = path.stat().st_ino
    os.chmod(path, 0o755)
    os.utime(path, ns=(11, 22))
    found = path.stat()
    assert (found.st_mode & 0o777, found.st_mtime_ns, found.st_atime_ns, found.st_ino) == (0o755, 22, 11, number)
    assert path.read_text() == "one\n"
    number = (source / "tree").stat().st_ino
    os.chmod(source / "tree", 0o700)
    assert stat.S_IMODE((source / "tree").stat().st_mode) == 0o700
    assert (source / "tree").stat().st_ino == number
    assert (source / "tree/deep/leaf").read_text() == "leaf\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes owners")
def test_chown(source: Path) -> None:
    path = source / "f"
    path.write_text("x")
    os.chmod(path, 0o6755)
    os.chown(path, 1234, 5678)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
    os.chown(source / "two", 12, -1)
    assert ((source / "two").stat().st_uid, (source / "two").stat().st_gid) == (12, 0)
    (source / "l").symlink_to("f")
    os.lchown(source / "l", 5, 6)
    assert ((source / "l").lstat().st_uid, path.stat().st_uid) == (5, 1234)


def test_symlinks_have_times(place: Path) -> None:
    (place / "l").symlink_to("nowhere")
    os.utime(place / "l", ns=(3, 4), follow_symlinks=False)
    assert (place / "l").lstat().st_mtime_ns == 4
    assert os.readlink(place / "l") == "nowhere"
    assert (place / "l").lstat().st_size == 7
    with refused(errno.ENOENT):
        (place / "l").stat()
    long = "x" * 4095
    os.symlink(long, place / "long")
    assert os.readlink(place / "long") == long


def test_umask_and_setgid_directories(place: Path) -> None:
    old = os.umask(0o027)
    try:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)
    finally:
        os.umask(old)
    assert stat.S_IMODE((place / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((place / "d").stat().st_mode) == 0o750
    if os.geteuid() == 0:
        os.chown(place / "d", 0, 4321)
        os.chmod(place / "d", 0o2775)
        (place / "d" / "inner").write_text("x")
        (place / "d" / "sub").mkdir()
        assert (place / "d" / "inner").stat().st_gid == 4321
        assert (place / "d" / "sub").stat().st_gid == 4321
        assert (place / "d" / "sub").stat().st_mode & stat.S_ISGID


def test_modification_times_move(place: Path) -> None:
    path = place / "f"
    path.write_text("x")
    for act in (
        lambda: path.write_text("longer"),
        lambda: os.truncate(path, 1),
    ):
        os.utime(path, ns=(1, 1))
        act()
        assert path.stat().st_mtime_ns > 1
    os.utime(place, ns=(1, 1))
    (place / "g").write_text("")
    assert place.stat().st_mtime_ns > 1
    os.utime(place, ns=(1, 1))
    (place / "g").unlink()
    assert place.stat().st_mtime_ns > 1
    os.utime(place, ns=(1, 1))
    path.rename(place / "h")
    assert place.stat().st_mtime_ns > 1


def test_directory_of_a_source_gets_new_times(source: Path) -> None:
    before = source.stat().st_mtime_ns
    (source / "one").unlink()
    after = source.stat().st_mtime_ns
    assert after > before
    (source / "tree" / "new").write_text("x")
    assert (source / "tree").stat().st_mtime_ns >= after


def test_user_xattrs(source: Path) -> None:
    for path in (source, source / "two", source / "one", source / "tree"):
        os.setxattr(path, "user.comment", b"\0binary\xff")
        assert os.getxattr(path, "user.comment") == b"\0binary\xff"
        assert "user.comment" in os.listxattr(path)
        with refused(errno.EEXIST):
            os.setxattr(path, "user.comment", b"x", os.XATTR_CREATE)
        with refused(errno.ENODATA):
            os.setxattr(path, "user.other", b"x", os.XATTR_REPLACE)
        os.setxattr(path, "user.empty", b"")
        assert os.getxattr(path, "user.empty") == b""
        os.removexattr(path, "user.comment")
        with refused(errno.ENODATA):
            os.getxattr(path, "user.comment")
        with refused(errno.ENODATA):
            os.removexattr(path, "user.comment")
        with refused(errno.EOPNOTSUPP):
            os.setxattr(path, "user.clive.layer", b"x")
        assert os.getxattr(path, "user.clive.layer")
        assert os.listxattr(path) == ["user.empty"]


# Names


def test_rename_flags(place: Path) -> None:
    (place / "a").write_text("a")
    (place / "b").write_text("b")
    (place / "d").mkdir()
    (place / "d" / "in").write_text("in")
    with refused(errno.EEXIST):
        renameat2(place / "a", place / "b", RENAME_NOREPLACE)
    renameat2(place / "a", place / "c", RENAME_NOREPLACE)
    assert (place / "c").read_text() == "a"
    renameat2(place / "c", place / "b", RENAME_EXCHANGE)
    assert ((place / "c").read_text(), (place / "b").read_text()) == ("b", "a")
    renameat2(place / "c", place / "d", RENAME_EXCHANGE)
    assert ((place / "d").read_text(), (place / "c" / "in").read_text()) == ("b", "in")
    with refused(errno.ENOENT):
        renameat2(place / "b", place / "none", RENAME_EXCHANGE)
    with refused(errno.EINVAL):
        renameat2(place / "b", place / "none", RENAME_WHITEOUT)


def test_rename_of_source_entries(source: Path) -> None:
    numbers = {name: (source / name).stat().st_ino for name in ("one", "two", "tree")}
    renameat2(source / "one", source / "two", RENAME_EXCHANGE)
    assert ((source / "one").read_text(), (source / "two").read_text()) == ("two\n", "one\n")
    assert (source / "one").stat().st_ino == numbers["two"]
    renameat2(source / "one", source / "tree", RENAME_EXCHANGE)
    assert (source / "one/deep/leaf").read_text() == "leaf\n"
    (source / "one").rename(source / "moved")
    assert (source / "moved").stat().st_ino == numbers["tree"]
    assert (source / "moved/deep/leaf").read_text() == "leaf\n"
    (source / "moved/deep").rename(source / "up")
    assert (source / "up/leaf").read_text() == "leaf\n"
    assert sorted(os.listdir(source)) == ["moved", "tree", "two", "up"]
    (source / "up/leaf").rename(source / "two")
    assert (source / "two").read_text() == "leaf\n"


def test_rename_errors(place: Path) -> None:
    (place / "d/e").mkdir(parents=True)
    (place / "full/x").mkdir(parents=True)
    (place / "f").write_text("f")
    with refused(errno.EINVAL):
        os.rename(place / "d", place / "d/e/d")
    with refused(errno.ENOTEMPTY):
        os.rename(place / "d", place / "full")
    with refused(errno.EISDIR):
        os.rename(place / "f", place / "d")
    with refused(errno.ENOTDIR):
        os.rename(place / "d", place / "f")
    with refused(errno.ENOTEMPTY):
        os.rmdir(place / "full")
    with refused(errno.ENOTDIR):
        os.rmdir(place / "f")
    with refused(errno.EISDIR):
        os.unlink(place / "d")
    with refused(errno.EEXIST):
        os.mkdir(place / "f")
    with refused(errno.ENOENT):
        os.rename(place / "none", place / "f")
    with refused(errno.ENOTDIR):
        os.stat(place / "f" / "below")
    os.rename(place / "d/e", place / "full/x")
    os.rename(place / "f", place / "f")
    assert (place / "f").read_text() == "f"


def test_names_of_255_bytes(place: Path) -> None:
    longest, over = "n" * 255, "n" * 256
    (place / longest).write_text("x")
    assert os.listdir(place) == [longest]
    (place / "f").write_text("x")
    (place / "d").mkdir()
    for act in (
        lambda: os.stat(place / over),
        lambda: os.open(place / over, os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(place / over),
        lambda: os.mknod(place / over),
        lambda: os.symlink("x", place / over),
        lambda: os.link(place / "f", place / over),
        lambda: os.rename(place / "f", place / over),
        lambda: os.rename(place / over, place / "g"),
        lambda: os.unlink(place / over),
        lambda: os.rmdir(place / over),
        lambda: os.readlink(place / over),
        lambda: os.listdir(place / over),
        lambda: os.chmod(place / over, 0o600),
        lambda: os.truncate(place / over, 0),
        lambda: os.utime(place / over),
        lambda: os.setxattr(place / over, "user.a", b""),
    ):
        with refused(errno.ENAMETOOLONG):
            act()
    (place / longest).rename(place / ("m" * 255))
    (place / ("m" * 255)).unlink()


@pytest.mark.parametrize(
    "name", [b"\xff\xfe", b"new\nline", b"-rf", b" ", b"*", "ü".encode(), b"e\xcc\x81", b"\x01", b"a\\b"]
)
def test_odd_names(mounted: Bench, name: bytes) -> None:
    for where in PLACES.values():
        directory = os.fsencode(mounted.live / where)
        path = os.path.join(directory, name)
        with open(path, "wb") as file:
            file.write(b"odd")
        assert name in os.listdir(directory)
        with open(path, "rb") as file:
            assert file.read() == b"odd"
        os.unlink(path)
        assert name not in os.listdir(directory)


def test_paths_deeper_than_path_max(place: Path) -> None:
    """Made and removed by changing into each directory, as no path leads there."""
    name = "d" * 200
    depth = 30
    script = f"""
import os, sys
os.chdir(sys.argv[1])
for _ in range({depth}):
    os.mkdir({name!r}); os.chdir({name!r})
with open("leaf", "w") as file: file.write("deep")
assert open("leaf").read() == "deep"
os.rename("leaf", "leaf2"); os.link("leaf2", "leaf3"); os.symlink("leaf2", "leaf4")
os.chmod("leaf2", 0o600); os.setxattr("leaf2", "user.a", b"b"); os.truncate("leaf2", 2); os.utime("leaf2", (1, 1))
assert sorted(os.listdir(".")) == ["leaf2", "leaf3", "leaf4"], os.listdir(".")
assert open("leaf4").read() == "de"
os.mkdir("sub"); os.rename("sub", "../moved"); os.rmdir("../moved")
"""
    subprocess.run([sys.executable, "-c", script, str(place)], check=True, timeout=60)
    found = subprocess.run(["find", ".", "-name", "leaf*"], cwd=place, check=True, capture_output=True, timeout=60)
    assert found.stdout.count(b"\n") == 3
    subprocess.run(["rm", "-rf", name], cwd=place, check=True, timeout=60)
    assert os.listdir(place) == []


def test_hard_links(place: Path) -> None:
    (place / "a").write_text("a")
    os.link(place / "a", place / "b")
    (place / "d").mkdir()
    os.link(place / "b", place / "d" / "c")
    assert {(place / each).stat().st_ino for each in ("a", "b", "d/c")} == {(place / "a").stat().st_ino}
    assert (place / "a").stat().st_nlink == 3
    (place / "d/c").write_text("changed")
    assert (place / "a").read_text() == "changed"
    (place / "a").unlink()
    assert (place / "b").stat().st_nlink == 2
    os.rename(place / "b", place / "d/c")  # two names of one file: nothing happens
    assert (place / "b").exists()
    with refused(errno.EEXIST):
        os.link(place / "b", place / "d/c")
    with refused(errno.EPERM):
        os.link(place / "d", place / "e")


def test_hard_link_to_a_source_file(source: Path) -> None:
    number = (source / "one").stat().st_ino
    os.link(source / "one", source / "also")
    assert (source / "also").stat().st_ino == number == (source / "one").stat().st_ino
    assert (source / "one").stat().st_nlink == 2
    (source / "also").write_text("both")
    assert (source / "one").read_text() == "both"
    os.unlink(source / "one")
    assert (source / "also").stat().st_nlink == 1
    assert (source / "also").read_text() == "both"


def test_special_files(place: Path) -> None:
    os.mkfifo(place / "fifo")
    assert stat.S_ISFIFO((place / "fifo").stat().st_mode)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append((place / "fifo").read_bytes()))
    reader.start()
    (place / "fifo").write_bytes(b"through the fifo")
    reader.join(10)
    assert got == [b"through the fifo"]
    server = socket.socket(socket.AF_UNIX)
    client = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(place)
    try:
        server.bind("socket")
        server.listen()
        client.connect("socket")
    finally:
        os.chdir(here)
        server.close()
        client.close()
    assert stat.S_ISSOCK((place / "socket").stat().st_mode)
    (place / "socket").unlink()
    (place / "fifo").unlink()


def test_directory_that_changes_while_it_is_read(place: Path) -> None:
    count = 3000
    for i in range(count):
        (place / f"{i:05}").touch()
    seen: list[str] = []
    with os.scandir(place) as listing:
        for entry in listing:
            seen.append(entry.name)
            os.unlink(entry.path)
            if len(seen) % 100 == 0:
                (place / f"new{len(seen)}").touch()
    assert len(seen) == len(set(seen))
    assert {f"{i:05}" for i in range(count)} <= set(seen)
    subprocess.run(["rm", "-rf", str(place)], check=True)
    assert not place.exists()


def test_d_ino_is_st_ino(mounted: Bench) -> None:
    for where in ("", *PLACES.values(), "lib", "lib/thing/src", "over/sub"):
        with os.scandir(mounted.live / where) as listing:
            for entry in listing:
                assert entry.inode() == entry.stat(follow_symlinks=False).st_ino, entry.path
    done = mounted.run("ls -ai1 . | head -1; stat -c ' %i' .")
    first, second = done.stdout.split("\n")[:2]
    assert first.split()[0] == second.split()[0]


# Locks


def _try_lock(path: Path, how: str) -> bool:
    """Whether another process gets the lock at once."""
    script = (
        "import fcntl, sys\n"
        "f = open(sys.argv[1], 'r+b')\n"
        "try: getattr(fcntl, sys.argv[2])(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except OSError: sys.exit(3)\n"
    )
    return subprocess.run([sys.executable, "-c", script, str(path), how], check=False).returncode == 0


@pytest.mark.parametrize("how", ["flock", "lockf"])
def test_locks_between_processes(place: Path, how: str) -> None:
    path = place / f"lock-{how}"
    path.write_bytes(b"x")
    with path.open("r+b") as file:
        getattr(fcntl, how)(file, fcntl.LOCK_EX)
        assert not _try_lock(path, how)
        getattr(fcntl, how)(file, fcntl.LOCK_UN)
        assert _try_lock(path, how)
        getattr(fcntl, how)(file, fcntl.LOCK_EX)
    assert _try_lock(path, how)


# The filesystem


def test_statfs(place: Path) -> None:
    found = os.statvfs(place)
    assert found.f_namemax == 255
    assert found.f_blocks > found.f_bavail > 0
    assert found.f_bsize > 0
    flags = found.f_flag
    assert flags & os.ST_NOSUID
    assert flags & os.ST_NODEV
    assert not flags & os.ST_RDONLY


def test_fsync(place: Path) -> None:
    with (place / "f").open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        os.fdatasync(file.fileno())
    fd = os.open(place, os.O_RDONLY)
    os.fsync(fd)
    assert LIBC.syncfs(fd) == 0
    os.close(fd)


def test_inotify_of_the_mount_itself(place: Path) -> None:
    fd = LIBC.inotify_init1(os.O_NONBLOCK)
    assert LIBC.inotify_add_watch(fd, os.fsencode(place), 0xFFF) > 0
    (place / "f").write_text("x")
    (place / "f").rename(place / "g")
    (place / "g").unlink()
    data = os.read(fd, 65536)
    os.close(fd)
    masks = 0
    at = 0
    while at < len(data):
        masks |= int.from_bytes(data[at + 4 : at + 8], "little")
        at += 16 + int.from_bytes(data[at + 12 : at + 16], "little")
    for wanted in (0x100, 0x2, 0x8, 0x40, 0x80, 0x200):  # create, modify, close_write, moved from, moved to, delete
        assert masks & wanted


def test_numbers_are_the_same_after_a_remount(tmp_path: Path) -> None:
    with sample_workspace(tmp_path) as bench:
        (bench.live / "over/new").write_text("x")
        (bench.live / "lib/thing/README").chmod(0o600)
        (bench.live / "over/one.txt").rename(bench.live / "over/renamed")
        os.link(bench.live / "over/renamed", bench.live / "over/linked")

        def numbers() -> str:
            return bench.run("find over lib/thing plain.txt tests -printf '%P %i %n %m %T@ %s\\n' | sort").stdout

        before = numbers()
        bench.unmount()
        bench.mount()
        assert numbers() == before
