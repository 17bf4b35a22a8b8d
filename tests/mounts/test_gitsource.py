"""Where refs come from: local repositories in place, remotes as partial clones, and remotes that go away."""

from __future__ import annotations

import errno
import functools
import socket
import subprocess
import threading
from collections.abc import Callable
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from clivefs.base.errors import ClivefsError
from clivefs.mounts.git.command import GitCommand, GitFailed
from clivefs.mounts.git.fetch import PartialClone
from clivefs.mounts.git.location import parse_location, relative_to
from clivefs.mounts.git.lower import GitLower
from clivefs.mounts.git.source import GitSource, Resolved
from clivefs.mounts.git.space import TreeSpace
from clivefs.mounts.tree import Blocked, Owner
from clivefs.objects.errors import ObjectMissing
from clivefs.objects.memory import MemoryStore
from tests.mounts import stockgit

COMMIT_S = 1_600_000_000
ENVIRONMENT = {
    **stockgit.ENVIRONMENT,
    "GIT_AUTHOR_DATE": f"{COMMIT_S} +0000",
    "GIT_COMMITTER_DATE": f"{COMMIT_S} +0000",
}
git = functools.partial(stockgit.git, environment=ENVIRONMENT)


class At:
    """A clock that stands still until it is set."""

    def __init__(self, second: int) -> None:
        self.second = second

    def now_ns(self) -> int:
        return self.second * 10**9 + 5

    def monotonic_ns(self) -> int:
        return self.second * 10**9


@pytest.fixture
def origin(tmp_path: Path) -> Path:
    """A repository with two branches, a tag of each kind, and files in directories."""
    path = tmp_path / "origin"
    path.mkdir()
    git(path, "init", "-q")
    git(path, "config", "uploadpack.allowFilter", "true")
    git(path, "config", "uploadpack.allowAnySHA1InWant", "true")
    for directory in ("src", "src/deep", "docs"):
        (path / directory).mkdir()
        for number in range(3):
            (path / directory / f"{number}.txt").write_text(f"{directory} {number}\n")
    git(path, "add", ".")
    git(path, "commit", "-qm", "one")
    git(path, "tag", "light")
    git(path, "tag", "-am", "words", "v1.0")
    git(path, "branch", "feature/x")
    (path / "more").write_text("more")
    git(path, "add", ".")
    git(path, "commit", "-qm", "two")
    return path


@pytest.fixture
def opened(tmp_path: Path) -> Callable[..., tuple[GitSource, Resolved]]:
    def open_it(location: str, ref: str = "main", subdir: str = "", **options: Any) -> tuple[GitSource, Resolved]:
        store = str(tmp_path / "store")
        git_command = GitCommand(environment=ENVIRONMENT)
        source = GitSource(location, ref, subdir, base_dir=str(tmp_path), store_dir=store, git=git_command, **options)
        return source, source.open()

    return open_it


def lower_of(source: GitSource, resolved: Resolved, tmp_path: Path) -> GitLower:
    cache = tmp_path / "cache"
    cache.mkdir(exist_ok=True)
    fetcher = source.fetch_objects if source.lazy else None
    space = TreeSpace(resolved.repository, resolved.layer, resolved.commit_time_ns, fetcher)
    return GitLower(space, resolved.tree, owner=Owner(0, 0), cache_dir=str(cache))


def content(lower: GitLower, path: bytes) -> bytes:
    ref = lower.find(path)
    assert ref is not None
    for _ in range(3):
        try:
            return lower.open(ref).read(0, 1 << 20)
        except Blocked as blocked:
            blocked.job()
    raise AssertionError("it goes on waiting")


