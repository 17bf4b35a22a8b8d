"""Removing repositories of the store, and private gitdirs, that nobody needs any more.

A private gitdir goes when the `Clive.toml` of its workspace has not named its entry for 30 days, nobody has it open or
borrows from it, and it has nothing of the user's (`git.leftover`). A repository goes when no `Clive.toml` of a
workspace that used it (`git.users`) has named it for 30 days, nobody has it open, no gitdir borrows from it
(`objects/info/alternates`), and nothing that is recorded needs it (`needs`). A `Clive.toml` that cannot be read names
everything; a workspace whose directory is gone names nothing. Where the workspace's own edits are kept apart, both
count, the file that is there and the edited one.

It can be killed at any moment. What goes is renamed first, to a name that means nothing to anybody, while it is locked
and (a repository) behind the gate of collections, where nothing is recorded; then it is deleted, by the next collection
if need be. `note_user` takes the mark away that a removal goes by.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts import identity
from clivefs.mounts.assembly.places import upper_name
from clivefs.mounts.config import config, edited
from clivefs.mounts.config.config import MountEntry
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.fetch import repository_path
from clivefs.mounts.git.inuse import locked_alone, unused
from clivefs.mounts.git.leftover import gitdirs_in, has_work
from clivefs.mounts.git.users import NAMESPACE, past_key, since_key, users
from clivefs.mounts.points.needs import Needs
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects import gc
from clivefs.objects.errors import RepositoryError
from clivefs.objects.interface import ANY, Changes, MetaChange
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store

UNNAMED_MS = 30 * 24 * 3_600_000
"""For how long no `Clive.toml` has named what goes."""
GONE = ".gone"
_REPOSITORY = re.compile(r"[0-9a-f]{40}\.git")
_GITDIR = re.compile(r"([0-9a-f]{16})-[0-9a-f]{16}")
_MENTIONED = re.compile(rb"(repositories/[0-9a-f]{40}\.git|gitdirs/[0-9a-f]{16}-[0-9a-f]{16})/")
_ALTERNATES = ("objects", "info", "alternates")
_ALTERNATES_BYTES_MAX = 1 << 20

Over = Callable[[], bool]
Say = Callable[[str], None]


class Judged(NamedTuple):
    """A repository or a private gitdir, and what becomes of it."""

    path: str
    """Below the store: `repositories/HASH.git`, `gitdirs/W-E`."""
    state: str
    """`removed` (with a dry run: it would be), or what keeps it: it is `named` by a Clive.toml, `waiting` until it was
    not for 30 days, `open`, `borrowed` from, needed by the `past`, `damaged`, has `work` of the user's, or there was no
    time to look (`not-looked-at`)."""
    locations: tuple[str, ...] = ()
    """How entries named it, as far as that is known."""
    bytes: int = 0
    """Of disk that its removal gives back."""


class Repositories(NamedTuple):
    """What a collection found."""

    repositories: tuple[Judged, ...] = ()
    gitdirs: tuple[Judged, ...] = ()
    """Those that no Clive.toml names."""

    def removed(self) -> list[Judged]:
        return [each for each in (*self.repositories, *self.gitdirs) if each.state == "removed"]

    def notes(self, store_path: str) -> list[str]:
        """What a person should know."""
        return [
            f"{os.path.join(store_path, each.path)} stays: it has work of yours, of an entry that no Clive.toml names "
            "any more; remove it if you need it no more"
            for each in self.gitdirs
            if each.state == "work"
        ]


def collect_repositories(
    store: Store,
    roots: Callable[[], StoreRoots],
    *,
    now_ms: int,
    dry_run: bool = False,
    is_over: Over = lambda: False,
    progress: Say = lambda text: None,
) -> Repositories:
    """Remove those of *store* that nobody needs. *roots* gives what is kept. *is_over*: see `gc.sweep`; then less goes
    than could. By the one collection that is under way. OSError."""
    if not dry_run:
        _end_removals(store)
    collection = _Collection(store, _Tables(store), now_ms, dry_run=dry_run)
    gitdirs = collection.gitdirs()
    repositories = collection.repositories(roots, gitdirs, is_over, progress)
    collection.note()
    return Repositories(tuple(repositories), tuple(gitdirs))


class _Tables:
    """What the `Clive.toml` of every workspace names."""

    def __init__(self, store: Store) -> None:
        self.unreadable: set[str] = set()
        self._locations: set[tuple[str, str]] = set()
        self._names: set[str] = set()
        """Of repositories and gitdirs, as far as the table alone says them."""
        for workspace in identity.workspace_ids(store):
            root = identity.root_path(store, workspace)
            if root is None or not os.path.lexists(root):
                continue
            try:
                self._add(store.path, workspace, root)
            except (ClivefsError, OSError):
                self.unreadable.add(workspace)

    def _add(self, store_path: str, workspace: str, root: str) -> None:
        entries: list[MountEntry] = []
        own = os.path.join(root, config.FILE_NAME)
        if os.path.lexists(own):
            entries += config.load(own, root=root).mounts
        edit = edited.edited_file(store_path, workspace)
        if os.path.lexists(edit):
            entries += config.load(edit, root=root).mounts
        else:
            edited.check_not_elsewhere(store_path, workspace)
        for entry in entries:
            self._names.add(upper_name(workspace, entry))
            if entry.kind == "git":
                self._locations.add((workspace, entry.location))
                self._names.add(os.path.basename(repository_path("", entry.location)))

    def names_gitdir(self, name: str) -> bool:
        match = _GITDIR.fullmatch(name)
        return match is None or match[1] in self.unreadable or name in self._names

    def names_repository(self, store: Store, name: str) -> bool:
        return name in self._names or any(
            user.workspace in self.unreadable or user in self._locations for _, user in users(store, name)
        )


class _Collection:
    """One collection, of one thread."""

    def __init__(self, store: Store, tables: _Tables, now_ms: int, *, dry_run: bool) -> None:
        self._store = store
        self._tables = tables
        self._now_ms = now_ms
        self._dry_run = dry_run
        self._git = GitCommand()
        self._marks: dict[bytes, bytes | None] = {}
        """Records that are to be written."""

    def note(self) -> None:
        """Write down since when what is not named."""
        if self._marks and not self._dry_run:
            with self._store.batch() as batch:
                for key, value in self._marks.items():
                    batch.meta_put(NAMESPACE, key, value)

    def _is_due(self, directory: str, *, named: bool) -> bool:
        """Whether *directory* has not been named for long enough."""
        key = since_key(directory)
        record = self._store.meta_get(NAMESPACE, key)
        if named:
            if record is not None:
                self._marks[key] = None
            return False
        since_ms = int(record) if record is not None else self._now_ms
        if record is None or since_ms > self._now_ms:  # a clock that was wrong
            self._marks[key] = str(self._now_ms).encode()
            return False
        return self._now_ms - since_ms >= UNNAMED_MS

    # Private gitdirs

    def gitdirs(self) -> list[Judged]:
        """Judge the private gitdirs that no table names, and remove what is worth nothing."""
        due: list[str] = []
        judged: list[Judged] = []
        for name in _names(self._store.path, "gitdirs", _GITDIR):
            path, named = f"gitdirs/{name}", self._tables.names_gitdir(name)
            if self._is_due(path, named=named):
                due.append(name)
            elif not named:
                judged.append(Judged(path, "waiting"))
        if not due:
            return judged
        borrowed = mentioned(self._store.path)
        for name in due:
            path = os.path.join(self._store.path, "gitdirs", name)
            upper = os.path.join(self._store.path, "uppers", name.partition("-")[0], name)
            with unused(path) as is_unused:
                if not is_unused:
                    state = "open"
                elif self._store.meta_get(NAMESPACE, since_key(f"gitdirs/{name}")) is None:
                    state = "waiting"  # somebody has come to use it
                elif f"gitdirs/{name}" in borrowed:
                    state = "borrowed"
                elif has_work(path, upper, self._tags(path), self._git):
                    state = "work"
                else:
                    state = "removed"
                    size = disk_bytes(path)
                    if not self._dry_run:
                        os.rename(path, path + GONE)
                        FAULTS.hit("gc.gitdir-renamed")
            if state == "removed":
                judged.append(Judged(f"gitdirs/{name}", state, bytes=size))
                self._marks[since_key(f"gitdirs/{name}")] = None
                if not self._dry_run:
                    _delete(path + GONE)
            else:
                judged.append(Judged(f"gitdirs/{name}", state))
        return judged

    def _tags(self, gitdir: str) -> dict[str, bytes]:
        """The tags of the repositories of the store that *gitdir* borrows from."""
        found: dict[str, bytes] = {}
        for each in gitdirs_in(gitdir):
            for path in _mentioned_in(each):
                if path.startswith("repositories/"):
                    try:
                        found.update(Repository(os.path.join(self._store.path, path)).refs())
                    except RepositoryError:
                        continue
        return found

    # Repositories

    def repositories(
        self, roots: Callable[[], StoreRoots], gitdirs: Iterable[Judged], is_over: Over, progress: Say
    ) -> list[Judged]:
        """Judge all repositories, and remove those that nobody needs."""
        judged: dict[str, Judged] = {}
        candidates: dict[str, Repository] = {}
        others: list[Repository] = []
        without = {each.path for each in gitdirs if each.state == "removed"}
        borrowed = mentioned(self._store.path, without)
        for name in _names(self._store.path, "repositories", _REPOSITORY):
            path = f"repositories/{name}"
            locations = tuple(sorted({user.location for _, user in users(self._store, name)}))
            named = self._tables.names_repository(self._store, name)
            is_due = self._is_due(path, named=named)
            state = "named" if named else "waiting" if not is_due else "borrowed" if path in borrowed else "past"
            if state == "past":
                with unused(os.path.join(self._store.path, path)) as is_unused:
                    state = "past" if is_unused else "open"
            judged[name] = Judged(path, state, locations)
            try:
                repository = Repository(os.path.join(self._store.path, path))
            except RepositoryError:
                judged[name] = judged[name]._replace(state="damaged" if state == "past" else state)
                continue
            if state == "past":
                candidates[name] = repository
            else:
                others.append(repository)
        if candidates:
            needs = Needs(self._store, roots(), candidates, others)
            known = self._known_needs(candidates)
            if not needs.look(known, is_over, progress):
                judged.update({name: judged[name]._replace(state="not-looked-at") for name in candidates})
                return list(judged.values())
            self._remember_needs(candidates, needs)
            for name, state, size in self._remove(candidates, needs):
                judged[name] = judged[name]._replace(state=state, bytes=size)
        return list(judged.values())

    def _known_needs(self, names: Iterable[str]) -> dict[str, bytes]:
        found = ((name, self._store.meta_get(NAMESPACE, past_key(name))) for name in names)
        return {name: oid for name, oid in found if oid is not None}

    def _remember_needs(self, names: Iterable[str], needs: Needs) -> None:
        for name in names:
            oid = needs.needed.get(name)
            if oid != self._store.meta_get(NAMESPACE, past_key(name)):
                self._marks[past_key(name)] = oid

    def _remove(self, candidates: Mapping[str, Repository], needs: Needs) -> list[tuple[str, str, int]]:
        """(name, state, bytes) of those that nothing recorded needs."""
        free = [name for name in candidates if name not in needs.needed]
        if not free:
            return []
        sizes = {name: disk_bytes(os.path.join(self._store.path, "repositories", name)) for name in free}
        if self._dry_run:
            return [(name, "removed", sizes[name]) for name in free]
        done: list[tuple[str, str, int]] = []
        try:
            with gc.alone(self._store):  # so nothing is recorded, and nobody reads all of the past
                needs.look_again()
                borrowed = mentioned(self._store.path)
                for name in free:
                    if name in needs.needed:
                        continue
                    is_free = f"repositories/{name}" not in borrowed and self._rename(name)
                    done.append((name, "removed" if is_free else "open", sizes[name] if is_free else 0))
        except gc.Busy:
            return [(name, "open", 0) for name in free]
        for name, state, _ in done:
            if state == "removed":
                for key in (since_key(f"repositories/{name}"), past_key(name)):
                    self._marks.pop(key, None)
                _delete(os.path.join(self._store.path, "repositories", name + GONE))
        FAULTS.hit("gc.repositories-removed")
        return done

    def _rename(self, name: str) -> bool:
        """Take the repository's name away, unless somebody has come to use it; behind the gate."""
        path = os.path.join(self._store.path, "repositories", name)
        with unused(path) as is_unused, _not_fetching(path) as is_quiet:
            since = self._store.meta_get(NAMESPACE, since_key(f"repositories/{name}"))
            if not is_unused or not is_quiet or since is None:
                return False
            os.rename(path, path + GONE)
            FAULTS.hit("gc.repository-renamed")
            _forget(self._store, name)
        return True


