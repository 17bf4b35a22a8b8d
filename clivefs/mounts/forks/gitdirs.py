"""The git working trees of a fork: each has a gitdir of its own, like a linked worktree's. Format 1.

    UPPER/git/places     JSON: the path below the fork (in Latin-1) to the number of its gitdir
    UPPER/git/NUMBER/    an ordinary repository; its `.git` file is shown by the fork, not kept in it
    UPPER/git/NUMBER.start       JSON: refs and HEAD when the fork was made
    UPPER/git/NUMBER.borrowed    whose objects it sees, as in objects/info/alternates
    UPPER/git/NUMBER.held-NAME   its index, or a file that goes with that, for as long as nobody has read its `.git`
                                 file: a hard link to the live view's, which git never writes to but replaces. So
                                 making a fork takes no longer where the index is large, and most forks of `run` never
                                 need one. What the fork gets is a copy, as whatever runs in it may write there.
    UPPER/git/NUMBER.unbuilt     instead, where the live view's has no index yet: it is made when it is asked for

A sandboxed command can write to UPPER/git/NUMBER and nowhere else here, and git runs what it finds in a configuration:
so we only read its refs and objects, through a repository of our own (`_shown`).

Branches, HEAD and index are those of the live view's gitdir when the fork was made, and the fork's own from then on;
the source is never written. Objects are borrowed (`objects/info/alternates`). Commits that a fork has made are kept
when it is merged or dropped, as `refs/clive/forks/NAME/BRANCH` in a repository of the store.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from clivefs.base.syscalls import RENAME_NOREPLACE, make_directories, rename_at
from clivefs.mounts.git.command import GitCommand, GitFailed, alternates_text, config_text
from clivefs.mounts.git.index import StatOf, build_index
from clivefs.mounts.host.calls import DIRECTORY_FLAGS
from clivefs.objects.errors import RepositoryError
from clivefs.objects.repository import Repository

NAME = "git"
_PLACES = "places"
_START = ".start"
_BORROWED = ".borrowed"
_HELD = ".held-"
_UNBUILT = ".unbuilt"
_NEW = ".new-"
_COPIED = (("info", "exclude"), ("info", "attributes"), ("info", "sparse-checkout"))
_COPIED_BYTES_MAX = 64 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NEW_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WORKTREE = re.compile(rb"(?im)^\s*worktree\s*=")
_HOOKS = re.compile(rb"(?im)^\s*hookspath\s*=")
_HEAD = re.compile(rb"(?:ref: refs/heads/(?!\.invalid$)[^\0\n]+|[0-9a-f]{40})\n")
_HEAD_BYTES_MAX = 4096
_NAMES_MAX = 1000


class Source(NamedTuple):
    """The git working tree of a live view that a fork gets one like."""

    gitdir: str
    also: Sequence[str] = ()
    """Further objects directories."""
    unbuilt: bool = False
    """It has no index yet: that would be made of its HEAD when somebody reads its `.git`."""


class Kept(NamedTuple):
    """A commit that was made in a fork, and where it is now."""

    entry: str
    """The mount entry; empty for the workspace's own directory."""
    ref: str
    commit: bytes
    repository: str


def make(upper: str, sources: Mapping[str, Source]) -> None:
    """Make the gitdirs of a new fork. *sources*: by path in the workspace what the live view has there. A repository
    that cannot be read is left out. For threads."""
    directory = os.path.join(upper, NAME)
    os.mkdir(directory, 0o700)
    places: dict[str, int] = {}
    for number, (path, source) in enumerate(sorted(sources.items())):
        target = os.path.join(directory, str(number))
        try:
            _populate(target, Repository(source.gitdir), source.also)
        except (RepositoryError, OSError, GitFailed):
            shutil.rmtree(target, ignore_errors=True)
            continue
        if source.unbuilt and not _held(target):
            _write(directory, f"{number}{_UNBUILT}", b"")
        places[os.fsencode(path).decode("latin-1")] = number
    with open(os.path.join(directory, _PLACES), "x", encoding="utf-8") as file:
        json.dump(places, file)


