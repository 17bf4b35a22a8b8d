"""Which repositories the past needs: those with objects that something recorded names and the store does not have.

What a point shows of a git ref is named by the id of its tree, at no cost, and is in the repository alone. So nothing
may take that repository away as long as the point can be entered. All that is recorded is looked through for such
names, sealed or not, each tree once; what is found is remembered with the point (`git.users`), so that it need not be
looked for again while that point is there.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from clivefs.mounts.points.point import read_point
from clivefs.mounts.points.roots import StoreRoots
from clivefs.objects.encode import MODE_GITLINK, decode_commit, decode_tag, stored_entries
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge, RepositoryError
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store

_ASK = 100
_LATELY_MAX = 50_000
_TELL = 1000


class Needs:
    """Finds them, among *candidates*. Used by one thread."""

    def __init__(
        self, store: Store, roots: StoreRoots, candidates: Mapping[str, Repository], others: Sequence[Repository]
    ) -> None:
        """*candidates*: by file name. *others*: those that stay anyway."""
        self._store = store
        self._roots = roots
        self._candidates = candidates
        self._others = others
        self._seen: set[bytes] = set()
        self._lately: set[tuple[bytes, bytes, bytes]] = set()
        self._unknown: dict[bytes, bytes] = {}
        """What no repository has, and the root that leads there."""
        self.needed: dict[str, bytes] = {}
        """The file names of those that are needed, and a root that leads to something which they have."""

    def look(
        self,
        known: Mapping[str, bytes],
        is_over: Callable[[], bool] = lambda: False,
        progress: Callable[[str], None] = lambda text: None,
    ) -> bool:
        """Look at all that is recorded; false where that was not done, as it is over. *known*: what `needed` was
        before."""
        roots = list(self._roots.fresh())
        there = frozenset(roots)
        self.needed.update({name: oid for name, oid in known.items() if name in self._candidates and oid in there})
        for number, root in enumerate(reversed(roots)):  # the newest stay the longest
            if number % _ASK == 0 and is_over():
                return False
            if number % _TELL == 0:
                progress(f"{number} of {len(roots)} points looked through for repositories")
            if len(self.needed) == len(self._candidates):
                return True
            self._take(root)
        self._judge_unknown()
        return True

    def look_again(self) -> None:
        """Look at what was recorded meanwhile: little."""
        for root in self._roots.fresh():
            self._take(root)
        self._keep_for_unknown()

    def _take(self, root: bytes) -> None:
        for oid in self._foreign(root):
            found = False
            for name, repository in self._candidates.items():
                if repository.has(oid):
                    self.needed.setdefault(name, root)
                    found = True
            if not found and not any(each.has(oid) for each in self._others):
                self._unknown.setdefault(oid, root)

    def _foreign(self, root: bytes) -> Iterator[bytes]:
        """What *root* leads to and the store does not have, what was seen before left out."""
        waiting = [root]
        while waiting:
            oid = waiting.pop()
            if oid in self._seen:
                continue
            self._seen.add(oid)
            try:
                kind, payload = self._store.read(oid)
            except ObjectTooLarge:
                continue
            except ObjectMissing:
                yield oid
                continue
            if kind == "tree":
                for mode, _, child in self._new_entries(payload):
                    number = int(mode, 8)
                    if stat.S_ISDIR(number):
                        waiting.append(child)
                    elif number != MODE_GITLINK and child not in self._seen:
                        self._seen.add(child)
                        if not self._store.has(child):
                            yield child
            elif kind == "commit":
                waiting += self._of_commit(oid, payload)
            elif kind == "tag":
                waiting.append(decode_tag(payload)[0])

    def _new_entries(self, tree: bytes) -> set[tuple[bytes, bytes, bytes]]:
        """The entries of a tree but for those that were looked at a moment ago: most."""
        new = set(stored_entries(tree)) - self._lately
        if len(self._lately) > _LATELY_MAX:
            self._lately.clear()
        self._lately |= new
        return new

    def _of_commit(self, oid: bytes, payload: bytes) -> Iterable[bytes]:
        try:
            return (read_point(oid, decode_commit(payload)).tree,)  # its metadata is the store's own
        except CorruptObject:
            return self._roots.of_commit(oid, payload)

    def _judge_unknown(self) -> None:
        """What nobody has may be with the remote of a partial clone, and only that clone knows it."""
        for other in self._others if self._unknown else ():
            try:
                for oid in other.promised():
                    self._unknown.pop(oid, None)
            except RepositoryError:
                continue  # then it promises nothing, and more is kept
        self._keep_for_unknown()

    def _keep_for_unknown(self) -> None:
        for root in self._unknown.values():
            for name, repository in self._candidates.items():
                if repository.is_partial:
                    self.needed.setdefault(name, root)
            return
