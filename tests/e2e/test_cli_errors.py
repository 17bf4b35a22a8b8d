"""Whatever is wrong, a person gets one clear message and exit 1 or 2, never a traceback."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from harness import WAIT_S, Bench, until

pytestmark = pytest.mark.mount

PLAIN = '[workspace]\nname = "shop"\n'


def refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> str:
    """*done* failed with one message in which all *words* are; that message."""
    said = done.stdout + done.stderr
    assert done.returncode == code, said
    assert "Traceback" not in said
    assert "internal error" not in said
    assert done.stderr.startswith("clivefs: "), done.stderr
    assert done.stderr.count("clivefs: ") == 1, done.stderr
    for word in words:
        assert word in done.stderr, f"{word!r} is not in: {done.stderr}"
    return done.stderr


def entry(path: str, **facts: str) -> str:
    lines = "".join(f'{name} = "{value}"\n' for name, value in facts.items())
    return f'\n[mounts."{path}"]\n{lines}'


# Clive.toml


def test_no_clive_toml(bench: Bench) -> None:
    refused(bench.mount(check=False), "Clive.toml", "clivefs init")
    empty = bench.base / "empty"
    empty.mkdir()
    refused(bench.cli("mount", cwd=empty, check=False), "Clive.toml", "clivefs init")
    refused(bench.cli("mount", bench.base / "nowhere", check=False), "no such directory")
    assert not bench.is_mounted()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        pytest.param("[workspace\n", ["Clive.toml:1"], id="malformed"),
        pytest.param('[workspace]\nname = "shop"\ncolour = "red"\n', ["Clive.toml:3", "colour"], id="unknown-key"),
        pytest.param(
            '[workspace]\nname = "shop"\n[mouts.x]\nlocal = "x"\n', ["Clive.toml:3", "mouts", "mounts"], id="table"
        ),
        pytest.param("[workspace]\nname = 7\n", ["Clive.toml:2", "name"], id="type"),
        pytest.param('[workspace]\nname = "a/b"\n', ["Clive.toml:2", "name"], id="name"),
        pytest.param('[workspace]\nname = ".."\n', ["Clive.toml:2", "name"], id="name-dots"),
        pytest.param(PLAIN + entry("../x", local="d"), ["Clive.toml:", "../x"], id="escaping"),
        pytest.param(PLAIN + entry("/x", local="d"), ["Clive.toml:", "/x"], id="absolute"),
        pytest.param(PLAIN + entry("a/.git/hooks", local="d"), ["Clive.toml:", ".git"], id="dot-git"),
        pytest.param(PLAIN + entry(".clive/x", local="d"), ["Clive.toml:", ".clive"], id="dot-clive"),
        pytest.param(
            PLAIN + entry("a", local="d") + entry("a/b", local="d"), ["Clive.toml:", "a/b", "overlap"], id="overlap"
        ),
        pytest.param(PLAIN + entry("a", local="d") + entry("a/", local="d"), ["Clive.toml:", "a"], id="twice"),
        pytest.param(PLAIN + entry("a", local="d", git="e"), ["Clive.toml:", "a"], id="two-sources"),
        pytest.param(PLAIN + entry("a", write="none"), ["Clive.toml:", "a"], id="no-source"),
        pytest.param(PLAIN + entry("a", git="-u/x"), ["Clive.toml:", "-u/x"], id="option-url"),
        pytest.param(
            PLAIN + entry("a", git="../t", ref="--upload-pack=x"), ["Clive.toml:", "--upload-pack"], id="option-ref"
        ),
        pytest.param(
            PLAIN + entry("a", lcoal="d") + "[limts]\n",
            ["no source", "lcoal", "local", "limts", "limits"],
            id="several",
        ),
        pytest.param(PLAIN + '[limits]\nnetwork_timeout = "0s"\n', ["Clive.toml:4", "0s"], id="no-time"),
        pytest.param(PLAIN + entry("a", git="ext::sh -c true"), ["ext::sh"], id="ext"),
    ],
)
def test_a_bad_clive_toml(bench: Bench, text: str, words: list[str]) -> None:
    bench.write_toml(text)
    refused(bench.mount(check=False), *words)
    if "ext::" not in text:  # that one is seen when the entry is prepared: the rest is mounted
        assert not bench.is_mounted()


def test_a_clive_toml_that_is_not_a_file(bench: Bench) -> None:
    toml = bench.root / "Clive.toml"
    toml.symlink_to("/etc/passwd")
    refused(bench.mount(check=False), "symbolic link")
    toml.unlink()
    toml.mkdir()
    refused(bench.mount(check=False), "Clive.toml")
    toml.rmdir()
    os.mkfifo(toml)
    refused(bench.mount(check=False, timeout=WAIT_S), "not a regular file")
    toml.unlink()
    toml.write_bytes(b'[workspace]\nname = "\xff"\n')
    refused(bench.mount(check=False), "UTF-8")


# Sources: what is well is mounted, what is not is said, and the exit is 1


def mounted_but(bench: Bench, path: str, *words: str) -> str:
    """`mount` says what is wrong with the entry *path*, exits 1, and has mounted the rest."""
    said = refused(bench.mount(check=False), path, *words)
    assert bench.is_mounted()
    assert bench.entry(path)["state"] in ("error", "not-allowed")
    assert os.listdir(bench.live / path) == []
    assert (bench.live / "Clive.toml").exists()
    assert bench.cli("status", check=False).returncode == 1
    return said


def test_a_missing_ref(bench: Bench) -> None:
    bench.repository("thing", {"a": "a\n"})
    bench.git("branch", "release-1.2", cwd=bench.base / "thing")
    bench.write_toml(PLAIN + entry("lib", git="../thing", ref="relase-1.2"))
    mounted_but(bench, "lib", "relase-1.2", "release-1.2")
    # Mounting it again says so again.
    refused(bench.mount(check=False), "lib", "relase-1.2")


def test_a_missing_repository(bench: Bench) -> None:
    bench.write_toml(PLAIN + entry("lib", git="../nothing-here"))
    mounted_but(bench, "lib", "no such directory")


def test_a_directory_that_is_no_repository(bench: Bench) -> None:
    (bench.base / "plain").mkdir()
    bench.write_toml(PLAIN + entry("lib", git="../plain"))
    mounted_but(bench, "lib", "no git repository")


def test_a_repository_without_commits(bench: Bench) -> None:
    (bench.base / "young").mkdir()
    bench.git("init", "-q", cwd=bench.base / "young")
    bench.write_toml(PLAIN + entry("lib", git="../young"))
    mounted_but(bench, "lib", "no commits")


def test_a_missing_url(bench: Bench) -> None:
    bench.write_toml(PLAIN + entry("lib", git=f"file://{bench.base}/nothing"))
    mounted_but(bench, "lib", "nothing")


def test_a_missing_local_directory(bench: Bench) -> None:
    bench.write_toml(PLAIN + entry("lib", local="../nothing"))
    mounted_but(bench, "lib", "cannot be opened")


def test_a_missing_subdirectory(bench: Bench) -> None:
    bench.repository("thing", {"source/a": "a\n"})
    bench.write_toml(PLAIN + entry("lib", git="../thing", subdir="sourc"))
    mounted_but(bench, "lib", "sourc", "source")


def test_an_entry_that_is_not_allowed(bench: Bench) -> None:
    (bench.base / "data").mkdir()
    (bench.base / "data" / "file").write_text("secret\n")
    bench.write_toml(PLAIN + entry("lib", local="../data"))
    done = bench.cli("mount", bench.root, "--at", bench.mountpoint, check=False)
    refused(done, "lib", "not allowed", f"clivefs allow {bench.root}")
    assert bench.entry("lib")["state"] == "not-allowed"
    assert os.listdir(bench.live / "lib") == []
    bench.cli("allow", bench.root)
    assert (bench.live / "lib" / "file").read_text() == "secret\n"
    assert bench.entry("lib")["state"] == "mounted"


def test_json_says_what_is_wrong_too(bench: Bench) -> None:
    bench.write_toml(PLAIN + entry("lib", git="../nothing-here"))
    done = bench.mount("--json", check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["workspaces"][0]["mounts"][0]["state"] == "error"


# The mountpoint


def test_mountpoints_that_cannot_be_used(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    full = bench.base / "full"
    full.mkdir()
    (full / "something").touch()
    refused(bench.cli("mount", "--at", full, check=False), str(full), "not empty")
    file = bench.base / "file"
    file.touch()
    refused(bench.cli("mount", "--at", file, check=False), "not a directory")
    refused(bench.cli("mount", "--at", file / "below", check=False), "below")
    dangling = bench.base / "dangling"
    dangling.symlink_to("/proc/nothing")
    refused(bench.cli("mount", "--at", dangling, check=False), "/proc/nothing")
    refused(bench.cli("mount", "--at", "/", check=False), "/")
    refused(bench.cli("mount", "--at", "/proc", check=False), "something else is mounted", "proc")
    assert "fuse.clivefs" not in [
        line.split()[-1] for line in Path("/proc/mounts").read_text().splitlines() if str(bench.base) in line
    ]


def test_a_mountpoint_of_another_store(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    other = bench.base / "other"
    done = bench.cli("mount", "--at", bench.mountpoint, "--store", other, check=False)
    refused(done, str(bench.mountpoint), "another store")
    done = bench.cli("unmount", bench.mountpoint, "--store", other, check=False)
    refused(done, str(bench.mountpoint), "--store")
    assert (bench.live / "Clive.toml").exists()


def test_a_workspace_that_is_mounted_elsewhere(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    done = bench.cli("mount", "--at", bench.base / "second", check=False)
    refused(done, "mounted already", str(bench.mountpoint), str(bench.daemon_pid()))


def test_two_workspaces_of_one_name(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    other = bench.base / "other"
    other.mkdir()
    (other / "Clive.toml").write_text(PLAIN)
    refused(bench.cli("mount", bench.root, other, "--at", bench.mountpoint, check=False), "shop", "already")
    assert not bench.is_mounted()
    bench.mount()
    refused(bench.cli("mount", other, "--at", bench.mountpoint, check=False), "shop", "already")
    assert (bench.live / "Clive.toml").exists()


def test_a_foreground_daemon_for_a_mountpoint_that_has_one(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    refused(
        bench.mount("--foreground", check=False, timeout=WAIT_S),
        "serves this mountpoint already",
        str(bench.daemon_pid()),
    )


# A mount in itself


def test_roots_and_mountpoints_in_a_mount_are_refused(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    inner = bench.root / "inner"
    inner.mkdir()
    (inner / "Clive.toml").write_text('[workspace]\nname = "inner"\n')
    bench.mount()
    refused(bench.cli("mount", bench.live / "inner", check=False), "clivefs mount")
    # In the mount, a workspace's directory stands for the workspace, which is mounted already.
    refused(bench.cli("mount", cwd=bench.live, check=False), "mounted already")
    refused(bench.cli("mount", inner, "--at", bench.live / "point", check=False), "clivefs mount")
    refused(
        bench.cli("mount", inner, "--store", bench.live / "store", "--at", bench.base / "m2", check=False),
        "clivefs mount",
    )
    link = bench.base / "link"
    link.symlink_to(bench.live / "inner")
    refused(bench.cli("mount", link, check=False), "clivefs mount")
    way = bench.base / "way"
    way.symlink_to(bench.live)
    refused(bench.cli("mount", inner, "--at", way / "point", check=False), "clivefs mount")
    refused(
        bench.cli("mount", inner, "--store", way / "store", "--at", bench.base / "m2", check=False), "clivefs mount"
    )
    assert (bench.live / "Clive.toml").exists()


def test_sources_in_a_mount_are_refused(bench: Bench) -> None:
    """A second mountpoint, whose sources lead into the first, directly and by links."""
    bench.write_toml(PLAIN)
    (bench.root / "sub").mkdir()
    bench.git("init", "-q", cwd=bench.root / "sub")
    bench.mount()
    (bench.base / "link").symlink_to(bench.live)
    other = bench.base / "other"
    other.mkdir()
    (other / "Clive.toml").write_text(
        '[workspace]\nname = "other"\n'
        + entry("direct", local=str(bench.live / "sub"))
        + entry("linked", local="../link/sub")
        + entry("itself", local=str(bench.base / "m2"))
        + entry("repository", git="../link/sub")
    )
    second = bench.base / "m2"
    try:
        done = bench.cli("mount", other, "--at", second, "--allow", check=False, timeout=WAIT_S)
        said = refused(done, "direct", "linked")
        assert said.count("clivefs mount") == 4
        for name in ("direct", "linked", "itself", "repository"):
            listed = bench.run(["ls", "-R", second / "other" / name], cwd=bench.base, timeout=WAIT_S)
            assert listed.stdout.count("\n") <= 2
    finally:
        bench.cli("unmount", second, check=False)


def test_a_store_in_a_workspace_is_refused(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    refused(
        bench.cli("mount", "--store", bench.root / "store", "--at", bench.mountpoint, check=False), "store", "workspace"
    )
    refused(bench.cli("mount", "--store", bench.root, "--at", bench.mountpoint, check=False), "store", "workspace")
    link = bench.base / "link"
    link.symlink_to(bench.root)
    refused(bench.cli("mount", "--store", link / "store", "--at", bench.mountpoint, check=False), "store", "workspace")
    assert not bench.is_mounted()


@pytest.mark.parametrize("write", ["through", "overlay", "none"])
def test_a_mountpoint_in_a_workspace_is_an_empty_directory(bench: Bench, write: str) -> None:
    """Neither listing it, nor a link that leads into it, makes the daemon wait for itself."""
    bench.mountpoint = bench.root / "deep" / "mnt"
    bench.mountpoint.mkdir(parents=True)
    (bench.root / "deep" / "file").write_text("file\n")
    (bench.root / "into").symlink_to(bench.mountpoint / "shop")
    (bench.root / "relative").symlink_to("deep/mnt/shop/deep")
    data = bench.base / "data"
    data.mkdir()
    (data / "into").symlink_to(bench.mountpoint / "shop")
    bench.write_toml(PLAIN + f'write = "{write}"\n' + entry("over", local="../data", write="overlay"))
    bench.mount(timeout=WAIT_S)
    assert os.listdir(bench.live / "deep" / "mnt") == []
    assert sorted(os.listdir(bench.live / "deep")) == ["file", "mnt"]
    bench.run(["ls", "-lR", bench.live], timeout=WAIT_S)
    # -L follows the links into the mount: find(1) tells of the loops itself.
    bench.run(["find", "-L", bench.live, "-maxdepth", "12"], check=False, timeout=60)
    assert (bench.live / "into" / "deep" / "file").read_text() == "file\n"
    assert not (bench.live / "relative").exists()  # in the mount it leads to the empty directory
    assert (bench.live / "over" / "into" / "deep" / "file").read_text() == "file\n"
    if write != "overlay":  # there only the upper changes
        with pytest.raises(OSError):
            (bench.live / "deep" / "mnt" / "new").touch()
        with pytest.raises(OSError):
            (bench.live / "deep" / "mnt").rmdir()
        with pytest.raises(OSError):
            (bench.live / "deep" / "mnt").rename(bench.live / "deep" / "other")
        assert (bench.live / "deep" / "mnt").is_dir()
    assert (bench.mountpoint / "shop" / "deep" / "file").exists()


# The store


def test_a_store_of_a_newer_format(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    bench.unmount()
    (bench.store / "format").write_text("clivefs store 2\n")
    refused(bench.mount(check=False), "store", "format")
    refused(bench.cli("fsck", check=False), "format")
    (bench.store / "format").write_bytes(b"\xff\x00nonsense")
    refused(bench.mount(check=False), "format")
    assert not bench.is_mounted()


def test_a_store_that_is_something_else(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.store.mkdir()
    (bench.store / "holiday.jpg").touch()
    refused(bench.mount(check=False), str(bench.store))
    assert os.listdir(bench.store) in (["holiday.jpg"], ["run", "holiday.jpg"], ["holiday.jpg", "run"])
    shutil.rmtree(bench.store)
    bench.store.touch()
    refused(bench.mount(check=False), str(bench.store))
    refused(bench.cli("status", "--store", bench.store / "below", "--at", bench.mountpoint, check=False))


@pytest.mark.parametrize("command", [["mount"], ["fsck"], ["init"]])
def test_a_store_that_is_a_file(bench: Bench, command: list[str]) -> None:
    bench.write_toml(PLAIN)
    bench.store.write_text("not a store\n")
    if command == ["init"]:
        (bench.root / "Clive.toml").unlink()
    refused(bench.cli(*command, check=False), str(bench.store), "--store")


def test_a_store_with_a_broken_database(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    bench.unmount()
    (bench.store / "db" / "data.mdb").write_bytes(b"nonsense" * 4096)
    refused(bench.mount(check=False), "database")
    assert not bench.is_mounted()


def test_a_store_that_an_incompatible_process_has_open(bench: Bench) -> None:
    """LMDB's lock file says which layout its users agreed on; another one must be refused, not mixed."""
    bench.write_toml(PLAIN)
    bench.mount()
    lock = bench.store / "db" / "lock.mdb"
    with open(lock, "r+b") as file:  # bytes 4..8: the format of the lock file
        magic, number = file.read(4), file.read(4)
        file.seek(4)
        file.write(bytes([number[0] ^ 0x5A]) + number[1:])
        assert magic
    try:
        second = bench.base / "second"
        second.mkdir()
        (second / "Clive.toml").write_text('[workspace]\nname = "second"\n')
        done = bench.cli("mount", second, "--at", bench.base / "m2", check=False)
        refused(done, "database", str(bench.store))
    finally:
        with open(lock, "r+b") as file:
            file.seek(4)
            file.write(number)


