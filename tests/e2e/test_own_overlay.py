"""A workspace whose own directory is not written (`[workspace] write = "overlay"`): Clive.toml and the patches are what
the mount shows."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from faults import Killer, kill_at
from harness import Bench, until, write_files

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


def test_what_a_kill_leaves_of_a_command_is_gone_with_the_next_mount(own: Bench, tmp_path: Path) -> None:
    """Of one that writes among the edits, and of one that wrote in the workspace's own directory without a daemon."""
    own.unmount()
    (own.root / ".clive-new-0123456789abcdef-0a1b2c3d4e5f.new").write_text("half of a Clive.toml")
    own.mount(env=kill_at(tmp_path / "planted", "ownfiles.publish"))
    assert [name for name in os.listdir(own.live) if name.startswith(".clive-new")] == []
    assert own.cli("attach", "data", "../data", check=False).returncode == 1
    own.mount()
    assert [name for name in os.listdir(own.live) if name.startswith(".clive-new")] == []
    assert "data" not in (own.live / "Clive.toml").read_text()
    assert sorted(os.listdir(own.root)) == ["Clive.toml", "patches"]
    own.check_sound(allowed="clearing the dead mount")


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
    own.check_sound(allowed="stays as it was|mend the TOML|brings it back|own directory|takes mount entries away")


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


# Edits of an entry, whose patches and Clive.toml lie among the edits of the workspace

LINES = [f"line {number}\n" for number in range(1, 21)]
RELEASE = '\n[mounts."lib"]\ngit = "../release"\nref = "v1"\npatches = ["patches/*.patch"]\n'
TAKEN = "--- a/h\n+++ b/h\n@@ -1 +1 @@\n-h\n+taken\n"
OLD = "--- a/g\n+++ b/g\n@@ -4,3 +4,3 @@\n line 4\n-line 5\n+patched 5\n line 6\n"


def lines(**changed: str) -> str:
    made = list(LINES)
    for name, line in changed.items():
        made[int(name[1:]) - 1] = line + "\n"
    return "".join(made)


@pytest.fixture
def release(bench: Bench) -> Bench:
    """An entry at v1 of a repository that has a v2, with two patches, in a workspace that is not written."""
    thing = bench.repository("release", {"f": lines(), "g": lines(), "h": "h\n"})
    bench.git("tag", "v1", cwd=thing)
    write_files(thing, {"h": "taken\n", "f": lines(l15="new"), "g": "above\n" + lines(l5="theirs", l18="new")})
    bench.git("commit", "-qam", "second", cwd=thing)
    bench.git("tag", "v2", cwd=thing)
    write_files(bench.root, {"patches/1.patch": OLD.replace("5", "9").replace("4", "8").replace("line 6", "line 10")})
    write_files(bench.root, {"patches/0.patch": TAKEN})
    bench.write_toml(TOML + RELEASE)
    return bench


def own_files(bench: Bench) -> dict[str, bytes]:
    found = bench.root.rglob("*")
    return {str(each.relative_to(bench.root)): each.read_bytes() for each in found if each.is_file()}


def shown_files(bench: Bench) -> dict[str, bytes]:
    return {
        str(each.relative_to(bench.live)): each.read_bytes()
        for each in sorted(bench.live.rglob("*"))
        if each.is_file() and each.name != ".git"
    }


def test_edits_of_an_entry_become_a_patch_among_the_edits(release: Bench) -> None:
    release.mount()
    before = own_files(release)
    (release.live / "lib/f").write_text(lines(l2="mine"))
    assert not (release.live / "patches/new").exists()
    shown = shown_files(release)
    release.cli("overlay", "export", "lib", "-o", "patches/new/2.patch", "--as-layer")
    assert "patches/new/2.patch" in (release.live / "Clive.toml").read_text()
    assert "+mine" in (release.live / "patches/new/2.patch").read_text()
    assert release.cli("overlay", "diff", "lib").stdout == ""
    now = shown_files(release)
    assert now.pop("patches/new/2.patch")
    assert {**now, "Clive.toml": b""} == {**shown, "Clive.toml": b""}
    assert own_files(release) == before
    release.unmount()
    release.mount()
    assert (release.live / "lib/f").read_text() == lines(l2="mine")
    assert release.run(["getfattr", "-n", "user.clive.layer", "--only-values", "lib/f"]).stdout == (
        "patch:patches/new/2.patch"
    )
    release.check_sound()


def test_patches_and_edits_move_onto_another_release_and_back(release: Bench) -> None:
    release.mount()
    before = own_files(release)
    (release.live / "lib/f").write_text(lines(l2="mine"))
    (release.live / "lib/g").write_text(lines(l5="ours", l9="patched 9"))
    shown = shown_files(release)
    done = release.cli("overlay", "rebase", "lib", "--to", "v2", check=False)
    assert done.returncode == 1, done.stderr
    assert (release.live / "lib/f").read_text() == lines(l2="mine", l15="new")
    assert "ours\n=======\ntheirs\n" in (release.live / "lib/g").read_text()
    assert 'ref = "v2"' in (release.live / "Clive.toml").read_text()
    assert own_files(release) == before
    release.unmount()
    release.mount()
    assert [each["path"] for each in release.entry("lib")["conflicts"]] == ["g"]
    # A patch that the release has went. Somebody writes one of that name meanwhile: it is kept beside.
    patch = release.live / "patches/0.patch"
    assert not patch.exists()
    patch.write_text(PATCH.format(word="mine").replace("one", "line 1"))
    release.cli("overlay", "rebase", "lib", "--abort")
    now = shown_files(release)
    assert b"+mine" in now.pop("patches/0.patch.kept-1")
    assert now == shown
    assert own_files(release) == before
    release.check_sound()


def test_a_crash_of_that_leaves_before_or_after(release: Bench, tmp_path: Path) -> None:
    points = ["rebase.begun", "patch.rename", "rebase.config", "rebase.prepared", "rebase.lowered", "rebase.shown"]
    killer = Killer(tmp_path / "killer", [*points, "rebase.noted"])
    release.mount(env=killer.environment)
    (release.live / "lib/f").write_text(lines(l2="mine"))
    shown = shown_files(release)
    for point in points:
        killer.at(point)
        release.cli("overlay", "export", "lib", "-o", "patches/2.patch", "--as-layer", check=False)
        until(lambda: not release.daemons(), f"the end of the daemon at {point}")
        killer.at("")
        release.mount(env=killer.environment)
        assert shown_files(release) == shown, point
        assert "+mine" in release.cli("overlay", "diff", "lib").stdout, point
    killer.at("rebase.noted")
    release.cli("overlay", "export", "lib", "-o", "patches/2.patch", "--as-layer", check=False)
    until(lambda: not release.daemons(), "the end of the daemon")
    killer.at("")
    release.mount(env=killer.environment)
    now = shown_files(release)
    assert "+mine" in now.pop("patches/2.patch").decode()
    assert now == shown
    release.check_sound(allowed="dead mount")
