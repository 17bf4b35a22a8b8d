"""Which new files are no part of a patch or a commit: what git's ignore rules name (those of the entry and the user's
own), and what Python caches where it runs a module. A file that the base has is never left out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Iterable, Mapping

from clivefs.base.syscalls import make_directories
from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor, check_path

_NAME = b".gitignore"
_CACHE = b"__pycache__"


def ignored(
    git_dir: str,
    reader: Reader | JoinedObjects,
    tree: bytes,
    edits: Mapping[bytes, FileVersion | None],
    *,
    scratch: str,
    git: GitCommand | None = None,
) -> frozenset[bytes]:
    """Of *edits* those files that are not in *tree* and are to be left out, by the rules of the tree and the edits. For
    threads."""
    editor = TreeEditor(reader, tree)
    new = [path for path, file in edits.items() if file is not None and editor.get(path) is None]
    rules = {}
    for path in rules_for(new):
        edit = edits.get(path)
        version = editor.get(path)
        if edit is not None:
            rules[path] = edit.content
        elif path not in edits and version is not None:
            rules[path] = blob_content(reader, version.oid)
    return ignored_paths(git_dir, new, rules, scratch=scratch, git=git)


def ignored_paths(
    git_dir: str | None,
    new: Collection[bytes],
    rules: Mapping[bytes, bytes],
    *,
    scratch: str,
    git: GitCommand | None = None,
) -> frozenset[bytes]:
    """Of the files *new* those to be left out. *rules*: the content of each file of `rules_for`; *git_dir*: the
    repository whose `info/exclude` counts. For threads."""
    caches = frozenset(path for path in new if _CACHE in path.split(b"/")[:-1])
    asked = [path for path in new if path not in caches and check_path(path) is None]
    if not asked:
        return caches
    with tempfile.TemporaryDirectory(prefix="ignored-", dir=scratch) as directory:
        work = os.path.join(directory, "work")
        os.mkdir(work)
        for path, content in rules.items():
            place = os.path.join(os.fsencode(work), path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(content)
        try:
            output = (git or GitCommand()).run(
                [f"--work-tree={work}", "check-ignore", "--no-index", "-z", "--stdin"],
                git_dir=git_dir or _empty_repository(directory),
                cwd=work,
                stdin=b"".join(path + b"\0" for path in asked),
                config=("core.bare=false",),
            )
        except GitFailed as error:
            if error.status != 1:  # 1: none is
                raise
            return caches
    return caches | {path for path in output.split(b"\0") if path}


def rules_for(paths: Iterable[bytes]) -> set[bytes]:
    """The `.gitignore` files that bear on *paths*, if there are such."""
    found: set[bytes] = set()
    for path in paths:
        found.add(_NAME)
        head = path.rpartition(b"/")[0]
        while head:
            found.add(head + b"/" + _NAME)
            head = head.rpartition(b"/")[0]
    return found


def _empty_repository(directory: str) -> str:
    """A repository with nothing in it, which `check-ignore` must have."""
    path = os.path.join(directory, "git")
    for each in ("objects", "refs"):
        make_directories(os.path.join(path, each))
    with open(os.path.join(path, "HEAD"), "x") as file:
        file.write("ref: refs/heads/main\n")
    return path
