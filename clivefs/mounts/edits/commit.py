"""A user's edits as a git commit, made by stock git in a repository that stock git reads.

The objects and trees are written by `git fast-import` (which reads only the trees on the way to a change, so that
partial clones need fetch nothing), the commit by `git commit-tree` as the user, and the branch moves by
compare-and-swap. Nothing is pushed here, and no hook runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from clivefs.base.errors import ClivefsError
from clivefs.mounts.edits.diff import Version as FileVersion
from clivefs.mounts.git.command import GitCommand, GitFailed, check_argument
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import Version, differences
from clivefs.objects.encode import EMPTY_TREE, MODE_GITLINK

_ZERO = "0" * 40
_IDENTITY_REMEDY = 'Tell git who you are: `git config --global user.name "..."` and `user.email`.'


@dataclass(frozen=True, slots=True)
class Committed:
    """A commit that was made. `ref` leads to it; None: only its name does."""

    commit: bytes
    tree: bytes
    ref: str | None


def commit_edits(
    git_dir: str,
    *,
    base: bytes,
    parent: bytes,
    edits: Mapping[bytes, FileVersion | None],
    message: str,
    branch: str | None = None,
    git: GitCommand | None = None,
) -> Committed:
    """Commit the tree of the commit *base* with *edits* made, on top of *parent*, in the repository *git_dir*.

    With *branch*, `refs/heads/BRANCH` leads to it: it must not exist, or be at *parent*. Without, HEAD moves from
    *parent*. The index follows if there is one. *git* has the user's environment (and so name, mail, signing).
    ClivefsError when a ref is elsewhere, GitFailed. Nothing but unreachable objects is left behind then.
    """
    git = git or GitCommand()
    ref = _branch_ref(git, git_dir, branch) if branch is not None else "HEAD"
    if ref == _head_ref(git, git_dir) and os.path.lexists(os.path.join(git_dir, "index")):
        ref = "HEAD"  # its branch: the index goes with it
    old = _current(git, git_dir, ref)
    if old is not None and old != parent:
        raise ClivefsError(
            f"{branch or 'HEAD'} is at {old.hex()[:12]}, and the commit is to stand on {parent.hex()[:12]}",
            place=git_dir,
            remedy="Name another branch with `--branch`.",
        )
    tree = _write_tree(git, git_dir, base, edits)
    if tree == _tree_of(git, git_dir, parent):
        raise ClivefsError("there is nothing to commit", remedy="`clivefs overlay diff` shows your edits.")
    commit = _commit_tree(git, git_dir, tree, [parent], message)
    _move(git, git_dir, ref, commit, old, message)
    if ref == "HEAD":
        _update_index(git, git_dir, tree, edits)
    return Committed(commit, tree, ref)


def import_tree(
    git_dir: str,
    reader: Reader | JoinedObjects,
    tree: bytes,
    message: str,
    *,
    git: GitCommand | None = None,
) -> bytes:
    """A commit without parents of *tree* (of a published module) in the repository *git_dir*, which is made if need be.

    The same tree and message give the same commit: its author is clivefs and its time 1970.
    """
    git = git or GitCommand()
    if not os.path.isdir(git_dir):
        git.run(["init", "--quiet", "--bare", "--initial-branch=main", git_dir])
    stream = _stream(None, ((path, version) for path, _, version in differences(reader, EMPTY_TREE, tree)), reader)
    made = _fast_import(git, git_dir, stream)
    facts = {"NAME": "clivefs", "EMAIL": "clivefs@localhost", "DATE": "@0 +0000"}
    fixed = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in facts.items()}
    output = git.run(
        ["commit-tree", made, "-F", "-"], git_dir=git_dir, stdin=message.encode("utf-8", "surrogateescape") + b"\n",
        variables=fixed,
    )  # fmt: skip
    return bytes.fromhex(output.strip().decode())


def _write_tree(git: GitCommand, git_dir: str, base: bytes, edits: Mapping[bytes, FileVersion | None]) -> bytes:
    return bytes.fromhex(_fast_import(git, git_dir, _stream(base, edits.items(), None)))


def _fast_import(git: GitCommand, git_dir: str, stream: Iterable[bytes]) -> str:
    """Feed *stream*, which makes the commit of mark 1; its tree's name. No ref stays."""
    output = git.run(
        ["fast-import", "--quiet", "--cat-blob-fd=1"],
        git_dir=git_dir,
        stdin=b"".join(stream) + b"get-mark :1\ndone\n",
        config=("fastimport.unpackLimit=1000",),
    )
    commit = output.split()[-1].decode()
    return git.run(["rev-parse", "--verify", commit + "^{tree}"], git_dir=git_dir).strip().decode()


def _stream(
    base: bytes | None,
    files: Iterable[tuple[bytes, FileVersion | Version | None]],
    reader: Reader | JoinedObjects | None,
) -> Iterator[bytes]:
    """A commit in the language of git-fast-import(1), on a ref that is taken back at the end of it."""
    ref = b"refs/clive/making/%b" % os.urandom(8).hex().encode()
    yield (
        b"feature done\nfeature get-mark\ncommit %b\nmark :1\ncommitter clivefs <clivefs@localhost> 0 +0000\ndata 0\n"
        % ref
    )
    if base is not None:
        yield b"from %b\n" % base.hex().encode()
    # What is removed goes first: a file may take the place of a directory.
    waiting = list(files)
    for path, file in waiting:
        if file is None:
            yield b"D %b\n" % quoted(path)
    for path, file in waiting:
        if isinstance(file, Version):
            if file.mode == MODE_GITLINK:
                yield b"M 160000 %b %b\n" % (file.oid.hex().encode(), quoted(path))
                continue
            assert reader is not None
            file = FileVersion(file.mode, blob_content(reader, file.oid))
        if file is not None:
            yield b"M %o inline %b\ndata %d\n" % (file.mode, quoted(path), len(file.content))
            yield file.content
            yield b"\n"
    yield b"\nreset %b\nfrom %b\n\n" % (ref, _ZERO.encode())


