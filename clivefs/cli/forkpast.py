"""What `clivefs fork` wants of the recorded past. The store comes with it, so it is loaded when it is wanted."""

from __future__ import annotations

import os
from collections.abc import Callable

from clivefs.cli import past
from clivefs.cli.call import Call
from clivefs.mounts.edits.diff import patch_of
from clivefs.mounts.points.history import differences_at, with_content


def point_at(call: Call, moment: str) -> str:
    """The id of the point that *moment* means. ClivefsError."""
    with past.opened(call) as opened:
        return opened.find(moment).oid.hex()


def print_difference(call: Call, trees: Callable[[], tuple[bytes, bytes]]) -> None:
    """Print what leads from one recorded tree to the other. *trees*: has both recorded; nothing may lead to them, so
    they are asked for when no collection can remove them any more."""
    with past.opened(call, fresh=False) as opened:
        before, after = trees()
        found = sorted(differences_at(opened.reader, before, after, b""))
        if not call.out.as_json:
            call.out.raw(patch_of(with_content(opened.reader, iter(found)), opened.scratch))
        call.out.json([{"path": os.fsdecode(each.path), "status": each.status} for each in found])