def places(upper: str) -> dict[bytes, str]:
    """The gitdirs of a fork by path."""
    directory = os.path.join(upper, NAME)
    try:
        with open(os.path.join(directory, _PLACES), "rb") as file:
            found = json.load(file)
    except (FileNotFoundError, ValueError):
        return {}
    return {path.encode("latin-1"): os.path.join(directory, str(int(number))) for path, number in found.items()}


def directories(upper: str) -> list[str]:
    """The gitdirs of a fork: what git has to write to."""
    return sorted(places(upper).values())


NO_REPOSITORY = b"gitdir: /nonexistent/this fork has no repository of its own\n"
"""The content of a `.git` file above all forks, which leads nowhere: git says that much, and looks no further up."""


def dot_git_content(gitdir: str) -> bytes:
    """The content of the `.git` file that leads to *gitdir*."""
    return b"gitdir: " + os.fsencode(gitdir) + b"\n"


def _populate(path: str, source: Repository, also: Sequence[str]) -> None:
    for part in (("objects", "info"), ("objects", "pack"), ("refs", "heads"), ("refs", "tags"), ("info",)):
        make_directories(os.path.join(path, *part))
    refs = source.refs()
    head = _head_of(source)
    lines = [f"{oid.hex()} {name}\n" for name, oid in sorted(refs.items()) if not name.startswith("refs/clive/")]
    _write(path, "packed-refs", os.fsencode("".join(lines)))
    _write(path, "HEAD", os.fsencode(head))
    borrowed = b"".join(dict.fromkeys(map(alternates_text, (*also, source.objects))))
    _write(path, os.path.join("objects", "info", "alternates"), borrowed)
    with open(path + _BORROWED, "xb") as file:
        file.write(borrowed)
    _write(path, "config", _config(source))
    for names in _COPIED:
        _copy(os.path.join(source.commondir, *names), os.path.join(path, *names))
    _copy(os.path.join(source.commondir, "shallow"), os.path.join(path, "shallow"))
    for name in os.listdir(source.gitdir):
        if name == "index" or name.startswith("sharedindex."):
            _hold(source.gitdir, name, path)
    _remember(path, refs, head)


def _head_of(source: Repository) -> str:
    """What HEAD says; asked of git only where it is no plain file, or refs are kept in another way."""
    with suppress(OSError):
        with open(os.open(os.path.join(source.gitdir, "HEAD"), _FLAGS), "rb") as file:
            text = file.read(_HEAD_BYTES_MAX)
        if _HEAD.fullmatch(text):
            return os.fsdecode(text)
    branch = source.head_branch()
    return f"ref: {branch}\n" if branch is not None else source.resolve("HEAD").hex() + "\n"


def _hold(directory: str, name: str, path: str) -> None:
    """Hold the file *name* of a gitdir for the fork's at *path* until `finish`; copied where links cannot be made."""
    above, number = os.path.split(path)
    fds: list[int] = []
    try:
        with suppress(OSError):  # it is on another filesystem, say
            fds.append(os.open(os.path.join(directory, name), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC))
            fds.append(os.open(above, DIRECTORY_FLAGS))
            if stat.S_ISREG(os.fstat(fds[0]).st_mode):
                # With a descriptor of the target: without one, link(2) would not follow this.
                os.link(f"/proc/self/fd/{fds[0]}", f"{number}{_HELD}{name}", dst_dir_fd=fds[1], follow_symlinks=True)
                return
    finally:
        for fd in fds:
            os.close(fd)
    _copy(os.path.join(directory, name), os.path.join(path, name))


def is_finished(gitdir: str) -> bool:
    """Whether the fork's *gitdir* has all that it is to have."""
    return not _held(gitdir) and not os.path.lexists(gitdir + _UNBUILT)


