"""The conversions that a checkout makes by `.gitattributes`: line ends, `ident`, working-tree encodings.

git itself decides and converts (`check-attr`, then `cat-file --filters`), in a scratch repository that has
nothing but the attribute files on the way to a directory and the blobs in question: no configuration of
the user or the machine, so no external filter ever runs (the pointer of an LFS file shows). All of that is
only for directories in which some file can be concerned; the look that decides it (`_Patterns`) may say
yes too often, never no wrongly. What was converted is kept in files until the layer is closed.
"""

from __future__ import annotations

import errno
import fnmatch
import logging
import os
import re
import shutil
import tempfile
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from hashlib import sha1

from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.space import Converted, Converter, Reader, Rules
from clivefs.mounts.tree import Blocked
from clivefs.objects.errors import ObjectTooLarge
from clivefs.objects.interface import ObjectStore

log = logging.getLogger(__name__)

ATTRIBUTES_BYTES_MAX = 1 << 20
CONVERTED_BYTES_MAX = 256 << 20
DIRECTORIES_MAX = 20_000
_SCRATCH_PATH_BYTES_MAX = 3000
_ATTRIBUTES = ("text", "crlf", "eol", "ident", "working-tree-encoding")
CONCERNS = re.compile(rb"(?:^|[ \t])(?:eol=crlf|ident|working-tree-encoding=)")
_MACRO = re.compile(rb"\[attr\]([^ \t]+)")
_SIMPLE = re.compile(rb"[^/\[\]\\\"!]+")
NOWHERE = {
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_SYSTEM": os.devnull,
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_ATTR_NOSYSTEM": "1",
}


