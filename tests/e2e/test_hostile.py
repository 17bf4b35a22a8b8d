"""Repositories and workspaces made to do harm: they neither reach outside, nor stop or bloat the daemon."""

from __future__ import annotations

import contextlib
import os
import subprocess
import zlib
from collections.abc import Iterator
from hashlib import sha1
from pathlib import Path

import pytest
from harness import Bench, until, write_files

pytestmark = pytest.mark.mount

MARKER = "clivefs-was-here"
DEEP = 10_000


def put(repository: Path, kind: str, payload: bytes) -> bytes:
    """Write a loose object, as no git would check it; its name."""
    data = f"{kind} {len(payload)}\0".encode() + payload
    oid = sha1(data).digest()
    path = repository / ".git" / "objects" / oid.hex()[:2] / oid.hex()[2:]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(zlib.compress(data, 1))
    return oid


def tree(repository: Path, *entries: tuple[str, bytes, bytes]) -> bytes:
    payload = b"".join(mode.encode() + b" " + name + b"\0" + oid for mode, name, oid in entries)
    return put(repository, "tree", payload)


def commit(repository: Path, root: bytes, ref: str = "main") -> None:
    text = f"tree {root.hex()}\nauthor A <a@example.org> 1 +0000\ncommitter A <a@example.org> 1 +0000\n\nhostile\n"
    (repository / ".git" / "refs" / "heads" / ref).write_text(put(repository, "commit", text.encode()).hex() + "\n")


def repository(bench: Bench, name: str = "evil") -> Path:
    path = bench.base / name
    path.mkdir()
    bench.git("init", "-q", "-b", "main", cwd=path)
    return path


def mount_evil(bench: Bench, **facts: str) -> Path:
    more = "".join(f'{name} = "{value}"\n' for name, value in facts.items())
    bench.write_toml(f'[workspace]\nname = "shop"\n[mounts."evil"]\ngit = "../evil"\nref = "main"\n{more}')
    bench.mount(timeout=60)
    return bench.live / "evil"


def resident_mib(bench: Bench) -> float:
    for line in Path(f"/proc/{bench.daemon_pid()}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS")


@pytest.mark.parametrize("write", ["overlay", "none"])
def test_names_that_no_checkout_may_have(bench: Bench, write: str) -> None:
    path = repository(bench)
    blob = put(path, "blob", b"content\n")
    hook = put(path, "blob", f"#!/bin/sh\ntouch {bench.base}/{MARKER}\n".encode())
    inner = tree(
        path, ("100644", b"good", blob), ("100644", b"..", blob), ("40000", b".git", tree(path, ("100755", b"x", hook)))
    )
    bad = [
        b"..", b".", b"", b".git", b".GIT", b".Git", b"git~1", b"GIT~1", b"a/b", b"/etc", b"../up", b"x" * 300,
        b".git ", b".git.", ".g\u200cit".encode(), b".git::$INDEX_ALLOCATION", b".\\.git", b".clive",
    ]  # fmt: skip
    root = tree(
        path,
        ("100644", b"good", blob),
        *(("100644", name, blob) for name in bad),
        *(("40000", name, inner) for name in bad),
        ("40000", b"dir", inner),
        ("100644", b"good", hook),
        ("40000", b"good", inner),
        ("100777", b"odd-mode", blob),
        ("60000", b"device", blob),
        ("10000", b"fifo", blob),
        ("140000", b"socket", blob),
        ("100644", b"last", blob),
    )
    commit(path, root)
    evil = mount_evil(bench, write=write)
    names = set(os.listdir(evil))
    assert {"good", "dir", "last"} <= names
    for name in bad:
        text = os.fsdecode(name)
        if name in (b".git", b".GIT") and write == "overlay":
            continue  # an overlay's own
        assert text not in names - {".clive"}, text
    assert not {"device", "fifo", "socket"} & names
    assert len(names) == len(os.listdir(evil))
    assert (evil / "good").read_text() == "content\n"
    assert sorted(os.listdir(evil / "dir")) == ["good"]
    with pytest.raises(OSError):
        os.lstat(os.path.join(evil, "x" * 300))
    assert not (evil / "dir" / ".git").exists()
    if write == "overlay":
        assert (evil / ".git").is_file()
    bench.run("git -C evil status --porcelain; find . > /dev/null; tar cf /dev/null evil", check=False)
    assert not (bench.base / MARKER).exists()
    assert not (bench.base / "up").exists()


