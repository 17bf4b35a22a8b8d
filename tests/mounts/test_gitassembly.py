"""A git entry's tree and its working tree move in one step, or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from clivefs.base.ports import FAULTS
from clivefs.mounts.assembly.assembly import Assembly
from clivefs.mounts.assembly.entry import Mounted, Prepared, State
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.host.watch import Watcher
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.tree import Blocked, Owner
from clivefs.mounts.view import View
from clivefs.objects.store import Store
from tests.mounts.stockgit import git


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    path = tmp_path / "origin"
    path.mkdir()
    git(path, "init", "-q")
    for number in (1, 2):
        (path / "file").write_text(f"{number}\n")
        git(path, "add", ".")
        git(path, "commit", "-qm", str(number))
    git(path, "branch", "old", "HEAD~1")
    return path


class Bench:
    """One workspace with one git entry, without a mount."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.table = NodeTable()
        self.view = View(self.table, Owner(os.getuid(), os.getgid()), 0)
        self.store = Store.open(base / "store")
        self.watcher = Watcher()
        (base / "shop").mkdir()
        self.assembly = Assembly(
            store=self.store,
            workspace_id="0" * 16,
            root=str(base / "shop"),
            view=self.view,
            watcher=self.watcher,
            hidden=lambda *_: False,
            network_timeout_s=5.0,
            mount_over=lambda _: None,
            unpacked=str(base / "store" / "unpacked"),
            limits=ArchiveLimits(),
            on_loop=lambda call: call(),
        )

    def entry(self, ref: str) -> MountEntry:
        origin = str(self.base / "origin")
        return MountEntry(
            path="lib", kind="git", location=origin, host_path=origin, ref=ref, write="overlay", git_dir=True
        )

    def prepare(self, ref: str) -> Prepared:
        return self.assembly.prepare(self.entry(ref), None, lambda _: None)

    def show(self, prepared: Prepared, old: Mounted | None = None) -> Mounted:
        for _ in range(5):
            try:
                self.assembly.check(prepared, old)
                break
            except Blocked as blocked:
                blocked.job()
        return self.assembly.build(prepared, old)[0]

    def content(self, mounted: Mounted) -> bytes:
        node, _ = mounted.tree.lookup(mounted.tree.root, b"file")
        return mounted.tree.open(node, os.O_RDONLY).read(0, 100)

    @property
    def gitdir(self) -> Path:
        (path,) = (self.base / "store" / "gitdirs").iterdir()
        return path

    def head(self) -> str:
        return git(self.gitdir, "--git-dir=.", "log", "-1", "--format=%s", "HEAD", "--")

    def base_of_tree(self) -> str:
        return git(
            self.gitdir, "--git-dir=.", "log", "-1", "--format=%s", (self.gitdir / "clive-base").read_text()[:40]
        )

    def times(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.base / "store" / "uppers").glob("*/*/times"))]

    def leftovers(self) -> list[str]:
        found = [path.name for path in self.gitdir.iterdir() if path.name.startswith("clive-")]
        found += [path.name for path in self.gitdir.rglob("*.lock")]
        found += [path.name for path in (self.base / "store" / "uppers").rglob("times.new")]
        return sorted(set(found) - {"clive-base"})


