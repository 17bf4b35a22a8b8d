"""Which files of a tree a patch means: how many leading components its names have too many, and which of two counts.

One number of components is stripped from all names of a patch file (`-p` of both tools): after which the two names of
its files are the same (1 for `a/f` and `b/f`). Where another number finds more of the files that the patch changes, it
is that. Git's own diffs, and names with `a/` and `b/`, lose no more than one by this second rule: a file that is gone
must not be taken for one of the same name further up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from clivefs.mounts.patch.file import FilePatch, Patch

STRIP_MAX = 12
_PREFIXES = frozenset((b"a", b"b", b"i", b"w", b"c", b"o", b"1", b"2"))
"""What git puts before names (diff.mnemonicPrefix has all but the first two)."""


class Names(NamedTuple):
    """A file of a patch in the tree. *source* is None for a new file, *target* for a deleted one."""

    what: str
    source: bytes | None
    target: bytes | None


def name_files(patch: Patch, exists: Callable[[bytes], bool]) -> tuple[list[Names], int]:
    """The names of each file in *patch*, in its order; and how many components were stripped.

    *exists* tells whether a file is in the tree. Nothing about the names has been checked.
    """
    order = _preferred(patch)
    named = {strip: _name_all(patch, strip, exists) for strip in order}
    best = max(order, key=lambda strip: named[strip][1])  # of equals the first
    return named[best][0], best


def _name_all(patch: Patch, strip: int, exists: Callable[[bytes], bool]) -> tuple[list[Names], int]:
    """The names with *strip* components less, and how well they fit the tree."""
    made: set[bytes] = set()
    found: list[Names] = []
    fit = 0
    for file in patch.files:
        names = _names(file, strip, lambda path: exists(path) or path in made)
        # A new file says nothing: to be there already would be a mistake, not a sign.
        fit += file.what != "create" and names.source is not None and exists(names.source)
        if names.target is not None:
            made.add(names.target)
        found.append(names)
    return found, fit


def stripped(name: bytes, strip: int) -> bytes:
    """*name* without its first *strip* components; empty if it has no more. Leading `./` do not count."""
    parts = [part for part in name.split(b"/") if part]
    while parts and parts[0] == b".":
        del parts[0]
    return b"/".join(parts[strip:])


def _names(file: FilePatch, strip: int, exists: Callable[[bytes], bool]) -> Names:
    if file.what in ("rename", "copy") and file.source_name is not None and file.target_name is not None:
        less = max(strip - 1, 0)
        return Names(file.what, stripped(file.source_name, less), stripped(file.target_name, less))
    old = stripped(file.old_name, strip) if file.old_name is not None else None
    new = stripped(file.new_name, strip) if file.new_name is not None else None
    if file.is_git:
        if file.what == "create":
            return Names("create", None, new or old or b"")
        if file.what == "delete":
            return Names("delete", old or new or b"", None)
        return Names("modify", old or new or b"", old or new or b"")
    given = [name for name in (old, new) if name]
    if file.index_name is not None and not any(exists(name) for name in given):
        given.append(stripped(file.index_name, 0))
    there = sorted((name for name in given if exists(name)), key=_likeliness)
    named = there or sorted(given, key=_likeliness)
    name = named[0] if named else b""
    if not there and len(file.hunks) == 1 and file.hunks[0].old_count == 0:
        return Names("create", None, new or name)
    if file.what == "create" and not there:
        return Names("create", None, new or name)
    if file.what == "create" and file.old_name is None:
        return Names("create", None, name)
    if file.what == "delete":
        return Names("delete", name, None)
    return Names("modify", name, name)


def _likeliness(name: bytes) -> tuple[int, int, int]:
    """GNU patch's order of the names that a file may have: fewest components, shortest last one, shortest."""
    return name.count(b"/"), len(name.rpartition(b"/")[2]), len(name)


def _preferred(patch: Patch) -> list[int]:
    """The numbers of components to try, the likeliest first."""
    sure: Counter[int] = Counter()
    likely: Counter[int] = Counter()
    deepest = 1
    for file in patch.files:
        names = [name for name in (file.old_name, file.new_name) if name is not None]
        prefixed = not file.bare_names and all(name.partition(b"/")[0] in _PREFIXES and b"/" in name for name in names)
        if not prefixed and not file.is_git:
            deepest = max(deepest, *(name.count(b"/") for name in names), 1)
        if file.source_name is not None:
            sure[0 if file.bare_names else 1] += 1
            continue
        alike = _alike_after(names[0], names[1]) if len(names) == 2 else None
        if alike is not None:
            sure[alike] += 1
            continue
        likely[1 if prefixed else 0] += 1
    votes = sure or likely
    first = max(votes, key=lambda strip: (votes[strip], strip == 1)) if votes else 1
    return [first, *(strip for strip in range(min(deepest, STRIP_MAX) + 1) if strip != first)]


def _alike_after(one: bytes, two: bytes) -> int | None:
    """How many components must go before the names are the same; None if they never are."""
    left, right = one.split(b"/"), two.split(b"/")
    for strip in range(min(len(left), len(right), STRIP_MAX)):
        if left[strip:] == right[strip:]:
            return strip
    return None
