"""The cases. Each makes its inputs below a directory, measures, and tells rows; `CASES` names them."""

from __future__ import annotations

import contextlib
import os
import shutil
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench import inputs, sessions
from bench.history import history
from bench.measure import Row, interleaved, seconds
from bench.modules import mounted_wheel
from bench.sessions_live import sessions_live
from bench.soak import soak
from bench.workbench import Workbench


class Size(NamedTuple):
    """How much is measured."""

    many: int
    """Files of the large repository."""
    some: int
    """Files of the real one."""
    ref: int
    """Files of the ref whose first `git status` is taken."""
    module: int
    """Files of the patched module."""
    big_mib: int
    repeats: int
    saves: int
    """Of a patch."""
    points: int
    """Of the long history."""

    @classmethod
    def full(cls) -> Size:
        return cls(100_000, 5_000, 5_800, 50_000, 256, 7, 100, 100_000)

    @classmethod
    def quick(cls) -> Size:
        return cls(10_000, 1_000, 1_000, 5_000, 32, 3, 20, 3_000)


@contextlib.contextmanager
def workbench(base: Path) -> Iterator[Workbench]:
    made = Workbench(base)
    try:
        yield made
    finally:
        made.close()


def run(*command: object, cwd: Path, ok: tuple[int, ...] = (0,)) -> None:
    """Run a command, its output read and thrown away."""
    done = subprocess.run([str(each) for each in command], cwd=cwd, stdout=subprocess.DEVNULL, check=False)
    if done.returncode not in ok:
        raise SystemExit(f"{command} exited with {done.returncode}")


def find(directory: Path) -> Callable[[], None]:
    """List a tree and stat every file of it: what `find` with any test does."""
    return lambda: run("find", ".", "-size", "+1000000k", cwd=directory)


def status(directory: Path) -> Callable[[], None]:
    def call() -> None:
        done = subprocess.run(["git", "status", "--short"], cwd=directory, capture_output=True, text=True, check=True)
        if done.stdout:
            raise SystemExit(f"git status in {directory} is not clean:\n{done.stdout[:500]}")

    return call


def grep(directory: Path) -> Callable[[], None]:
    return lambda: run("grep", "-rq", "no such text", "--exclude-dir=.git", ".", cwd=directory, ok=(0, 1))


def large_ref(base: Path, size: Size) -> list[Row]:
    """First byte, `find` and memory of a ref with very many files, against `git worktree add`."""
    repository = inputs.many_files(base / "many", size.many)
    first = "d000/s00/f00000.txt"
    worktree = base / "worktree"
    added = seconds(lambda: inputs.git("worktree", "add", "-q", "--detach", worktree, "main", cwd=repository))
    scale = f"{size.many:,}-file ref"
    rows = []
    colds, attaches = [], []
    for turn in range(size.repeats):
        with workbench(base / f"cold{turn}") as bench:
            bench.table(big=f'git = "{repository}"\nref = "main"')

            def mount_and_read(bench: Workbench = bench) -> None:
                bench.mount()
                run("head", "-c1", bench.live / "big" / first, cwd=base)

            colds.append(seconds(mount_and_read))
            bench.unmount()
        with workbench(base / f"attach{turn}") as bench:
            bench.table()
            bench.mount()

            def attach_and_read(bench: Workbench = bench) -> None:
                bench.cli("attach", "big", f"git+{repository}@main", "-w", "shop")
                run("head", "-c1", bench.live / "big" / first, cwd=base)

            attaches.append(seconds(attach_and_read))
            bench.unmount()
    cold, attach = statistics.median(colds), statistics.median(attaches)
    rows.append(Row(f"{scale}: mount from nothing, first byte; `git worktree add`", cold, added, "< 1.5 s", cold < 1.5))
    met = attach < 0.15 and added / attach >= 30
    rows.append(Row(f"{scale}: attach, first byte; `git worktree add`", attach, added, "< 150 ms, 1/30", met))
    with workbench(base / "walk") as bench:
        bench.table(big=f'git = "{repository}"\nref = "main"')
        bench.mount()
        tree = bench.live / "big"
        git_status = seconds(status(tree))
        met = git_status < 10 * size.many / 100_000
        rows.append(Row(f"{scale}: first `git status`", git_status, seconds(status(worktree)), "< 10 s", met))
        bench.unmount()
        bench.mount()
        once = seconds(find(tree))
        plain = seconds(find(worktree))
        resident = bench.resident_mib()
        rows.append(Row(f"{scale}: `find`, cold", once, plain, "< 10 s", once < 10))
        rows.append(Row(f"{scale}: daemon resident after it", resident, None, "< 300 MiB", resident < 300, "MiB"))
        ours, plain = interleaved(size.repeats, find(tree), find(worktree))
        rows.append(Row(f"{scale}: `find`, warm", ours, plain, "< 8x", ours < 8 * plain))
        bench.unmount()
    shutil.rmtree(worktree)
    return rows


