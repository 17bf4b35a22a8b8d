"""Which repositories of the store a collection removes: those that nobody needs, and no other."""

from __future__ import annotations

import contextlib
import errno
import gc as garbage
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from clivefs.base.ports import FAULTS
from clivefs.mounts import identity
from clivefs.mounts.git.source import GitSource
from clivefs.mounts.points.objects import kept_repositories, past_objects
from clivefs.mounts.points.pins import Pins
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects.encode import MODE_FILE, TreeEntry
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store
from tests.mounts.points.pointworlds import WORKSPACE
from tests.mounts.points.repositoryworlds import (
    DAY,
    FORGET,
    MONTH,
    YEAR,
    World,
    git,
    make_gitdir,
)

# Who names it


@pytest.mark.parametrize("is_url", [True, False])
def test_a_repository_that_nobody_needs_goes_after_thirty_days(world: World, is_url: bool) -> None:
    location = world.url if is_url else str(world.origin)
    world.use(location)
    for after_ms in (0, 29 * DAY):
        world.collect(after_ms)
        assert (world.states, len(world.repositories)) == (["waiting"], 1)
    world.collect(DAY)
    (gone,) = world.done.repositories.repositories
    assert (gone.state, gone.locations) == ("removed", (location,))
    assert gone.bytes > 0
    assert world.repositories == []
    assert list(world.store.meta_items("repositories")) == []
    world.collect()
    assert world.states == []
    world.attach(location)
    world.use(location)
    world.collect(YEAR)
    assert world.states == ["named"]


def test_one_that_is_named_stays_and_the_time_begins_anew(world: World) -> None:
    world.attach(str(world.origin))
    world.use(str(world.origin))
    shutil.rmtree(world.origin)  # the table alone does not say any more which repository it is
    world.collect()
    world.collect(YEAR)
    assert world.states == ["named"]
    world.table("")
    world.collect()
    world.collect(29 * DAY)
    world.attach(str(world.origin))
    world.collect(DAY)
    assert world.states == ["named"]
    world.table("")
    world.collect(YEAR)
    world.collect(29 * DAY)
    assert world.states == ["waiting"]


def test_a_clive_toml_that_cannot_be_read_names_everything_that_the_workspace_used(world: World) -> None:
    world.use(world.url)
    world.collect()
    (world.root / "Clive.toml").write_text("[mounts\n")
    world.collect(YEAR)
    assert world.states == ["named"]


def test_of_a_workspace_whose_directory_is_gone_nothing_stays_for_ever(world: World) -> None:
    world.attach(world.url)
    world.use(world.url)
    world.collect()
    shutil.rmtree(world.root)
    world.collect(YEAR)
    world.collect(29 * DAY)
    assert world.states == ["waiting"]
    world.collect(DAY)
    assert world.states == ["removed"]


def test_an_edited_clive_toml_counts_as_the_one_below_does(world: World) -> None:
    world.table("write = 'overlay'\n")
    world.use(world.url)
    upper = world.base / "store/uppers" / world.workspace / "root"
    (upper / "tree").mkdir(parents=True)
    edited = upper / "tree/Clive.toml"
    edited.write_text(f'[mounts."lib"]\ngit = "{world.url}"\n')
    world.collect()
    world.collect(YEAR)
    assert world.states == ["named"]
    edited.unlink()
    (upper / "marks").write_bytes(b"... from other.toml to Clive.toml ...")
    world.collect(YEAR)
    assert world.states == ["named"]
    (upper / "marks").unlink()
    world.collect()
    world.collect(MONTH)
    assert world.states == ["removed"]


def test_one_workspace_of_several_is_enough(world: World) -> None:
    world.use(world.url)
    other = world.base / "other"
    other.mkdir()
    (other / "Clive.toml").write_text(f'[mounts."x"]\ngit = "{world.url}"\n')
    identity.workspace_id(world.store, str(other))
    world.collect()
    world.collect(YEAR)
    assert world.states == ["named"]
    (other / "Clive.toml").unlink()
    world.collect()
    world.collect(MONTH)
    assert world.states == ["removed"]


