"""Archives for tests: from trees, and member by member."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

COMPRESSIONS = {
    "tar": lambda data: data,
    "gz": lambda data: gzip.compress(data, 1),
    "bz2": lambda data: bz2.compress(data, 1),
    "xz": lambda data: lzma.compress(data, preset=0),
    "zst": lambda data: zstd.compress(data),
}


class File(NamedTuple):
    content: bytes = b""
    executable: bool = False


class Link(NamedTuple):
    target: bytes


Tree = Mapping[bytes, File | Link]
"""By path; directories are implied."""


def tar_of(tree: Tree, *, format: int = tarfile.PAX_FORMAT) -> bytes:  # noqa: A002 - tarfile's own word
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape") as tar:
        for path, what in tree.items():
            info = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
            if isinstance(what, Link):
                info.type = tarfile.SYMTYPE
                info.linkname = what.target.decode("utf-8", "surrogateescape")
                tar.addfile(info)
            else:
                info.size = len(what.content)
                info.mode = 0o755 if what.executable else 0o644
                info.mtime = 1_600_000_000
                tar.addfile(info, io.BytesIO(what.content))
    return buffer.getvalue()


def zip_of(tree: Tree) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, what in tree.items():
            info = zipfile.ZipInfo(path.decode(), (2020, 9, 13, 12, 26, 40))
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED
            if isinstance(what, Link):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, what.target)
            else:
                info.external_attr = (stat.S_IFREG | (0o755 if what.executable else 0o644)) << 16
                archive.writestr(info, what.content)
    return buffer.getvalue()


def git_tree(tree: Tree, directory: Path) -> bytes:
    """The name that stock git gives to *tree*."""
    environment = {"PATH": os.environ["PATH"], "GIT_DIR": str(directory), "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/"}

    def git(*arguments: str, stdin: bytes = b"") -> bytes:
        return subprocess.run(["git", *arguments], input=stdin, env=environment, stdout=-1, check=True).stdout.strip()

    if not (directory / "HEAD").exists():
        git("init", "-q", "--bare")
    paths = list(tree)
    names = []
    for each in tree.values():
        names.append(git("hash-object", "-w", "--stdin", stdin=each[0]))
    lines = []
    for path, name in zip(paths, names, strict=True):
        what = tree[path]
        mode = b"120000" if isinstance(what, Link) else b"100755" if what.executable else b"100644"
        lines.append(mode + b" " + name + b"\t" + path + b"\0")
    git("read-tree", "--empty")
    git("update-index", "-z", "--index-info", stdin=b"".join(lines))
    return bytes.fromhex(git("write-tree").decode())


def member(name: str, **facts: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in facts.items():
        setattr(info, key, value)
    return info


def tar_with(*members: tarfile.TarInfo | tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for each in members:
            info, content = each if isinstance(each, tuple) else (each, b"")
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