def quoted(path: bytes) -> bytes:
    """A path as fast-import reads it: always quoted, odd bytes in octal."""
    body = re.sub(rb"[^ !#-\[\]-~]", lambda match: b"\\%03o" % match[0][0], path)
    return b'"' + body + b'"'


def _commit_tree(git: GitCommand, git_dir: str, tree: bytes, parents: list[bytes], message: str) -> bytes:
    arguments = ["commit-tree", tree.hex()]
    for parent in parents:
        arguments += ["-p", parent.hex()]
    if _wants_signature(git, git_dir):
        arguments.append("-S")
    text = message.encode("utf-8", "surrogateescape")
    try:
        output = git.run([*arguments, "-F", "-"], git_dir=git_dir, stdin=text if text.endswith(b"\n") else text + b"\n")
    except GitFailed as error:
        if "who you are" in error.stderr or "empty ident" in error.stderr:
            raise ClivefsError("git does not know who the author is", remedy=_IDENTITY_REMEDY) from None
        raise
    return bytes.fromhex(output.strip().decode())


def _wants_signature(git: GitCommand, git_dir: str) -> bool:
    try:
        return git.run(["config", "--type=bool", "--get", "commit.gpgSign"], git_dir=git_dir).strip() == b"true"
    except GitFailed:
        return False


def _move(git: GitCommand, git_dir: str, ref: str, commit: bytes, old: bytes | None, message: str) -> None:
    """Point *ref* at *commit* if it still is at *old*."""
    subject = message.splitlines()[0] if message.strip() else ""
    arguments = ["update-ref", "--create-reflog", "-m", f"commit (clivefs): {subject}", ref, commit.hex()]
    try:
        git.run([*arguments, old.hex() if old is not None else _ZERO], git_dir=git_dir)
    except GitFailed as error:
        raise ClivefsError(
            f"{ref.removeprefix('refs/heads/')} has moved meanwhile; the commit is {commit.hex()}",
            place=git_dir,
            remedy="Run the command again.",
        ) from error


def _update_index(git: GitCommand, git_dir: str, tree: bytes, edits: Mapping[bytes, FileVersion | None]) -> None:
    """Let the index have what was committed. Its times are unknown: the next `git status` looks at these files."""
    if not os.path.lexists(os.path.join(git_dir, "index")):
        return
    listing = git.run(["ls-tree", "-r", "-z", tree.hex(), "--", *_top_paths(edits)], git_dir=git_dir,
                      variables={"GIT_LITERAL_PATHSPECS": "1"}) if edits else b""  # fmt: skip
    present = {}
    for line in listing.split(b"\0"):
        if line:
            facts, _, path = line.partition(b"\t")
            mode, _, oid = facts.split()
            present[path] = (mode, oid)
    lines = []
    for path in edits:
        mode, oid = present.get(path, (b"0", _ZERO.encode()))
        lines.append(b"%b %b\t%b\0" % (mode, oid, path))
    lines.sort(key=lambda line: not line.startswith(b"0 "))  # removed ones first, for files in place of directories
    git.run(["update-index", "-z", "--index-info"], git_dir=git_dir, stdin=b"".join(lines))


_PATHS_MAX = 500


def _top_paths(edits: Mapping[bytes, FileVersion | None]) -> list[bytes]:
    """Arguments that list at least the edited files, few enough for a command line."""
    if len(edits) <= _PATHS_MAX:
        return sorted(edits)
    tops = {path.partition(b"/")[0] for path in edits}
    return sorted(tops) if len(tops) <= _PATHS_MAX else []


def _branch_ref(git: GitCommand, git_dir: str, branch: str) -> str:
    name = check_argument(branch, "a branch").removeprefix("refs/heads/")
    ref = f"refs/heads/{name}"
    try:
        git.run(["check-ref-format", ref], git_dir=git_dir)
    except GitFailed:
        raise ClivefsError(f"{branch!r} cannot be the name of a branch") from None
    return ref


def branch_tip(git: GitCommand, git_dir: str, branch: str) -> bytes | None:
    """The commit that *branch* is at, if there is one."""
    return _current(git, git_dir, _branch_ref(git, git_dir, branch))


def point_head(git: GitCommand, git_dir: str, branch: str) -> None:
    """Let HEAD of a bare repository be on *branch*: what a clone of it checks out."""
    git.run(["symbolic-ref", "HEAD", _branch_ref(git, git_dir, branch)], git_dir=git_dir)


def _head_ref(git: GitCommand, git_dir: str) -> str | None:
    try:
        return git.run(["symbolic-ref", "--quiet", "HEAD"], git_dir=git_dir).strip().decode()
    except GitFailed:
        return None


def _current(git: GitCommand, git_dir: str, ref: str) -> bytes | None:
    try:
        output = git.run(["rev-parse", "--verify", "--quiet", ref], git_dir=git_dir)
    except GitFailed:
        return None
    return bytes.fromhex(output.strip().decode())


def _tree_of(git: GitCommand, git_dir: str, commit: bytes) -> bytes:
    output = git.run(["rev-parse", "--verify", f"{commit.hex()}^{{tree}}"], git_dir=git_dir)
    return bytes.fromhex(output.strip().decode())