def test_the_repository_of_a_submodule_stays_with_the_entry_that_it_is_in(world: World) -> None:
    inner = world.base / "inner"
    shutil.copytree(world.origin, inner)
    world.attach(world.url)
    source = world.open(world.url)
    source.beside(f"file://{inner}", "main")
    del source
    garbage.collect()
    world.collect()
    world.collect(YEAR)
    assert world.states == ["named", "named"]
    world.table("")
    world.collect()
    world.collect(MONTH)
    assert world.states == ["removed", "removed"]


def test_two_stores_that_share_a_source_do_not_disturb_each_other(world: World) -> None:
    world.use(str(world.origin))
    with Store.open(world.base / "second") as second:
        other = GitSource(str(world.origin), "main", base_dir="/", store_dir=second.path, store=second)
        commit = other.open().commit
        other.keep()
        world.collect()
        world.collect(MONTH)
        assert world.states == ["removed"]
        (kept,) = kept_repositories(second)
        git(Path(kept.path), "fsck", "--strict")
        assert kept.has(commit)
    git(world.origin, "fsck", "--strict")
    git(world.origin, "rev-list", "--objects", "--all")


# Who has it open


def test_what_somebody_has_open_stays(world: World) -> None:
    source = world.open(world.url)
    resolved = source.current
    world.collect()
    world.collect(MONTH)
    assert world.states == ["open"]
    del source
    garbage.collect()
    world.collect()  # whoever shows its trees has only the reader
    assert world.states == ["open"]
    assert resolved.repository.read_tree(resolved.tree)
    del resolved
    garbage.collect()
    world.collect()
    assert world.states == ["removed"]


def test_who_comes_at_the_last_moment_finds_it_whole(world: World) -> None:
    world.use(world.url)
    world.show_nothing()
    world.collect()
    came: list[GitSource] = []

    def come(text: str) -> None:
        if "looked through" in text and not came:
            came.append(world.open(world.url))

    world.collect(MONTH, said=come)
    assert (len(came), world.states) == (1, ["open"])
    assert came.pop().current.repository.refs()
    garbage.collect()
    world.collect(29 * DAY)  # it was used: the time begins anew
    assert world.states == ["waiting"]


def test_what_is_recorded_at_the_last_moment_is_looked_at(world: World) -> None:
    source = world.open(world.url)
    tree = source.current.tree
    del source
    garbage.collect()
    world.show_nothing()
    world.collect()
    told: list[str] = []

    def record(text: str) -> None:
        if "looked through" in text and not told:
            told.append(text)
            world.show(tree)

    world.collect(MONTH, said=record)
    assert (len(told), world.states) == (1, ["past"])


def test_readers_of_the_past_bear_that_one_goes(world: World) -> None:
    world.use(world.url)
    world.show_nothing()
    reader = past_objects(world.store)
    assert world.history.last is not None
    point = world.history.last.oid
    with pytest.raises(ObjectMissing):
        reader.read(b"\1" * 20)
    world.collect()
    world.collect(MONTH)
    assert world.states == ["removed"]
    found: list[object] = []

    def read() -> None:
        found.append(reader.read(point)[0])
        with contextlib.suppress(ObjectMissing):
            found.append(reader.read(b"\1" * 20))

    read()
    thread = threading.Thread(target=read)  # which opens the repositories for itself
    thread.start()
    thread.join()
    assert found == ["commit", "commit"]


# The past


@pytest.mark.parametrize("is_url", [True, False])
def test_the_past_stays_readable_and_then_it_goes(world: World, is_url: bool) -> None:
    location = world.url if is_url else str(world.origin)
    source = world.open(location)
    source.keep()
    tree = source.current.tree
    source.fetch_all(source.current)
    world.show(tree)
    del source
    world.show_nothing()
    garbage.collect()
    shutil.rmtree(world.origin)
    for after_ms in (0, 10 * MONTH, DAY):
        world.collect(after_ms)
    assert world.states == ["past"]
    reader = past_objects(world.store)
    for name, content in ((b"one", b"one"), (b"two", b"two")):
        (entry,) = [each for each in reader.read_tree(tree) if each.name == name]
        assert reader.content(entry.oid) == content
    del reader
    world.table(FORGET)
    with world.store.batch() as batch:  # the workspace of the points is this one
        record = world.store.meta_get("workspaces", b"id/" + world.workspace.encode())
        batch.meta_put("workspaces", b"id/" + WORKSPACE.encode(), record)
    world.collect()
    assert world.done.thinned[0].dropped == 1
    assert world.states == ["removed"]


