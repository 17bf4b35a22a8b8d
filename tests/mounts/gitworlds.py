"""Trees as plain dictionaries, for tests that compare what we do with what stock git does."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import strategies as st

from clivefs.mounts.edits.plan import Write
from clivefs.mounts.git.joined import blob_content
from clivefs.mounts.git.treeeditor import TreeEditor, Version, differences
from clivefs.objects.encode import EMPTY_TREE
from clivefs.objects.interface import ObjectStore

R = TypeVar("R")
World = dict[bytes, tuple[int, bytes]]
"""Path to (mode, content)."""

ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CEILING_DIRECTORIES": "/",
    "GIT_AUTHOR_NAME": "A U Thor",
    "GIT_AUTHOR_EMAIL": "author@example.org",
    "GIT_AUTHOR_DATE": "1700000000 +0100",
    "GIT_COMMITTER_NAME": "C O Mitter",
    "GIT_COMMITTER_EMAIL": "committer@example.org",
    "GIT_COMMITTER_DATE": "1700000001 -0230",
    "LC_ALL": "C",
    "TZ": "UTC",
}


def text(content: str | bytes, mode: int = 0o100644) -> tuple[int, bytes]:
    """One file of a world."""
    return mode, content.encode() if isinstance(content, str) else content


def put_world(store: ObjectStore, world: Mapping[bytes, tuple[int, bytes]]) -> bytes:
    """The tree of *world*, in *store*."""
    editor = TreeEditor(store, EMPTY_TREE)
    with store.batch() as batch:
        for path, (mode, content) in world.items():
            editor.put(path, Version(mode, batch.blob(content)))
        return editor.write(batch)


def get_world(store: ObjectStore, tree: bytes) -> World:
    """What *tree* holds."""
    found: World = {}
    for path, _, version in differences(store, EMPTY_TREE, tree):
        assert version is not None
        found[path] = (version.mode, store.read(version.oid)[1])
    return found


def write_world(directory: Path, world: Mapping[bytes, tuple[int, bytes]]) -> Path:
    """*world* as plain files."""
    for path, (mode, content) in world.items():
        place = os.path.join(os.fsencode(directory), path)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if mode == 0o120000:
            os.symlink(content, place)
        else:
            with open(place, "wb") as file:
                file.write(content)
            os.chmod(place, 0o755 if mode == 0o100755 else 0o644)
    directory.mkdir(exist_ok=True)
    return directory


def read_world(directory: Path) -> World:
    """Plain files as a world, without `.git`."""
    found: World = {}
    top = os.fsencode(directory)
    for here, directories, names in os.walk(top):
        if b".git" in directories:
            directories.remove(b".git")
        links = [name for name in directories if os.path.islink(os.path.join(here, name))]
        for name in names + links:
            place = os.path.join(here, name)
            mode = os.lstat(place).st_mode
            path = os.path.relpath(place, top)
            if stat.S_ISLNK(mode):
                found[path] = (0o120000, os.readlink(place))
            else:
                with open(place, "rb") as file:
                    found[path] = (0o100755 if mode & 0o100 else 0o100644, file.read())
    return found


def run(*command: str, cwd: Path, stdin: bytes = b"", check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a stock tool without this machine's configuration."""
    return subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, env=ENVIRONMENT, check=check)


def fresh(directory: Path) -> Path:
    """*directory*, empty."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    return directory


LINES = st.sampled_from(
    [b"one", b"two", b"three", b"", b"  four", b"five\r", b"-- ", b"--- x", b"+++ y", b"@@ -1 +1 @@", b"\\ no"]
)
TEXTS = st.builds(
    lambda lines, end: b"\n".join(lines) + (b"\n" if end and lines else b""),
    st.lists(LINES, max_size=14),
    st.booleans(),
)
CONTENTS = st.one_of(TEXTS, TEXTS, TEXTS, st.binary(max_size=60))
NAMES = st.sampled_from(
    [b"a", b"b", b"c d", b"e\tf", b"g\xc3\xa9", b'q"uote', b"x.py", b"b.txt", b"\xff", b"back\\slash"]
)
FILES = st.one_of(
    st.tuples(st.just(0o100644), CONTENTS),
    st.tuples(st.just(0o100755), CONTENTS),
    st.tuples(st.just(0o120000), st.sampled_from([b"target", b"../x", b"a/b"])),
)


@st.composite
def worlds(draw: st.DrawFn, files: st.SearchStrategy[tuple[int, bytes]] = FILES) -> World:
    """A few files in up to three levels; no path is both file and directory."""
    world: World = {}
    for _ in range(draw(st.integers(0, 6))):
        path = b"/".join(draw(st.lists(NAMES, min_size=1, max_size=3)))
        if _fits(world, path):
            world[path] = draw(files)
    return world


@st.composite
def edited(draw: st.DrawFn, world: World, files: st.SearchStrategy[tuple[int, bytes]] = FILES) -> World:
    """*world* with some of its files changed, moved, removed, and others added."""
    result = dict(world)
    for path in sorted(world):
        mode, content = world[path]
        what = draw(st.sampled_from(["keep", "line", "replace", "move", "delete", "mode"]))
        if what == "line" and mode != 0o120000:
            lines = content.split(b"\n")
            lines.insert(draw(st.integers(0, len(lines))), draw(LINES))
            result[path] = (mode, b"\n".join(lines))
        elif what == "replace":
            result[path] = draw(files)
        elif what == "delete":
            del result[path]
        elif what == "mode" and mode != 0o120000:
            result[path] = (0o100755 ^ 0o100644 ^ mode, content)
        elif what == "move":
            target = b"/".join(draw(st.lists(NAMES, min_size=1, max_size=3)))
            del result[path]
            if _fits(result, target):
                result[target] = (mode, content)
    for path, file in draw(worlds(files)).items():
        if _fits(result, path) and draw(st.booleans()):
            result[path] = file
    return result


def _fits(world: World, path: bytes) -> bool:
    return path not in world and not any(
        other.startswith(path + b"/") or path.startswith(other + b"/") for other in world
    )


def done(work: Generator[Any, Any, R], store: ObjectStore | None = None) -> R:
    """Run work that goes in steps to its end; what it returns. What it asks to write is in *store*."""
    answer = None
    try:
        while True:
            told = work.send(answer)
            answer = None
            if isinstance(told, Write):
                assert store is not None
                answer = blob_content(store, told.version.oid)
    except StopIteration as end:
        value: R = end.value
        return value
