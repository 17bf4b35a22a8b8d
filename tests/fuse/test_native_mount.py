"""The native transport on a real mount: how it comes and goes, and which requests the kernel saves."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from clivefs.fuse import native_mount
from clivefs.fuse import native_protocol as wire
from clivefs.fuse.native import NativeTransport
from clivefs.fuse.native_requests import Handler, Later
from clivefs.fuse.operations import Operations
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Owner
from clivefs.mounts.view import View

pytestmark = pytest.mark.skipif(not os.access("/dev/fuse", os.R_OK | os.W_OK), reason="there is no /dev/fuse")


class Mounted:
    """A mount of a directory `w/d` with two files, its upper in *base*, that counts the requests by opcode."""

    def __init__(self, base: Path) -> None:
        os.umask(0)
        self.mountpoint = base / "mnt"
        self.mountpoint.mkdir()
        upper = base / "upper"
        upper.mkdir()
        lower = MemoryLower(owner=(os.geteuid(), os.getegid()))
        lower.file(b"d/b", b"b")
        lower.file(b"d/c", b"c")
        self.table = NodeTable()
        self.view = View(self.table, Owner(os.geteuid(), os.getegid()), 0)
        upper_fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY)
        self.tree = OverlayTree(lower, upper_fd, self.table, entry=b"e", source=b"m")
        self.view.add_workspace(b"w", self.tree)
        self.space_fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        self.operations = Operations(self.view, self.space_fd)
        self.transport = NativeTransport(self.operations)
        self.asked: Counter[int] = Counter()
        handlers = self.transport._handlers
        for opcode, handler in list(handlers.items()):
            handlers[opcode] = self._counting(opcode, handler)

    def _counting(self, opcode: int, handler: Handler) -> Handler:
        def call(nodeid: int, body: bytes, uid: int, gid: int) -> bytes | Later | None:
            self.asked[opcode] += 1
            return handler(nodeid, body, uid, gid)

        return call

    def outside(self, code: str) -> str:
        """What a Python program that runs in `w/d` prints.

        It changes there by itself: with `cwd` the new process would do so while this one, which has to answer,
        still stands still for it (vfork).
        """
        place = os.fspath(self.mountpoint / "w" / "d")
        command = [sys.executable, "-c", f"import os\nos.chdir({place!r})\n" + code]
        done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120, check=True)
        return done.stdout.strip()

    def listing(self) -> str:
        return self.outside("print(*sorted(os.listdir('.')))")

    @property
    def is_there(self) -> bool:
        return f" {self.mountpoint} " in Path("/proc/self/mountinfo").read_text()


@contextlib.contextmanager
def made(base: Path) -> Iterator[Mounted]:
    mounted = Mounted(base)
    try:
        yield mounted
    finally:
        mounted.transport.unmount()
        mounted.operations.close()
        mounted.tree.close()
        os.close(mounted.space_fd)
        assert not mounted.is_there


def served(base: Path, talk: Callable[[Mounted], None], *, allow_other: bool = False) -> None:
    """Run *talk* in a thread while the mount is served."""
    with made(base) as mounted:

        async def main() -> None:
            mounted.transport.mount(str(mounted.mountpoint), allow_other=allow_other)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mounted.transport.serve)
                try:
                    await trio.to_thread.run_sync(talk, mounted)
                finally:
                    mounted.transport.stop()

        trio.run(main)


def test_a_repeated_listing_costs_no_request_until_something_changes(tmp_path: Path) -> None:
    def talk(mounted: Mounted) -> None:
        assert mounted.listing() == "b c"
        before = mounted.asked.copy()
        assert mounted.listing() == "b c"
        reads = (wire.READDIR, wire.READDIRPLUS)
        assert [mounted.asked[each] - before[each] for each in reads] == [0, 0]

        mounted.outside("open('new', 'w').close(); os.unlink('b')")
        assert mounted.listing() == "c new"

        # Behind the kernel's back, as the daemon tells of it.
        number = os.stat(mounted.mountpoint / "w" / "d").st_ino
        node = mounted.table.get(number)
        trio.from_thread.run_sync(mounted.tree.unlink, node, b"c")
        mounted.transport.invalidate_entry(number, b"c")
        mounted.transport.invalidate_inode(number, False)
        assert mounted.listing() == "new"

    served(tmp_path, talk)


def test_a_listing_that_the_kernel_loses_on_the_way_repeats_and_leaves_out_nothing(tmp_path: Path) -> None:
    count = 3000

    def talk(mounted: Mounted) -> None:
        mounted.outside(f"for n in range({count}): open(f'{{n:05}}', 'w').close()")
        assert len(mounted.listing().split()) == count + 2
        place = os.fspath(mounted.mountpoint / "w" / "d")
        code = (
            f"import os\nlisting = os.scandir({place!r})\nfirst = [next(listing).name for _ in range(9)]\n"
            "print(*first, flush=True)\ninput()\nprint(*(each.name for each in listing))"
        )
        reader = subprocess.Popen(
            [sys.executable, "-c", code], cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        with reader:
            assert reader.stdin is not None
            assert reader.stdout is not None
            first = reader.stdout.readline().split()
            number = os.stat(place).st_ino
            node = mounted.table.get(number)
            for name in first[:5]:  # behind the kernel's back, as the daemon tells of it
                trio.from_thread.run_sync(mounted.tree.unlink, node, name.encode())
                mounted.transport.invalidate_entry(number, name.encode())
            mounted.transport.invalidate_inode(number, False)
            reader.stdin.write("\n")
            reader.stdin.flush()
            rest = reader.stdout.readline().split()
        assert sorted([*first, *rest]) == sorted(["b", "c", *(f"{n:05}" for n in range(count))])

    served(tmp_path, talk)


def test_listings_of_a_degraded_tree_are_read_each_time(tmp_path: Path) -> None:
    def talk(mounted: Mounted) -> None:
        mounted.tree.lower.degraded = True
        for _ in range(2):
            before = mounted.asked[wire.READDIR] + mounted.asked[wire.READDIRPLUS]
            assert mounted.listing() == "b c"
            assert mounted.asked[wire.READDIR] + mounted.asked[wire.READDIRPLUS] > before

    served(tmp_path, talk)


def test_inode_numbers_of_listings_are_those_of_stat(tmp_path: Path) -> None:
    def talk(mounted: Mounted) -> None:
        code = "print(all(each.inode() == os.stat(each.name).st_ino for each in os.scandir('.')))"
        assert mounted.outside(code) == "True"
        assert mounted.outside(code) == "True"

    served(tmp_path, talk)


def test_serving_ends_when_the_mount_is_taken_away(tmp_path: Path) -> None:
    with made(tmp_path) as mounted:

        async def main() -> None:
            mounted.transport.mount(str(mounted.mountpoint), allow_other=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mounted.transport.serve)
                await trio.to_thread.run_sync(mounted.listing)
                command = ["fusermount3", "-u", "-z", str(mounted.mountpoint)]
                await trio.to_thread.run_sync(lambda: subprocess.run(command, check=True))
                # and now `serve` returns by itself

        trio.run(main)
        assert not mounted.is_there


def test_large_reads_and_writes(tmp_path: Path) -> None:
    def talk(mounted: Mounted) -> None:
        code = (
            "data = bytes(range(256)) * 20001\n"
            "with open('big', 'wb') as file: file.write(data); os.fsync(file.fileno())\n"
            "fd = os.open('big', os.O_RDONLY)\n"
            "print(os.fstat(fd).st_size, os.read(fd, 1 << 30) == data)"
        )
        assert mounted.outside(code) == f"{256 * 20001} True"

    served(tmp_path, talk)


_SET_ID_CHANGES = {
    "write": "fd = os.open('f', os.O_WRONLY); os.write(fd, b'new')",
    "truncate": "os.truncate('f', 2)",
    "ftruncate": "fd = os.open('f', os.O_WRONLY); os.ftruncate(fd, 2)",
    "open": "os.open('f', os.O_WRONLY | os.O_TRUNC)",
}


@pytest.mark.parametrize("change", sorted(_SET_ID_CHANGES))
@pytest.mark.parametrize("mode", [0o6777, 0o2767, 0o4777])
def test_a_file_that_is_changed_loses_its_set_user_id(tmp_path: Path, change: str, mode: int) -> None:
    root = os.geteuid() == 0

    def after(mounted: Mounted, become: str) -> int:
        mounted.outside(f"open('f', 'w').write('old'); os.chmod('f', 0o{mode:o})")
        told = mounted.outside(f"{become}\n{_SET_ID_CHANGES[change]}\nprint(os.stat('f').st_mode & 0o7777)")
        assert int(told) == os.stat(tmp_path / "upper" / "tree" / "d" / "f").st_mode & 0o7777
        return int(told)

    def talk(mounted: Mounted) -> None:
        without = 0o777 if mode & 0o10 else mode & ~0o4000  # who may not execute as the group keeps the mark
        assert after(mounted, "os.setuid(65534)" if root else "") == without
        if root:  # who has CAP_FSETID keeps both
            assert after(mounted, "") == mode

    tmp_path.chmod(0o755)
    served(tmp_path, talk, allow_other=root)


def test_writing_does_not_ask_for_capabilities_each_time(tmp_path: Path) -> None:
    def talk(mounted: Mounted) -> None:
        mounted.outside("fd = os.open('f', os.O_WRONLY | os.O_CREAT)\nfor _ in range(50): os.write(fd, b'x')")
        assert mounted.asked[wire.WRITE] == 50
        assert mounted.asked[wire.GETXATTR] <= 1

    served(tmp_path, talk)


def test_mounting_without_the_right_to_goes_through_fusermount3(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native_mount, "_mount_directly", lambda *_: None)
    served(tmp_path, lambda mounted: None if mounted.listing() == "b c" else pytest.fail("another listing"))


def test_a_refused_mount_says_why(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(RuntimeError, match="missing"):
        native_mount.mount(missing, allow_other=False)
    with pytest.raises(RuntimeError, match="missing"):
        native_mount._mount_by_program(missing, allow_other=False)


def test_answering_leaves_time_for_the_other_tasks(tmp_path: Path) -> None:
    turns: list[float] = []

    with made(tmp_path) as mounted:

        async def tick() -> None:
            while True:
                turns.append(time.monotonic())
                await trio.sleep(0.001)

        async def main() -> None:
            mounted.transport.mount(str(mounted.mountpoint), allow_other=False)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mounted.transport.serve)
                nursery.start_soon(tick)
                code = "for n in range(5000):\n try: os.listxattr('b')\n except OSError: pass"
                await trio.to_thread.run_sync(mounted.outside, code)
                nursery.cancel_scope.cancel()

        trio.run(main)
        assert mounted.asked[wire.LISTXATTR] >= 5000
        assert len(turns) > 10
