"""Where the content of submodules comes from, when somebody looks into one.

First the repositories that a local superproject already has (`modules/NAME` in its gitdir), then the URL that
`.gitmodules` gives, fetched like any source. That file comes with the tree, from whoever wrote it: a name
cannot lead out of `modules/`, and a URL cannot name a path of this machine, unless it is relative to the
superproject's (as `git submodule` has it with `protocol.file.allow=user`). Submodules of submodules are found the
same way, `DEPTH_MAX` deep: a repository may well name itself as its submodule.

Where the superproject has a private gitdir, one is made in it for each submodule that is opened (`GitDir.module`).
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from dataclasses import replace

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.gitdir import GitDir
from clivefs.mounts.git.location import Location, parse_location, relative_to
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.space import Converter, Submodules, TreeSpace
from clivefs.mounts.tree import Blocked
from clivefs.objects.errors import ObjectMissing

log = logging.getLogger(__name__)

RETRY_S = 60
DEPTH_MAX = 8
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
        converter: Callable[[GitSource], Converter | None] = lambda _: None,
        remote: str | None = None,
        git_dir: GitDir | None = None,
        depth: int = 1,
    ) -> None:
        """*converter* makes that of a submodule. *remote*: what relative URLs are relative to, if that is not where
        *source* is. *git_dir*: the private gitdir of the superproject. *depth*: how many repositories these are
        within."""
        self._source = source
        self._resolved = resolved
        self._git = git or GitCommand()
        self._timeout_s = timeout_s
        self._clock = clock or SystemClock()
        self._converter = converter
        self._remote = remote if remote is not None else source.location.remote
        self._git_dir = git_dir
        self._depth = depth
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
        if self._depth > DEPTH_MAX:
            raise ClivefsError(f"it is {DEPTH_MAX} submodules deep")
        module = self._of_path(path)
        url = module.get("url", "")
        location = parse_location(relative_to(url, self._remote), "/") if url else None
        source = self._present(module["name"], commit)
        if source is None:
            source = self._fetched(url, location, commit)
        resolved = source.current
        below = GitSubmodules(
            source,
            resolved,
            git=self._git,
            timeout_s=self._timeout_s,
            clock=self._clock,
            converter=self._converter,
            remote=location.remote if location is not None else None,
            git_dir=self._module_git_dir(module["name"], resolved, source, location),
            depth=self._depth + 1,
        )
        space = source.space(resolved, self._converter(source))
        return replace(space, layer=b"submodule:" + commit.hex().encode(), submodules=below), resolved.tree

    def _module_git_dir(
        self, name: str, resolved: Resolved, source: GitSource, location: Location | None
    ) -> GitDir | None:
        """The private gitdir of a submodule; None without one of the superproject."""
        if self._git_dir is None:
            return None
        try:
            return self._git_dir.module(name, resolved, source, location.remote if location is not None else None)
        except (ClivefsError, OSError) as error:
            log.warning("the submodule %r cannot become a git working tree: %s", name, error)
            return None

    def _present(self, name: str, commit: bytes) -> GitSource | None:
        """The repository of the submodule inside a local superproject's gitdir, if it has the commit."""
        if self._source.location.path is None or ".." in name.split("/") or name.startswith("/"):
            return None
        path = os.path.join(self._source.refs.commondir, "modules", name)
        try:
            return self._source.beside(path, commit.hex()) if os.path.isdir(path) else None
        except ClivefsError as error:
            log.info("%s: %s", path, error.message)
            return None

    def _fetched(self, url: str, location: Location | None, commit: bytes) -> GitSource:
        """The submodule from the URL that `.gitmodules` gives."""
        if location is None:
            raise ClivefsError("its entry of .gitmodules has no URL")
        is_relative = url.startswith(("./", "../"))
        if not is_relative and (location.url is None or location.url.lower().startswith("file:")):
            raise ClivefsError(f"its URL {url!r} is a path of this machine, which `.gitmodules` may not name")
        return self._source.beside(location.remote, commit.hex())

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
        return {os.fsencode(module["path"]).strip(b"/"): module for module in modules.values() if "path" in module}
