"""The recorder without a mount: a first recording against `git add -A`, and what a save costs in a large workspace."""

from __future__ import annotations

import os
import shutil
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench import inputs
from bench.measure import Row, seconds
from clivefs.mounts.recording.parts import Dirty, HostLower, Part
from clivefs.mounts.recording.recorder import Recorded, Recorder
from clivefs.mounts.recording.statcache import StatCache
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.store import Store

if TYPE_CHECKING:
    from bench.cases import Size

_SAVES = 40
_QUIET_S = 0.025
_EDITED = "d000/s00/f00007.txt"


class _CountingStore(Store):
    """Knows how many bytes of payload were new, by kind."""

    written: dict[str, int]

    def stage(self, oid: bytes, kind: str, payload: bytes) -> bytes:
        self.written[kind] = self.written.get(kind, 0) + len(payload)
        return super().stage(oid, kind, payload)


class _Workspace:
    """A directory recorded into a store of its own."""

    def __init__(self, root: Path, store: Path) -> None:
        self.store = _CountingStore.open(store)
        assert isinstance(self.store, _CountingStore)
        self.store.written = {}
        self.cache = StatCache()
        self.recorder = Recorder(self.store, self.cache)
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self.base: tuple[bytes, bytes | None] = (EMPTY_TREE, None)

    def record(self, *paths: str) -> Recorded:
        """Record these paths, everything when there are none; durable when it returns."""
        dirty = [Dirty(b"", os.fsencode(path)) for path in paths] or None
        with self.store.batch() as batch:
            recorded = self.recorder.record([Part(b"", HostLower(self.fd))], dirty, batch, base=self.base)
        self.base = recorded.tree, recorded.meta
        return recorded

    def close(self) -> None:
        os.close(self.fd)
        self.store.close()


def sessions(base: Path, size: Size) -> list[Row]:
    """The rows of the recorder."""
    repository = inputs.many_files(base / "recorded", size.many)
    inputs.git("checkout", "-q", "main", cwd=repository)
    rows, workspace = _first(base, repository, size)
    try:
        scale = f"{size.many:,}-file workspace"
        again = seconds(workspace.record)
        refreshed = seconds(lambda: inputs.git("status", "--short", cwd=repository))
        rows.append(Row(f"{scale}: everything looked at again; `git status`", again, refreshed, "", None))
        rows += _save(scale, repository, workspace)
    finally:
        workspace.close()
    shutil.rmtree(repository)
    return rows


def _first(base: Path, repository: Path, size: Size) -> tuple[list[Row], _Workspace]:
    """A first recording, and `git add -A` into a new repository, in turn; the last recording's workspace."""
    ours: list[float] = []
    gits: list[float] = []
    workspace: _Workspace | None = None
    kept = base / "kept.git"
    os.rename(repository / ".git", kept)
    for turn in range(3):
        if workspace is not None:
            workspace.close()
        workspace = _Workspace(repository, base / f"recorded-store{turn}")
        ours.append(seconds(workspace.record))
        inputs.git("init", "-q", cwd=repository)
        gits.append(seconds(lambda: inputs.git("add", "-A", cwd=repository)))
        shutil.rmtree(repository / ".git")
    os.rename(kept, repository / ".git")
    assert workspace is not None
    recorded, plain = statistics.median(ours), statistics.median(gits)
    what = f"{size.many:,}-file workspace: first recording; `git add -A`"
    return [Row(what, recorded, plain, "< 1.2x", recorded < 1.2 * plain)], workspace


def _save(scale: str, repository: Path, workspace: _Workspace) -> list[Row]:
    file = repository / _EDITED
    inputs.git("reset", "-q", cwd=repository)
    times: list[float] = []
    commits: list[float] = []
    written: list[int] = []
    for number in range(_SAVES):
        content = f"edit {number}\n"
        file.write_text(content)
        time.sleep(_QUIET_S)  # the quiet time that the daemon waits
        workspace.store.written.clear()
        times.append(seconds(lambda: workspace.record(_EDITED)))
        written.append(sum(workspace.store.written.values()) - len(content))
        if number % 8 == 0:
            commits.append(seconds(lambda: _commit(repository)))
    ours, plain = statistics.median(times), statistics.median(commits)
    rows = [Row(f"{scale}: one save, until durable", ours, None, "< 10 ms", ours < 0.010)]
    told = f"{scale}: one save; `git add -A && git commit`"
    rows.append(Row(told, ours, plain, "< 1/20", ours * 20 < plain))
    trees = _git_tree_bytes(repository)
    mine = statistics.median(written)
    told = f"{scale}: bytes of trees and metadata of one save; of git's trees"
    rows.append(Row(told, mine, trees, "< 3x", mine < 3 * trees, "bytes"))
    return rows


def _commit(repository: Path) -> None:
    inputs.git("add", "-A", cwd=repository)
    inputs.git("commit", "-q", "--allow-empty", "-m", "save", cwd=repository)


def _git_tree_bytes(repository: Path) -> int:
    """The size of the trees that git writes for a change of `_EDITED`."""
    places = ["", *(os.fspath(each) for each in list(Path(_EDITED).parents)[:-1])]
    return sum(int(inputs.git("cat-file", "-s", f"HEAD:{place}", cwd=repository)) for place in places)
