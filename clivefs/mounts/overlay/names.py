"""How an overlay changes: every operation on names.

Each operation looks at everything first (whatever is `Blocked` is so here), then copies up what it needs,
which nobody sees, and then makes one change in the upper's directory, announced in the intent log together
with the marks that go with it (`Upper.perform`). So it is there wholly or not at all, whenever the process
is killed. Timestamps of directories follow the change; they alone are not part of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator

from clivefs.base.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, rename_at
from clivefs.mounts.host.calls import IS_ROOT, chmod_at, host_flags, stat_at
from clivefs.mounts.lower import LowerRef
from clivefs.mounts.overlay.copyup import Copy
from clivefs.mounts.overlay.listing import is_empty
from clivefs.mounts.overlay.marks import Action, ActionKind, Edit, EditKind, Mark, MarkKind
from clivefs.mounts.overlay.node import OverlayNode, shown
from clivefs.mounts.overlay.nodes import OverlayNodes
from clivefs.mounts.overlay.placing import Placing, close_all
from clivefs.mounts.overlay.upper import Upper, set_times, tree_path, writable_for_us
from clivefs.mounts.tree import Attr, Owner, refuse

Place = tuple[OverlayNode, bytes]


class OverlayNames:
    """The changing half of a writable overlay."""

    def __init__(self, nodes: OverlayNodes, upper: Upper) -> None:
        self._nodes = nodes
        self._upper = upper
        self.placing = Placing(nodes, upper)

    # Making

    def _vacant(self, directory: OverlayNode, name: bytes) -> int:
        """A descriptor of the upper directory in which the free *name* can be made."""
        if directory.removed:
            raise refuse(errno.ENOENT, name)
        found, ref = self._nodes.find(directory, name)
        if found is not None or ref is not None:
            raise refuse(errno.EEXIST, name)
        self.placing.need_directory(directory)
        return self._nodes.directory_fd(directory)

    def _make(
        self, directory: OverlayNode, name: bytes, owner: Owner, make: Callable[[int, bytes], None]
    ) -> tuple[OverlayNode, Attr]:
        """Make a file with *make(dir_fd, name)* and give it to *owner*, in one step."""
        fd = self._vacant(directory, name)
        parent = os.fstat(fd)
        group_given = bool(parent.st_mode & stat.S_ISGID)
        ours = owner.uid == os.geteuid() and (group_given or owner.gid == os.getegid())

        def change() -> None:
            if ours or not IS_ROOT:
                make(fd, name)
            else:
                self._make_for(fd, name, owner, parent, make)

        self._upper.perform([], None, change, "overlay.make")
        return self._made(directory, name, stat_at(fd, name))

    def _make_for(
        self, fd: int, name: bytes, owner: Owner, parent: os.stat_result, make: Callable[[int, bytes], None]
    ) -> None:
        work_fd, temporary = self._upper.work_fd, self._upper.work_name()
        make(work_fd, temporary)
        try:
            st = stat_at(work_fd, temporary)
            group_given = bool(parent.st_mode & stat.S_ISGID)
            gid = parent.st_gid if group_given else owner.gid
            os.chown(temporary, owner.uid, gid, dir_fd=work_fd, follow_symlinks=False)
            mode = stat.S_IMODE(st.st_mode)
            if stat.S_ISDIR(st.st_mode) and group_given:
                mode |= stat.S_ISGID
            if not stat.S_ISLNK(st.st_mode):
                chmod_at(work_fd, temporary, mode)
            rename_at(work_fd, temporary, fd, name, RENAME_NOREPLACE)
        except BaseException:
            self._upper.unlink_work(temporary)
            raise

    def _made(self, directory: OverlayNode, name: bytes, found: os.stat_result) -> tuple[OverlayNode, Attr]:
        inode = found.st_ino
        upper = self._upper
        upper.touched(directory.upper)
        self._nodes.reborn(inode)
        if stat.S_ISDIR(found.st_mode):
            self._nodes.drop_fd(inode)
        if inode in upper.origins:  # of a file that went without our seeing it (a power loss)
            upper.note([Edit(EditKind.UNORIGIN, inode=inode)], "overlay.origin")
        number = self._nodes.derived_number(inode)
        node = self._nodes.born(directory, name, found, number)
        if node.nodeid != number:  # the kernel still holds a dead file that had this inode
            upper.note([Edit(EditKind.ORIGIN, inode=inode, number=node.nodeid)], "overlay.origin")
        return node, shown(Attr.of(found))

    def create(
        self, directory: OverlayNode, name: bytes, mode: int, flags: int, owner: Owner
    ) -> tuple[OverlayNode, Attr, int]:
        """A new regular file, and a descriptor of it."""
        opened: list[int] = []

        def make(dir_fd: int, new_name: bytes) -> None:
            how = open_flags(flags) & ~os.O_TRUNC | os.O_CREAT | os.O_EXCL
            opened.append(os.open(new_name, how, mode & 0o7777, dir_fd=dir_fd))

        try:
            node, attr = self._make(directory, name, owner, make)
        except BaseException:
            close_all(opened)
            raise
        return node, attr, opened[0]

    def mkdir(self, directory: OverlayNode, name: bytes, mode: int, owner: Owner) -> tuple[OverlayNode, Attr]:
        return self._make(directory, name, owner, lambda fd, new: os.mkdir(new, mode & 0o7777, dir_fd=fd))

    def mknod(
        self, directory: OverlayNode, name: bytes, mode: int, rdev: int, owner: Owner
    ) -> tuple[OverlayNode, Attr]:
        return self._make(directory, name, owner, lambda fd, new: os.mknod(new, mode, rdev, dir_fd=fd))

    def symlink(self, directory: OverlayNode, name: bytes, target: bytes, owner: Owner) -> tuple[OverlayNode, Attr]:
        return self._make(directory, name, owner, lambda fd, new: os.symlink(target, new, dir_fd=fd))

    def link(self, node: OverlayNode, directory: OverlayNode, name: bytes) -> tuple[OverlayNode, Attr]:
        if node.removed or directory.removed:
            raise refuse(errno.ENOENT, name)
        found, ref = self._nodes.find(directory, name)
        if found is not None or ref is not None:
            raise refuse(errno.EEXIST, name)
        if node.is_dir:
            raise refuse(errno.EPERM, name)
        self.placing.copy_up(node)
        self._vacant(directory, name)
        # Duplicated: to find the second, as many directories may be opened as the cache holds.
        fd, linked, _ = self._nodes.locate(node)
        src_fd = os.dup(fd)
        try:
            dst_fd = self._nodes.directory_fd(directory)
            self._upper.perform(
                [],
                None,
                lambda: os.link(linked, name, src_dir_fd=src_fd, dst_dir_fd=dst_fd, follow_symlinks=False),
                "overlay.link",
            )
        finally:
            os.close(src_fd)
        self._upper.touched(directory.upper)
        self._nodes.linked(node)
        self._nodes.attach(directory, name, node)
        return node, self._nodes.attr(node)

    # Removing

    def unlink(self, directory: OverlayNode, name: bytes) -> None:
        found, ref = self._existing(directory, name)
        is_dir = stat.S_ISDIR(found.st_mode) if found is not None else ref is not None and ref.kind == stat.S_IFDIR
        if is_dir:
            raise refuse(errno.EISDIR, name)
        self.placing.need_directory(directory)
        edits = self._hiding(directory, name)
        self._remove(directory, name, found, edits, os.unlink, "overlay.unlink")

    def rmdir(self, directory: OverlayNode, name: bytes) -> None:
        found, _ = self._existing(directory, name)
        node, _ = self._nodes.get(directory, name, fetch=False)
        if not node.is_dir:
            raise refuse(errno.ENOTDIR, name)
        if not is_empty(self._nodes, node):
            raise refuse(errno.ENOTEMPTY, name)
        self.placing.need_directory(directory)
        edits = self._hiding(directory, name)
        self._nodes.detach_below(node)
        self._remove(directory, name, found, edits, os.rmdir, "overlay.rmdir")

    def _existing(self, directory: OverlayNode, name: bytes) -> tuple[os.stat_result | None, LowerRef | None]:
        found, ref = (None, None) if directory.removed else self._nodes.find(directory, name)
        if found is None and ref is None:
            raise refuse(errno.ENOENT, name)
        return found, ref

    def _hiding(self, directory: OverlayNode, name: bytes) -> list[Edit]:
        """The edits after which the lower shows nothing under *name*, and no mark is left below."""
        mark = _child_mark(directory, name)
        path = _join(directory, name)
        if mark is not None and mark.kind is MarkKind.HIDDEN:
            return [Edit(EditKind.HIDE, path)] if mark.children else []
        if self._nodes.candidate(self._nodes.lower_directory(directory), name) is not None:
            return [Edit(EditKind.HIDE, path)]
        return [Edit(EditKind.FORGET, path)] if mark is not None else []

    def _remove(
        self,
        directory: OverlayNode,
        name: bytes,
        found: os.stat_result | None,
        edits: list[Edit],
        remove: Callable[..., None],
        point: str,
    ) -> None:
        upper = self._upper
        fd = self._nodes.directory_fd(directory)
        action: Action | None = None
        if found is not None:
            edits += self._losing(found)
            action = Action(ActionKind.REMOVE, tree_path(_join(directory, name)), b"", found.st_ino)
            upper.perform(edits, action, lambda: remove(name, dir_fd=fd), point)
        else:
            upper.perform(edits, None, lambda: None, point)
            now = time.time_ns()
            with contextlib.suppress(OSError):
                set_times(fd, os.fstat(fd).st_atime_ns, now)
        upper.touched(directory.upper)
        self._nodes.mark_way(directory)
        self._gone(directory, name, found)

    def _losing(self, found: os.stat_result) -> list[Edit]:
        """The edits that go with the removal of one name of an upper file."""
        last = found.st_nlink == 1 or stat.S_ISDIR(found.st_mode)
        if last and found.st_ino in self._upper.origins:
            return [Edit(EditKind.UNORIGIN, inode=found.st_ino)]
        return []

    def _gone(self, directory: OverlayNode, name: bytes, found: os.stat_result | None) -> None:
        """Nothing is under *name* any more: tell its node."""
        node = self._nodes.known(directory, name)
        if found is not None:
            if stat.S_ISDIR(found.st_mode):
                self._nodes.drop_fd(found.st_ino)
            elif found.st_nlink == 1:
                self._nodes.unlinked(found.st_ino)
        if node is None:
            return
        if found is not None:
            node.last = Attr.of(found)
        elif node.is_dir and node.lower is not None:
            with contextlib.suppress(OSError):  # it has gone from a live lower too: who holds it is answered ESTALE
                node.last = self._nodes.lower.attr(node.lower, fetch=False)
        node.mark = None
        self._nodes.detach(directory, name, node)

    # Renaming

    def rename(self, src: OverlayNode, name: bytes, dst: OverlayNode, new_name: bytes, flags: int) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise refuse(errno.EINVAL, name)
        exchange = flags == RENAME_EXCHANGE
        self._existing(src, name)
        if dst.removed:
            raise refuse(errno.ENOENT, new_name)
        node, _ = self._nodes.get(src, name, fetch=False)
        target = self._target(dst, new_name, flags)
        if target is node:
            return
        self._check_rename(node, target, src, dst, exchange=exchange)
        for each in (node, target) if exchange else (node,):
            if each is not None and not each.is_dir:
                self.placing.copy_up(each)
        for directory in (src, dst, node, target if exchange else None):
            if directory is not None and directory.is_dir:
                self.placing.need_directory(directory)
        if exchange:
            assert target is not None
            self._exchange((src, name), node, (dst, new_name), target)
        else:
            self._rename((src, name), node, (dst, new_name), target, flags)

    def _target(self, dst: OverlayNode, new_name: bytes, flags: int) -> OverlayNode | None:
        found, ref = self._nodes.find(dst, new_name)
        if found is None and ref is None:
            if flags == RENAME_EXCHANGE:
                raise refuse(errno.ENOENT, new_name)
            return None
        if flags == RENAME_NOREPLACE:
            raise refuse(errno.EEXIST, new_name)
        return self._nodes.get(dst, new_name, fetch=False)[0]

    def _check_rename(
        self, node: OverlayNode, target: OverlayNode | None, src: OverlayNode, dst: OverlayNode, *, exchange: bool
    ) -> None:
        if node.is_dir and _is_within(dst, node):
            raise refuse(errno.EINVAL, node.name)
        if target is None:
            return
        if target.is_dir and _is_within(src, target):
            raise refuse(errno.EINVAL if exchange else errno.ENOTEMPTY, target.name)
        if exchange:
            return
        if node.is_dir and not target.is_dir:
            raise refuse(errno.ENOTDIR, target.name)
        if target.is_dir and not node.is_dir:
            raise refuse(errno.EISDIR, target.name)
        if target.is_dir and not is_empty(self._nodes, target):
            raise refuse(errno.ENOTEMPTY, target.name)

    def _rename(self, old: Place, node: OverlayNode, new: Place, target: OverlayNode | None, flags: int) -> None:
        old_path, new_path = _join(*old), _join(*new)
        replaced = self._nodes.find(*new)[0] if target is not None else None
        if node.is_dir:
            edits = self._moving(old, new)
            edits += self._standing(node, new)
            if self._nodes.candidate(self._nodes.lower_directory(old[0]), old[1]) is not None:
                edits.append(Edit(EditKind.HIDE, old_path))
        else:
            edits = self._hiding(*old)
        if replaced is not None:
            edits += self._losing(replaced)
        action = Action(ActionKind.RENAME, tree_path(old_path), tree_path(new_path), node.upper, flags)
        if target is not None and target.is_dir:
            self._nodes.detach_below(target)
        self._rename_at(old, new, edits, action, "overlay.rename")
        if target is not None:
            self._gone(*new, replaced)
        self._nodes.move(node, old, new)
        self._remark(node)

    def _exchange(self, old: Place, node: OverlayNode, new: Place, target: OverlayNode) -> None:
        old_path, new_path = _join(*old), _join(*new)
        edits: list[Edit] = []
        if node.is_dir or target.is_dir:
            if _child_mark(*old) is not None or _child_mark(*new) is not None:
                edits.append(Edit(EditKind.SWAP, old_path, new_path))
            edits += self._standing(node, new) + self._standing(target, old)
        action = Action(ActionKind.RENAME, tree_path(old_path), tree_path(new_path), node.upper, RENAME_EXCHANGE)
        self._rename_at(old, new, edits, action, "overlay.exchange")
        self._nodes.swap(node, old, target, new)
        self._remark(node)
        self._remark(target)

    def _rename_at(self, old: Place, new: Place, edits: list[Edit], action: Action, point: str) -> None:
        with self._two_fds(old[0], new[0]) as (src_fd, dst_fd):
            self._upper.perform(edits, action, lambda: rename_at(src_fd, old[1], dst_fd, new[1], action.flags), point)
        for directory, _ in (old, new):
            self._upper.touched(directory.upper)
            self._nodes.mark_way(directory)

    def _moving(self, old: Place, new: Place) -> list[Edit]:
        if _child_mark(*old) is None and _child_mark(*new) is None:
            return []
        return [Edit(EditKind.MOVE, _join(*old), _join(*new))]

    def _standing(self, node: OverlayNode, place: Place) -> list[Edit]:
        """The edits by which the directory *node*, moved to *place*, stands on what it stood on."""
        if not node.is_dir:
            return []
        ref = self._nodes.lower_directory(node)
        there = self._nodes.candidate(self._nodes.lower_directory(place[0]), place[1])
        path = _join(*place)
        if ref is None:
            # A lower that is live may get a directory of this name at any time.
            return [Edit(EditKind.OPAQUE, path)] if there is not None or self._nodes.lower.live else []
        target = self._nodes.lower.path(ref)
        if there is not None and self._nodes.lower.path(there) == target:
            return [Edit(EditKind.INHERIT, path)]
        return [Edit(EditKind.REDIRECT, path, target)]

    def _remark(self, node: OverlayNode) -> None:
        if node.is_dir:
            assert isinstance(node.parent, OverlayNode)
            node.mark = _child_mark(node.parent, node.name)

    # Files that were made before

    def put(self, directory: OverlayNode, name: bytes, copy: Copy, replaces: int, time_ns: int) -> bool:
        """Let *name* lead to the finished file *copy* of `work/`, modified at *time_ns*, in the place of the upper's
        file *replaces*, or, where that is 0, of nothing. False, and nothing has changed, where it is not so.

        The old file goes to `work/`, to be deleted by the job of `Upper.discard`.
        """
        found, ref = self._nodes.find(directory, name)
        if found is None:
            if replaces or ref is not None:
                return False
        elif found.st_ino != replaces or not stat.S_ISREG(found.st_mode):
            return False
        self.placing.need_directory(directory)
        upper = self._upper
        fd = self._nodes.directory_fd(directory)
        os.utime(copy.name, ns=(time_ns, time_ns), dir_fd=upper.work_fd, follow_symlinks=False)
        flags = RENAME_EXCHANGE if found is not None else RENAME_NOREPLACE

        def change() -> None:
            with writable_for_us(fd):
                rename_at(upper.work_fd, copy.name, fd, name, flags)

        self._nodes.reborn(copy.inode)
        upper.perform([], None, change, "overlay.put")
        if copy.inode in upper.origins:  # of a file that went without our seeing it (a power loss)
            upper.note([Edit(EditKind.UNORIGIN, inode=copy.inode)], "overlay.origin")
        upper.touched(directory.upper)
        if found is not None:
            upper.discard.add(upper.work_fd, copy.name, at_once=False)
            node = self._nodes.known(directory, name)
            if node is not None:
                node.last = Attr.of(found)
                self._nodes.detach(directory, name, node)
        return True

    @contextlib.contextmanager
    def _two_fds(self, first: OverlayNode, second: OverlayNode) -> Iterator[tuple[int, int]]:
        # Duplicated: to find the second, as many directories may be opened as the cache holds.
        fd = os.dup(self._nodes.directory_fd(first))
        try:
            yield fd, self._nodes.directory_fd(second)
        finally:
            os.close(fd)


def open_flags(flags: int) -> int:
    """open(2) flags for a file of the upper. Not O_APPEND: every write says where it goes, and nobody else
    appends. Reading is always wanted (see `host_flags`)."""
    kept = host_flags(flags) & ~os.O_APPEND
    if kept & os.O_ACCMODE == os.O_WRONLY:
        kept = kept & ~os.O_ACCMODE | os.O_RDWR
    return kept


def _child_mark(directory: OverlayNode, name: bytes) -> Mark | None:
    return directory.mark.child(name) if directory.mark is not None else None


def _join(directory: OverlayNode, name: bytes) -> bytes:
    path = directory.path()
    return path + b"/" + name if path else name


def _is_within(directory: OverlayNode, top: OverlayNode) -> bool:
    """Whether *directory* is *top* or lies below it."""
    node: OverlayNode | None = directory
    while node is not None:
        if node is top:
            return True
        node = node.parent if isinstance(node.parent, OverlayNode) else None
    return False