# On disk


def mentioned(store_path: str, without: Iterable[str] = ()) -> set[str]:
    """The repositories and private gitdirs (paths below the store) that some gitdir of the store borrows from, those
    *without* not asked."""
    found: set[str] = set()
    skipped = set(without)
    for directory in ("gitdirs", "repositories", "forkgits", "commits"):
        for name in _names(store_path, directory, None):
            own = f"{directory}/{name}"
            if own not in skipped and not name.endswith(GONE):
                for gitdir in gitdirs_in(os.path.join(store_path, own)):
                    found.update(_mentioned_in(gitdir) - {own})
    uppers = os.path.join(store_path, "uppers")
    for workspace in _listed(uppers):
        for upper in _listed(os.path.join(uppers, workspace)):
            for name in _listed(os.path.join(uppers, workspace, upper, "git")):
                for gitdir in gitdirs_in(os.path.join(uppers, workspace, upper, "git", name)):
                    found.update(_mentioned_in(gitdir))
    return found


def _mentioned_in(gitdir: str) -> set[str]:
    path = os.path.join(gitdir, *_ALTERNATES)
    if not os.path.isfile(path):  # a pipe would keep us waiting
        return set()
    with open(path, "rb") as file:
        return {os.fsdecode(each) for each in _MENTIONED.findall(file.read(_ALTERNATES_BYTES_MAX))}


