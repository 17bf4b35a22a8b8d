"""Recording with a daemon, as its users have it: saves, untar, restore, and a long past as directories."""

from __future__ import annotations

import json
import os
import statistics
import struct
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bench import inputs
from bench.measure import Row, seconds
from bench.workbench import Workbench
from clivefs.mounts import identity
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.names import point_name
from clivefs.mounts.points.point import make_point
from clivefs.objects.encode import MODE_FILE, TreeEntry
from clivefs.objects.store import Store

if TYPE_CHECKING:
    from bench.cases import Size

_SAVES = 60
_QUIET_S = 0.025
_EDITED = "d000/s00/f00007.txt"
_TURNS = 3
_FORKS = 5
_OFF = "\n[sessions]\nrecord = false\n"


def sessions_live(base: Path, size: Size) -> list[Row]:
    """The rows of recording, with a daemon."""
    return [
        *_saves(base, size),
        *_untar(base, size),
        *_restore(base, size),
        *_forks(base, size),
        *_long_past(base, size),
    ]


@contextmanager
def _bench(base: Path, *, record: bool = True) -> Iterator[Workbench]:
    bench = Workbench(base)
    bench.table()
    if not record:
        toml = bench.root / "Clive.toml"
        toml.write_text(toml.read_text() + _OFF)
    try:
        yield bench
    finally:
        bench.close()


@contextmanager
def _points(bench: Workbench) -> Iterator[Points]:
    with Store.open(bench.base / "store", create=False) as store:
        yield Points(store, identity.workspace_id(store, str(bench.root)))


def _saves(base: Path, size: Size) -> list[Row]:
    """From the end of a save until its point is durable, without the quiet time that is waited for."""
    with _bench(base / "saves") as bench:
        repository = inputs.many_files(base / "saves-many", size.many)
        inputs.git("checkout", "-q", "main", cwd=repository)
        for name in os.listdir(repository):
            os.rename(repository / name, bench.root / name)
        inputs.git("reset", "-q", cwd=bench.root)
        (bench.root / ".git/info/exclude").write_text("Clive.toml\n")
        bench.mount()
        bench.cli("snapshot")
        times, commits = [], []
        with _points(bench) as points:
            for number in range(_SAVES):
                head = points.head()
                (bench.live / _EDITED).write_text(f"edit {number}\n")
                closed = time.perf_counter()
                time.sleep(_QUIET_S)
                while points.head() == head:
                    time.sleep(0.0005)
                times.append(time.perf_counter() - closed - _QUIET_S)
                if number % 12 == 0:
                    commits.append(seconds(lambda: _commit(bench.root)))
                    bench.cli("snapshot")
        bench.unmount()
    ours, plain = statistics.median(times), statistics.median(commits)
    scale = f"{size.many:,}-file workspace, mounted"
    return [
        Row(f"{scale}: a save, until durable after the quiet time", ours, None, "< 10 ms", ours < 0.010),
        Row(f"{scale}: the same; `git add -A && git commit`", ours, plain, "< 1/20", ours * 20 < plain),
    ]


def _commit(repository: Path) -> None:
    inputs.git("add", "-A", cwd=repository)
    inputs.git("commit", "-q", "--allow-empty", "-m", "save", cwd=repository)


def _untar(base: Path, size: Size) -> list[Row]:
    archive = base / "sessions.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(inputs.standard_library(base / "sessions-library", size.some), "files", filter=_without_git)
    rows = []
    with _bench(base / "on") as on, _bench(base / "off", record=False) as off:
        for bench in (on, off):
            (bench.base / "data").mkdir()
            text = (bench.root / "Clive.toml").read_text()
            over = f'\n[mounts.over]\nlocal = "{bench.base / "data"}"\nwrite = "overlay"\n'
            (bench.root / "Clive.toml").write_text(text + over)
            bench.mount()
        on.cli("snapshot")
        for what, place in (("an overlay", "over"), ("a checkout", ".")):
            times: dict[bool, list[float]] = {True: [], False: []}
            for turn in range(2 * _TURNS + 2):
                recorded = turn % 2 == 0
                target = (on if recorded else off).live / place / f"t{turn}"
                target.mkdir()
                took = seconds(lambda target=target: _run("tar", "-xf", archive, cwd=target))
                if recorded:
                    on.cli("snapshot")
                if turn > 1:
                    times[recorded].append(took)
            ours, plain = statistics.median(times[True]), statistics.median(times[False])
            told = f"untar {size.some:,} files into {what}, recorded; not recorded"
            rows.append(Row(told, ours, plain, "< 1.3x", ours < 1.3 * plain))
        on.unmount()
        off.unmount()
    return rows


