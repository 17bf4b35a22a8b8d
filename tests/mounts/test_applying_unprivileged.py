"""Applying changes as a user who is not root: read-only directories, owners that he may not give, others' directories.

As root each test runs in a child process that has become another user.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clivefs.mounts import applying as applying_module
from clivefs.mounts import attributes, hoststaging
from clivefs.mounts.applying import Applying
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.steps import Wanted
from clivefs.mounts.tree import Owner, Tree

NOBODY = 65534
FILE = stat.S_IFREG | 0o644


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that a user who is not root may enter and write; `others` in it belongs to another user, if the
    tests run as root."""
    with tempfile.TemporaryDirectory(prefix="clivefs-test-") as made:
        path = Path(made)
        path.chmod(0o755)
        if os.geteuid() == 0:
            (path / "others").mkdir()
            (path / "others").chmod(0o755)
            (path / "others/f").write_text("old")
            os.chown(path, NOBODY, NOBODY)
        yield path


def unprivileged(test: Callable[[Path], None]) -> Callable[[Path], None]:
    """*test* in a process of a user who is not root."""

    @functools.wraps(test)
    def run(place: Path) -> None:
        if os.geteuid() != 0:
            test(place)
            return
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for module in (attributes, hoststaging, applying_module):
                    module.IS_ROOT = False  # type: ignore[attr-defined]  # what a process of that user finds
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
                test(place)
                code = 0
            except BaseException:  # noqa: BLE001 - the parent fails, with what was said here
                traceback.print_exc(file=sys.__stderr__)
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    return run


def tree_at(place: Path) -> tuple[Tree, NodeTable]:
    table = NodeTable()
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    return HostTree(fd, table, entry=b"test", writable=True, hidden=lambda identity, name: False), table


def writer(content: bytes) -> Callable[[int], None]:
    def write(fd: int) -> None:
        os.write(fd, content)

    return write


def staged(place: Path, *wanted: Wanted) -> Applying:
    """*wanted* staged, checked; the content of every file is `new`."""
    tree, table = tree_at(place)
    applying = Applying(tree, table, Owner(os.geteuid(), os.getegid()))
    assert applying.takes_files_of_threads()
    for each in wanted:
        if stat.S_ISREG(each.mode):
            applying.make(each, bytes(20), writer(b"new"))
        else:
            applying.stage(each)
    return applying


def published(place: Path, *wanted: Wanted) -> Applying:
    applying = staged(place, *wanted)
    applying.check()
    applying.publish()
    applying.finish()
    return applying


def read_only_directory(place: Path) -> Path:
    made = place / "d"
    made.mkdir()
    (made / "f").write_text("old")
    (made / "gone").write_text("old")
    os.setxattr(made, "user.now", b"1")
    made.chmod(0o555)
    return made


@unprivileged
def test_attributes_of_a_read_only_directory(place: Path) -> None:
    made = read_only_directory(place)
    published(place, Wanted(b"d", stat.S_IFDIR | 0o555, xattrs=((b"user.then", b"1"),)), Wanted(b"x", FILE))
    assert os.listxattr(made) == ["user.then"]
    assert stat.S_IMODE(made.stat().st_mode) == 0o555
    published(place, Wanted(b"d", stat.S_IFDIR | 0o500, xattrs=()))
    assert os.listxattr(made) == []
    assert stat.S_IMODE(made.stat().st_mode) == 0o500


@unprivileged
def test_files_in_a_read_only_directory(place: Path) -> None:
    made = read_only_directory(place)
    published(place, Wanted(b"d/f", FILE), Wanted(b"d/more", FILE), Wanted(b"d/gone", 0), Wanted(b"top", FILE))
    assert {each.name: each.read_text() for each in made.iterdir()} == {"f": "new", "more": "new"}
    assert (place / "top").read_text() == "new"
    assert stat.S_IMODE(made.stat().st_mode) == 0o555


@unprivileged
def test_a_read_only_directory_goes(place: Path) -> None:
    read_only_directory(place)
    published(place, Wanted(b"d", 0), Wanted(b"d/f", 0), Wanted(b"d/gone", 0))
    assert not (place / "d").exists()


@unprivileged
def test_a_read_only_directory_is_closed_again_after_a_crash(place: Path) -> None:
    made = read_only_directory(place)
    applying = staged(place, Wanted(b"d/f", FILE))
    applying.check()
    steps = applying.steps
    made.chmod(0o755)  # what it had done when it was killed
    tree, table = tree_at(place)
    os.rename(place / os.fsdecode(steps.staging), place / (os.fsdecode(steps.staging) + ".begun"))
    again = Applying.resume(tree, table, Owner(os.geteuid(), os.getegid()), steps)
    again.publish()
    again.finish()
    assert (made / "f").read_text() == "new"
    assert stat.S_IMODE(made.stat().st_mode) == 0o555


@unprivileged
def test_an_owner_that_may_not_be_given(place: Path) -> None:
    """All else is as it is to be, but for bits that would let others act as the wrong user."""
    mode = stat.S_IFREG | 0o4755
    applying = published(
        place, Wanted(b"x", mode, uid=0, gid=0), Wanted(b"y", mode, uid=os.geteuid(), gid=os.getegid())
    )
    assert applying.not_owned == {b"x"}
    assert stat.S_IMODE((place / "x").stat().st_mode) == 0o755
    assert stat.S_IMODE((place / "y").stat().st_mode) == 0o4755
    assert (place / "x").read_text() == "new"


@unprivileged
def test_directories_of_others(place: Path) -> None:
    """Nothing is changed where a name in one is to be; their own attributes are left alone, and that is told."""
    if not (place / "others").exists():
        pytest.skip("only root can make a directory of another user")
    applying = staged(place, Wanted(b"others/f", FILE), Wanted(b"a", FILE))
    with pytest.raises(PermissionError) as refused:
        applying.check()
    assert (refused.value.errno, refused.value.filename) == (errno.EACCES, b"others")
    applying.finish()
    assert not (place / "a").exists()
    applying = published(
        place, Wanted(b"others", stat.S_IFDIR | 0o700, xattrs=((b"user.a", b"b"),)), Wanted(b"a", FILE)
    )
    assert applying.not_ours == {b"others"}
    assert (place / "a").exists()
    assert stat.S_IMODE((place / "others").stat().st_mode) == 0o755
