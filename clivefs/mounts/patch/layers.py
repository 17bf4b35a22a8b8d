"""The `patches` of a mount entry: which files they are, and the tree that they make of the source's."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects
from clivefs.mounts.git.lower import Reader
from clivefs.mounts.patch.apply import Provenance, apply_series, needed, provenance
from clivefs.mounts.resolve import resolve_links
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.interface import ObjectStore

PATCH_BYTES_MAX = 64 << 20
PATCHES_MAX = 10_000
_FETCHES_MAX = 100

Seen = tuple[tuple[str, int, int, int], ...]
"""Name, inode, size and mtime of each patch file: what changes when one is saved, added or removed."""


class Patched(NamedTuple):
    """A source's tree with its patches applied."""

    tree: bytes
    reader: JoinedObjects
    """Has the objects of the source and the new ones."""
    layers: Provenance
    error: str | None
    """Why one did not apply; it and those after it are left out of `tree`."""


def patch_files(root: str, patterns: Sequence[str]) -> list[str]:
    """The files that *patterns* name in the directory *root*, relative to it: in the order of the patterns, those of
    one by name, none twice. ClivefsError for one that lies outside."""
    found: dict[str, None] = {}
    for pattern in patterns:
        for name in sorted(glob.glob(pattern, root_dir=root, recursive=True)):
            path = os.path.join(root, name)
            if name not in found and not os.path.isdir(path):
                if not resolve_links(path).startswith(root.rstrip("/") + "/"):
                    raise ClivefsError("a patch must lie in the workspace", place=path, remedy="copy it there")
                found[name] = None
            if len(found) > PATCHES_MAX:
                raise ClivefsError(f"more than {PATCHES_MAX} patches", place=pattern, remedy="name fewer")
    return list(found)


def seen(root: str, patterns: Sequence[str]) -> Seen:
    """What tells whether the patches have changed since."""
    facts = []
    for name in patch_files(root, patterns):
        try:
            st = os.stat(os.path.join(root, name))
        except OSError:
            continue  # gone again: the next look finds that
        facts.append((name, st.st_ino, st.st_size, st.st_mtime_ns))
    return tuple(facts)


def apply_patches(
    store: ObjectStore,
    source: Reader,
    tree: bytes,
    *,
    root: str,
    patterns: Sequence[str],
    scratch: str,
    fetch: Callable[[Sequence[bytes]], None] | None,
) -> Patched:
    """*tree* of *source* with the patches applied that *patterns* name. For threads: may fetch what they change."""
    reader = JoinedObjects((store, source), scratch)
    patches = [(name, _content(os.path.join(root, name))) for name in patch_files(root, patterns)]
    for _ in range(_FETCHES_MAX):
        try:
            results = apply_series(reader, store, tree, patches)
        except ObjectMissing as missing:
            if fetch is None:
                raise
            fetch(_wanted(reader, tree, patches) or [missing.oid])
            continue
        applied = [result.applied for result in results if result.applied is not None]
        failed = next((result.error for result in results if result.error is not None), None)
        last = applied[-1].tree if applied else tree
        return Patched(last, reader, provenance(results), str(failed) if failed is not None else None)
    raise ClivefsError("what the patches change cannot be fetched", place=", ".join(patterns))


def _wanted(reader: JoinedObjects, tree: bytes, patches: Sequence[tuple[str, bytes]]) -> list[bytes]:
    """The blobs that the patches change and that are not here, as far as that can be told now."""
    wanted: dict[bytes, None] = {}
    for name, data in patches:
        try:
            wanted.update(dict.fromkeys(needed(reader, tree, name, data)))
        except (ClivefsError, ObjectMissing):
            break
    return list(wanted)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(PATCH_BYTES_MAX + 1)
    if len(data) > PATCH_BYTES_MAX:
        raise ClivefsError(f"the patch is larger than {PATCH_BYTES_MAX} bytes", place=path)
    return data
