"""Giving a file of a live tree what it is to have beside its content, as far as the user whom we run as may.

Nobody but root gives a file to another user, and others only to a group that they are in. What is not given is told,
and is no failure: the content is worth having whoever owns it. As cp(1) does, a file that is another's after all
gets no set-user-id and set-group-id bits.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from clivefs.mounts.host.calls import IS_ROOT
from clivefs.mounts.steps import Step
from clivefs.mounts.tree import Node, OpenFile, SetAttr, Tree

_NOT_GIVEN = (errno.EPERM, errno.EACCES, errno.EINVAL)
"""EINVAL: a user namespace does not know that user."""
_SET_ID = stat.S_ISUID | stat.S_ISGID


def may_give(uid: int, gid: int) -> bool:
    """Whether a file that we make can belong to this user and group."""
    return IS_ROOT or (uid == os.geteuid() and (gid == os.getegid() or gid in os.getgroups()))


def change_owner(chown: Callable[[int, int], object], now: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Have *chown*, which takes a user and a group as chown(2) does, make *wanted* of *now*; where that may not be, of
    the group alone. Whether all of it could be."""
    if now == wanted:
        return True
    try:
        chown(*wanted)
        return True
    except OSError as error:
        if error.errno not in _NOT_GIVEN:
            raise
    if now[1] != wanted[1] and now[0] != wanted[0]:
        try:
            chown(-1, wanted[1])
        except OSError as error:
            if error.errno not in _NOT_GIVEN:
                raise
    return False


def shown_mode(mode: int, *, owned: bool) -> int:
    """The permission bits for a file of *mode*; *owned*: it has the owner that it is to have."""
    return stat.S_IMODE(mode) if owned else stat.S_IMODE(mode) & ~_SET_ID


def give(tree: Tree, node: Node, owner: tuple[int, int], file: OpenFile | None = None) -> bool:
    """Let *node* belong to this user and group; whether it does."""

    def chown(uid: int, gid: int) -> None:
        tree.setattr(node, SetAttr(uid=uid if uid >= 0 else None, gid=gid), file)

    attr = tree.getattr(node)
    return change_owner(chown, (attr.uid, attr.gid), owner)


def dress(tree: Tree, node: Node, step: Step) -> tuple[bool, bool]:
    """Let the directory *node* have the owner, attributes, permissions and time of *step*: whether it has the owner,
    and whether it has the rest, which only its owner may change."""
    own = True
    try:
        if step.xattrs is not None:
            _set_xattrs(tree, node, dict(step.xattrs))
    except PermissionError:
        own = False
    owned = give(tree, node, step.owner) if step.owner is not None else True
    mode = shown_mode(step.mode, owned=owned)
    try:
        if stat.S_IMODE(tree.getattr(node).mode) != mode:
            tree.setattr(node, SetAttr(mode=mode), None)
        if step.mtime_ns is not None:
            tree.setattr(node, SetAttr(mtime_ns=step.mtime_ns), None)
    except PermissionError:
        own = False
    return owned, own


def _set_xattrs(tree: Tree, node: Node, wanted: dict[bytes, bytes]) -> None:
    """Let *node* have these user attributes and no others."""
    names = [name for name in tree.listxattr(node) if name.startswith(b"user.")]
    there = {name: tree.getxattr(node, name) for name in names}
    if there == wanted:
        return
    mode = stat.S_IMODE(tree.getattr(node).mode)
    if not mode & 0o200:  # only who may write sets attributes; the permissions come afterwards
        tree.setattr(node, SetAttr(mode=mode | 0o200), None)
    for name in there.keys() - wanted.keys():
        tree.removexattr(node, name)
    for name, value in wanted.items():
        if there.get(name) != value:
            tree.setxattr(node, name, value)
