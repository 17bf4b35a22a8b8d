"""A writer of a write storm, and the model that knows what it acknowledged.

`python storm.py AREA SEED` changes the directory AREA by random operations until one fails or it is killed. Each
is a JSON line on standard output before it begins, and the line `{}` once its last system call has returned.
`replay` makes of these lines the states that AREA may be in after a crash: one where the operation in flight
happened, and one where it did not.
"""

from __future__ import annotations

import copy
import json
import os
import random
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Op = dict[str, Any]
PIECE = 700


@dataclass
class File:
    content: bytes
    mode: int = 0o644
    names: set[str] = field(default_factory=set)


Model = dict[str, Any]
"""By path below the area: a `File` (shared by its hard links), ("d", mode) or ("l", target)."""


def content_of(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def read_model(area: str) -> Model:
    """What is in *area* now."""
    model: Model = {}
    files: dict[int, File] = {}
    for directory, subdirectories, names in os.walk(area, onerror=_raise):
        for name in subdirectories + names:
            path = os.path.join(directory, name)
            key = os.path.relpath(path, area)
            st = os.lstat(path)
            mode = stat.S_IMODE(st.st_mode)
            if stat.S_ISLNK(st.st_mode):
                model[key] = ("l", os.readlink(path))
            elif stat.S_ISDIR(st.st_mode):
                model[key] = ("d", mode)
            else:
                if st.st_ino not in files:
                    files[st.st_ino] = File(Path(path).read_bytes(), mode)
                assert files[st.st_ino].mode == mode
                assert st.st_size == len(files[st.st_ino].content), f"{key}: size {st.st_size}"
                files[st.st_ino].names.add(key)
                model[key] = files[st.st_ino]
    return model


def _raise(error: OSError) -> None:
    raise error


def apply(model: Model, op: Op) -> None:
    """Do *op* to *model*."""
    kind, path = op["op"], op.get("path", "")
    if kind in ("put", "append", "truncate"):
        if path not in model:
            model[path] = File(b"", 0o644, {path})
        data = content_of(op["seed"], op["size"]) if kind != "truncate" else b""
        file = model[path]
        if kind == "put":
            file.content = data
        elif kind == "append":
            file.content += data
        else:
            file.content = file.content[: op["size"]].ljust(op["size"], b"\0")
    elif kind == "unlink":
        _drop(model, path)
    elif kind == "rmdir":
        del model[path]
    elif kind == "mkdir":
        model[path] = ("d", 0o755)
    elif kind == "symlink":
        model[path] = ("l", op["target"])
    elif kind == "chmod":
        if isinstance(model[path], File):
            model[path].mode = op["mode"]
        else:
            model[path] = ("d", op["mode"])
    elif kind == "link":
        model[op["to"]] = model[path]
        model[path].names.add(op["to"])
    elif kind == "rename":
        _rename(model, path, op["to"])
    else:
        raise AssertionError(kind)


def _drop(model: Model, path: str) -> None:
    node = model.pop(path)
    if isinstance(node, File):
        node.names.discard(path)


def _rename(model: Model, path: str, to: str) -> None:
    if to in model:
        if isinstance(model[path], File) and model[path] is model[to]:
            return  # two names of one file: POSIX says that nothing happens
        _drop(model, to)
    for key in [key for key in model if key == path or key.startswith(path + "/")]:
        new = to + key[len(path) :]
        node = model.pop(key)
        model[new] = node
        if isinstance(node, File):
            node.names.discard(key)
            node.names.add(new)


def perform(area: str, op: Op) -> None:
    """Do *op* in the directory *area*."""
    kind, path = op["op"], os.path.join(area, op.get("path", ""))
    if kind in ("put", "append"):
        flags = os.O_WRONLY | os.O_CREAT | (os.O_TRUNC if kind == "put" else os.O_APPEND)
        fd = os.open(path, flags, 0o644)
        data = content_of(op["seed"], op["size"])
        while data:
            data = data[os.write(fd, data[:PIECE]) :]
        os.close(fd)
    elif kind == "truncate":
        os.truncate(path, op["size"])
    elif kind == "unlink":
        os.unlink(path)
    elif kind == "rmdir":
        os.rmdir(path)
    elif kind == "mkdir":
        os.mkdir(path, 0o755)
    elif kind == "symlink":
        os.symlink(op["target"], path)
    elif kind == "chmod":
        os.chmod(path, op["mode"])
    elif kind == "link":
        os.link(path, os.path.join(area, op["to"]))
    elif kind == "rename":
        os.rename(path, os.path.join(area, op["to"]))


def choose(model: Model, rng: random.Random, serial: int) -> Op:
    """An operation that must succeed on *model*."""
    directories = [""] + [key for key, node in model.items() if isinstance(node, tuple) and node[0] == "d"]
    files = [key for key, node in model.items() if isinstance(node, File)]
    empty = [each for each in directories[1:] if not any(key.startswith(each + "/") for key in model)]
    fresh = os.path.join(rng.choice(directories), f"n{serial}")
    seed, size = rng.randrange(1 << 30), rng.choice([0, 1, 500, 3000, 9000])
    kinds = ["put", "put", "append", "truncate", "unlink", "mkdir", "symlink", "chmod", "link", "rename", "rename"]
    kind = rng.choice([*kinds, "rmdir", "chmod-directory", "rename-directory", "save"])
    if len(files) > 40:
        kind = rng.choice(["unlink", "rename", kind])
    if kind == "mkdir" and len(directories) < 12:
        return {"op": "mkdir", "path": fresh}
    if kind == "symlink":
        return {"op": "symlink", "path": fresh, "target": rng.choice(["nowhere", "/etc/passwd", "../.."])}
    if kind == "rmdir" and empty:
        return {"op": "rmdir", "path": rng.choice(empty)}
    if kind == "chmod-directory" and len(directories) > 1:
        return {"op": "chmod", "path": rng.choice(directories[1:]), "mode": rng.choice([0o700, 0o755, 0o775])}
    if kind == "rename-directory" and len(directories) > 1:
        path = rng.choice(directories[1:])
        parent = rng.choice([each for each in directories if each != path and not each.startswith(path + "/")])
        return {"op": "rename", "path": path, "to": os.path.join(parent, f"n{serial}")}
    if files:
        path = rng.choice(files)
        if kind in ("append", "put"):
            return {"op": kind, "path": path if rng.random() < 0.5 else fresh, "seed": seed, "size": size}
        if kind == "truncate":
            return {"op": kind, "path": path, "size": size}
        if kind == "unlink":
            return {"op": kind, "path": path}
        if kind == "chmod":
            return {"op": kind, "path": path, "mode": rng.choice([0o600, 0o644, 0o755])}
        if kind == "link":
            return {"op": kind, "path": path, "to": fresh}
        if kind in ("rename", "save"):
            return {"op": "rename", "path": path, "to": rng.choice(files) if kind == "save" else fresh}
    return {"op": "put", "path": fresh, "seed": seed, "size": size}


def replay(start: Model, lines: list[str]) -> tuple[Model, Op | None]:
    """*start* after everything that the *lines* acknowledge, and the operation in flight."""
    model = copy.deepcopy(start)
    flying: Op | None = None
    for line in lines:
        if not line.endswith("\n"):
            break  # killed while it spoke: the operation had not begun
        said = json.loads(line)
        if said:
            flying = said
        elif flying is not None:
            apply(model, flying)
            flying = None
    return model, flying


def difference(found: Model, expected: Model) -> str | None:
    """The first thing in which *found* is not *expected*."""
    for key in sorted(found.keys() | expected.keys()):
        one, other = found.get(key), expected.get(key)
        if isinstance(one, File) and isinstance(other, File):
            if one.content != other.content:
                return f"{key}: {len(one.content)} bytes instead of {len(other.content)}, or others"
            if one.mode != other.mode:
                return f"{key}: mode {one.mode:o} instead of {other.mode:o}"
            if one.names != other.names:
                return f"{key}: links {sorted(one.names)} instead of {sorted(other.names)}"
        elif one != other:
            return f"{key}: {_shown(one)} instead of {_shown(other)}"
    return None


def _shown(node: Any) -> str:
    return f"a file of {len(node.content)} bytes" if isinstance(node, File) else str(node)


def explain(found: Model, before: Model, flying: Op | None) -> str | None:
    """What is wrong with *found*; None if all that was acknowledged is there, and *flying* wholly or not at all."""
    wrong = difference(found, before)
    if wrong is None or flying is None:
        return wrong
    for possible in _outcomes(before, flying, found):
        if difference(found, possible) is None:
            return None
    return f"{wrong}; in flight was {flying}"


def _outcomes(before: Model, op: Op, found: Model) -> list[Model]:
    """What a kill in the middle of *op* may leave: its system calls happened up to one of them."""
    after = copy.deepcopy(before)
    apply(after, op)
    outcomes = [after]
    if op["op"] in ("put", "append"):
        whole = after[op["path"]].content
        start = 0 if op["op"] == "put" else len(whole) - op["size"]
        got = found.get(op["path"])
        size = len(got.content) if isinstance(got, File) else -1
        if start <= size <= len(whole):
            after[op["path"]].content = whole[:size]
    return outcomes


def main() -> None:
    area, seed = sys.argv[1], int(sys.argv[2])
    rng = random.Random(seed)
    try:
        model = read_model(area)
    except OSError as error:
        sys.exit(f"reading: {error.errno} {error.strerror}")
    out = sys.stdout
    os.umask(0o022)
    serial = 0
    while True:
        serial += 1
        op = choose(model, rng, serial + seed * 1_000_000)
        out.write(json.dumps(op) + "\n")
        out.flush()
        try:
            perform(area, op)
        except OSError as error:
            sys.exit(f"{op}: {error.errno} {error.strerror}")
        out.write("{}\n")
        out.flush()
        apply(model, op)


if __name__ == "__main__":
    main()
