"""Which private gitdirs a collection removes: those of entries that are gone, without any work of the user's."""

from __future__ import annotations

import gc as garbage
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from clivefs.mounts.forks import gitdirs as forkgitdirs
from clivefs.mounts.git.gitdir import GitDir
from tests.mounts.points.repositoryworlds import (
    MONTH,
    YEAR,
    World,
    git,
    make_gitdir,
    work,
)


def test_a_private_gitdir_without_work_goes_and_its_repository_with_it(world: World) -> None:
    path = make_gitdir(world)
    work(path, "reset", "-q")
    work(path, "fetch", "-q", "origin")
    world.collect()
    world.collect(YEAR)
    assert (world.gitdir_states, world.states) == ([], ["named"])
    world.table("")
    world.collect()
    assert (world.gitdir_states, world.states) == (["waiting"], ["waiting"])
    world.collect(MONTH)
    assert (world.gitdir_states, world.states) == (["removed"], ["removed"])
    assert os.listdir(path.parent) == []
    assert world.done.notes == ()


def commit(path: Path) -> None:
    work(path, "commit", "-q", "--allow-empty", "-m", "mine")


def commit_and_go_back(path: Path) -> None:
    """Only the reflog leads to it."""
    commit(path)
    work(path, "reset", "-q", "--soft", "HEAD^")


def stage(path: Path) -> None:
    work(path, "reset", "-q")
    work(path, "rm", "-q", "--cached", "one")


def edit(path: Path) -> None:
    upper = path.parent.parent / "uppers" / path.name.partition("-")[0] / path.name
    (upper / "tree/one").write_text("edited")


def work_in_a_submodule(path: Path) -> None:
    module = path / "modules/some/sub"
    shutil.copytree(path, module, ignore=shutil.ignore_patterns("modules"))
    commit(module)


WORKS: list[Callable[[Path], object]] = [
    commit,
    commit_and_go_back,
    stage,
    edit,
    work_in_a_submodule,
    lambda path: work(path, "branch", "mine"),
    lambda path: work(path, "tag", "mine"),
    lambda path: work(path, "config", "user.name", "Me"),
    lambda path: work(path, "update-ref", "refs/stash", "HEAD"),
    lambda path: (path / "hooks").mkdir(),
    lambda path: (path / "index.lock").write_bytes(b""),
    lambda path: (path / "clive-base").write_bytes(b"garbage"),
]


@pytest.mark.parametrize("do", WORKS)
def test_one_with_work_stays_and_is_told_of(world: World, do: Callable[[Path], object]) -> None:
    path = make_gitdir(world)
    do(path)
    world.table("")
    world.collect()
    world.collect(YEAR)
    assert (world.gitdir_states, world.states) == (["work"], ["borrowed"])
    assert str(path) in world.done.notes[0]
    assert path.is_dir()


def test_one_that_is_shown_or_that_a_fork_borrows_from_stays(world: World) -> None:
    path = make_gitdir(world)
    source = world.open(str(world.origin))
    shown = GitDir.create_or_open(str(path), source.current, source)
    del source
    garbage.collect()
    world.table("")
    world.collect()
    world.collect(MONTH)
    assert (world.gitdir_states, world.states) == (["open"], ["borrowed"])
    upper = world.base / "store/uppers" / world.workspace / "fork-x-1"
    upper.mkdir(parents=True)
    forkgitdirs.make(str(upper), {"lib": forkgitdirs.Source(str(path))})
    del shown
    garbage.collect()
    world.collect()
    assert (world.gitdir_states, world.states) == (["borrowed"], ["borrowed"])
    git(upper / "git/0", "fsck", "--strict")
    shutil.rmtree(upper)
    world.collect()
    assert (world.gitdir_states, world.states) == (["removed"], ["removed"])
