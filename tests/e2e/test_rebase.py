"""`overlay rebase`: patches and edits onto another release, live; back; and over every crash."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import Killer, signal_at
from harness import Bench, until, write_files
from modules import archive

pytestmark = pytest.mark.mount

LINES = [f"line {number}\n" for number in range(1, 31)]
Files = dict[str, str | bytes]


def lines(**changed: str) -> str:
    """The thirty lines, some of them other ones: `l5="mine"`."""
    made = list(LINES)
    for name, line in changed.items():
        made[int(name[1:]) - 1] = line + "\n"
    return "".join(made)


OLD: Files = {
    "clean.txt": lines(),
    "clash.txt": lines(),
    "patched.txt": lines(),
    "same/stays.txt": "s\n",
    "gone": "g\n",
}
NEW: Files = {**OLD, "clean.txt": lines(l25="new"), "clash.txt": lines(l5="theirs"), "patched.txt": "a\nb\n" + lines()}
del NEW["gone"]
PATCH = """Why: it is better so.
--- a/patched.txt
+++ b/patched.txt
@@ -9,3 +9,3 @@
 line 9
-line 10
+patched 10
 line 11
"""
TOML = """# the workspace
[workspace]
name = "shop"

[mounts."lib"]  # the thing
{source}
patches = [
    "patches/one.patch",  # why
]
"""


def git_world(bench: Bench) -> tuple[str, str, str]:
    """(source, the old text of the source's line, where to) of a git repository."""
    thing = bench.repository("thing", OLD)
    bench.git("tag", "v1", cwd=thing)
    (thing / "gone").unlink()
    write_files(thing, NEW)
    bench.git("add", "-A", cwd=thing)
    bench.git("commit", "-qm", "second", cwd=thing)
    bench.git("tag", "v2", cwd=thing)
    return 'git = "../thing"\nref = "v1"', 'ref = "v1"', "v2"


def archive_world(bench: Bench) -> tuple[str, str, str]:
    for name, files in (("thing-1", OLD), ("thing-2", NEW)):
        write_files(bench.base / name, files)
        with tarfile.open(bench.base / f"{name}.tar.gz", "w:gz") as archive:
            archive.add(bench.base / name, name)
    return 'archive = "../thing-1.tar.gz"', "thing-1", "../thing-2.tar.gz"


WORLDS: dict[str, Callable[[Bench], tuple[str, str, str]]] = {"git": git_world, "archive": archive_world}


def begin(bench: Bench, world: str) -> str:
    """Mount the old release with a patch, and edit it; where to rebase."""
    source, _, to = WORLDS[world](bench)
    write_files(bench.root, {"patches/one.patch": PATCH})
    bench.write_toml(TOML.format(source=source))
    bench.mount()
    lib = bench.live / "lib"
    (lib / "clean.txt").write_text(lines(l2="mine"))
    (lib / "clash.txt").write_text(lines(l5="ours"))
    (lib / "added.txt").write_text("added\n")
    os.chmod(lib / "added.txt", 0o640)
    return to


def facts(top: Path) -> dict[str, tuple[int, bytes, int]]:
    """All files below *top*: mode, content, modification time."""
    found = {}
    for here, _, names in os.walk(top):
        for name in names:
            place = Path(here) / name
            if place.name == ".git":
                continue
            st = place.stat()
            found[str(place.relative_to(top))] = (stat.S_IMODE(st.st_mode), place.read_bytes(), st.st_mtime_ns)
    return found


def own(bench: Bench) -> dict[str, bytes]:
    return {
        str(path.relative_to(bench.root)): path.read_bytes() for path in sorted(bench.root.rglob("*")) if path.is_file()
    }


def rebase(bench: Bench, *args: object, code: int | None = None, **more: Any) -> dict[str, Any]:
    done = bench.cli("overlay", "rebase", "lib", *args, "--json", check=False, **more)
    if code is not None:
        assert done.returncode == code, done.stderr
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value


def expected(top: Path) -> None:
    """What the rebase makes."""
    assert (top / "clean.txt").read_text() == lines(l2="mine", l25="new")
    clash = (top / "clash.txt").read_text()
    assert "ours\n=======\ntheirs\n" in clash
    assert "<<<<<<< your edits\n" in clash
    assert (top / "clash.txt.orig").read_text() == lines()
    assert (top / "clash.txt.ours").read_text() == lines(l5="ours")
    assert (top / "clash.txt.theirs").read_text() == lines(l5="theirs")
    assert (top / "patched.txt").read_text() == "a\nb\n" + lines(l10="patched 10")
    assert (top / "added.txt").read_text() == "added\n"
    assert stat.S_IMODE((top / "added.txt").stat().st_mode) == 0o640
    assert not (top / "gone").exists()


@pytest.mark.parametrize("world", WORLDS)
def test_forth_and_back(bench: Bench, world: str) -> None:
    to = begin(bench, world)
    lib = bench.live / "lib"
    before, files = facts(lib), own(bench)
    number = (lib / "same/stays.txt").stat().st_ino
    with open(lib / "clash.txt") as held, open(lib / "added.txt", "a") as writing:
        dry = rebase(bench, "--to", to, "--dry-run", code=1)
        assert facts(lib) == before
        assert own(bench) == files
        done = rebase(bench, "--to", to, code=1)
        assert {**dry, "dry_run": False} == done
        expected(lib)
        assert held.read() == lines(l5="ours")
        writing.write("more\n")
    assert (lib / "added.txt").read_text() == "added\nmore\n"
    assert [each["path"] for each in done["conflicts"]] == ["clash.txt"]
    assert (lib / "same/stays.txt").stat().st_ino == number or world == "archive"
    assert (lib / "same/stays.txt").stat().st_mtime_ns == before["same/stays.txt"][2]
    toml = (bench.root / "Clive.toml").read_text()
    assert f'"{to}"' in toml
    assert "# the workspace" in toml
    assert "# why" in toml
    (conflict,) = bench.entry("lib")["conflicts"]
    assert conflict["aside"] == ["clash.txt.orig", "clash.txt.ours", "clash.txt.theirs"]
    refused = bench.cli("overlay", "rebase", "lib", "--to", to, check=False)
    assert refused.returncode == 1
    assert "under way" in refused.stderr
    # Over a new start it is as it was.
    bench.unmount()
    bench.mount()
    assert [each["path"] for each in bench.entry("lib")["conflicts"]] == ["clash.txt"]
    # Back.
    (lib / "later.txt").write_text("later\n")
    back = rebase(bench, "--abort", code=0)
    shown = facts(lib)
    assert {path: each[:2] for path, each in shown.items()} == {path: each[:2] for path, each in before.items()}
    for path in ("added.txt", "clean.txt", "clash.txt", "same/stays.txt"):
        assert shown[path][2] == before[path][2], path
    assert own(bench) == files
    assert "later" in Path(back["kept"][0]).read_text()
    assert "conflicts" not in bench.entry("lib")
    assert bench.cli("overlay", "rebase", "lib", "--abort", check=False).returncode == 1
    bench.check_sound()


def test_git_goes_with_it(bench: Bench) -> None:
    to = begin(bench, "git")
    lib = bench.live / "lib"
    new = bench.git("rev-parse", "v2", cwd=bench.base / "thing").strip()
    old = bench.git("rev-parse", "v1", cwd=bench.base / "thing").strip()
    assert bench.git("rev-parse", "HEAD", cwd=lib).strip() == old
    rebase(bench, "--to", to, code=1)
    assert bench.git("rev-parse", "HEAD", cwd=lib).strip() == new
    status = sorted(bench.git("status", "--porcelain", cwd=lib).splitlines())
    aside = [f"?? clash.txt.{each}" for each in ("orig", "ours", "theirs")]
    assert status == sorted([" M clash.txt", " M clean.txt", " M patched.txt", "?? added.txt", *aside])
    assert (bench.entry("lib")["ref"], bench.entry("lib")["head"]) == (new, new)
    rebase(bench, "--abort", code=0)
    assert bench.git("rev-parse", "HEAD", cwd=lib).strip() == old
    status = sorted(bench.git("status", "--porcelain", cwd=lib).splitlines())
    assert status == [" M clash.txt", " M clean.txt", " M patched.txt", "?? added.txt"]
    # Work in git is in the way, and is not touched.
    bench.git("commit", "-qam", "mine", cwd=lib)
    refused = bench.cli("overlay", "rebase", "lib", "--to", to, check=False)
    assert refused.returncode == 1
    assert "HEAD has gone on" in refused.stderr
    bench.git("reset", "-q", "--soft", old, cwd=lib)
    refused = bench.cli("overlay", "rebase", "lib", "--to", to, check=False)
    assert "staged" in refused.stderr
    bench.git("reset", "-q", cwd=lib)
    assert rebase(bench, "--to", to, code=1)["conflicts"]
    bench.check_sound()


def test_conflicts_are_solved(bench: Bench) -> None:
    to = begin(bench, "git")
    rebase(bench, "--to", to, code=1)
    lib = bench.live / "lib"
    refused = bench.cli("overlay", "resolve", "lib", "clash.txt", check=False)
    assert refused.returncode == 1
    assert "conflict markers are still in it" in refused.stderr
    refused = bench.cli("overlay", "resolve", "lib", "clean.txt", check=False)
    assert "there is no conflict in this file" in refused.stderr
    (lib / "clash.txt").write_text(lines(l5="both"))
    dry = bench.cli("overlay", "resolve", "lib", "clash.txt", "--dry-run")
    assert "would remove clash.txt.orig" in dry.stdout
    assert (lib / "clash.txt.orig").exists()
    solved = bench.cli("overlay", "resolve", "lib", "clash.txt")
    assert "no conflict is left" in solved.stdout
    assert sorted(path.name for path in lib.glob("clash*")) == ["clash.txt"]
    assert (lib / "clash.txt").read_text() == lines(l5="both")
    assert "conflicts" not in bench.entry("lib")
    assert bench.cli("overlay", "rebase", "lib", "--abort", check=False).returncode == 1
    bench.check_sound()


def test_onto_the_same_release_nothing_changes(bench: Bench) -> None:
    begin(bench, "git")
    lib = bench.live / "lib"
    before, files = facts(lib), own(bench)
    numbers = {path: (lib / path).stat().st_ino for path in before}
    done = rebase(bench, "--to", "v1", code=0)
    assert done["patches"] == [{"name": "patches/one.patch", "state": "same"}]
    assert done["files"] == done["conflicts"] == []
    assert facts(lib) == before
    assert own(bench) == files
    assert {path: (lib / path).stat().st_ino for path in before} == numbers
    bench.check_sound()


def test_patches_that_move_and_that_go(bench: Bench) -> None:
    thing = bench.repository("thing", {"f": lines(), "g": "g\n"})
    bench.git("tag", "v1", cwd=thing)
    write_files(thing, {"f": lines(l1="x\nx\nx\nx\nx\nx", l8="new context"), "g": "taken\n"})
    bench.git("commit", "-qam", "second", cwd=thing)
    bench.git("tag", "v2", cwd=thing)
    taken = "--- a/g\n+++ b/g\n@@ -1 +1 @@\n-g\n+taken\n"
    moved = "From: me\n\n" + PATCH.replace("patched.txt", "f").replace("Why: it is better so.\n", "")
    write_files(bench.root, {"patches/moved.patch": moved, "patches/taken.patch": taken})
    bench.write_toml(
        '[workspace]\nname = "shop"\n[mounts."lib"]\ngit = "../thing"\nref = "v1"\n'
        'patches = ["patches/taken.patch", "patches/moved.patch"]\n'
    )
    bench.mount()
    files = own(bench)
    done = rebase(bench, "--to", "v2", code=0)
    states = {each["name"]: each["state"] for each in done["patches"]}
    assert states["patches/taken.patch"] == "empty"
    assert states["patches/moved.patch"] in ("same", "moved")
    assert not (bench.root / "patches/taken.patch").exists()
    assert 'patches = ["patches/moved.patch"]' in (bench.root / "Clive.toml").read_text()
    assert (bench.root / "patches/moved.patch").read_text().startswith("From: me\n")
    assert "patched 10\n" in (bench.live / "lib/f").read_text()
    assert (bench.live / "lib/g").read_text() == "taken\n"
    assert bench.entry("lib")["error"] is None
    assert own(bench) != files
    bench.check_sound()


def test_directories_that_are_left_empty_go(bench: Bench) -> None:
    """The edit of a file whose directory has another name in the next release, as `NAME-V.dist-info` of a wheel."""
    for version in ("1", "2"):
        files = {"it.py": "", f"it-{version}.info/LICENSE": lines(), f"it-{version}.info/deep/er/NAMES": "it\n" * 9}
        archive(bench.base / f"it-{version}.tar.gz", files)
    bench.write_toml('[workspace]\nname = "shop"\n[mounts.lib]\narchive = "../it-1.tar.gz"\n')
    bench.mount()
    lib = bench.live / "lib"
    (lib / "it-1.info/LICENSE").write_text(lines(l3="mine"))
    (lib / "it-1.info/deep/er/NAMES").write_text("it\n" * 9 + "mine\n")
    (lib / "mine/empty").mkdir(parents=True)
    rebase(bench, "--to", "../it-2.tar.gz", code=0)
    assert sorted(str(each.relative_to(lib)) for each in lib.rglob("*") if each.is_dir()) == [
        "it-2.info",
        "it-2.info/deep",
        "it-2.info/deep/er",
        "mine",
        "mine/empty",
    ]
    assert (lib / "it-2.info/LICENSE").read_text() == lines(l3="mine")
    bench.check_sound()


def test_a_release_that_is_not_there_changes_nothing(bench: Bench) -> None:
    begin(bench, "git")
    before, files = facts(bench.live / "lib"), own(bench)
    refused = bench.cli("overlay", "rebase", "lib", "--to", "v3", check=False)
    assert refused.returncode == 1
    assert "v3" in refused.stderr
    assert facts(bench.live / "lib") == before
    assert own(bench) == files
    bench.check_sound()


def test_what_is_written_meanwhile_is_not_lost(bench: Bench) -> None:
    """Every line that was appended before, during and after the rebase is there."""
    to = begin(bench, "git")
    lib = bench.live / "lib"
    stop = threading.Event()
    written: list[str] = []

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = f"note-{number}"
            with open(lib / name, "w") as file:
                file.write(name)
            written.append(name)
            stop.wait(0.06)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        until(lambda: len(written) > 3, "the writer")
        rebase(bench, "--to", to, code=1)
        after = len(written)
        until(lambda: len(written) > after + 2, "the writer, afterwards")
    finally:
        stop.set()
        writer.join()
    expected(lib)
    assert all((lib / name).read_text() == name for name in written)
    bench.check_sound()


def test_who_waits_for_it_goes_by_what_it_made(bench: Bench, tmp_path: Path) -> None:
    """A commit that is asked for in the middle of a rebase is one on top of the new release."""
    to = begin(bench, "git")
    lib = bench.live / "lib"
    (lib / "clash.txt").write_text(lines())
    bench.unmount()
    bench.mount(env=signal_at(tmp_path / "planted", "rebase.begun", signal.SIGSTOP))
    pid = bench.daemon_pid()
    clients = []
    try:
        for command in (("rebase", "lib", "--to", to), ("commit", "lib", "-m", "Mine"), ("diff", "lib")):
            clients.append(
                subprocess.Popen(
                    [sys.executable, "-m", "clivefs.cli", "overlay", *command],
                    env=bench.environment,
                    cwd=bench.root,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                )
            )
            until(lambda: b"State:\tT" in Path(f"/proc/{pid}/status").read_bytes(), "the daemon to stop")
            until(lambda: _is_asking(clients[-1]), "the client to ask")
    finally:
        os.kill(pid, signal.SIGCONT)
        answers = [client.communicate(timeout=60) for client in clients]
    assert [client.returncode for client in clients] == [0, 0, 0], answers
    new = bench.git("rev-parse", "v2", cwd=bench.base / "thing").strip()
    assert bench.git("rev-parse", "HEAD~", cwd=lib).strip() == new
    changed = bench.git("diff", "--name-only", "HEAD~", "HEAD", cwd=lib).split()
    assert changed == ["added.txt", "clean.txt", "patched.txt"]
    assert bench.git("show", "HEAD:clash.txt", cwd=lib) == NEW["clash.txt"]
    assert bench.git("status", "--porcelain", cwd=lib) == ""
    bench.check_sound()


def _is_asking(client: subprocess.Popen[bytes]) -> bool:
    """Whether it is connected to the daemon."""
    for each in Path(f"/proc/{client.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            if os.readlink(each).startswith("socket:"):
                return True
    return False


POINTS = (
    "rebase.begun",
    "rebase.config",
    "rebase.prepared",
    "rebase.renamed",
    "gitdir.move.pointed",
    "gitdir.move.indexed",
    "rebase.lowered",
    "overlay.put.done",
    "rebase.shown",
    "rebase.noted",
)
CRASHES = {"git": POINTS, "archive": ("rebase.renamed", "rebase.shown")}


def die(bench: Bench, killer: Killer, point: str, *args: object) -> None:
    """Have the daemon die at *point* of a rebase, and mount again."""
    pid = bench.daemon_pid()
    killer.at(point)
    assert bench.cli("overlay", "rebase", "lib", *args, check=False).returncode != 0, point
    until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of the daemon at {point}")
    killer.at("")
    bench.mount()


@pytest.mark.parametrize("world", WORLDS)
def test_crashes_leave_before_or_after(bench: Bench, world: str) -> None:
    """One after the other, at each point of the way; and what they leave can be rebased."""
    killer = Killer(bench.base / "faults", CRASHES[world])
    bench.environment |= killer.environment
    to = begin(bench, world)
    lib = bench.live / "lib"
    before, files = facts(lib), own(bench)
    for point in CRASHES[world]:
        die(bench, killer, point, "--to", to)
        if point == "rebase.noted":
            expected(lib)
            assert bench.entry("lib")["conflicts"]
            rebase(bench, "--abort", code=0)
        assert "conflicts" not in bench.entry("lib"), point
        assert own(bench) == files, point
        shown = facts(lib)
        assert {path: each[:2] for path, each in shown.items()} == {path: each[:2] for path, each in before.items()}
        kept = ("added.txt", "clean.txt", "clash.txt", "same/stays.txt")
        assert [shown[path][2] for path in kept] == [before[path][2] for path in kept], point
        if world == "git":
            old = bench.git("rev-parse", "v1", cwd=bench.base / "thing").strip()
            assert bench.git("rev-parse", "HEAD", cwd=lib).strip() == old, point
            status = sorted(bench.git("status", "--porcelain", cwd=lib).splitlines())
            assert status == [" M clash.txt", " M clean.txt", " M patched.txt", "?? added.txt"], point
    rebase(bench, "--to", to, code=1)
    expected(lib)
    bench.check_sound(allowed="clearing the dead mount")


BACK_POINTS = (
    "rebase.aborting",
    "rebase.files-back",
    "rebase.head-back",
    "rebase.rebuilt",
    "rebase.restored",
    "rebase.shown-back",
)


def test_crashes_on_the_way_back(bench: Bench) -> None:
    killer = Killer(bench.base / "faults", BACK_POINTS)
    bench.environment |= killer.environment
    to = begin(bench, "git")
    lib = bench.live / "lib"
    before, files = facts(lib), own(bench)
    for point in BACK_POINTS:
        rebase(bench, "--to", to, code=1)
        die(bench, killer, point, "--abort")
        assert "conflicts" not in bench.entry("lib"), point
        assert own(bench) == files, point
        shown = facts(lib)
        assert {path: each[:2] for path, each in shown.items()} == {path: each[:2] for path, each in before.items()}
    bench.check_sound(allowed="clearing the dead mount")


def test_help_names_it(bench: Bench) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "clivefs.cli", "overlay", "--help"], capture_output=True, text=True, check=True
    )
    for action in ("diff", "export", "commit", "rebase", "resolve", "reset"):
        assert f"\n    {action} " in done.stdout
