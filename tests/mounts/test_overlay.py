"""What an overlay does beyond what a plain directory does: layers, copy-up, reset, another lower, failing disks."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.ports import FAULTS
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.memorylower import MemoryLower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.overlay.upper import PathFds
from clivefs.mounts.tree import Blocked, Owner, SetAttr
from tests.contract.driver import Failed, outcome
from tests.contract.tree_driver import TreeDriver

NOW_NS = 1_700_000_000_000_000_000
US = (os.geteuid(), os.getegid())


def make_lower(**contents: bytes) -> MemoryLower:
    lower = MemoryLower(mtime_ns=NOW_NS, owner=US)
    lower.file(b"a", b"content of a")
    lower.file(b"d/x", b"x")
    lower.file(b"d/e/y", b"y")
    lower.file(b"gone", b"gone")
    for name, content in contents.items():
        lower.file(name.replace("__", "/").encode(), content)
    return lower


class Overlay:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.tree: OverlayTree | None = None

    def open(self, lower: MemoryLower | None = None, *, writable: bool = True) -> TreeDriver:
        self.close()
        self.table = NodeTable()
        fd = os.open(self.path, os.O_RDONLY)
        self.tree = OverlayTree(lower or make_lower(), fd if writable else None, self.table, entry=b"e", source=b"s")
        os.close(fd)
        return TreeDriver(self.tree, self.table, remember=True)

    def close(self) -> None:
        if self.tree is not None:
            self.tree.close()
            self.tree = None


@pytest.fixture
def overlay(tmp_path: Path) -> Iterator[Overlay]:
    old = os.umask(0)
    made = Overlay(tmp_path)
    yield made
    made.close()
    FAULTS.clear()
    os.umask(old)


def fail(code: int) -> Callable[[], None]:
    def action() -> None:
        raise OSError(code, "planted")

    return action


def kinds(driver: TreeDriver) -> dict[bytes, str]:
    tree = driver.tree
    assert isinstance(tree, OverlayTree)
    return {change.path: change.what for change in tree.changes()}


def test_without_an_upper_everything_is_refused(overlay: Overlay) -> None:
    driver = overlay.open(writable=False)
    assert driver.read(b"d/x") == b"x"
    attempts: list[Callable[[], Any]] = [
        lambda: driver.make(b"new"),
        lambda: driver.overwrite(b"a", b""),
        lambda: driver.chmod(b"a", 0o600),
        lambda: driver.unlink(b"a"),
        lambda: driver.rename(b"a", b"b"),
        lambda: driver.mkdir(b"m"),
        lambda: driver.setxattr(b"a", b"user.k", b"v"),
    ]
    for attempt in attempts:
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.EROFS


def test_copy_up_keeps_number_times_and_attributes(overlay: Overlay) -> None:
    lower = make_lower()
    file = lower.file(b"d/exe", b"#!", 0o755)
    file.attributes[b"user.k"] = b"v"
    driver = overlay.open(lower)
    number, parent = driver.inode(b"d/exe"), driver.inode(b"d")
    before = driver.stat(b"d/exe", times=True), driver.stat(b"d", times=True)
    driver.open(b"d/exe", os.O_RDWR).close()
    assert (driver.stat(b"d/exe", times=True), driver.stat(b"d", times=True)) == before
    assert driver.getxattr(b"d/exe", b"user.k") == b"v"
    assert driver.tree.describe(driver.node(b"d/exe")) == {"layer": b"upper"}
    driver.rename(b"d/exe", b"moved")
    driver.rename(b"d", b"dir")
    again = overlay.open(lower)
    assert (again.inode(b"moved"), again.inode(b"dir")) == (number, parent)


def test_open_file_of_the_lower_sees_what_is_written(overlay: Overlay) -> None:
    driver = overlay.open()
    reader = driver.open(b"a")
    driver.write(b"a", b"CONTENT")
    assert reader.read(0, 100) == b"CONTENT of a"
    driver.unlink(b"a")
    assert reader.stat().nlink == 0
    assert reader.read(0, 7) == b"CONTENT"
    reader.close()


def test_unlinked_open_file_of_the_lower_can_be_changed(overlay: Overlay) -> None:
    driver = overlay.open()
    file = driver.open(b"a")
    driver.unlink(b"a")
    driver.tree.setattr(file.node, SetAttr(mode=0o600), file.file)
    assert stat.S_IMODE(file.stat().mode) == 0o600
    assert file.stat().nlink == 0
    assert file.read(0, 100) == b"content of a"
    file.close()
    assert os.listdir(overlay.path / "work") == []


def test_large_file_is_copied_in_a_job(overlay: Overlay) -> None:
    content = os.urandom(1 << 20) + bytes(4 << 20) + b"end"
    driver = overlay.open(make_lower(large=content))
    node = driver.node(b"large")
    with pytest.raises(Blocked) as caught:
        driver.tree.open(node, os.O_RDWR)
    assert os.listdir(overlay.path / "tree") == []
    caught.value.job()
    caught.value.job()
    file = driver.tree.open(node, os.O_RDWR)
    assert file.read(0, 10 << 20) == content
    file.close()
    st = os.stat(overlay.path / "tree" / "large")
    assert st.st_size == len(content)
    assert st.st_blocks * 512 < 2 << 20, "the hole was filled"
    assert os.listdir(overlay.path / "work") == []


def test_truncating_copies_no_content(overlay: Overlay) -> None:
    driver = overlay.open(make_lower(large=bytes(4 << 20), other=b"1" * (4 << 20)))
    driver.tree.open(driver.node(b"large"), os.O_WRONLY | os.O_TRUNC).close()
    driver.tree.setattr(driver.node(b"other"), SetAttr(size=3), None)
    assert (driver.read(b"large"), driver.read(b"other")) == (b"", b"111")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(
    "point",
    [
        "overlay.copyup.content",
        "overlay.copyup.logged",
        "overlay.unlink.logged",
        "overlay.rename.logged",
        "marks.append",
    ],
)
def test_failing_disk_changes_nothing(overlay: Overlay, point: str, code: int) -> None:
    driver = overlay.open()
    driver.write(b"d/x", b"mine")
    failed = 0
    for attempt in (
        lambda: driver.write(b"a", b"w"),
        lambda: driver.unlink(b"d/e/y"),
        lambda: driver.rename(b"d", b"f"),
        lambda: driver.rename(b"gone", b"a"),
    ):
        before = driver.tree_of()
        FAULTS.plant(point, fail(code))
        result = outcome(attempt)
        FAULTS.clear()
        if isinstance(result, Failed):
            failed += 1
            assert result == Failed(errno.errorcode[code])
            assert driver.tree_of() == before
    assert failed
    before = driver.tree_of()
    assert overlay.open().tree_of() == before
    assert os.listdir(overlay.path / "work") == []


@pytest.mark.parametrize("repaired", [True, False])
def test_recovery_carries_out_or_rolls_back(overlay: Overlay, repaired: bool) -> None:
    driver = overlay.open()
    driver.write(b"d/x", b"mine")
    before = driver.tree_of()

    class Killed(BaseException):
        pass

    def kill() -> None:
        assert isinstance(driver.tree, OverlayTree)
        upper = driver.tree._nodes.upper
        assert upper is not None
        os.close(upper.log._fd)  # as a kill would: nothing is written to the log any more
        upper.log._fd = -1
        raise Killed

    FAULTS.plant("overlay.rename.logged", kill)
    with pytest.raises(Killed):
        driver.rename(b"d", b"f")
    FAULTS.clear()
    if not repaired:
        FAULTS.plant("overlay.recover", fail(errno.ENOSPC))
    after = overlay.open().tree_of()
    FAULTS.clear()
    if repaired:
        assert after[b"f/x"] == before[b"d/x"]
        assert b"d" not in after
    else:
        assert after == before
    assert overlay.open().tree_of() == after


def test_changes(overlay: Overlay) -> None:
    driver = overlay.open()
    driver.make(b".git", b"gitdir: elsewhere")
    driver.unlink(b"gone")
    driver.write(b"a", b"w")
    driver.make(b"d/new", b"n")
    driver.unlink(b"d/x")
    driver.mkdir(b"d/x")
    assert kinds(driver) == {b"gone": "deleted", b"a": "modified", b"d/new": "added", b"d/x": "replaced"}
    driver.rename(b"d", b"f")
    assert kinds(driver) == {
        b"gone": "deleted",
        b"a": "modified",
        b"d": "deleted",
        b"f": "added",
        b"f/new": "added",
        b"f/x": "added",
        b"f/e": "added",
        b"f/e/y": "added",
    }


def clean_up(tree: OverlayTree) -> None:
    """What the daemon does after a reset."""
    job = tree.discarded()
    if job is not None:
        job()
    while tree.forget_discarded():
        pass


def test_reset_while_files_are_open(overlay: Overlay) -> None:
    driver = overlay.open()
    plain = driver.tree_of()
    driver.make(b".git", b"private")
    driver.write(b"a", b"EDITED")
    driver.unlink(b"gone")
    driver.make(b"d/new", b"n")
    driver.unlink(b"d/e/y")
    directory = driver.inode(b"d")
    file = driver.open(b"a")
    tree = driver.tree
    assert isinstance(tree, OverlayTree)
    affected = {(each.parent.path(), each.name) for each in tree.reset()}
    clean_up(tree)
    assert {(b"", b"a"), (b"", b"gone"), (b"d", b"new"), (b"d/e", b"y")} <= affected
    assert file.read(0, 6) == b"EDITED"
    assert file.stat().nlink == 0
    assert driver.read(b"a") == b"content of a"
    assert driver.inode(b"d") == directory
    found = driver.tree_of()
    assert found.pop(b".git")[1] == b"private"
    assert found == plain
    file.close()
    assert kinds(driver) == {}
    assert not tree._nodes.upper.origins  # type: ignore[union-attr]
    again = overlay.open().tree_of()
    del again[b".git"]
    assert again == plain


def test_reset_of_one_path(overlay: Overlay) -> None:
    driver = overlay.open()
    driver.write(b"a", b"EDITED")
    driver.rename(b"d", b"f")
    driver.write(b"f/x", b"z")
    tree = driver.tree
    assert isinstance(tree, OverlayTree)
    tree.reset([b"f/x"])
    assert driver.read(b"f/x") == b"x"
    tree.reset([b"f", b"d", b"nothing/here"])
    assert kinds(driver) == {b"a": "modified"}
    assert driver.read(b"d/x") == b"x"


def edited(overlay: Overlay, count: int) -> TreeDriver:
    """*count* files of the lower directory `t` copied up, and as many new ones beside them."""
    driver = overlay.open(make_lower(**{f"t__f{number}": b"lower" for number in range(count)}))
    for number in range(count):
        driver.write(b"t/f%d" % number, b"UPPER")
        driver.make(b"t/new%d" % number, b"new")
    return driver


def overlay_tree(driver: TreeDriver) -> OverlayTree:
    assert isinstance(driver.tree, OverlayTree)
    return driver.tree


def test_a_reset_leaves_the_deleting_to_a_thread(overlay: Overlay) -> None:
    driver = edited(overlay, 40)
    tree = overlay_tree(driver)
    tree.reset()
    assert kinds(driver) == {}
    (top,) = os.listdir(overlay.path / "work")  # one rename, whatever is below
    assert len(os.listdir(overlay.path / "work" / top)) == 80
    job = tree.discarded()
    assert job is not None
    assert tree.discarded() is None
    thread = threading.Thread(target=job)
    thread.start()
    thread.join()
    job()  # may be called again
    assert os.listdir(overlay.path / "work") == []
    assert len(tree._nodes.upper.origins) >= 40  # type: ignore[union-attr]
    clean_up(tree)
    assert not tree._nodes.upper.origins  # type: ignore[union-attr]
    after = driver.tree_of()
    assert overlay.open(make_lower(**{f"t__f{number}": b"lower" for number in range(40)})).tree_of() == after


def test_files_made_while_a_reset_is_deleting_keep_their_numbers(overlay: Overlay) -> None:
    driver = edited(overlay, 40)
    tree = overlay_tree(driver)
    tree.reset()
    made: dict[bytes, int] = {}

    def meanwhile() -> None:
        """The filesystem has free inode numbers by now, and gives them to these."""
        number = len(made)
        if number < 20:
            driver.write(b"t/f%d" % number, b"AGAIN")
            driver.make(b"t/new%d" % number, b"again")
            made.update({name: driver.inode(name) for name in (b"t/f%d" % number, b"t/new%d" % number)})

    FAULTS.plant("overlay.discard", meanwhile)
    clean_up(tree)
    FAULTS.clear()
    assert len(made) == 20
    again = overlay.open(make_lower(**{f"t__f{number}": b"lower" for number in range(40)}))
    for name, inode in made.items():
        assert (name, again.inode(name)) == (name, inode)
    assert again.read(b"t/new0") == b"again"


def test_a_reset_that_a_crash_cuts_short_is_finished_at_the_next_start(overlay: Overlay) -> None:
    driver = edited(overlay, 10)
    tree = overlay_tree(driver)
    tree.reset()
    left = [7]

    def stop() -> None:
        left[0] -= 1
        if not left[0]:
            raise KeyboardInterrupt

    FAULTS.plant("overlay.discard", stop)
    job = tree.discarded()
    assert job is not None
    with pytest.raises(KeyboardInterrupt):
        job()
    FAULTS.clear()
    assert os.listdir(overlay.path / "work") != []
    again = overlay.open(make_lower(**{f"t__f{number}": b"lower" for number in range(10)}))
    assert os.listdir(overlay.path / "work") == []
    assert kinds(again) == {}


def test_deleting_goes_on_after_the_tree_was_closed_and_its_upper_is_mounted_again(overlay: Overlay) -> None:
    tree = overlay_tree(edited(overlay, 10))
    tree.reset()
    job = tree.discarded()
    assert job is not None
    driver: list[TreeDriver] = []

    def reopen() -> None:
        FAULTS.clear()
        driver.append(overlay.open(make_lower(t__f1=b"lower")))
        driver[0].write(b"t/f1", b"after")

    FAULTS.plant("overlay.discard", reopen)
    job()
    assert driver[0].read(b"t/f1") == b"after"
    assert os.listdir(overlay.path / "work") == []
    assert tree.discarded() is None
    assert not tree.forget_discarded()


def test_another_lower(overlay: Overlay) -> None:
    driver = overlay.open()
    driver.write(b"d/x", b"X")
    driver.unlink(b"gone")
    same, directory = driver.node(b"d/e/y"), driver.node(b"d")
    file = driver.open(b"a")
    tree = driver.tree
    assert isinstance(tree, OverlayTree)
    new = make_lower(a=b"another a", d__fresh=b"fresh")
    old_node = file.node
    affected = {(each.parent.path(), each.name, each.node) for each in tree.replace_lower(new)}
    assert affected == {(b"", b"a", old_node), (b"d", b"fresh", None)}
    assert file.read(0, 100) == b"content of a"
    assert file.stat().size == 12
    assert driver.read(b"a") == b"another a"
    assert driver.node(b"a") is not old_node
    assert driver.node(b"d/e/y") is same
    assert driver.node(b"d") is directory
    assert driver.read(b"d/x") == b"X"
    assert driver.read(b"d/fresh") == b"fresh"
    with pytest.raises(FileNotFoundError):
        driver.stat(b"gone")
    file.close()


def test_live_lower(overlay: Overlay) -> None:
    lower = MemoryLower(live=True, mtime_ns=NOW_NS, owner=US)
    lower.file(b"d/a", b"one")
    driver = overlay.open(lower)
    assert driver.read(b"d/a") == b"one"
    lower.file(b"d/a", b"two!")
    lower.file(b"d/b", b"b")
    assert driver.read(b"d/a") == b"two!"
    assert driver.listdir(b"d") == [(b"a", stat.S_IFREG), (b"b", stat.S_IFREG)]
    lower.remove(b"d/a")
    with pytest.raises(FileNotFoundError):
        driver.stat(b"d/a")


def test_removing_what_goes_from_the_lower_at_the_same_moment(overlay: Overlay) -> None:
    lower = MemoryLower(live=True, mtime_ns=NOW_NS, owner=US)
    lower.file(b"d/f", b"f")
    lower.remove(b"d/f")
    driver = overlay.open(lower)
    node = driver.hold(driver.node(b"d"))
    attr = lower.attr

    def fails(ref: Any, *, fetch: bool) -> Any:
        if ref == lower.find(b"d"):
            raise FileNotFoundError(errno.ENOENT, "planted")
        return attr(ref, fetch=fetch)

    FAULTS.plant("overlay.rmdir.done", lambda: setattr(lower, "attr", fails))
    driver.rmdir(b"d")
    assert driver.listdir(b"") == []
    with pytest.raises(FileNotFoundError):
        driver.stat(b"d")
    with pytest.raises(OSError) as caught:
        driver.tree.getattr(node)
    assert caught.value.errno == errno.ESTALE


def test_hard_links_of_a_live_lower(tmp_path: Path) -> None:
    """Each name is a file of its own, and tells the link count that the lower has until it is copied up."""
    under, upper = tmp_path / "under", tmp_path / "upper"
    under.mkdir()
    upper.mkdir()
    (under / "one").write_text("shared")
    for name in ("two", "three"):
        os.link(under / "one", under / name)
    table = NodeTable()
    lower = LocalLower(os.open(under, os.O_RDONLY), hidden=lambda identity, name: False)
    fd = os.open(upper, os.O_RDONLY)
    tree = OverlayTree(lower, fd, table, entry=b"e", source=b"s")
    os.close(fd)
    driver = TreeDriver(tree, table)
    names = (b"one", b"two", b"three")
    assert [driver.stat(name).nlink for name in names] == [3, 3, 3]
    driver.overwrite(b"one", b"CHANGED")
    assert [driver.stat(name).nlink for name in names] == [1, 3, 3]
    assert [driver.read(name) for name in names] == [b"CHANGED", b"shared", b"shared"]
    driver.link(b"one", b"four")
    assert [driver.stat(name).nlink for name in (b"one", b"four")] == [2, 2]
    driver.unlink(b"two")
    assert driver.stat(b"three").nlink == 3  # nothing was written to the lower
    os.unlink(under / "two")
    assert driver.stat(b"three").nlink == 2
    file = driver.open(b"three")
    driver.unlink(b"three")
    assert file.stat().nlink == 0
    file.close()
    tree.close()


def test_deep_and_long_names(overlay: Overlay) -> None:
    driver = overlay.open()
    node, name = driver.tree.root, b"n" * 255
    for _ in range(1200):
        node, _ = driver.tree.mkdir(node, name, 0o755, driver.owner)
        driver.hold(node)
    made, _, file = driver.tree.create(node, b"f", 0o644, os.O_RDWR, driver.owner)
    file.write(0, b"deep")
    file.fsync(False)
    file.close()
    driver.hold(made)
    tree = driver.tree
    assert isinstance(tree, OverlayTree)
    assert sum(1 for _ in tree.changes()) == 1201
    driver.forget_all()
    assert len(overlay.table) == 1
    tree.reset()
    assert os.listdir(overlay.path / "tree") == []


def test_durable(overlay: Overlay) -> None:
    driver = overlay.open()
    driver.mkdir(b"m")
    file = driver.create(b"m/f")
    file.write(0, b"x")
    file.fsync()
    driver.fsync_dir(b"m")
    tree = driver.tree
    assert isinstance(tree, OverlayTree)
    tree.sync()
    file.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
def test_files_belong_to_the_caller(overlay: Overlay) -> None:
    driver = overlay.open()
    driver.owner = Owner(1234, 2345)
    driver.make(b"f", b"x", 0o640)
    driver.mkdir(b"m")
    driver.symlink(b"target", b"l")
    for name in (b"f", b"m", b"l"):
        assert (driver.stat(name).uid, driver.stat(name).gid) == (1234, 2345)
    assert stat.S_IMODE(driver.stat(b"f").mode) == 0o640
    driver.chown(b"d", -1, 77)
    driver.chmod(b"d", 0o2775)
    driver.mkdir(b"d/sub")
    assert (driver.stat(b"d/sub").uid, driver.stat(b"d/sub").gid) == (1234, 77)
    assert driver.stat(b"d/sub").mode & stat.S_ISGID


def test_who_wants_the_same_large_file_waits_for_the_same_copy(overlay: Overlay, tmp_path: Path) -> None:
    content = os.urandom(1 << 20)
    driver = overlay.open(make_lower(large=content))
    tree = driver.tree
    node, _ = tree.lookup(tree.root, b"large")
    jobs = []
    for _ in range(3):
        with pytest.raises(Blocked) as blocked:
            tree.open(node, os.O_WRONLY)
        jobs.append(blocked.value.job)
    for job in jobs:
        job()
    assert len(os.listdir(tmp_path / "work")) == 1
    for _ in range(3):
        file = tree.open(node, os.O_RDWR)
        assert file.read(0, 1 << 20) == content
        file.close()
    assert os.listdir(tmp_path / "work") == []


def test_a_copy_that_nobody_wants_any_more_is_not_left_behind(overlay: Overlay, tmp_path: Path) -> None:
    driver = overlay.open(make_lower(large=bytes(1 << 20)))
    tree = driver.tree
    node, _ = tree.lookup(tree.root, b"large")
    with pytest.raises(Blocked) as blocked:
        tree.open(node, os.O_WRONLY)
    tree.unlink(tree.root, b"large")
    overlay.table.release(node)
    blocked.value.job()
    assert os.listdir(tmp_path / "work") == []


def test_a_copy_under_way_outlives_its_tree(overlay: Overlay, tmp_path: Path) -> None:
    """The entry is detached, and attached again, while a thread still copies: it must not touch what is there now."""
    content = os.urandom(1 << 20)
    lower = make_lower()
    lower.file(b"large", content, 0o777)
    tree = overlay.open(lower).tree
    node, _ = tree.lookup(tree.root, b"large")
    with pytest.raises(Blocked) as blocked:
        tree.open(node, os.O_WRONLY)
    copying, reopened = threading.Event(), threading.Event()
    fds = len(os.listdir("/proc/self/fd"))

    def wait() -> None:
        copying.set()
        assert reopened.wait(10)

    FAULTS.plant("overlay.copyup.content", wait)

    def copy_in_vain() -> None:
        with pytest.raises(FileNotFoundError):
            blocked.value.job()

    thread = threading.Thread(target=copy_in_vain)
    thread.start()
    assert copying.wait(10)
    FAULTS.clear()
    (name,) = os.listdir(tmp_path / "work")
    others = tmp_path / "others"
    others.mkdir()
    (others / name).write_text("another file")
    overlay.close()
    held = [os.open(others, os.O_RDONLY) for _ in range(20)]  # have the numbers of what was closed
    again = overlay.open(make_lower(large=content)).tree  # empties `work/`
    node, _ = again.lookup(again.root, b"large")
    with pytest.raises(Blocked) as second:
        again.open(node, os.O_WRONLY)
    second.value.job()
    (copy,) = os.listdir(tmp_path / "work")
    reopened.set()
    thread.join()
    assert os.listdir(tmp_path / "work") == [copy]
    file = again.open(node, os.O_RDWR)
    assert file.read(0, 1 << 20) == content
    assert stat.S_IMODE((others / name).stat().st_mode) != 0o777
    file.close()
    for fd in held:
        os.close(fd)
    assert len(os.listdir("/proc/self/fd")) <= fds


def test_fsync_waits_for_who_is_at_it_already(
    overlay: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = overlay.open()
    tree = driver.tree
    files = [tree.create(tree.root, name, 0o644, os.O_WRONLY, Owner(*US))[2] for name in (b"one", b"two")]
    entered, go_on = threading.Event(), threading.Event()
    sync = os.fsync
    top = os.stat(tmp_path / "tree").st_ino

    def slow(fd: int) -> None:
        if os.fstat(fd).st_ino == top:
            entered.set()
            assert go_on.wait(10)
        sync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    first = threading.Thread(target=files[0].fsync, args=(False,))
    first.start()
    assert entered.wait(10)
    second = threading.Thread(target=files[1].fsync, args=(False,))
    second.start()
    second.join(0.05)
    assert second.is_alive()  # the name of the second is not on disk yet
    go_on.set()
    first.join(10)
    second.join(10)
    assert not second.is_alive()
    for file in files:
        file.close()


def test_fsync_covers_names_that_were_made_before_the_daemon_started(
    overlay: Overlay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = overlay.open().tree
    first.create(first.root, b"made", 0o644, os.O_WRONLY, Owner(*US))[2].close()
    first.unlink(first.root, b"gone")
    tree = overlay.open().tree
    synced: list[int] = []
    for name in ("fsync", "fdatasync"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda fd, call=call: (synced.append(os.fstat(fd).st_ino), call(fd)))
    file = tree.open(tree.lookup(tree.root, b"made")[0], os.O_WRONLY)
    file.fsync(False)
    wanted = {os.stat(tmp_path / each).st_ino for each in ("tree", "tree/made", "marks")}
    assert set(synced) == wanted
    synced.clear()
    file.fsync(False)
    assert synced == [os.stat(tmp_path / "tree/made").st_ino]
    file.close()


def test_two_who_list_one_directory_each_get_all_of_it(tmp_path: Path) -> None:
    """Not so by duplicates of a descriptor, whose position is one: the recorder's thread lists beside the loop's."""
    names = {f"a rather long name of a file {number:05}" for number in range(3000)}  # more than one read gives
    for name in names:
        (tmp_path / name).touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    paths = PathFds(fd)
    try:
        with os.scandir(fd) as listing:
            first = next(listing).name
            assert set(os.listdir(paths.open(b""))) == names
            assert {first, *(entry.name for entry in listing)} == names
    finally:
        paths.close()
        os.close(fd)
