"""The messages of the native transport, with a socket for the device and the test for the kernel."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import trio

from clivefs.fuse import native_protocol as wire
from clivefs.fuse.native import NativeTransport
from clivefs.fuse.operations import Operations
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, Blocked, Node, Owner
from clivefs.mounts.view import View

ROOT = 1


class Kernel:
    """Sends requests to a transport over a tree in memory, and reads its answers."""

    def __init__(self) -> None:
        self.device, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        self.device.settimeout(10)
        lower = MemoryLower()
        lower.file(b"a", b"content of a")
        lower.file(b"d/b", b"b")
        lower.file(b"d/c", b"c")
        self.table = NodeTable()
        self.view = View(self.table, Owner(os.geteuid(), os.getegid()), 0)
        self.tree = OverlayTree(lower, None, self.table, entry=b"e", source=b"m")
        self.view.add_workspace(b"w", self.tree)
        self._space_fd = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        self.operations = Operations(self.view, self._space_fd)
        self.transport = NativeTransport(self.operations)
        self.transport.attach(self.theirs.fileno())
        self._unique = 2

    def close(self) -> None:
        self.operations.close()
        self.device.close()
        self.theirs.close()
        os.close(self._space_fd)

    def send(self, opcode: int, nodeid: int, body: bytes = b"", *, pid: int = 0) -> int:
        self._unique += 2
        size = wire.IN_HEADER.size + len(body)
        header = wire.IN_HEADER.pack(size, opcode, self._unique, nodeid, os.geteuid(), os.getegid(), pid, 0, 0)
        self.device.send(header + body)
        return self._unique

    def answer(self) -> tuple[int, int, bytes]:
        """(unique, error, body)"""
        data = self.device.recv(2 << 20)
        size, error, unique = wire.OUT_HEADER.unpack_from(data)
        assert size == len(data)
        return unique, -error, data[wire.OUT_HEADER.size :]

    def ask(self, opcode: int, nodeid: int = ROOT, body: bytes = b"") -> bytes:
        """The body of the answer; raises what the asker would see."""
        unique = self.send(opcode, nodeid, body)
        told, error, answer = self.answer()
        assert told == unique
        if error:
            raise OSError(error, os.strerror(error))
        return answer

    def lookup(self, *names: bytes) -> int:
        number = ROOT
        for name in names:
            (number,) = wire.U64.unpack_from(self.ask(wire.LOOKUP, number, name + b"\0"))
        return number

    def flags_of_opendir(self, nodeid: int) -> int:
        handle, flags = wire.OPEN_OUT.unpack(self.ask(wire.OPENDIR, nodeid, bytes(8)))
        self.ask(wire.RELEASEDIR, nodeid, wire.U64.pack(handle) + bytes(16))
        return int(flags)


def serving(talk: Callable[[Kernel], None]) -> None:
    """Run *talk* in a thread while the transport serves it."""
    kernel = Kernel()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.transport.serve)
            try:
                await trio.to_thread.run_sync(talk, kernel)
            finally:
                kernel.transport.stop()

    try:
        trio.run(main)
    finally:
        kernel.close()


def entries_of(data: bytes, *, plus: bool) -> list[tuple[bytes, int, int]]:
    """(name, inode number, type) of a listing."""
    found = []
    at = 0
    while at < len(data):
        at += wire.ENTRY_SIZE if plus else 0
        ino, _, length, kind = wire.DIRENT.unpack_from(data, at)
        start = at + wire.DIRENT.size
        found.append((data[start : start + length], ino, kind))
        at += wire.dirent_size(data[start : start + length])
    return found


def test_init_takes_what_the_kernel_offers_of_what_we_want() -> None:
    def talk(kernel: Kernel) -> None:
        offered = wire.MAX_PAGES_FLAG | wire.ATOMIC_O_TRUNC | 1 << 16
        answer = kernel.ask(wire.INIT, 0, wire.INIT_IN.pack(7, 45, 131072, offered) + bytes(48))
        major, minor, readahead, flags, _, _, max_write, _, max_pages, *_ = wire.INIT_OUT.unpack(answer)
        assert (major, minor, readahead, max_write, max_pages) == (7, 34, 131072, 1 << 20, 256)
        assert flags == wire.MAX_PAGES_FLAG | wire.ATOMIC_O_TRUNC

    serving(talk)


@pytest.mark.warns
def test_init_of_another_protocol_is_refused() -> None:
    def talk(kernel: Kernel) -> None:
        with pytest.raises(OSError) as refused:
            kernel.ask(wire.INIT, 0, wire.INIT_IN.pack(8, 0, 0, 0))
        assert refused.value.errno == errno.EPROTO

    serving(talk)


@pytest.mark.parametrize("opcode", [31, 34, 37, 39, 40, 43, 46, 47, 50, 51, 52, 4096])
def test_unknown_requests_are_not_implemented(opcode: int) -> None:
    def talk(kernel: Kernel) -> None:
        with pytest.raises(OSError) as refused:
            kernel.ask(opcode, ROOT, bytes(64))
        assert refused.value.errno == errno.ENOSYS

    serving(talk)


@pytest.mark.warns
@pytest.mark.parametrize("opcode", [wire.GETATTR, wire.READ, wire.SETATTR, wire.WRITE, wire.RENAME2, wire.SETXATTR])
def test_a_message_that_is_too_short_is_an_error_and_not_the_end(opcode: int, caplog: pytest.LogCaptureFixture) -> None:
    def talk(kernel: Kernel) -> None:
        with pytest.raises(OSError):
            kernel.ask(opcode, 12345, b"\x01")
        assert kernel.lookup(b"w")

    serving(talk)


def test_attributes_and_content() -> None:
    def talk(kernel: Kernel) -> None:
        number = kernel.lookup(b"w", b"a")
        attr = kernel.ask(wire.GETATTR, number, bytes(16))
        assert len(attr) == 104
        told, size = struct.unpack_from("=QQ", attr, 16)
        (mode,) = struct.unpack_from("=I", attr, 16 + 60)
        assert (told, size, stat.S_IFMT(mode)) == (number, 12, stat.S_IFREG)
        handle, _ = wire.OPEN_OUT.unpack(kernel.ask(wire.OPEN, number, bytes(8)))
        assert kernel.ask(wire.READ, number, wire.READ_IN.pack(handle, 8, 100) + bytes(20)) == b"of a"
        assert kernel.ask(wire.FLUSH, number, wire.U64.pack(handle) + bytes(16)) == b""
        assert kernel.ask(wire.RELEASE, number, wire.U64.pack(handle) + bytes(16)) == b""

    serving(talk)


def test_it_knows_when_it_was_last_asked() -> None:
    """Whoever computes in a thread gives way then."""

    def talk(kernel: Kernel) -> None:
        before_s = time.monotonic()
        kernel.lookup(b"w", b"a")
        kernel.lookup(b"w", b"a")  # before which the first was noted, at the latest
        assert before_s <= kernel.transport.asked_s <= time.monotonic()

    serving(talk)


def test_an_absent_name_is_an_entry_without_number() -> None:
    def talk(kernel: Kernel) -> None:
        answer = kernel.ask(wire.LOOKUP, kernel.lookup(b"w"), b"nothing\0")
        nodeid, _, entry_s = struct.unpack_from("=QQQ", answer)
        assert (len(answer), nodeid, entry_s) == (128, 0, 86400)

    serving(talk)


def test_listings_count_references_as_the_kernel_does() -> None:
    def talk(kernel: Kernel) -> None:
        directory = kernel.lookup(b"w", b"d")
        before = len(kernel.table)
        body = bytes(8)
        handle, _ = wire.OPEN_OUT.unpack(kernel.ask(wire.OPENDIR, directory, body))
        question = wire.READ_IN.pack(handle, 0, 4096) + bytes(20)
        plain = entries_of(kernel.ask(wire.READDIR, directory, question), plus=False)
        assert sorted(name for name, _, _ in plain) == [b".", b"..", b"b", b"c"]
        assert len(kernel.table) == before
        plus = entries_of(kernel.ask(wire.READDIRPLUS, directory, question), plus=True)
        assert plus == plain
        assert {name: kind for name, _, kind in plain} == {b".": 4, b"..": 4, b"b": 8, b"c": 8}
        assert len(kernel.table) == before + 2
        forget = wire.BATCH_FORGET_IN.pack(2) + b"".join(wire.FORGET_ONE.pack(ino, 1) for _, ino, _ in plus[2:])
        kernel.send(wire.BATCH_FORGET, 0, forget)
        kernel.ask(wire.RELEASEDIR, directory, wire.U64.pack(handle) + bytes(16))
        assert len(kernel.table) == before

    serving(talk)


@pytest.mark.parametrize("opcode", [wire.READDIR, wire.READDIRPLUS])
def test_a_listing_is_whole_whatever_fits(opcode: int) -> None:
    def talk(kernel: Kernel) -> None:
        directory = kernel.lookup(b"w", b"d")
        handle, _ = wire.OPEN_OUT.unpack(kernel.ask(wire.OPENDIR, directory, bytes(8)))
        names: list[bytes] = []
        position = 0
        while True:
            question = wire.READ_IN.pack(handle, position, 170) + bytes(20)
            data = kernel.ask(opcode, directory, question)
            found = entries_of(data, plus=opcode == wire.READDIRPLUS)
            if not found:
                break
            names += [name for name, _, _ in found]
            last = len(data) - wire.dirent_size(names[-1])
            position = wire.DIRENT.unpack_from(data, last)[1]
        assert names[:2] == [b".", b".."]
        assert sorted(names[2:]) == [b"b", b"c"]

    serving(talk)


def test_listings_are_kept_where_changes_are_noticed() -> None:
    def talk(kernel: Kernel) -> None:
        directory = kernel.lookup(b"w", b"d")
        keep = wire.FOPEN_CACHE_DIR | wire.FOPEN_KEEP_CACHE
        assert kernel.flags_of_opendir(directory) == keep
        kernel.tree.lower.degraded = True
        assert kernel.flags_of_opendir(directory) == 0
        kernel.tree.lower.degraded = False
        kernel.tree.told_of = lambda node: False  # type: ignore[method-assign]
        assert kernel.flags_of_opendir(directory) == wire.FOPEN_CACHE_DIR
        assert kernel.flags_of_opendir(ROOT) == 0

    serving(talk)


def test_one_open_handle_of_a_directory_takes_part_in_keeping_its_listing() -> None:
    def talk(kernel: Kernel) -> None:
        directory = kernel.lookup(b"w", b"d")
        handle, flags = wire.OPEN_OUT.unpack(kernel.ask(wire.OPENDIR, directory, bytes(8)))
        assert flags & wire.FOPEN_CACHE_DIR
        for _ in range(2):
            assert kernel.flags_of_opendir(directory) == wire.FOPEN_KEEP_CACHE
        assert kernel.flags_of_opendir(kernel.lookup(b"w")) & wire.FOPEN_CACHE_DIR
        kernel.ask(wire.RELEASEDIR, directory, wire.U64.pack(handle) + bytes(16))
        assert kernel.flags_of_opendir(directory) & wire.FOPEN_CACHE_DIR

    serving(talk)


def test_extended_attributes_tell_their_size_first() -> None:
    def talk(kernel: Kernel) -> None:
        number = kernel.lookup(b"w", b"a")

        def get(size: int) -> bytes:
            return kernel.ask(wire.GETXATTR, number, wire.XATTR_IN.pack(size, 0) + b"user.clive.layer\0")

        (size,) = wire.SIZE_OUT.unpack(get(0))
        value = get(size)
        assert len(value) == size > 0
        with pytest.raises(OSError) as refused:
            get(size - 1)
        assert refused.value.errno == errno.ERANGE

    serving(talk)


def blocking(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Let every lookup in the workspace wait for the event."""
    event = threading.Event()
    real = kernel.view.lookup

    def wait() -> None:
        assert event.wait(30)

    def lookup(directory: Node, name: bytes) -> tuple[Node, Attr]:
        if directory.tree is kernel.tree and not event.is_set():
            raise Blocked(wait, "waiting", timeout_s=30)
        return real(directory, name)

    monkeypatch.setattr(kernel.view, "lookup", lookup)
    return event


