"""Private gitdirs: what makes a mounted ref a git working tree. Owned here: everything in `STORE/gitdirs/`.

A gitdir is an ordinary repository without a tree of its own. The `.git` file at the root of the mount
entry leads to it, so the directory that has that file is git's working tree. It borrows the source's
objects (`objects/info/alternates`), has the source as `origin`, and is made once: commits, switches,
stashes and settings of the user live in it from mount to mount. Beside git's own files it has

    clive-base      the commit that the layer below stands on: one line, 40 digits
    clive-move      while `move` is under way: the old and the new base

HEAD, index and base move together (`move`), only if HEAD is at the old base, nothing is staged and no git
is at work (`index.lock`). A move that a crash cut short is finished or taken back when it is next opened.
"""

from __future__ import annotations

import enum
import os
import re
import shutil
from collections.abc import Mapping

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import make_directories
from clivefs.mounts.git.command import GitCommand, GitFailed, alternates_text, config_text, quoted_section
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.index import StatOf, build_index
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.objects.errors import UnknownRef
from clivefs.objects.repository import Repository

_HEX = re.compile(rb"[0-9a-f]{40}")
_BASE = "clive-base"
_MOVE = "clive-move"


class Moved(enum.Enum):
    """What became of `GitDir.move`."""

    MOVED = "moved"
    BEHIND = "behind"
    """The user has gone on from the old base, has something staged, or git is at work: nothing changed."""


class GitDir:
    """One private gitdir. Every method blocks (a few milliseconds of git); not for the loop thread."""

    def __init__(self, path: str, git: GitCommand) -> None:
        self.path = path
        self._git = git

    @classmethod
    def create_or_open(cls, path: str, resolved: Resolved, source: GitSource, git: GitCommand | None = None) -> GitDir:
        """The gitdir at *path*, made for *resolved* if there is none. One that exists keeps its branches,
        HEAD and index; where its `base` is not `resolved.commit`, `move` is what can bring it there.

        ClivefsError for an entry with a `subdir`: git has no working tree without the rest.
        """
        if resolved.subdir:
            raise ClivefsError(
                "an entry with `subdir` cannot be a git working tree",
                remedy="Set `git_dir = false`, or mount the whole repository.",
            )
        self = cls(path, git or GitCommand())
        if os.path.isdir(path):
            self._borrow(source.objects_dir)
            self._recover()
            return self
        temporary = f"{path}.{os.getpid()}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        make_directories(temporary)
        _populate(temporary, resolved, source)
        try:
            os.rename(temporary, path)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not os.path.isdir(path):  # otherwise somebody else was quicker
                raise
        return self

    def dot_git_content(self) -> bytes:
        """The content of the `.git` file at the root of the working tree."""
        return b"gitdir: " + os.fsencode(self.path) + b"\n"

    # Where it is

    @property
    def base(self) -> bytes:
        """The commit that the layer below stands on."""
        return _read_oid(os.path.join(self.path, _BASE))

    def head(self) -> bytes | None:
        """The commit that HEAD is at; None on a branch without commits."""
        found = _head_in_files(self.path)
        if found is not None:
            return found
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
        lock = self._lock_index()
        if lock is None:
            return False
        try:
            with open(lock, "wb") as file:
                file.write(built.content)
            if self.has_index():
                return False
            os.rename(os.path.join(self.path, "index.lock"), os.path.join(self.path, "index"))
        except BaseException:
            self._unlock_index()
            raise
        else:
            return True

    def _lock_index(self) -> int | None:
        """index.lock, taken as git takes it; its descriptor, or None when somebody has it."""
        path = os.path.join(self.path, "index.lock")
        try:
            return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return None

    def _unlock_index(self) -> None:
        os.unlink(os.path.join(self.path, "index.lock"))

    # Moving to another base

    def move(self, resolved: Resolved, stat_of: StatOf, source: GitSource) -> Moved:
        """Bring HEAD (or the branch that it is on), the index and the base to *resolved*, all of them or
        none. *stat_of* tells what the mount will report. Runs again harmlessly."""
        self._borrow(source.objects_dir)
        old, new = self.base, resolved.commit
        if self._holds(new) and not self.git_at_work():
            # The user pulled or merged it: git has written into the upper layer all that differs.
            write_whole(os.path.join(self.path, _BASE), new.hex().encode() + b"\n")
            return Moved.MOVED
        lock = self._lock_index()
        if lock is None:
            return Moved.BEHIND
        with open(lock, "wb") as file:
            try:
                if self.head() != old or not self._nothing_staged(old):
                    self._unlock_index()
                    return Moved.BEHIND
                if old == new:
                    self._unlock_index()
                    return Moved.MOVED
                file.write(build_index(resolved.repository, _whole_tree(resolved), stat_of).content)
                file.flush()
                os.fsync(file.fileno())
            except BaseException:
                self._unlock_index()
                raise
        write_whole(os.path.join(self.path, _MOVE), b"%b\n%b\n" % (old.hex().encode(), new.hex().encode()))
        FAULTS.hit("gitdir.move.planned")
        try:
            self._point_refs(old, resolved, source)
        except GitFailed:
            self._recover()
            return Moved.BEHIND
        FAULTS.hit("gitdir.move.pointed")
        self._finish(new)
        return Moved.MOVED

    def _holds(self, commit: bytes) -> bool:
        """Whether HEAD went on from the base and has *commit* among its ancestors."""
        head = self.head()
        if head is None or head == self.base:
            return False
        try:
            self._git.run(["merge-base", "--is-ancestor", commit.hex(), head.hex()], git_dir=self.path)
        except GitFailed:
            return False
        return True

    def facts(self) -> tuple[bytes | None, int, bool]:
        """What changes when a git in the working tree has done something."""
        try:
            written_ns = os.stat(os.path.join(self.path, "index")).st_mtime_ns
        except FileNotFoundError:
            written_ns = 0
        return self.head(), written_ns, self.git_at_work()

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

    def _point_refs(self, old: bytes, resolved: Resolved, source: GitSource) -> None:
        """Move what HEAD stands on, if it still is at *old*, and the remote's refs, in one transaction."""
        new = resolved.commit.hex()
        commands = [f"update HEAD {new} {old.hex()}"]
        known = Repository(self.path).refs()
        for name, oid in _remote_refs(source).items():
            if known.get(name) != oid and (name not in known or name.startswith("refs/remotes/")):
                commands.append(f"update {name} {oid.hex()}")
        self._git.run(
            ["update-ref", "--stdin", "-m", "clivefs: follow"],
            git_dir=self.path,
            stdin=os.fsencode("".join(command + "\n" for command in commands)),
            variables={"GIT_COMMITTER_NAME": "clivefs", "GIT_COMMITTER_EMAIL": "clivefs@localhost"},
        )

    def _finish(self, new: bytes) -> None:
        """HEAD is at *new*: the index and the base follow. Each step may have been taken before."""
        lock = os.path.join(self.path, "index.lock")
        if os.path.lexists(lock):
            os.rename(lock, os.path.join(self.path, "index"))
        FAULTS.hit("gitdir.move.indexed")
        write_whole(os.path.join(self.path, _BASE), new.hex().encode() + b"\n")
        os.unlink(os.path.join(self.path, _MOVE))

    def _recover(self) -> None:
        """Finish a move that did not come to its end, or take it back if HEAD has not moved."""
        try:
            with open(os.path.join(self.path, _MOVE), "rb") as file:
                old, new = (bytes.fromhex(line.decode()) for line in file.read().split())
        except FileNotFoundError:
            return
        if self.head() == new:
            self._finish(new)
            return
        if self.base == old and self.git_at_work():
            self._unlock_index()
        os.unlink(os.path.join(self.path, _MOVE))

    def _borrow(self, objects_dir: str) -> None:
        """See the objects of *objects_dir*, and go on seeing those of earlier sources."""
        path = os.path.join(self.path, "objects", "info", "alternates")
        try:
            with open(path, "rb") as file:
                lines = file.read()
        except FileNotFoundError:
            lines = b""
        line = alternates_text(objects_dir)
        if line not in lines.splitlines(keepends=True):
            write_whole(path, line + lines)


