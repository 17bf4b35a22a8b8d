"""Patches and rebases on real releases of a package index, against stock git and patch."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from clivefs.mounts.edits.diff import Version
from clivefs.mounts.edits.plan import plan_rebase
from clivefs.mounts.git.treemerge import Labels, merge_trees
from clivefs.mounts.patch.apply import apply_patch
from clivefs.objects.memory import MemoryStore
from tests.mounts.gitworlds import World, fresh, get_world, put_world, read_world, run, text, write_world

pytestmark = pytest.mark.network


def release(requirement: str, directory: Path) -> World:
    """The files of a release's wheel, without its metadata."""
    fresh(directory)
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "-d", str(directory), requirement]
    subprocess.run(command, check=True)
    (archive,) = directory.iterdir()
    with zipfile.ZipFile(archive) as wheel:
        return {name.encode(): text(wheel.read(name)) for name in wheel.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, World]:
    directory = tmp_path_factory.mktemp("wheels")
    return release("requests==2.31.0", directory / "1"), release("requests==2.32.3", directory / "2")


def test_the_difference_of_two_releases(releases: tuple[World, World], tmp_path: Path) -> None:
    old, new = releases
    write_world(fresh(tmp_path / "a"), old)
    write_world(fresh(tmp_path / "b"), new)
    store = MemoryStore()
    tree = put_world(store, old)
    for command in (
        ["git", "diff", "--no-index", "--binary", "a", "b"],
        ["git", "diff", "--no-index", "--no-prefix", "-U1", "a", "b"],
        ["diff", "-ruN", "a", "b"],
        ["diff", "-U0", "-rN", "a", "b"],
    ):
        patch = run(*command, cwd=tmp_path, check=False).stdout
        assert get_world(store, apply_patch(store, store, tree, "p", patch).tree) == new, command
    write_world(fresh(tmp_path / "c"), old)
    run("patch", "-p1", "-s", cwd=tmp_path / "c", stdin=patch)
    assert read_world(tmp_path / "c") == new


def test_edits_of_one_release_on_the_next(releases: tuple[World, World], tmp_path: Path) -> None:
    old, new = releases
    store = MemoryStore()
    path = b"requests/sessions.py"
    before = old[path][1]
    clean = before.replace(b"def default_headers", b"def default_headers").replace(
        b'"""Receives a Response.', b'"""Gets a Response.'
    )
    assert clean != before
    models = old[b"requests/adapters.py"][1]
    clash = models.replace(
        b"def get_connection(self, url, proxies=None):", b"def get_connection(self, url, proxies=()):"
    )
    clash = clash.replace(
        b"conn = self.get_connection(request.url, proxies)", b"conn = self.get_connection(request.url, mine)"
    )
    assert clash != models
    plan = plan_rebase(
        store,
        store,
        old_base=put_world(store, old),
        new_base=put_world(store, new),
        patches=[],
        edits={path: Version(0o100644, clean), b"requests/adapters.py": Version(0o100644, clash)},
        labels=Labels("requests 2.31.0", "your edits", "requests 2.32.3"),
        scratch=str(tmp_path),
    )
    assert [conflict.path for conflict in plan.conflicts] == [b"requests/adapters.py"]
    shown = get_world(store, plan.shown)
    assert b'"""Gets a Response.' in shown[path][1]
    assert b">>>>>>> requests 2.32.3" in shown[b"requests/adapters.py"][1]
    ours = dict(old) | {b"requests/adapters.py": text(clash)}
    merge = merge_trees(
        store, store, put_world(store, old), put_world(store, ours), put_world(store, new), scratch=str(tmp_path),
        labels=Labels("base", "ours", "theirs"),
    )  # fmt: skip
    for name, content in (("ours", clash), ("base", models), ("theirs", new[b"requests/adapters.py"][1])):
        (tmp_path / name).write_bytes(content)
    expected = run("git", "merge-file", "-p", "ours", "base", "theirs", cwd=tmp_path, check=False).stdout
    assert get_world(store, merge.tree)[b"requests/adapters.py"][1] == expected