def test_one_that_waits_does_not_keep_out_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(kernel: Kernel) -> None:
        workspace = kernel.lookup(b"w")
        event = blocking(kernel, monkeypatch)
        waiting = kernel.send(wire.LOOKUP, workspace, b"a\0")
        assert kernel.lookup(b"w") == workspace
        event.set()
        unique, error, answer = kernel.answer()
        assert (unique, error, len(answer)) == (waiting, 0, 128)

    serving(talk)


def test_only_the_killed_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def talk(kernel: Kernel) -> None:
        workspace = kernel.lookup(b"w")
        event = blocking(kernel, monkeypatch)
        ended = subprocess.Popen(["true"])
        ended.wait()
        patient = kernel.send(wire.LOOKUP, workspace, b"a\0", pid=os.getpid())
        killed = kernel.send(wire.LOOKUP, workspace, b"d\0", pid=ended.pid)
        kernel.send(wire.INTERRUPT, 0, wire.U64.pack(patient))
        kernel.send(wire.INTERRUPT, 0, wire.U64.pack(killed))
        kernel.send(wire.INTERRUPT, 0, wire.U64.pack(999))
        assert kernel.answer()[:2] == (killed, errno.EINTR)
        event.set()
        assert kernel.answer()[:2] == (patient, 0)

    serving(talk)