def checkouts(base: Path, size: Size) -> list[Row]:
    """`git status`, `find` and `grep -r` in a real checkout and a mounted ref of the same repository."""
    repository = inputs.standard_library(base / "library", size.some)
    outside = base / "library-outside"
    subprocess.run(["git", "clone", "-q", repository, outside], check=True)
    rows = []
    with workbench(base / "checkouts") as bench:
        bench.table(
            checkout=f'local = "{repository}"\nwrite = "through"',
            ref=f'git = "{repository}"\nref = "main"',
        )
        bench.mount()
        for name, told in (("checkout", "local checkout"), ("ref", "mounted ref")):
            tree = bench.live / name
            scale = f"{size.some:,}-file {told}"
            for what, action, limit in (("git status", status, 2.5), ("grep -r", grep, 8), ("find", find, 8)):
                first = seconds(action(tree))
                ours, plain = interleaved(size.repeats, action(tree), action(outside))
                rows.append(Row(f"{scale}: `{what}`, warm", ours, plain, f"< {limit}x", ours < limit * plain))
                rows.append(Row(f"{scale}: `{what}`, first", first, plain, "", None))
        for each in (repository, outside):
            inputs.git("config", "core.untrackedCache", "true", cwd=each)
        ours, plain = interleaved(size.repeats, status(bench.live / "checkout"), status(outside))
        what = f"{size.some:,}-file local checkout: `git status`, warm, core.untrackedCache in both"
        rows.append(Row(what, ours, plain, "", None))
        bench.unmount()
    return rows


def first_status(base: Path, size: Size) -> list[Row]:
    """The first `git status` after mounting a real ref that was never checked out."""
    repository = inputs.standard_library(base / "library-ref", size.ref)
    times = []
    for turn in range(3):
        with workbench(base / f"first{turn}") as bench:
            bench.table(ref=f'git = "{repository}"\nref = "main"')
            bench.mount()
            times.append(seconds(status(bench.live / "ref")))
            bench.unmount()
    ours = statistics.median(times)
    what = f"{size.ref:,}-file ref: first `git status` after mounting"
    return [Row(what, ours, seconds(status(repository)), "< 1 s", ours < 1)]


_PATCHED = "d000/s00/f00001.txt"
_PATCH = f"--- a/{_PATCHED}\n+++ b/{_PATCHED}\n@@ -1,2 +1,2 @@\n-file 1\n+%s\n file 1\n"
_SHOWN_S = 20.0