def _restore(base: Path, size: Size) -> list[Row]:
    """`restore .` of as many changed files; `git checkout` of the same, when the old files are removed,
    which ours does after it has ended."""
    ours, gits, removed = [], [], []
    with _bench(base / "restore") as bench:
        files = [bench.root / f"d{number // 100:03}/f{number:05}.txt" for number in range(size.some)]
        plain = base / "restore-plain"
        plain.mkdir()
        inputs.git("init", "-q", cwd=plain)

        def fill(text: str) -> None:
            for top in (bench.root, plain):
                for each in files:
                    path = top / each.relative_to(bench.root)
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(f"{text} {path.name}\n" * 20)

        fill("first")
        inputs.git("add", "-A", cwd=plain)
        inputs.git("commit", "-q", "-m", "first", cwd=plain)
        bench.mount()
        first = bench.cli("snapshot").strip()
        for turn in range(_TURNS):
            fill(f"other {turn}")
            bench.cli("snapshot")
            ours.append(seconds(lambda: bench.cli("restore", ".", "--at", first)))
            removed.append(ours[-1] + seconds(lambda: _until_empty(bench.base / "store/trash")))
            gits.append(seconds(lambda: inputs.git("checkout", "-q", "HEAD", "--", ".", cwd=plain)))
        bench.unmount()
    recorded, plain_s = statistics.median(ours), statistics.median(gits)
    told = f"restore of {size.some:,} changed files; `git checkout`"
    return [
        Row(told, recorded, plain_s, "< 1.2x", recorded < 1.2 * plain_s),
        Row("the same, until the old files are removed; `git checkout`", statistics.median(removed), plain_s, "", None),
    ]


def _forks(base: Path, size: Size) -> list[Row]:
    """Making forks of a ref in which nobody has used git yet, then the first command of git there."""
    made: dict[int, float] = {}
    asked = 0.0
    for count in (100, size.many):
        repository = inputs.many_files(base / f"forks-{count}", count)
        with _bench(base / f"forked-{count}") as bench:
            bench.table(big=f'git = "{repository}"\nref = "main"')
            bench.mount()
            times = []
            for number in range(_FORKS):
                times.append(seconds(lambda name=f"f{number}": bench.cli("fork", name)))  # type: ignore[misc]
            made[count] = statistics.median(times)
            asked = seconds(lambda: inputs.git("log", "-1", cwd=bench.live / ".clive/forks/f0/big"))
            bench.unmount()
    worktree = seconds(lambda: inputs.git("worktree", "add", "-q", "--detach", base / "worktree", cwd=repository))
    small, large = made[100], made[size.many]
    return [
        Row(f"`fork` of a ref of {size.many:,} files; of 100 files", large, small, "< 1.5x", large < 1.5 * small),
        Row("the same; `git worktree add`", large, worktree, "", None),
        Row(f"the first `git log` in a fork of {size.many:,} files", asked, None, "", None),
    ]


def _until_empty(directory: Path) -> None:
    while os.listdir(directory):
        time.sleep(0.005)


def _long_past(base: Path, size: Size) -> list[Row]:
    """As many points as the large workspace has files: listing them, and entering the oldest."""
    with _bench(base / "past") as bench:
        bench.mount()
        bench.cli("session", "new", "long")
        bench.unmount()
        oldest = _fill(bench, size.many)
        bench.mount()
        session = bench.live / ".clive/sessions/long"
        listed = seconds(lambda: _run("ls", "-f", session, cwd=base))
        entered = seconds(lambda: (session / oldest / "file").read_text())
        bench.unmount()
    return [
        Row(f"`ls` of a session of {size.many:,} points", listed, None, "< 1 s", listed < 1),
        Row("a file of its oldest point, first byte", entered, None, "< 50 ms", entered < 0.050),
    ]


def _fill(bench: Workbench, count: int) -> str:
    """Add *count* points to the session `long`, as the recorder would but for a transaction each; the first's name."""
    with _points(bench) as points, Store.open(bench.base / "store", create=False) as store:
        head, session = points.head(), points.session("long")
        assert head is not None
        assert session is not None
        number = identity.workspace_id(store, str(bench.root))
        point = points.load(head.oid)
        oldest = point_name(point.ms + 1)
        for start in range(0, count, 1000):
            with store.batch() as batch:
                for each in range(start, min(start + 1000, count)):
                    blob = batch.blob(b"%d\n" % each)
                    point = make_point(
                        ms=point.ms + 1,
                        seq=point.seq + 1,
                        session="long",
                        machine="bench",
                        origin="mount",
                        tree=batch.tree([TreeEntry(MODE_FILE, b"file", blob)]),
                        meta=None,
                        parent=point.oid,
                        paths=(b"file",),
                    )
                    batch.commit(point.commit())
                    record = struct.pack(">20sQ", point.oid, point.seq) + b"long"
                    batch.meta_put("points", number.encode() + struct.pack(">Q", point.ms), record)
        facts = {**session._asdict(), "last_ms": point.ms, "end_ms": point.ms, "points": session.points + count}
        del facts["name"]
        with store.batch() as batch:
            batch.meta_put("sessions", number.encode() + b"long", json.dumps(facts).encode())
            batch.set_ref(f"refs/clive/sessions/{number}/long", point.oid)
    return oldest


def _run(*command: object, cwd: Path) -> None:
    subprocess.run([str(each) for each in command], cwd=cwd, stdout=subprocess.DEVNULL, check=True)


def _without_git(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    return None if member.name.startswith("files/.git") else member
