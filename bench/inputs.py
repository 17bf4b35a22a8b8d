"""What is measured on: git repositories, made anew in each run."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

_GIT = ["git", "-c", "user.name=bench", "-c", "user.email=bench@example.org", "-c", "gc.auto=0"]


def git(*args: object, cwd: Path) -> str:
    """Run git quietly; what it says."""
    done = subprocess.run([*_GIT, *map(str, args)], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout


def many_files(path: Path, count: int) -> Path:
    """A bare-handed repository of *count* small text files, 100 a directory, that nobody checked out.

    Made by `git fast-import`; the content differs from file to file, so sizes and objects do.
    """
    path.mkdir()
    git("init", "-q", "-b", "main", cwd=path)
    stream = io.BytesIO()
    stream.write(b"commit refs/heads/main\ncommitter bench <bench@example.org> 1700000000 +0000\ndata 1\nx\n")
    for number in range(count):
        content = b"file %d\n" % number * (1 + number % 40)
        place = b"d%03d/s%02d/f%05d.txt" % (number // 1000, number // 100 % 10, number)
        stream.write(b"M 100644 inline %s\ndata %d\n%s\n" % (place, len(content), content))
    stream.write(b"done\n")
    subprocess.run(["git", "fast-import", "--quiet"], cwd=path, input=stream.getvalue(), check=True)
    return path


def standard_library(path: Path, count: int) -> Path:
    """A checkout of *count* files of Python's standard library, committed: as often as it takes, in folders."""
    path.mkdir()
    source = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for directory, directories, names in os.walk(source):
        directories[:] = sorted(each for each in directories if each not in ("site-packages", "__pycache__"))
        files += [Path(directory, name).relative_to(source) for name in sorted(names) if not name.endswith(".pyc")]
    for number in range(count):
        name = files[number % len(files)]
        target = path / f"copy{number // len(files)}" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
    git("init", "-q", "-b", "main", cwd=path)
    git("add", "-A", cwd=path)
    git("commit", "-q", "-m", "the standard library", cwd=path)
    return path
