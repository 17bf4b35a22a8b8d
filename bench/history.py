"""A long history: what it takes on disk after a collection, against git packing it, and how far the oldest point is."""

from __future__ import annotations

import json
import os
import random
import shutil
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import inputs
from bench.measure import Row, seconds
from clivefs.mounts.points import collection
from clivefs.mounts.points.export import session_refs, update
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.lower import lower_of_point
from clivefs.mounts.points.metadata import Facts
from clivefs.mounts.points.objects import past_objects
from clivefs.mounts.points.point import Point, make_point
from clivefs.mounts.recording.recordedtree import RecordedTree, Version
from clivefs.mounts.tree import Owner
from clivefs.objects.store import Store

if TYPE_CHECKING:
    from bench.cases import Size

_WORKSPACE = "0123456789abcdef"
_FILES = 2_800
_START_MS = 1_790_000_000_000
_BYTES_MAX = 1 << 19


def history(base: Path, size: Size) -> list[Row]:
    """The rows of a history of `size.points` one-line edits in a tree of 2,800 files."""
    root, place = base / "history", base / "history-store"
    root.mkdir()
    (root / "Clive.toml").write_text('[workspace]\nname = "history"\n[sessions]\nkeep = { all = "forever" }\n')
    with Store.open(place) as store:
        with store.batch() as batch:
            batch.meta_put("workspaces", b"id/" + _WORKSPACE.encode(), json.dumps({"path": str(root)}).encode())
        _record(store, size.points)
    plain = _packed_by_git(place, base)
    before = _disk(place)
    with Store.open(place) as store:
        now_ms = _START_MS + size.points * 60_000
        taken = seconds(lambda: collection.collect(store, now_ms=now_ms))
    after = _disk(place)
    scale = f"{size.points:,} points of {_FILES:,} files"
    rows = [
        Row(
            f"{scale}: on disk after `gc`; by `git gc --aggressive`",
            after,
            plain,
            "< 1.3x",
            after < 1.3 * plain,
            "bytes",
        ),
        Row(f"{scale}: on disk before `gc`", before, plain, "", None, "bytes"),
        Row(f"{scale}: `gc` itself", taken, None, "", None),
    ]
    entered = min(_enter_oldest(place, base) for _ in range(5))
    rows.append(Row(f"{scale}: entering the oldest", entered, None, "< 50 ms", entered < 0.050))
    shutil.rmtree(place)
    return rows


def _record(store: Store, count: int) -> None:
    """*count* points; the first has everything, each other one line that is edited."""
    chooser = random.Random(1)
    points = Points(store, _WORKSPACE)
    session = points.start_session(_START_MS, mountpoint="/mnt", machine="desk")
    tree = RecordedTree(store)
    content = _content()
    with store.batch() as batch:
        for path, data in content.items():
            mtime_ns = (_START_MS - chooser.randrange(10**9)) * 10**6 + chooser.randrange(10**6)
            tree.put(path, Version(0o100644, batch.blob(data)), Facts(0o100644, mtime_ns, 1000, 1000))
        point = _point(points, *tree.write(batch), session.name, _START_MS + 1, None, ())
        points.publish(batch, point)
    texts = [path for path, data in content.items() if data.count(b"\n") > 20 and path.endswith(b".py")]
    path = chooser.choice(texts)
    for number in range(1, count):
        if chooser.random() < 0.1:  # on to another file
            path = chooser.choice(texts)
        ms = point.ms + chooser.randrange(1_000, 30_000)
        lines = content[path].split(b"\n")
        lines[chooser.randrange(len(lines))] = b"    value = compute(%d, %d)" % (chooser.randrange(10_000), number)
        content[path] = b"\n".join(lines)
        with store.batch() as batch:
            mtime_ns = ms * 10**6 - chooser.randrange(10**6)
            tree.put(path, Version(0o100644, batch.blob(content[path])), Facts(0o100644, mtime_ns, 1000, 1000))
            point = _point(points, *tree.write(batch), session.name, ms, point, (path,))
            points.publish(batch, point)


def _point(
    points: Points,
    tree: bytes,
    meta: bytes | None,
    session: str,
    ms: int,
    before: Point | None,
    paths: tuple[bytes, ...],
) -> Point:
    return make_point(
        ms=ms,
        seq=before.seq + 1 if before is not None else 1,
        session=session,
        machine="desk",
        origin="mount",
        tree=tree,
        meta=meta,
        parent=before.oid if before is not None else None,
        paths=paths,
    )


def _content() -> dict[bytes, bytes]:
    """The files of Python's standard library, as often as it takes."""
    source = Path(sysconfig.get_paths()["stdlib"])
    found: dict[bytes, bytes] = {}
    copy = 0
    while len(found) < _FILES:
        for folder, folders, names in os.walk(source):
            folders[:] = sorted(each for each in folders if each not in ("site-packages", "__pycache__"))
            for name in sorted(names):
                file = Path(folder, name)
                if file.suffix not in (".pyc", ".so") and file.stat().st_size < _BYTES_MAX and len(found) < _FILES:
                    place = os.path.join(f"copy{copy}" if copy else "", file.relative_to(source))
                    found[os.fsencode(place)] = file.read_bytes()
        copy += 1
    return found


def _packed_by_git(place: Path, base: Path) -> int:
    """What the same history takes as a repository after `git gc --aggressive`, in bytes."""
    repository = base / "history.git"
    with Store.open(place) as store:
        refs = session_refs(store, _WORKSPACE)
        update(str(repository), refs, past_objects(store), head=max(refs))
    inputs.git("gc", "--aggressive", "--quiet", "--prune=now", cwd=repository)
    size = _disk(repository / "objects")
    shutil.rmtree(repository)
    return size


def _disk(directory: Path) -> int:
    """What the files below *directory* take, in bytes."""
    return sum(
        os.lstat(os.path.join(folder, name)).st_size for folder, _, names in os.walk(directory) for name in names
    )


def _enter_oldest(place: Path, base: Path) -> float:
    """Seconds from the oldest point's name to the listing of its root, with a store that was just opened."""
    with Store.open(place) as store:
        points = Points(store, _WORKSPACE)
        begin = time.perf_counter()
        first = points.first()
        assert first is not None
        lower = lower_of_point(
            points.load(first.oid), past_objects(store), owner=Owner(1000, 1000), cache_dir=str(base)
        )
        for entry in lower.entries(lower.root):
            child = lower.child(lower.root, entry.name)
            assert child is not None
            lower.attr(child, fetch=True)
        taken = time.perf_counter() - begin
        lower.close()
    return taken
