"""Owners and hard links when going back, in trees that are written through and in overlays."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from faults import kill_at, planted
from harness import Bench, write_files
from test_restore import contents
from test_sessions import points, snapshot

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to others")
TOPS = ("", "over")
"""Where files are: in the workspace's own directory, and in an overlay."""


@pytest.fixture
def both(bench: Bench) -> Bench:
    """A mounted workspace, written through, with an overlay in it."""
    write_files(bench.base / "under", {"lower.txt": "lower\n"})
    bench.write_toml('[workspace]\nname = "shop"\n[mounts.over]\nlocal = "../under"\nwrite = "overlay"\n')
    bench.mount()
    return bench


def owner(path: Path) -> tuple[int, int]:
    st = path.lstat()
    return st.st_uid, st.st_gid


def told(bench: Bench, *args: str) -> dict[str, str]:
    """What `restore` says that it changes."""
    ran = json.loads(bench.cli("restore", *args, "--json").stdout)
    return {each["path"]: each["status"] for each in ran["changes"]}


def at(top: str, *names: str) -> set[str]:
    return {os.path.join(top, name) for name in names}


@needs_root
@pytest.mark.parametrize("top", TOPS)
def test_a_difference_of_owners_alone(both: Bench, top: str) -> None:
    live = both.live / top
    write_files(live, {"mine": "same\n", "d/inner": "same\n"})
    os.symlink("mine", live / "link")
    os.chown(live / "d", 11, 12)
    (live / "d/inner").chmod(0o640)
    then, state = snapshot(both).name, contents(live)
    times = (live / "mine").stat().st_mtime_ns
    os.chown(live / "mine", 7, -1)
    os.chown(live / "link", 7, 8, follow_symlinks=False)
    os.chown(live / "d", 0, 0)
    os.chown(live / "d/inner", -1, 9)
    wanted = at(top, "mine", "link", "d", "d/inner")
    now = snapshot(both).name
    assert both.cli("diff", then, now).stdout.splitlines() == [f"M {path}" for path in sorted(wanted)]
    assert both.cli("diff", "--stat", "--exit-code", then, now, check=False).returncode == 1
    assert now in both.cli("log", "--json", os.path.join(top, "mine"), cwd=both.live).stdout
    assert told(both, ".", "--at", then, "--dry-run").keys() == wanted
    assert told(both, ".", "--at", then).keys() == wanted
    assert (owner(live / "mine"), owner(live / "link")) == ((0, 0), (0, 0))
    assert (owner(live / "d"), owner(live / "d/inner")) == ((11, 12), (0, 0))
    assert contents(live) == state
    assert (live / "mine").stat().st_mtime_ns == times, "its content has not changed"
    assert "nothing differs" in both.cli("restore", ".", "--at", then).stdout
    both.cli("undo")
    assert (owner(live / "mine"), owner(live / "link")) == ((7, 0), (7, 8))
    assert (owner(live / "d"), owner(live / "d/inner")) == ((0, 0), (0, 9))
    both.cli("redo")
    assert contents(live) == state
    both.check_sound()


def one_file(*paths: Path) -> bool:
    return len({path.stat().st_ino for path in paths}) == 1 and {path.stat().st_nlink for path in paths} == {len(paths)}


@pytest.mark.parametrize("top", TOPS)
def test_names_of_one_file_become_one_again_and_apart_again(both: Bench, top: str) -> None:
    live = both.live / top
    write_files(live, {"a": "one\n", "d/other": "o\n"})
    os.link(live / "a", live / "d/b")
    os.symlink("a", live / "s")
    os.link(live / "s", live / "d/s", follow_symlinks=False)
    linked = snapshot(both).name
    mtime_ns = (live / "a").stat().st_mtime_ns
    for name in ("d/b", "d/s"):
        (live / name).unlink()
    write_files(live, {"d/b": "one\n"})
    os.symlink("a", live / "d/s")
    os.utime(live / "d/b", ns=(mtime_ns, mtime_ns))
    apart = snapshot(both).name
    assert told(both, ".", "--at", linked, "--dry-run").keys() == at(top, "a", "d/b", "s", "d/s")
    both.cli("restore", ".", "--at", linked)
    assert one_file(live / "a", live / "d/b")
    assert (live / "s").lstat().st_ino == (live / "d/s").lstat().st_ino
    assert (live / "d/b").stat().st_mtime_ns == mtime_ns, "its content has not changed"
    assert "nothing differs" in both.cli("restore", ".", "--at", linked).stdout
    both.cli("restore", ".", "--at", apart)
    assert not one_file(live / "a", live / "d/b")
    assert {(live / name).stat().st_nlink for name in ("a", "d/b")} == {1}
    both.cli("undo")
    assert one_file(live / "a", live / "d/b")
    (live / "a").write_text("both\n")
    assert (live / "d/b").read_text() == "both\n"
    assert (snapshot(both) / top / "d/b").read_text() == "both\n"
    both.check_sound()