def _populate(path: str, resolved: Resolved, source: GitSource) -> None:
    """Write a new gitdir's files."""
    for part in (("objects", "info"), ("objects", "pack"), ("refs", "heads"), ("refs", "tags"), ("info",)):
        make_directories(os.path.join(path, *part))
    write_whole(os.path.join(path, "config"), os.fsencode(config_text(_config(resolved, source))))
    write_whole(os.path.join(path, "objects", "info", "alternates"), alternates_text(source.objects_dir))
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
    write_whole(os.path.join(path, _BASE), resolved.commit.hex().encode() + b"\n")
    write_whole(os.path.join(path, "HEAD"), head)


def _log_detached_head(path: str, resolved: Resolved) -> None:
    """Note what HEAD was detached at, as `git checkout` does: `git status` and `git branch` tell it from there."""
    make_directories(os.path.join(path, "logs"))
    who = f"clivefs <clivefs@localhost> {resolved.commit_time_ns // 1_000_000_000} +0000"
    line = f"{'0' * 40} {resolved.commit.hex()} {who}\tcheckout: moving from main to {resolved.ref}\n"
    write_whole(os.path.join(path, "logs", "HEAD"), os.fsencode(line))


def _config(resolved: Resolved, source: GitSource) -> dict[str, Mapping[str, str]]:
    core = {
        "repositoryformatversion": "1" if source.lazy else "0",
        "bare": "false",
        "filemode": "true",
        "ignorecase": "false",
        # The inode and change time of a file may differ from mount to mount: git must not read it again.
        "checkStat": "minimal",
        "trustctime": "false",
        # Every change of a directory of an overlay gives it a new mtime, and a new base a new index: so git need not
        # list the directories that are as they were.
        "untrackedCache": "true",
        "splitIndex": "false",
        # What the layer shows is what a checkout without these gives.
        "autocrlf": "false",
        "eol": "lf",
    }
    origin = {"url": source.location.remote, "fetch": "+refs/heads/*:refs/remotes/origin/*"}
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


def _head_in_files(gitdir: str) -> bytes | None:
    """The commit of HEAD as plain files say it, without starting git; None where they do not."""
    try:
        with open(os.path.join(gitdir, "HEAD"), "rb") as file:
            text = file.read(4096).strip()
        if text.startswith(b"ref: refs/heads/") and b".." not in text:
            name = text.removeprefix(b"ref: ")
            try:
                with open(os.path.join(os.fsencode(gitdir), name), "rb") as file:
                    text = file.read(64).strip()
            except FileNotFoundError:
                with open(os.path.join(gitdir, "packed-refs"), "rb") as file:
                    before, found, _ = file.read().partition(b" %b\n" % name)
                text = before[-40:] if found else b""
    except OSError:
        return None
    return bytes.fromhex(text.decode()) if _HEX.fullmatch(text) else None


def _read_oid(path: str) -> bytes:
    with open(path, "rb") as file:
        text = file.read(64).strip()
    if not _HEX.fullmatch(text):
        raise ClivefsError(
            "this file does not name a commit", place=path, remedy="Detach the entry and attach it again."
        )
    return bytes.fromhex(text.decode())
