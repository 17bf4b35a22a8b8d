"""Points as programs are told of them: the objects that docs/json.md describes."""

from __future__ import annotations

import os
from typing import Any

from clivefs.mounts.points.point import Point


def point_facts(point: Point) -> dict[str, Any]:
    """A point's object in JSON."""
    return {
        "id": point.oid.hex(),
        "name": point.name,
        "seq": point.seq,
        "session": point.session,
        "machine": point.machine,
        "origin": point.origin,
        "parent": point.parent.hex() if point.parent is not None else None,
        "paths": [os.fsdecode(path) for path in point.paths],
        "more_paths": point.more_paths,
        "message": point.message,
    }
