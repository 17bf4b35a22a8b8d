"""A mounted entry as the recorder sees it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, field, replace

from clivefs.mounts.assembly.entry import Mounted
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.times import GitTimes
from clivefs.mounts.host.lower import LocalLower
from clivefs.mounts.host.tree import HostTree
from clivefs.mounts.overlay.tree import OverlayTree
from clivefs.mounts.recording.parts import HostLower, Part, TreeLower, UpperLayer, copy_marks
from clivefs.mounts.tree import Owner, Tree


@dataclass(slots=True, eq=False)
class LivePart:
    """One tree of a workspace, with descriptors of its own: who records goes on with them when the tree is closed."""

    part: Part
    tree: Tree
    _ground: tuple[object, ...]
    """What the part was made of, to be compared by identity."""
    _fds: list[int]
    _holds: int = field(default=0, init=False)
    _closing: bool = field(default=False, init=False)

    def is_of(self, tree: Tree, mounted: Mounted | None) -> bool:
        """Whether it is what `live_part` would make of these."""
        ground = _ground(tree, mounted)
        return len(ground) == len(self._ground) and all(
            one is other for one, other in zip(ground, self._ground, strict=True)
        )

    def now(self, paths: list[bytes] | None) -> Part:
        """The part with the marks that bear on *paths* (all when None), as of this moment. For the loop's thread."""
        upper = self.part.upper
        if not isinstance(self.tree, OverlayTree):
            return self.part
        times = self.tree.lower.times if isinstance(self.tree.lower, GitLower) else None
        lower = self.part.lower
        if isinstance(times, GitTimes) and isinstance(lower, TreeLower) and times.changed is not lower.times:
            self.part = replace(self.part, lower=replace(lower, times=times.changed))
        if upper is None:
            return self.part
        layer = self.tree.upper
        assert layer is not None
        log = layer.log
        return replace(
            self.part,
            upper=UpperLayer(
                upper.fd,
                copy_marks(layer.root_mark, paths),
                None if paths is None else frozenset(paths),
                generation=log.sequence,
                generation_now=lambda: log.sequence,
            ),
        )

    def hold(self) -> None:
        """The descriptors stay open until as many `release`."""
        self._holds += 1

    def release(self) -> None:
        self._holds -= 1
        if self._closing and not self._holds:
            self._close()

    def close(self) -> None:
        """Give the descriptors up, as soon as nobody holds them."""
        self._closing = True
        if not self._holds:
            self._close()

    def _close(self) -> None:
        for fd in self._fds:
            with suppress(OSError):
                os.close(fd)
        self._fds.clear()


def live_part(prefix: bytes, tree: Tree, owner: Owner, mounted: Mounted | None) -> LivePart:
    """The part that *tree* is, shown at *prefix*; *mounted* is its entry, None for the workspace's own directory."""
    fds: list[int] = []

    def held(fd: int) -> int:
        fds.append(os.dup(fd))
        return fds[-1]

    lower: HostLower | TreeLower | None = None
    upper: UpperLayer | None = None
    if isinstance(tree, HostTree):
        lower = HostLower(held(tree.root_fd))
    elif isinstance(tree, OverlayTree):
        if isinstance(tree.lower, LocalLower):
            lower = HostLower(held(tree.lower.root_fd))
        elif isinstance(tree.lower, GitLower):
            lower = _tree_lower(tree.lower, owner)
        if tree.upper is not None:
            upper = UpperLayer(held(tree.upper.tree_fd), copy_marks(tree.upper.root_mark, []))
    index = exclude = None
    if mounted is not None and mounted.git_dir is not None:
        index = os.path.join(mounted.git_dir.path, "index")
        exclude = os.path.join(mounted.git_dir.path, "info", "exclude")
    return LivePart(Part(prefix, lower, upper, index, exclude), tree, _ground(tree, mounted), fds)


def _ground(tree: Tree, mounted: Mounted | None) -> tuple[object, ...]:
    git_dir = mounted.git_dir if mounted is not None else None
    if isinstance(tree, OverlayTree):
        return tree, tree.lower, tree.upper, git_dir
    return tree, git_dir


def _tree_lower(lower: GitLower, owner: Owner) -> TreeLower:
    root = lower.root
    times = lower.times
    if isinstance(times, GitTimes):
        return TreeLower(root.space.reader, root.entry.oid, times.base_ns, owner, times.changed)
    return TreeLower(root.space.reader, root.entry.oid, root.space.commit_time_ns, owner)
