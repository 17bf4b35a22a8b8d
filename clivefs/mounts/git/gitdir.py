"""Private gitdirs: what makes a mounted ref a git working tree. Owned here: everything in `STORE/gitdirs/`.

A gitdir is an ordinary repository without a tree of its own. The `.git` file at the root of the mount
entry leads to it, so the directory that has that file is git's working tree. It borrows the source's
objects (`objects/info/alternates`; those of a local repository only until they are kept), has the source as
`origin`, and is made once: commits, switches, stashes and settings of the user live in it from mount to mount.
Beside git's own files it has

    clive-base      the commit that the layer below stands on: one line, 40 digits
    modules/NAME    the gitdir of a submodule, once somebody has looked into it: made like this one, but without an
                    index. No `.git` file leads to it before `git submodule update` writes that, which would not clone
                    into a directory that has files, but takes a repository that is there already

and while a move is under way what `git.move` tells of. A gitdir moves (`stage`) only if HEAD is at the old base,
nothing is staged and no git is at work (`index.lock`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
from collections.abc import Mapping, Sequence

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories
from clivefs.mounts.git.command import GitCommand, GitFailed, alternates_text, config_text, quoted_section
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.head import facts, read_head
from clivefs.mounts.git.index import StatOf, build_index
from clivefs.mounts.git.inuse import InUse
from clivefs.mounts.git.move import BASE, Staged, put_first_index, recover, stage
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.objects.errors import UnknownRef
from clivefs.objects.repository import Repository

log = logging.getLogger(__name__)

_HEX = re.compile(rb"[0-9a-f]{40}")
_borrowing = threading.Lock()
"""Held while alternates are read and written: a gitdir may be prepared and settled at the same time."""


class GitDir:
    """One private gitdir. Every method blocks (a few milliseconds of git); not for the loop thread."""

    def __init__(self, path: str, git: GitCommand) -> None:
        self.path = path
        self._git = git
        self._in_use: InUse | None = None
        """Keeps it from being collected."""
        self._modules: dict[str, tuple[GitDir, GitSource]] = {}
        """The submodules that were opened, by name."""

    @classmethod
    def create_or_open(
        cls,
        path: str,
        resolved: Resolved,
        source: GitSource,
        git: GitCommand | None = None,
        *,
        remote: str | None = None,
    ) -> GitDir:
        """The gitdir at *path*, made for *resolved* if there is none. One that exists keeps its branches,
        HEAD and index; where its `base` is not `resolved.commit`, `stage` is what can bring it there. *remote*: what
        `origin` is, if that is not where *source* is.

        ClivefsError for an entry with a `subdir`: git has no working tree without the rest.
        """
        if resolved.subdir:
            raise ClivefsError(
                "an entry with `subdir` cannot be a git working tree",
                remedy="Set `git_dir = false`, or mount the whole repository.",
            )
        self = cls(path, git or GitCommand())
        if self._hold():
            self._borrow(source.objects_dirs)
            recover(path)
            return self
        temporary = f"{path}.{os.getpid()}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        make_directories(temporary)
        _populate(temporary, resolved, source, remote or source.location.remote)
        self._in_use = InUse(temporary)
        try:
            os.rename(temporary, path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not self._hold():  # otherwise somebody else was quicker
                raise
        return self

    def _hold(self) -> bool:
        """Whether it is there; if so, no collection removes it from now on."""
        with contextlib.suppress(FileNotFoundError):
            self._in_use = InUse(self.path)
            return True
        return False

    def module(self, name: str, resolved: Resolved, source: GitSource, remote: str | None) -> GitDir | None:
        """The gitdir of the submodule *name* at *resolved*, as `create_or_open`; None where there cannot be one, or the
        user has a repository of another making. OSError, ClivefsError."""
        parts = name.split("/")
        if not all(parts) or not {".", ".."}.isdisjoint(parts):
            return None
        path = os.path.join(self.path, "modules", *parts)
        outer = [os.path.join(self.path, "modules", *parts[:depth]) for depth in range(1, len(parts))]
        if any(os.path.lexists(os.path.join(each, "HEAD")) for each in outer):
            return None  # within the gitdir of another: git refuses it as well
        if os.path.lexists(path) and not os.path.isfile(os.path.join(path, BASE)):
            return None
        module = self.create_or_open(path, resolved, source, self._git, remote=remote)
        self._modules[name] = module, source
        return module

    def release(self) -> None:
        """No mount shows it any more: it may be collected."""
        for held in (self, *(module for module, _ in list(self._modules.values()))):
            if held._in_use is not None:
                held._in_use.close()

    def dot_git_content(self) -> bytes:
        """The content of the `.git` file at the root of the working tree."""
        return b"gitdir: " + os.fsencode(self.path) + b"\n"

    # Where it is

    @property
    def base(self) -> bytes:
        """The commit that the layer below stands on."""
        return _read_oid(os.path.join(self.path, BASE))

    def head(self) -> bytes | None:
        """The commit that HEAD is at; None on a branch without commits."""
        found = read_head(self.path)
        if found is not None:
            return found.commit
        try:
            return Repository(self.path).resolve("HEAD")
        except UnknownRef:
            return None

    def head_branch(self) -> str | None:
        """The branch that HEAD is on, without `refs/heads/`; None when it is detached."""
        name = Repository(self.path).head_branch()
        return name.removeprefix("refs/heads/") if name is not None else None

    def git_at_work(self) -> bool:
        """Some git is changing the index now (or died doing so)."""
        return os.path.lexists(os.path.join(self.path, "index.lock"))

    # The index

    def has_index(self) -> bool:
        return os.path.lexists(os.path.join(self.path, "index"))

    def build_index(self, stat_of: StatOf) -> bool:
        """Make the index of HEAD unless there is one; whether it was made. See `git.index`."""
        if self.has_index():
            return False
        head = self.head()
        if head is None:
            return False
        reader = Repository(self.path)
        built = build_index(reader, reader.read_commit(head).tree, stat_of)
        return put_first_index(self.path, built.content)

    # Moving to another base

    def stage(self, resolved: Resolved, stat_of: StatOf, source: GitSource) -> Staged | None:
        """Get a move of HEAD (or the branch that it is on), the index and the base to *resolved* ready; None where the
        user has gone on from the old base, has something staged, or git is at work. *stat_of* tells what the mount
        will report. Nothing has moved yet: see `git.move`."""
        self._borrow(source.objects_dirs)
        old, new = self.base, resolved.commit
        head, old_index = read_head(self.path), facts(os.path.join(self.path, "index"))
        if head is None or self.git_at_work():
            return None
        if self._holds(new):
            # The user pulled or merged it: git has written into the upper layer all that differs.
            return stage(self.path, old, new, head, old_index, b"", moves_head=False)
        if head.commit != old or not self._nothing_staged(old):
            return None
        self._update_remote_refs(source)
        index = b""
        if old_index is not None:
            index = build_index(resolved.repository, _whole_tree(resolved), stat_of).content
        return stage(self.path, old, new, head, old_index, index, moves_head=True)

    def passed(self, commit: bytes, source: GitSource) -> bytes | None:
        """Where HEAD went on to from the base, if *commit* has gone on from there in its turn: all that was committed
        here is upstream. None where it has not."""
        self._borrow(source.objects_dirs)
        head = self.head()
        if head is None or head in (self.base, commit) or not source.has(head) or not self._leads(head, commit):
            return None
        return head

    def _holds(self, commit: bytes) -> bool:
        """Whether HEAD went on from the base and has *commit* among its ancestors."""
        head = self.head()
        return head is not None and head != self.base and self._leads(commit, head)

    def _leads(self, old: bytes, new: bytes) -> bool:
        """Whether *old* is among the ancestors of *new*."""
        try:
            self._git.run(["merge-base", "--is-ancestor", old.hex(), new.hex()], git_dir=self.path)
        except GitFailed:
            return False
        return True

    def facts(self) -> tuple[bytes | None, int, bool, bytes]:
        """What changes when a git in the working tree has done something, or the base has moved."""
        try:
            written_ns = os.stat(os.path.join(self.path, "index")).st_mtime_ns
        except FileNotFoundError:
            written_ns = 0
        return self.head(), written_ns, self.git_at_work(), self.base

    def _nothing_staged(self, commit: bytes) -> bool:
        if not self.has_index():
            return True
        try:
            self._git.run(["diff-index", "--cached", "--quiet", commit.hex(), "--"], git_dir=self.path)
        except GitFailed as error:
            if error.status == 1:
                return False
            raise
        return True

    def _update_remote_refs(self, source: GitSource) -> None:
        """Bring `origin`'s branches and new tags up to date, as a fetch does."""
        known = Repository(self.path).refs()
        commands = [
            f"update {name} {oid.hex()}\n"
            for name, oid in _remote_refs(source).items()
            if known.get(name) != oid and (name not in known or name.startswith("refs/remotes/"))
        ]
        try:
            self._git.run(
                ["update-ref", "--stdin", "-m", "clivefs: follow"],
                git_dir=self.path,
                stdin=os.fsencode("".join(commands)),
                variables={"GIT_COMMITTER_NAME": "clivefs", "GIT_COMMITTER_EMAIL": "clivefs@localhost"},
            )
        except GitFailed as error:
            log.info("%s: refs of origin stay as they were: %s", self.path, error.message)

    # Whose objects

    def settle(self, source: GitSource) -> None:
        """See that nothing here, submodules included, stands on objects of a repository of the user, where they can
        vanish: they are kept, and then no longer borrowed from there. For threads; OSError as `GitSource.keep`."""
        self._settle(source)
        for module, of_module in list(self._modules.values()):
            module.settle(of_module)

    def _settle(self, source: GitSource) -> None:
        live = {alternates_text(each) for each in source.live_objects_dirs}
        if source.lazy or not live.intersection(_lines(self._alternates)):
            source.keep()
            return
        source.keep(self._tips(source))
        with _borrowing:
            kept = dict.fromkeys([*map(alternates_text, source.objects_dirs), *_lines(self._alternates)])
            write_whole(self._alternates, b"".join(line for line in kept if line not in live))
        source.keep(self._tips(source))  # what git took from there meanwhile

    def _tips(self, source: GitSource) -> list[bytes]:
        """What refs here lead to, as far as the source has it."""
        tips = {*Repository(self.path).refs().values(), self.base}
        head = self.head()
        if head is not None:
            tips.add(head)
        return [oid for oid in tips if source.has(oid)]

    @property
    def _alternates(self) -> str:
        return os.path.join(self.path, "objects", "info", "alternates")

    def _borrow(self, objects_dirs: Sequence[str]) -> None:
        """See the objects of *objects_dirs*, and go on seeing those of earlier sources."""
        with _borrowing:
            lines = _lines(self._alternates)
            new = [line for line in map(alternates_text, objects_dirs) if line not in lines]
            if new:
                write_whole(self._alternates, b"".join([*new, *lines]))


