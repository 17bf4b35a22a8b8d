"""What becomes of an overlay's whiteouts and redirects when it stands on another lower.

A commit that has the user's own edits is the plain case: what was deleted is not there any more, and a renamed
directory has its new name below too.
"""

from __future__ import annotations

from typing import NamedTuple

from clivefs.mounts.lower import Lower, LowerRef
from clivefs.mounts.overlay.marks import Edit, EditKind, Mark, MarkKind, split
from clivefs.mounts.overlay.node import directory_only
from clivefs.mounts.overlay.nodes import OverlayNodes


class Settled(NamedTuple):
    """What becomes of whiteouts and redirects when an overlay stands on another lower."""

    edits: list[Edit]
    """Those that have done their work go: one that hides nothing of the lower as it is would hide what the other has
    there, and a directory that the other has under its new name is shown from there. What led into one leads there."""
    lost: bytes | None
    """A directory that has another name here, and is in the other lower under neither."""


def settle(nodes: OverlayNodes, new: Lower) -> Settled:
    """What becomes of the marks over *new*. Changes nothing. May be `Blocked`."""
    edits: list[Edit] = []
    if nodes.upper is None:
        return Settled(edits, None)
    old = nodes.lower
    renamed: dict[bytes, bytes] = {}
    gone: list[tuple[bytes, bytes]] = []
    waiting: list[tuple[bytes, Mark, LowerRef | None, LowerRef | None]] = [
        (b"", nodes.upper.log.marks.root, old.root, new.root)
    ]
    while waiting:
        place, marks, was, is_now = waiting.pop()
        for name, mark in (marks.children or {}).items():
            path = place + b"/" + name if place else name
            before, after = nodes.candidate(was, name), lower_child(new, is_now, name)
            done = False
            if mark.kind is MarkKind.HIDDEN:
                done = before is None
                before, after = None, after if done else None
            elif mark.kind is MarkKind.REDIRECT:
                target, stays = directory_only(nodes.at_path(mark.target)), directory_only(lower_at(new, mark.target))
                done = _is_renamed(old, target, before, new, stays, directory_only(after))
                if done:
                    renamed[mark.target] = path
                elif target is not None and stays is None:
                    gone.append((path, mark.target))
                before, after = target, after if done else stays
            if done:
                edits.append(Edit(EditKind.INHERIT, path))
            if mark.children:
                waiting.append((path, mark, directory_only(before), directory_only(after)))
    lost: bytes | None = None
    for path, led_to in gone:
        there = _renamed_path(led_to, renamed)
        if there is not None and directory_only(lower_at(new, there)) is not None:
            edits.append(Edit(EditKind.REDIRECT, path, there))
        else:
            lost = path
    return Settled(edits, lost)


def _renamed_path(path: bytes, renamed: dict[bytes, bytes]) -> bytes | None:
    """*path* where one of the directories above it was *renamed*."""
    head, rest = path, b""
    while head:
        head, _, name = head.rpartition(b"/")
        rest = b"/" + name + rest
        if head in renamed:
            return renamed[head] + rest
    return None


def _is_renamed(
    old: Lower,
    target: LowerRef | None,
    before: LowerRef | None,
    new: Lower,
    stays: LowerRef | None,
    after: LowerRef | None,
) -> bool:
    """Whether *new* has *target* under its new name, where *old* has *before* and *new* has *after*. *stays* is what
    *new* has under the old name."""
    if target is None or after is None:
        return False
    if stays is None or new.same_tree(after, old, target):
        return True
    return before is None and not new.same_tree(stays, old, target)


def lower_at(lower: Lower, path: bytes) -> LowerRef | None:
    """What *lower* has at *path*."""
    ref: LowerRef | None = lower.root
    for part in split(path):
        ref = lower_child(lower, directory_only(ref), part)
    return ref


def lower_child(lower: Lower, ref: LowerRef | None, name: bytes) -> LowerRef | None:
    """What the directory *ref* of *lower* has under *name*."""
    return lower.child(ref, name) if ref is not None else None
