"""Making sealed packs: from objects of the database to one delta-compressed pack of stock git's.

    1  the objects are handed to git as a plain pack, in a directory of their own: STORE/packs/new-RANDOM
    2  `git pack-objects` finds the deltas, as `git gc --aggressive` does, and writes pack and index
    3  both get their names in the sealed repository, durably, the index last: readers see the pack
    4  the database's copies go, for some milliseconds at a time

Killed before 3, it leaves a directory that the next one removes; after, copies that the next one removes.

Packs are merged without a look at what is in them: their deltas stay, and only objects that are none are tried against
those of the other packs, next to the ones that had the same path (`.paths` keeps these).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from clivefs.base.ports import FAULTS
from clivefs.objects.encode import OID_BYTES
from clivefs.objects.errors import ObjectMissing, RepositoryError
from clivefs.objects.gitdirs import quoted_path, reason
from clivefs.objects.packwriter import write_pack
from clivefs.objects.sealed import SUFFIXES, PackIndex
from clivefs.objects.store import Store
from clivefs.objects.strands import Strand, StrandObject, join_strands, write_strand

WINDOW = 250
DEPTH = 50
"""As `git gc --aggressive` has them."""
_NEW = "new-"
_SPAN_S = 0.008
_YIELD_S = 0.001
_CHUNK = 256
_COMPRESSION = 9
_HINTS_BYTES_MAX = 1 << 30
_FULL = (b"Out of diskspace", b"No space left on device", b"Disk quota exceeded")
"""What git says where the disk is full."""


class SealedNow(NamedTuple):
    """What was sealed: objects, the bytes that they took in the database, and what the new pack takes."""

    objects: int
    bytes_before: int
    bytes_now: int


def sweep_unfinished(store: Store) -> None:
    """Remove what a killed sealing left. Only where there is one collection at a time."""
    packs = store.directory("packs")
    for name in os.listdir(packs):
        if name.startswith(_NEW):
            shutil.rmtree(os.path.join(packs, name), ignore_errors=True)
    with suppress(FileNotFoundError):
        for name in os.listdir(store.sealed.packs):
            if name.startswith("tmp_") or not os.path.exists(_sibling(store, name, ".idx")):
                os.unlink(os.path.join(store.sealed.packs, name))


def _sibling(store: Store, name: str, suffix: str) -> str:
    return os.path.join(store.sealed.packs, os.path.splitext(name)[0] + suffix)


def make_pack(
    store: Store,
    objects: Mapping[bytes, bytes],
    beside: Sequence[bytes],
    progress: Callable[[str], None] = lambda text: None,
    *,
    strand: Mapping[bytes, bytes],
    reuse: bool = False,
) -> str:
    """A sealed pack of *objects* (at least one): names, the newest first, each with a path that tells which objects are
    versions of one another. *strand*: the same, but the oldest first, of what is to be a strand. *beside*: the large
    blobs that they lead to. *reuse* the deltas that there are. The new pack's name. RepositoryError, OSError,
    ObjectMissing."""
    with _work(store) as work:
        name = _pack(store, objects, work, progress, reuse=reuse)
        _check_count(work, name, len(objects))
        if strand:
            described = (StrandObject(oid, *store.read(oid), hint) for oid, hint in strand.items())
            write_strand(os.path.join(work, f"{name}.strand"), described)
        FAULTS.hit("seal.packed")
        _publish(store, work, name, beside, objects)
    FAULTS.hit("seal.published")
    return name


def merge_packs(store: Store, packs: Sequence[str], progress: Callable[[str], None] = lambda text: None) -> str:
    """Make one pack of *packs* (at least two), and remove them: everything that they have stays. The new pack's name.
    RepositoryError, OSError, CorruptObject."""
    directory = store.sealed.packs
    with _work(store) as work:
        hints: dict[bytes, bytes] = {}
        objects: dict[bytes, bytes] = {}
        for pack in packs:
            hints |= _read_hints(os.path.join(directory, pack + ".paths"))
        for pack in packs:
            for oid in PackIndex(os.path.join(directory, pack + ".idx")).names():
                objects[oid] = hints.get(oid, b"")
        strands = [path for pack in packs if os.path.exists(path := os.path.join(directory, pack + ".strand"))]
        name = _pack(store, objects, work, progress, reuse=True)
        _check_count(work, name, len(objects))
        if strands:
            join_strands(os.path.join(work, f"{name}.strand"), [Strand(path) for path in strands])
        FAULTS.hit("seal.merged")
        _publish(store, work, name, [*set(store.sealed.beside_of(packs))], hints)
    FAULTS.hit("seal.published")
    remove_packs(store, [pack for pack in packs if pack != name])
    return name


@contextmanager
def _work(store: Store) -> Iterator[str]:
    """A directory to make a pack in."""
    _make_repository(store)
    work = os.path.join(store.directory("packs"), _NEW + os.urandom(6).hex())
    os.mkdir(work, 0o700)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_count(work: str, name: str, wanted: int) -> None:
    found = len(PackIndex(os.path.join(work, f"{name}.idx")))
    if found != wanted:
        raise RepositoryError(f"git packed {found} of {wanted} objects", place=work)


def remove_packs(store: Store, packs: Sequence[str]) -> None:
    """Remove packs of which nothing is needed any more, or that another has: the first only behind the gate
    (`gc.alone`), where that is sure."""
    for name in packs:
        for suffix in SUFFIXES:
            with suppress(FileNotFoundError):
                os.unlink(os.path.join(store.sealed.packs, name + suffix))
        FAULTS.hit("seal.replaced")


def drop_copies(store: Store, names: Iterable[bytes]) -> tuple[int, int]:
    """Remove objects of the database that are sealed, of *names*: (objects, their bytes there)."""
    left = [oid for oid in names if store.is_sealed(oid)]
    count = size = at = 0
    while at < len(left):
        deadline = time.monotonic() + _SPAN_S
        while at < len(left) and time.monotonic() < deadline:
            # No gate: whoever does not find it in the database finds it in the pack.
            gone = store.remove(left[at : at + _CHUNK])
            at += _CHUNK
            count += gone.objects
            size += gone.bytes
        FAULTS.hit("seal.dropped")
        time.sleep(_YIELD_S)
    return count, size


def _make_repository(store: Store) -> None:
    path = store.directory("packs/sealed.git/objects/pack")
    top = os.path.dirname(os.path.dirname(path))
    os.makedirs(os.path.join(top, "refs"), 0o700, exist_ok=True)
    with suppress(FileExistsError), open(os.path.join(top, "HEAD"), "x") as file:
        file.write("ref: refs/heads/none\n")


def _pack(
    store: Store, objects: Mapping[bytes, bytes], work: str, progress: Callable[[str], None], *, reuse: bool
) -> str:
    pack_dir = os.path.join(work, "objects", "pack")
    os.makedirs(pack_dir)
    os.mkdir(os.path.join(work, "refs"))
    with open(os.path.join(work, "HEAD"), "w") as file:
        file.write("ref: refs/heads/none\n")
    fed = [oid for oid in objects if not store.is_sealed(oid)]
    progress(f"{len(fed)} objects are handed to git")
    if fed:
        plain = os.path.join(pack_dir, "pack-fed.pack")
        with open(plain, "wb") as pack:
            write_pack(_Fed(store), fed, pack.write)
        _git(work, "index-pack", "-o", os.path.join(pack_dir, "pack-fed.idx"), plain)
        FAULTS.hit("seal.fed")
    if len(fed) < len(objects):
        os.mkdir(os.path.join(work, "objects", "info"))
        with open(os.path.join(work, "objects", "info", "alternates"), "w") as file:
            file.write(quoted_path(os.path.join(store.sealed.path, "objects")) + "\n")
    progress(f"{len(objects)} objects are compressed against each other")
    lines = b"".join(_line(oid, hint) for oid, hint in objects.items())
    # Without deltas to reuse, git would not try the objects of one pack against each other.
    options = [] if reuse else ["--no-reuse-delta"]
    answer = _git(
        work,
        "-c",
        f"pack.compression={_COMPRESSION}",
        "-c",
        "pack.writeReverseIndex=false",
        "pack-objects",
        "-q",
        *options,
        f"--window={WINDOW}",
        f"--depth={DEPTH}",
        "--threads=1",
        "--window-memory=256m",
        "--delta-base-offset",
        os.path.join(work, "pack"),
        stdin=lines,
    )
    return f"pack-{answer.decode().split()[-1]}"


def _line(oid: bytes, hint: bytes) -> bytes:
    return b"%b %b\n" % (oid.hex().encode(), hint.replace(b"\n", b" "))


def _read_hints(path: str) -> dict[bytes, bytes]:
    """What a `.paths` file has; nothing where there is none, or it is damaged: these are hints."""
    try:
        with open(path, "rb") as file:
            lines = zlib.decompressobj().decompress(file.read(), _HINTS_BYTES_MAX).split(b"\n")
        return {bytes.fromhex(line[: 2 * OID_BYTES].decode()): line[2 * OID_BYTES + 1 :] for line in lines if line}
    except (FileNotFoundError, zlib.error, ValueError):
        return {}


class _Fed:
    """The store, as `write_pack` reads it. What is sealed is no large blob."""

    def __init__(self, store: Store) -> None:
        self.read = store.read
        self.read_tree = store.read_tree

    def chunks(self, oid: bytes) -> Iterator[bytes]:
        raise ObjectMissing(oid)


def _publish(store: Store, work: str, name: str, beside: Sequence[bytes], hints: Mapping[bytes, bytes]) -> None:
    packs = store.sealed.packs
    with open(os.path.join(work, f"{name}.beside"), "wb") as file:
        file.write(b"".join(sorted(beside)))
    with open(os.path.join(work, f"{name}.paths"), "wb") as file:
        whole = PackIndex(os.path.join(work, f"{name}.idx")).whole(os.path.join(work, f"{name}.pack"))
        file.write(zlib.compress(b"".join(_line(oid, hint) for oid in whole if (hint := hints.get(oid))), 9))
    for suffix in reversed(SUFFIXES):
        path = os.path.join(work, name + suffix)
        if suffix == ".strand" and not os.path.exists(path):
            continue
        os.chmod(path, 0o400)
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(path, os.path.join(packs, name + suffix))
    fd = os.open(packs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _git(work: str, *arguments: str, stdin: bytes = b"") -> bytes:
    """Run stock git in the directory *work*, as long as it takes; its output. RepositoryError."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environment.update(GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, LC_ALL="C")
    command = shutil.which("git")
    if command is None:
        raise RepositoryError("git is not installed", remedy="Install git: `apt install git`.")
    done = subprocess.run(
        [*_ended_with_us(), command, f"--git-dir={work}", *arguments],
        input=stdin,
        capture_output=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        if any(text in done.stderr for text in _FULL):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), work)
        raise RepositoryError(f"git cannot pack what was recorded: {reason(done)}", place=work)
    return done.stdout


def _ended_with_us() -> list[str]:
    """What a command is begun with so that it ends when this process is killed: packing may take long."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "KILL", "--"] if setpriv is not None else []
