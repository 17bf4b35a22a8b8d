"""What needs no daemon: permissions, the mount table in `Clive.toml`, checking the store. Each opens the store
for as long as it takes; several processes may."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories
from clivefs.daemon import recovery
from clivefs.daemon.lock import Held, workspace_lock
from clivefs.mounts import identity
from clivefs.mounts.assembly import locking
from clivefs.mounts.assembly.places import Places
from clivefs.mounts.config import config, edited, lockfile, source_notation, trust
from clivefs.mounts.config import edit as config_edit
from clivefs.mounts.config import file as config_file
from clivefs.mounts.git import exclude as gitexclude
from clivefs.mounts.ownfiles import HostFiles
from clivefs.mounts.points.fsck import problems
from clivefs.mounts.points.objects import kept_repositories, past_objects
from clivefs.mounts.points.roots import StoreRoots
from clivefs.mounts.published.member import ArchiveLimits
from clivefs.mounts.tree import Owner
from clivefs.objects.fsck import Problem
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
    """Let *new* be the workspace that *old* was, while neither is mounted."""
    with _opened(store_path, create=False) as store, contextlib.ExitStack() as held:

        def hold(workspace: str) -> None:
            try:
                lock = workspace_lock(store_path, workspace, {"pid": os.getpid()})
            except Held as error:
                raise ClivefsError(
                    f"it is mounted, at {error.holder.get('mountpoint', 'an unknown place')} "
                    f"(process {error.holder.get('pid', 'unknown')})",
                    place=identity.root_path(store, workspace) or new,
                    remedy="`clivefs unmount` it first",
                ) from None
            held.callback(lock.release)

        make_directories(os.path.join(store_path, "run"))
        identity.relink(store, old, new, hold=hold)


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
    _refuse_hidden(store_path, config.parse(old, file=file, root=root))
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


def lock(
    store_path: str,
    root: str,
    *,
    paths: Sequence[str],
    check: bool,
    dry_run: bool,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Do `lock` in a workspace that is not mounted; what its daemon would answer (`Locking.lock`)."""
    settings = config.load(os.path.join(root, config.FILE_NAME))
    _refuse_hidden(store_path, settings)
    file = os.path.join(settings.root, lockfile.FILE_NAME)
    with _opened(store_path, create=True) as store:
        places = _places(store, settings)
        refused = trust.not_allowed(settings, trust.StoreTrust(store), places.workspace_id)
        if check:
            found = locking.check(places, settings, lockfile.read(settings.root), paths, refused, progress)
            return {"file": file, "written": False, "entries": [each.describe() for each in found]}
        before = lockfile.read(settings.root)
        plan = locking.look_up(places, settings, before, paths, refused, progress)
        written = not dry_run and lockfile.write(settings.root, plan.lock, before=before)
        return {"file": file, "written": written, "entries": [each.describe() for each in plan.findings]}


def _places(store: Store, settings: config.Workspace) -> Places:
    """What finding the sources of entries needs, where nothing is shown."""
    limits = settings.limits
    return Places(
        store,
        identity.workspace_id(store, settings.root),
        settings.root,
        Owner(os.geteuid(), os.getegid()),
        os.path.join(store.path, "unpacked"),
        ArchiveLimits(limits.archive_size, limits.archive_files, limits.archive_ratio),
        limits.network_timeout,
        _mount_over,
        HostFiles(settings.root, lambda _directory, _name: False),
    )


def _mount_over(path: str) -> str | None:
    over = recovery.clive_mount_over(path)
    return over.mountpoint if over is not None else None


def _refuse_hidden(store_path: str, workspace: config.Workspace) -> None:
    """ClivefsError where edits of the workspace's directory are kept apart, and its Clive.toml or Clive.lock is among
    them."""
    if workspace.write != "overlay" or not os.path.lexists(store_path):
        return
    with _opened(store_path, create=False) as store:
        number = identity.workspace_id(store, workspace.root)
    for name in (config.FILE_NAME, lockfile.FILE_NAME):
        if os.path.lexists(edited.edited_file(store_path, number, name)):
            raise ClivefsError(
                "it was edited in the mount, and those edits are kept apart from this directory",
                place=os.path.join(workspace.root, name),
                remedy="`clivefs mount` the workspace, then give the command again",
            )


def _text(root: str, file: str) -> str:
    dir_fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return config_file.decode(config_file.read_at(dir_fd, config.FILE_NAME, file=file), file=file)
    finally:
        os.close(dir_fd)


def fsck(store_path: str, progress: Callable[[str], None]) -> tuple[list[Problem], int]:
    """What is wrong with the store, and how many objects were looked at."""
    if not os.path.lexists(store_path):
        raise ClivefsError("there is no store", place=store_path, remedy="name another with --store")
    found: list[Problem] = []
    objects = 0
    with _opened(store_path, create=False) as store:
        kept = kept_repositories(store)
        for step in problems(store, past_objects(store, kept), extra=kept, roots=StoreRoots(store).fresh()):
            if isinstance(step, Problem):
                found.append(step)
            else:
                objects = step.objects
                progress(f"{objects} objects checked")
    return found, objects