def _populate(path: str, resolved: Resolved, source: GitSource, remote: str) -> None:
    """Write a new gitdir's files."""
    for part in (("objects", "info"), ("objects", "pack"), ("refs", "heads"), ("refs", "tags"), ("info",)):
        make_directories(os.path.join(path, *part))
    write_whole(os.path.join(path, "config"), os.fsencode(config_text(_config(resolved, source, remote))))
    write_whole(
        os.path.join(path, "objects", "info", "alternates"), b"".join(map(alternates_text, source.objects_dirs))
    )
    refs = _remote_refs(source)
    if resolved.branch is not None:
        refs[f"refs/heads/{resolved.branch}"] = resolved.commit
        head = os.fsencode(f"ref: refs/heads/{resolved.branch}\n")
    else:
        head = resolved.commit.hex().encode() + b"\n"
        _log_detached_head(path, resolved)
    lines = [b"%b %b\n" % (oid.hex().encode(), os.fsencode(name)) for name, oid in sorted(refs.items())]
    write_whole(os.path.join(path, "packed-refs"), b"".join(lines))
    shallow = os.path.join(source.refs.commondir, "shallow")
    if os.path.isfile(shallow):
        shutil.copyfile(shallow, os.path.join(path, "shallow"))
    attributes = source.info_attributes()
    if attributes:
        write_whole(os.path.join(path, "info", "attributes"), attributes)
    write_whole(os.path.join(path, BASE), resolved.commit.hex().encode() + b"\n")
    write_whole(os.path.join(path, "HEAD"), head)


