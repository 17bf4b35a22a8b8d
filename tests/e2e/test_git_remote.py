"""Refs of remotes over HTTP and HTTPS: fetched on demand, with git's own credentials, over a network that fails."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from githttp import CREDENTIALS, GitHttp, git_http, self_signed
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount

TIMEOUT_S = 2


@pytest.fixture
def origin(bench: Bench) -> Path:
    """A bare repository, in a directory of its own, with a few directories of files."""
    files = {f"{directory}/{name}": f"{directory} {name}\n" for directory in ("one", "two", "three") for name in "abc"}
    path = bench.repository("work", {"README": "hello\n", **files})
    (bench.base / "served").mkdir()
    bench.git("clone", "-q", "--bare", str(path), str(bench.base / "served/thing.git"), cwd=bench.base)
    served = bench.base / "served/thing.git"
    for option in ("uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
        bench.git("config", option, "true", cwd=served)
    bench.git("remote", "add", "served", str(served), cwd=path)
    return served


@pytest.fixture
def server(bench: Bench, origin: Path) -> Iterator[GitHttp]:
    with git_http(origin.parent) as made:
        yield made


def mount(bench: Bench, url: str, more: str = 'blobs = "lazy"\n', *, check: bool = True) -> Path:
    bench.write_toml(
        f'[workspace]\nname = "shop"\n\n[limits]\nnetwork_timeout = "{TIMEOUT_S}s"\n\n'
        f'[mounts.far]\ngit = "{url}"\nref = "main"\n{more}'
    )
    bench.mount(check=check)
    return bench.live / "far"


def push(bench: Bench, files: dict[str, str | bytes], message: str) -> str:
    """Commit in the working repository and push to what is served."""
    work = bench.base / "work"
    write_files(work, files)
    bench.git("add", "-A", cwd=work)
    bench.git("commit", "-qm", message, cwd=work)
    bench.git("push", "-q", "served", "main", cwd=work)
    return bench.git("rev-parse", "HEAD", cwd=work).strip()


def fetches(server: GitHttp) -> int:
    return sum(request.startswith("POST") and request.endswith("git-upload-pack") for request in server.requests)


def refused(path: Path) -> None:
    with pytest.raises(OSError) as error:
        path.read_bytes()
    assert error.value.errno == errno.EIO


def test_blobs_come_on_demand_a_directory_at_a_time(bench: Bench, server: GitHttp) -> None:
    tree = mount(bench, server.url("thing.git"))
    before = fetches(server)
    assert sorted(os.listdir(tree / "one")) == ["a", "b", "c"]
    assert fetches(server) == before
    assert (tree / "one/a").stat().st_size == 6
    once = fetches(server)
    assert once > before
    assert [(tree / "one" / name).read_text() for name in "abc"] == ["one a\n", "one b\n", "one c\n"]
    assert fetches(server) == once
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    bench.check_sound()


def test_all_blobs_in_the_background_and_work_in_it(bench: Bench, server: GitHttp, origin: Path) -> None:
    tree = mount(bench, server.url("thing.git"), "")
    assert bench.git("status", "--porcelain", cwd=tree) == ""
    server.stop()
    assert (tree / "three/c").read_text() == "three c\n"
    server.start()
    (tree / "README").write_text("mine\n")
    bench.git("commit", "-qam", "mine", cwd=tree)
    bench.git("push", "-q", "origin", "HEAD:refs/heads/mine", cwd=tree)
    assert bench.git("log", "-1", "--format=%s", "mine", cwd=origin) == "mine\n"
    new = push(bench, {"one/a": "changed\n"}, "theirs")
    bench.git("pull", "-q", "--no-rebase", cwd=tree)
    assert (tree / "one/a").read_text() == "changed\n"
    assert bench.git("merge-base", "HEAD", "origin/main", cwd=tree).strip() == new
    bench.check_sound()


def test_revisions(bench: Bench, server: GitHttp) -> None:
    push(bench, {"one/a": "changed\n"}, "second")
    bench.write_toml(
        f'[workspace]\nname = "shop"\n\n[mounts.far]\ngit = "{server.url("thing.git")}"\nref = "main~1"\n\n'
        f'[mounts.wrong]\ngit = "{server.url("thing.git")}"\nref = "main@{{yesterday}}"\n'
    )
    bench.mount(check=False)
    assert (bench.live / "far/one/a").read_text() == "one a\n"
    assert bench.git("status", "--porcelain", cwd=bench.live / "far") == ""
    assert "cannot be had from a URL" in bench.entry("wrong")["error"]


@pytest.mark.parametrize("how", ["helper", "askpass"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_credentials_are_those_of_git(bench: Bench, origin: Path, how: str, scheme: str) -> None:
    certificate = None
    if scheme == "https":
        if shutil.which("openssl") is None:
            pytest.fail("openssl is needed for a certificate: `apt install openssl`")
        certificate = self_signed(bench.base)
        (bench.home / ".gitconfig").write_text(f'[http]\n\tsslCAInfo = "{certificate[0]}"\n')
    name, password = CREDENTIALS
    if how == "helper":
        helper = bench.base / "helper"
        helper.write_text(f'#!/bin/sh\n[ "$1" = get ] && printf "username=%s\\npassword=%s\\n" {name} "{password}"\n')
        with (bench.home / ".gitconfig").open("a") as config:
            config.write(f'[credential]\n\thelper = "{helper}"\n')
    else:
        helper = bench.base / "askpass"
        helper.write_text(f'#!/bin/sh\ncase "$1" in User*) echo {name};; *) echo "{password}";; esac\n')
        bench.environment["GIT_ASKPASS"] = str(helper)
    helper.chmod(0o755)
    with git_http(origin.parent, password=True, certificate=certificate) as server:
        tree = mount(bench, server.url("thing.git"))
        assert (tree / "two/b").read_text() == "two b\n"
        assert server.refused
        assert bench.git("status", "--porcelain", cwd=tree) == ""
        bench.check_sound()


def test_without_credentials_it_is_said_and_nobody_is_asked(bench: Bench, origin: Path) -> None:
    with git_http(origin.parent, password=True) as server:
        mount(bench, server.url("thing.git"), check=False)
        entry = bench.entry("far")
        assert entry["state"] == "error"
        assert "could not read Username" in entry["error"]
        assert os.listdir(bench.live / "far") == []


def test_a_certificate_that_nobody_vouches_for(bench: Bench, origin: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.fail("openssl is needed for a certificate: `apt install openssl`")
    with git_http(origin.parent, certificate=self_signed(bench.base)) as server:
        mount(bench, server.url("thing.git"), check=False)
        entry = bench.entry("far")
        assert entry["state"] == "error"
        assert "certificate" in entry["error"]


def test_a_server_that_goes_away_and_comes_back(bench: Bench, server: GitHttp) -> None:
    tree = mount(bench, server.url("thing.git"))
    assert (tree / "one/a").read_text() == "one a\n"
    server.stop()
    assert (tree / "one/b").read_text() == "one b\n"
    refused(tree / "two/b")
    assert sorted(os.listdir(tree / "two")) == ["a", "b", "c"]
    assert server.url("thing.git") in bench.entry("far")["error"]
    server.start()
    until(lambda: _reads(tree / "two/b", "two b\n"), "the content once the server is back")
    assert bench.entry("far")["error"] is None
    bench.check_sound()


def test_the_past_and_forks_fetch_what_nobody_has_read(bench: Bench, server: GitHttp) -> None:
    """Also where the entry shows something else by now, or is gone, and of two remotes the right one is found."""
    other = bench.repository("other", {"theirs": "theirs\n", "more/x": "x\n"})
    bench.git("clone", "-q", "--bare", str(other), str(bench.base / "served/other.git"), cwd=bench.base)
    second = f'[mounts.other]\ngit = "{server.url("other.git")}"\nref = "main"\nblobs = "lazy"\n'
    mount(bench, server.url("thing.git"), f'blobs = "lazy"\n{second}')
    bench.cli("snapshot")
    past = bench.live / ".clive/sessions" / _session(bench) / "latest"
    point = past.parent / os.readlink(past)
    before = fetches(server)
    assert sorted(os.listdir(point / "far/one")) == ["a", "b", "c"]
    assert fetches(server) == before
    assert (point / "far/one/a").read_text() == "one a\n"
    assert (point / "other/theirs").stat().st_size == 7
    assert (point / "other/theirs").read_text() == "theirs\n"
    bench.cli("fork", "f")
    assert (bench.live / ".clive/forks/f/far/two/b").read_text() == "two b\n"
    server.stop()
    refused(point / "far/three/a")
    assert "connect" in bench.entry("far")["error"]
    server.start()
    bench.cli("detach", "far")
    assert (point / "far/three/a").read_text() == "three a\n"
    assert bench.entry("other")["error"] is None
    bench.check_sound()


def test_commands_fetch_what_they_need_of_the_past(bench: Bench, server: GitHttp) -> None:
    """Of two remotes, and of entries that are gone."""
    other = bench.repository("other", {"theirs": "theirs\n"})
    bench.git("clone", "-q", "--bare", str(other), str(bench.base / "served/other.git"), cwd=bench.base)
    second = f'[mounts.other]\ngit = "{server.url("other.git")}"\nref = "main"\nblobs = "lazy"\n'
    mount(bench, server.url("thing.git"), f'blobs = "lazy"\n{second}')
    bench.cli("snapshot")
    for each in ("far", "other"):
        bench.cli("detach", each)
    bench.cli("snapshot")
    server.stop()
    refused_command = bench.cli("diff", "@1", check=False)
    assert refused_command.returncode == 1
    assert "cannot be had" in refused_command.stderr
    assert "Traceback" not in refused_command.stderr
    server.start()
    before = fetches(server)
    assert bench.cli("show", "@1:far/one/a").stdout == "one a\n"
    patch = bench.cli("diff", "@1").stdout
    assert "-three c\n" in patch
    assert "-theirs\n" in patch
    assert fetches(server) - before < 20
    bench.cli("restore", "far", "--at", "@1")
    assert (bench.live / "far/two/b").read_text() == "two b\n"
    bench.check_sound()


def test_blame_fetches_what_nobody_has_read(bench: Bench, server: GitHttp) -> None:
    """Of files as they are in the source, and of such as were edited on another commit than the one that is below."""
    write_files(bench.root / "patches", {"1.patch": "--- a/README\n+++ b/README\n@@ -1 +1,2 @@\n hello\n+patched\n"})
    tree = mount(bench, server.url("thing.git"), 'blobs = "lazy"\ngit_dir = false\npatches = ["patches/*.patch"]\n')
    for directory in ("one", "two"):
        (tree / directory / "a").write_text(f"{directory} a\nmine\n")
    commit = push(bench, {f"{directory}/a": f"more\n{directory} a\n" for directory in ("one", "two")}, "theirs")
    bench.write_toml((bench.root / "Clive.toml").read_text().replace('"main"', f'"{commit}"'))
    until(lambda: bench.entry("far")["ref"] == commit, "the other commit")
    server.stop()
    for path in ("far/two/a", "far/three/b"):
        refused_command = bench.cli("blame", path, check=False)
        assert refused_command.returncode == 1
        assert server.url("thing.git") in refused_command.stderr, refused_command.stderr
        assert path in refused_command.stderr
    server.start()

    def layers(path: str) -> list[str]:
        said = bench.cli("blame", path, check=False).stdout
        return [line.split()[1].partition(":")[0] for line in said.splitlines()]

    until(lambda: layers("far/two/a") == ["git", "upper"], "the lines, once the server is back")
    assert layers("far/one/a") == ["git", "upper"]
    assert layers("far/three/b") == ["git"]
    assert layers("far/README") == ["git", "patch"]
    bench.check_sound()


def test_a_fork_is_merged_with_what_nobody_has_read(bench: Bench, server: GitHttp) -> None:
    """The live view has gone on to another version of what the fork has changed."""
    mount(bench, server.url("thing.git"))
    bench.cli("fork", "trial")
    fork = bench.live / ".clive/forks/trial/far"
    (fork / "one/a").write_text("theirs\n")
    commit = push(bench, {"one/a": "moved on\n"}, "theirs")
    table = bench.root / "Clive.toml"
    table.write_text(table.read_text().replace('"main"', f'"{commit}"'))
    until(lambda: bench.entry("far")["ref"] == commit, "the other commit")
    bench.cli("snapshot")
    server.stop()
    refused_command = bench.cli("merge", "trial", check=False)
    assert refused_command.returncode == 1
    assert "cannot be had" in refused_command.stderr
    server.start()
    merged = bench.cli("merge", "trial", check=False)
    assert "conflict: far/one/a" in merged.stderr
    assert (bench.live / "far/one/a.ours").read_text() == "moved on\n"
    assert (bench.live / "far/one/a.theirs").read_text() == "theirs\n"
    bench.check_sound(allowed="fetching failed")


def test_a_silent_server_is_eio_within_the_bound(bench: Bench, server: GitHttp) -> None:
    tree = mount(bench, server.url("thing.git"))
    (tree / "one/a").read_text()
    server.silent.set()
    begun = time.monotonic()
    refused(tree / "two/b")
    assert time.monotonic() - begun < 25  # where none is configured it would be 30 s
    assert (tree / "one/b").read_text() == "one b\n"
    server.speak()
    until(lambda: _reads(tree / "two/b", "two b\n"), "the content once the server speaks")
    bench.check_sound(allowed="gave up waiting: fetching")


def test_a_mount_without_the_server(bench: Bench, server: GitHttp) -> None:
    tree = mount(bench, server.url("thing.git"), "")
    bench.git("status", cwd=tree)  # has all blobs fetched
    bench.unmount()
    server.stop()
    bench.mount()  # what was fetched is enough
    assert (tree / "README").read_text() == "hello\n"
    server.start()
    push(bench, {"one/a": "changed\n"}, "theirs")
    assert bench.git("pull", "-q", cwd=tree) == ""
    assert (tree / "one/a").read_text() == "changed\n"


def _reads(path: Path, content: str) -> bool:
    """Whether *path* has that content; not while it cannot be had."""
    try:
        return path.read_text() == content
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return False


def _session(bench: Bench) -> str:
    (workspace,) = bench.status()["workspaces"]
    return str(workspace["session"])
