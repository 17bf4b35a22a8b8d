"""Requests without a kernel: replies, references, caching, and waiting."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from clivefs.fuse import listing
from clivefs.fuse.operations import CACHE_S, DEGRADED_CACHE_S, Entry, Operations
from clivefs.mounts.journal import Journal
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.tree import Attr, Blocked, Owner, SetAttr
from clivefs.mounts.view import View

OWNER = Owner(os.geteuid(), os.getegid())


class Kernel:
    """Asks as the kernel does, and counts the references that it was given."""

    def __init__(self, upper: Path | None = None, lower: MemoryLower | None = None) -> None:
        os.umask(0)
        self.lower = lower or MemoryLower()
        self.table = NodeTable()
        self.view = View(self.table, OWNER, 0)
        fd = os.open(upper, os.O_RDONLY | os.O_DIRECTORY) if upper is not None else None
        self.lower.file(b"a", b"content of a")
        self.lower.file(b"d/b", b"b")
        self.tree = OverlayTree(self.lower, fd, self.table, entry=b"e", source=b"m")
        self.view.add_workspace(b"w", self.tree)
        self.operations = Operations(self.view, os.open("/", os.O_RDONLY | os.O_DIRECTORY))
        self.references: dict[int, int] = {}

    def lookup(self, *names: bytes) -> Entry:
        number = 1
        for name in names:
            entry = self.operations.lookup(number, name)
            if entry.nodeid:
                self.references[entry.nodeid] = self.references.get(entry.nodeid, 0) + 1
            number = entry.nodeid
        return entry

    def list_all(self, number: int, room: int = 1000) -> list[bytes]:
        handle = self.operations.opendir(number)
        found: list[bytes] = []
        offset = 0
        while True:
            got: list[tuple[bytes, int, int]] = []

            def add(name: bytes, entry: Entry, position: int, got: list[tuple[bytes, int, int]] = got) -> bool:
                if len(got) == room:
                    return False
                got.append((name, entry.nodeid, position))
                return True

            self.operations.readdir(handle, offset, add)
            if not got:
                break
            for name, nodeid, position in got:
                offset = position
                found.append(name)
                if name not in (b".", b".."):
                    self.references[nodeid] = self.references.get(nodeid, 0) + 1
        self.operations.releasedir(handle)
        return found

    def forget_all(self) -> None:
        for nodeid, count in self.references.items():
            self.operations.forget(nodeid, count)
        self.references.clear()


class ClosedLower(MemoryLower):
    """Names can be had, the attributes of `b` cannot: as of a directory that may be read but not searched."""

    failure = errno.EACCES

    def attr(self, ref: LowerRef, *, fetch: bool) -> Attr:
        if self.path(ref) == b"d/b":
            raise OSError(self.failure, os.strerror(self.failure))
        return super().attr(ref, fetch=fetch)


@pytest.mark.parametrize("failure", [errno.EACCES, errno.EIO, errno.EMFILE, errno.ENOENT, errno.ESTALE])
def test_only_what_is_gone_is_left_out_of_a_listing(failure: int) -> None:
    lower = ClosedLower()
    lower.failure = failure
    kernel = Kernel(lower=lower)
    lower.file(b"d/c", b"c")
    directory = kernel.lookup(b"w", b"d").nodeid
    gone = failure in (errno.ENOENT, errno.ESTALE)
    assert kernel.list_all(directory) == [b".", b".."] + ([] if gone else [b"b"]) + [b"c"]
    assert kernel.references.pop(0, 0) == (0 if gone else 1)  # number 0: nothing that the kernel could refer to
    kernel.forget_all()
    assert kernel.table.find(directory) is None


def test_an_absent_name_is_remembered_as_absent() -> None:
    kernel = Kernel()
    workspace = kernel.lookup(b"w").nodeid
    entry = kernel.operations.lookup(workspace, b"nothing")
    assert entry == Entry(0, None, CACHE_S, 0.0)


def test_absent_names_can_be_taken_back_and_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clivefs.fuse.operations.ABSENT_NAMES_MAX", 2)
    kernel = Kernel()
    workspace = kernel.lookup(b"w").nodeid
    timeouts = [kernel.operations.lookup(workspace, name).entry_timeout_s for name in (b"x", b"y", b"x", b"z")]
    assert timeouts == [CACHE_S, CACHE_S, CACHE_S, DEGRADED_CACHE_S]
    assert sorted(kernel.operations.take_absent_names()) == [(workspace, b"x"), (workspace, b"y")]
    assert kernel.operations.take_absent_names() == []
    assert kernel.operations.lookup(workspace, b"z").entry_timeout_s == CACHE_S


@pytest.mark.parametrize("room", [1, 2, 3, 1000])
def test_a_listing_is_whole_whatever_fits_into_one_reply(room: int) -> None:
    kernel = Kernel()
    workspace = kernel.lookup(b"w").nodeid
    assert sorted(kernel.list_all(workspace, room)) == [b".", b"..", b"a", b"d"]


def test_references_are_counted_so_that_nothing_stays_behind() -> None:
    kernel = Kernel()
    before = len(kernel.table)
    workspace = kernel.lookup(b"w").nodeid
    kernel.lookup(b"w", b"d", b"b")
    kernel.list_all(workspace, 2)
    kernel.list_all(kernel.lookup(b"w", b"d").nodeid)
    assert len(kernel.table) > before
    kernel.forget_all()
    assert len(kernel.table) == before


def test_listing_fetches_nothing_and_what_has_no_size_is_not_remembered() -> None:
    kernel = Kernel()
    found = kernel.lower.find(b"a")
    assert found is not None
    found.fetched = False  # type: ignore[attr-defined]
    workspace = kernel.lookup(b"w").nodeid
    timeouts: dict[bytes, tuple[float, float]] = {}
    handle = kernel.operations.opendir(workspace)

    def add(name: bytes, entry: Entry, position: int) -> bool:
        timeouts[name] = (entry.entry_timeout_s, entry.attr_timeout_s)
        return True

    kernel.operations.readdir(handle, 0, add)
    assert timeouts[b"a"] == (0.0, 0.0)
    assert timeouts[b"d"] == (CACHE_S, CACHE_S)
    with pytest.raises(Blocked) as blocked:
        kernel.operations.lookup(workspace, b"a")
    blocked.value.job()
    entry = kernel.operations.lookup(workspace, b"a")
    assert entry.attr is not None
    assert (entry.attr.size, entry.attr_timeout_s) == (12, CACHE_S)


def test_names_are_listed_as_with_attributes_and_are_no_references(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    workspace = kernel.lookup(b"w").nodeid
    handle = kernel.operations.opendir(workspace)
    full: dict[bytes, tuple[int, int, int]] = {}

    def add(name: bytes, entry: Entry, position: int) -> bool:
        assert entry.attr is not None
        full[name] = entry.nodeid, stat.S_IFMT(entry.attr.mode), position
        return True

    kernel.operations.readdir(handle, 0, add)
    for name in full.keys() - {b".", b".."}:
        kernel.operations.forget(full[name][0], 1)
    before = len(kernel.operations.view.table)
    short: dict[bytes, tuple[int, int, int]] = {}
    asked = 0

    def two(name: bytes, number: int, mode: int, position: int) -> bool:
        nonlocal asked
        asked += 1
        if asked == 3:
            return False
        short[name] = number, stat.S_IFMT(mode), position
        return True

    while asked != 0 or not short:
        asked = 0
        kernel.operations.readdir_names(handle, max((told[2] for told in short.values()), default=0), two)
    assert short == full
    assert len(kernel.operations.view.table) == before


def test_a_directory_that_changes_is_listed_as_of_its_rewind(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    workspace = kernel.lookup(b"w").nodeid
    handle = kernel.operations.opendir(workspace)
    seen: list[bytes] = []

    def one(name: bytes, entry: Entry, position: int) -> bool:
        if seen and len(seen) % 3 == 0 and seen[-1] != name:
            return False
        seen.append(name)
        return True

    kernel.operations.readdir(handle, 0, one)
    kernel.operations.unlink(workspace, b"a")
    kernel.operations.create(workspace, b"new", 0o644, os.O_RDWR, OWNER)
    rest: list[bytes] = []
    kernel.operations.readdir(handle, len(seen), lambda name, entry, position: not rest.append(name))  # type: ignore[func-returns-value]
    assert b"new" not in seen + rest
    again: list[bytes] = []
    kernel.operations.readdir(handle, 0, lambda name, entry, position: not again.append(name))  # type: ignore[func-returns-value]
    assert b"new" in again
    assert b"a" not in again


def test_a_kept_listing_is_gone_on_with_by_whoever_asks(tmp_path: Path) -> None:
    """The kernel has read a listing through one handle, kept it, and lost it while another read it."""
    kernel = Kernel(tmp_path)
    workspace = kernel.lookup(b"w").nodeid
    names = {b"n%d" % number for number in range(50)}
    for name in names:
        opened, _ = kernel.operations.create(workspace, name, 0o644, os.O_RDWR, OWNER)
        kernel.operations.release(opened.handle)
    first = kernel.operations.opendir_kept(workspace)
    kept: list[tuple[bytes, int]] = []
    kernel.operations.readdir(first.handle, 0, lambda name, entry, position: not kept.append((name, position)))  # type: ignore[func-returns-value]
    kernel.operations.releasedir(first.handle)
    assert [position for _, position in kept] == sorted({position for _, position in kept})
    second = kernel.operations.opendir_kept(workspace)
    for at in (5, 25, 45):
        told, last = kept[:at], kept[at - 1]
        for name in (told[3][0], last[0]):  # also the one that the position is of
            if name in names:
                kernel.operations.unlink(workspace, name)
                names.discard(name)
        rest: list[bytes] = []
        kernel.operations.readdir(second.handle, last[1], lambda name, entry, position: not rest.append(name))  # type: ignore[func-returns-value]  # noqa: B023
        assert rest == [name for name, _ in kept[at:]]
        kernel.operations.releasedir(second.handle)
        second = kernel.operations.opendir_kept(workspace)


def test_positions_that_names_share_are_told_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "position_of", lambda name: 7 if name < b"n5" else (1 << 62) - 1)
    names = [b"n%d" % number for number in range(10)]
    shown = listing.by_position(names)
    assert shown.names[2:] == names
    assert shown.positions == [1, 2, *range(7, 12), *range((1 << 62) - 1, (1 << 62) + 4)]
    assert [shown.names[shown.index_after(each)] for each in shown.positions[:-1]] == shown.names[1:]
    assert shown.index_after(shown.positions[-1]) == len(shown.names)


def test_unlinked_but_open(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    workspace = kernel.lookup(b"w").nodeid
    number = kernel.lookup(b"w", b"a").nodeid
    opened = kernel.operations.open(number, os.O_RDWR)
    kernel.operations.unlink(workspace, b"a")
    kernel.operations.write(opened.handle, 0, b"CONTENT")
    assert kernel.operations.read(opened.handle, 0, 100) == b"CONTENT of a"
    attr = kernel.operations.getattr(number).attr
    assert attr is not None
    assert (attr.nlink, attr.size) == (0, 12)
    kernel.operations.release(opened.handle)


def test_what_was_written_is_told_at_flush_and_only_then(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    number = kernel.lookup(b"w", b"a").nodeid
    tree = kernel.view.table.get(number).tree
    calls: list[None] = []
    tree.journal = journal = Journal(lambda: calls.append(None))
    reader = kernel.operations.open(number, os.O_RDONLY)
    kernel.operations.flush(reader.handle)
    assert not journal
    writer = kernel.operations.open(number, os.O_WRONLY)
    kernel.operations.write(writer.handle, 0, b"x")
    assert not journal
    kernel.operations.flush(writer.handle)
    assert journal.take().paths == {b"a"}
    kernel.operations.flush(writer.handle)
    assert not journal, "nothing was written since"
    kernel.operations.write(writer.handle, 0, b"x")
    kernel.operations.tell_open()
    assert journal.take().paths == {b"a"}
    kernel.operations.setattr(number, SetAttr(size=0), None)
    assert journal.take().paths == {b"a"}
    assert len(calls) == 3


def test_what_is_written_to_a_file_that_stays_open_is_told_at_the_second_look(tmp_path: Path) -> None:
    """At the first it may be new: a save that is not over is not to be half recorded."""
    kernel = Kernel(tmp_path)
    number = kernel.lookup(b"w", b"a").nodeid
    kernel.view.table.get(number).tree.journal = journal = Journal(lambda: None)
    writer = kernel.operations.open(number, os.O_WRONLY | os.O_TRUNC)
    for _ in range(3):  # as long as he goes on
        kernel.operations.tell_long_open()
        assert not journal
        kernel.operations.write(writer.handle, 0, b"x")
        kernel.operations.tell_long_open()
        assert journal.take().paths == {b"a"}
        kernel.operations.tell_long_open()
        assert not journal, "nothing was written since"
        kernel.operations.write(writer.handle, 0, b"x")
    kernel.operations.tell_long_open()
    kernel.operations.flush(writer.handle)
    assert journal.take().paths == {b"a"}
    kernel.operations.write(writer.handle, 0, b"x")
    kernel.operations.tell_long_open()
    assert not journal, "it was told when he flushed"


def test_names_are_told_where_they_are_when_asked(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    root = kernel.lookup(b"w").nodeid
    tree = kernel.view.table.get(root).tree
    tree.journal = journal = Journal(lambda: None)
    one = kernel.operations.mkdir(root, b"one", 0o755, Owner(0, 0)).nodeid
    opened, _ = kernel.operations.create(one, b"file", 0o644, os.O_WRONLY, Owner(0, 0))
    kernel.operations.write(opened.handle, 0, b"x")
    kernel.operations.release(opened.handle)
    kernel.operations.rename(root, b"one", root, b"two", 0)
    kernel.operations.unlink(root, b"a")
    taken = journal.take()
    assert taken.paths == {b"one", b"two", b"two/file", b"a"}
    assert {b"one", b"two"} <= taken.names
    assert not taken.everything
    assert not journal.take().paths


def test_what_was_noted_of_a_file_is_told_after_the_kernel_has_forgotten_it(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    root = kernel.lookup(b"w").nodeid
    tree = kernel.view.table.get(root).tree
    tree.journal = journal = Journal(lambda: None)
    one = kernel.operations.mkdir(root, b"one", 0o755, Owner(0, 0)).nodeid
    opened, entry = kernel.operations.create(one, b"file", 0o644, os.O_WRONLY, Owner(0, 0))
    kernel.operations.release(opened.handle)
    journal.take()
    kernel.operations.setattr(entry.nodeid, SetAttr(mode=0o600), None)
    made = kernel.operations.mkdir(one, b"two", 0o755, Owner(0, 0)).nodeid
    for number in (entry.nodeid, made, one):
        kernel.operations.forget(number, 100)
    assert kernel.view.table.find(one) is None
    assert journal.take().paths == {b"one/file", b"one/two"}
    assert not journal


def test_unknown_numbers_and_handles_are_refused() -> None:
    kernel = Kernel()
    with pytest.raises(OSError, check=lambda error: error.errno == errno.ESTALE):
        kernel.operations.getattr(12345)
    with pytest.raises(OSError, check=lambda error: error.errno == errno.EBADF):
        kernel.operations.read(77, 0, 1)
    kernel.operations.forget(12345, 1)  # the kernel may be late


def test_create_of_what_others_have_just_made(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    top = kernel.lookup(b"w").nodeid
    with pytest.raises(FileExistsError):
        kernel.operations.create(top, b"a", 0o644, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER)
    with pytest.raises(OSError) as refused:  # the kernel looks the name up again, and opens it
        kernel.operations.create(top, b"a", 0o644, os.O_WRONLY | os.O_CREAT, OWNER)
    assert refused.value.errno == errno.ESTALE


def test_a_name_that_came_to_be_is_not_noted_as_absent(tmp_path: Path) -> None:
    kernel = Kernel(tmp_path)
    top = kernel.lookup(b"w").nodeid
    for name in (b"file", b"dir", b"link", b"moved", b"never"):
        assert kernel.operations.lookup(top, name).nodeid == 0
    opened, _ = kernel.operations.create(top, b"file", 0o644, os.O_WRONLY, OWNER)
    kernel.operations.release(opened.handle)
    kernel.operations.mkdir(top, b"dir", 0o755, OWNER)
    kernel.operations.symlink(top, b"link", b"target", OWNER)
    kernel.operations.rename(top, b"file", top, b"moved", 0)
    assert kernel.operations.take_absent_names() == [(top, b"never")]
