"""`Clive.toml` as frozen, validated values.

`parse` is the only way from text to a `Workspace`: what it returns has been checked whole, and what is
wrong with a text it raises as one `ConfigError` with every problem's file, line, key and remedy. It looks
at nothing but the text: paths are compared as written, links are `trust.py`'s concern.
"""

from __future__ import annotations

import os
from typing import Any, Literal

import msgspec

from clivefs.base.errors import ClivefsError
from clivefs.mounts.config.errors import (
    PROBLEMS_MAX,
    BadValue,
    ConfigError,
    KeyPath,
    Problem,
    key_text,
    nearest,
    shorten,
    type_name,
)
from clivefs.mounts.config.file import FILE_NAME as FILE_NAME
from clivefs.mounts.config.file import decode, read_at, read_toml
from clivefs.mounts.config.scan import lines_of
from clivefs.mounts.config.schema import MOUNT_KEYS, TABLES, Key, check_component, check_entry_path, check_label
from clivefs.mounts.config.source_notation import COMMIT, KINDS, Kind, Source, format_source, host_path

WriteMode = Literal["through", "overlay", "none"]


class MountEntry(msgspec.Struct, frozen=True, kw_only=True):
    """`path -> source`: which source provides the tree below *path* of the workspace."""

    path: str
    kind: Kind
    location: str
    """As written: a path relative to the workspace's root, a URL, `NAME==V`."""
    host_path: str | None
    """The absolute path of a source on this machine, not resolved; None for one elsewhere."""
    ref: str | None = None
    subdir: str | None = None
    patches: tuple[str, ...] = ()
    write: WriteMode
    follow: bool = False
    git_dir: bool = False
    """Show a working `.git`; only ever true for git."""
    blobs: Literal["lazy", "all"] | None = None
    """As written; `fetch` says what it comes to."""
    strip: int | None = None
    sha256: str | None = None
    sdist: bool = False
    """pypi: the sdist, never a wheel."""
    line: int = 0

    @property
    def source(self) -> str:
        """The source in the one-line notation of the command line."""
        return format_source(Source(self.kind, self.location, self.ref, self.subdir, self.sdist))

    @property
    def fetch(self) -> Literal["lazy", "all"]:
        """Whether blobs come when they are read, or all of them in the background."""
        if self.blobs is not None:
            return self.blobs
        return "all" if self.kind == "git" and self.git_dir and self.host_path is None else "lazy"


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """A command that regenerates *outputs* from inputs. Either `foreach` or `inputs` is set."""

    name: str
    foreach: str | None = None
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...]
    run: str
    mode: Literal["eager", "lazy"] = "eager"
    line: int = 0


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A command that runs as long as the workspace is mounted, restarted when its inputs change."""

    name: str
    run: str
    inputs: tuple[str, ...] = ()
    line: int = 0


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How long points are kept, in seconds, at which density; None is forever."""

    all: int | None = 24 * 3600
    hourly: int | None = 30 * 86_400
    daily: int | None = 365 * 86_400
    yearly: int | None = None


class Sessions(msgspec.Struct, frozen=True, kw_only=True):
    record: bool = True
    exclude: tuple[str, ...] = ()
    ignored: bool = False
    """Record also what `.gitignore` names."""
    keep: Keep = Keep()
    gc: bool = True
    """Let the store be collected when it is quiet."""


class Peer(msgspec.Struct, frozen=True, kw_only=True):
    """Another store. `key` is `ssh-ed25519 BASE64`; `url` is None for one that only ever comes to us."""

    name: str
    url: str | None = None
    key: str
    allow: tuple[str, ...] = ("read",)
    line: int = 0


