"""Taking a mounted ref's git working tree back to where it was before a rebase, and whether it can be moved at all.

It moves forth with the tree that is shown (`git.move`). Back, HEAD (or the branch that it is on) and the base go to
the old commit; the index goes away, and is made anew of HEAD when git next looks. Every step may be taken again after
a crash: the record of the rebase says that it was under way.
"""

from __future__ import annotations

import os
from contextlib import suppress

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import FAULTS
from clivefs.mounts.edits.journal import GitMove
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.move import BASE, recover

_WHO = {"GIT_COMMITTER_NAME": "clivefs", "GIT_COMMITTER_EMAIL": "clivefs@localhost"}


def check(git_dir: GitDir, path: str) -> None:
    """ClivefsError where work of the user in the working tree at *path* stands in the way of moving it."""
    if git_dir.head() != git_dir.base:
        raise ClivefsError(
            "HEAD has gone on from the commit that is mounted",
            place=path,
            remedy="Rebase or merge your commits with git, in the mount; or `git reset --soft` to the mounted commit.",
        )
    if git_dir.git_at_work():
        raise ClivefsError("git is at work in it", place=path, remedy="Wait for it; or remove a stale index.lock.")
    if git_dir.has_index():
        try:
            GitCommand().run(["diff-index", "--cached", "--quiet", "HEAD", "--"], git_dir=git_dir.path)
        except GitFailed as error:
            if error.status != 1:
                raise
            raise ClivefsError(
                "changes are staged in it", place=path, remedy="`git reset` unstages them; the files stay as they are."
            ) from None


def back(step: GitMove) -> None:
    """Let HEAD and the base be at `step.old` again. Harmless where they are. ClivefsError where HEAD has gone on."""
    recover(step.gitdir)  # of a move that a crash cut short either all is done, or nothing
    base = os.path.join(step.gitdir, BASE)
    with open(base, encoding="ascii") as file:
        if file.read().strip() == step.old:
            return
    git = GitCommand()
    head = git.run(["rev-parse", "--verify", "HEAD"], git_dir=step.gitdir).strip().decode()
    if head not in (step.old, step.new):
        raise ClivefsError(
            f"HEAD is at {head[:12]}, and the working tree stands on {step.new[:12]}",
            place=step.gitdir,
            remedy=f"Put your commits on a branch, and go back: `git switch --detach {step.new[:12]}`.",
        )
    if head != step.old:
        git.run(
            ["update-ref", "-m", "clivefs: rebase taken back", "HEAD", step.old, step.new],
            git_dir=step.gitdir,
            variables=_WHO,
        )
    FAULTS.hit("rebase.head-back")
    with suppress(FileNotFoundError):
        os.unlink(os.path.join(step.gitdir, "index"))
    write_whole(base, step.old.encode() + b"\n")
