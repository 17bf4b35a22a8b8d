"""Reads that must not wait for a disk, on filesystems that can say so and on those that cannot."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.mounts.host import residency
from clivefs.mounts.host.calls import HostFile

CONTENT = bytes(range(251)) * 800


@pytest.fixture
def overlayfs(tmp_path: Path) -> Iterator[Path]:
    """A directory of the kernel's overlayfs, which knows no RWF_NOWAIT."""
    if os.geteuid() != 0:
        pytest.skip("mounting an overlayfs takes root")
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    options = f"lowerdir={tmp_path}/lower,upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    merged = tmp_path / "merged"
    done = subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, merged], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip(f"no overlayfs here: {done.stderr.decode()}")
    try:
        yield merged
    finally:
        subprocess.run(["umount", "-l", merged], check=True)


def drop_from_memory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def opened(path: Path) -> HostFile:
    return HostFile(os.open(path, os.O_RDONLY))


def reads_what_is_there(path: Path) -> None:
    file = opened(path)
    try:
        for _ in range(2):
            for offset, size in ((0, 10), (1, 5000), (4090, 20), (0, len(CONTENT)), (len(CONTENT) - 3, 100)):
                assert file.read_at_once(offset, size) == CONTENT[offset : offset + size]
            assert file.read_at_once(len(CONTENT), 100) == b""
            assert file.read_at_once(len(CONTENT) + 9000, 100) == b""
    finally:
        file.close()


def test_what_is_in_memory_is_read_at_once(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    reads_what_is_there(tmp_path / "f")


def test_on_a_filesystem_that_cannot_say_it_the_pages_are_asked_for() -> None:
    fd = os.memfd_create("clivefs-test")  # on tmpfs
    os.write(fd, CONTENT)
    with pytest.raises(residency.CannotTell):
        residency.read_nowait(fd, 0, 10)
    path = Path(f"/proc/self/fd/{fd}")
    reads_what_is_there(path)
    os.ftruncate(fd, 10 << 20)
    file = opened(path)
    assert file.read_at_once(0, 4096) == CONTENT[:4096]
    assert file.read_at_once(5 << 20, 4096) is None  # a hole has no pages
    assert file.read_at_once(0, 6 << 20) is None
    file.close()
    os.close(fd)


def test_on_overlayfs_what_is_not_in_memory_is_left_to_a_thread(overlayfs: Path) -> None:
    (overlayfs.parent / "upper" / "f").write_bytes(CONTENT)
    drop_from_memory(overlayfs.parent / "upper" / "f")
    file = opened(overlayfs / "f")
    assert file.read_at_once(0, 5000) is None
    assert file.read(0, len(CONTENT)) == CONTENT
    assert file.read_at_once(0, 5000) == CONTENT[:5000]
    file.close()


def test_where_nothing_can_be_known_every_read_is_left_to_a_thread() -> None:
    file = opened(Path("/proc/version"))  # has no pages, and its filesystem says nothing
    assert file.read_at_once(0, 100) is None
    assert file.read_at_once(0, 100) is None
    assert file.read(0, 100)
    file.close()


def test_pages_of_others_files_prove_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    file = opened(tmp_path / "f")
    assert residency.is_answerable(file.fd)
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert not residency.is_answerable(file.fd)
    file.close()
