"""What a user's edits of an overlay are as trees, and the plan of moving them (and patches) onto another release.

Pure planning: trees and objects in, trees and a list of steps out; no overlay is looked at or changed here. Three-way
merges go layer by layer. A patch is moved as a commit is cherry-picked: what it did between its old layers is done on
the new layer below it. Paths of it that conflict are left out of the layer, and of all later ones, and become the
user's: their merge, with what patches and edits made of them together, has the markers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from clivefs.mounts.edits.diff import Changed, patch_of
from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor, Version, differences
from clivefs.mounts.git.treemerge import Conflict, Labels, merge_trees
from clivefs.mounts.patch.apply import PatchFailed, apply_patch
from clivefs.mounts.patch.file import PatchSyntax, parse_patch
from clivefs.objects.encode import MODE_GITLINK
from clivefs.objects.interface import ObjectStore

ASIDE = (b".orig", b".ours", b".theirs")
_MARKERS = (b"<<<<<<< ", b">>>>>>> ")


# Edits and trees


def shown_files(changes: Iterable[Changed]) -> dict[bytes, FileVersion | None]:
    """What the overlay shows at each changed path; None where it hides what the lower has.

    *changes* may tell of before and after in records of their own, as reading an overlay gives them.
    """
    shown: dict[bytes, FileVersion | None] = {}
    for change in changes:
        if change.after is not None or change.path not in shown:
            shown[change.path] = change.after
    return shown


def edited_tree(
    reader: Reader | JoinedObjects, store: ObjectStore, base: bytes, edits: Mapping[bytes, FileVersion | None]
) -> bytes:
    """The tree *base* with *edits* made, its new objects durable in *store*."""
    editor = TreeEditor(reader, base)
    with store.batch() as batch:
        for path, file in edits.items():
            if file is None:
                editor.remove(path)
        for path, file in edits.items():
            if file is not None:
                editor.put(path, Version(file.mode, batch.blob(file.content)))
        return editor.write(batch)


def tree_changes(reader: Reader | JoinedObjects, before: bytes, after: bytes) -> Iterator[Changed]:
    """The files that differ between two trees, with content; submodules are left out."""
    for path, old, new in differences(reader, before, after):
        yield Changed(path, _file(reader, old), _file(reader, new))


def _file(reader: Reader | JoinedObjects, version: Version | None) -> FileVersion | None:
    if version is None or version.mode == MODE_GITLINK:
        return None
    return FileVersion(version.mode, blob_content(reader, version.oid))


# Planning


class Write(NamedTuple):
    """A file that the upper must have."""

    path: bytes
    version: Version


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """What becomes of one patch."""

    name: str
    state: str
    """`same`: the patch file stays as it is. `moved`: `patch` is what it must say. `split`: so too, without
    the paths that conflict or did in a patch before. `edits`: all its paths are such, nothing is left of it. `empty`:
    the new release has all of it, it can go."""
    tree: bytes
    """With it and all before it applied on the new release."""
    patch: bytes | None = None


@dataclass(frozen=True, slots=True)
class RebasePlan:
    """All that a rebase does. Nothing of it has been done; the objects that it names are in the store."""

    layers: tuple[LayerPlan, ...]
    lower: bytes
    """The tree that the overlay is to stand on."""
    shown: bytes
    """The tree that it is to show, without the files of `aside`."""
    resets: tuple[bytes, ...]
    """Edits that the new lower has already: to be forgotten."""
    whiteouts: tuple[bytes, ...]
    """Paths of the new lower that are to be hidden."""
    writes: tuple[Write, ...]
    """What the upper is to have otherwise than now; markers included."""
    aside: tuple[Write, ...]
    """`FILE.orig`, `.ours` and `.theirs` of the conflicts, as far as those exist."""
    conflicts: tuple[Conflict, ...]
    renames: tuple[tuple[bytes, bytes], ...]
    expected: Mapping[bytes, Version | None]
    """What every path that the rebase could concern is to show; for checking it afterwards."""
    unchanged: frozenset[bytes] = frozenset()
    """Files of the upper that are already what is to be shown."""
    beside: Mapping[bytes, tuple[bytes, ...]] = field(default_factory=dict)
    """The names in `aside` that belong to each conflict."""
    kept: frozenset[bytes] = frozenset()
    """Paths of the upper that stay as they are: no tree can hold them, or they were written since."""
    emptied: tuple[bytes, ...] = ()
    """Directories of which nothing is left, the lowest first: they are to go if there is nothing else in them."""
    concerned: frozenset[bytes] = frozenset()
    """Where the lower, or what is shown, becomes another: who writes there makes the plan void."""

    @property
    def changes_nothing(self) -> bool:
        """The upper stays as it is."""
        return not (self.resets or self.whiteouts or self.writes or self.aside)


def plan_rebase(
    reader: Reader | JoinedObjects,
    store: ObjectStore,
    *,
    old_base: bytes,
    new_base: bytes,
    patches: Sequence[tuple[str, bytes]],
    edits: Mapping[bytes, FileVersion | None],
    labels: Labels,
    scratch: str,
) -> RebasePlan:
    """The plan of moving *patches* (those that apply on *old_base*) and *edits* from *old_base* to *new_base*.

    *reader* has the objects of both trees and of *store*. *scratch*: a directory for temporary files.
    PatchFailed when a patch does not apply on *old_base*; ObjectMissing.
    """
    planner = _Layers(reader, store, labels, scratch, old_base, new_base)
    layers = tuple(planner.move(name, data) for name, data in patches)
    ours = edited_tree(reader, store, planner.old, edits)
    base = _with(reader, store, planner.old, planner.dropped)
    merge = merge_trees(reader, store, base, ours, planner.new, scratch=scratch, labels=labels)
    return _steps(reader, planner, layers, edits, ours, merge.tree, merge.conflicts, merge.renames)


class _Layers:
    """Patches on their way from one base to the other, one after the other."""

    def __init__(
        self, reader: Reader | JoinedObjects, store: ObjectStore, labels: Labels, scratch: str, old: bytes, new: bytes
    ) -> None:
        self.old = old
        """The layers so far on the old base, and on the new."""
        self.new = new
        self.dropped: dict[bytes, Version | None] = {}
        """Paths that conflicted, with what they were before the patch that did."""
        self._reader = reader
        self._store = store
        self._labels = labels
        self._scratch = scratch

    def move(self, name: str, data: bytes) -> LayerPlan:
        """Move one patch; `old` and `new` have it afterwards."""
        reader, store = self._reader, self._store
        old = apply_patch(reader, store, self.old, name, data).tree
        try:
            as_it_is: bytes | None = apply_patch(reader, store, self.new, name, data).tree
        except (PatchFailed, PatchSyntax):
            as_it_is = None
        labels = Labels(self._labels.base, self._labels.theirs, name)
        merge = merge_trees(reader, store, self.old, self.new, old, scratch=self._scratch, labels=labels)
        conflicts = [conflict for conflict in merge.conflicts if conflict.path not in self.dropped]
        tree = merge.tree
        state = "moved"
        if conflicts and as_it_is is not None and not self.dropped:
            tree = as_it_is
        elif merge.conflicts or self.dropped:
            before = TreeEditor(reader, self.old)
            for conflict in conflicts:
                for path in (conflict.path, *conflict.names[1:]):  # and what the patch has moved it to
                    self.dropped[path] = before.get(path)
            now = TreeEditor(reader, self.new)
            tree = _with(reader, store, tree, {path: now.get(path) for path in self.dropped})
        if tree == as_it_is:
            state = "same"
        elif tree == self.new:
            state = "empty"
        patch = None
        dropped = conflicts or any(path in self.dropped for path, _, _ in differences(reader, self.old, old))
        if state != "same" and dropped:
            state = "edits" if tree == self.new else "split"
        if state in ("moved", "split") and tree != self.new:
            patch = _preamble(name, data) + patch_of(tree_changes(reader, self.new, tree), self._scratch)
        self.old, self.new = old, tree
        return LayerPlan(name, state, tree, patch)


def _preamble(name: str, data: bytes) -> bytes:
    """What stands before the first diff: who made it, and why."""
    first = parse_patch(name, data).files[0]
    lines = data.split(b"\n", first.line - 1)[: first.line - 1]
    return b"".join(line + b"\n" for line in lines)


def _with(
    reader: Reader | JoinedObjects, store: ObjectStore, tree: bytes, files: Mapping[bytes, Version | None]
) -> bytes:
    """*tree* with these files as given."""
    if not files:
        return tree
    editor = TreeEditor(reader, tree)
    with store.batch() as batch:
        for path in files:
            editor.remove(path)
        for path, version in files.items():
            if version is not None:
                editor.put(path, version)
        return editor.write(batch)


def _steps(
    reader: Reader | JoinedObjects,
    planner: _Layers,
    layers: tuple[LayerPlan, ...],
    edits: Mapping[bytes, FileVersion | None],
    ours: bytes,
    shown: bytes,
    conflicts: tuple[Conflict, ...],
    renames: tuple[tuple[bytes, bytes], ...],
) -> RebasePlan:
    own, lower, wanted = TreeEditor(reader, ours), TreeEditor(reader, planner.new), TreeEditor(reader, shown)
    whiteouts: list[bytes] = []
    writes: list[Write] = []
    for path, _, version in differences(reader, planner.new, shown):
        if path in edits and own.get(path) == version:
            continue  # the upper has it so already
        if version is None:
            whiteouts.append(path)
        elif version.mode != MODE_GITLINK:
            writes.append(Write(path, version))
    before = TreeEditor(reader, planner.old)
    # What an edit leaves as it was in both is an edit of what git does not hold (times, a copy-up): it stays. So does a
    # directory in the place of a file that is gone: it would go with all that is in it.
    resets = sorted(
        path
        for path in edits
        if (now := wanted.get(path)) == lower.get(path)
        and (own.get(path) != now or before.get(path) != now)
        and not own.is_directory(path)
    )
    concerned = {*edits, *(each.path for each in differences(reader, planner.old, planner.new))}
    concerned |= {each.path for each in differences(reader, planner.new, shown)}
    aside = {conflict.path: tuple(_aside(conflict, wanted)) for conflict in conflicts}
    return RebasePlan(
        layers,
        planner.new,
        shown,
        tuple(resets),
        tuple(sorted(whiteouts)),
        tuple(sorted(writes)),
        tuple(write for writes in aside.values() for write in writes),
        conflicts,
        renames,
        {path: wanted.get(path) for path in sorted(concerned)},
        frozenset(path for path, file in edits.items() if file is not None and own.get(path) == wanted.get(path)),
        {path: tuple(write.path for write in writes) for path, writes in aside.items()},
        emptied=_emptied(reader, ours, shown),
        concerned=frozenset(
            {*resets, *whiteouts}
            | {write.path for write in writes}
            | {write.path for each in aside.values() for write in each}
            | {each.path for each in differences(reader, planner.old, planner.new)}
        ),
    )


def _emptied(reader: Reader | JoinedObjects, before: bytes, after: bytes) -> tuple[bytes, ...]:
    """The directories of one tree that the other has not: where their files went to, they go too, as git has it."""
    left = TreeEditor(reader, after)
    gone: dict[bytes, None] = {}
    for path, _, version in differences(reader, before, after):
        head = path.rpartition(b"/")[0] if version is None else b""
        while head and head not in gone and not left.is_directory(head):
            gone[head] = None
            head = head.rpartition(b"/")[0]
    return tuple(sorted(gone, reverse=True))


def _aside(conflict: Conflict, wanted: TreeEditor) -> Iterator[Write]:
    names = aside_names(conflict.path, wanted)
    for name, version in zip(names, (conflict.base, conflict.ours, conflict.theirs), strict=True):
        if version is not None and version.mode != MODE_GITLINK:
            yield Write(name, version)


def aside_names(path: bytes, tree: TreeEditor) -> list[bytes]:
    """Where the three versions of a conflict at *path* go: beside it, under names that nothing in *tree* has."""
    obstacle = tree.obstacle(path)
    if obstacle is not None:  # its directory is a file
        path = obstacle[0] + path[len(obstacle[0]) :].replace(b"/", b".")
    names = [path + suffix for suffix in ASIDE]
    number = 1
    while any(tree.get(name) is not None or tree.is_directory(name) for name in names):
        names = [path + b".%d" % number + suffix for suffix in ASIDE]
        number += 1
    return names


def has_markers(content: bytes) -> bool:
    """Whether conflict markers are still in a file."""
    lines = content.split(b"\n")
    return all(any(line.startswith(marker) for line in lines) for marker in _MARKERS)
