"""Changes made directly in the backing directories show in the mount, whatever it had cached. How soon: `bench/`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import Bench, sample_workspace, until, write_files

pytestmark = pytest.mark.mount


@pytest.fixture(scope="module")
def mounted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with sample_workspace(tmp_path_factory.mktemp("outside")) as made:
        yield made


@pytest.fixture(params=["through", "overlay"])
def sides(request: pytest.FixtureRequest, mounted: Bench) -> tuple[Path, Path]:
    """The same new directory outside and as the mount shows it."""
    name = request.node.name.translate({ord("["): "-", ord("]"): None})
    outside, inside = (
        (mounted.root / name, mounted.live / name)
        if request.param == "through"
        else (mounted.base / "data" / name, mounted.live / "over" / name)
    )
    assert not inside.exists()  # remembered by the kernel as absent
    outside.mkdir()
    soon(inside.is_dir, True)
    return outside, inside


def soon(look: Callable[[], Any], expected: Any) -> None:
    def matches() -> bool:
        try:
            return bool(look() == expected)
        except OSError:
            return False

    until(matches, f"{expected!r} (last: {attempt(look)!r})")


def attempt(look: Callable[[], Any]) -> Any:
    try:
        return look()
    except OSError as error:
        return error


def cache(directory: Path) -> None:
    """Let the kernel remember names, attributes and content."""
    for path in directory.rglob("*"):
        path.lstat()
        if path.is_file():
            path.read_bytes()
    os.listdir(directory)


def test_content_and_size(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    (outside / "f").write_text("one")
    soon((inside / "f").read_text, "one")
    cache(inside)
    for text in ("two", "longer text", "", "x", "y"):
        (outside / "f").write_text(text)
        soon((inside / "f").read_text, text)
        soon(lambda: (inside / "f").stat().st_size, len(text))
    with (outside / "f").open("a") as file:
        file.write("appended")
    soon((inside / "f").read_text, "yappended")
    os.truncate(outside / "f", 2)
    soon((inside / "f").read_text, "ya")


def test_create_and_delete_after_a_negative_lookup(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    for _ in range(3):
        assert not (inside / "f").exists()
        (outside / "f").write_text("x")
        soon((inside / "f").exists, True)
        soon(lambda: os.listdir(inside), ["f"])
        cache(inside)
        (outside / "f").unlink()
        soon((inside / "f").exists, False)
        soon(lambda: os.listdir(inside), [])


def test_attributes(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    (outside / "f").write_text("x")
    (outside / "d").mkdir()
    soon((inside / "d").is_dir, True)
    cache(inside)
    (outside / "f").chmod(0o600)
    soon(lambda: (inside / "f").stat().st_mode & 0o777, 0o600)
    os.utime(outside / "f", ns=(5, 7))
    soon(lambda: (inside / "f").stat().st_mtime_ns, 7)
    (outside / "d").chmod(0o700)
    soon(lambda: (inside / "d").stat().st_mode & 0o777, 0o700)
    os.link(outside / "f", outside / "g")
    soon(lambda: (inside / "g").stat().st_nlink, 2)
    soon(lambda: (inside / "f").stat().st_nlink, 2)
    (outside / "g").unlink()
    soon(lambda: (inside / "f").stat().st_nlink, 1)


def test_rename_of_files_and_directories(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    write_files(outside, {"a": "a", "d/in/leaf": "leaf"})
    soon((inside / "d/in/leaf").read_text, "leaf")
    cache(inside)
    (outside / "a").rename(outside / "b")
    soon((inside / "b").exists, True)
    soon((inside / "a").exists, False)
    (outside / "d").rename(outside / "e")
    soon((inside / "e/in/leaf").exists, True)
    soon((inside / "d").exists, False)
    soon(lambda: sorted(os.listdir(inside)), ["b", "e"])
    (outside / "e/in/leaf").write_text("changed after the rename")
    soon((inside / "e/in/leaf").read_text, "changed after the rename")
    (outside / "e/in/new").write_text("n")
    soon(lambda: sorted(os.listdir(inside / "e/in")), ["leaf", "new"])


def test_atomic_save_and_kind_changes(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    (outside / "f").write_text("0")
    soon((inside / "f").read_text, "0")
    for i in range(1, 6):
        (outside / "tmp").write_text(str(i))
        (outside / "tmp").replace(outside / "f")
        soon((inside / "f").read_text, str(i))
        soon(lambda: os.listdir(inside), ["f"])
    (outside / "f").unlink()
    (outside / "f").mkdir()
    (outside / "f/in").write_text("in")
    soon((inside / "f").is_dir, True)
    soon(lambda: os.listdir(inside / "f"), ["in"])
    shutil.rmtree(outside / "f")
    (outside / "f").symlink_to("elsewhere")
    soon((inside / "f").is_symlink, True)
    soon(lambda: os.readlink(inside / "f"), "elsewhere")
    (outside / "f").unlink()
    (outside / "f").symlink_to("other")
    soon(lambda: os.readlink(inside / "f"), "other")


def test_trees_that_come_and_go(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    for i in range(3):
        write_files(outside, {f"d{n}/e{n}/f": f"{i}" for n in range(20)})
        soon(lambda: len(os.listdir(inside)), 20)
        for n in range(20):
            soon((inside / f"d{n}/e{n}/f").read_text, f"{i}")
        cache(inside)
        for n in range(20):
            shutil.rmtree(outside / f"d{n}")
        soon(lambda: os.listdir(inside), [])


def test_open_file_sees_changes_in_place_and_keeps_what_was_replaced(mounted: Bench) -> None:
    outside, inside = mounted.root / "held", mounted.live / "held"
    outside.write_text("one")
    soon(inside.exists, True)
    with inside.open("rb", buffering=0) as file:
        assert file.read() == b"one"
        with outside.open("r+b") as writer:
            writer.write(b"ONE")

        def again() -> bytes:
            file.seek(0)
            return file.read()

        soon(again, b"ONE")
        (mounted.root / "other").write_text("new")
        (mounted.root / "other").replace(outside)
        soon(inside.read_text, "new")
        assert again() == b"ONE"


def test_overlay_edits_win_over_outside_edits(mounted: Bench) -> None:
    outside, inside = mounted.base / "data" / "mine", mounted.live / "over" / "mine"
    outside.write_text("source")
    soon(inside.exists, True)
    inside.write_text("mine")
    outside.write_text("source again")
    (mounted.base / "data" / "marker").write_text("m")
    soon((mounted.live / "over/marker").exists, True)
    assert inside.read_text() == "mine"
    inside.unlink()
    outside.write_text("third")
    (mounted.base / "data" / "marker").unlink()
    soon((mounted.live / "over/marker").exists, False)
    assert not inside.exists()


def test_both_sides_write_at_once(mounted: Bench) -> None:
    """A storm from both sides; when it is over, the mount shows exactly what is there."""
    script = (
        "import os, random, shutil, sys\n"
        "os.chdir(sys.argv[1]); r = random.Random(sys.argv[2])\n"
        "for i in range(400):\n"
        "    a, b = (f'{r.choice(\"ab\")}/{r.randrange(8)}' for _ in range(2))\n"
        "    try:\n"
        "        match r.randrange(6):\n"
        "            case 0 | 1: open(a, 'w').write(str(i) * r.randrange(9))\n"
        "            case 2: os.unlink(a)\n"
        "            case 3: os.rename(a, b)\n"
        "            case 4: os.stat(a); open(a).read()\n"
        "            case 5: os.listdir('a'), os.link(a, b)\n"
        "    except OSError: pass\n"
    )
    outside, inside = mounted.root / "storm", mounted.live / "storm"
    for name in "ab":
        (outside / name).mkdir(parents=True)
    soon((inside / "b").is_dir, True)
    workers = [
        subprocess.Popen([sys.executable, "-c", script, str(where), str(seed)])
        for seed, where in enumerate([outside, inside, outside, inside])
    ]
    assert [worker.wait(600) for worker in workers] == [0] * 4

    def picture(root: Path) -> list[tuple[object, ...]]:
        found: list[tuple[object, ...]] = []
        for path in sorted(root.rglob("*")):
            st = path.stat()
            regular = path.is_file()
            found.append(
                (
                    path.relative_to(root),
                    st.st_size if regular else 0,
                    st.st_nlink,
                    path.read_bytes() if regular else b"",
                )
            )
        return found

    soon(lambda: picture(inside), picture(outside))


def test_git_outside_and_inside_the_same_checkout(mounted: Bench) -> None:
    """The workspace root as a git repository, worked on from both sides."""
    root, live = mounted.root, mounted.live
    (root / ".gitignore").write_text("*\n!/code/\n!/code/**\n")
    mounted.git("init", "-q", "-b", "main", cwd=root)
    write_files(root, {f"code/{i}.txt": f"{i}\n" for i in range(30)})
    mounted.git("add", "-A", cwd=root)
    mounted.git("commit", "-qm", "outside", cwd=root)
    soon(lambda: mounted.git("status", "--porcelain", cwd=live), "")
    (live / "code/1.txt").write_text("inside\n")
    assert mounted.git("status", "--porcelain", cwd=live) == " M code/1.txt\n"
    assert mounted.git("status", "--porcelain", cwd=root) == " M code/1.txt\n"
    mounted.git("commit", "-qam", "inside", cwd=live)
    mounted.git("switch", "-q", "-c", "topic", "HEAD~1", cwd=root)
    soon((live / "code/1.txt").read_text, "1\n")
    soon(lambda: mounted.git("branch", "--show-current", cwd=live), "topic\n")
    soon(lambda: mounted.git("status", "--porcelain", cwd=live), "")
    (live / "code/2.txt").write_text("topic\n")
    mounted.git("commit", "-qam", "topic", cwd=live)
    mounted.git("rebase", "-q", "main", cwd=live)
    assert (root / "code/1.txt").read_text() == "inside\n"
    assert mounted.git("log", "--format=%s", cwd=root) == "topic\ninside\noutside\n"
    (live / "code/3.txt").write_text("stash\n")
    mounted.git("stash", cwd=live)
    mounted.git("stash", "pop", cwd=root)
    soon((live / "code/3.txt").read_text, "stash\n")
    mounted.git("checkout", "-q", "--", ".", cwd=live)
    mounted.git("gc", "-q", "--prune=now", cwd=live)
    mounted.git("worktree", "add", "-q", "../wt", cwd=root)
    assert mounted.git("fsck", "--strict", cwd=root) == ""
    assert mounted.git("fsck", "--strict", cwd=live) == ""
    assert mounted.git("status", "--porcelain", cwd=root) == ""
    shutil.rmtree(root / ".git")
    soon((live / ".git").exists, False)


def test_one_edit_after_the_other_shows(mounted: Bench) -> None:
    """Each of them, though what it changed had just been looked at."""
    outside, inside = mounted.root / "latency", mounted.live / "latency"
    outside.write_text("start")
    soon(inside.read_text, "start")
    for size in range(1, 61):
        inside.stat()
        inside.read_text()
        outside.write_text("x" * size)
        soon(lambda: (inside.stat().st_size, inside.read_text()), (size, "x" * size))


def test_times_of_a_directory_that_nobody_has_looked_into(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    (outside / "dir").mkdir()
    soon((inside / "dir").is_dir, True)
    before = (inside / "dir").stat().st_mtime_ns
    os.utime(outside / "dir", ns=(0, 0))
    soon(lambda: (inside / "dir").stat().st_mtime_ns, 0)
    write_files(outside / "dir", {"new": ""})
    soon(lambda: (inside / "dir").stat().st_mtime_ns >= before, True)


def test_changes_below_a_directory_that_the_overlay_has_renamed(mounted: Bench) -> None:
    outside, inside = mounted.base / "data" / "to-rename", mounted.live / "over"
    write_files(outside, {"file": "old\n", "deep/file": "old\n"})
    soon((inside / "to-rename/deep/file").read_text, "old\n")
    (inside / "to-rename").rename(inside / "renamed")
    shown = inside / "renamed"
    assert (shown / "file").stat().st_size == (shown / "deep/file").stat().st_size == 4
    assert not (shown / "new").exists()
    assert not (shown / "deep/new").exists()
    write_files(outside, {"file": "changed\n", "deep/file": "changed\n", "new": "", "deep/new": ""})
    soon(lambda: (shown / "file").stat().st_size, 8)
    soon(lambda: (shown / "deep/file").stat().st_size, 8)
    soon((shown / "new").exists, True)
    soon((shown / "deep/new").exists, True)


def test_a_file_made_outside_this_moment_is_opened(sides: tuple[Path, Path]) -> None:
    outside, inside = sides
    for each in map(str, range(100)):
        assert not (inside / each).exists()
        (outside / each).write_text("outside\n")
        with open(inside / each, "a") as file:
            file.write("inside\n")
        assert (inside / each).read_text() == "outside\ninside\n"