@pytest.mark.parametrize("top", TOPS)
def test_other_content_of_a_linked_file(both: Bench, top: str) -> None:
    """Both names have it; where one alone is named, the other keeps what it is."""
    live = both.live / top
    write_files(live, {"a": "then\n"})
    os.link(live / "a", live / "b")
    then = snapshot(both).name
    (live / "a").write_text("now\n")
    snapshot(both)
    both.cli("restore", ".", "--at", then)
    assert one_file(live / "a", live / "b")
    assert (live / "b").read_text() == "then\n"
    both.cli("undo")
    assert one_file(live / "a", live / "b")
    assert (live / "b").read_text() == "now\n"
    kept = (live / "b").stat().st_ino
    both.cli("restore", os.path.join(top, "a"), "--at", then)
    assert [(live / name).read_text() for name in "ab"] == ["then\n", "now\n"]
    assert [(live / name).stat().st_nlink for name in "ab"] == [1, 1]
    assert (live / "b").stat().st_ino == kept
    point = snapshot(both)
    assert [(point / top / name).read_text() for name in "ab"] == ["then\n", "now\n"]
    both.check_sound()


@pytest.mark.parametrize("top", TOPS)
def test_a_name_that_an_editor_took_from_the_others(both: Bench, top: str) -> None:
    """One of three names got a file of its own; it alone is told, and is one with the others again."""
    live = both.live / top
    write_files(live, {"a": "then\n"})
    os.link(live / "a", live / "b")
    os.link(live / "a", live / "c")
    then = snapshot(both).name
    write_files(live, {"a.new": "now\n"})
    os.rename(live / "a.new", live / "a")
    os.unlink(live / "c")
    now = snapshot(both).name
    assert told(both, ".", "--at", then) == {os.path.join(top, "a"): "M", os.path.join(top, "c"): "A"}
    assert one_file(live / "a", live / "b", live / "c")
    both.cli("restore", ".", "--at", now)
    assert (live / "b").stat().st_nlink == 1
    both.cli("restore", os.path.join(top, "a"), os.path.join(top, "c"), "--at", then)
    assert one_file(live / "a", live / "c")
    assert (live / "b").stat().st_nlink == 1
    both.check_sound()


def test_a_crash_between_two_names_of_a_file(bench: Bench) -> None:
    bench.write_toml('[workspace]\nname = "shop"\n')
    write_files(bench.root, {"a": "then\n"})
    os.link(bench.root / "a", bench.root / "b")
    bench.mount(env=kill_at(bench.base / "faults", "apply.begun"))
    then = snapshot(bench).name
    (bench.live / "a").write_text("now\n")
    snapshot(bench)
    bench.cli("restore", ".", "--at", then, check=False)
    bench.mount()
    assert one_file(bench.live / "a", bench.live / "b")
    assert (bench.live / "b").read_text() == "then\n"
    assert "nothing differs" in bench.cli("restore", ".", "--at", then).stdout
    bench.check_sound(allowed="clearing the dead mount")


