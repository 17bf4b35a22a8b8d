"""Where the content of submodules comes from, when somebody looks into one.

First the repositories that a local superproject already has (`modules/NAME` in its gitdir), then the URL that
`.gitmodules` gives, fetched like any source. That file comes with the tree, from whoever wrote it: a name
cannot lead out of `modules/`, and a URL cannot name a path of this machine, unless it is relative to the
superproject's (as `git submodule` has it with `protocol.file.allow=user`).
"""

from __future__ import annotations

import os
import threading
from dataclasses import replace

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.location import parse_location, relative_to
from clivefs.mounts.git.lower import Submodules, TreeSpace
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.tree import Blocked
from clivefs.objects.errors import ObjectMissing, RepositoryError
from clivefs.objects.repository import Repository

RETRY_S = 60
_GITMODULES_BYTES_MAX = 1 << 20
_SECOND_NS = 1_000_000_000


class GitSubmodules(Submodules):
    """The submodules of one commit. Every method may be called from any thread."""

    def __init__(
        self,
        source: GitSource,
        resolved: Resolved,
        *,
        git: GitCommand | None = None,
        timeout_s: float = 30.0,
        clock: Clock | None = None,
    ) -> None:
        self._source = source
        self._resolved = resolved
        self._git = git or GitCommand()
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._found: dict[tuple[bytes, bytes], tuple[TreeSpace, bytes]] = {}
        self._refused: dict[tuple[bytes, bytes], tuple[str, int]] = {}
        """Why not, and until when (monotonic ns) that is believed."""
        self._modules: dict[bytes, dict[str, str]] | None = None
        self._lock = threading.Lock()

    def open(self, path: bytes, commit: bytes) -> tuple[TreeSpace, bytes] | str:
        key = (path, commit)
        found = self._found.get(key)
        if found is not None:
            return found
        refused = self._refused.get(key)
        if refused is not None and self._clock.monotonic_ns() < refused[1]:
            return refused[0]

        def look() -> None:
            with self._lock:
                if key in self._found:
                    return
                try:
                    self._found[key] = self._open(path, commit)
                    self._refused.pop(key, None)
                except (ClivefsError, OSError) as error:
                    why = error.message if isinstance(error, ClivefsError) else error.strerror or str(error)
                    self._refused[key] = (why, self._clock.monotonic_ns() + RETRY_S * _SECOND_NS)

        raise Blocked(look, f"opening the submodule {os.fsdecode(path)}", timeout_s=self._timeout_s)

    def _open(self, path: bytes, commit: bytes) -> tuple[TreeSpace, bytes]:
        layer = b"submodule:" + commit.hex().encode()
        module = self._of_path(path)
        present = self._present(module["name"], commit)
        if present is not None:
            found = present.read_commit(commit)
            return TreeSpace(present, layer, found.committer.seconds * _SECOND_NS), found.tree
        url = module.get("url", "")
        superproject = self._source.location
        location = parse_location(relative_to(url, superproject.remote), "/")
        is_relative = url.startswith(("./", "../"))
        if not is_relative and (location.url is None or location.url.lower().startswith("file:")):
            raise ClivefsError(f"its URL {url!r} is a path of this machine, which `.gitmodules` may not name")
        source = self._source.beside(location.remote, commit.hex())
        resolved = source.open()
        return replace(source.space(resolved), layer=layer), resolved.tree

    def _present(self, name: str, commit: bytes) -> Repository | None:
        """The repository of the submodule inside a local superproject's gitdir, if it has the commit."""
        if self._source.location.path is None or ".." in name.split("/") or name.startswith("/"):
            return None
        try:
            repository = Repository(os.path.join(self._source.refs.commondir, "modules", name))
        except RepositoryError:
            return None
        return repository if repository.has(commit) and not repository.is_partial else None

    def _of_path(self, path: bytes) -> dict[str, str]:
        if self._modules is None:
            self._modules = self._read_modules()
        module = self._modules.get(path)
        if module is None:
            raise ClivefsError("no entry of .gitmodules has its path")
        return module

    def _read_modules(self) -> dict[bytes, dict[str, str]]:
        """The entries of `.gitmodules` by path; each with its `name`."""
        repository = self._resolved.repository
        tree = repository.read_commit(self._resolved.commit).tree
        oid = next((entry.oid for entry in repository.read_tree(tree) if entry.name == b".gitmodules"), None)
        if oid is None:
            return {}
        try:
            size = repository.header(oid)[1]
        except ObjectMissing:
            self._source.fetch_objects([oid])
            size = repository.header(oid)[1]
        if size > _GITMODULES_BYTES_MAX:
            return {}
        text = repository.read(oid)[1]
        listed = self._git.run(["config", "--no-includes", "-z", "--file", "-", "--list"], stdin=text, cwd="/")
        modules: dict[str, dict[str, str]] = {}
        for item in os.fsdecode(listed).split("\0"):
            key, _, value = item.partition("\n")
            section, _, variable = key.rpartition(".")
            if section.startswith("submodule.") and variable in ("path", "url"):
                name = section.removeprefix("submodule.")
                modules.setdefault(name, {"name": name})[variable] = value
        below = os.fsencode(self._resolved.subdir + "/") if self._resolved.subdir else b""
        return {
            os.fsencode(module["path"]).strip(b"/").removeprefix(below): module
            for module in modules.values()
            if "path" in module and os.fsencode(module["path"]).startswith(below)
        }