class GitAttributes(Converter):
    """The conversions of one layer. Every method may be called from any thread."""

    def __init__(self, cache_dir: str, *, info_attributes: bytes = b"", git: GitCommand | None = None) -> None:
        """*cache_dir*: where the scratch repository is made. *info_attributes*: the source's own rules."""
        self._cache_dir = cache_dir
        self.info = info_attributes
        self._always = bool(CONCERNS.search(info_attributes)) or b"[attr]" in info_attributes
        self._git = git or GitCommand()
        self._lock = threading.RLock()
        self._scratch: str | None = None
        self._patterns: dict[Rules, _Patterns] = {}
        self._found: OrderedDict[bytes, dict[bytes, Converted]] = OrderedDict()
        """Directory to the files in it that are converted."""

    @property
    def always(self) -> bool:
        return self._always

    def find(
        self,
        reader: Reader,
        directory: bytes,
        rules: Rules,
        files: Callable[[], Mapping[bytes, bytes]],
        name: bytes,
    ) -> Converted | None:
        with self._lock:
            known = self._found.get(directory)
            if known is not None:
                return known.get(name)
            patterns = self._patterns_of(reader, rules)
            suspects = {each: oid for each, oid in files().items() if patterns.may_concern(each)}
            if not suspects:
                self._remember(directory, {})
                return None
        for oid in suspects.values():
            reader.header(oid)  # ObjectMissing here lets the layer fetch first

        def convert() -> None:
            with self._lock:
                if directory not in self._found:
                    self._convert(reader, directory, rules, suspects)

        raise Blocked(convert, f"converting {len(suspects)} files of {os.fsdecode(directory) or 'the root'}")

    def forget(self, directory: bytes) -> None:
        with self._lock:
            self._found.pop(directory, None)

    def _remember(self, directory: bytes, found: dict[bytes, Converted]) -> None:
        self._found[directory] = found
        while len(self._found) > DIRECTORIES_MAX:
            self._found.popitem(last=False)

    def close(self) -> None:
        with self._lock:
            self._found.clear()
            scratch, self._scratch = self._scratch, None
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)

    # Which files

    def _patterns_of(self, reader: Reader, rules: Rules) -> _Patterns:
        found = self._patterns.get(rules)
        if found is None:
            texts = [attributes_text(reader, oid) for _, oid in rules]
            found = _Patterns([self.info, *texts])
            if len(self._patterns) >= DIRECTORIES_MAX:
                self._patterns.clear()
            self._patterns[rules] = found
        return found

    # Converting, in a job

    def _convert(self, reader: Reader, directory: bytes, rules: Rules, suspects: Mapping[bytes, bytes]) -> None:
        found: dict[bytes, Converted] = {}
        try:
            root = self._prepare(reader, rules)
            prefix = directory + b"/" if directory else b""
            concerned = self._concerned(root, prefix, list(suspects))
            for name, content in self._checked_out(reader, root, prefix, {name: suspects[name] for name in concerned}):
                found[name] = Converted(len(content), self._keep(content))
        except GitFailed as error:
            log.warning("%s: shown without conversion: %s", os.fsdecode(directory), error.message)
        self._remember(directory, found)

    def _prepare(self, reader: Reader, rules: Rules) -> str:
        """The scratch working tree, with the attribute files of *rules* in it; its path."""
        if self._scratch is None:
            scratch = tempfile.mkdtemp(prefix="attributes-", dir=self._cache_dir)
            for part in ("git/objects", "git/refs", "git/info", "tree", "kept"):
                os.makedirs(os.path.join(scratch, part))
            _put(os.path.join(scratch, "git", "HEAD"), b"ref: refs/heads/none\n")
            _put(os.path.join(scratch, "git", "config"), b"[core]\n\trepositoryformatversion = 0\n\tbare = false\n")
            if self.info:
                _put(os.path.join(scratch, "git", "info", "attributes"), self.info)
            self._scratch = scratch
        root = os.path.join(self._scratch, "tree")
        for place, oid in rules:
            if len(place) > _SCRATCH_PATH_BYTES_MAX:
                continue
            folder = os.path.join(os.fsencode(root), place) if place else os.fsencode(root)
            path = os.path.join(folder, b".gitattributes")
            if not os.path.lexists(path):
                os.makedirs(folder, exist_ok=True)
                _put(path, attributes_text(reader, oid))
        return root

    def _run(self, root: str, arguments: list[str], stdin: bytes) -> bytes:
        assert self._scratch is not None
        variables = {**NOWHERE, "GIT_WORK_TREE": root, "HOME": self._scratch, "XDG_CONFIG_HOME": self._scratch}
        return self._git.run(
            arguments,
            cwd=root,
            git_dir=os.path.join(self._scratch, "git"),
            config=[f"core.attributesFile={os.devnull}"],
            variables=variables,
            stdin=stdin,
        )

    def _concerned(self, root: str, prefix: bytes, names: list[bytes]) -> list[bytes]:
        """Those of *names* whose attributes make a checkout convert."""
        if len(prefix) > _SCRATCH_PATH_BYTES_MAX:
            return []
        stdin = b"".join(prefix + name + b"\0" for name in names)
        answer = self._run(root, ["check-attr", "-z", "--stdin", *_ATTRIBUTES], stdin).split(b"\0")
        concerned: dict[bytes, None] = {}
        for at in range(0, len(answer) - 2, 3):
            path, attribute, value = answer[at : at + 3]
            if (
                (attribute == b"eol" and value == b"crlf")
                or (attribute == b"ident" and value == b"set")
                or (attribute == b"working-tree-encoding" and value not in (b"unspecified", b"unset", b"set"))
            ):
                concerned[path[len(prefix) :]] = None
        return list(concerned)

    def _checked_out(
        self, reader: Reader, root: str, prefix: bytes, files: Mapping[bytes, bytes]
    ) -> list[tuple[bytes, bytes]]:
        """Those of *files* that a checkout converts, with what it makes of them."""
        assert self._scratch is not None
        objects = os.path.join(self._scratch, "git", "objects")
        stored: dict[bytes, bytes] = {}
        for oid in dict.fromkeys(files.values()):
            content = self._whole(reader, oid)
            if content is None:
                log.warning("blob %s is shown without conversion: it is too large", oid.hex())
                continue
            stored[oid] = content
            _put_loose(objects, oid, content)
        wanted = [(name, oid) for name, oid in files.items() if oid in stored]
        if not wanted:
            return []
        stdin = b"".join(oid.hex().encode() + b" " + prefix + name + b"\0" for name, oid in wanted)
        # The header gives the size before conversion: a mark that no content can know tells where one ends.
        mark = os.urandom(16).hex()
        try:
            output = self._run(root, ["cat-file", "-z", "--filters", f"--batch={mark} %(objectname)"], stdin)
        finally:
            shutil.rmtree(objects)
            os.mkdir(objects)
        found: list[tuple[bytes, bytes]] = []
        pieces = output.split(mark.encode() + b" ")[1:]
        if len(pieces) != len(wanted):
            raise GitFailed("git cat-file did not answer for every file")
        for (name, oid), piece in zip(wanted, pieces, strict=True):
            content = piece[41:-1]  # after `OID\n`, before the closing newline
            if content != stored[oid]:
                found.append((name, content))
        return found

    def _whole(self, reader: Reader, oid: bytes) -> bytes | None:
        """The content of a blob, None above `CONVERTED_BYTES_MAX`."""
        assert self._scratch is not None
        size = reader.header(oid)[1]
        if size > CONVERTED_BYTES_MAX:
            return None
        try:
            return reader.read(oid)[1]
        except ObjectTooLarge:
            pass
        fd = reader.open_large(oid) if isinstance(reader, ObjectStore) else None
        if fd is None and not isinstance(reader, ObjectStore):
            path = reader.materialize(oid, self._scratch)
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            os.unlink(path)
        if fd is None:
            return None
        with open(fd, "rb") as file:
            return file.read(size)

    def _keep(self, content: bytes) -> str:
        """The path of a file with *content*."""
        assert self._scratch is not None
        path = os.path.join(self._scratch, "kept", sha1(content, usedforsecurity=False).hexdigest())
        if not os.path.lexists(path):
            _put(path, content)
        return path