def test_what_was_never_fetched_and_only_its_remote_has_keeps_a_clone(world: World) -> None:
    source = world.open(world.url)
    blob = next(each for each in source.current.repository.read_tree(source.current.tree) if each.name == b"one")
    assert not source.has(blob.oid)
    with world.store.batch() as batch:  # an edit of `two`: the tree is ours, and only `one` is not
        two = batch.blob(b"edited")
        tree = batch.tree([TreeEntry(MODE_FILE, b"one", blob.oid), TreeEntry(MODE_FILE, b"two", two)])
    world.show(tree)
    del source
    garbage.collect()
    world.collect()
    world.collect(10 * MONTH)
    assert world.states == ["past"]


@pytest.mark.parametrize("how", ["pinned", "fork"])
def test_what_is_shown_or_forked_is_needed_too(world: World, how: str) -> None:
    source = world.open(str(world.origin))
    source.keep()
    tree = source.current.tree
    del source
    garbage.collect()
    os.mkdir(world.base / "store/run")
    pins = Pins(str(world.base / "store/run/x.pins"))
    if how == "pinned":
        pins.pin(tree)
    else:
        with world.store.batch() as batch:
            batch.meta_put("forks", b"x", f'{{"start": "{tree.hex()}", "base": "{tree.hex()}"}}'.encode())
    world.collect()
    world.collect(MONTH)
    assert world.states == ["past"]
    pins.close()
    with world.store.batch() as batch:
        batch.meta_put("forks", b"x", None)
    world.collect()
    assert world.states == ["removed"]


# Dry runs, and crashes


def test_a_dry_run_tells_the_same_and_changes_nothing(world: World) -> None:
    make_gitdir(world)
    world.table("")
    world.collect(dry_run=True)
    world.collect(MONTH, dry_run=True)
    assert world.states == ["waiting"]
    world.collect()
    before = sorted(world.store.meta_items("repositories"))
    world.collect(MONTH, dry_run=True)
    told = world.done.repositories
    assert [each.state for each in told.removed()] == ["removed", "removed"]
    assert sorted(world.store.meta_items("repositories")) == before
    assert len(world.repositories) == 1
    world.collect()
    assert world.done.repositories == told


def test_a_failure_is_told_and_ended_by_the_next(world: World) -> None:
    make_gitdir(world)
    world.table("")
    world.collect()

    def fail() -> None:
        raise OSError(errno.EIO, "the disk fails")

    FAULTS.plant("gc.repository-renamed", fail)
    world.collect(MONTH)
    assert "the disk fails" in world.done.notes[0]
    FAULTS.clear()
    world.collect()
    assert (world.repositories, world.states, world.done.notes) == ([], [], ())


@pytest.mark.parametrize("point", ["gc.gitdir-renamed", "gc.repository-renamed", "gc.repositories-removed"])
def test_what_a_killed_collection_has_begun_the_next_one_ends(world: World, point: str) -> None:
    path = make_gitdir(world)
    world.table("")
    world.collect()
    world.now += MONTH
    program = (
        "import os, signal, sys\n"
        "from clivefs.base.ports import FAULTS\n"
        "from clivefs.mounts.points.collection import collect\n"
        "from clivefs.objects.store import Store\n"
        "FAULTS.plant(sys.argv[1], lambda: os.kill(os.getpid(), signal.SIGKILL))\n"
        "collect(Store.open(sys.argv[2]), now_ms=int(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", program, point, world.store.path, str(world.now)]
    assert subprocess.run(command, check=False, timeout=60).returncode == -signal.SIGKILL
    assert fsck(world.store, extra=kept_repositories(world.store), roots=StoreRoots(world.store).fresh()) == []
    assert not path.exists()
    world.use(str(world.origin))  # comes back whole, whatever is left of the old one
    world.collect()
    assert os.listdir(path.parent) == []
    assert (len(world.repositories), world.states) == (1, ["waiting"])
    assert kept_repositories(world.store)[0].refs()
