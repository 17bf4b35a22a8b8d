"""Where the objects of points are: in the store, and in the repositories that it keeps."""

from __future__ import annotations

import os
from contextlib import suppress

from clivefs.mounts.edits.diff import scratch_directory
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.promised import PromisedObjects
from clivefs.mounts.git.source import ANSWER_TIMEOUT_S
from clivefs.objects.errors import RepositoryError
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store


def kept_repositories(store: Store) -> tuple[Repository, ...]:
    """The repositories in *store*: what was fetched, and what is kept of the user's own."""
    directory = os.path.join(store.path, "repositories")
    found: list[Repository] = []
    with suppress(FileNotFoundError):
        for name in sorted(os.listdir(directory)):
            if name.endswith(".git"):
                path = os.path.join(directory, name)
                try:
                    found.append(Repository(path))
                except RepositoryError:
                    if os.path.lexists(path):  # otherwise it was collected this very moment
                        raise
    return tuple(found)


def past_objects(store: Store, repositories: tuple[Repository, ...] | None = None) -> JoinedObjects:
    """Every object that a point of *store* can name; *repositories* as `kept_repositories` gives them."""
    kept = kept_repositories(store) if repositories is None else repositories
    promised = PromisedObjects(tuple, lambda: kept, answer_timeout_s=ANSWER_TIMEOUT_S)
    return JoinedObjects((store, *kept), scratch_directory(store.path), promised.fetch)
