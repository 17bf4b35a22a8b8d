"""Which git working trees a fork gets, and where its commits go when it ends."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from functools import partial

from clivefs.base.errors import ClivefsError
from clivefs.daemon.applying import entry_of
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.forks import gitdirs
from clivefs.mounts.forks.gitdirs import Kept, Source
from clivefs.mounts.git.checkedout import submodules
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.fetch import repository_path
from clivefs.mounts.git.kept import KeptObjects
from clivefs.mounts.git.lower import GitLower
from clivefs.objects.errors import RepositoryError, UnknownRef
from clivefs.objects.gitdirs import find_gitdir
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store

log = logging.getLogger(__name__)


def sources(live: LiveWorkspace) -> dict[str, Source]:
    """The git working trees of a live view by mount entry (the workspace's own directory is the empty path). For
    threads."""
    found: dict[str, Source] = {}
    own = root_gitdir(live)
    if own is not None:
        shown = {
            path: gitdir for path, gitdir in submodules(live.root).items() if not entry_of(live, os.fsencode(path))
        }
        found.update({path: Source(gitdir) for path, gitdir in {"": own, **shown}.items()})
    for path, mounted in list(live.entries.items()):
        if mounted.git_dir is not None:
            unbuilt = isinstance(mounted.lower, GitLower) and not mounted.git_dir.has_index()
            found[path] = Source(mounted.git_dir.path, unbuilt=unbuilt)
    return found


def root_gitdir(live: LiveWorkspace) -> str | None:
    """The gitdir of the workspace's own directory, if that is a checkout. Where edits are kept apart its `.git` is not
    the one that the mount shows, and does not count."""
    if live.settings.write == "overlay":
        return None
    if os.path.islink(os.path.join(live.root, ".git")) or not os.path.lexists(os.path.join(live.root, ".git")):
        return None
    try:
        return find_gitdir(live.root)[0]
    except (RepositoryError, OSError) as error:
        log.info("%s: forks are no checkouts: %s", live.name, error)
        return None


def keep_sources(store: Store, live: LiveWorkspace, upper: str) -> None:
    """See that what a fork borrows of repositories that are not the store's outlives a `git gc` there. For threads; may
    take long the first time where links cannot be made."""
    borrowers = gitdirs.places(upper)
    for path, source in sources(live).items():
        own = borrowers.get(os.fsencode(path))
        if own is None or path in live.entries:
            continue
        repository = Repository(source.gitdir)
        try:
            head = repository.resolve("HEAD")
        except UnknownRef:
            continue  # there is no commit yet
        kept = KeptObjects(_kept_path(store, repository), repository, git=GitCommand())
        kept.create()
        kept.keep([head])
        with suppress(FileNotFoundError):  # dropped meanwhile
            gitdirs.borrow(own, [kept.objects_dir])


def _kept_path(store: Store, repository: Repository) -> str:
    return repository_path(os.fspath(store.path), f"local:{repository.commondir}")


def keepers(live: LiveWorkspace) -> dict[bytes, str]:
    """The gitdirs of the store that commits of forks can be kept in, by mount entry."""
    return {os.fsencode(path): each.git_dir.path for path, each in live.entries.items() if each.git_dir is not None}


def keep_commits(store: Store, workspace_id: str, name: str, upper: str, targets: dict[bytes, str]) -> list[Kept]:
    """Keep what was committed in the fork *name*: in the entry's own gitdir, or in a repository of the store. For
    threads. ClivefsError."""
    kept: list[Kept] = []
    git, scratch = GitCommand(), scratch_directory(store.path)
    for path, gitdir in sorted(gitdirs.places(upper).items()):
        try:
            target = partial(_target, store, workspace_id, gitdir, targets.get(path))
            kept += gitdirs.keep(name, os.fsdecode(path), gitdir, target, git, scratch)
        except (RepositoryError, OSError, ClivefsError) as error:
            raise ClivefsError(
                f"what was committed in it cannot be kept: {error}",
                place=os.fsdecode(path) or None,
                remedy=f"the repository is {gitdir}; `clivefs fork --drop {name} --force` gives its commits up",
            ) from error
    return kept


def _target(store: Store, workspace_id: str, gitdir: str, own: str | None) -> str:
    """The entry's *own* repository, or the one for commits of forks that no gitdir of the store can take."""
    if own is not None:
        return own
    path = os.path.join(store.directory("forkgits"), f"{workspace_id}.git")
    return gitdirs.make_keeper(path, gitdirs.borrowed(gitdir))