class _Patterns:
    """Which names some line of the attribute files could convert; errs on the side of yes."""

    def __init__(self, texts: list[bytes]) -> None:
        lines = [line.strip() for text in texts for line in text.replace(b"\r", b"\n").split(b"\n")]
        lines = [line for line in lines if line and not line.startswith(b"#")]
        macros = _macros(lines)
        self._globs: list[re.Pattern[bytes]] = []
        self._all = False
        for line in lines:
            pattern, _, attributes = line.replace(b"\t", b" ").partition(b" ")
            if pattern.startswith(b"[attr]"):
                continue
            words = set(attributes.split())
            if not CONCERNS.search(b" " + attributes) and not words & macros:
                continue
            if _SIMPLE.fullmatch(pattern):
                self._globs.append(re.compile(fnmatch.translate(pattern.decode("latin-1")).encode("latin-1")))
            else:
                self._all = True

    def may_concern(self, name: bytes) -> bool:
        return self._all or any(glob.match(name) for glob in self._globs)


def _macros(lines: list[bytes]) -> set[bytes]:
    """The attributes that stand for one that converts, by way of others too."""
    definitions = [(match[1], line) for line in lines if (match := _MACRO.match(line))]
    macros: set[bytes] = set()
    for _ in definitions:
        more = {name for name, line in definitions if CONCERNS.search(line) or set(line.split()[1:]) & macros}
        if more == macros:
            break
        macros = more
    return macros


def attributes_text(reader: Reader, oid: bytes) -> bytes:
    """The content of an attribute file; empty where it is absurdly large."""
    if reader.header(oid)[1] > ATTRIBUTES_BYTES_MAX:
        return b""
    return reader.read(oid)[1]


def _put(path: str | bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


def _put_loose(objects: str, oid: bytes, content: bytes) -> None:
    """Write a loose object, as git stores one."""
    name = oid.hex()
    folder = os.path.join(objects, name[:2])
    os.makedirs(folder, exist_ok=True)
    try:
        _put(os.path.join(folder, name[2:]), zlib.compress(b"blob %d\0" % len(content) + content, 0))
    except OSError as error:
        raise OSError(error.errno or errno.EIO, error.strerror) from error