def finish(gitdir: str, stat_of: StatOf, scratch: str) -> None:
    """Give the fork's *gitdir* the index that is held for it, or that is to be made for it, of what *stat_of* tells of
    the files as they were when the fork was made. *scratch*: a directory for temporary files. For threads, also several
    at once. OSError, RepositoryError; ClivefsError where there are too many files."""
    directory, number = os.path.split(gitdir)
    fd = os.open(directory, DIRECTORY_FLAGS)
    try:
        target = os.open(number, DIRECTORY_FLAGS, dir_fd=fd)
        try:
            for held in _held(gitdir):
                _put_held(fd, held, number, target)
            if os.path.lexists(gitdir + _UNBUILT):
                _put_first(fd, number, target, _first_index(gitdir, stat_of, scratch))
        finally:
            os.close(target)
    finally:
        os.close(fd)


def _first_index(gitdir: str, stat_of: StatOf, scratch: str) -> bytes | None:
    """The index of what HEAD was when the fork was made; None where that had no commit."""
    start = _started(gitdir)
    head = start["head"].strip()
    oid = start["refs"].get(_noted(head.removeprefix("ref: "))) if head.startswith("ref: ") else head
    if oid is None:
        return None
    with _shown(gitdir, scratch) as shown:
        repository = Repository(shown)
        return build_index(repository, repository.read_commit(bytes.fromhex(oid)).tree, stat_of).content


def _held(gitdir: str) -> list[str]:
    """The names of what is held: the index, which needs the others, last."""
    directory, number = os.path.split(gitdir)
    start = number + _HELD
    return sorted((name for name in os.listdir(directory) if name.startswith(start)), reverse=True)


def _put_held(dir_fd: int, held: str, number: str, target_fd: int) -> None:
    with _new(dir_fd, number) as new:
        _copy(held, new, dir_fd)
        _put(dir_fd, new, target_fd, held.removeprefix(number + _HELD))
    with suppress(FileNotFoundError):
        os.unlink(held, dir_fd=dir_fd)


def _put_first(dir_fd: int, number: str, target_fd: int, content: bytes | None) -> None:
    if content is not None:
        with _new(dir_fd, number) as new:
            with open(os.open(new, _NEW_FLAGS, 0o666, dir_fd=dir_fd), "wb") as file:
                file.write(content)
            _put(dir_fd, new, target_fd, "index")
    with suppress(FileNotFoundError):
        os.unlink(number + _UNBUILT, dir_fd=dir_fd)


@contextlib.contextmanager
def _new(dir_fd: int, number: str) -> Iterator[str]:
    """The name of a new file, where no sandboxed command can write; removed unless `_put` has put it in its place."""
    name = f"{number}{_NEW}{os.urandom(6).hex()}"
    try:
        yield name
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=dir_fd)


def _put(dir_fd: int, new: str, target_fd: int, name: str) -> None:
    """Put a new file into a gitdir, by a rename that follows nothing."""
    with suppress(FileExistsError, FileNotFoundError):  # another was quicker, or the fork has made its own
        rename_at(dir_fd, os.fsencode(new), target_fd, os.fsencode(name), RENAME_NOREPLACE)


def _config(source: Repository) -> bytes:
    """The source's settings, but for what a fork must have otherwise."""
    own = {
        "bare": "false",
        # The inode and change time of a file differ from the live view's: git must not read all of them again.
        "checkStat": "minimal",
        "trustctime": "false",
        "fsmonitor": "false",
    }
    with open(os.path.join(source.commondir, "config"), "rb") as file:
        text = file.read(_COPIED_BYTES_MAX)
    if _WORKTREE.search(text):
        # Of a submodule, say: it would lead git back to the live files.
        text = b"".join(line for line in text.splitlines(keepends=True) if not _WORKTREE.match(line))
    hooks = os.path.join(source.commondir, "hooks")
    if not _HOOKS.search(text) and os.path.isdir(hooks):
        own["hooksPath"] = hooks
    added = config_text({"core": own, "gc": {"auto": "0"}, "maintenance": {"auto": "false"}})
    return text.rstrip(b"\n") + b"\n" + os.fsencode(added)


