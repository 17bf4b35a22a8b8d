"""A workspace, a store, and a repository to mount, for tests of what a collection does with repositories."""

from __future__ import annotations

import gc as garbage
import os
from collections.abc import Callable
from pathlib import Path

from clivefs.mounts import identity
from clivefs.mounts.assembly.places import upper_name
from clivefs.mounts.config import config
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.source import GitSource
from clivefs.mounts.git.users import User
from clivefs.mounts.points import collection
from clivefs.objects.encode import MODE_FILE, MODE_TREE, TreeEntry
from clivefs.objects.store import Store
from tests.mounts.points.pointworlds import START_MS, History
from tests.mounts.stockgit import git

DAY = 86_400_000
MONTH = 30 * DAY
YEAR = 366 * DAY
FORGET = '[sessions]\nkeep = { all = "0s", hourly = "0s", daily = "0s", yearly = "0s" }\n'


class World:
    """A workspace, a store, and a repository to mount."""

    def __init__(self, base: Path, store: Store) -> None:
        self.base = base
        self.store = store
        self.root = base / "shop"
        self.root.mkdir()
        self.table("")
        self.workspace = identity.workspace_id(store, str(self.root))
        self.origin = base / "origin"
        self.origin.mkdir()
        git(self.origin, "init", "-q")
        git(self.origin, "config", "uploadpack.allowFilter", "true")
        git(self.origin, "config", "uploadpack.allowAnySHA1InWant", "true")
        (self.origin / "d").mkdir()
        (self.origin / "d/deep").write_text("deep\n")
        for name in ("one", "two"):
            (self.origin / name).write_text(name)
        git(self.origin, "add", "-A")
        git(self.origin, "commit", "-qm", "1")
        git(self.origin, "tag", "v1")
        self.url = f"file://{self.origin}"
        self.now = START_MS + DAY
        self.history = History(store)

    def table(self, text: str) -> None:
        (self.root / "Clive.toml").write_text('[workspace]\nname = "shop"\n' + text)

    def attach(self, location: str, more: str = "") -> None:
        self.table(f'[mounts."lib"]\ngit = "{location}"\nref = "main"\n{more}')

    def open(self, location: str) -> GitSource:
        source = GitSource(
            location,
            "main",
            base_dir=str(self.root),
            store_dir=self.store.path,
            store=self.store,
            user=User(self.workspace, location),
        )
        source.open()
        return source

    def use(self, location: str) -> None:
        """Open it, keep what is to be kept, and let it go."""
        source = self.open(location)
        source.keep()
        del source
        garbage.collect()

    def collect(self, after_ms: int = 0, *, dry_run: bool = False, said: Callable[[str], None] | None = None) -> None:
        self.now += after_ms
        self.done = collection.collect(
            self.store, now_ms=self.now, dry_run=dry_run, progress=said or (lambda text: None)
        )

    @property
    def states(self) -> list[str]:
        return [each.state for each in self.done.repositories.repositories]

    @property
    def gitdir_states(self) -> list[str]:
        return [each.state for each in self.done.repositories.gitdirs]

    @property
    def repositories(self) -> list[str]:
        return [name for name in os.listdir(self.base / "store/repositories") if not name.endswith(".lock")]

    def show(self, tree: bytes) -> None:
        """Record that the workspace shows *tree* at `lib`."""
        with self.store.batch() as batch:
            self.history.publish(batch, batch.tree([TreeEntry(MODE_TREE, b"lib", tree)]), None)

    def show_nothing(self) -> None:
        """Record, the day after, that it does not."""
        with self.store.batch() as batch:
            blob = batch.blob(b"nothing")
            self.history.publish(batch, batch.tree([TreeEntry(MODE_FILE, b"a", blob)]), None, after_ms=DAY)


def make_gitdir(world: World) -> Path:
    """That of a mounted entry, detached by now."""
    world.attach(str(world.origin))
    entry = config.load(world.root / "Clive.toml").mounts[0]
    path = world.base / "store/gitdirs" / upper_name(world.workspace, entry)
    source = world.open(str(world.origin))
    source.keep()
    made = GitDir.create_or_open(str(path), source.current, source)
    made.settle(source)
    upper = world.base / "store/uppers" / world.workspace / path.name
    (upper / "tree").mkdir(parents=True)
    (upper / "tree/.git").write_bytes(made.dot_git_content())
    del source, made
    garbage.collect()
    return path


def work(path: Path, *arguments: str) -> str:
    tree = path.parent.parent / "tree"
    tree.mkdir(exist_ok=True)
    return git(tree, f"--git-dir={path}", f"--work-tree={tree}", *arguments)
