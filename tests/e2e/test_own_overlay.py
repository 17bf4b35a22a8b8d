"""A workspace whose own directory is not written (`[workspace] write = "overlay"`): Clive.toml and the patches are what
the mount shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from harness import Bench, until

pytestmark = pytest.mark.mount

TOML = '[workspace]\nname = "shop"\nwrite = "overlay"\n'
THING = '\n[mounts."lib"]\ngit = "../thing"\npatches = ["patches/*.patch"]\n'
DATA = '\n[mounts."data"]\nlocal = "../data"\n'
PATCH = "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-one\n+{word}\n"


@pytest.fixture
def own(bench: Bench) -> Bench:
    bench.repository("thing", {"f": "one\n"})
    (bench.base / "data").mkdir()
    (bench.base / "data" / "x").write_text("x\n")
    (bench.root / "patches").mkdir()
    (bench.root / "patches" / "1.patch").write_text(PATCH.format(word="patched"))
    bench.write_toml(TOML + THING)
    bench.mount()
    return bench


def shows(path: Path, text: str) -> None:
    until(lambda: path.exists() and path.read_text() == text, f"{text!r} in {path}")


def error_of(bench: Bench) -> str:
    return str(bench.status()["workspaces"][0].get("error") or "")


def test_clive_toml_saved_in_the_mount_is_in_force_and_survives_a_remount(own: Bench) -> None:
    (own.live / "Clive.toml").write_text(TOML + THING + DATA)
    until(lambda: (own.live / "data").exists(), "the new entry")
    own.cli("allow")
    shows(own.live / "data" / "x", "x\n")
    assert "data" not in (own.root / "Clive.toml").read_text()
    own.unmount()
    own.mount()
    shows(own.live / "data" / "x", "x\n")
    assert own.entry("data")["state"] == "mounted"
    # Saved as editors do: another file in its place.
    (own.live / "new.toml").write_text(TOML + DATA)
    os.rename(own.live / "new.toml", own.live / "Clive.toml")
    until(lambda: not (own.live / "lib").exists(), "the entry that was taken out")
    # What the directory itself says is hidden by that.
    own.write_toml(TOML + THING)
    own.cli("overlay", "reset", ".", "Clive.toml")
    shows(own.live / "lib" / "f", "patched\n")
    assert not (own.live / "data").exists()
    own.check_sound()


def test_commands_edit_the_file_that_the_mount_shows(own: Bench) -> None:
    before = (own.root / "Clive.toml").read_text()
    own.cli("attach", "data", "../data")
    assert (own.live / "data" / "x").read_text() == "x\n"
    assert (
        '[mounts."data"]' in (own.live / "Clive.toml").read_text()
        or "[mounts.data]" in (own.live / "Clive.toml").read_text()
    )
    assert (own.root / "Clive.toml").read_text() == before
    own.unmount()
    own.mount()
    assert (own.live / "data" / "x").read_text() == "x\n"
    own.cli("detach", "data")
    assert not (own.live / "data").exists()
    assert "data" not in (own.live / "Clive.toml").read_text()
    assert sorted(os.listdir(own.live)) == ["Clive.toml", "lib", "patches"]


def test_a_broken_or_missing_file_leaves_what_was_mounted(own: Bench) -> None:
    (own.live / "Clive.toml").write_text("[workspace\n")
    until(lambda: "Clive.toml" in error_of(own), "the error")
    assert (own.live / "lib" / "f").read_text() == "patched\n"
    own.unmount()
    own.mount()
    assert (own.live / "lib" / "f").read_text() == "patched\n"
    assert "Clive.toml" in error_of(own)
    os.unlink(own.live / "Clive.toml")
    until(lambda: "no such file" in error_of(own), "the other error")
    (own.live / "Clive.toml").write_text(TOML.replace("overlay", "through"))
    until(lambda: "write mode" in error_of(own), "the refused write mode")
    (own.live / "Clive.toml").write_text(TOML)
    until(lambda: not (own.live / "lib").exists(), "the mended file")
    assert error_of(own) == ""
    own.check_sound(allowed="stays as it was|mend the TOML|brings it back|own directory")


def test_what_an_edited_file_asks_for_must_be_allowed(own: Bench) -> None:
    (own.live / "Clive.toml").write_text(TOML + DATA)
    until(lambda: not (own.live / "lib").exists(), "the new file")
    assert own.entry("data")["state"] == "not-allowed"
    own.cli("allow")
    shows(own.live / "data" / "x", "x\n")
    (own.live / "Clive.toml").write_text(TOML + DATA.replace("../data", "../thing"))
    until(lambda: own.entry("data")["state"] == "not-allowed", "the permission that is missing")
    own.unmount()
    own.cli("mount", own.root, "--at", own.mountpoint, check=False)
    assert own.entry("data")["state"] == "not-allowed"


def test_commands_without_a_mount_do_not_edit_a_file_that_is_hidden(own: Bench) -> None:
    own.cli("attach", "data", "../data")
    own.unmount()
    done = own.cli("detach", "data", check=False)
    assert done.returncode == 1
    assert "clivefs mount" in done.stderr
    assert (own.root / "Clive.toml").read_text() == TOML + THING


def test_the_lock_is_the_one_that_the_mount_shows(own: Bench) -> None:
    commit = own.git("rev-parse", "HEAD", cwd=own.base / "thing").strip()
    own.cli("lock")
    lock = own.live / "Clive.lock"
    assert commit in lock.read_text()
    assert not (own.root / "Clive.lock").exists()
    (own.base / "thing" / "f").write_text("two\n")
    own.git("commit", "-qam", "two", cwd=own.base / "thing")
    own.unmount()
    offline = own.cli("lock", check=False)
    assert offline.returncode == 1
    assert "Clive.lock: it was edited in the mount" in offline.stderr
    own.mount()
    assert own.entry("lib")["ref"] == commit
    own.cli("lock", "--check")
    own.cli("lock")
    assert commit not in lock.read_text()
    until(lambda: own.entry("lib")["ref"] != commit, "the commit that is locked now")
    # What the directory has is hidden by that, and is in force without it.
    (own.root / "Clive.lock").write_text(lock.read_text().replace("version = 1", "version = 99"))
    lock.write_text(lock.read_text().replace(own.entry("lib")["ref"], commit))
    own.cli("overlay", "reset", ".", "Clive.lock")
    until(lambda: "format 99" in error_of(own), "the error of the other lock")
    (own.root / "Clive.lock").unlink()
    until(lambda: not error_of(own), "the end of the error")
    own.check_sound(allowed="stays as it was|Use a newer clivefs")


def test_patches_are_those_that_the_mount_shows(own: Bench) -> None:
    shown = own.live / "lib" / "f"
    shows(shown, "patched\n")
    patch = own.live / "patches" / "1.patch"
    patch.write_text(PATCH.format(word="edited"))
    shows(shown, "edited\n")
    assert "patched" in (own.root / "patches" / "1.patch").read_text()
    # What the directory has is hidden by the edit.
    (own.root / "patches" / "1.patch").write_text(PATCH.format(word="below"))
    own.unmount()
    own.mount()
    shows(shown, "edited\n")
    patch.unlink()
    shows(shown, "one\n")
    own.unmount()
    own.mount()
    shows(shown, "one\n")
    own.cli("overlay", "reset", ".", "patches/1.patch")
    shows(shown, "below\n")
    # Below, where nothing hides it.
    (own.root / "patches" / "1.patch").write_text(PATCH.format(word="again"))
    shows(shown, "again\n")
    os.rename(own.live / "patches", own.live / "other")
    shows(shown, "one\n")
    os.rename(own.live / "other", own.live / "patches")
    shows(shown, "again\n")
    own.check_sound()