def _log_detached_head(path: str, resolved: Resolved) -> None:
    """Note what HEAD was detached at, as `git checkout` does: `git status` and `git branch` tell it from there."""
    make_directories(os.path.join(path, "logs"))
    who = f"clivefs <clivefs@localhost> {resolved.commit_time_ns // 1_000_000_000} +0000"
    line = f"{'0' * 40} {resolved.commit.hex()} {who}\tcheckout: moving from main to {resolved.ref}\n"
    write_whole(os.path.join(path, "logs", "HEAD"), os.fsencode(line))


def _config(resolved: Resolved, source: GitSource, remote: str) -> dict[str, Mapping[str, str]]:
    core = {
        "repositoryformatversion": "1" if source.lazy else "0",
        "bare": "false",
        "filemode": "true",
        "ignorecase": "false",
        "symlinks": "true",
        # The inode and change time of a file may differ from mount to mount: git must not read it again.
        "checkStat": "minimal",
        "trustctime": "false",
        # Every change of a directory of an overlay gives it a new mtime and size, and a new base a new index: so git
        # need not list the directories that are as they were.
        "untrackedCache": "true",
        "splitIndex": "false",
        # What the layer shows is what a checkout without these gives, whatever the user or the machine have set: a ref
        # shows the same files to everybody.
        "autocrlf": "false",
        "eol": "lf",
    }
    origin = {"url": remote, "fetch": "+refs/heads/*:refs/remotes/origin/*"}
    sections: dict[str, Mapping[str, str]] = {"core": core, 'remote "origin"': origin}
    if source.lazy and source.promisor_url is not None:
        name = "origin"
        if source.location.url is None:  # a local partial clone: what it lacks comes from its own remote
            name = "promisor"
            sections[f'remote "{name}"'] = {"url": source.promisor_url, "promisor": "true"}
        else:
            origin.update({"promisor": "true", "partialclonefilter": "blob:none"})
        sections["extensions"] = {"partialClone": name}
    if resolved.branch is not None:
        branch = {"remote": "origin", "merge": f"refs/heads/{resolved.branch}"}
        sections[f"branch {quoted_section(resolved.branch)}"] = branch
    sections["index"] = {"version": "2"}
    sections["gc"] = {"auto": "0"}
    sections["maintenance"] = {"auto": "false"}
    return sections


def _remote_refs(source: GitSource) -> dict[str, bytes]:
    """The source's branches and tags under the names that a clone gives them."""
    refs: dict[str, bytes] = {}
    for name, oid in source.refs.refs().items():
        if name.startswith("refs/heads/"):
            refs["refs/remotes/origin/" + name.removeprefix("refs/heads/")] = oid
        elif name.startswith("refs/tags/"):
            refs[name] = oid
    return refs


def _whole_tree(resolved: Resolved) -> bytes:
    return resolved.repository.read_commit(resolved.commit).tree


def _lines(path: str) -> list[bytes]:
    """The lines of a file, with their ends; none where it is not there."""
    try:
        with open(path, "rb") as file:
            return file.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _read_oid(path: str) -> bytes:
    with open(path, "rb") as file:
        text = file.read(64).strip()
    if not _HEX.fullmatch(text):
        raise ClivefsError(
            "this file does not name a commit", place=path, remedy="Detach the entry and attach it again."
        )
    return bytes.fromhex(text.decode())