def test_a_local_repository_is_used_in_place(origin: Path, opened: Any, tmp_path: Path) -> None:
    source, resolved = opened("origin")
    assert resolved.commit.hex() == git(origin, "rev-parse", "main")
    assert (resolved.branch, resolved.symbolic_ref) == ("main", "refs/heads/main")
    assert resolved.commit_time_ns == COMMIT_S * 10**9
    assert not source.lazy
    assert source.objects_dirs[-1:] == source.live_objects_dirs == [str(origin / ".git" / "objects")]
    assert content(lower_of(source, resolved, tmp_path), b"src/deep/1.txt") == b"src/deep 1\n"
    assert not list((tmp_path / "store").rglob("*.pack"))


def test_bare_repositories_and_worktrees_too(origin: Path, opened: Any, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--bare", "origin", "bare")
    git(origin, "worktree", "add", "-q", str(tmp_path / "tree"), "feature/x")
    for location in ("bare", "tree"):
        assert opened(location)[1].commit.hex() == git(origin, "rev-parse", "main")
    assert opened("tree", "HEAD")[1].branch == "feature/x"


def test_refs_of_every_kind(origin: Path, opened: Any) -> None:
    first = git(origin, "rev-parse", "light")
    for ref in ("light", "v1.0", "refs/tags/v1.0", "feature/x", first, first[:10]):
        assert opened("origin", ref)[1].commit.hex() == first
    assert opened("origin", "v1.0")[1].branch is None
    assert opened("origin", "v1.0")[1].symbolic_ref == "refs/tags/v1.0"
    assert opened("origin", first)[1].symbolic_ref is None
    assert opened("origin", "feature/x")[1].branch == "feature/x"


@pytest.mark.parametrize(
    ("ref", "means"),
    [
        ("HEAD~1", "light"),
        ("main^", "light"),
        ("v1.0^{commit}", "light"),
        ("v1.0^0", "light"),
        ("main^{/one}", "light"),
        (":/one", "light"),
        ("@", "main"),
        ("main@{0}", "main"),
        ("main@{1}", "light"),
        ("feature/x~0", "light"),
    ],
)
def test_revisions(origin: Path, opened: Any, ref: str, means: str) -> None:
    source, resolved = opened("origin", ref)
    assert resolved.commit.hex() == git(origin, "rev-parse", f"{means}^{{commit}}")
    assert resolved.branch == ("main" if ref == "@" else None)
    assert source.poll() is None


def test_revisions_that_name_no_commit(origin: Path, opened: Any) -> None:
    for ref, message in {
        "main~9": "leads nowhere",
        "mian~1": "mian",
        "main:src": "is a tree",
        "main..light": "main..light",
        "^main": "'^main'",
        "main@{7}": "main@{7}",
        "--all": "cannot be a ref",
        "main\n": "cannot be a ref",
    }.items():
        with pytest.raises(ClivefsError) as error:
            opened("origin", ref)
        assert message in error.value.message, ref


def test_a_revision_from_a_remote_branch(origin: Path, opened: Any, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "origin", "clone")
    git(origin, "branch", "only-there")
    git(tmp_path / "clone", "fetch", "-q")
    assert opened("clone", "only-there~1")[1].commit.hex() == git(origin, "rev-parse", "light")


def test_revisions_of_a_url(origin: Path, opened: Any) -> None:
    url = f"file://{origin}"
    first = git(origin, "rev-parse", "light")
    for ref in ("main~1", "HEAD^", "v1.0^{commit}", first[:10], ":/one"):
        assert opened(url, ref)[1].commit.hex() == first
    git(origin, "checkout", "-q", "--detach")
    git(origin, "commit", "-q", "--allow-empty", "-m", "on no branch")
    hidden = git(origin, "rev-parse", "HEAD")
    assert opened(url, f"{hidden}~2")[1].commit.hex() == first
    with pytest.raises(ClivefsError, match="where their refs were before"):
        opened(url, "main@{yesterday}")
    with pytest.raises(ClivefsError, match="leads nowhere"):
        opened(url, "main~99")


def test_subdir(origin: Path, opened: Any, tmp_path: Path) -> None:
    source, resolved = opened("origin", "main", "src/deep")
    assert resolved.tree.hex() == git(origin, "rev-parse", "main:src/deep")
    assert content(lower_of(source, resolved, tmp_path), b"0.txt") == b"src/deep 0\n"


@pytest.mark.parametrize(
    ("location", "ref", "subdir", "message", "remedy"),
    [
        ("nowhere", "main", "", "no such directory", ""),
        ("origin/src", "main", "", "no git repository", ""),
        ("origin", "mian", "", "mian", "main"),
        ("origin", "main", "scr", "scr", "src"),
        ("origin", "main", "more", "not a directory", "directory"),
        ("origin", "--upload-pack=x", "", "cannot be a ref", ""),
        ("--upload-pack=x", "main", "", "cannot be a git repository", ""),
        ("ext::sh -c x", "main", "", "remote helpers", ""),
        ("weird://host/x", "main", "", "transport", ""),
        ("ssh://-oProxyCommand=x/y", "main", "", "begins with", ""),
        ("-oProxyCommand=x:y", "main", "", "cannot be a git repository", ""),
        ("a@-oProxyCommand=x:y", "main", "", "begins with", ""),
        ("file:///nowhere/at/all", "main", "", "could not be fetched", "git ls-remote"),
    ],
)
def test_what_is_wrong_is_said(
    origin: Path, opened: Any, location: str, ref: str, subdir: str, message: str, remedy: str
) -> None:
    with pytest.raises(ClivefsError) as error:
        opened(location, ref, subdir)
    assert message in error.value.message
    assert remedy in (error.value.remedy or "")


def test_a_url_is_a_partial_clone_and_a_directory_comes_in_one_request(
    origin: Path, opened: Any, tmp_path: Path
) -> None:
    lines: list[str] = []
    source, resolved = opened(f"file://{origin}", progress=lines.append)
    assert lines
    assert resolved.branch == "main"
    assert source.lazy
    lower = lower_of(source, resolved, tmp_path)
    ref = lower.find(b"src/1.txt")
    assert ref is not None
    assert [entry.name for entry in lower.entries(lower.find(b"src"))] == [b"0.txt", b"1.txt", b"2.txt", b"deep"]  # type: ignore[arg-type]
    assert lower.attr(ref, fetch=False).unsized
    with pytest.raises(Blocked, match=r"3 blobs of src") as blocked:
        lower.attr(ref, fetch=True)
    assert blocked.value.timeout_s is not None
    packs = len(list((Path(source.objects_dirs[0]) / "pack").glob("*.pack")))
    blocked.value.job()
    blocked.value.job()  # again does no harm
    assert len(list((Path(source.objects_dirs[0]) / "pack").glob("*.pack"))) == packs + 1
    for number in range(3):
        assert content(lower, b"src/%d.txt" % number) == b"src %d\n" % number
    with pytest.raises(ObjectMissing):
        resolved.repository.read(bytes.fromhex(git(origin, "rev-parse", "main:docs/0.txt")))


def test_a_second_open_asks_the_remote_nothing(origin: Path, opened: Any) -> None:
    commit = opened(f"file://{origin}")[1].commit
    origin.rename(origin.parent / "moved")
    assert opened(f"file://{origin}")[1].commit == commit
    with pytest.raises(ClivefsError, match="does not answer"):
        opened(f"file://{origin}", "unknown")


def test_a_ref_newer_than_the_clone_is_fetched(origin: Path, opened: Any) -> None:
    opened(f"file://{origin}")
    git(origin, "branch", "later", "light")
    assert opened(f"file://{origin}", "later")[1].branch == "later"
    git(origin, "checkout", "-q", "--detach")
    git(origin, "commit", "-q", "--allow-empty", "-m", "on no branch")
    loose = git(origin, "rev-parse", "HEAD")
    assert opened(f"file://{origin}", loose)[1].commit.hex() == loose


def test_all_blobs(origin: Path, opened: Any) -> None:
    source, resolved = opened(f"file://{origin}")
    assert source.fetch_all(resolved) == 10
    assert source.fetch_all(resolved) == 0
    assert resolved.repository.read(bytes.fromhex(git(origin, "rev-parse", "main:docs/0.txt")))[1] == b"docs 0\n"


def test_a_lost_remote_is_eio_and_recovers_by_itself(origin: Path, opened: Any, tmp_path: Path) -> None:
    source, resolved = opened(f"file://{origin}", clock=At(0))
    lower = lower_of(source, resolved, tmp_path)
    assert content(lower, b"src/0.txt") == b"src 0\n"
    moved = origin.rename(tmp_path / "moved")
    with pytest.raises(OSError) as lost:
        content(lower, b"docs/0.txt")
    assert lost.value.errno == errno.EIO
    assert source.error is not None
    assert f"file://{origin}" in source.error
    assert content(lower, b"src/1.txt") == b"src 1\n"
    with pytest.raises(OSError):
        source.poll()
    moved.rename(origin)
    assert content(lower, b"docs/0.txt") == b"docs 0\n"
    assert source.error is None


def test_after_a_long_failure_others_fail_at_once_for_as_long(tmp_path: Path) -> None:
    clock = At(0)
    runs: list[int] = []

    class Silent(GitCommand):
        def run(self, *arguments: Any, **options: Any) -> bytes:
            runs.append(clock.second)
            clock.second += 30
            raise GitFailed("no answer")

    clone = PartialClone(str(tmp_path / "x.git"), "url", git=Silent(), clock=clock, answer_timeout_s=30)
    for second in (0, 31, 59, 60):
        clock.second = max(clock.second, second)
        with pytest.raises(OSError, match="no answer"):
            clone.fetch_objects([b"x" * 20])
    assert runs == [0, 60]


def test_a_silent_remote_is_given_up(tmp_path: Path) -> None:
    silent = tmp_path / "git-silent"
    silent.write_text("#!/bin/sh\nexec sleep 600\n")
    silent.chmod(0o755)
    with pytest.raises(GitFailed, match=r"no answer for 0\.2 s"):
        GitCommand(program=str(silent)).run(["fetch"], stall_s=0.2)
    with pytest.raises(GitFailed, match=r"did not finish in 0\.2 s"):
        GitCommand(program=str(silent)).run(["fetch"], timeout_s=0.2)
    with pytest.raises(GitFailed, match="could not be started"):
        GitCommand(program=str(tmp_path / "none")).run(["fetch"])


def test_the_reason_of_a_failure_is_whole(tmp_path: Path) -> None:
    """Git tells of a host on one line and of what is wrong with it on the next."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(GitFailed, match=r"unable to connect to 127\.0\.0\.1: .*Connection refused"):
            GitCommand().run(["ls-remote", f"git://127.0.0.1:{taken.getsockname()[1]}/thing.git"])


@pytest.mark.parametrize("url", [True, False])
def test_polling_tells_when_a_branch_has_moved(origin: Path, opened: Any, url: bool) -> None:
    source, _ = opened(f"file://{origin}" if url else "origin")
    assert source.poll() is None
    (origin / "new").write_text("new")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "three")
    moved = source.poll()
    assert moved is not None
    assert moved.commit.hex() == git(origin, "rev-parse", "main")
    assert source.poll() is None
    git(origin, "reset", "-q", "--hard", "light")
    back = source.poll()
    assert back is not None
    assert back.commit.hex() == git(origin, "rev-parse", "light")


def test_a_local_partial_clone_is_completed_without_writing_to_it(origin: Path, opened: Any, tmp_path: Path) -> None:
    git(tmp_path, "clone", "-q", "--no-checkout", "--filter=blob:none", f"file://{origin}", "partial")
    before = sorted(str(path) for path in (tmp_path / "partial").rglob("*"))
    source, resolved = opened("partial")
    assert source.lazy
    assert source.promisor_url == f"file://{origin}"
    assert content(lower_of(source, resolved, tmp_path), b"src/deep/2.txt") == b"src/deep 2\n"
    assert sorted(str(path) for path in (tmp_path / "partial").rglob("*")) == before


def test_a_server_without_filters_sends_everything(origin: Path, opened: Any, tmp_path: Path) -> None:
    git(origin, "config", "uploadpack.allowFilter", "false")
    source, resolved = opened(f"file://{origin}")
    assert source.fetch_all(resolved) == 0
    assert content(lower_of(source, resolved, tmp_path), b"more") == b"more"


def test_a_server_of_files_gives_a_whole_clone(origin: Path, opened: Any, tmp_path: Path) -> None:
    """Over "dumb" http, a partial clone makes git ask for what is missing from within asking for it, without end."""
    git(origin, "update-server-info")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        source, resolved = opened(f"http://127.0.0.1:{server.server_address[1]}/origin/.git")
        assert not source.lazy
        assert source.promisor_url is None
        assert content(lower_of(source, resolved, tmp_path), b"src/deep/2.txt") == b"src/deep 2\n"
        unknown = subprocess.run(
            ["git", "-C", source.refs.commondir, "cat-file", "-e", "12" * 20], check=False, timeout=20
        )
        assert unknown.returncode != 0
        (origin / "later").write_text("later")
        git(origin, "add", ".")
        git(origin, "commit", "-qm", "later")
        git(origin, "update-server-info")
        moved = source.poll()
        assert moved is not None
        assert content(lower_of(source, moved, tmp_path), b"later") == b"later"
    finally:
        server.shutdown()
        server.server_close()


def test_times_are_never_too_new_for_git_and_stay(tmp_path: Path, opened: Any) -> None:
    path = tmp_path / "young"
    path.mkdir()
    git(path, "init", "-q")
    future = {**ENVIRONMENT, "GIT_COMMITTER_DATE": "@4102444800 +0000"}
    git(path, "commit", "-q", "--allow-empty", "-m", "from 2100", environment=future)
    store = MemoryStore()

    def time_ns(second: int) -> int:
        source = GitSource(
            "young", "main", base_dir=str(tmp_path), store_dir=str(tmp_path / "s"), store=store, clock=At(second)
        )
        return int(source.open().commit_time_ns)

    assert time_ns(1_700_000_000) == 1_699_999_998 * 10**9
    assert time_ns(1_800_000_000) == 1_699_999_998 * 10**9


@pytest.mark.parametrize(
    ("text", "url", "path"),
    [
        ("https://example.org/x.git", "https://example.org/x.git", None),
        ("git@example.org:x/y.git", "git@example.org:x/y.git", None),
        ("example.org:x", "example.org:x", None),
        ("[::1]:x", "[::1]:x", None),
        ("./with:colon", None, "/base/with:colon"),
        ("../up", None, "/up"),
        ("dir/with:colon", None, "/base/dir/with:colon"),
        ("/abs", None, "/abs"),
    ],
)
def test_urls_and_paths_are_told_apart_as_git_does(text: str, url: str | None, path: str | None) -> None:
    location = parse_location(text, "/base")
    assert (location.url, location.path) == (url, path)


@pytest.mark.parametrize(
    ("text", "parent", "result"),
    [
        ("../b", "https://example.org/x/a", "https://example.org/x/b"),
        ("./b", "https://example.org/x/a", "https://example.org/x/a/b"),
        ("../../b", "https://example.org/x/a/", "https://example.org/b"),
        ("../b", "git@example.org:a", "git@example.org:b"),
        ("https://other/b", "https://example.org/a", "https://other/b"),
    ],
)
def test_relative_urls_of_submodules(text: str, parent: str, result: str) -> None:
    assert relative_to(text, parent) == result
