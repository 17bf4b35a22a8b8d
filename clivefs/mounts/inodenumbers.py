"""The numbers of inodes: derived from what a file is, so that they are the same in every mount and none is stored."""

from __future__ import annotations

from hashlib import blake2b


def inode_number(*identity: bytes) -> int:
    """A stable 63-bit inode number for a file that *identity* tells from every other, never 0 or 1.

    Derived, not stored: the same identity has the same number in every mount and after every restart.
    Two identities share one with a chance of n*n/2^64 for n files; `NodeTable` then gives the later
    one the next free number.
    """
    hasher = blake2b(digest_size=8)
    for part in identity:
        hasher.update(len(part).to_bytes(4, "little"))
        hasher.update(part)
    number = int.from_bytes(hasher.digest(), "little") >> 1
    return number if number > 1 else number + 2


def host_inode_number(host: int, *identity: bytes) -> int:
    """Like `inode_number`, for what has the inode number *host* on its own file system: the low 32 bits are those of
    *host*. That is what git's index holds of a number, so that an index which was written beside the mount tells the
    truth in it, and one written in it, beside it: `git status` need not read every file again."""
    number = inode_number(*identity) >> 32 << 32 | host & 0xFFFFFFFF
    return number if number > 1 else number + (1 << 32)