def disk_bytes(path: str) -> int:
    """What the removal of a directory gives back: what has other names elsewhere does not count."""
    total = 0
    for directory, _, names in os.walk(path):
        for name in names:
            st = os.lstat(os.path.join(directory, name))
            total += st.st_blocks * 512 if st.st_nlink == 1 else 0
    return total


@contextmanager
def _not_fetching(path: str) -> Iterator[bool]:
    """Whether nobody fetches into the repository *path*, nor begins to before the block ends."""
    fd = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with locked_alone(fd) as alone:
        yield alone


def _end_removals(store: Store) -> None:
    """Delete what an earlier collection has renamed and not deleted."""
    for directory in ("repositories", "gitdirs"):
        for name in _listed(os.path.join(store.path, directory)):
            path = os.path.join(store.path, directory, name)
            if name.endswith(GONE):
                _delete(path)
                if not os.path.lexists(path.removesuffix(GONE)):
                    _forget(store, name.removesuffix(GONE))


def _delete(path: str) -> None:
    """Delete what has been renamed, once the disk knows that. What cannot be deleted is tried again by the next
    collection."""
    fd = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    shutil.rmtree(path, ignore_errors=True)


def _forget(store: Store, name: str) -> None:
    """Remove the records of a repository or gitdir that is no more."""
    keys = [since_key(f"repositories/{name}"), since_key(f"gitdirs/{name}")]
    if _REPOSITORY.fullmatch(name):
        keys += [past_key(name), *(key for key, _ in users(store, name))]
    changes = Changes()
    changes.meta += [
        MetaChange(NAMESPACE, key, None, ANY) for key in keys if store.meta_get(NAMESPACE, key) is not None
    ]
    if changes.meta:
        store.apply(changes).result()


def _names(store_path: str, directory: str, pattern: re.Pattern[str] | None) -> list[str]:
    """The directories in one of the store's whose names are of that form."""
    path = os.path.join(store_path, directory)
    return [
        name
        for name in sorted(_listed(path))
        if (pattern is None or pattern.fullmatch(name))
        and not os.path.islink(os.path.join(path, name))
        and os.path.isdir(os.path.join(path, name))
    ]


def _listed(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except (FileNotFoundError, NotADirectoryError):
        return []
