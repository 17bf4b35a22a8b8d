"""What of a source cannot be read, for `status`: objects that are missing or damaged, until they can be had again."""

from __future__ import annotations

import shlex
from typing import Protocol

from clivefs.mounts.git.location import Location
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge

_NOTED_MAX = 20


class _Reads(Protocol):
    def read(self, oid: bytes) -> tuple[str, bytes]: ...


class Damage:
    """Of one source. For any thread."""

    def __init__(self) -> None:
        self._noted: dict[bytes, str] = {}

    def note(self, oid: bytes, why: str) -> None:
        """An object that is to be shown cannot be read, as *why* says ("is missing")."""
        if oid in self._noted or len(self._noted) < _NOTED_MAX:
            self._noted[oid] = why

    def tell(self, reader: _Reads, location: Location, clone: str | None, *, lazy: bool) -> str | None:
        """What is still amiss, and on a line of its own what can be done; None where nothing is. *location*: where the
        objects come from; *clone*: our copy, if it is a remote; *lazy*: what is missing there was asked for."""
        for oid in list(self._noted):
            if _is_sound(reader, oid):
                self._noted.pop(oid, None)
        noted = list(self._noted.items())
        if not noted:
            return None
        oid, why = noted[0]
        more = f", and {len(noted) - 1} more are amiss" if noted[1:] else ""
        return f"{location.given}: object {oid.hex()} {why}{more}\n  {_mending(location, clone, lazy=lazy)}"


def _is_sound(reader: _Reads, oid: bytes) -> bool:
    try:
        reader.read(oid)
    except ObjectTooLarge:
        return True
    except (ObjectMissing, CorruptObject):
        return False
    return True


def _mending(location: Location, clone: str | None, *, lazy: bool) -> str:
    if location.path is not None:
        git = f"git -C {shlex.quote(location.path)}"
        return f"`{git} fsck` tells what it lacks, `{git} fetch --refetch` gets it again from where it was cloned"
    if lazy or clone is None:
        return "its server does not have it: who keeps that repository can mend it"
    return f"`clivefs unmount`, remove {shlex.quote(clone)}, and mount again: it is fetched anew then"
