"""Stores for tests: every one that a test is given ends with fsck finding nothing."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from clivefs.objects.fsck import fsck
from clivefs.objects.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "store") as opened:
        yield opened
        assert fsck(opened) == []


@pytest.fixture
def git(tmp_path: Path) -> Callable[..., bytes]:
    """Run git in a directory, without this machine's configuration; its standard output."""

    def run(*arguments: str | bytes, cwd: Path | None = None, stdin: bytes = b"") -> bytes:
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "A U Thor",
            "GIT_AUTHOR_EMAIL": "author@example.org",
            "GIT_AUTHOR_DATE": "1700000000 +0100",
            "GIT_COMMITTER_NAME": "C O Mitter",
            "GIT_COMMITTER_EMAIL": "committer@example.org",
            "GIT_COMMITTER_DATE": "1700000001 -0230",
        }
        result = subprocess.run(
            ["git", "-c", "advice.nestedTag=false", *arguments],
            cwd=cwd or tmp_path,
            input=stdin,
            stdout=subprocess.PIPE,
            env=environment,
            check=True,
        )
        return result.stdout

    return run
