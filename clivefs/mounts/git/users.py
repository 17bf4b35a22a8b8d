"""Who uses the repositories of the store: what a collection goes by.

Records, in the namespace `repositories` of the store's meta table:
    user/HASH/W/SHA256    JSON, the `location` by which the `Clive.toml` of the workspace W names what has
                          `repositories/HASH.git` opened; a submodule's is that of the entry that it is in
    since/DIRECTORY       of `repositories/HASH.git` or `gitdirs/W-E`: since when collections have found that no
                          `Clive.toml` names it, in ms since the epoch, decimal
    past/HASH             the point (or other root) that was last found to need something that only it has
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple

from clivefs.objects.interface import ObjectStore

NAMESPACE = "repositories"
_HASH_CHARACTERS = 40


class User(NamedTuple):
    """Somebody who used a repository."""

    workspace: str
    location: str


def note_user(store: ObjectStore, repository: str, user: User) -> None:
    """Remember that *user* has opened the repository at the path *repository*. To be called while it is held. Nobody
    waits for it: without the record a collection still waits for 30 days."""
    name = os.path.basename(repository)
    key = _user_key(name) + f"{user.workspace}/{sha256(os.fsencode(user.location)).hexdigest()}".encode()
    if store.meta_get(NAMESPACE, key) is None:
        with store.batch(wait=False) as batch:
            batch.meta_put(NAMESPACE, key, json.dumps({"location": user.location}).encode())
    note_use(store, f"repositories/{name}")


def note_use(store: ObjectStore, directory: str) -> None:
    """Remember that *directory* (see above) is used again."""
    if store.meta_get(NAMESPACE, since_key(directory)) is not None:
        with store.batch() as batch:
            batch.meta_put(NAMESPACE, since_key(directory), None)


def users(store: ObjectStore, name: str) -> Iterator[tuple[bytes, User]]:
    """(key, user) of everybody who has opened the repository of that file name."""
    prefix = _user_key(name)
    for key, value in store.meta_range(NAMESPACE, prefix, prefix + b"\xff"):
        yield key, User(key[len(prefix) :].decode().partition("/")[0], json.loads(value)["location"])


def since_key(directory: str) -> bytes:
    return b"since/" + directory.encode()


def past_key(name: str) -> bytes:
    return b"past/" + name[:_HASH_CHARACTERS].encode()


def _user_key(name: str) -> bytes:
    return b"user/" + name[:_HASH_CHARACTERS].encode() + b"/"
