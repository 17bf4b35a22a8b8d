"""Applying patches to git trees: no checkout, only the files and trees that a patch touches are read and written.

A patch file is applied whole or not at all. Inside one, everything that a diff refers to is the tree before the
patch, as `git apply` has it (so two files can change names); a file that appears twice goes on from its first
result; and a mail header or commit between diffs begins anew on what came before it.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import NamedTuple

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.space import Reader
from clivefs.mounts.git.treeeditor import MODE_REGULAR, RefusedPath, TreeEditor, Version, check_path, show
from clivefs.mounts.patch.file import FilePatch, Patch, PatchSyntax, parse_patch
from clivefs.mounts.patch.hunks import Misfit, Placed, apply_hunks, with_returns
from clivefs.mounts.patch.names import Names, name_files
from clivefs.objects.encode import MODE_GITLINK, OID_BYTES, hash_object
from clivefs.objects.errors import ObjectMissing, ObjectTooLarge
from clivefs.objects.interface import ObjectStore

CACHE = "patched"
_CACHE_VERSION = b"1"
_SHOWN_LINES = 7
_SHOWN_COLUMNS = 160


class PatchFailed(ClivefsError):
    """A patch that does not apply. `place` is PATCH:LINE; the message names the file and shows where it differs."""

    def __init__(
        self,
        message: str,
        *,
        patch: str,
        line: int,
        target: str | None = None,
        hunk: int | None = None,
        remedy: str | None = None,
    ) -> None:
        super().__init__(message, place=f"{patch}:{line}", remedy=remedy)
        self.patch = patch
        self.line = line
        self.target = target
        """The file that it is about."""
        self.hunk = hunk
        """Which of that file's hunks, from 1."""


