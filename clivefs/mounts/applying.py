"""Making a live tree show other content at some paths, in one step as its users see it.

    stage    every new file is made in a staging directory of the tree, in calls of its own: others go on meanwhile.
             Where the tree takes in what the host has, regular files are made by threads (`hoststaging`)
    record   what is to be done, as `Steps`: whoever applies keeps it durable before the next step
    publish  one span: the staging directory gets its second name, which says that it has begun; then removals, new
             directories, and renames of the staged files into their places. On the host an old file changes places with
             the new one, which costs no more than a name: to free it may take a disk's time
    finish   the staging directory goes, with the old files: where it can be moved elsewhere, they are removed there
             when everybody has what he waits for

All of it by the tree's ordinary operations, so that marks, nodes and open files stay right: who has a file open keeps
what he opened. After a crash between record and finish, `Applying.resume` does what is left of the steps where
publishing had begun; each of them finds out by looking whether it has been done (by its inode number, where an old file
has taken the new one's place in the staging directory). What somebody else has changed since
then is his. Where it had not begun, nothing has changed, and nothing does. A directory that is to go, but holds what is
not ours to remove (ignored files, say), stays, as git leaves it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import RENAME_EXCHANGE
from clivefs.mounts.alike import same_content
from clivefs.mounts.attributes import dress, give, shown_mode
from clivefs.mounts.directories import Directories
from clivefs.mounts.host.calls import IS_ROOT
from clivefs.mounts.hoststaging import HostStaging
from clivefs.mounts.nodetable import NodeTable
from clivefs.mounts.steps import STAGING, Affected, Step, Steps, Wanted
from clivefs.mounts.tree import Attr, Node, OpenFile, Owner, SetAttr, Tree, refuse

_BEGUN = b".begun"
_REMOVED_MAX = 64
"""Old files that are removed before others have their turn."""
_NO_LINK = (errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS)
_LISTED_MIN = 8
"""For so many changes in a directory its names are listed; for fewer they are looked up."""


class Applying:
    """One set of changes on its way into *tree*. Methods run in the thread of the tree; they may raise `Blocked` before
    they have changed anything, and OSError."""

    def __init__(
        self,
        tree: Tree,
        table: NodeTable,
        owner: Owner,
        *,
        staging: bytes | None = None,
        elsewhere: Callable[[int, bytes], bool] = lambda parent, name: False,
    ) -> None:
        """*elsewhere* makes the staging directory, if it can: see `Tree.adopt`."""
        self._tree = tree
        self._owner = owner
        self._elsewhere = elsewhere
        self.staging = staging or STAGING + os.urandom(6).hex().encode()
        self._begun = self.staging + _BEGUN
        self._begun_ns: int | None = None
        """Of one that is resumed: when publishing began, if it did."""
        self._directories = Directories(tree, table)
        self._stage: Node | None = None
        self._host: HostStaging | None = None
        """The staging directory, where threads may make files in it."""
        self._exchanges = True
        """The host's filesystem can exchange two names, as far as is known."""
        self._steps: list[Step] = []
        self.made: dict[tuple[int, int], tuple[int, int, bytes]] = {}
        """Of the regular files that `make` has made, as `statcache.Shown` has them."""
        self.affected: list[Affected] = []
        """What `publish` has changed by now."""
        self._taken = False
        """The staging directory is elsewhere."""
        self._new: set[bytes] = set()
        self._staged: dict[bytes, Step] = {}
        """Those that others may be linked to, by path."""
        self.not_owned: set[bytes] = set()
        """What could not be given the owner that it is to have."""
        self.not_ours: set[bytes] = set()
        """Directories of others, who alone may change their attributes and permissions."""
        self._there: dict[bytes, int] = {}
        """What `check` found at the path of each step: a kind, 0 for nothing."""

    # Staging

    def _staging(self) -> Node:
        if self._stage is None:
            root = self._tree.root
            made = self._tree.adopt(root, self.staging, self._elsewhere)
            self._stage = made or self._tree.mkdir(root, self.staging, 0o700, self._owner)[0]
            self._directories.hold(self._stage)
            self._open_host()
        return self._stage

    def _open_host(self) -> None:
        assert self._stage is not None
        fd = self._tree.host_directory(self._stage)
        if fd is not None:
            self._host = HostStaging(fd, self._owner)

    def takes_files_of_threads(self) -> bool:
        """Whether regular files can be staged by `make`."""
        self._staging()
        return self._host is not None

    def make(self, wanted: Wanted, oid: bytes, write: Callable[[int], None]) -> None:
        """`stage` a regular file, which *write* fills by its descriptor with the blob *oid*: for a thread, while nobody
        else stages."""
        assert self._host is not None
        name = b"%d" % len(self._steps)
        st, owned = self._host.make(
            name,
            stat.S_IMODE(wanted.mode),
            write,
            owner=wanted.owner,
            xattrs=wanted.xattrs,
            mtime_ns=wanted.mtime_ns,
        )
        self._take(wanted, name, st.st_ino, owned=owned)
        mtime_ns = wanted.mtime_ns if wanted.mtime_ns is not None else st.st_mtime_ns
        self.made[st.st_dev, st.st_ino] = (st.st_size, mtime_ns, oid)

    def stage(self, wanted: Wanted, content: bytes | None = None) -> OpenFile | None:
        """Take *wanted* up. *content*: a symlink's target, a file's bytes. For a regular file without it the open
        file to be filled: the caller writes to it and calls `staged`."""
        kind = stat.S_IFMT(wanted.mode)
        if kind in (0, stat.S_IFDIR):
            if wanted.is_new:
                self._new.add(wanted.path)
            xattrs, owner = (wanted.xattrs, wanted.owner) if kind else (None, None)
            self._steps.append(
                Step(
                    wanted.path,
                    wanted.mode,
                    wanted.mtime_ns,
                    b"",
                    xattrs=xattrs,
                    owner=owner,
                    had_links=wanted.had_links,
                )
            )
            return None
        name = b"%d" % len(self._steps)
        directory = self._staging()
        if kind == stat.S_IFLNK:
            node, _ = self._tree.symlink(directory, name, content or b"", self._owner)
            self._add(wanted, name, node, None)
            return None
        if kind != stat.S_IFREG:
            node, _ = self._tree.mknod(directory, name, wanted.mode, wanted.rdev, self._owner)
            self._add(wanted, name, node, None)
            return None
        node, _, file = self._tree.create(directory, name, 0o600, os.O_RDWR | os.O_EXCL, self._owner)
        self._directories.hold(node)
        if content is None:
            return file
        self._write(file, content)
        self.staged(wanted, file)
        return None

    def staged(self, wanted: Wanted, file: OpenFile) -> None:
        """The file that `stage` gave for *wanted* is filled."""
        name = b"%d" % len(self._steps)
        node, _ = self._tree.lookup(self._staging(), name)
        self._add(wanted, name, node, file)
        file.flush()
        file.close()

    @staticmethod
    def _write(file: OpenFile, content: bytes) -> None:
        offset = 0
        while offset < len(content):
            offset += file.write(offset, content[offset:])

    def _add(self, wanted: Wanted, name: bytes, node: Node, file: OpenFile | None) -> None:
        for attribute, value in wanted.xattrs:
            self._tree.setxattr(node, attribute, value)
        owned = give(self._tree, node, wanted.owner, file) if wanted.owner is not None else True
        if not stat.S_ISLNK(wanted.mode):
            self._tree.setattr(node, SetAttr(mode=shown_mode(wanted.mode, owned=owned)), file)
        if wanted.mtime_ns is not None:
            self._tree.setattr(node, SetAttr(mtime_ns=wanted.mtime_ns), None)
        self._take(wanted, name, 0, owned=owned)

    def link(self, wanted: Wanted, first: bytes) -> bool:
        """`stage` what is to be one file with what was staged for the path *first*, and so has all that that has; False
        where the host makes no hard link of it. Where files are made by threads, for one."""
        step = self._staged[first]
        name = b"%d" % len(self._steps)
        inode = 0
        try:
            if step.inode:
                assert self._host is not None
                inode = self._host.link(step.staged, name)
            else:
                directory = self._staging()
                self._tree.link(self._tree.lookup(directory, step.staged)[0], directory, name)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            return False
        self._take(wanted, name, inode, owned=first not in self.not_owned)
        return True

    def _take(self, wanted: Wanted, name: bytes, inode: int, *, owned: bool) -> None:
        """The file for *wanted* is in the staging directory, as *name*."""
        step = Step(wanted.path, wanted.mode, wanted.mtime_ns, name, inode, had_links=wanted.had_links)
        self._steps.append(step)
        if wanted.link:
            self._staged[wanted.path] = step
        if wanted.is_new:
            self._new.add(wanted.path)
        if not owned:
            self.not_owned.add(wanted.path)

    @property
    def steps(self) -> Steps:
        """What `publish` will do."""
        return Steps(1, self.staging, tuple(self._steps))

    # Publishing

    def check(self) -> None:
        """Look at every directory on the way, so that `publish` has nothing to wait for. OSError for what it would come
        upon: EROFS, ENOTEMPTY for a directory that is to become a file and holds what nobody said shall go, and EEXIST
        for what stands where nothing is known to be."""
        if not self._tree.writable:
            raise refuse(errno.EROFS)
        self._staging()
        self._there = self._look()
        leaving = {step.path for step in self._steps if not stat.S_ISDIR(step.mode)}
        same: set[bytes] = set()
        for step in self._steps:
            there = self._there[step.path]
            if there and step.path in self._new and not (stat.S_ISDIR(there) and stat.S_ISDIR(step.mode)):
                if not self._is_the_same(step):
                    raise refuse(errno.EEXIST, step.path)
                same.add(step.path)
            if step.mode and stat.S_ISDIR(self._there[step.path]) and not stat.S_ISDIR(step.mode):
                directory = self._directories.at(step.path)
                if directory is not None:
                    self._refuse_kept(directory, step.path, leaving)
        self._steps = [step for step in self._steps if step.path not in same]
        self._steps += self._closed()

    def _closed(self) -> list[Step]:
        """Steps that close directories again which `publish` has to open, as we may not change them: where we are not
        root, and names are what the host has. EACCES for those of others."""
        told = {step.path for step in self._steps}
        closed = self._directories.closed(self._changed_in())
        return [Step(path, stat.S_IFDIR | mode, None, b"") for path, mode in closed.items() if path not in told]

    def _changed_in(self) -> set[bytes]:
        """The directories in which names change and where that may be refused."""
        if IS_ROOT or self._host is None:
            return set()
        return {step.path.rpartition(b"/")[0] for step in self._steps if step.staged or not step.mode}

    def _is_the_same(self, step: Step) -> bool:
        """Whether a file that nothing is known of has the content that it is to have."""
        head, _, name = step.path.rpartition(b"/")
        parent = self._directories.at(head)
        found = self._directories.child(parent, name) if parent is not None else None
        staged = self._directories.child(self._staging(), step.staged) if step.staged else None
        return found is not None and staged is not None and same_content(self._tree, found, staged)

    def _look(self) -> dict[bytes, int]:
        """What is at the path of each step: a kind, 0 for nothing."""
        there: dict[bytes, int] = {}
        by_directory: dict[bytes, list[bytes]] = {}
        for step in self._steps:
            if not step.path:
                there[b""] = stat.S_IFDIR  # the root
                continue
            by_directory.setdefault(step.path.rpartition(b"/")[0], []).append(step.path)
        for head, paths in by_directory.items():
            parent = self._directories.at(head)
            kinds = self._kinds(parent) if parent is not None and len(paths) >= _LISTED_MIN else None
            for path in paths:
                name = path[len(head) + 1 :] if head else path
                if kinds is not None:
                    there[path] = kinds.get(name, 0)
                else:
                    found = self._directories.child(parent, name) if parent is not None else None
                    there[path] = stat.S_IFMT(found[1].mode) if found is not None else 0
        return there

    def _kinds(self, directory: Node) -> dict[bytes, int] | None:
        """The kinds by name; None where the directory cannot be listed."""
        try:
            return {entry.name: entry.kind for entry in self._tree.entries(directory)}
        except PermissionError:
            return None

    def _refuse_kept(self, directory: Node, path: bytes, leaving: set[bytes]) -> None:
        for entry in self._tree.entries(directory):
            below = path + b"/" + entry.name
            found = self._directories.child(directory, entry.name)
            if found is not None and stat.S_ISDIR(found[1].mode):
                self._refuse_kept(found[0], below, leaving)
            elif below not in leaving:
                raise refuse(errno.ENOTEMPTY, below)

    def publish(self) -> list[Affected]:
        """Do it: one span, which begins with `check` unless this is resumed. What was done before a crash is found
        done."""
        affected = self.affected
        self._directories.forget()
        if self._begun_ns is None:
            self._tree.rename(self._tree.root, self.staging, self._tree.root, self._begun, 0)
            affected += [Affected(self._tree.root, self.staging), Affected(self._tree.root, self._begun)]
        FAULTS.hit("apply.begun")
        self._directories.open(self._changed_in())
        for step in sorted(self._steps, key=lambda each: each.path, reverse=True):
            affected += self._clear(step)
        FAULTS.hit("apply.cleared")
        for step in sorted(self._steps, key=lambda each: each.path):
            if step.mode:
                affected += self._put(step)
        FAULTS.hit("apply.put")
        for step in sorted(self._steps, key=lambda each: each.path, reverse=True):
            if stat.S_ISDIR(step.mode):
                self._dress(step)
        return affected

    def _clear(self, step: Step) -> list[Affected]:
        """Remove what cannot stay at the path of *step*."""
        there = self._there.get(step.path) if step.path else stat.S_IFDIR
        if there is not None and (not there or (step.mode and stat.S_ISDIR(step.mode) == stat.S_ISDIR(there))):
            return []  # nothing, or a rename takes its place
        head, _, name = step.path.rpartition(b"/")
        parent = self._directories.at(head)
        found = self._directories.child(parent, name) if parent is not None else None
        if parent is None or found is None:
            return []
        node, attr = found
        is_directory = stat.S_ISDIR(attr.mode)
        if step.mode and stat.S_ISDIR(step.mode) == is_directory:
            return []
        if not is_directory and self._is_of_others(step, attr):
            return []
        if not is_directory:
            self._tree.unlink(parent, name)
            return [Affected(parent, name, node)]
        try:
            self._tree.rmdir(parent, name)
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or step.mode:
                raise
            return []
        self._directories.gone(step.path)
        return [Affected(parent, name, node)]

    def _put(self, step: Step) -> list[Affected]:
        head, _, name = step.path.rpartition(b"/")
        affected: list[Affected] = []
        parent = self._make_directories(head, affected)
        if stat.S_ISDIR(step.mode):
            self._make_directories(step.path, affected)
            return affected
        if self._begun_ns is not None:
            found = self._directories.child(parent, name)
            if self._is_done(step) or (found is not None and self._is_of_others(step, found[1])):
                return affected
            taken = found is not None
        else:
            there = self._there.get(step.path, 0)
            taken = bool(there) and not stat.S_ISDIR(there)
        old = (parent.children or {}).get(name)
        self._replace(step, parent, name, taken=taken)
        affected.append(Affected(parent, name, old))
        return affected

    def _is_done(self, step: Step) -> bool:
        """Whether the new file had left the staging directory before the crash."""
        if step.inode and self._host is not None:
            return self._host.inode(step.staged) != step.inode
        return self._directories.child(self._staging(), step.staged) is None

    def _replace(self, step: Step, parent: Node, name: bytes, *, taken: bool) -> None:
        """Let *name* lead to the new file. *taken*: it leads to an old one."""
        if taken and step.inode and self._exchanges:
            try:
                self._tree.rename(self._staging(), step.staged, parent, name, RENAME_EXCHANGE)
                return
            except FileNotFoundError:
                pass  # somebody has just removed it
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise
                self._exchanges = False
        self._tree.rename(self._staging(), step.staged, parent, name, 0)

    def _is_of_others(self, step: Step, attr: Attr) -> bool:
        """Whether somebody has changed a file after the crash that we finish the work of."""
        if self._begun_ns is None:
            return False
        return (attr.mtime_ns if step.had_links else max(attr.mtime_ns, attr.ctime_ns)) > self._begun_ns

    def _make_directories(self, path: bytes, affected: list[Affected]) -> Node:
        node = self._directories.at(path)
        if node is not None:
            return node
        head, _, name = path.rpartition(b"/")
        parent = self._make_directories(head, affected)
        made, _ = self._tree.mkdir(parent, name, 0o755, self._owner)
        self._directories.add(path, made)
        affected.append(Affected(parent, name))
        return made

    def _dress(self, step: Step) -> None:
        node = self._directories.at(step.path)
        if node is None:
            return
        owned, ours = dress(self._tree, node, step)
        if not owned:
            self.not_owned.add(step.path)
        if not ours:
            self.not_ours.add(step.path)

    # The end

    def rescue(self) -> list[str]:
        """Move directories out of the staging directory, which others have put in the place of a file in the moment
        before it changed places with the new one; where they are now, below the tree's root. For a thread."""
        return [os.fsdecode(name) for name in self._host.rescue()] if self._host is not None else []

    def let_go(self) -> bool:
        """Remove some of the old files on the host that a node is known of; whether there are more."""
        if self._host is None or self._stage is None:
            return False
        for name in list(self._stage.children or ())[:_REMOVED_MAX]:
            if self._directories.child(self._stage, name) is not None:
                self._tree.unlink(self._stage, name)
        return bool(self._stage.children)

    def sweep(self, take: Callable[[int, bytes], bool]) -> None:
        """Remove the other old files, as far as they are on the host, if *take* does not take the whole directory
        (`HostStaging.give`): for a thread, between `let_go` and `finish`."""
        if self._host is None or self._stage is None:
            return
        known = frozenset(self._stage.children or ())  # there are some again where others look into it
        self._taken = not known and self._host.give((self._begun, self.staging), take)
        if not self._taken:
            self._host.sweep(known)

    def finish(self) -> list[Affected]:
        """Remove the staging directory and what is left in it, and let go of everything."""
        affected: list[Affected] = []
        if not self._taken:
            self.rescue()
        for name in (self.staging, self._begun):
            found = self._directories.child(self._tree.root, name)
            if found is None:
                affected.append(Affected(self._tree.root, name))  # it was taken as a whole, if it was there
                continue
            directory = found[0]
            for entry in self._tree.entries(directory):
                self._tree.unlink(directory, entry.name)
            self._tree.rmdir(self._tree.root, name)
            affected.append(Affected(self._tree.root, name, directory))
        if self._host is not None:
            self._host.close()
            self._host = None
        self._directories.release()
        self._stage = None
        return affected

    # After a crash

    @classmethod
    def resume(cls, tree: Tree, table: NodeTable, owner: Owner, steps: Steps) -> Applying:
        """The same once more, after a crash. `publish` it if it `is_left` and it, or that of another tree which belongs
        to it, `has_begun`; `finish` it in any case."""
        applying = cls(tree, table, owner, staging=steps.staging)
        applying._steps = list(steps.steps)
        for name in (applying.staging, applying._begun):
            found = applying._directories.child(tree.root, name)
            if found is not None:
                applying._stage = found[0]
                applying._directories.hold(found[0])
                applying._open_host()
                if name == applying._begun:
                    applying._begun_ns = found[1].ctime_ns
        return applying

    @property
    def has_begun(self) -> bool:
        """Whether something of it can be seen."""
        return self._begun_ns is not None

    @property
    def is_left(self) -> bool:
        """Whether it was not finished."""
        return self._stage is not None
