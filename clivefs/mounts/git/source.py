"""Where a git ref comes from: a repository of this machine, used in place, or one fetched by stock git.

A URL is fetched as a partial clone into a bare repository of the store, and blobs follow on demand, those
of a directory in one request. A local repository is never written. It is read in place at once, and `keep` makes the
store own what has to stay (`git.kept`); where it is a partial clone itself, what it lacks is fetched from its
promisor into that same repository of ours. When the remote cannot be reached `GitSource.error` says why, until a
request succeeds.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from clivefs.base.errors import ClivefsError
from clivefs.base.ports import Clock, SystemClock
from clivefs.mounts.git.command import GitCommand, GitFailed, check_argument
from clivefs.mounts.git.damage import Damage
from clivefs.mounts.git.fetch import PartialClone, repository_path
from clivefs.mounts.git.kept import KeptObjects
from clivefs.mounts.git.location import Location, borrowed, parse_location
from clivefs.mounts.git.space import Converter, Rules, TreeSpace
from clivefs.mounts.git.users import User, note_user
from clivefs.objects.encode import MODE_GITLINK, MODE_TREE, Commit
from clivefs.objects.errors import ObjectMissing, UnknownRef
from clivefs.objects.interface import ObjectStore
from clivefs.objects.repository import Repository

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 30.0
OBJECTS_PER_FETCH = 5000
TREES_MAX = 2_000_000
_INFO_ATTRIBUTES_BYTES_MAX = 1 << 20
_SECOND_NS = 1_000_000_000
_SETTLED_NS = 2 * _SECOND_NS
_TIMES = "git-times"
_ID = re.compile(r"[0-9a-f]{4,40}(?![^~^])")
"""A commit id, perhaps abbreviated, at the start of a revision."""
_REFLOG = re.compile(r"@\{(?!u|push)")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A ref of a source, looked up: everything that a layer and a private gitdir start from."""

    commit: bytes
    tree: bytes
    """The tree shown: the commit's, or that of `subdir` below it."""
    commit_time_ns: int
    repository: Repository
    ref: str
    symbolic_ref: str | None
    """The full name when the ref is one: `refs/heads/main`, `refs/tags/v1`."""
    subdir: str = ""
    outer_rules: Rules = ()
    """The `.gitattributes` above `subdir`, which bear on what is in it."""

    @property
    def branch(self) -> str | None:
        """The branch that the ref is, without `refs/heads/`."""
        if self.symbolic_ref is None or not self.symbolic_ref.startswith("refs/heads/"):
            return None
        return self.symbolic_ref.removeprefix("refs/heads/")

    @property
    def layer(self) -> bytes:
        return b"git:" + self.commit.hex().encode()