def patch_change(base: Path, size: Size) -> list[Row]:
    """From the save of a one-line change of a patch until the mount shows the patched file with it."""
    repository = inputs.many_files(base / "module", size.module)
    inputs.git("archive", "-o", base / "module.tar", "main", cwd=repository)
    rows = []
    with workbench(base / "patch") as bench:
        bench.table(module=f'archive = "{base / "module.tar"}"\npatches = ["patches/*.patch"]')
        (bench.root / "patches").mkdir()
        (bench.root / "patches" / "one.patch").write_text(_PATCH % "first")
        bench.mount()
        for known in ("nothing of it known", "all of it known"):
            for where, directory in (("in the mount", bench.live), ("outside", bench.root)):
                patch = directory / "patches" / "one.patch"
                times = sorted(
                    _until_shown(patch, f"{where}, {known}, {number}", bench.live / "module" / _PATCHED)
                    for number in range(size.saves)
                )
                median, p95 = statistics.median(times), times[len(times) * 95 // 100]
                what = f"{size.module:,}-file module, {known}: a patch saved {where}, until shown"
                rows.append(Row(f"{what}, median", median, None, "< 100 ms", median < 0.1))
                rows.append(Row(f"{what}, 95 of 100", p95, None, "< 100 ms", p95 < 0.1))
            run("find", ".", "-size", "+1000000k", cwd=bench.live / "module")
        bench.unmount()
    return rows


def _until_shown(patch: Path, line: str, patched: Path) -> float:
    """How long it takes after the save of *patch* until *patched* begins with *line*."""
    wanted = line.encode()
    begin = time.perf_counter()
    patch.write_text(_PATCH % line)
    while not patched.read_bytes().startswith(wanted):
        if time.perf_counter() - begin > _SHOWN_S:
            raise SystemExit(f"{patched} does not show {line!r}")
        time.sleep(0.0005)  # the daemon has the same CPU
    return time.perf_counter() - begin


def throughput(base: Path, size: Size) -> list[Row]:
    """Large sequential reads and writes, and many small files, in an overlay; for information."""
    archive = base / "files.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(inputs.standard_library(base / "library-tar", size.some), "files", filter=_without_git)
    outside = base / "plain"
    outside.mkdir()
    (base / "under").mkdir()
    mib = size.big_mib
    (base / "under" / "big").write_bytes(os.urandom(1 << 20) * mib)
    shutil.copyfile(base / "under" / "big", outside / "big")
    rows = []
    with workbench(base / "throughput") as bench:
        bench.table(over=f'local = "{base / "under"}"\nwrite = "overlay"')
        bench.mount()
        over = bench.live / "over"

        def write(directory: Path) -> Callable[[], None]:
            return lambda: run("dd", "if=/dev/zero", "of=new", "bs=1M", f"count={mib}", "status=none", cwd=directory)

        def read(directory: Path) -> Callable[[], None]:
            return lambda: run("dd", "if=big", "of=/dev/null", "bs=1M", "status=none", cwd=directory)

        def untar(directory: Path) -> Callable[[], None]:
            def call() -> None:
                run("tar", "-xf", archive, cwd=directory)

            return call

        first = seconds(read(over))
        rows.append(Row(f"read {mib} MiB, first", first, seconds(read(outside)), "", None))
        for what, action in ((f"read {mib} MiB, again", read), (f"write {mib} MiB", write)):
            ours, plain = interleaved(size.repeats, action(over), action(outside))
            rows.append(Row(what, ours, plain, "", None))
        ours, plain = seconds(untar(over)), seconds(untar(outside))
        rows.append(Row(f"untar {size.some:,} files into an overlay", ours, plain, "", None))
        ours = seconds(lambda: run("rm", "-r", "files", cwd=over))
        plain = seconds(lambda: run("rm", "-r", "files", cwd=outside))
        rows.append(Row(f"rm -r of {size.some:,} files in an overlay", ours, plain, "", None))
        bench.unmount()
    return rows


def _without_git(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.startswith("files/.git") else member


CASES: dict[str, Callable[[Path, Size], list[Row]]] = {
    "large_ref": large_ref,
    "checkouts": checkouts,
    "first_status": first_status,
    "patch_change": patch_change,
    "throughput": throughput,
    "sessions": sessions.sessions,
    "sessions_live": sessions_live,
    "history": history,
    "wheel": lambda base, size: mounted_wheel(base, size.some, size.repeats),
    "soak": lambda base, size: soak(base, 40 if size == Size.quick() else 300),
}
ON_REQUEST = ("history", "soak")
"""Cases that are run only where they are named."""