def test_the_text_and_the_permissions_of_the_config(bench: Bench) -> None:
    """Both come back, and its attributes, in one point."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    (bench.root / "Clive.toml").chmod(0o644)
    bench.mount()
    os.setxattr(bench.live / "Clive.toml", "user.note", b"then")
    then = snapshot(bench).name
    bench.write_toml('[workspace]\nname = "shop"\n# more\n')
    (bench.live / "Clive.toml").chmod(0o600)
    os.removexattr(bench.live / "Clive.toml", "user.note")
    snapshot(bench)
    count = len(points(bench))
    bench.cli("restore", ".", "--at", then)
    assert (bench.root / "Clive.toml").read_text() == '[workspace]\nname = "shop"\n'
    assert (bench.live / "Clive.toml").stat().st_mode & 0o777 == 0o644
    assert os.getxattr(bench.live / "Clive.toml", "user.note") == b"then"
    assert "nothing differs" in bench.cli("restore", ".", "--at", then).stdout
    assert len(points(bench)) == count + 1
    bench.cli("undo")
    assert (bench.live / "Clive.toml").stat().st_mode & 0o777 == 0o600
    bench.check_sound()


def test_attributes_that_are_set_in_the_moment_in_which_a_file_is_shown(bench: Bench) -> None:
    """Its change time is that of the restore then, and its content what restore made: the attributes are not."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    write_files(bench.root, {"a": "then\n", "b": "then\n"})
    code = f"""
import os
from clivefs.base.ports import FAULTS
FAULTS.plant("apply.put", lambda: os.setxattr({str(bench.root / "a")!r}, "user.note", b"just then"))
"""
    bench.mount(env=planted(bench.base / "faults", code))
    then = snapshot(bench).name
    write_files(bench.live, {"a": "now\n", "b": "now\n"})
    snapshot(bench)
    bench.cli("restore", ".", "--at", then)
    point = snapshot(bench)
    assert os.getxattr(bench.live / "a", "user.note") == b"just then"
    assert os.getxattr(point / "a", "user.note") == b"just then"
    assert os.listxattr(point / "b") == []
    bench.check_sound()


@needs_root
def test_an_owner_that_we_may_not_give_is_said_once(bench: Bench) -> None:
    """As in the daemon of a user who is not root; the rest is done."""
    bench.write_toml('[workspace]\nname = "shop"\n')
    write_files(bench.root, {f"f{number}": "then\n" for number in range(5)})
    code = "from clivefs.mounts import attributes\nattributes.IS_ROOT = False"
    bench.mount(env=planted(bench.base / "faults", code))
    for number in range(5):
        os.chown(bench.root / f"f{number}", 7, 7)
    then = snapshot(bench).name
    for number in range(5):
        os.chown(bench.root / f"f{number}", 0, 0)
    inode = (bench.live / "f0").stat().st_ino
    dry = json.loads(bench.cli("restore", ".", "--at", then, "--dry-run", "--json", check=False).stdout)
    assert (dry["changes"], dry["not_owned"]) == ([], [f"f{number}" for number in range(5)])
    ran = bench.cli("restore", ".", "--at", then, check=False)
    assert (ran.returncode, ran.stdout) == (1, f"nothing else differs from {then}\n")
    assert ran.stderr == "not with the owner of then, which only root can give: f0, f1, f2 and 2 more\n"
    assert (bench.live / "f0").stat().st_ino == inode
    (bench.live / "f0").write_text("now\n")
    assert told(bench, ".", "--at", then) == {"f0": "M"}
    assert (bench.live / "f0").read_text() == "then\n"
    (bench.live / "later").write_text("later\n")
    snapshot(bench)
    for _ in range(4):  # also over the points in which nothing but owners changed
        bench.cli("undo", check=False)
    assert not (bench.live / "later").exists()
    assert "there is nothing to undo" not in bench.cli("redo", check=False).stderr
    bench.check_sound()


@pytest.mark.parametrize("mode", ["overlay", "through"])
def test_the_directory_of_a_mount_entry(bench: Bench, mode: str) -> None:
    write_files(bench.base / "under", {"file": "same\n"})
    bench.write_toml(f'[workspace]\nname = "shop"\n[mounts.over]\nlocal = "../under"\nwrite = "{mode}"\n')
    bench.mount()
    top = bench.live / "over"
    top.chmod(0o750)
    os.setxattr(top, "user.note", b"then")
    then = snapshot(bench).name
    top.chmod(0o700)
    os.removexattr(top, "user.note")
    if os.geteuid() == 0:
        os.chown(top, 5, 6)
    snapshot(bench)
    assert told(bench, ".", "--at", then) == {"over": "M"}
    assert top.stat().st_mode & 0o777 == 0o750
    assert os.getxattr(top, "user.note") == b"then"
    assert owner(top) == (os.geteuid(), os.getegid())
    assert "nothing differs" in bench.cli("restore", ".", "--at", then).stdout
    bench.cli("undo")
    assert top.stat().st_mode & 0o777 == 0o700
    bench.check_sound()
