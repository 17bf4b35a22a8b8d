"""`.clive/base`: each overlay without patches and edits, read-only, so that `diff -r` shows what they are."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

from clivefs.base.errors import ClivefsError
from clivefs.daemon.kernelcaches import KernelCaches, known_names
from clivefs.daemon.live import LiveWorkspace
from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.detached import DetachedTree
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.synthetic import SyntheticDirectory
from clivefs.mounts.view import View

log = logging.getLogger(__name__)

_NAME = b"base"


class BaseTrees:
    """Those of all workspaces. Methods are for the loop's thread, in the span that shows or drops the entry."""

    def __init__(self, view: View, caches: KernelCaches) -> None:
        self._view = view
        self._caches = caches
        self._tops: dict[LiveWorkspace, SyntheticDirectory] = {}
        self._trees: dict[tuple[LiveWorkspace, str], OverlayTree] = {}

    def trees(self) -> Iterator[OverlayTree]:
        yield from self._trees.values()

    def begin(self, live: LiveWorkspace) -> None:
        """Show the directory `base` in the control directory of *live*."""
        assert live.control is not None
        self._tops[live] = self._view.synthetic.directory(live.control, _NAME)

    def end(self, live: LiveWorkspace) -> None:
        """*live* leaves; its entries have gone, and its control directory goes."""
        self._tops.pop(live, None)

    def show(self, live: LiveWorkspace, mounted: Mounted) -> None:
        """The entry *mounted* came, or shows something else."""
        path = mounted.entry.path
        try:
            tree = live.assembly.base_tree(mounted)
        except (ClivefsError, OSError) as error:
            log.info("%s: there is no base of it: %s", path, error)
            tree = None
        if tree is None:
            self.drop(live, path)
            return
        old = self._trees.get((live, path))
        stale = list(known_names(old.root)) if old is not None else []
        parent, name = self._view.set_entry(self._tops[live], os.fsencode(path), tree)
        self._trees[live, path] = tree
        self._caches.forget_way(parent, name)
        if old is not None:
            self._caches.forget_tree(tree.root.nodeid, stale)
            DetachedTree(old, self._view.table, old.close)

    def drop(self, live: LiveWorkspace, path: str) -> None:
        """The entry at *path* is no more, or has no base."""
        tree = self._trees.pop((live, path), None)
        if tree is None:
            return
        parent, name = self._view.remove_entry(self._tops[live], os.fsencode(path))
        self._caches.forget_way(parent, name)
        DetachedTree(tree, self._view.table, tree.close)

    def close(self) -> None:
        for tree in self._trees.values():
            tree.close()
        self._trees.clear()
