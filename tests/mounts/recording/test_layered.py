"""Recording overlays and several parts: the same as what walking the mounted trees shows."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.lower import Lower
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.recording.parts import Dirty, HostLower, Part, TreeLower, UpperLayer, copy_marks
from clivefs.mounts.tree import Owner
from clivefs.objects.memory import MemoryStore
from tests.contract.driver import outcome
from tests.contract.tree_driver import TreeDriver
from tests.model.overlay_worlds import random_operation
from tests.mounts.gitworlds import put_world, text
from tests.mounts.recording.worlds import Workspace, contents, files, recorded_as_on_disk

NOW_NS = 1_700_000_000_000_000_000
US = Owner(os.geteuid(), os.getegid())
WORLD = {
    b"a": text("content of a"),
    b"d/a": text("d/a", 0o100755),
    b"d/b": text("b" * 10_000),
    b"d/e/a": text("deep"),
    b"d/e/d/a": text("deeper"),
    b"e": (0o120000, b"d/a"),
    b"b/a": text("other"),
    b"b/e/a": text("other, deep"),
}


@pytest.fixture(autouse=True)
def umask_zero() -> Iterator[None]:
    old = os.umask(0)
    yield
    os.umask(old)


class Entry:
    """A mount entry over the git tree *world* (or a host directory with the same), mounted and recorded."""

    def __init__(self, directory: Path, workspace: Workspace, prefix: bytes, *, live: bool = False) -> None:
        self.workspace = workspace
        self.prefix = prefix
        directory.mkdir(parents=True)
        (directory / "upper").mkdir()
        self.table = NodeTable()
        self.objects = MemoryStore()
        self.tree_id = put_world(self.objects, WORLD)
        self.host_fd = -1
        upper_fd = os.open(directory / "upper", os.O_RDONLY)
        lower: Lower
        if live:
            self.host = directory / "lower"
            write_world(self.host)
            self.host_fd = os.open(self.host, os.O_RDONLY)
            lower = LocalLower(os.dup(self.host_fd), hidden=lambda directory, name: False)
        else:
            lower = GitLower(
                TreeSpace(self.objects, b"git:1", NOW_NS), self.tree_id, owner=US, cache_dir=os.fspath(directory)
            )
        self.tree = OverlayTree(lower, upper_fd, self.table, entry=b"e", source=b"s")
        os.close(upper_fd)
        self.upper_fd = os.open(directory / "upper/tree", os.O_RDONLY)
        self.driver = TreeDriver(self.tree, self.table)

    def part(self, paths: list[bytes] | None = None) -> Part:
        upper = self.tree._nodes.upper
        assert upper is not None
        copied = frozenset(paths) if paths is not None else None
        layer = UpperLayer(self.upper_fd, copy_marks(upper.root_mark, paths), copied)
        if self.host_fd >= 0:
            return Part(self.prefix, HostLower(self.host_fd), layer)
        return Part(self.prefix, TreeLower(self.objects, self.tree_id, NOW_NS, US), layer)

    def shown(self) -> dict[bytes, tuple[int, bytes | None]]:
        """What walking the mounted tree shows."""
        found: dict[bytes, tuple[int, bytes | None]] = {}
        waiting = [b""]
        while waiting:
            path = waiting.pop()
            for name, _ in self.driver.listdir(path):
                inner = path + b"/" + name if path else name
                mode = self.driver.stat(inner).mode
                content = None
                if stat.S_ISDIR(mode):
                    waiting.append(inner)
                elif stat.S_ISLNK(mode):
                    content = self.driver.readlink(inner)
                elif stat.S_ISREG(mode):
                    content = self.driver.read(inner)
                found[self.prefix + b"/" + inner] = mode, content
        return found

    def close(self) -> None:
        self.driver.forget_all()
        self.tree.close()
        os.close(self.upper_fd)
        if self.host_fd >= 0:
            os.close(self.host_fd)


def write_world(directory: Path) -> None:
    directory.mkdir()
    for path, (mode, content) in WORLD.items():
        place = directory / os.fsdecode(path)
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        if mode == 0o120000:
            place.symlink_to(os.fsdecode(content))
        else:
            place.write_bytes(content)
            place.chmod(mode & 0o777)
        place.parent.chmod(0o755)


class Both:
    """A store that finds what is in the source too."""

    def __init__(self, *stores: MemoryStore) -> None:
        self._stores = stores

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(oid: bytes) -> Any:
            store = next((each for each in self._stores if each.has(oid)), self._stores[0])
            return getattr(store, name)(oid)

        return call


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    made = Workspace(tmp_path / "w")
    yield made
    made.close()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1 << 32), st.booleans())
def test_recorded_is_what_is_shown(tmp_path_factory: pytest.TempPathFactory, seed: int, live: bool) -> None:
    rng = random.Random(seed)
    base = tmp_path_factory.mktemp("o")
    workspace = Workspace(base / "w")
    entry = Entry(base / "entry", workspace, b"lib/x", live=live)
    store: Any = Both(workspace.store, entry.objects)  # type: ignore[arg-type]
    root = workspace.parts[0]
    workspace.parts = [root, entry.part()]
    workspace.record()
    for _ in range(10):
        dirty = []
        for _ in range(rng.randint(1, 4)):
            name, *args = operation = random_operation(rng)
            outcome(lambda: getattr(entry.driver, operation[0])(*operation[1:]))  # noqa: B023
            dirty += [Dirty(b"lib/x", each, name == "rename") for each in args if isinstance(each, bytes)]
        if rng.random() < 0.2:
            workspace.restart()
            dirty = []
        workspace.parts = [root, entry.part([each.path for each in dirty] or None)]
        recorded = workspace.record_all(dirty or None)
        for _ in range(5):
            if not recorded.again:
                break
            # There were not marks enough to tell.
            workspace.parts = [root, entry.part([each.path for each in recorded.again])]
            recorded = workspace.record_all(recorded.again)
        assert not recorded.again
        found = recorded_as_on_disk(store, workspace.base)
        below = {path: each for path, each in found.items() if path.startswith(b"lib/x/")}
        assert below == entry.shown()
    scratch = Workspace(base / "w")
    scratch.parts = [scratch.parts[0], entry.part()]
    scratch.record()
    assert recorded_as_on_disk(Both(scratch.store, entry.objects), scratch.base) == found  # type: ignore[arg-type]
    assert scratch.base[0] == workspace.base[0]
    entry.close()
    scratch.close()
    workspace.close()


def test_an_untouched_git_tree_costs_nothing(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"lib/x")
    lower = entry.part().lower
    workspace.write("own", "1")
    workspace.parts.append(Part(b"lib/x", lower))
    recorded = workspace.record()
    assert recorded.paths == (b"lib/x", b"own")
    assert recorded.sources == {b"lib/x"}
    assert not workspace.store.has(entry.tree_id)
    found = contents(Both(workspace.store, entry.objects), workspace.base)  # type: ignore[arg-type]
    facts = found[b"lib/x"][1]
    assert facts is not None
    assert facts.inherits
    assert facts.mtime_ns == NOW_NS
    assert found[b"lib/x/d/a"][1] is not None
    assert stat.S_IMODE(found[b"lib/x/d/a"][1].mode) == 0o755
    assert not workspace.record().changed
    entry.close()


def test_one_edit_unfolds_only_the_way_to_it(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"lib/x")
    workspace.parts.append(entry.part())
    workspace.record()
    entry.driver.make(b"d/e/new")
    workspace.parts[1] = entry.part()
    recorded = workspace.record(Dirty(b"lib/x", b"d/e/new"))
    assert recorded.paths == (b"lib/x/d/e/new",)
    found = contents(Both(workspace.store, entry.objects), workspace.base)  # type: ignore[arg-type]
    inherits = {path: facts.inherits for path, (_, facts) in found.items() if facts and stat.S_ISDIR(facts.mode)}
    assert inherits[b"lib/x/b"]
    assert inherits[b"lib/x/d/e/d"]
    assert not inherits[b"lib/x/d/e"]
    old = found[b"lib/x/d/e/a"][1]
    assert old is not None
    assert old.mtime_ns == NOW_NS
    entry.close()


def test_files_with_a_time_of_their_own(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"x")
    lower = TreeLower(entry.objects, entry.tree_id, NOW_NS, US, {b"d/e/a": 5})
    workspace.parts.append(Part(b"x", lower))
    workspace.record()
    found = contents(Both(workspace.store, entry.objects), workspace.base)  # type: ignore[arg-type]
    times = {path: facts.mtime_ns for path, (_, facts) in found.items() if facts and path.startswith(b"x/")}
    assert times.pop(b"x/d/e/a") == 5
    assert set(times.values()) == {NOW_NS}
    entry.close()


def test_an_entry_covers_what_the_workspace_has_there_until_it_goes(workspace: Workspace, tmp_path: Path) -> None:
    workspace.write("lib/x/own", "covered")
    workspace.write("lib/beside", "1")
    entry = Entry(tmp_path / "e", workspace, b"lib/x")
    inner = tmp_path / "inner"
    write_world(inner)
    inner_fd = os.open(inner, os.O_RDONLY)
    store: Any = Both(workspace.store, entry.objects)  # type: ignore[arg-type]
    workspace.parts += [entry.part(), Part(b"lib/x/d/host", HostLower(inner_fd)), Part(b"no/way", HostLower(inner_fd))]
    workspace.record()
    found = files(store, workspace.base)
    assert found[b"lib/x/a"] == b"content of a"
    assert found[b"lib/x/d/host/a"] == b"content of a"
    assert found[b"no/way/d/e/a"] == b"deep"
    assert found[b"no"] == "dir"
    assert b"lib/x/own" not in found
    workspace.write("lib/x/own", "written behind it")
    assert not workspace.record(b"lib/x/own", b"lib/x", b"no").changed
    (inner / "a").write_text("other")
    assert workspace.record(Dirty(b"lib/x/d/host", b"a")).paths == (b"lib/x/d/host/a",)
    assert workspace.record(Dirty(b"", b"", True), Dirty(b"no/way", b"a")).paths == (b"no/way/a",)
    del workspace.parts[1:]
    recorded = workspace.record(b"lib/beside")
    found = files(store, workspace.base)
    assert found == {b"lib": "dir", b"lib/x": "dir", b"lib/x/own": b"written behind it", b"lib/beside": b"1"}
    assert b"lib/x" in recorded.paths
    os.close(inner_fd)
    entry.close()


def test_another_tree_of_the_source_is_scanned_by_itself(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"x")
    workspace.parts.append(Part(b"x", TreeLower(entry.objects, entry.tree_id, NOW_NS, US)))
    workspace.record()
    other = put_world(entry.objects, WORLD | {b"d/e/a": text("moved on")})
    workspace.parts[1] = Part(b"x", TreeLower(entry.objects, other, NOW_NS, US))
    assert workspace.record(b"nothing").paths == (b"x/d/e/a",)
    entry.close()


def test_what_stood_there_before_is_read_from_what_is_kept(tmp_path: Path) -> None:
    kept = MemoryStore()
    opened: list[MemoryStore] = []

    def open_kept() -> list[MemoryStore]:
        opened.append(kept)
        return [kept]

    workspace = Workspace(tmp_path / "w", kept=open_kept)
    source = MemoryStore()
    tree = put_world(source, WORLD)
    put_world(kept, WORLD)
    workspace.parts.append(Part(b"x", TreeLower(source, tree, NOW_NS, US)))
    workspace.record()
    assert not opened
    inner = tmp_path / "inner"
    (inner / "d/e").mkdir(parents=True)
    (inner / "d/e/new").write_text("new")
    inner_fd = os.open(inner, os.O_RDONLY)
    workspace.parts[1] = Part(b"x", HostLower(inner_fd))
    paths = workspace.record(b"nothing").paths
    assert b"x/d/e/new" in paths
    assert b"x/d/e/a" in paths
    assert opened == [kept]
    assert files(workspace.store, workspace.base) == {
        b"x": "dir",
        b"x/d": "dir",
        b"x/d/e": "dir",
        b"x/d/e/new": b"new",
    }
    os.close(inner_fd)
    workspace.close()


def test_what_shows_while_the_marks_change_is_not_believed(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"x")
    store: Any = Both(workspace.store, entry.objects)  # type: ignore[arg-type]
    driver = entry.driver
    driver.chmod(b"d/a", 0o600)
    now = 1
    part = entry.part()
    assert part.upper is not None
    layer = UpperLayer(part.upper.fd, part.upper.marks, None, 1, lambda: now)
    workspace.parts.append(Part(b"x", part.lower, layer))
    workspace.record()
    driver.unlink(b"d/a")  # the copy of the marks does not know of it
    now = 2
    recorded = workspace.record(Dirty(b"x", b"d/a"))
    assert recorded.again == (Dirty(b"x", b"d/a"),)
    facts = contents(store, workspace.base)[b"x/d/a"][1]
    assert facts is not None
    assert stat.S_IMODE(facts.mode) == 0o600, "a state that was never shown"
    workspace.parts[1] = entry.part()
    assert workspace.record(Dirty(b"x", b"d/a")).paths == (b"x/d/a",)
    assert b"x/d/a" not in files(store, workspace.base)
    entry.close()


def test_what_the_copied_marks_do_not_tell_is_not_believed(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"x")
    store: Any = Both(workspace.store, entry.objects)  # type: ignore[arg-type]
    workspace.parts.append(entry.part())
    workspace.record()
    entry.driver.unlink(b"d/e/a")
    entry.driver.rename(b"d", b"moved")
    workspace.parts[1] = entry.part([b"moved/b"])  # nobody has said that `moved` is new
    recorded = workspace.record(Dirty(b"x", b"moved/b"))
    assert recorded.again == (Dirty(b"x", b"moved", True),)
    workspace.parts[1] = entry.part([b"moved", b"d"])
    assert not workspace.record(*recorded.again, Dirty(b"x", b"d")).again
    found = files(store, workspace.base)
    assert b"x/d" not in found
    assert b"x/moved/b" in found
    assert b"x/moved/e/a" not in found
    entry.close()


def test_a_part_that_cannot_be_shown_is_an_empty_directory(workspace: Workspace) -> None:
    workspace.parts.append(Part(b"x", None))
    assert workspace.record().paths == (b"x",)
    assert files(workspace.store, workspace.base) == {b"x": "dir"}
    workspace.restart()
    assert not workspace.record().changed


def test_rules_are_those_of_the_entry(workspace: Workspace, tmp_path: Path) -> None:
    entry = Entry(tmp_path / "e", workspace, b"x")
    store: Any = Both(workspace.store, entry.objects)  # type: ignore[arg-type]
    workspace.write(".gitignore", "n*\n")
    entry.driver.make(b".gitignore", b"*.o\n/d/a\n")
    entry.driver.make(b"new")
    entry.driver.make(b"d/new.o")
    entry.driver.overwrite(b"d/a", b"edited")
    workspace.parts.append(entry.part())
    workspace.record()
    found = files(store, workspace.base)
    assert b"x/new" in found
    assert b"x/d/new.o" not in found
    assert found[b"x/d/a"] == b"edited", "the source's tree has it"
    entry.close()


def test_hidden_mountpoints_are_not_touched(tmp_path: Path) -> None:
    root = tmp_path / "w"
    (root / "mnt").mkdir(parents=True)
    (root / "mnt/x").write_text("")
    identity = os.stat(root).st_dev, os.stat(root).st_ino
    workspace = Workspace(root, hidden=lambda directory, name: (directory, name) == (identity, b"mnt"))
    workspace.write("a", "1")
    workspace.record()
    workspace.record(b"mnt", b"mnt/x")
    assert set(files(workspace.store, workspace.base)) == {b"a"}
    shutil.rmtree(root)
    workspace.close()