@pytest.mark.warns
def test_a_defect_is_an_error_for_its_asker_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError

    def talk(kernel: Kernel) -> None:
        monkeypatch.setattr(kernel.view, "readlink", broken)
        with pytest.raises(OSError) as refused:
            kernel.ask(wire.READLINK, ROOT)
        assert refused.value.errno == errno.EIO
        assert kernel.lookup(b"w")
        assert "ZeroDivisionError" in caplog.text

    serving(talk)


def test_notifications_are_messages_without_number() -> None:
    kernel = Kernel()
    kernel.transport.invalidate_inode(7, True)
    kernel.transport.invalidate_inode(7, False)
    kernel.transport.invalidate_entry(7, b"name")
    header = wire.OUT_HEADER.size
    attributes, pages, entry = (kernel.device.recv(100) for _ in range(3))
    assert wire.OUT_HEADER.unpack_from(attributes) == (40, 2, 0)
    assert wire.INVAL_INODE_OUT.unpack(attributes[header:]) == (7, -1, 0)
    assert wire.INVAL_INODE_OUT.unpack(pages[header:]) == (7, 0, 0)
    assert wire.OUT_HEADER.unpack_from(entry) == (37, 3, 0)
    kernel.close()
    assert entry[header:] == struct.pack("=QII", 7, 4, 0) + b"name\0"
