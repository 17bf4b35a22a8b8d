"""What needs no daemon: permissions, the mount table in `Clive.toml`, checking the store. Each opens the store
for as long as it takes; several processes may."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.mounts import identity
from clivefs.mounts.config import config, source_notation, trust
from clivefs.mounts.config import edit as config_edit
from clivefs.mounts.config import file as config_file
from clivefs.mounts.git import exclude as gitexclude
from clivefs.objects import fsck as checks
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store


@contextlib.contextmanager
def _opened(path: str, *, create: bool) -> Iterator[Store]:
    store = Store.open(path, create=create)
    try:
        yield store
    finally:
        store.close()


def allow(store_path: str, root: str) -> list[str]:
    """Allow what the workspace at *root* asks for now; what had not been allowed before, for people."""
    workspace = config.load(os.path.join(root, config.FILE_NAME))
    with _opened(store_path, create=True) as store:
        new = trust.allow(workspace, trust.StoreTrust(store), identity.workspace_id(store, workspace.root))
    return [f"{request.path}: {request.what}" for request in new]


def note_own(store_path: str, root: str) -> None:
    """Remember that the user made the workspace at *root* here."""
    with _opened(store_path, create=True) as store:
        trust.mark_own(trust.StoreTrust(store), identity.workspace_id(store, root))


def relink(store_path: str, old: str, new: str) -> None:
    """Let *new* be the workspace that *old* was."""
    with _opened(store_path, create=False) as store:
        identity.relink(store, old, new)


def edit(
    store_path: str,
    root: str,
    command: str,
    path: str,
    *,
    dry_run: bool,
    source: str | None = None,
    patches: Sequence[str] = (),
    write: str | None = None,
) -> dict[str, Any]:
    """Do `attach`, `detach` or `replace` in the `Clive.toml` of a workspace that is not mounted; the entry's object."""
    file = os.path.join(root, config.FILE_NAME)
    old = _text(root, file)
    parsed = source_notation.parse_source(source) if source is not None else None
    if parsed is None:
        new = config_edit.detach(old, path, file=file)
    elif command == "attach":
        new = config_edit.attach(old, path, parsed, write=write, patches=patches, file=file)
    else:
        new = config_edit.replace(old, path, parsed, file=file)
    workspace = config.parse(new, file=file, root=root)
    entry = workspace.entry(path)
    if not dry_run:
        config_file.save(file, old, new)
        if entry is not None:
            with _opened(store_path, create=True) as store:
                number = identity.workspace_id(store, root)
                trust.allow(workspace, trust.StoreTrust(store), number, only=[path])
    facts: dict[str, Any] = {"path": path, "state": "dry-run" if dry_run else "not-mounted", "error": None}
    if entry is not None:
        facts.update(source=entry.source, write=entry.write)
        if command == "attach" and not dry_run:
            facts["excluded_in"] = gitexclude.exclude(root, path)
    return facts


def _text(root: str, file: str) -> str:
    dir_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return config_file.decode(config_file.read_at(dir_fd, config.FILE_NAME, file=file), file=file)
    finally:
        os.close(dir_fd)


def fsck(store_path: str, progress: Callable[[str], None]) -> tuple[list[checks.Problem], int]:
    """What is wrong with the store, and how many objects were looked at."""
    if not os.path.lexists(store_path):
        raise ClivefsError("there is no store", place=store_path, remedy="name another with --store")
    problems: list[checks.Problem] = []
    objects = 0
    with _opened(store_path, create=False) as store:
        extra = [Repository(path) for path in _repositories(store.path)]
        for step in checks.fsck_steps(store, extra=extra):
            if isinstance(step, checks.Problem):
                problems.append(step)
            else:
                objects = step.objects
                progress(f"{objects} objects checked")
    return problems, objects


def _repositories(store_path: str) -> list[str]:
    """The repositories inside a store, which may hold what its objects name."""
    directory = os.path.join(store_path, "repositories")
    with contextlib.suppress(FileNotFoundError):
        return [os.path.join(directory, name) for name in sorted(os.listdir(directory)) if name.endswith(".git")]
    return []