@dataclass(frozen=True, slots=True)
class Applied:
    """A patch that was applied: the tree it gives, and what of that is its doing."""

    tree: bytes
    touched: tuple[bytes, ...] = ()
    """The files that it wrote, sorted."""
    removed: tuple[bytes, ...] = ()
    notes: tuple[str, ...] = ()
    """Hunks that were found elsewhere than they say, for people."""


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One patch of a series: what it gave, or why it did not apply."""

    name: str
    applied: Applied | None = None
    error: ClivefsError | None = None

    @property
    def tree(self) -> bytes | None:
        return self.applied.tree if self.applied is not None else None


def apply_series(
    reader: Reader | JoinedObjects, store: ObjectStore, base_tree: bytes, patches: Iterable[tuple[str, bytes]]
) -> list[LayerResult]:
    """Apply *patches* (name, content) in order on *base_tree*, up to and with the first that fails.

    *reader* has the objects of the base and those of *store*, to which new ones go and which remembers results.
    ObjectMissing where content was not fetched yet: see `needed`.
    """
    results: list[LayerResult] = []
    tree = base_tree
    for name, data in patches:
        try:
            applied = apply_patch(reader, store, tree, name, data)
        except (PatchFailed, PatchSyntax) as error:
            results.append(LayerResult(name, error=error))
            break
        results.append(LayerResult(name, applied))
        tree = applied.tree
    return results


def apply_patch(reader: Reader | JoinedObjects, store: ObjectStore, tree: bytes, name: str, data: bytes) -> Applied:
    """*tree* with the patch *data* applied, in one durable step. PatchFailed, PatchSyntax, ObjectMissing."""
    key = sha256(_CACHE_VERSION + tree + data).digest()
    known = store.meta_get(CACHE, key)
    if known is not None:
        applied = _decode(known)
        if applied.tree == tree or store.has(applied.tree):
            return applied
    with store.batch() as batch:
        work = _Work(reader, tree, parse_patch(name, data))
        work.apply()
        for content in work.blobs.values():
            batch.blob(content)
        applied = work.result(work.editor.write(batch))
        batch.meta_put(CACHE, key, _encode(applied))
    return applied


def needed(reader: Reader | JoinedObjects, tree: bytes, name: str, data: bytes) -> list[bytes]:
    """The blobs of *tree* that the patch changes and *reader* has not: to be fetched together before `apply_patch`.

    PatchSyntax; ObjectMissing for a tree.
    """
    patch = parse_patch(name, data)
    editor = TreeEditor(reader, tree)
    missing: dict[bytes, None] = {}
    for names in name_files(patch, lambda path: editor.get(path) is not None)[0]:
        version = editor.get(names.source) if names.source else None
        if version is not None and version.mode != MODE_GITLINK:
            try:
                reader.header(version.oid)
            except ObjectMissing:
                missing[version.oid] = None
    return list(missing)


class _Output(NamedTuple):
    mode: int
    content: bytes


class _Work:
    """One patch file on its way into a tree."""

    def __init__(self, reader: Reader | JoinedObjects, tree: bytes, patch: Patch) -> None:
        self.editor = TreeEditor(reader, tree)
        self.blobs: dict[bytes, bytes] = {}
        """New content by name; what is written wins over what the reader has."""
        self._reader = reader
        self._patch = patch
        self._touched: set[bytes] = set()
        self._removed: set[bytes] = set()
        self._notes: list[str] = []
        self._outputs: dict[bytes, _Output] = {}
        self._gone: dict[bytes, FilePatch] = {}
        """What diffs of this segment take away, with the one that does."""
        self._new: dict[bytes, FilePatch] = {}

    def apply(self) -> None:
        """Apply all of the patch to `editor`. PatchFailed, ObjectMissing."""
        named, strip = name_files(self._patch, lambda path: self.editor.get(path) is not None)
        for file, names in zip(self._patch.files, named, strict=True):
            if file.starts_mail:
                self._end_segment()
            self._check_names(file, names, strip)
            self._file(file, names)
        self._end_segment()

    def result(self, tree: bytes) -> Applied:
        return Applied(tree, tuple(sorted(self._touched)), tuple(sorted(self._removed)), tuple(self._notes))

    def _fail(self, file: FilePatch, message: str, path: bytes | None, remedy: str | None = None) -> PatchFailed:
        target = show(path) if path is not None else None
        text = f"{target}: {message}" if target else message
        return PatchFailed(text, patch=self._patch.name, line=file.line, target=target, remedy=remedy)

    def _check_names(self, file: FilePatch, names: Names, strip: int) -> None:
        for raw in (file.old_name, file.new_name, file.source_name, file.target_name):
            if raw is not None and raw.startswith(b"/"):
                raise self._fail(file, "refused: the path is absolute", raw)
        for path, mode in ((names.source, file.old_mode), (names.target, file.new_mode or file.old_mode)):
            if path is None:
                continue
            if not path:
                raw = file.new_name or file.old_name or b""
                raise self._fail(file, f"no name is left when {strip} leading components are stripped", raw)
            why = check_path(path, mode or MODE_REGULAR)
            if why is not None:
                raise self._fail(file, f"refused: {why}", path)
            obstacle = self.editor.obstacle(path) if path == names.source and path not in self._outputs else None
            if obstacle is not None and stat.S_ISLNK(obstacle[1]):
                raise self._fail(file, f"refused: it leads through the symlink {show(obstacle[0])}", path)

    def _file(self, file: FilePatch, names: Names) -> None:
        if file.lacks_binary:
            path = names.target or names.source
            raise self._fail(file, "the patch says that it differs, and has not its content", path,
                             "Make the patch with `git diff --binary`.")  # fmt: skip
        if names.source is None:
            before = _Output(file.new_mode or MODE_REGULAR, b"")
        else:
            before = self._source(file, names.what, names.source)
        content = self._content(file, names, before)
        if names.what == "delete" and content and not file.is_git:
            names = Names("modify", names.source, names.source)  # a time of 1970 was all that made it a deletion
        if names.what in ("delete", "rename"):
            assert names.source is not None
            if names.what == "delete" and content:
                raise self._fail(file, "the patch deletes it, and it has more content than the patch knows",
                                 names.source)  # fmt: skip
            if names.source not in self._new or self.editor.get(names.source) is None:
                self._outputs.pop(names.source, None)
            self._gone[names.source] = file
        if names.target is None:
            return
        self._outputs[names.target] = _Output(file.new_mode or before.mode, content)
        self._new.setdefault(names.target, file)
        if names.what == "modify":
            self._new.pop(names.target, None)

    def _source(self, file: FilePatch, what: str, path: bytes) -> _Output:
        """The file that a diff starts from."""
        output = self._outputs.get(path)
        version = self.editor.get(path)
        if output is not None and self._goes_on(what, path, version):
            before = output
        elif version is None or (what in ("modify", "delete") and path in self._gone):
            kind = "a directory" if self.editor.is_directory(path) else "no such file"
            raise self._fail(
                file, f"there is {kind} in the tree", path, "The patch may be for another version or another directory."
            )
        elif version.mode == MODE_GITLINK:
            before = _Output(version.mode, b"Subproject commit %b\n" % version.oid.hex().encode())
        else:
            before = _Output(version.mode, self._read(file, path, version.oid))
        if file.old_mode is None and not file.hunks and file.binary is None:
            return before  # it is only moved
        wanted = stat.S_IFMT(file.old_mode) if file.old_mode is not None else stat.S_IFREG
        if stat.S_IFMT(before.mode) != wanted:
            raise self._fail(file, f"it is {_kind(before.mode)}, and the patch is for {_kind(wanted)}", path)
        return before

    def _goes_on(self, what: str, path: bytes, version: Version | None) -> bool:
        """Whether a diff of *path* goes on from what an earlier one made, not from the tree."""
        if version is None or what in ("modify", "delete"):
            return True
        return what == "rename" and path not in self._new

    def _read(self, file: FilePatch, path: bytes, oid: bytes) -> bytes:
        if oid in self.blobs:
            return self.blobs[oid]
        try:
            return blob_content(self._reader, oid)
        except ObjectTooLarge as error:
            raise self._fail(file, f"it has {error.size} bytes, more than can be patched", path) from None

    def _content(self, file: FilePatch, names: Names, before: _Output) -> bytes:
        path = names.target if names.target is not None else names.source
        assert path is not None
        if file.binary is not None:
            return self._binary(file, path, before.content)
        result = apply_hunks(before.content, file.hunks)
        if isinstance(result, Misfit) and file.had_returns:  # they may be the content's, as `git apply` has it
            as_written = apply_hunks(before.content, with_returns(file.hunks))
            result = result if isinstance(as_written, Misfit) else as_written
        if isinstance(result, Misfit):
            raise _misfit_error(self._patch.name, path, result, len(file.hunks))
        content, placed = result
        self._notes += _notes(path, file, placed)
        if names.what == "delete" and file.is_git and not file.hunks and before.content:
            raise self._fail(file, "the patch deletes an empty file, and it is not empty", path)
        return content

    def _binary(self, file: FilePatch, path: bytes, content: bytes) -> bytes:
        assert file.binary is not None
        found = hash_object("blob", content).hex().encode()
        if file.old_oid is not None and file.old_oid.strip(b"0") and not found.startswith(file.old_oid):
            raise self._fail(
                file,
                f"it is another content ({found[:12].decode()}) than the binary patch was made for"
                f" ({file.old_oid[:12].decode()})",
                path,
            )
        try:
            made = file.binary.apply(content)
        except ValueError as error:
            raise self._fail(file, str(error), path) from None
        name = hash_object("blob", made).hex().encode()
        if file.new_oid is not None and file.new_oid.strip(b"0") and not name.startswith(file.new_oid):
            raise self._fail(file, "the binary patch makes another content than it says", path)
        return made

    def _end_segment(self) -> None:
        """Let the tree be as all diffs so far have it."""
        for path, file in self._new.items():
            if path not in self._gone and self.editor.get(path) is not None:
                raise self._fail(file, "the patch makes this file, and there is one already", path)
        for path in self._gone:
            if path not in self._outputs:
                self._removed.add(path)
                self._touched.discard(path)
            self.editor.remove(path)
        for path, (mode, content) in self._outputs.items():
            try:
                self.editor.put(path, Version(mode, self._put(mode, content)))
            except (RefusedPath, ValueError) as error:
                file = self._new.get(path) or self._patch.files[0]
                why = error.message if isinstance(error, RefusedPath) else str(error)
                raise self._fail(file, f"refused: {why}", path) from None
            self._touched.add(path)
            self._removed.discard(path)
        self._outputs.clear()
        self._gone.clear()
        self._new.clear()

    def _put(self, mode: int, content: bytes) -> bytes:
        if mode == MODE_GITLINK:
            text = content.removeprefix(b"Subproject commit ").strip()
            if len(text) != 2 * OID_BYTES:
                raise ValueError("it names no commit of a submodule")
            return bytes.fromhex(text.decode("ascii", "replace"))
        if stat.S_ISLNK(mode) and (not content or b"\0" in content):
            raise ValueError("no symlink can have this target")
        oid = hash_object("blob", content)
        self.blobs[oid] = content
        return oid


def _kind(mode: int) -> str:
    kind = stat.S_IFMT(mode)
    return {stat.S_IFLNK: "a symlink", stat.S_IFMT(MODE_GITLINK): "a submodule"}.get(kind, "a regular file")


# What people read


def _notes(path: bytes, file: FilePatch, placed: Sequence[Placed]) -> list[str]:
    notes = []
    for number, (place, hunk) in enumerate(zip(placed, file.hunks, strict=True), 1):
        if place.fuzz or place.offset:
            how = [f"{place.offset:+d} lines"] if place.offset else []
            how += [f"fuzz {place.fuzz}"] if place.fuzz else []
            notes.append(f"{show(path)}: hunk {number} (line {hunk.old_start}) at line {place.line}, {', '.join(how)}")
    return notes


def _misfit_error(patch: str, path: bytes, misfit: Misfit, count: int) -> PatchFailed:
    hunk = misfit.hunk
    start = max(0, min(misfit.differs_at - _SHOWN_LINES // 2, len(misfit.expected) - _SHOWN_LINES))
    lines = [f"{show(path)}: hunk {misfit.number} of {count} (line {hunk.old_start}) does not apply"]
    lines.append(f"  the patch expects at line {misfit.line + start}:")
    lines += _excerpt(misfit.expected, start, misfit.differs_at)
    lines.append("  the file has:")
    lines += _excerpt(misfit.found, start, misfit.differs_at) or ["    | (its end)"]
    if misfit.is_applied:
        remedy = "What the hunk makes is there already: the patch may be part of this version."
    elif misfit.only_endings:
        remedy = "Only the line endings differ: the file or the patch has carriage returns."
    else:
        remedy = "The patch may be for another version of the file."
    return PatchFailed(
        "\n".join(lines), patch=patch, line=hunk.line, target=show(path), hunk=misfit.number, remedy=remedy
    )


def _excerpt(lines: Sequence[bytes], start: int, differs_at: int) -> list[str]:
    shown = []
    for index, line in enumerate(lines[start : start + _SHOWN_LINES], start):
        text = show(line.removesuffix(b"\n").replace(b"\t", b"    "))[:_SHOWN_COLUMNS]
        if not line.endswith(b"\n"):
            text += "  (no newline at the end)"
        shown.append(f"  {'>' if index == differs_at else ' '} | {text}")
    return shown


# What is remembered


def _encode(applied: Applied) -> bytes:
    fields = (b"\0".join(applied.touched), b"\0".join(applied.removed), "\0".join(applied.notes).encode())
    return applied.tree + b"".join(len(each).to_bytes(4, "little") + each for each in fields)


def _decode(record: bytes) -> Applied:
    at = OID_BYTES
    fields = []
    for _ in range(3):
        size = int.from_bytes(record[at : at + 4], "little")
        fields.append(record[at + 4 : at + 4 + size])
        at += 4 + size
    touched, removed, notes = (tuple(each.split(b"\0")) if each else () for each in fields)
    return Applied(record[:OID_BYTES], touched, removed, tuple(note.decode() for note in notes))


# Where content comes from


@dataclass(frozen=True, slots=True)
class Provenance:
    """Which patch a path's content comes from."""

    layers: Mapping[bytes, str]
    """Path to the name of the last patch that wrote it."""

    def layer(self, path: bytes) -> bytes | None:
        """`patch:NAME` for `user.clive.layer`; None for what the source itself has."""
        name = self.layers.get(path)
        return b"patch:" + name.encode("utf-8", "surrogateescape") if name is not None else None


def provenance(results: Iterable[LayerResult]) -> Provenance:
    """Where the files of the tree that a series gave come from."""
    layers: dict[bytes, str] = {}
    for result in results:
        if result.applied is not None:
            for path in result.applied.removed:
                layers.pop(path, None)
            layers.update(dict.fromkeys(result.applied.touched, result.name))
    return Provenance(layers)