class Reactor(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool = True
    jobs: int = 0
    """Reactions at a time; 0 for one per CPU."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    network_timeout: int = 30
    """Seconds until content that cannot be fetched is EIO."""
    archive_size: int = 8 << 30
    """Bytes, unpacked."""
    archive_files: int = 1_000_000
    archive_ratio: int = 1000
    """Unpacked bytes for each packed one."""


class Workspace(msgspec.Struct, frozen=True, kw_only=True):
    """A whole `Clive.toml`."""

    file: str
    root: str
    name: str
    write: WriteMode = "through"
    """The write mode of the root layer."""
    mounts: tuple[MountEntry, ...] = ()
    """In file order; no path is equal to or below another's."""
    rules: tuple[Rule, ...] = ()
    services: tuple[Service, ...] = ()
    sessions: Sessions = Sessions()
    peers: tuple[Peer, ...] = ()
    reactor: Reactor = Reactor()
    limits: Limits = Limits()
    warnings: tuple[Problem, ...] = ()
    """What is allowed but probably not meant."""

    def entry(self, path: str) -> MountEntry | None:
        """The mount entry at exactly *path*."""
        return next((entry for entry in self.mounts if entry.path == path), None)


# Reading


def load(path: str | os.PathLike[str], *, root: str | None = None) -> Workspace:
    """The workspace that the file *path* describes. Its root is the file's directory, links resolved, unless
    given. Raises ConfigError for bad content, ClivefsError where there is no such file or it cannot be read."""
    file = os.fspath(path)
    directory = os.path.dirname(file) or "."
    try:
        dir_fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ClivefsError(f"{error.strerror}", place=directory, remedy="name the directory of a workspace") from error
    try:
        if root is None:
            root = os.path.realpath(directory)
        return load_at(dir_fd, os.path.basename(file), file=file, root=root)
    finally:
        os.close(dir_fd)


def load_at(dir_fd: int, name: str = FILE_NAME, *, file: str, root: str) -> Workspace:
    """`load` for the file *name* of an open directory. *file* is what messages call it."""
    return parse(decode(read_at(dir_fd, name, file=file), file=file), file=file, root=root)


def parse(text: str, *, file: str, root: str) -> Workspace:
    """The workspace that *text* describes, for the directory *root* (absolute). Raises only ConfigError."""
    document, statements = read_toml(text, file=file)
    parser = _Parser(file, root, lines_of(statements))
    workspace = parser.workspace(document)
    if workspace is None:
        raise ConfigError(sorted(parser.problems, key=lambda problem: problem.line))
    return workspace


class _Parser:
    """Collects problems while it builds; values with problems are left out."""

    def __init__(self, file: str, root: str, lines: dict[KeyPath, int]) -> None:
        self._file = file
        self._root = root
        self._lines = lines
        self.problems: list[Problem] = []
        self.warnings: list[Problem] = []

    def _line(self, path: KeyPath) -> int:
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def _problem(self, path: KeyPath, message: str, remedy: str = "") -> Problem:
        return Problem(self._file, self._line(path), key_text(path), message, remedy)

    def _fail(self, path: KeyPath, message: str, remedy: str = "") -> None:
        if len(self.problems) < PROBLEMS_MAX:
            self.problems.append(self._problem(path, message, remedy))

    def workspace(self, document: dict[str, Any]) -> Workspace | None:
        tables = dict.fromkeys(name.partition(".")[0] for name in TABLES)
        for table, given in document.items():
            if table not in tables and len(self.problems) < PROBLEMS_MAX:
                near = nearest(table, tables)
                self._fail(
                    (table,),
                    f"unknown {'table' if isinstance(given, dict) else 'key'}",
                    f"did you mean `{near}`?" if near else f"the tables are {', '.join(tables)}",
                )
        top = self._keys(document.get("workspace", {}), ("workspace",), TABLES["workspace"])
        name: str = top.get("name") or os.path.basename(self._root)
        if "name" not in top:
            try:
                check_component(name)
                name.encode()
            except (BadValue, UnicodeEncodeError):
                self._fail(
                    ("workspace",),
                    f"the directory's name {shorten(name)} cannot be the workspace's",
                    'write name = "..." under [workspace]',
                )
        sections: dict[str, Any] = {
            "mounts": self._mounts(document.get("mounts", {})),
            "rules": self._named(document, "rules", self._rule),
            "services": self._named(document, "services", self._service),
            "peers": self._named(document, "peers", self._peer),
            "sessions": self._sessions(document.get("sessions", {})),
            "reactor": Reactor(**self._keys(document.get("reactor", {}), ("reactor",), TABLES["reactor"])),
            "limits": Limits(**self._keys(document.get("limits", {}), ("limits",), TABLES["limits"])),
        }
        if self.problems:
            return None
        write = top.get("write", "through")
        warnings = tuple(self.warnings)
        return Workspace(file=self._file, root=self._root, name=name, write=write, warnings=warnings, **sections)

    def _keys(self, value: object, path: KeyPath, keys: tuple[Key, ...]) -> dict[str, Any]:
        """The good values of one table."""
        if not isinstance(value, dict):
            self._fail(path, f"a table is needed here, not {type_name(value)}", f"write [{key_text(path)}]")
            return {}
        known = {key.name: key for key in keys}
        result: dict[str, Any] = {}
        for name, given in value.items():
            if len(self.problems) >= PROBLEMS_MAX:
                break
            key = known.get(name)
            if key is None:
                near = nearest(name, known)
                hint = f"did you mean `{near}`?" if near else f"the keys are {', '.join(known)}"
                self._fail((*path, name), "unknown key", hint)
                continue
            try:
                result[name] = key.read(given)
            except BadValue as error:
                self._fail((*path, name, *error.inside), error.message, error.remedy or f"write it as in {key.shown}")
        for key in keys:
            if key.required and key.name not in value:
                self._fail(path, f"`{key.name}` is missing", f"add it, as in {key.shown}")
        return result

    def _named(self, document: dict[str, Any], table: str, build: Any) -> tuple[Any, ...]:
        """The tables below *table*, each made into a value by *build*; what build gives None for is left out."""
        value = document.get(table, {})
        if not isinstance(value, dict):
            self._fail((table,), f"a table of tables is needed here, not {type_name(value)}", f"write [{table}.NAME]")
            return ()
        made = []
        for name, given in value.items():
            path = (table, name)
            try:
                check_label(name)
            except BadValue as error:
                self._fail(path, error.message, error.remedy)
            before = len(self.problems)
            keys = self._keys(given, path, TABLES[f"{table}.NAME"])
            if len(self.problems) == before:
                made.append(build(path, {"name": name, "line": self._line(path), **keys}))
        return tuple(each for each in made if each is not None)

    def _rule(self, path: KeyPath, keys: dict[str, Any]) -> Rule | None:
        if ("foreach" in keys) == ("inputs" in keys):
            message = "both `foreach` and `inputs` are given" if "inputs" in keys else "a rule needs its inputs"
            self._fail(path, message, 'write either foreach = "glob" or inputs = ["glob", ...]')
            return None
        return Rule(**keys)

    def _service(self, path: KeyPath, keys: dict[str, Any]) -> Service:
        return Service(**keys)

    def _peer(self, path: KeyPath, keys: dict[str, Any]) -> Peer:
        return Peer(**keys)

    def _sessions(self, value: object) -> Sessions:
        keys = self._keys(value, ("sessions",), TABLES["sessions"])
        if "keep" in keys:
            keys["keep"] = Keep(**self._keys(keys["keep"], ("sessions", "keep"), TABLES["sessions.keep"]))
        return Sessions(**keys)

    # Mount entries

    def _mounts(self, value: object) -> tuple[MountEntry, ...]:
        if not isinstance(value, dict):
            message = f"a table of entries is needed here, not {type_name(value)}"
            self._fail(("mounts",), message, 'write [mounts."PATH"]')
            return ()
        entries = []
        for path, given in value.items():
            place = ("mounts", path)
            try:
                check_entry_path(path)
            except BadValue as error:
                self._fail(place, error.message, error.remedy or "write a path below the workspace's directory")
            entry = self._entry(path, given, place)
            if entry is not None:
                entries.append(entry)
        for path in value:
            above = path.rstrip("/")
            while "/" in above:
                above = above.rpartition("/")[0]
                if above in value:
                    where = f"{key_text(('mounts', above))} (line {self._line(('mounts', above))})"
                    self._fail(("mounts", path), f"overlapping: it lies below {where}", "give one of them another path")
                    break
        return tuple(entries)

    def _entry(self, path: str, given: object, place: KeyPath) -> MountEntry | None:
        before = len(self.problems)
        keys = self._keys(given, place, MOUNT_KEYS)
        if not isinstance(given, dict):
            return None
        sources = [kind for kind in KINDS if kind in given]
        if not sources:
            self._fail(place, "the entry has no source", f"add one of {', '.join(KINDS)}")
            return None
        if len(sources) > 1:
            self._fail((*place, sources[1]), f"several sources: {', '.join(sources)}", "keep one of them")
            return None
        kind = sources[0]
        for key in MOUNT_KEYS:
            if key.name in given and key.kinds and kind not in key.kinds:
                self._fail(
                    (*place, key.name),
                    f"does not belong to a {kind} source",
                    _MISPLACED.get((kind, key.name)) or f"remove it; it is for {', '.join(key.kinds)}",
                )
        write: WriteMode = keys.get("write") or ("through" if kind == "local" else "overlay")
        if write == "through" and kind != "local":
            remedy = 'write "overlay" or "none"'
            self._fail((*place, "write"), f"a {kind} source cannot be written through", remedy)
        if keys.get("follow") and COMMIT.fullmatch(keys.get("ref") or ""):
            self._fail((*place, "follow"), "a commit never moves", "name a branch as `ref`, or remove `follow`")
        location = keys.pop(kind, None)
        if len(self.problems) > before or location is None:
            return None
        where = host_path(Source(kind, location), self._root)
        if kind == "local" and where is not None:
            self._check_cycle(path, where, place)
        if keys.get("patches") and kind == "local":
            message = "patches are not applied to a local directory"
            remedy = "they count again when the entry shows a ref or a release"
            self.warnings.append(self._problem((*place, "patches"), message, remedy))
        keys["write"] = write
        keys.setdefault("git_dir", kind == "git")
        return MountEntry(path=path, kind=kind, location=location, host_path=where, line=self._line(place), **keys)

    def _check_cycle(self, path: str, where: str, place: KeyPath) -> None:
        remedy = "name a directory that does not hold the workspace"
        if _contains(where, self._root):
            self._fail((*place, "local"), f"a cycle: {where} is or holds the workspace's own directory", remedy)
        elif _contains(where, f"{self._root.rstrip('/')}/{path}"):
            self._fail((*place, "local"), f"a cycle: {where} is or holds the place it is mounted at", remedy)


_MISPLACED = {
    ("local", "subdir"): "write the whole path as `local`",
    ("local", "ref"): 'use `git = "PATH"` to show a ref of a local repository',
}


def _contains(directory: str, path: str) -> bool:
    """Whether *path* is *directory* or lies below it; both absolute and normal."""
    return path == directory or path.startswith(directory.rstrip("/") + "/")
