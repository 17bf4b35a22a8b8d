"""Which new files git's ignore rules keep out of a commit: the rules of the tree and the edits, and the user's own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping

from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import TreeEditor

_NAME = b".gitignore"


def ignored(
    git_dir: str,
    reader: Reader | JoinedObjects,
    tree: bytes,
    edits: Mapping[bytes, FileVersion | None],
    *,
    scratch: str,
    git: GitCommand | None = None,
) -> frozenset[bytes]:
    """Of *edits* those files that are not in *tree* and that git would ignore. For threads."""
    git = git or GitCommand()
    editor = TreeEditor(reader, tree)
    new = [path for path, file in edits.items() if file is not None and editor.get(path) is None]
    if not new:
        return frozenset()
    with tempfile.TemporaryDirectory(prefix="ignored-", dir=scratch) as directory:
        for path in _rules_for(new):
            edit = edits.get(path)
            version = editor.get(path)
            if edit is not None:
                content = edit.content
            elif path not in edits and version is not None:
                content = blob_content(reader, version.oid)
            else:
                continue
            place = os.path.join(os.fsencode(directory), path)
            os.makedirs(os.path.dirname(place), exist_ok=True)
            with open(place, "wb") as file:
                file.write(content)
        try:
            output = git.run(
                [f"--work-tree={directory}", "check-ignore", "--no-index", "-z", "--stdin"],
                git_dir=git_dir,
                cwd=directory,
                stdin=b"".join(path + b"\0" for path in new),
                config=("core.bare=false",),
            )
        except GitFailed as error:
            if error.status != 1:  # 1: none is
                raise
            return frozenset()
    return frozenset(path for path in output.split(b"\0") if path)


def _rules_for(paths: Iterable[bytes]) -> set[bytes]:
    """The `.gitignore` files that bear on *paths*."""
    found = {_NAME}
    for path in paths:
        head = path.rpartition(b"/")[0]
        while head:
            found.add(head + b"/" + _NAME)
            head = head.rpartition(b"/")[0]
    return found
