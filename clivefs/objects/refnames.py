"""Which names a ref may have: git's check-ref-format, and what our own refs table can hold."""

from __future__ import annotations

import re

REF_NAME_BYTES_MAX = 480
"""LMDB keys end at 511 bytes."""

_FORBIDDEN = re.compile(
    rb"[\x00-\x20\x7f~^:?*\[\\]"  # control characters, blank, and what revision expressions use
    rb"|\.\.|@\{|//"
    rb"|(?:^|/)\."  # a component that begins with a dot
    rb"|\.lock(?:/|$)"
    rb"|^/|/$|\.$"
)


def check_ref_name(name: str) -> str | None:
    """Why *name* cannot be a ref (git-check-ref-format(1)), or None. It must begin with `refs/`, as all
    refs of a store do; `HEAD` and its like belong to gitdirs. Odd bytes are surrogate-escaped."""
    try:
        raw = name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return "it is not text"
    if len(raw) > REF_NAME_BYTES_MAX:
        return f"it has {len(raw)} bytes, more than {REF_NAME_BYTES_MAX}"
    if not raw.startswith(b"refs/"):
        return "it does not begin with `refs/`"
    found = _FORBIDDEN.search(raw)
    if found:
        return f"git allows no {found[0].decode('utf-8', 'replace')!r} there"
    return None
