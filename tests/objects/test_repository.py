"""Foreign repositories, made by stock git and read in place."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from clivefs.objects.encode import EMPTY_TREE, MODE_FILE, TreeEntry, encode_tree, hash_object
from clivefs.objects.errors import CorruptObject, ObjectMissing, ObjectTooLarge, RepositoryError, UnknownRef
from clivefs.objects.fsck import fsck
from clivefs.objects.repository import Repository
from clivefs.objects.store import Store

Git = Callable[..., bytes]
LARGE = b"large " * 400_000


@pytest.fixture
def source(git: Git, tmp_path: Path) -> Path:
    """A repository with two commits, a large file, tags and a remote branch."""
    path = tmp_path / "source"
    git("init", "-q", "-b", "main", "source")
    (path / "file").write_text("one\n")
    (path / "large").write_bytes(LARGE)
    git("add", ".", cwd=path)
    git("commit", "-q", "-m", "one", cwd=path)
    git("tag", "light", cwd=path)
    git("tag", "-a", "-m", "x", "v1.0", cwd=path)
    git("tag", "-a", "-m", "x", "v1.0-of-tag", "v1.0", cwd=path)
    (path / "file").write_text("two\n")
    git("commit", "-q", "-a", "-m", "two", cwd=path)
    git("branch", "topic/öne", cwd=path)
    git("update-ref", "refs/remotes/origin/feature", "main", cwd=path)
    git("update-ref", "refs/heads/shadowed", "main~1", cwd=path)
    git("tag", "blobby", "main:file", cwd=path)
    return path


def rev(git: Git, path: Path, name: str) -> bytes:
    return bytes.fromhex(git("rev-parse", name, cwd=path).strip().decode())


@pytest.mark.parametrize("packed", [False, True])
def test_objects_loose_and_packed(git: Git, source: Path, packed: bool) -> None:
    if packed:
        git("repack", "-adq", cwd=source)
        git("pack-refs", "--all", cwd=source)
    repository = Repository(source)
    head = repository.resolve("main")
    assert head == rev(git, source, "main")
    commit = repository.read_commit(head)
    assert commit.message == b"two\n"
    tree = {entry.name: entry.oid for entry in repository.read_tree(commit.tree)}
    assert repository.read(tree[b"file"]) == ("blob", b"two\n")
    assert repository.header(tree[b"file"]) == ("blob", 4)
    assert repository.header(tree[b"large"]) == ("blob", len(LARGE))
    assert repository.has(tree[b"large"])
    with pytest.raises(ObjectTooLarge) as caught:
        repository.read(tree[b"large"])
    assert caught.value.size == len(LARGE)
    with pytest.raises(CorruptObject, match="not a tree"):
        repository.read_tree(head)
    for ask in (repository.read, repository.header, repository.read_tree):
        with pytest.raises(ObjectMissing):
            ask(b"\7" * 20)
    assert not repository.is_partial


def test_every_way_to_name_a_commit(git: Git, source: Path) -> None:
    repository = Repository(source)
    one, two = rev(git, source, "main~1"), rev(git, source, "main")
    named = {
        "main": two, "refs/heads/main": two, "heads/main": two, "HEAD": two, "topic/öne": two, "light": one,
        "v1.0": one, "v1.0-of-tag": one, "tags/v1.0": one, "origin/feature": two, "feature": two,
        two.hex(): two, one.hex()[:10]: one, two.hex().upper(): two, "shadowed": one,
    }  # fmt: skip
    assert {ref: repository.resolve(ref) for ref in named} == named
    assert repository.head_branch() == "refs/heads/main"
    git("checkout", "-q", "--detach", cwd=source)
    assert repository.head_branch() is None
    refs = repository.refs()
    assert refs["refs/tags/light"] == one
    assert refs["refs/heads/topic/öne"] == two
    assert refs["refs/tags/v1.0"] == rev(git, source, "v1.0^{tag}")


@pytest.mark.parametrize(
    ("ref", "near"),
    [("mian", ["main"]), ("v1.1", ["v1.0"]), ("topic", []), ("0" * 40, []), ("abcdef12", []), ("blobby", []),
     ("-x", []), ("main~9999", []), ("@{u}", []), (":/x", []), ("", []), ("a b", []), ("main\n", []), ("--all", []),
     ("main..", [])],
)  # fmt: skip
def test_what_names_no_commit(source: Path, ref: str, near: list[str]) -> None:
    with pytest.raises(UnknownRef) as caught:
        Repository(source).resolve(ref)
    assert set(near) <= set(caught.value.near)
    assert caught.value.place == str(source)


def test_a_name_on_two_remotes(git: Git, source: Path) -> None:
    git("update-ref", "refs/remotes/fork/feature", "main~1", cwd=source)
    with pytest.raises(UnknownRef, match="several remotes") as caught:
        Repository(source).resolve("feature")
    assert caught.value.near == ["fork/feature", "origin/feature"]


def test_bare_worktree_submodule_and_alternates(git: Git, source: Path, tmp_path: Path) -> None:
    git("clone", "-q", "--bare", "source", "bare.git")
    git("clone", "-q", "--shared", "source", "shared")
    git("worktree", "add", "-q", "../linked", "light", cwd=source)
    head = rev(git, source, "main")
    for name in ("bare.git", "shared", "source/.git"):
        assert Repository(tmp_path / name).resolve("main") == head
        assert Repository(tmp_path / name).read_commit(head).message == b"two\n"
    linked = Repository(tmp_path / "linked")
    assert linked.resolve("HEAD") == rev(git, source, "light")
    assert linked.resolve("main") == head
    assert linked.commondir == str(source / ".git")


def test_places_that_are_no_repository(git: Git, source: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / ".git").write_text("gitdir: ../nowhere\n")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / ".git").write_text("what\n")
    for name in ("plain", "broken", "odd", "absent", "source/file"):
        with pytest.raises(RepositoryError) as caught:
            Repository(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    git("init", "-q", "--object-format=sha256", "sha256")
    with pytest.raises(RepositoryError, match="SHA-1 repositories only"):
        Repository(tmp_path / "sha256")
    git("init", "-q", "unborn")
    with pytest.raises(UnknownRef, match="no commits yet"):
        Repository(tmp_path / "unborn").resolve("HEAD")


def test_extensions_that_libgit2_does_not_know(git: Git, source: Path) -> None:
    git("config", "core.repositoryformatversion", "1", cwd=source)
    git("config", "extensions.worktreeConfig", "true", cwd=source)
    git("config", "extensions.partialClone", "origin", cwd=source)
    repository = Repository(source)
    assert repository.is_partial
    assert repository.resolve("main") == rev(git, source, "main")


def test_what_the_process_inherits_leads_git_nowhere_else(
    git: Git, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other" / ".git"))
    monkeypatch.setenv("GIT_OBJECT_DIRECTORY", str(tmp_path / "other" / ".git" / "objects"))
    assert len(Repository(source).refs()) == 8


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give files away")
def test_another_users_repository_can_be_read(git: Git, source: Path, tmp_path: Path) -> None:
    subprocess.run(["chown", "-R", "12345:12345", source], check=True)
    repository = Repository(source)
    head = repository.resolve("main")
    large = {entry.name: entry.oid for entry in repository.read_tree(repository.read_commit(head).tree)}[b"large"]
    assert Path(repository.materialize(large, str(tmp_path))).read_bytes() == LARGE


def test_a_partial_clone_knows_what_it_lacks_and_fetches_nothing(git: Git, source: Path, tmp_path: Path) -> None:
    git("config", "uploadpack.allowFilter", "true", cwd=source)
    git("tag", "-d", "blobby", cwd=source)
    git("clone", "-q", "--bare", "--filter=blob:none", f"file://{source}", "partial.git")
    repository = Repository(tmp_path / "partial.git")
    assert repository.is_partial
    head = repository.resolve("main")
    tree = repository.read_commit(head).tree
    entries = repository.read_tree(tree)
    packs = sorted(os.listdir(tmp_path / "partial.git/objects/pack"))
    for entry in entries:
        for ask in (repository.header, repository.read, lambda oid: repository.materialize(oid, str(tmp_path))):
            with pytest.raises(ObjectMissing):
                ask(entry.oid)
    older = {entry.oid for entry in repository.read_tree(repository.read_commit(repository.resolve("light")).tree)}
    assert repository.promised() == {entry.oid for entry in entries} | older
    assert sorted(os.listdir(tmp_path / "partial.git/objects/pack")) == packs
    with Store.open(tmp_path / "store") as store:
        with store.batch() as batch:
            other = batch.blob(b"other")
            extended = batch.tree([*entries, TreeEntry(MODE_FILE, b"other", other)])
            batch.set_ref("refs/clive/x", extended)
            batch.set_ref("refs/clive/base", head)
        assert fsck(store, extra=[repository]) == []
        assert {problem.kind for problem in fsck(store)} == {"missing", "ref"}


def test_large_blobs_become_files(git: Git, source: Path, tmp_path: Path) -> None:
    git("repack", "-adq", cwd=source)
    repository = Repository(source)
    oid = hash_object("blob", LARGE)
    folder = tmp_path / "files"
    folder.mkdir()
    paths: list[str] = []
    threads = [
        threading.Thread(target=lambda: paths.append(repository.materialize(oid, str(folder)))) for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(paths) == {str(folder / oid.hex())}
    assert len(paths) == 6
    assert os.listdir(folder) == [oid.hex()]
    assert (folder / oid.hex()).read_bytes() == LARGE
    inode = (folder / oid.hex()).stat().st_ino
    repository.materialize(oid, str(folder))
    assert (folder / oid.hex()).stat().st_ino == inode
    (folder / oid.hex()).unlink()
    (folder / oid.hex()).write_bytes(b"cut short")
    repository.materialize(oid, str(folder))
    assert (folder / oid.hex()).read_bytes() == LARGE
    with pytest.raises(CorruptObject, match="not a blob"):
        repository.materialize(repository.resolve("main"), str(folder))
    with pytest.raises(FileNotFoundError):
        repository.materialize(oid, str(tmp_path / "absent"))
    assert os.listdir(folder) == [oid.hex()]


def test_threads_share_a_repository(git: Git, source: Path) -> None:
    git("repack", "-adq", cwd=source)
    repository = Repository(source)
    head = repository.resolve("main")
    failures: list[BaseException] = []

    def look() -> None:
        try:
            for _ in range(200):
                for entry in repository.read_tree(repository.read_commit(head).tree):
                    repository.header(entry.oid)
        except BaseException as error:  # noqa: BLE001 - reported below
            failures.append(error)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(5):
        git("commit", "-q", "--allow-empty", "-m", str(number), cwd=source)
        git("repack", "-adq", cwd=source)
        repository.refresh()
    for thread in threads:
        thread.join(60)
    assert failures == []


def test_packs_that_come_and_go(git: Git, source: Path) -> None:
    repository = Repository(source)
    old = repository.resolve("main")
    for number in range(3):
        (source / "file").write_text(f"{number}")
        git("commit", "-q", "-a", "-m", "more", cwd=source)
        git("repack", "-adq", cwd=source)
        git("prune-packed", cwd=source)
        head = repository.resolve("main")
        assert repository.read_commit(head).parents
        assert repository.read_commit(old).message == b"two\n"
    blob = hash_object("blob", b"new")
    git("hash-object", "-w", "--stdin", cwd=source, stdin=b"new")
    assert repository.read(blob) == ("blob", b"new")


def test_a_corrupt_object_is_not_shown(git: Git, source: Path, tmp_path: Path) -> None:
    repository = Repository(source)
    for content, damage in ((b"two\n", b"garbage"), (b"two\n", b"")):
        name = hash_object("blob", content).hex()
        path = source / ".git/objects" / name[:2] / name[2:]
        path.chmod(0o600)
        path.write_bytes(damage)
        with pytest.raises(CorruptObject):
            repository.read(bytes.fromhex(name))
    large = hash_object("blob", LARGE).hex()
    other = git("hash-object", "-w", "--stdin", cwd=source, stdin=b"LARGE " * 400_000).strip().decode()
    path = source / ".git/objects" / large[:2] / large[2:]
    path.unlink()
    os.link(source / ".git/objects" / other[:2] / other[2:], path)
    with pytest.raises(CorruptObject):
        repository.materialize(bytes.fromhex(large), str(tmp_path))
    assert not [name for name in os.listdir(tmp_path) if name.startswith(("new-", large))]


def test_a_hostile_tree_is_read_as_it_is(git: Git, source: Path) -> None:
    payload = b"".join(b"100644 %b\0%b" % (name, EMPTY_TREE) for name in (b"..", b".git", b"a/b"))
    git("hash-object", "-t", "tree", "--literally", "-w", "--stdin", cwd=source, stdin=payload)
    entries = Repository(source).read_tree(hash_object("tree", payload))
    assert [entry.name for entry in entries] == [b"..", b".git", b"a/b"]
    assert encode_tree([]) == b""
