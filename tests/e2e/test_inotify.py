"""Watchers are told of what did not come through the mount: edits outside, restore, a followed ref.

Each with the programs that people use for it. What each calls a change differs; that it hears of it must not.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import WAIT_S, Bench, until

pytestmark = pytest.mark.mount

BEFORE = {"mod": "one\n", "from": "something to be moved, long enough to be told from others\n", "gone": "bye\n"}
AFTER = {"mod": "two, longer\n", "to": BEFORE["from"], "new": "hello\n"}

WATCHDOG = """
import sys, time
from watchdog.observers import Observer
from watchdog.events import FileSystemEventHandler
class Say(FileSystemEventHandler):
    def on_any_event(self, event):
        print(event.event_type, event.src_path, getattr(event, "dest_path", ""), flush=True)
observer = Observer()
observer.schedule(Say(), sys.argv[1], recursive=True)
observer.start()
print("ready", flush=True)
while True:
    time.sleep(3600)
"""
CHOKIDAR = """
const watcher = require("chokidar").watch(process.argv[1]);
watcher.on("ready", () => {
  console.log("ready");
  watcher.on("all", (event, path) => console.log(event, path));
});
"""


class Watching:
    """A program that watches, and what it has said."""

    def __init__(self, command: list[str], said: Path, *, ready: str, **more: object) -> None:
        self.said = said
        with said.open("wb") as out:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                **more,  # type: ignore[call-overload]
            )
        self.hears(ready)

    def hears(self, pattern: str) -> None:
        """Fails unless it says (or has said) a line that matches."""
        until(lambda: re.search(pattern, self.text(), re.MULTILINE), f"{pattern!r} in {self.said}")

    def text(self) -> str:
        return self.said.read_text(errors="replace")

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[..., Watching]]:
    """Starts programs, and ends them with the test."""
    running: list[Watching] = []

    def start(command: list[str], *, ready: str, **more: object) -> Watching:
        running.append(Watching(command, tmp_path / f"said-{len(running)}", ready=ready, **more))
        return running[-1]

    yield start
    for each in running:
        each.close()


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{program} is not installed")
    return found


def inotifywait(start: Callable[..., Watching], directory: Path) -> Watching:
    command = [needs("inotifywait"), "-m", "-r", "--format", "%e %w%f", str(directory)]
    return start(command, ready="Watches established")


def watchdog(start: Callable[..., Watching], directory: Path) -> Watching:
    if not Path("/usr/lib/python3/dist-packages/watchdog").exists():
        pytest.skip("python3-watchdog is not installed")
    return start(["/usr/bin/python3", "-c", WATCHDOG, str(directory)], ready="^ready")


def chokidar(start: Callable[..., Watching], directory: Path) -> Watching:
    if not Path("/usr/share/nodejs/chokidar").exists():
        pytest.skip("node-chokidar is not installed")
    environment = {**os.environ, "NODE_PATH": "/usr/share/nodejs"}
    return start([needs("node"), "-e", CHOKIDAR, str(directory)], ready="^ready", env=environment)


COMES = {"inotifywait": "(CREATE|MOVED_TO)", "watchdog": "(created|moved)", "chokidar": "add"}
CHANGES = {"inotifywait": "(MODIFY|MOVED_TO)", "watchdog": "(modified|moved)", "chokidar": "change"}
GOES = {"inotifywait": "(DELETE|MOVED_FROM)", "watchdog": "(deleted|moved)", "chokidar": "unlink"}
PROGRAMS = {"inotifywait": inotifywait, "watchdog": watchdog, "chokidar": chokidar}


def hears_all(program: str, watching: Watching) -> None:
    for name in ("new", "to"):
        watching.hears(rf"^{COMES[program]} .*/{name}\b")
    watching.hears(rf"^{CHANGES[program]} .*/mod\b")
    for name in ("from", "gone"):
        watching.hears(rf"^{GOES[program]} .*/{name}\b")


def write(directory: Path, files: dict[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_text(content)


def change_in_place(directory: Path) -> None:
    """From BEFORE to AFTER, as people and programs do it."""
    (directory / "mod").write_text(AFTER["mod"])
    (directory / "from").rename(directory / "to")
    (directory / "new").write_text(AFTER["new"])
    (directory / "gone").unlink()


def change_by_replacing(directory: Path) -> None:
    """The same, as editors and git save files."""
    for name in ("mod", "new"):
        (directory / ".tmp").write_text(AFTER[name])
        (directory / ".tmp").rename(directory / name)
    (directory / "from").rename(directory / "to")
    (directory / "gone").unlink()


def shows(directory: Path) -> dict[str, str]:
    return {each.name: each.read_text() for each in directory.iterdir()}


@pytest.fixture
def mounted(bench: Bench) -> Iterator[Bench]:
    """A through root and an overlay, each with a directory `d` of BEFORE."""
    write(bench.root / "d", BEFORE)
    write(bench.base / "data" / "d", BEFORE)
    bench.write_toml('[workspace]\nname = "shop"\n\n[mounts."over"]\nlocal = "../data"\nwrite = "overlay"\n')
    bench.mount()
    yield bench
    bench.check_sound()


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("where", ["through", "overlay"])
@pytest.mark.parametrize("change", [change_in_place, change_by_replacing])
def test_edits_outside(
    mounted: Bench,
    started: Callable[..., Watching],
    program: str,
    where: str,
    change: Callable[[Path], None],
) -> None:
    outside, inside = (
        (mounted.root / "d", mounted.live / "d")
        if where == "through"
        else (mounted.base / "data" / "d", mounted.live / "over" / "d")
    )
    watching = PROGRAMS[program](started, inside)
    change(outside)
    hears_all(program, watching)
    assert shows(inside) == shows(outside) == AFTER


@pytest.mark.parametrize("program", PROGRAMS)
def test_restore(mounted: Bench, started: Callable[..., Watching], program: str) -> None:
    directory = mounted.live / "d"
    for name in BEFORE:
        (directory / name).unlink()
    write(directory, AFTER)
    point = mounted.cli("snapshot").stdout.split()[0]
    for name in AFTER:
        (directory / name).unlink()
    write(directory, BEFORE)
    watching = PROGRAMS[program](started, directory)
    mounted.cli("restore", "d", "--at", point)
    hears_all(program, watching)
    assert shows(directory) == AFTER
    mounted.cli("undo")
    watching.hears(rf"^{GOES[program]} .*/new\b")
    watching.hears(rf"^{COMES[program]} .*/gone\b")


@pytest.mark.parametrize("program", PROGRAMS)
def test_followed_ref(bench: Bench, started: Callable[..., Watching], program: str) -> None:
    source = bench.repository("thing", {f"d/{name}": content for name, content in BEFORE.items()})
    bench.write_toml(
        '[workspace]\nname = "shop"\n\n[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\nfollow = true\n'
    )
    bench.mount()
    directory = bench.live / "lib/thing/d"
    watching = PROGRAMS[program](started, directory)
    change_in_place(source / "d")
    bench.git("add", "-A", cwd=source)
    bench.git("commit", "-q", "-m", "second", cwd=source)
    hears_all(program, watching)
    assert shows(directory) == AFTER
    bench.check_sound()


def test_a_directory_that_nobody_has_looked_into(mounted: Bench, started: Callable[..., Watching]) -> None:
    command = [needs("inotifywait"), "-m", "--format", "%e %w%f", str(mounted.live / "d")]
    watching = started(command, ready="Watches established")
    (mounted.root / "d" / "mod").write_text("changed")
    watching.hears("^MODIFY .*/mod$")
    watching.hears("^CLOSE_WRITE,CLOSE .*/mod$")
    (mounted.root / "d" / "mod").chmod(0o600)
    watching.hears("^ATTRIB .*/mod$")
    (mounted.root / "d" / "from").rename(mounted.root / "d" / "to")
    watching.hears("^MOVED_FROM .*/from$")
    watching.hears("^MOVED_TO .*/to$")
    (mounted.root / "d" / "sub").mkdir()
    watching.hears("^CREATE,ISDIR .*/sub$")
    (mounted.root / "d" / "sub").rmdir()
    watching.hears("^DELETE,ISDIR .*/sub$")
    (mounted.root / "d" / "gone").unlink()
    watching.hears("^DELETE .*/gone$")


def test_one_file_is_watched(mounted: Bench, started: Callable[..., Watching]) -> None:
    command = [needs("inotifywait"), "-m", "--format", "%e", str(mounted.live / "d" / "mod")]
    watching = started(command, ready="Watches established")
    (mounted.root / "d" / "mod").write_text("changed")
    watching.hears("^MODIFY$")
    (mounted.root / "d" / "other").write_text("another")
    (mounted.root / "d" / "other").rename(mounted.root / "d" / "mod")
    watching.hears("^DELETE_SELF$")


def test_what_comes_through_the_mount_is_told_once(mounted: Bench, started: Callable[..., Watching]) -> None:
    directory = mounted.live / "d"
    command = [needs("inotifywait"), "-m", "--format", "%e %w%f", str(directory)]
    watching = started(command, ready="Watches established")
    (directory / "new").write_text("x")
    (directory / "new").rename(directory / "newer")
    (directory / "newer").unlink()
    (mounted.root / "d" / "end").write_text("")
    watching.hears("^CREATE .*/end$")
    lines = watching.text().splitlines()
    for event, name in (("CREATE", "new"), ("MOVED_FROM", "new"), ("MOVED_TO", "newer"), ("DELETE", "newer")):
        assert lines.count(f"{event} {directory}/{name}") == 1, watching.text()


def test_tail_follows_a_log_that_is_rotated_outside(mounted: Bench, started: Callable[..., Watching]) -> None:
    log = mounted.root / "d" / "mod"
    watching = started([needs("tail"), "-F", "-n", "+1", str(mounted.live / "d" / "mod")], ready="^one$")
    with log.open("a") as file:
        file.write("appended\n")
    watching.hears("^appended$")
    log.rename(mounted.root / "d" / "mod.1")
    log.write_text("rotated\n")
    watching.hears("^rotated$")


def test_entr_runs_its_command(mounted: Bench, started: Callable[..., Watching]) -> None:
    path = mounted.live / "d" / "mod"
    command = f"echo {path} | {needs('entr')} -n sh -c 'echo ran'"
    watching = started(["sh", "-c", command], ready="^ran$")

    def saves(save: Callable[[], object], count: int) -> None:
        """Save until it runs: it does not listen while its command runs, and a moment longer."""
        deadline = time.monotonic() + WAIT_S
        while watching.text().count("ran") < count:
            assert time.monotonic() < deadline, f"run {count} of entr: {watching.text()}"
            save()
            with contextlib.suppress(AssertionError):
                until(lambda: watching.text().count("ran") >= count, "a run", 0.5)

    for text, count in (("changed", 2), ("again", 3)):
        saves(lambda: (mounted.root / "d" / "mod").write_text(text), count)  # noqa: B023

    def replace() -> None:
        (mounted.root / "d" / "tmp").write_text("replaced")
        (mounted.root / "d" / "tmp").rename(mounted.root / "d" / "mod")

    saves(replace, 4)


def test_the_applier_may_be_killed(mounted: Bench, started: Callable[..., Watching]) -> None:
    directory = mounted.live / "d"
    watching = inotifywait(started, directory)
    (mounted.root / "d" / "first").write_text("1")
    watching.hears("^CREATE .*/first$")
    daemon = mounted.daemon_pid()
    children = until(lambda: appliers(daemon), "an applier")
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    (mounted.root / "d" / "second").write_text("2")
    watching.hears("(^CREATE .*/second|^ATTRIB,ISDIR )")
    (mounted.root / "d" / "third").write_text("3")
    watching.hears("^CREATE .*/third$")
    assert (directory / "third").read_text() == "3"


def appliers(daemon: int) -> list[int]:
    """The applier processes of a daemon."""
    found = []
    for each in Path("/proc").glob("[0-9]*"):
        try:
            words = (each / "cmdline").read_bytes().split(b"\0")
            parent = int((each / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == daemon and any(word.endswith(b"applier_process.py") for word in words):
            found.append(int(each.name))
    return found
