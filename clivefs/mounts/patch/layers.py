"""The tree that the `patches` of a mount entry make of the source's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.space import Reader
from clivefs.mounts.patch.apply import Provenance, apply_series, needed, provenance
from clivefs.mounts.patch.files import Series
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.interface import ObjectStore

_FETCHES_MAX = 100


class Patched(NamedTuple):
    """A source's tree with its patches applied."""

    tree: bytes
    reader: JoinedObjects
    """Has the objects of the source and the new ones."""
    layers: Provenance
    error: str | None
    """Why one did not apply; it and those after it are left out of `tree`."""
    series: Series


def apply_patches(
    store: ObjectStore,
    source: Reader,
    tree: bytes,
    *,
    series: Series,
    scratch: str,
    fetch: Callable[[Sequence[bytes]], None] | None,
) -> Patched:
    """*tree* of *source* with the patches of *series* applied. For threads: may fetch what they change."""
    reader = JoinedObjects((store, source), scratch)
    patches = series.patches
    for _ in range(_FETCHES_MAX):
        try:
            results = apply_series(reader, store, tree, patches)
        except ObjectMissing as missing:
            if fetch is None:
                raise
            fetch(_wanted(reader, tree, patches) or [missing.oid])
            continue
        applied = [result.applied for result in results if result.applied is not None]
        failed = next((result.error for result in results if result.error is not None), series.error)
        last = applied[-1].tree if applied else tree
        return Patched(last, reader, provenance(results), str(failed) if failed is not None else None, series)
    raise ClivefsError("what the patches change cannot be fetched", place=", ".join(name for name, _ in patches))


def _wanted(reader: JoinedObjects, tree: bytes, patches: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """The blobs that the patches change and that are not here, as far as that can be told now."""
    wanted: dict[bytes, None] = {}
    for name, data in patches:
        try:
            wanted.update(dict.fromkeys(needed(reader, tree, name, data)))
        except (ClivefsError, ObjectMissing):
            break
    return list(wanted)
