"""What cannot be told at once is waited for, and neither the mount nor the user's git pays for it."""

from __future__ import annotations

import mmap
import os
import socket
import threading
import time
from pathlib import Path

import pytest
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount


def entry(source: str, *more: str) -> str:
    return "\n".join(['[workspace]\nname = "shop"\n', "[mounts.lib]", f'git = "{source}"', *more, ""])


def lazy(bench: Bench, name: str, files: dict[str, str | bytes]) -> Path:
    path = bench.repository(name, files)
    bench.git("config", "uploadpack.allowFilter", "true", cwd=path)
    bench.git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=path)
    return path


def test_a_root_tree_that_takes_long_to_read(bench: Bench) -> None:
    count = 16_000  # over 1 MiB
    bench.repository("thing", {f"a-name-that-is-long-enough-to-fill-a-tree-{each:06}": "x" for each in range(count)})
    bench.write_toml(entry("../thing"))
    bench.mount()
    assert bench.entry("lib")["state"] == "mounted"
    assert len(os.listdir(bench.live / "lib")) == count + 1
    bench.check_sound()


def test_a_followed_ref_moves_though_somebody_has_looked_into_a_submodule(bench: Bench) -> None:
    inner = bench.repository("inner", {"in.txt": "in\n"})
    thing = bench.repository("thing", {"a": "a\n"})
    bench.git("-c", "protocol.file.allow=always", "submodule", "add", "-q", inner, "sub", cwd=thing)
    bench.git("commit", "-qm", "sub", cwd=thing)
    bench.write_toml(entry("../thing", 'ref = "main"', "follow = true"))
    bench.mount()
    assert os.listdir(bench.live / "lib/sub") == ["in.txt"]
    (thing / "a").write_text("changed\n")
    bench.git("commit", "-qam", "second", cwd=thing)
    until(lambda: (bench.live / "lib/a").read_text() == "changed\n", "the new commit")
    assert bench.git("status", "--porcelain", cwd=bench.live / "lib") == ""
    assert (bench.live / "lib/sub/in.txt").read_text() == "in\n"
    bench.check_sound()


def test_a_dry_run_leaves_head_alone(bench: Bench) -> None:
    thing = bench.repository("thing", {"a": "a\n"})
    bench.git("branch", "v1", cwd=thing)
    (thing / "a").write_text("changed\n")
    bench.git("commit", "-qam", "second", cwd=thing)
    bench.write_toml(entry("../thing", 'ref = "v1"'))
    bench.mount()
    head = bench.git("rev-parse", "HEAD", cwd=bench.live / "lib")
    bench.cli("replace", "lib", f"git+{thing}", "--ref", "main", "--dry-run", cwd=bench.live)
    assert bench.git("rev-parse", "HEAD", cwd=bench.live / "lib") == head
    assert bench.git("status", "--porcelain", cwd=bench.live / "lib") == ""
    bench.check_sound()


def test_a_source_whose_sizes_are_not_known_is_replaced(bench: Bench) -> None:
    remote = lazy(bench, "remote", {"a": "a\n", "b": "b\n", "d/x": "x\n"})
    other = bench.repository("other", {"a": "other\n", "d/x": "y\n"})
    bench.write_toml(entry(f"file://{remote}", 'blobs = "lazy"', "git_dir = false"))
    bench.mount()
    assert sorted(os.listdir(bench.live / "lib")) == ["a", "b", "d"]
    inside = os.open(bench.live / "lib/d", os.O_RDONLY)
    try:
        bench.cli("replace", "lib", f"git+{other}", cwd=bench.live)
        assert sorted(os.listdir(bench.live / "lib")) == ["a", "d"]
        assert (bench.live / "lib/d/x").read_text() == "y\n"
        assert os.stat(bench.live / "lib/d").st_ino == os.fstat(inside).st_ino
    finally:
        os.close(inside)
    bench.check_sound()


def test_what_git_says_while_it_fetches_goes_nowhere_else(bench: Bench) -> None:
    """The descriptor on which a starting daemon tells its progress is another file's soon."""
    remote = lazy(bench, "remote", {f"d{each}/x": f"{each}\n" for each in range(5)})
    bench.write_toml(entry(f"file://{remote}", 'blobs = "lazy"', "git_dir = false"))
    bench.mount()
    taken = [open(bench.live / f"own{each}", "w+") for each in range(40)]  # noqa: SIM115
    for each in range(5):
        assert (bench.live / f"lib/d{each}/x").read_text() == f"{each}\n"
    for file in taken:
        assert file.read() == ""
        file.close()
    assert not [name for name in os.listdir(bench.root) if os.path.getsize(bench.root / name) and name != "Clive.toml"]
    bench.check_sound()


def test_many_open_the_same_large_file_for_writing_at_once(bench: Bench) -> None:
    content = os.urandom(8 << 20)
    write_files(bench.base / "data", {"large": content})
    bench.write_toml('[workspace]\nname = "shop"\n\n[mounts.over]\nlocal = "../data"\nwrite = "overlay"\n')
    bench.mount()
    failed: list[OSError] = []

    def append() -> None:
        try:
            with open(bench.live / "over/large", "ab", buffering=0) as file:
                file.write(b"x")
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=append) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failed
    assert (bench.live / "over/large").read_bytes() == content + b"x" * 8
    assert list(bench.store.glob("uppers/*/*/work/*")) == []
    bench.check_sound()


def test_a_directory_above_an_entry_keeps_its_number_from_mount_to_mount(bench: Bench) -> None:
    write_files(bench.base / "data", {"f": "f\n"})
    write_files(bench.root, {"lib/own": "own\n"})
    bench.write_toml(
        '[workspace]\nname = "shop"\nwrite = "overlay"\n\n[mounts."lib/x"]\nlocal = "../data"\nwrite = "overlay"\n'
    )
    bench.mount()
    number = (bench.live / "lib").stat().st_ino
    (bench.live / "lib/new").write_text("copied up\n")
    assert (bench.live / "lib").stat().st_ino == number
    bench.unmount()
    bench.mount()
    assert (bench.live / "lib").stat().st_ino == number
    bench.check_sound()


def test_a_mapping_of_a_file_that_is_open_for_appending(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    (bench.root / "log").write_bytes(b"x" * 8192)
    bench.mount()
    fd = os.open(bench.live / "log", os.O_RDWR | os.O_APPEND)
    with mmap.mmap(fd, 8192) as mapped:
        mapped[0:4] = b"MMAP"
        mapped.flush()
    os.write(fd, b"end")
    os.close(fd)
    assert (bench.root / "log").read_bytes() == b"MMAP" + b"x" * 8188 + b"end"
    bench.check_sound()


def test_unmounting_does_not_wait_for_a_remote_that_does_not_answer(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"git+git://127.0.0.1:{silent.getsockname()[1]}/x"
        attaching = threading.Thread(target=lambda: bench.cli("attach", "far", url, check=False))
        attaching.start()
        connection, _ = silent.accept()
        began = time.monotonic()
        bench.unmount()
        assert time.monotonic() - began < 25  # the network's own limit is 30 s
        connection.close()
        attaching.join()
    bench.check_sound(allowed="git")
