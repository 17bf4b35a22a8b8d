"""`overlay commit`: what an entry shows as a git commit on top of what it is mounted at."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import trio

from clivefs.base.errors import ClivefsError
from clivefs.base.syscalls import make_directories
from clivefs.daemon.overlays import reading, target
from clivefs.daemon.overlays.target import Based, Target
from clivefs.daemon.workspaces import Workspaces
from clivefs.mounts.edits.commit import Committed, branch_tip, commit_edits, import_tree, point_head
from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.edits.ignored import ignored
from clivefs.mounts.edits.plan import shown_files, tree_changes
from clivefs.mounts.git.command import GitCommand, alternates_text
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.space import Reader

_COMMITS = "commits"


class Committing:
    """Methods are for the loop's thread."""

    def __init__(self, workspaces: Workspaces) -> None:
        self._workspaces = workspaces

    async def commit(
        self, there: Target, message: str, branch: str | None, environment: Mapping[str, str], *, dry_run: bool
    ) -> dict[str, Any]:
        """Commit patches and edits of an entry; *environment*: git's variables of who asks."""
        target.based(there, "commit")
        target.whole_entry(there, "commit")
        if not message.strip():
            raise ClivefsError("a commit needs a message", place=there.path, remedy="give one with -m")
        async with there.live.entry_lock(there.path):
            based = target.based(target.anew(self._workspaces, there), "commit")
            edits = await reading.edits(based.target.tree, self._workspaces.scratch())
            result = await trio.to_thread.run_sync(
                lambda: self._commit(based, dict(edits.files), message, branch, environment, dry_run)
            )
        return {**result, "path": there.path, "dry_run": dry_run}

    def _commit(
        self,
        based: Based,
        edits: dict[bytes, FileVersion | None],
        message: str,
        branch: str | None,
        environment: Mapping[str, str],
        dry_run: bool,
    ) -> dict[str, Any]:
        git = GitCommand(environment={**os.environ, **environment})
        patched = shown_files(tree_changes(based.reader, based.base, based.patched))
        git_dir = based.mounted.git_dir
        prefix = ""
        if git_dir is not None:
            path, base, parent = git_dir.path, git_dir.base, git_dir.head()
            if git_dir.git_at_work():
                raise ClivefsError("git is at work in it", place=based.target.path, remedy="wait until it is done")
            if parent is None:
                raise ClivefsError("HEAD is on a branch without commits", place=based.target.path)
        else:
            path, base, branch = self._repository(based, branch, git)
            parent = branch_tip(git, path, branch) or base
            prefix = based.mounted.resolved.subdir if based.mounted.resolved is not None else ""
        left_out = ignored(
            path, based.reader, based.base, {**patched, **edits}, scratch=self._workspaces.scratch(), git=git
        )
        files = {**patched, **{each: file for each, file in edits.items() if each not in left_out}}
        facts: dict[str, Any] = {
            "files": [os.fsdecode(each) for each in sorted(files)],
            "ignored": [os.fsdecode(each) for each in sorted(left_out)],
            "git_dir": path,
            "branch": branch,
            "commit": None,
        }
        if dry_run:
            return facts
        top = os.fsencode(prefix) + b"/" if prefix else b""
        made = commit_edits(
            path,
            base=base,
            parent=parent,
            edits={top + each: file for each, file in files.items()},
            message=message,
            branch=branch,
            git=git,
        )
        if git_dir is None:
            point_head(git, path, branch or "main")
        return {**facts, **_tell(git, path, made)}

    def _repository(self, based: Based, branch: str | None, git: GitCommand) -> tuple[str, bytes, str]:
        """(repository, base commit, branch) for an entry that has no gitdir of its own; the repository is made."""
        mounted = based.mounted
        places = based.target.live.assembly.surroundings()
        top = os.path.join(os.fspath(places.store.path), _COMMITS)
        make_directories(top)
        path = os.path.join(top, places.upper_name(mounted.entry) + ".git")
        if mounted.resolved is not None:
            source, resolved = mounted.source, mounted.resolved
            assert source is not None
            if not os.path.isdir(path):
                git.run(["init", "--quiet", "--bare", path])
            lines = b"".join(alternates_text(each) for each in source.objects_dirs)
            write_whole(os.path.join(path, "objects", "info", "alternates"), lines)
            return path, resolved.commit, branch or resolved.branch or "main"
        published = mounted.published
        assert published is not None
        reader: Reader = places.store
        base = import_tree(path, reader, published.tree, published.layer.decode("utf-8", "replace"), git=git)
        return path, base, branch or published.version or "main"


def _tell(git: GitCommand, path: str, made: Committed) -> dict[str, Any]:
    ref = made.ref
    if ref == "HEAD":
        named = git.run(["rev-parse", "--symbolic-full-name", "HEAD"], git_dir=path).strip().decode()
        ref = named if named.startswith("refs/heads/") else None
    return {"commit": made.commit.hex(), "branch": ref.removeprefix("refs/heads/") if ref else None}
