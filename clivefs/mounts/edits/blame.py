"""Which layer each line of a file comes from: stock `git blame` over a history with one commit a layer."""

from __future__ import annotations

import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from clivefs.mounts.edits.commit import quoted
from clivefs.mounts.edits.diff import Version
from clivefs.mounts.git.command import GitCommand
from clivefs.mounts.git.joined import JoinedObjects, blob_content
from clivefs.mounts.git.treeeditor import TreeEditor, differences
from clivefs.objects.encode import MODE_GITLINK

_FILES_MAX = 200
_BYTES_MAX = 1 << 20
_GROUP = re.compile(rb"([0-9a-f]{40}) \d+ (\d+)(?: (\d+))?")


class Layer(NamedTuple):
    """One layer, and the files that it may have to do with; None for those that it takes away."""

    name: str
    files: Mapping[bytes, Version | None]


class Lines(NamedTuple):
    """Lines from *first* to *last*, counted from 1, that come from one layer."""

    first: int
    last: int
    layer: str


def tree_layers(reader: JoinedObjects, trees: Sequence[tuple[str, bytes]], path: bytes) -> Iterator[Layer]:
    """The layers of *path* in *trees* (name and tree of each, the lowest first), with the files that are moved by one:
    a file can come from under another name. ClivefsError where one of them cannot be fetched."""
    first_name, first = trees[0]
    moved = {
        each.path: None
        for (_, before), (_, after) in itertools.pairwise(trees)
        for number, each in enumerate(differences(reader, before, after))
        if number < _FILES_MAX
    }
    concerned = [path, *(each for each in moved if each != path)]
    reader.want(_blobs(reader, [tree for _, tree in trees], concerned))
    yield Layer(first_name, dict(_files(reader, first, concerned)))
    for name, tree in trees[1:]:
        yield Layer(name, dict(_files(reader, tree, concerned)))


def _blobs(reader: JoinedObjects, trees: Iterable[bytes], paths: Sequence[bytes]) -> Iterator[bytes]:
    for tree in trees:
        editor = TreeEditor(reader, tree)
        for path in paths:
            version = editor.get(path)
            if version is not None and version.mode != MODE_GITLINK:
                yield version.oid


def _files(reader: JoinedObjects, tree: bytes, paths: Iterable[bytes]) -> Iterator[tuple[bytes, Version | None]]:
    editor = TreeEditor(reader, tree)
    for number, path in enumerate(paths):
        version = editor.get(path)
        if version is None or version.mode == MODE_GITLINK:
            yield path, None
        elif number == 0 or reader.header(version.oid)[1] <= _BYTES_MAX:
            yield path, Version(version.mode, blob_content(reader, version.oid))


def blame_lines(layers: Sequence[Layer], path: bytes, scratch: str) -> list[Lines]:
    """The lines of the file *path* of the last of *layers*, in order."""
    with tempfile.TemporaryDirectory(prefix="blame-", dir=scratch) as directory:
        git = GitCommand()
        git.run(["init", "--quiet", "--bare", "--initial-branch=main", directory])
        marks = os.path.join(directory, "layers")
        stream = b"feature done\n" + b"".join(_stream(layers)) + b"done\n"
        git.run(["fast-import", "--quiet", f"--export-marks={marks}"], git_dir=directory, stdin=stream)
        names = {}
        with open(marks, encoding="ascii") as file:
            for line in file:
                mark, commit = line.split()
                names[commit] = layers[int(mark[1:]) - 1].name
        output = git.run(["blame", "--incremental", "refs/heads/main", "--", path], git_dir=directory)
    found: list[Lines] = []
    for said in output.split(b"\n"):
        match = _GROUP.fullmatch(said)
        if match is not None and match[3] is not None:
            first = int(match[2])
            found.append(Lines(first, first + int(match[3]) - 1, names[match[1].decode()]))
    return _joined(sorted(found))


def _joined(found: Iterable[Lines]) -> list[Lines]:
    lines: list[Lines] = []
    for each in found:
        if lines and lines[-1].layer == each.layer and lines[-1].last + 1 == each.first:
            lines[-1] = lines[-1]._replace(last=each.last)
        else:
            lines.append(each)
    return lines


def _stream(layers: Iterable[Layer]) -> Iterator[bytes]:
    """One commit for each layer in the language of git-fast-import(1); its mark is its number."""
    for number, layer in enumerate(layers, 1):
        yield b"commit refs/heads/main\nmark :%d\ncommitter clivefs <> %d +0000\ndata 0\n" % (number, number)
        for path, version in layer.files.items():
            if version is None and number > 1:
                yield b"D %b\n" % quoted(path)
        for path, version in layer.files.items():
            if version is not None:
                yield b"M %o inline %b\ndata %d\n" % (version.mode, quoted(path), len(version.content))
                yield version.content
                yield b"\n"
        yield b"\n"