@pytest.fixture
def bench(tmp_path: Path, origin: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    FAULTS.clear()
    made.watcher.close()
    made.store.close()


def write_index(bench: Bench, mounted: Mounted) -> None:
    with pytest.raises(Blocked) as blocked:
        bench.view.git_gates[mounted.tree.root.nodeid]()
    blocked.value.job()


def test_what_is_prepared_and_not_shown_changes_nothing(bench: Bench) -> None:
    mounted = bench.show(bench.prepare("main"))
    write_index(bench, mounted)
    before = bench.times(), (bench.gitdir / "index").read_bytes()
    prepared = bench.prepare("old")
    assert prepared.state == State.MOUNTED
    assert (bench.times(), (bench.gitdir / "index").read_bytes()) == before
    assert bench.head() == bench.base_of_tree() == "2"
    prepared.discard()
    assert (bench.times(), (bench.gitdir / "index").read_bytes()) == before
    assert bench.leftovers() == []
    shown = bench.show(bench.prepare("old"), mounted)
    assert bench.content(shown) == b"1\n"
    assert bench.head() == bench.base_of_tree() == "1"
    assert (bench.times(), (bench.gitdir / "index").read_bytes()) != before
    assert bench.leftovers() == []


@pytest.mark.parametrize("point", ["gitdir.move.locked", "gitdir.move.planned"])
def test_a_disk_that_fails_on_the_way_leaves_both_where_they_were(bench: Bench, point: str) -> None:
    mounted = bench.show(bench.prepare("main"))
    write_index(bench, mounted)

    def fail() -> None:
        raise OSError(5, "Input/output error")

    FAULTS.plant(point, fail)
    shown = bench.show(bench.prepare("old"), mounted)
    FAULTS.clear()
    assert shown.state == State.ERROR
    assert bench.head() == bench.base_of_tree() == "2"
    assert bench.leftovers() == []
    again = bench.show(bench.prepare("old"))
    assert again.state == State.MOUNTED
    assert bench.content(again) == b"1\n"
    assert bench.head() == bench.base_of_tree() == "1"
    assert bench.leftovers() == []


def test_git_at_work_just_when_it_is_shown(bench: Bench) -> None:
    mounted = bench.show(bench.prepare("main"))
    write_index(bench, mounted)
    prepared = bench.prepare("old")
    lock = bench.gitdir / "index.lock"
    lock.touch()
    stays = bench.show(prepared, mounted)
    assert (stays.state, stays.tree) == (State.BEHIND, mounted.tree)
    assert bench.content(stays) == b"2\n"
    assert bench.head() == bench.base_of_tree() == "2"
    assert lock.exists()
    lock.unlink()
    again = bench.assembly.look_again(stays)
    assert again is not None
    shown = bench.show(again, stays)
    assert shown.state == State.MOUNTED
    assert bench.content(shown) == b"1\n"
    assert bench.head() == "1"
    assert bench.leftovers() == []


def test_a_copy_that_is_written_to_just_when_it_is_shown(bench: Bench) -> None:
    """Copies of the old content cover the new one and go. One that has become an edit by then holds the entry where it
    is, or the edit would take back what the new commit changes."""
    mounted = bench.show(bench.prepare("main"))
    node, _ = mounted.tree.lookup(mounted.tree.root, b"file")
    file = mounted.tree.open(node, os.O_RDWR)
    file.write(0, b"2\n")  # what it was: no edit
    file.close()
    prepared = bench.prepare("old")
    assert [copy.path for copy in prepared.copies] == [b"file"]
    file = mounted.tree.open(node, os.O_WRONLY)
    file.write(0, b"mine\n")
    file.close()
    stays = bench.show(prepared, mounted)
    assert stays.state == State.BEHIND
    assert "written to" in str(stays.error)
    assert stays.behind_at is None  # it is looked at again soon
    assert bench.content(stays) == b"mine\n"
    assert bench.base_of_tree() == "2"
    assert bench.leftovers() == []


def test_an_edit_that_is_made_while_it_is_prepared(bench: Bench) -> None:
    mounted = bench.show(bench.prepare("main"))
    prepared = bench.prepare("old")
    assert prepared.copies == []
    bench.assembly.look_over(prepared)
    assert not prepared.overtaken
    node, _ = mounted.tree.lookup(mounted.tree.root, b"file")
    file = mounted.tree.open(node, os.O_WRONLY)
    file.write(0, b"mine\n")
    file.close()
    bench.assembly.look_over(prepared)
    stays = bench.show(prepared, mounted)
    assert stays.state == State.BEHIND
    assert bench.content(stays) == b"mine\n"
    assert bench.base_of_tree() == "2"
    assert bench.leftovers() == []


def test_git_at_work_while_nothing_is_shown(bench: Bench) -> None:
    bench.show(bench.prepare("main")).close()
    prepared = bench.prepare("old")
    (bench.gitdir / "index.lock").touch()
    shown = bench.show(prepared)
    assert shown.state == State.BEHIND
    assert "git is at work" in (shown.error or "")
    assert bench.content(shown) == b"2\n"
    (bench.gitdir / "index.lock").unlink()
    again = bench.assembly.look_again(shown)
    assert again is not None
    assert bench.content(bench.show(again, shown)) == b"1\n"
    assert bench.leftovers() == []


def open_files(bench: Bench) -> set[str]:
    """The descriptors of this process, but for those that hold a repository as long as somebody may read it."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            target = Path(os.readlink(f"/proc/self/fd/{fd}"))
            if target.parent not in (bench.base / "store/repositories", bench.base / "store/gitdirs"):
                found.add(fd)
    return found


def test_a_build_that_fails_gives_back_what_it_held(bench: Bench, origin: Path) -> None:
    """Descriptors of the host, and the scratch files of conversions."""
    (origin / ".gitattributes").write_text("*.bat eol=crlf\n")
    (origin / "a.bat").write_text("a\n")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "3")
    data = bench.base / "data"
    data.mkdir()
    local = MountEntry(path="data", kind="local", location=str(data), host_path=str(data), write="overlay")
    for entry in (bench.entry("main"), local):
        bench.assembly.build(bench.assembly.prepare(entry, None, lambda _: None), None)[0].close()
        for log in (bench.base / "store" / "uppers").glob("*/*/marks"):
            if log.is_file():
                log.unlink()
                log.mkdir()  # no upper can be opened there
        before = open_files(bench)
        prepared = bench.assembly.prepare(entry, None, lambda _: None)
        assert prepared.state == State.MOUNTED
        if prepared.git_lower is not None:
            lower = prepared.git_lower
            ref = lower.find(b"a.bat")
            assert ref is not None
            for _ in range(3):
                try:
                    assert lower.attr(ref, fetch=True).size == 3
                    break
                except Blocked as blocked:
                    blocked.job()
            assert list((bench.base / "store" / "unpacked").glob("attributes-*"))
        shown = bench.show(prepared)
        assert shown.state == State.ERROR
        assert not list((bench.base / "store" / "unpacked").glob("attributes-*"))
        assert open_files(bench) - before == set()
