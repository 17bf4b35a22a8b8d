"""What a fork's lower layer calls its files."""

from __future__ import annotations

from clivefs.mounts.lower import LowerRef
from clivefs.mounts.points.lower import PointRef
from clivefs.mounts.recording.ignore import Rules


class ForkRef(LowerRef):
    """One file of a fork's lower layer."""

    __slots__ = ("at", "ignored", "name", "parent", "point", "rules")

    def __init__(
        self, kind: int, parent: ForkRef | None, name: bytes, at: bytes, point: PointRef | None, *, ignored: bool
    ) -> None:
        self.kind = kind
        self.parent = parent
        self.name = name
        self.at = at
        """The path."""
        self.point = point
        """The file in the point; None: it is inherited."""
        self.ignored = ignored
        """Of a directory: nothing in it is recorded but what the point has."""
        self.rules: Rules | None = None
        """Of a directory: its ignore rules, once they are known."""

    def __hash__(self) -> int:
        return hash(self.at)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, ForkRef) and self.at == other.at and self.kind == other.kind and self.point == other.point
        )