@pytest.fixture
def deep_bench(bench: Bench) -> Iterator[Bench]:
    """A bench whose upper may become so deep that only rm(1) can remove it."""
    try:
        yield bench
    finally:
        bench.close()
        subprocess.run(["rm", "-rf", bench.store], check=True)


def test_a_tree_ten_thousand_levels_deep(deep_bench: Bench) -> None:
    bench = deep_bench
    path = repository(bench)
    blob = put(path, "blob", b"bottom\n")
    below = tree(path, ("100644", b"file", blob))
    for _ in range(DEEP):
        below = tree(path, ("40000", b"d", below))
    commit(path, below)
    evil = mount_evil(bench)
    before = resident_mib(bench)
    fd = os.open(evil, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for _ in range(DEEP):
            inner = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        assert os.listdir(fd) == ["file"]
        with open(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
            assert file.read() == "bottom\n"
        # Copy-up makes the whole way in the upper.
        file_fd = os.open("file", os.O_WRONLY | os.O_APPEND, dir_fd=fd)
        os.write(file_fd, b"more\n")
        os.close(file_fd)
        with open(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
            assert file.read() == "bottom\nmore\n"
    finally:
        os.close(fd)
    assert resident_mib(bench) - before < 150
    assert len(os.listdir(f"/proc/{bench.daemon_pid()}/fd")) < 1500  # a fixed number of directories is kept open
    # Whatever walks it may fail, but must not stop the mount.
    bench.run("find evil -maxdepth 400 | wc -l; git -C evil status --porcelain | head -3", check=False, timeout=100)
    assert (bench.live / "Clive.toml").exists()
    bench.unmount()
    bench.mount(timeout=60)
    assert os.listdir(bench.live / "evil" / "d") == ["d"]


def test_ten_thousand_million_files_in_a_few_objects(bench: Bench) -> None:
    """Ten entries that are all the same tree, ten levels deep."""
    path = repository(bench)
    blob = put(path, "blob", b"bomb\n")
    level = tree(path, *(("100644", b"f%d" % at, blob) for at in range(10)))
    for _ in range(9):
        level = tree(path, *(("40000", b"d%d" % at, level) for at in range(10)))
    commit(path, level)
    evil = mount_evil(bench)
    before = resident_mib(bench)
    assert len(os.listdir(evil / "d3" / "d4" / "d5")) == 10
    assert (evil / "/".join(["d9"] * 9) / "f9").read_text() == "bomb\n"
    # `git status` and `find` never end on it; the mount goes on beside them, in bounded memory.
    walkers = [
        subprocess.Popen(command, cwd=evil, env=bench.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for command in (["git", "status", "--porcelain"], ["find", ".", "-name", "f9"])
    ]
    try:
        for turn in range(20):
            (bench.live / f"new{turn}").write_text("x")
            assert (evil / f"d{turn % 10}" / "d1" / "d2").is_dir()
            bench.cli("status")
        assert walkers[1].poll() is None
    finally:
        for each in walkers:
            each.kill()
            each.wait()
    assert resident_mib(bench) - before < 300
    bench.unmount()


def test_links_to_elsewhere_are_links(bench: Bench) -> None:
    secret = bench.base / "secret"
    secret.mkdir(mode=0o700)
    (secret / "file").write_text("secret\n")
    path = repository(bench)
    targets = [
        "/etc/shadow",
        str(secret),
        "../../../../../../etc/shadow",
        "/proc/self/root",
        "../.git",
        "/dev/zero",
        ".",
    ]
    for at, target in enumerate(targets):
        os.symlink(target, path / f"link{at}")
    bench.git("add", "-A", cwd=path)
    bench.git("commit", "-q", "-m", "links", cwd=path)
    evil = mount_evil(bench)
    for at, target in enumerate(targets):
        assert os.readlink(evil / f"link{at}") == target
        assert os.lstat(evil / f"link{at}").st_size == len(target)
    # Replacing and removing them touches the link, never its target.
    os.unlink(evil / "link1")
    os.rename(evil / "link0", evil / "moved")
    os.chown(evil / "link2", os.getuid(), os.getgid(), follow_symlinks=False)
    assert (secret / "file").read_text() == "secret\n"
    bench.run("rm -rf evil/link*")
    assert (secret / "file").exists()
    assert Path("/etc/shadow").exists()
    upper = [os.readlink(each) for each in bench.store.glob("uppers/*/*/tree/*") if each.is_symlink()]
    assert "/etc/shadow" in upper


def test_a_link_in_the_way_of_an_upper_or_a_source_is_not_followed(bench: Bench) -> None:
    """A directory of a local source is exchanged for a link while the mount knows it."""
    outside = bench.base / "outside"
    write_files(outside, {"file": "outside\n"})
    write_files(bench.root, {"dir/file": "inside\n"})
    bench.write_toml('[workspace]\nname = "shop"\n')
    bench.mount()
    assert (bench.live / "dir" / "file").read_text() == "inside\n"
    fd = os.open(bench.live / "dir", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.rename(bench.root / "dir", bench.root / "old")
        (bench.root / "dir").symlink_to(outside)
        # Seen through the descriptor it is the old directory, or none; never what the link leads to.
        try:
            with open(os.open("file", os.O_RDONLY, dir_fd=fd)) as file:
                assert file.read() == "inside\n"
        except OSError:
            pass
        with contextlib.suppress(OSError):
            os.close(os.open("planted", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=fd))
        assert not (outside / "planted").exists()
    finally:
        os.close(fd)
    until(lambda: os.path.islink(bench.live / "dir"), "the link in the mount")


@pytest.mark.parametrize("local", ["/", "~/.ssh", "../secret", "inside/link", "/etc"])
def test_a_clive_toml_cannot_show_or_write_what_its_user_has_elsewhere(bench: Bench, local: str) -> None:
    write_files(bench.base / "secret", {"id_ed25519": "key\n"})
    (bench.home / ".ssh").mkdir()
    (bench.home / ".ssh" / "id_ed25519").write_text("key\n")
    (bench.root / "inside").mkdir()
    (bench.root / "inside" / "link").symlink_to("../../secret")
    bench.write_toml(f'[workspace]\nname = "shop"\n[mounts."data"]\nlocal = "{local}"\nwrite = "through"\n')
    done = bench.cli("mount", "--at", bench.mountpoint, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    if bench.is_mounted():
        assert bench.entry("data")["state"] in ("not-allowed", "error")
        assert os.listdir(bench.live / "data") == []
        with pytest.raises(OSError):
            (bench.live / "data" / "planted").touch()
    assert not (bench.base / "secret" / "planted").exists()


def test_a_change_by_git_or_an_editor_asks_again(bench: Bench) -> None:
    write_files(bench.base / "data", {"file": "data\n"})
    write_files(bench.base / "secret", {"file": "secret\n"})
    text = '[workspace]\nname = "shop"\n[mounts."data"]\nlocal = "../data"\n'
    bench.write_toml(text)
    bench.mount()
    assert (bench.live / "data" / "file").read_text() == "data\n"
    bench.write_toml(text.replace("../data", "../secret"))
    until(lambda: bench.entry("data")["state"] == "not-allowed", "a refusal")
    assert os.listdir(bench.live / "data") == []
    bench.write_toml(text)
    until(lambda: bench.entry("data")["state"] == "mounted", "the entry that was allowed")
    assert (bench.live / "data" / "file").read_text() == "data\n"


def test_a_link_turned_elsewhere_asks_again(bench: Bench) -> None:
    write_files(bench.base / "data", {"file": "data\n"})
    write_files(bench.base / "secret", {"file": "secret\n"})
    (bench.root / "link").symlink_to("../data")
    bench.write_toml('[workspace]\nname = "shop"\n[mounts."data"]\nlocal = "link"\n')
    bench.mount()
    bench.unmount()
    (bench.root / "link").unlink()
    (bench.root / "link").symlink_to("../secret")
    assert bench.cli("mount", "--at", bench.mountpoint, check=False).returncode == 1
    assert bench.entry("data")["state"] == "not-allowed"
    assert os.listdir(bench.live / "data") == []


def test_a_source_repository_runs_nothing(bench: Bench) -> None:
    """Whatever its configuration, hooks and attributes say: reading it starts no program of theirs."""
    path = bench.repository(
        "evil",
        {"a.txt": "a\n", "b.lfs": "pointer\n", ".gitattributes": "*.txt filter=evil diff=evil\n*.lfs filter=lfs\n"},
    )
    marker = bench.base / MARKER
    script = bench.base / "script"
    script.write_text(f"#!/bin/sh\ntouch {marker}\ncat\n")
    script.chmod(0o755)
    for name in (
        "core.fsmonitor", "core.sshCommand", "core.alternateRefsCommand", "core.pager", "core.editor", "core.askPass",
        "core.gitProxy", "uploadpack.packObjectsHook", "filter.evil.smudge", "filter.evil.clean", "filter.evil.process",
        "diff.evil.textconv", "diff.evil.command", "diff.external", "credential.helper", "gpg.program",
        "remote.origin.uploadpack", "remote.origin.vcs", "filter.lfs.smudge", "filter.lfs.process",
    ):  # fmt: skip
        bench.git("config", name, script, cwd=path)
    bench.git("config", "core.hooksPath", bench.base / "hooks", cwd=path)
    bench.git("config", "alias.status", f"!{script}", cwd=path)
    bench.git("config", "extensions.worktreeConfig", "true", cwd=path)
    (bench.base / "hooks").mkdir()
    for hook in ("post-checkout", "reference-transaction", "post-index-change", "pre-auto-gc", "fsmonitor-watchman"):
        (bench.base / "hooks" / hook).symlink_to(script)
        if not (path / ".git" / "hooks" / hook).exists():
            (path / ".git" / "hooks" / hook).symlink_to(script)
    (path / ".git" / "objects" / "info" / "alternates").write_text(str(bench.base / "no-such-objects") + "\n")
    marker.unlink(missing_ok=True)
    evil = mount_evil(bench)
    assert (evil / "a.txt").read_text() == "a\n"
    assert (evil / "b.lfs").read_text() == "pointer\n"
    assert not marker.exists(), "mounting or reading ran a program of the repository"
    bench.run("git status --porcelain; git log -1; git diff", cwd=evil)
    assert not marker.exists(), "git in the mount took over the repository's configuration"
    bench.cli("status")
    bench.cli("unmount", bench.mountpoint)
    assert not marker.exists()
    bench.write_toml(f'[workspace]\nname = "shop"\n[mounts."evil"]\ngit = "file://{path}"\nref = "main"\n')
    bench.mount(check=False)
    assert bench.entry("evil")["state"] in ("mounted", "error")
    if bench.entry("evil")["state"] == "mounted":
        assert (bench.live / "evil" / "a.txt").read_text() == "a\n"
    # A file URL is served by git upload-pack, which reads the configuration of the repository it serves: of what
    # is in it git honours packObjectsHook from protected configuration alone.
    assert not marker.exists()


def test_submodules_that_would_run_something(bench: Bench) -> None:
    path = bench.repository("evil", {"a": "a\n"})
    marker = bench.base / MARKER
    bench.git("update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},ext", cwd=path)
    bench.git("update-index", "--add", "--cacheinfo", f"160000,{'2' * 40},option", cwd=path)
    bench.git("update-index", "--add", "--cacheinfo", f"160000,{'3' * 40},up", cwd=path)
    (path / ".gitmodules").write_text(
        f'[submodule "ext"]\n\tpath = ext\n\turl = "ext::sh -c touch% {marker}"\n\tupdate = "!touch {marker}"\n'
        f'[submodule "option"]\n\tpath = option\n\turl = --upload-pack=touch\\ {marker}\n'
        f'[submodule "../../up"]\n\tpath = up\n\turl = -oProxyCommand=touch\\ {marker}\n'
        f'[submodule "host"]\n\tpath = up\n\turl = ssh://-oProxyCommand=touch\\ {marker}/x\n'
    )
    bench.git("add", ".gitmodules", cwd=path)
    bench.git("commit", "-q", "-m", "modules", cwd=path)
    evil = mount_evil(bench)
    for name in ("ext", "option", "up"):
        assert os.listdir(evil / name) == []
        assert os.getxattr(evil / name, "user.clive.layer").startswith(b"submodule:")
    assert (evil / "a").read_text() == "a\n"
    assert not marker.exists()


def test_broken_objects_are_errors_of_their_files(bench: Bench) -> None:
    path = bench.repository("evil", {"good": "good\n", "bad": "bad content\n", "dir/in": "in\n", "gone": "gone away\n"})
    for name, content in (("HEAD:bad", b"garbage"), ("HEAD:dir", b"\x78\x01garbage")):
        oid = bench.git("rev-parse", name, cwd=path).strip()
        file = path / ".git" / "objects" / oid[:2] / oid[2:]
        file.chmod(0o600)
        file.write_bytes(content)
    oid = bench.git("rev-parse", "HEAD:gone", cwd=path).strip()
    (path / ".git" / "objects" / oid[:2] / oid[2:]).unlink()
    evil = mount_evil(bench, write="none")
    assert (evil / "good").read_text() == "good\n"
    for name in ("bad", "gone"):
        with pytest.raises(OSError):
            (evil / name).read_bytes()
    with pytest.raises(OSError):
        os.listdir(evil / "dir")
    assert (evil / "good").read_text() == "good\n"
    assert "bad" in os.listdir(evil)


def test_a_blob_that_lies_about_its_size(bench: Bench) -> None:
    """A loose object whose header says a terabyte must not be believed before anything is allocated."""
    path = repository(bench)
    data = b"blob 1099511627776\0" + b"x" * 100
    oid = sha1(data).digest()
    file = path / ".git" / "objects" / oid.hex()[:2] / oid.hex()[2:]
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(zlib.compress(data))
    good = put(path, "blob", b"good\n")
    commit(path, tree(path, ("100644", b"big", oid), ("100644", b"good", good)))
    evil = mount_evil(bench, write="none")
    before = resident_mib(bench)
    with pytest.raises(OSError):
        (evil / "big").read_bytes()
    assert (evil / "good").read_text() == "good\n"
    assert resident_mib(bench) - before < 100


def test_a_commit_whose_tree_is_something_else(bench: Bench) -> None:
    path = repository(bench)
    blob = put(path, "blob", b"not a tree\n")
    commit(path, blob)
    bench.write_toml('[workspace]\nname = "shop"\n[mounts."evil"]\ngit = "../evil"\nref = "main"\n')
    done = bench.mount(check=False)
    assert "Traceback" not in done.stderr
    assert "internal error" not in done.stderr
    assert (bench.live / "Clive.toml").exists()
    with pytest.raises(OSError):
        (bench.live / "evil" / "x").read_bytes()


def test_pipes_in_a_repository_keep_nobody_waiting(bench: Bench) -> None:
    path = bench.repository("evil", {"a": "a\n"})
    for name in ("commondir", "objects/info/alternates", "info/attributes"):
        (path / ".git" / name).unlink(missing_ok=True)
        (path / ".git" / name).parent.mkdir(exist_ok=True)
        os.mkfifo(path / ".git" / name)
    bench.write_toml('[workspace]\nname = "shop"\n[mounts."evil"]\ngit = "../evil"\nref = "main"\n')
    done = bench.mount(check=False, timeout=100)
    assert done.returncode == 1
    assert "not a regular file" in done.stderr
    assert bench.entry("evil")["state"] == "error"
    assert (bench.live / "Clive.toml").exists()


def test_fetched_leftovers_of_a_dead_daemon_are_removed(bench: Bench) -> None:
    path = bench.repository("evil", {"a": "a\n"})
    bench.write_toml(f'[workspace]\nname = "shop"\n[mounts."evil"]\ngit = "file://{path}"\nref = "main"\n')
    bench.mount()
    bench.unmount()
    (repository,) = bench.store.glob("repositories/*.git")
    repository.rename(f"{repository}.12345.new")
    bench.mount()
    assert [each.name for each in bench.store.glob("repositories/*.git*") if each.is_dir()] == [repository.name]
    assert (bench.live / "evil" / "a").read_text() == "a\n"