def _remember(path: str, refs: Mapping[str, bytes], head: str) -> None:
    branches = {_noted(name): oid.hex() for name, oid in refs.items()}
    with open(path + _START, "w", encoding="utf-8") as file:
        json.dump({"refs": branches, "head": head}, file)


def _noted(ref: str) -> str:
    """The name of a ref as `_remember` notes it."""
    return os.fsencode(ref).decode("latin-1")


def _started(gitdir: str) -> dict[str, Any]:
    """What `_remember` has noted."""
    with open(gitdir + _START, "rb") as file:
        found: dict[str, Any] = json.load(file)
    return found


def _write(path: str, name: str, content: bytes) -> None:
    with open(os.path.join(path, name), "xb") as file:
        file.write(content)


def _copy(source: str, target: str, dir_fd: int | None = None) -> None:
    """Copy a plain file with its time: git goes by that of the index. Names are below *dir_fd*, if there is one."""
    with (
        suppress(FileNotFoundError),
        open(os.open(source, _FLAGS, dir_fd=dir_fd), "rb") as file,
        open(os.open(target, _NEW_FLAGS, 0o666, dir_fd=dir_fd), "wb") as copy,
    ):
        shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        st = os.fstat(file.fileno())
        os.utime(copy.fileno(), ns=(st.st_atime_ns, st.st_mtime_ns))


# What was committed


def keep(name: str, entry: str, gitdir: str, target: Callable[[], str], git: GitCommand, scratch: str) -> list[Kept]:
    """Have the repository *target* keep what was committed in the fork *name* at *entry*; it is not asked for where
    that is nothing. *scratch*: a directory for temporary files. For threads. GitFailed, RepositoryError, OSError."""
    with _shown(gitdir, scratch) as shown:
        made = _commits(gitdir, Repository(shown))
        return _keep(name, entry, made, shown, target(), git) if made else []


def _commits(gitdir: str, shown: Repository) -> dict[str, bytes]:
    """The branches (by their short names; a detached HEAD is `HEAD`) that are not what they were when the fork was
    made."""
    start = _started(gitdir)
    refs = {_noted(name): oid.hex() for name, oid in shown.refs().items()}
    found = {
        os.fsdecode(name.removeprefix("refs/heads/").encode("latin-1")): bytes.fromhex(oid)
        for name, oid in refs.items()
        if name.startswith("refs/heads/") and start["refs"].get(name) != oid
    }
    if shown.head_branch() is None:
        head = shown.resolve("HEAD")
        if start["head"] != head.hex() + "\n" and head not in found.values():
            found["HEAD"] = head
    return found


def _keep(name: str, entry: str, made: Mapping[str, bytes], shown: str, target: str, git: GitCommand) -> list[Kept]:
    there = Repository(target).refs()
    kept: list[Kept] = []
    specs: list[str] = []
    for branch, oid in sorted(made.items()):
        ref = _free(f"refs/clive/forks/{name}/{branch}", oid, there, shown, git)
        if there.get(ref) != oid:
            specs.append(f"+{oid.hex()}:{ref}")
        kept.append(Kept(entry, ref, oid, target))
    if specs:
        arguments = ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--", shown, *specs]
        git.run(arguments, git_dir=target, config=("uploadpack.allowAnySHA1InWant=true",))
    return kept


