"""A whole collection of a store: thin what is old, seal what stays, remove what nothing leads to. Its steps can end at
any moment."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.config import config, edited
from clivefs.mounts.config.config import Keep
from clivefs.mounts.identity import root_path
from clivefs.mounts.patch import apply
from clivefs.mounts.points.index import Points
from clivefs.mounts.points.repositories import Repositories, collect_repositories
from clivefs.mounts.points.roots import StoreRoots, workspaces_with_points
from clivefs.mounts.points.sealing import Sealed, seal
from clivefs.mounts.points.thinning import Thinned, thin
from clivefs.objects import gc
from clivefs.objects.encode import OID_BYTES
from clivefs.objects.gcmarks import Reach
from clivefs.objects.interface import ANY, Changes, MetaChange
from clivefs.objects.store import Store

Say = Callable[[str], None]
_LOOK_S = 0.2
"""How often is looked whether a point was recorded."""


class Collected(NamedTuple):
    """What a collection did, or with a dry run would do."""

    thinned: tuple[Thinned, ...]
    swept: gc.Swept
    sealed: Sealed
    repositories: Repositories
    given_back: int | None
    """Bytes of the database's file; None where another process has it open."""
    notes: tuple[str, ...]
    """What a person should know: workspaces that were not thinned, and why."""
    unfinished: bool
    """Whether the time was over before all was done."""


def keep_of(store: Store, workspace: str) -> tuple[Keep | None, str]:
    """What the `Clive.toml` of a workspace, as its mount shows it, says of thinning, the default where there is none;
    None, and why, where there is one that cannot be read."""
    root = root_path(store, workspace)
    if root is None or not os.path.lexists(os.path.join(root, config.FILE_NAME)):
        return Keep(), ""
    try:
        return edited.load(store.path, workspace, root).sessions.keep, ""
    except (ClivefsError, OSError) as error:
        return None, f"{root} is not thinned: its {config.FILE_NAME} cannot be read ({error})"


def collect(
    store: Store,
    *,
    now_ms: int,
    keeps: Collection[bytes] = (),
    dry_run: bool = False,
    seconds_max: float = float("inf"),
    while_quiet: bool = False,
    progress: Say = lambda text: None,
) -> Collected:
    """Thin, seal and sweep *store*. *keeps*: points that are not thinned. Nothing is begun after *seconds_max*, or
    *while_quiet* once a point is recorded. Waits for whoever reads or writes the store: gc.Busy when that lasts, and
    it is so late. gc.Busy, too, where another collection is under way."""
    is_over = _Over(store, seconds_max, while_quiet=while_quiet)
    with gc.one_at_a_time(store):
        store.reader_check()
        notes: list[str] = []
        thinned: list[Thinned] = []
        held = frozenset((*keeps, *StoreRoots(store, store.path).named()))
        for workspace in workspaces_with_points(store):
            keep, why = keep_of(store, workspace)
            if keep is None:
                notes.append(why)
            else:
                thinned.append(
                    thin(
                        store,
                        workspace,
                        keep,
                        now_ms=now_ms,
                        keeps=held,
                        dry_run=dry_run,
                        is_over=is_over,
                        progress=progress,
                    )
                )
        FAULTS.hit("gc.all-thinned")
        # Sealed first: what is in packs need not be looked through again and again.
        sealed = Sealed(0, 0, 0, False)
        if not dry_run:
            try:
                sealed = seal(store, now_ms, progress, is_over=is_over)
            except OSError as error:  # what makes room comes after it
                notes.append(_full(error, "history is not sealed"))
        repositories = Repositories()
        gone = frozenset[bytes]().union(*(each.ids for each in thinned))
        if sealed.unfinished:
            swept = gc.Swept(0, 0, store.counts()["objects"])
        else:
            roots = StoreRoots(store, store.path, without=gone)
            reach = gc.look(store, roots, progress)
            _forget_patches(store, reach, gc.Patience(is_over, progress), dry_run=dry_run)
            swept = gc.sweep(store, roots, reach, dry_run=dry_run, progress=progress, is_over=is_over)
            del reach
            if not is_over():
                try:
                    repositories = collect_repositories(
                        store,
                        lambda: StoreRoots(store, store.path, without=gone),
                        now_ms=now_ms,
                        dry_run=dry_run,
                        is_over=is_over,
                        progress=progress,
                    )
                    notes += repositories.notes(store.path)
                except (OSError, ClivefsError) as error:  # the rest need not wait for what is damaged
                    notes.append(f"not all repositories were looked at: {error}")
        unfinished = not dry_run and is_over()
        given_back: int | None = 0
        if not dry_run and not unfinished:
            try:
                given_back = store.compact()
            except OSError as error:
                notes.append(_full(error, "the database's file stays as large as it is"))
    return Collected(tuple(thinned), swept, sealed, repositories, given_back, tuple(notes), unfinished)


def _full(error: OSError, what: str) -> str:
    """That a full disk is in the way of *what*, for people; any other error is raised."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        raise error
    return f"{what}: {os.strerror(error.errno)}; `clivefs gc` does it when there is room"


class _Over:
    """Whether to begin nothing more."""

    def __init__(self, store: Store, seconds_max: float, *, while_quiet: bool) -> None:
        self._until = time.monotonic() + seconds_max
        self._points = [Points(store, each) for each in workspaces_with_points(store)] if while_quiet else []
        self._heads = self._newest()
        self._looked_s = time.monotonic()
        self._is_over = False

    def __call__(self) -> bool:
        now = time.monotonic()
        if not self._is_over and now > self._looked_s + _LOOK_S:
            self._is_over = now >= self._until or self._newest() != self._heads
            self._looked_s = now
        return self._is_over or now >= self._until

    def _newest(self) -> list[int]:
        heads = (each.head() for each in self._points)
        return [head.ms if head is not None else 0 for head in heads]


def _forget_patches(store: Store, reach: Reach, patience: gc.Patience, *, dry_run: bool) -> None:
    """Remove the records of patched trees that nothing shows or recorded; the trees themselves stay this time."""
    stale: list[bytes] = []
    trees: list[bytes] = []
    for key, value in store.meta_items(apply.CACHE):
        tree = value[:OID_BYTES]
        if tree in reach.marks and not reach.marks.is_marked(tree):
            stale.append(key)
        trees.append(tree)
    reach.mark(trees)
    if stale and not dry_run:
        with gc.alone(store, patience):
            changes = Changes()
            changes.meta += [MetaChange(apply.CACHE, key, None, ANY) for key in stale]
            store.apply(changes).result()