# Daemons and machines


def test_the_socket_of_a_dead_daemon(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    pid = bench.daemon_pid()
    os.kill(pid, 9)
    until(lambda: not Path(f"/proc/{pid}").exists(), "its end")
    assert list(bench.store.glob("run/*.sock"))
    done = bench.cli("status", "--at", bench.mountpoint, check=False)
    refused(done, "clivefs mount", "clivefs unmount")
    refused(bench.cli("overlay", "diff", "x", "--at", bench.mountpoint, check=False), "clivefs mount")
    bench.mount()
    assert (bench.live / "Clive.toml").exists()


def test_a_socket_that_says_nonsense(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    bench.unmount()
    run = bench.store / "run"
    (key,) = [each.stem for each in run.glob("*.lock") if not each.name.startswith("workspace-")]
    (run / f"{key}.json").write_text(json.dumps({"pid": 1, "mountpoint": str(bench.mountpoint)}))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(run / f"{key}.sock"))
        listener.listen()
        asked = subprocess.Popen(
            [sys.executable, "-m", "clivefs.cli", "status", "--at", str(bench.mountpoint)],
            env=bench.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            while asked.poll() is None:
                if not select.select([listener], [], [], 0.01)[0]:
                    continue
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(WAIT_S)
                    if connection.recv(100):
                        connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        finally:
            _out, said = asked.communicate(timeout=WAIT_S)
    assert asked.returncode == 1
    assert "Traceback" not in said
    assert str(bench.mountpoint) in said


def test_requests_that_are_nonsense_do_not_harm_the_daemon(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    bench.mount()
    (path,) = bench.store.glob("run/*.sock")
    for request in (
        b"\n", b"[]\n", b"null\n", b'"x"\n', b"{\n", b"\xff\xfe\n", b'{"command": 1}\n', b'{"command": []}\n',
        b'{"command": "mount"}\n', b'{"command": "mount", "args": []}\n',
        b'{"command": "mount", "args": {"root": 7}}\n',
        b'{"command": "leave", "args": {"name": {}}}\n', b'{"command": "attach", "args": {"workspace": "shop"}}\n',
        b"[" * 100_000 + b"\n",
    ):  # fmt: skip
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(WAIT_S)
            client.connect(f"/proc/self/fd/{os.open(path.parent, os.O_PATH)}/{path.name}")
            client.sendall(request)
            answer = json.loads(client.makefile("rb").readline())
            assert answer["ok"] is False, request
            assert answer["message"]
    assert bench.status()["workspaces"][0]["name"] == "shop"


def test_a_daemon_that_hangs(bench: Bench) -> None:
    """Nobody waits for ever for a daemon that does not answer."""
    bench.write_toml(PLAIN)
    bench.mount()
    pid = bench.daemon_pid()
    os.kill(pid, 19)
    try:
        refused(bench.cli("status", "--at", bench.mountpoint, check=False, timeout=60), "answer")
    finally:
        os.kill(pid, 18)
    assert bench.status()["workspaces"][0]["name"] == "shop"


# Usage


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["mount", "--nonsense"],
        ["attach"],
        ["attach", "x"],
        ["replace", "x"],
        ["overlay"],
        ["overlay", "x"],
        ["detach"],
    ],
)
def test_usage_is_exit_2(bench: Bench, words: list[str]) -> None:
    bench.write_toml(PLAIN)
    done = bench.cli(*words, check=False)
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr
    assert "usage:" in done.stderr


def test_nothing_is_mounted(bench: Bench) -> None:
    bench.write_toml(PLAIN)
    refused(bench.cli("unmount", check=False), "nothing is mounted")
    refused(bench.cli("unmount", bench.base / "x", check=False), "no clivefs mount")
    refused(bench.cli("overlay", "diff", "x", check=False), "clivefs mount")
    refused(bench.cli("fsck", check=False), "no store")
    assert bench.cli("status", check=False).returncode == 0
