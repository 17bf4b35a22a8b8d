"""What the store keeps of the local repositories that it reads: objects that outlive the user's own `git gc`.

A local repository is read in place and never written. What a commit needs is kept in a bare repository of the
store, `STORE/repositories/HASH.git` (`fetch.repository_path` of `local:` and the source's common directory; for a
local partial clone it is the one that fetches what is missing). Beyond what any bare repository has:

    objects/        hard links to the source's packs and loose objects, and packs of our own
    packed-refs     a line `OID refs/kept/OID` for every object that is kept with all that it leads to: written last,
                    so what it names is here
    shallow         as in the source, if that is a shallow clone

It is an ordinary repository: stock git can read, check and repack it. The first time, everything that the source
has (and what that borrows from others) is linked: no history is walked, nothing is copied. From then on a pack is
written of what is new. Where links cannot be made (another filesystem, files of another user) the first pack has
all that is needed. What a promisor remote holds need not be kept.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import threading
from collections.abc import Iterable, Iterator

from clivefs.base.ports import FAULTS
from clivefs.base.syscalls import make_directories
from clivefs.mounts.git.command import GitCommand, GitFailed, config_text
from clivefs.mounts.git.fetch import write_whole
from clivefs.mounts.git.inuse import InUse
from clivefs.mounts.git.location import borrowed
from clivefs.objects.encode import OID_BYTES
from clivefs.objects.gitdirs import quoted_path
from clivefs.objects.repository import Repository

PACKS_MAX = 50
"""More packs than this are made fewer: each costs every look-up a little."""
_LARGE_PACKS = 8
_PASSES_MAX = 10
_NEGATIVES_MAX = 1000
_PACK = re.compile(r"(?!tmp_)[^.]+\.(pack|idx|rev|promisor)")
_FANOUT = re.compile(r"[0-9a-f]{2}")
_LOOSE = re.compile(r"[0-9a-f]{38}")
_NO_LINK = frozenset((errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS))
"""What link(2) says where a file cannot have another name there."""
_SUFFIX_ORDER = {"pack": 0, "rev": 1, "promisor": 2, "idx": 3}
"""git takes a pack for there when its index is: that comes last."""


class KeptObjects:
    """What is kept of one local repository. Every method may be called from any thread and process."""

    def __init__(self, path: str, source: Repository, *, git: GitCommand) -> None:
        self.path = path
        self._source = source
        self._git = git
        self._marks: frozenset[bytes] = frozenset()
        self.in_use: InUse | None = None
        """Keeps it from being collected; after `create` or `hold`."""
        self._mine = threading.Lock()

    @property
    def objects_dir(self) -> str:
        return os.path.join(self.path, "objects")

    def create(self) -> None:
        """Make the repository, empty, unless it is there. What a crash left unwritten is written again. From then on
        it is held."""
        self.hold()
        for part in (("objects", "info"), ("objects", "pack"), ("refs",)):
            make_directories(os.path.join(self.path, *part))
        config = {"core": {"repositoryformatversion": "0", "bare": "true"}, "gc": {"auto": "0"}}
        for name, text in (("config", config_text(config)), ("HEAD", "ref: refs/heads/none\n")):
            path = os.path.join(self.path, name)
            if _content(path) != text.encode():
                with open(path, "wb") as file:
                    file.write(text.encode())

    def hold(self) -> None:
        """Let no collection remove it, now that it is there."""
        while self.in_use is None:
            make_directories(self.path)
            with contextlib.suppress(FileNotFoundError):  # collected this very moment
                self.in_use = InUse(self.path)

    def reader(self) -> Repository:
        """What is kept, and everything else that the source has now."""
        return Repository(self.path, also=(self._source.objects,), holds=self.in_use)

    def has_kept(self, oids: Iterable[bytes]) -> bool:
        """Whether all of *oids* are known to be kept. In memory: what another process has kept meanwhile is not
        known before the next `keep`."""
        return self._marks.issuperset(oids)

    def keep(self, oids: Iterable[bytes], *, begin: bool = True) -> None:
        """See that these commits, tags, trees or blobs stay here with all that they lead to, whatever becomes of the
        source. Cheap when that was done before. The first time may take long on another filesystem: with *begin* false
        nothing is done then. OSError: EIO when the source does not have one of them (any more), ECANCELED when this
        process is about to end, ENOSPC ..."""
        wanted = frozenset(oids)
        if wanted <= self._marks:
            return
        with self._locked():
            self._marks = self._read_marks()
            if _content(self._shallow) != _content(os.path.join(self._source.commondir, "shallow")):
                self._start_anew()  # what leads where is not what it was
            missing = wanted - self._marks
            if not missing or not (self._marks or begin):
                return
            if self._marks or not self._link_all():
                self._pack(missing)
            FAULTS.hit("kept.linked")
            own = Repository(self.path)
            for oid in missing:
                if not own.has(oid):
                    raise OSError(errno.EIO, f"{self._source.path} does not have {oid.hex()}")
            self._write_marks(self._marks | missing)

    # What is kept: packed-refs

    def _read_marks(self) -> frozenset[bytes]:
        lines = (_content(os.path.join(self.path, "packed-refs")) or b"").splitlines()
        return frozenset(
            bytes.fromhex(line[: 2 * OID_BYTES].decode())
            for line in lines
            if line[2 * OID_BYTES :].startswith(b" refs/kept/")
        )

    def _write_marks(self, marks: frozenset[bytes]) -> None:
        lines = [b"%b refs/kept/%b\n" % (oid, oid) for oid in sorted(oid.hex().encode() for oid in marks)]
        write_whole(os.path.join(self.path, "packed-refs"), b"".join(lines))
        _sync_directory(self.path)
        self._marks = marks

    @property
    def _shallow(self) -> str:
        return os.path.join(self.path, "shallow")

    def _start_anew(self) -> None:
        self._write_marks(frozenset())
        shallow = _content(os.path.join(self._source.commondir, "shallow"))
        if shallow is not None:
            write_whole(self._shallow, shallow)
        else:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._shallow)

    # The first time: links

    def _link_all(self) -> bool:
        """Link everything that the source has; false where links cannot be made.

        Objects move while we look: loose ones into packs, packs into others, and what nothing leads to out of packs.
        So it is done when a pass finds nothing new.
        """
        touched: dict[str, None] = {}
        for _ in range(_PASSES_MAX):
            linked = 0
            try:
                for objects in (self._source.objects, *borrowed(self._source.objects)):
                    linked += self._link_loose(objects, touched) + self._link_packs(objects, touched)
            except OSError as error:
                if error.errno in _NO_LINK:
                    return False
                raise
            if not linked:
                break
        for directory in touched:
            _sync_directory(directory)
        return True

    def _link_loose(self, objects: str, touched: dict[str, None]) -> int:
        count = 0
        for fanout in _names(objects):
            if _FANOUT.fullmatch(fanout):
                names = [name for name in _names(os.path.join(objects, fanout)) if _LOOSE.fullmatch(name)]
                if names:
                    count += self._link(os.path.join(objects, fanout), fanout, names, touched)
        return count

    def _link_packs(self, objects: str, touched: dict[str, None]) -> int:
        names = [name for name in _names(os.path.join(objects, "pack")) if _PACK.fullmatch(name)]
        names.sort(key=lambda name: (name.partition(".")[0], _SUFFIX_ORDER[name.rpartition(".")[2]]))
        whole = {name.partition(".")[0] for name in names if name.endswith(".idx")}
        return self._link(
            os.path.join(objects, "pack"), "pack", [name for name in names if name.partition(".")[0] in whole], touched
        )

    def _link(self, source: str, target: str, names: list[str], touched: dict[str, None]) -> int:
        """Link those of *names* that are not here; how many were tried."""
        to = os.path.join(self.objects_dir, target)
        make_directories(to)
        here = set(_names(to))
        new = [name for name in names if name not in here]
        if not new:
            return 0
        try:
            source_fd = os.open(source, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return len(new)  # packed meanwhile, and the directory of those loose objects is gone
        touched[to] = None
        try:
            target_fd = os.open(to, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with os.scandir(source_fd) as entries:
                    links = {entry.name for entry in entries if entry.is_symlink()}
                if not links.isdisjoint(new):  # what they lead to can be taken away as well
                    raise OSError(errno.EXDEV, "a symbolic link", source)
                for name in new:
                    # Gone meanwhile: it is in a pack now, which the next pass finds.
                    with contextlib.suppress(FileNotFoundError, FileExistsError):
                        os.link(name, name, src_dir_fd=source_fd, dst_dir_fd=target_fd, follow_symlinks=False)
            finally:
                os.close(target_fd)
        finally:
            os.close(source_fd)
        return len(new)

    # Later: packs of what is new

    def _pack(self, wanted: Iterable[bytes]) -> None:
        """Write a pack of what *wanted* lead to and what is kept does not."""
        lines = [oid.hex() for oid in wanted]
        lines += ["^" + oid.hex() for oid in list(self._marks)[:_NEGATIVES_MAX]]
        arguments = ["pack-objects", "--revs", "--quiet", "--non-empty", "--delta-base-offset"]
        if self._source.is_partial:
            arguments.append("--missing=allow-any")
        packs = os.path.join(self.objects_dir, "pack")
        made = self._run([*arguments, os.path.join(packs, "pack")], "".join(line + "\n" for line in lines)).split()
        if self._source.is_partial:
            for name in made:  # git then knows that what its objects lead to may be with the remote
                write_whole(os.path.join(packs, f"pack-{name.decode()}.promisor"), b"")
        else:
            self._combine(packs)
        _sync_directory(packs)

    def _combine(self, packs: str) -> None:
        """Make one pack of all but the largest, if there are many."""
        names = [name.removesuffix(".idx") for name in _names(packs) if _PACK.fullmatch(name) and name.endswith(".idx")]
        if len(names) <= PACKS_MAX:
            return
        names.sort(key=lambda name: os.path.getsize(os.path.join(packs, name + ".pack")))
        small = names[:-_LARGE_PACKS]
        oids: set[bytes] = set()
        for name in small:
            with open(os.path.join(packs, name + ".idx"), "rb") as index:
                listed = self._run(["show-index"], index.read())
            oids.update(line.split()[1] for line in listed.splitlines())
        arguments = ["pack-objects", "--quiet", "--delta-base-offset", os.path.join(packs, "pack")]
        made = {"pack-" + name.decode() for name in self._run(arguments, b"\n".join(sorted(oids)) + b"\n").split()}
        _sync_directory(packs)
        for name in set(small) - made:
            for suffix in reversed(_SUFFIX_ORDER):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(packs, f"{name}.{suffix}"))

    def _run(self, arguments: list[str], stdin: str | bytes) -> bytes:
        try:
            return self._git.run(
                arguments,
                git_dir=self.path,
                stdin=stdin.encode() if isinstance(stdin, str) else stdin,
                variables={"GIT_ALTERNATE_OBJECT_DIRECTORIES": quoted_path(self._source.objects)},
            )
        except GitFailed as error:
            code = errno.ECANCELED if error.ended else errno.EIO
            raise OSError(code, f"{self._source.path}: {error.message}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One thread of one process at a time. Another lock than that of fetching, which may take minutes."""
        with self._mine:
            fd = os.open(self.path + ".keep.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                yield
            finally:
                os.close(fd)


def _names(directory: str) -> list[str]:
    """What is in *directory*; nothing where it is not there."""
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _content(path: str) -> bytes | None:
    """The content of a regular file; None where there is none."""
    if not os.path.isfile(path):  # a pipe would keep us waiting
        return None
    with open(path, "rb") as file:
        return file.read()


def _sync_directory(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
