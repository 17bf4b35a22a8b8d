"""Clive.lock: written, verified by every mount, and obeyed when it changes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from typing import Any

import pytest
from harness import Bench, until
from modules import archive, index, wheel

pytestmark = pytest.mark.mount


@pytest.fixture
def locked(bench: Bench) -> Bench:
    """A workspace with a branch, a followed branch, an archive and a local directory; not locked yet."""
    bench.repository("thing", {"README": "one\n"})
    archive(bench.base / "a.tar.gz", {"f": "old\n"})
    (bench.base / "data").mkdir()
    bench.write_toml(
        '[workspace]\nname = "shop"\n[mounts."lib/thing"]\ngit = "../thing"\nref = "main"\n'
        '[mounts."followed"]\ngit = "../thing"\nref = "main"\nfollow = true\n'
        '[mounts."vendor/a"]\narchive = "../a.tar.gz"\n[mounts."data"]\nlocal = "../data"\n'
    )
    return bench


def advance(bench: Bench, content: str) -> str:
    """One more commit on `main`; its id."""
    thing = bench.base / "thing"
    (thing / "README").write_text(content)
    bench.git("commit", "-qam", content.strip(), cwd=thing)
    return head(bench)


def head(bench: Bench) -> str:
    return bench.git("rev-parse", "HEAD", cwd=bench.base / "thing").strip()


def lock_file(bench: Bench) -> dict[str, Any]:
    return tomllib.loads((bench.root / "Clive.lock").read_text())["mounts"]


def lock(bench: Bench, *args: object, check: bool = True) -> dict[str, Any]:
    done = bench.cli("lock", "--json", *args, check=check)
    value = json.loads(done.stdout)
    assert isinstance(value, dict)
    return value | {"status": done.returncode}


def what(found: dict[str, Any]) -> dict[str, str]:
    return {each["path"]: each["what"] for each in found["entries"]}


@pytest.mark.parametrize("mounted", [True, False], ids=["mounted", "not mounted"])
def test_what_is_locked(locked: Bench, mounted: bool) -> None:
    if mounted:
        locked.mount()
    first = head(locked)
    assert what(lock(locked, "--dry-run")) == {"lib/thing": "new", "followed": "new", "vendor/a": "new"}
    assert not (locked.root / "Clive.lock").exists()
    assert lock(locked, "--check", check=False)["status"] == 1
    found = lock(locked)
    assert found["written"]
    assert set(lock_file(locked)) == {"lib/thing", "followed", "vendor/a"}
    one = lock_file(locked)["lib/thing"]
    assert one["source"] == "git+../thing@main"
    assert one["commit"] == first
    assert one["tree"] == locked.git("rev-parse", "HEAD^{tree}", cwd=locked.base / "thing").strip()
    packed = (locked.base / "a.tar.gz").read_bytes()
    assert lock_file(locked)["vendor/a"]["sha256"] == hashlib.sha256(packed).hexdigest()
    mode = (locked.root / "Clive.lock").stat().st_mode
    assert mode == (locked.root / "Clive.toml").stat().st_mode
    before = (locked.root / "Clive.lock").read_bytes()
    again = lock(locked)
    assert set(what(again).values()) == {"same"}
    assert not again["written"]
    assert lock(locked, "--check")["status"] == 0
    # A branch that has moved on is no difference: what is locked can still be had.
    second = advance(locked, "two\n")
    assert lock(locked, "--check")["status"] == 0
    assert what(lock(locked, "--dry-run"))["lib/thing"] == "changed"
    assert (locked.root / "Clive.lock").read_bytes() == before
    # One entry alone.
    assert what(lock(locked, "lib/thing")) == {"lib/thing": "changed"}
    assert lock_file(locked)["lib/thing"]["commit"] == second
    assert lock_file(locked)["followed"]["commit"] == first
    # What is not in Clive.toml any more goes.
    text = (locked.root / "Clive.toml").read_text().replace('[mounts."vendor/a"]\narchive = "../a.tar.gz"\n', "")
    locked.write_toml(text)
    if mounted:
        until(lambda: len(locked.status()["workspaces"][0]["mounts"]) == 3, "the new Clive.toml")
    checked = lock(locked, "--check", check=False)
    assert (checked["status"], what(checked)["vendor/a"]) == (1, "gone")
    lock(locked)
    assert set(lock_file(locked)) == {"lib/thing", "followed"}
    locked.check_sound()


def test_errors_name_what_is_meant(locked: Bench) -> None:
    for args, why in [
        (("data",), "local directory"),
        (("lib/thin",), "Did you mean lib/thing"),
        (("--check", "--dry-run"), "leave one"),
    ]:
        done = locked.cli("lock", *args, check=False)
        assert done.returncode
        assert why in done.stderr
    (locked.base / "a.tar.gz").unlink()
    done = locked.cli("lock", check=False)
    assert done.returncode == 1
    assert "vendor/a: " in done.stderr
    assert not (locked.root / "Clive.lock").exists()


def test_a_locked_ref_stays_where_it_was_locked(locked: Bench) -> None:
    lock(locked)
    first = head(locked)
    second = advance(locked, "two\n")
    locked.mount()
    assert (locked.live / "lib/thing/README").read_text() == "one\n"
    assert (locked.live / "followed/README").read_text() == "two\n"
    assert locked.entry("lib/thing")["ref"] == locked.entry("lib/thing")["locked"] == first
    followed = locked.entry("followed")
    assert (followed["ref"], followed["locked"], followed["error"]) == (second, first, None)
    told = locked.cli("status").stdout
    assert "followed: it follows its ref" in told
    assert "lib/thing: it follows" not in told
    # To git it is the branch, at that commit.
    assert locked.git("symbolic-ref", "HEAD", cwd=locked.live / "lib/thing").strip() == "refs/heads/main"
    assert locked.git("rev-parse", "HEAD", cwd=locked.live / "lib/thing").strip() == first
    assert locked.git("status", "--porcelain", cwd=locked.live / "lib/thing") == ""
    # Locking anew moves it, at once.
    (locked.live / "lib/thing/own").write_text("mine\n")
    assert what(lock(locked, "lib/thing")) == {"lib/thing": "changed"}
    assert (locked.live / "lib/thing/README").read_text() == "two\n"
    assert (locked.live / "lib/thing/own").read_text() == "mine\n"
    assert locked.entry("lib/thing")["ref"] == second
    locked.check_sound()


def test_a_lock_that_is_written_over_takes_effect(locked: Bench) -> None:
    lock(locked)
    old = (locked.root / "Clive.lock").read_text()
    advance(locked, "two\n")
    locked.mount()
    lock(locked)
    readme = locked.live / "lib/thing/README"
    assert readme.read_text() == "two\n"
    (locked.root / "Clive.lock").write_text(old)  # as `git checkout` of an older state, outside of the mount
    until(lambda: readme.read_text() == "one\n", "the older lock")
    (locked.live / "Clive.lock").unlink()  # and inside
    until(lambda: readme.read_text() == "two\n", "no lock")
    assert "locked" not in locked.entry("lib/thing")
    (locked.live / "Clive.lock").write_text("version = nothing")
    until(lambda: "Clive.lock" in locked.status()["workspaces"][0].get("error", ""), "the broken lock is told of")
    assert readme.read_text() == "two\n"
    assert locked.cli("lock", check=False).returncode == 1
    locked.unmount()
    done = locked.mount(check=False)
    assert done.returncode == 1
    assert "Clive.lock" in done.stderr
    (locked.root / "Clive.lock").write_text(old)
    locked.mount()
    assert readme.read_text() == "one\n"
    locked.check_sound(allowed="stays as it was|could not start|writes it anew")


def test_a_mismatch_is_an_error_that_names_both_digests(locked: Bench) -> None:
    lock(locked)
    old = lock_file(locked)["vendor/a"]["sha256"]
    new = archive(locked.base / "a.tar.gz", {"f": "new\n"})
    locked.mount(check=False)
    entry = locked.entry("vendor/a")
    assert entry["state"] == "error"
    assert old in entry["error"]
    assert new in entry["error"]
    assert os.listdir(locked.live / "vendor/a") == []
    assert (locked.live / "lib/thing/README").read_text() == "one\n"
    checked = lock(locked, "--check", check=False)
    assert (checked["status"], what(checked)["vendor/a"]) == (1, "differs")
    assert new in next(each["error"] for each in checked["entries"] if each["path"] == "vendor/a")
    lock(locked, "vendor/a")
    assert (locked.live / "vendor/a/f").read_text() == "new\n"
    assert locked.entry("vendor/a")["locked"] == new
    # The tree is verified too.
    text = (locked.root / "Clive.lock").read_text()
    tree = lock_file(locked)["vendor/a"]["tree"]
    (locked.root / "Clive.lock").write_text(text.replace(tree, "0" * 40))
    until(lambda: locked.entry("vendor/a")["state"] == "error", "the wrong tree")
    assert tree in locked.entry("vendor/a")["error"]
    assert "0" * 40 in locked.entry("vendor/a")["error"]
    (locked.root / "Clive.lock").write_text(text.replace(head(locked), "1" * 40))
    until(lambda: "1" * 40 in (locked.entry("lib/thing")["error"] or ""), "the missing commit")
    locked.check_sound()


def test_an_entry_that_has_left_its_lock_is_told_of(locked: Bench) -> None:
    """By the command that gave it another source, and by `status`, until it is locked anew."""
    locked.git("tag", "v1", cwd=locked.base / "thing")
    locked.mount()
    lock(locked)
    was = lock_file(locked)["lib/thing"]["source"]
    told = f"lib/thing: Clive.lock has it as {was}, so it is not locked (`clivefs lock lib/thing` locks what it is now)"
    assert "not locked" not in locked.cli("status").stdout
    dry = locked.cli("overlay", "rebase", "lib/thing", "--to", "v1", "--dry-run").stdout
    assert told in dry
    assert told in locked.cli("overlay", "rebase", "lib/thing", "--to", "v1").stdout
    assert told in locked.cli("status").stdout
    assert locked.entry("lib/thing")["locked_as"] == was
    lock(locked, "lib/thing")
    assert "not locked" not in locked.cli("status").stdout
    assert "locked_as" not in locked.entry("lib/thing")
    archive(locked.base / "b.tar.gz", {"f": "other\n"})
    replaced = locked.cli("replace", "vendor/a", "archive:../b.tar.gz").stdout
    assert "vendor/a: Clive.lock has it as archive:../a.tar.gz, so it is not locked" in replaced
    locked.check_sound()


def test_limits_that_are_raised_count_at_once(locked: Bench) -> None:
    text = (locked.root / "Clive.toml").read_text()
    archive(locked.base / "a.tar.gz", {str(number): "x" for number in range(30)})
    locked.write_toml(text + "[limits]\narchive_files = 20\n")
    locked.mount(check=False)
    assert "archive_files" in locked.entry("vendor/a")["error"]
    locked.write_toml(text + "[limits]\narchive_files = 2000\n")
    until(lambda: locked.entry("vendor/a")["state"] == "mounted", "the raised limit")
    assert len(os.listdir(locked.live / "vendor/a")) == 30
    locked.check_sound()


def test_with_a_lock_and_a_warm_store_everything_mounts_without_a_network(bench: Bench) -> None:
    """The daemon runs in a network namespace of its own that has no interfaces, and no pip or npm is to be found."""
    modules = index(bench)
    wheel(modules, "thing", "1.0", {"thing.py": "V = 1\n"})
    remote = bench.repository("remote", {"README": "one\n"})
    bench.write_toml(
        '[workspace]\nname = "shop"\n[mounts."vendor/thing"]\npypi = "thing==1.0"\n'
        f'[mounts."far"]\ngit = "file://{remote}"\nref = "main"\nblobs = "all"\n'
    )
    bench.cli("lock")
    bench.mount()
    assert (bench.live / "far/README").read_text() == "one\n"
    bench.unmount()
    (modules / "thing-1.0-py3-none-any.whl").unlink()
    remote.rename(bench.base / "elsewhere")
    unshare = ["unshare", "--map-root-user", "-n"] if os.geteuid() else ["unshare", "-n"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine makes no network namespaces")
    bench.environment["PIP_FIND_LINKS"] = str(bench.base / "nowhere")
    bench.run(
        [*unshare, sys.executable, "-m", "clivefs.cli", "mount", bench.root, "--at", bench.mountpoint], cwd=bench.root
    )
    assert (bench.live / "vendor/thing/thing.py").read_text() == "V = 1\n"
    assert (bench.live / "far/README").read_text() == "one\n"
    assert {each["state"] for each in bench.status()["workspaces"][0]["mounts"]} == {"mounted"}
    bench.check_sound()
