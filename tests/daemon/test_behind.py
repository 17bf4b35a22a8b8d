"""Files that are written to all the time."""

from __future__ import annotations

from clivefs.daemon.behind import Behind
from clivefs.mounts.recording.parts import Dirty

_LOG = Dirty(b"lib", b"log")


def test_what_cannot_be_recorded_for_a_while_is_told_until_it_is() -> None:
    now_s = 100.0
    behind = Behind(lambda: now_s)
    for _ in range(2):
        assert behind.files() == []
        behind.looked([_LOG], [_LOG])
        now_s += 4
    assert behind.files() == [(b"lib/log", 100_000)]
    behind.looked([Dirty(b"lib", b"other")], [])
    assert behind.files() == [(b"lib/log", 100_000)]
    behind.looked(None, [_LOG])
    assert behind.files() == [(b"lib/log", 100_000)]
    behind.looked([Dirty(b"lib", b"", True)], [])
    assert behind.files() == []
    behind.looked([_LOG], [_LOG])
    now_s += 60
    assert behind.files() == [], "one look is no while"