class GitSource:
    """One repository, and one ref of it. `open` first; every method blocks and may run in any thread."""

    def __init__(
        self,
        location: str,
        ref: str,
        subdir: str = "",
        *,
        base_dir: str,
        store_dir: str,
        git: GitCommand | None = None,
        progress: Callable[[str], None] | None = None,
        answer_timeout_s: float = ANSWER_TIMEOUT_S,
        store: ObjectStore | None = None,
        clock: Clock | None = None,
        check_path: Callable[[str], None] = lambda _: None,
        user: User | None = None,
    ) -> None:
        """*location*: a URL, or a path that *base_dir* completes. *store*: where times are remembered. *check_path*
        raises for what must not be read on this machine. *user*: for whom the store's copy is kept."""
        self.location: Location = parse_location(location, base_dir)
        self.ref = check_argument(ref, "a ref")
        self.subdir = subdir.strip("/")
        self._store_dir = store_dir
        self._git = git or GitCommand()
        self._progress = progress
        self._answer_timeout_s = answer_timeout_s
        self._store = store
        self._clock = clock or SystemClock()
        self._check_path = check_path
        self._user = user
        self._lock = threading.RLock()
        self._local: Repository | None = None
        self._clone: PartialClone | None = None
        self._kept: KeptObjects | None = None
        self._besides: list[GitSource] = []
        self._repository: Repository | None = None
        self._current: Resolved | None = None
        self._damage = Damage()

    @property
    def error(self) -> str | None:
        """Why the last request to the remote failed, or which object cannot be read; None where all is well now."""
        if self._clone is not None and self._clone.error is not None:
            return self._clone.error
        clone = self._clone.path if self._clone is not None else None
        return self._damage.tell(self._opened(), self.location, clone, lazy=self.lazy)

    @property
    def lazy(self) -> bool:
        """Objects may be missing that can be fetched."""
        return self._clone is not None and self._clone.is_partial

    def partial_clones(self) -> list[PartialClone]:
        """Where its missing objects come to, those of its submodules included."""
        own = [self._clone] if self._clone is not None and self.lazy else []
        return own + [clone for each in self._besides for clone in each.partial_clones()]

    @property
    def promisor_url(self) -> str | None:
        """Where missing objects come from; None where none are missing."""
        return self._clone.url if self._clone is not None and self._clone.is_partial else None

    @property
    def objects_dirs(self) -> list[str]:
        """The objects directories that stock git can borrow (`objects/info/alternates`), until `keep` has run also
        that of a repository of the user."""
        dirs = [self._opened().objects]
        return dirs if self.is_kept else [*dirs, *self.live_objects_dirs]

    @property
    def live_objects_dirs(self) -> list[str]:
        """The objects directory of a local repository, where the user's `git gc` removes what it likes."""
        return [self._local.objects] if self._local is not None else []

    @property
    def refs(self) -> Repository:
        """The repository whose branches and tags are the source's."""
        return self._local if self._local is not None else self._opened()

    def info_attributes(self) -> bytes:
        """The source's own `info/attributes`, which a checkout of it obeys; empty without one."""
        path = os.path.join(self.refs.commondir, "info", "attributes")
        if not os.path.isfile(path):  # a pipe would keep us waiting
            return b""
        try:
            with open(path, "rb") as file:
                return file.read(_INFO_ATTRIBUTES_BYTES_MAX)
        except OSError:
            return b""

    def beside(self, location: str, ref: str) -> GitSource:
        """Another source, opened and fetched as this one is, and kept with it: for submodules. As `open`."""
        source = GitSource(
            location,
            ref,
            base_dir="/",
            store_dir=self._store_dir,
            git=self._git,
            progress=self._progress,
            answer_timeout_s=self._answer_timeout_s,
            store=self._store,
            clock=self._clock,
            check_path=self._check_path,
            user=self._user,
        )
        source.open()
        self._besides.append(source)
        return source

    # Opening

    def open(self) -> Resolved:
        """Find the repository, fetching it if it was never fetched, and look the ref up.

        ClivefsError when there is no such repository, ref or directory, saying what comes near.
        """
        with self._lock:
            if self.location.path is not None:
                self._open_local(self.location.path)
            else:
                assert self.location.url is not None
                self._clone = self._partial_clone(self.location.url, self.location.url)
                self._clone.clone()
                self._repository = Repository(self._clone.path, holds=self._clone.in_use)
                self._note_user(self._clone.path)
            self._current = self._resolve(ask_remote=self._local is None)
            return self._current

    def release(self) -> None:
        """No mount shows it any more: its repositories may be collected."""
        for held in (self._clone, self._kept):
            if held is not None and held.in_use is not None:
                held.in_use.close()
        for each in self._besides:
            each.release()

    def _open_local(self, path: str) -> None:
        self._check_path(path)
        self._local = local = Repository(path)
        for each in (local.gitdir, local.commondir, *borrowed(local.objects)):
            self._check_path(each)
        promisor = self._promisor_of(local) if local.is_partial else None
        identity = "local:" + local.commondir
        self._kept = KeptObjects(repository_path(self._store_dir, identity), local, git=self._git)
        if promisor is not None:
            self._clone = self._partial_clone(identity, promisor)
            self._clone.borrow(local.objects)
            self._kept.hold()
        else:
            self._kept.create()
        self._repository = self._kept.reader()
        self._note_user(self._kept.path)

    def _note_user(self, repository: str) -> None:
        if self._store is not None and self._user is not None:
            note_user(self._store, repository, self._user)

    def _partial_clone(self, identity: str, url: str) -> PartialClone:
        return PartialClone(
            repository_path(self._store_dir, identity),
            url,
            git=self._git,
            clock=self._clock,
            answer_timeout_s=self._answer_timeout_s,
            progress=self._progress,
        )

    def _promisor_of(self, local: Repository) -> str | None:
        """The URL of the promisor remote of a partial clone."""
        pattern = r"^(extensions\.partialclone|remote\..*\.(promisor|url))$"
        try:
            listed = self._git.run(["config", "-z", "--get-regexp", pattern], git_dir=local.gitdir)
        except GitFailed:
            return None
        values = dict(line.partition("\n")[::2] for line in os.fsdecode(listed).split("\0") if line)
        names = [values["extensions.partialclone"]] if "extensions.partialclone" in values else []
        names += [name[len("remote.") : -len(".promisor")] for name in values if name.endswith(".promisor")]
        for name in names:
            url = values.get(f"remote.{name}.url")
            if url is not None:
                return parse_location(url, local.path).remote
        return None

    # Keeping

    @property
    def is_kept(self) -> bool:
        """What is shown stays readable whatever becomes of a local repository, that of submodules included."""
        own = self._kept is None or (self._current is not None and self._kept.has_kept([self._current.commit]))
        return own and all(each.is_kept for each in self._besides)

    def keep(self, oids: Iterable[bytes] = (), *, begin: bool = True) -> None:
        """See that the commits, tags or trees *oids* stay readable with all that they lead to, and with them what is
        shown and what the refs are at now. What was kept before costs nothing; what comes from a URL is the store's
        already. *begin*, OSError: as `KeptObjects.keep`."""
        if self._kept is not None:
            wanted = set(oids)
            if self._current is not None:
                wanted.add(self._current.commit)
            if not self._kept.has_kept(wanted):
                reader = self._opened()
                reader.refresh()
                wanted.update(oid for oid in self.refs.refs().values() if self.has(oid))
                self._kept.keep(wanted, begin=begin)
                reader.refresh()
        for each in self._besides:
            each.keep(begin=begin)

    # Looking up

    def _opened(self) -> Repository:
        assert self._repository is not None, "open() comes first"
        return self._repository

    def _resolve(self, *, ask_remote: bool) -> Resolved:
        """Look the ref up; where it is not known and *ask_remote*, ask for news once."""
        try:
            commit = self._lookup()
        except UnknownRef as error:
            if not ask_remote:
                raise self._placed(error) from None
            commit = self._resolve_anew(error)
        found = self._commit(commit)
        tree, rules = self._subtree(found.tree)
        time_ns = self._time_ns(commit, found.committer.seconds * _SECOND_NS)
        return Resolved(commit, tree, time_ns, self._opened(), self.ref, self._symbolic(), self.subdir, rules)

    def _lookup(self) -> bytes:
        """The commit that the ref names. UnknownRef."""
        try:
            return self.refs.resolve(self.ref)
        except UnknownRef:
            if self._kept is None or _ID.match(self.ref) is None:
                raise
            # A commit that the source has not any more may have been kept.
            with contextlib.suppress(UnknownRef):
                return self._opened().resolve(self.ref)
            raise

    def _resolve_anew(self, error: UnknownRef) -> bytes:
        try:
            self.fetch()
        except OSError as failure:
            raise ClivefsError(
                f"{self.ref!r} was not fetched before, and the remote does not answer: {failure.strerror}",
                place=self.location.given,
                remedy="Check the network, or use a ref that was fetched.",
            ) from error
        try:
            return self._lookup()
        except UnknownRef as again:
            if _REFLOG.search(self.ref):
                raise ClivefsError(
                    f"{self.ref!r} cannot be had from a URL: remotes tell nobody where their refs were before",
                    place=self.location.given,
                    remedy="Name a branch, a tag or a commit.",
                ) from None
            raise self._placed(again) from None

    def _placed(self, error: UnknownRef) -> UnknownRef:
        return UnknownRef(error.ref, self.location.given, error.near, error.message)

    def _commit(self, commit: bytes) -> Commit:
        try:
            return self._opened().read_commit(commit)
        except ObjectMissing:
            self.fetch_objects([commit])
            return self._opened().read_commit(commit)

    def _subtree(self, tree: bytes) -> tuple[bytes, Rules]:
        """The tree at `subdir` below *tree*, and the attribute files above it."""
        walked = ""
        rules: Rules = ()
        for name in self.subdir.split("/") if self.subdir else ():
            entries = {os.fsdecode(entry.name): entry for entry in self._opened().read_tree(tree)}
            attributes = entries.get(".gitattributes")
            if attributes is not None and stat.S_ISREG(attributes.mode):
                rules = (*rules, (os.fsencode(walked), attributes.oid))
            entry = entries.get(name)
            walked = f"{walked}/{name}" if walked else name
            if entry is None:
                near = difflib.get_close_matches(name, list(entries), 3)
                raise ClivefsError(
                    f"there is no directory {walked!r} at {self.ref}",
                    place=self.location.given,
                    remedy=f"Did you mean {' or '.join(near)}?" if near else "Check `subdir`.",
                )
            if entry.mode != MODE_TREE:
                raise ClivefsError(
                    f"{walked!r} is not a directory at {self.ref}",
                    place=self.location.given,
                    remedy="`subdir` must name a directory.",
                )
            tree = entry.oid
        return tree, rules

    def _symbolic(self) -> str | None:
        if self.ref == "HEAD":
            return self.refs.head_branch()
        arguments = ["rev-parse", "--verify", "--quiet", "--symbolic-full-name", self.ref]
        try:
            name = os.fsdecode(self._git.run(arguments, git_dir=self.refs.gitdir)).strip()
        except GitFailed:
            return None
        return name if name.startswith("refs/") else None

    def _time_ns(self, commit: bytes, time_ns: int) -> int:
        """The time that files of *commit* are shown with: the commit's, but never one that git would
        take for racy (see `git.index`). The choice is remembered, so that it is the same in every mount."""
        kept = self._store.meta_get(_TIMES, commit) if self._store is not None else None
        if kept is not None:
            return int.from_bytes(kept, "big")
        latest_ns = (self._clock.now_ns() - _SETTLED_NS) // _SECOND_NS * _SECOND_NS
        if time_ns <= latest_ns:
            return max(0, time_ns)
        if self._store is not None:
            with self._store.batch() as batch:
                batch.meta_put(_TIMES, commit, latest_ns.to_bytes(12, "big"))
        return latest_ns

    def space(self, resolved: Resolved, converter: Converter | None = None) -> TreeSpace:
        """What a `GitLower` of *resolved* reads from."""
        return TreeSpace(
            resolved.repository,
            resolved.layer,
            resolved.commit_time_ns,
            fetcher=self.fetch_objects if self.lazy else None,
            converter=converter,
            prefix=os.fsencode(resolved.subdir),
            outer_rules=resolved.outer_rules,
            damage=self._damage.note,
        )

    # News

    @property
    def current(self) -> Resolved:
        """What the ref was when it was last looked at."""
        assert self._current is not None, "open() comes first"
        return self._current

    def poll(self) -> Resolved | None:
        """What the ref is now, if it has moved since `open` or the last news; None if it has not.

        Asks the remote, which may be silent for the answer timeout: OSError(EIO) then, and `error` is set.
        """
        with self._lock:
            current = self._current
            assert current is not None, "open() comes first"
            if self._local is None and self._clone is not None:
                if current.branch is not None:
                    self._clone.update_branch(current.branch)
                else:
                    self._clone.update()
            self._opened().refresh()
            resolved = self._resolve(ask_remote=False)
            if resolved.commit == current.commit and resolved.tree == current.tree:
                return None
            self._current = resolved
            return resolved

    def fetch(self) -> None:
        """Bring all branches and tags of a remote up to date. OSError(EIO) when it cannot be reached."""
        with self._lock:
            if self._local is None and self._clone is not None:
                found = _ID.match(self.ref)
                self._clone.update(found[0] if found is not None and len(found[0]) == 40 else None)
            self._opened().refresh()

    # Content

    def has(self, oid: bytes) -> bool:
        """Whether an object is here."""
        return self._opened().has(oid)

    def fetch_objects(self, oids: Sequence[bytes]) -> None:
        """Get these objects, some thousands in a request. OSError(EIO) when they cannot be had."""
        if self._clone is None or not self._clone.is_partial:
            raise OSError(errno.EIO, f"{len(oids)} objects are missing in {self.location.given}")
        missing = [oid for oid in dict.fromkeys(oids) if self._is_missing(oid)]
        for start in range(0, len(missing), OBJECTS_PER_FETCH):
            self._clone.fetch_objects(missing[start : start + OBJECTS_PER_FETCH])
            self._opened().refresh()
        still = [oid for oid in missing if self._is_missing(oid)]
        for oid in still:
            self._damage.note(oid, "is missing")
        if still:
            raise OSError(errno.EIO, f"{len(still)} objects are not to be had from {self._clone.url}")

    def fetch_all(self, resolved: Resolved, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Get every blob below the tree of *resolved* that is missing (`blobs = "all"`); how many.

        Made to run in the background: other requests come between its own. OSError(EIO) as
        `fetch_objects`; what was fetched until then stays.
        """
        batch: dict[bytes, None] = {}
        count = 0
        seen = {resolved.tree}
        pending = [resolved.tree]
        while pending and not should_stop():
            for mode, _, oid in resolved.repository.read_tree(pending.pop()):
                if mode == MODE_TREE:
                    if oid not in seen and len(seen) < TREES_MAX:
                        seen.add(oid)
                        pending.append(oid)
                elif mode != MODE_GITLINK and oid not in batch and self._is_missing(oid):
                    batch[oid] = None
            if len(batch) >= OBJECTS_PER_FETCH or (batch and not pending):
                self.fetch_objects(list(batch))
                count += len(batch)
                batch.clear()
        return count

    def _is_missing(self, oid: bytes) -> bool:
        return not self.has(oid)