@contextlib.contextmanager
def _shown(gitdir: str, scratch: str) -> Iterator[str]:
    """A repository with the refs and objects of *gitdir*, and nothing else of it: no settings, and only objects
    borrowed that we know of. RepositoryError where something in it is no plain file: who opens a pipe waits for
    ever."""
    _check_plain(gitdir)
    with tempfile.TemporaryDirectory(prefix="gitdir-", dir=scratch) as path:
        make_directories(os.path.join(path, "objects", "info"))
        os.symlink(os.path.join(gitdir, "refs"), os.path.join(path, "refs"))
        for name in os.listdir(os.path.join(gitdir, "objects")):
            if name != "info":
                os.symlink(os.path.join(gitdir, "objects", name), os.path.join(path, "objects", name))
        _copy(gitdir + _BORROWED, os.path.join(path, "objects", "info", "alternates"))
        for name in ("HEAD", "packed-refs", "shallow"):
            _copy(os.path.join(gitdir, name), os.path.join(path, name))
        settings = {"core": {"repositoryformatversion": "0", "bare": "true"}, "gc": {"auto": "0"}}
        _write(path, "config", os.fsencode(config_text(settings)))
        yield path


def _check_plain(gitdir: str) -> None:
    top = os.path.realpath(gitdir)
    waiting = [top]
    while waiting:
        with os.scandir(waiting.pop()) as listing:
            for entry in listing:
                if entry.is_symlink():
                    plain = os.path.realpath(entry.path).startswith(top + os.sep)
                elif entry.is_dir():
                    plain = True
                    waiting.append(entry.path)
                else:
                    plain = entry.is_file()
                if not plain or entry.name == "reftable":
                    what = os.path.relpath(entry.path, top)
                    raise RepositoryError(f"its {what} is not what is expected there", place=gitdir)


def _free(ref: str, oid: bytes, there: Mapping[str, bytes], gitdir: str, git: GitCommand) -> str:
    """*ref*, or a name like it where that has what another fork of the name has committed."""
    found = ref
    for number in range(2, _NAMES_MAX):
        known = there.get(found)
        if known is None or known == oid:
            return found
        try:
            git.run(["merge-base", "--is-ancestor", known.hex(), oid.hex()], git_dir=gitdir)
        except GitFailed:
            found = f"{ref}-{number}"
        else:
            return found
    return found


def make_keeper(path: str, objects: Sequence[str]) -> str:
    """The bare repository at *path*, made if need be, which borrows from the objects directories *objects*. For
    threads."""
    if not os.path.isdir(path):
        temporary = f"{path}.{os.getpid()}.new"
        shutil.rmtree(temporary, ignore_errors=True)
        for part in (("objects", "info"), ("objects", "pack"), ("refs",)):
            make_directories(os.path.join(temporary, *part))
        settings = {"core": {"repositoryformatversion": "0", "bare": "true"}, "gc": {"auto": "0"}}
        _write(temporary, "config", os.fsencode(config_text(settings)))
        _write(temporary, "HEAD", b"ref: refs/heads/none\n")
        os.rename(temporary, path)
    borrow(path, objects)
    return path


def borrow(gitdir: str, objects: Sequence[str]) -> None:
    """Let the fork's *gitdir* see the objects of these directories too. For threads, one at a time. NotADirectoryError
    or ELOOP where *gitdir* leads elsewhere: a sandboxed command can write there, and shall not have us write where it
    cannot."""
    fd = os.open(os.path.dirname(gitdir), DIRECTORY_FLAGS)
    try:
        _add_lines(fd, os.path.basename(gitdir) + _BORROWED, objects)
        for name in (os.path.basename(gitdir), "objects", "info"):
            below = os.open(name, DIRECTORY_FLAGS, dir_fd=fd)
            os.close(fd)
            fd = below
        _add_lines(fd, "alternates", objects)
    finally:
        os.close(fd)


def borrowed(gitdir: str) -> list[str]:
    """The objects directories that the fork's *gitdir* sees."""
    with open(gitdir + _BORROWED, "rb") as file:
        return [os.fsdecode(line) for line in file.read().splitlines() if not line.startswith(b'"')]


def _add_lines(dir_fd: int, name: str, objects: Sequence[str]) -> None:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, 0o600, dir_fd=dir_fd), "r+b", buffering=0) as file:
        known = file.readall().splitlines(keepends=True)
        wanted = [line for line in map(alternates_text, objects) if line not in known]
        if wanted:
            file.write(b"".join(wanted))
