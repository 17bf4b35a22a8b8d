"""Whether a private gitdir is worth anything once its mount entry is gone: whether it has anything that its making, or
the following of a ref, did not put there. Where that is not sure the answer is yes.

Worth something: objects of its own (commits, also those that only a reflog or a stash leads to), HEAD elsewhere than
where it began, branches, tags or remotes of the user, something staged, settings, hooks; and edits that were kept over
the entry, as the gitdir says which commit they were made on.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.head import read_head
from clivefs.mounts.git.move import BASE
from clivefs.mounts.overlay.upper import has_edits
from clivefs.objects.repository import Repository

MODULES = "modules"
_MADE = frozenset(
    ("config", "objects", "refs", "info", "packed-refs", "shallow", "HEAD", "FETCH_HEAD", "ORIG_HEAD", "index", "logs")
)
_MADE_INFO = frozenset(("attributes",))
_MADE_OBJECTS_INFO = frozenset(("alternates", "packs", "commit-graph"))
_SETTINGS = re.compile(
    r"core\.(repositoryformatversion|bare|filemode|ignorecase|symlinks|checkstat|trustctime|untrackedcache|splitindex"
    r"|autocrlf|eol)|remote\.origin\.(url|fetch|promisor|partialclonefilter)|remote\.promisor\.(url|promisor)"
    r"|extensions\.partialclone|branch\..*\.(remote|merge)|index\.version|gc\.auto|maintenance\.auto",
    re.DOTALL,
)
_DEPTH_MAX = 20


def has_work(gitdir: str, upper: str, sources: Mapping[str, bytes], git: GitCommand) -> bool:
    """Whether the private gitdir, those of its submodules, or the upper directory of its entry have anything of the
    user's. *sources*: the tags of the repositories that it may borrow from. For threads."""
    try:
        return has_edits(upper) or any(_is_used(each, sources, git) for each in gitdirs_in(gitdir))
    except (OSError, ClivefsError, GitFailed, ValueError):
        return True


def gitdirs_in(gitdir: str) -> Iterator[str]:
    """*gitdir*, and those of submodules in it; also what is in their place and is none."""
    yield gitdir
    yield from _modules(os.path.join(gitdir, MODULES), 0)


def _modules(directory: str, depth: int) -> Iterator[str]:
    if not os.path.isdir(directory):
        return
    for name in os.listdir(directory):
        path = os.path.join(directory, name)
        if os.path.islink(path) or depth >= _DEPTH_MAX or os.path.lexists(os.path.join(path, "HEAD")):
            yield path
            yield from _modules(os.path.join(path, MODULES), depth + 1) if depth < _DEPTH_MAX else ()
        elif os.path.isdir(path):
            yield from _modules(path, depth + 1)
        else:
            yield path


def _is_used(gitdir: str, sources: Mapping[str, bytes], git: GitCommand) -> bool:
    with open(os.path.join(gitdir, BASE), "rb") as file:
        base = bytes.fromhex(file.read(64).strip().decode())
    if not (
        (_MADE | {BASE, MODULES}).issuperset(os.listdir(gitdir))
        and _MADE_INFO.issuperset(os.listdir(os.path.join(gitdir, "info")))
        and not _has_objects(os.path.join(gitdir, "objects"))
    ):
        return True
    head = read_head(gitdir)
    if head is None or head.commit != base:
        return True
    packed = _packed(gitdir)
    for name, oid in Repository(gitdir).refs().items():
        is_head = name == head.ref and oid == base
        is_tag = name.startswith("refs/tags/") and oid in (packed.get(name), sources.get(name))
        if not (is_head or is_tag or name.startswith("refs/remotes/origin/")):
            return True
    named = git.run(["config", "-z", "--file", os.path.join(gitdir, "config"), "--name-only", "--list"], git_dir=gitdir)
    if not all(_SETTINGS.fullmatch(os.fsdecode(name)) for name in named.split(b"\0") if name):
        return True
    if os.path.lexists(os.path.join(gitdir, "index")):
        try:
            git.run(["diff-index", "--cached", "--quiet", base.hex(), "--"], git_dir=gitdir)
        except GitFailed:
            return True
    return False


def _has_objects(objects: str) -> bool:
    """Whether an objects directory has objects, or anything that is not known."""
    for name in os.listdir(objects):
        there = os.listdir(os.path.join(objects, name))
        if there and not (name == "info" and _MADE_OBJECTS_INFO.issuperset(there)):
            return True
    return False


def _packed(gitdir: str) -> dict[str, bytes]:
    """The refs in packed-refs: those that the making put there."""
    with open(os.path.join(gitdir, "packed-refs"), "rb") as file:
        lines = (line.split(b" ", 1) for line in file.read().splitlines() if line[:1] not in (b"#", b"^"))
        return {os.fsdecode(name): bytes.fromhex(oid.decode()) for oid, name in lines}
