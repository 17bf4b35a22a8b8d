"""Content between the two forms that `.gitattributes` make of it: as a checkout shows it, and as git stores it.

`cleaned` is what `git add` does, `smudged` what a checkout does, both by git itself in a scratch repository without
any configuration, so only the built-in conversions happen (line ends, `ident`, working-tree encodings). Which files
are to be given here is decided by `may_clean` and `may_smudge`: they may say yes too often, never no wrongly.
"""

from __future__ import annotations

import os
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.attributes import CONCERNS, NOWHERE
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.objects.encode import hash_object

NAME = b".gitattributes"
_PATH_BYTES_MAX = 3000
"""What a scratch directory can hold."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """The rules of one repository."""

    files: Mapping[bytes, bytes] = field(default_factory=dict)
    """The content of each `.gitattributes`, by its directory."""
    info: bytes = b""
    """`info/attributes`, which comes first."""

    @property
    def _texts(self) -> tuple[bytes, ...]:
        return (*self.files.values(), self.info)

    def may_clean(self, path: bytes, content: bytes) -> bool:
        """Whether git could store *content* otherwise."""
        if not any(self._texts) or len(path) > _PATH_BYTES_MAX:
            return False
        return b"\r" in content or b"$Id" in content or any(b"working-tree-encoding" in each for each in self._texts)

    def may_smudge(self, path: bytes) -> bool:
        """Whether a checkout could show what is stored at *path* otherwise."""
        return len(path) <= _PATH_BYTES_MAX and any(map(concerns, self._texts))


def concerns(rules: bytes) -> bool:
    """Whether an attribute file has anything that changes what a checkout shows."""
    return b"[attr]" in rules or bool(CONCERNS.search(rules))


def cleaned(
    attributes: Attributes, files: Mapping[bytes, tuple[bytes, bytes | None]], scratch: str
) -> dict[bytes, bytes]:
    """What `git add` would store of *files*: by path the content that is shown, and what is stored so far (None:
    nothing). *scratch*: a directory for temporary files. For threads. ClivefsError for what git cannot convert."""
    if not files:
        return {}
    with _repository(attributes, scratch) as repository:
        entries = []
        for path, (content, before) in files.items():
            if before is not None:
                entries.append(b"100644 %b\t%b\0" % (repository.put_blob(before), path))
            repository.put_file(path, content)
        repository.run(["update-index", "-z", "--index-info"], b"".join(entries))
        try:
            repository.run(["update-index", "--add", "-z", "--stdin"], b"".join(path + b"\0" for path in files))
        except GitFailed as error:
            raise ClivefsError(
                f"git cannot store it as `.gitattributes` ask for: {error.message}",
                place=os.fsdecode(next(iter(files))) if len(files) == 1 else None,
                remedy="mend the file, or the attributes",
            ) from error
        stored = {}
        for line in repository.run(["ls-files", "-s", "-z"]).split(b"\0"):
            facts, _, path = line.partition(b"\t")
            if path in files:
                stored[path] = facts.split()[1]
        return dict(zip(stored, repository.blobs(list(stored.values())), strict=True))


def smudged(attributes: Attributes, files: Mapping[bytes, bytes], scratch: str) -> dict[bytes, bytes]:
    """What a checkout would show of *files*, which are given as they are stored. For threads. GitFailed."""
    if not files:
        return {}
    with _repository(attributes, scratch) as repository:
        entries = [b"100644 %b\t%b\0" % (repository.put_blob(content), path) for path, content in files.items()]
        repository.run(["update-index", "-z", "--index-info"], b"".join(entries))
        repository.run(["checkout-index", "-f", "-z", "--stdin"], b"".join(path + b"\0" for path in files))
        return {path: repository.read_file(path) for path in files}


class _Repository:
    def __init__(self, directory: str) -> None:
        self._git_dir = os.path.join(directory, "git")
        self._tree = os.fsencode(os.path.join(directory, "tree"))
        self._home = directory
        for part in ("objects", "refs", "info"):
            os.makedirs(os.path.join(self._git_dir, part))
        os.mkdir(self._tree)
        _put(os.path.join(self._git_dir, "HEAD"), b"ref: refs/heads/none\n")
        _put(os.path.join(self._git_dir, "config"), b"[core]\n\trepositoryformatversion = 0\n\tbare = false\n")

    def put_rules(self, attributes: Attributes) -> None:
        _put(os.path.join(self._git_dir, "info", "attributes"), attributes.info)
        for directory, content in attributes.files.items():
            self.put_file(directory + b"/" + NAME if directory else NAME, content)

    def put_file(self, path: bytes, content: bytes) -> None:
        place = os.path.join(self._tree, path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        _put(place, content)

    def read_file(self, path: bytes) -> bytes:
        with open(os.path.join(self._tree, path), "rb") as file:
            return file.read()

    def put_blob(self, content: bytes) -> bytes:
        """The name of a new blob."""
        name = hash_object("blob", content).hex()
        folder = os.path.join(self._git_dir, "objects", name[:2])
        os.makedirs(folder, exist_ok=True)
        _put(os.path.join(folder, name[2:]), zlib.compress(b"blob %d\0" % len(content) + content, 0))
        return name.encode()

    def blobs(self, names: list[bytes]) -> Iterator[bytes]:
        output = self.run(["cat-file", "--batch"], b"".join(name + b"\n" for name in names))
        at = 0
        for _ in names:
            end = output.index(b"\n", at)
            size = int(output[at:end].rpartition(b" ")[2])
            yield output[end + 1 : end + 1 + size]
            at = end + size + 2

    def run(self, arguments: list[str], stdin: bytes = b"") -> bytes:
        tree = os.fsdecode(self._tree)
        return GitCommand().run(
            arguments,
            cwd=tree,
            git_dir=self._git_dir,
            config=[f"core.attributesFile={os.devnull}", "core.fileMode=false", "core.fsync=none"],
            variables={**NOWHERE, "GIT_WORK_TREE": tree, "HOME": self._home, "XDG_CONFIG_HOME": self._home},
            stdin=stdin,
        )


@contextmanager
def _repository(attributes: Attributes, scratch: str) -> Iterator[_Repository]:
    with tempfile.TemporaryDirectory(prefix="convert-", dir=scratch) as directory:
        made = _Repository(directory)
        made.put_rules(attributes)
        yield made


def _put(path: str | bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
